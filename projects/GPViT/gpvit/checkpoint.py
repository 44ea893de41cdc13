"""Weights: reading files, published names and ours, loading into a built model, saving.

Files are read without executing anything in them.
"""

import argparse
import logging
import os
import re
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import fvcore.common.checkpoint
import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from .backbone import GPViT
from .errors import UserError

logger = logging.getLogger(__name__)

RELEASE = "https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1"
IMAGENET_WEIGHTS = {size: f"{RELEASE}/gpvit_{size.lower()}_in1k_300e.pth" for size in ("L1", "L2", "L3", "L4")}

# The published name of every tensor of the backbone, and ours: "#" stands for a number, "*" for the last part.
PUBLISHED_NAMES: dict[str, str] = {
    "pos_embed": "pos_embed",
    "patch_embed.stem.0.*": "patch_embed.stem.*",
    "patch_embed.stem.1.*": "patch_embed.stem.norm.*",
    "patch_embed.convs.0.*": "patch_embed.convs.0.*",
    "patch_embed.convs.1.*": "patch_embed.convs.0.norm.*",
    "patch_embed.convs.3.*": "patch_embed.convs.1.*",
    "patch_embed.convs.4.*": "patch_embed.convs.1.norm.*",
    "patch_embed.projection.*": "patch_embed.projection.*",
    # Window blocks.
    "layers.#.norm1.*": "blocks.#.norm1.*",
    "layers.#.qkv.*": "blocks.#.attn.qkv.*",
    "layers.#.attns.0.get_v.*": "blocks.#.attn.lepe_vertical.*",
    "layers.#.attns.1.get_v.*": "blocks.#.attn.lepe_horizontal.*",
    "layers.#.proj.*": "blocks.#.attn.proj.*",
    "layers.#.norm2.*": "blocks.#.norm2.*",
    "layers.#.ffn.layers.0.0.*": "blocks.#.mlp.fc1.*",
    "layers.#.ffn.layers.1.*": "blocks.#.mlp.fc2.*",
    "layers.#.dw.*": "blocks.#.conv.*",
    # Group propagation blocks.
    "layers.#.group_token": "blocks.#.group_token",
    "layers.#.group_layer.norm_query.*": "blocks.#.group.norm_query.*",
    "layers.#.group_layer.norm_key.*": "blocks.#.group.norm_key.*",
    "layers.#.group_layer.attn.k_proj.*": "blocks.#.group.key.*",
    "layers.#.mixer.layers.0.norm1.*": "blocks.#.mixer.norm1.*",
    "layers.#.mixer.layers.0.patch_mixer.0.*": "blocks.#.mixer.token_mlp.fc1.*",
    "layers.#.mixer.layers.0.patch_mixer.3.*": "blocks.#.mixer.token_mlp.fc2.*",
    "layers.#.mixer.layers.0.norm2.*": "blocks.#.mixer.norm2.*",
    "layers.#.mixer.layers.0.channel_mixer.0.*": "blocks.#.mixer.channel_mlp.fc1.*",
    "layers.#.mixer.layers.0.channel_mixer.3.*": "blocks.#.mixer.channel_mlp.fc2.*",
    "layers.#.un_group_layer.norm_query.*": "blocks.#.ungroup.norm_query.*",
    "layers.#.un_group_layer.norm_key.*": "blocks.#.ungroup.norm_key.*",
    "layers.#.un_group_layer.attn.q_proj.*": "blocks.#.ungroup.query.*",
    "layers.#.un_group_layer.attn.k_proj.*": "blocks.#.ungroup.key.*",
    "layers.#.un_group_layer.attn.v_proj.*": "blocks.#.ungroup.value.*",
    "layers.#.un_group_layer.attn.proj.*": "blocks.#.ungroup.out.*",
    "layers.#.un_group_layer.proj.*": "blocks.#.ungroup.join.*",
    "layers.#.un_group_layer.norm2.*": "blocks.#.ungroup.norm2.*",
    "layers.#.un_group_layer.ffn.layers.0.0.*": "blocks.#.ungroup.mlp.fc1.*",
    "layers.#.un_group_layer.ffn.layers.1.*": "blocks.#.ungroup.mlp.fc2.*",
    "layers.#.dwconv.0.*": "blocks.#.conv.*",
    "layers.#.dwconv.1.*": "blocks.#.conv.norm.*",
    # The norms of the maps that leave the network.
    "ln1.*": "out_norms.last_feat.*",
    "norm#.*": "out_norms.block#.*",
}


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published backbone's tensors under this project's names.

    Args:
        state_dict: keys of the published backbone, without the prefix "backbone." they have in a classifier.

    Raises:
        ValueError: a key that the published backbone does not have.
    """
    rules = [(_pattern(theirs), ours) for theirs, ours in PUBLISHED_NAMES.items()]
    renamed, unknown = {}, []
    for key, tensor in state_dict.items():
        for pattern, ours in rules:
            if match := pattern.fullmatch(key):
                parts = iter(match.groups())
                renamed[re.sub(r"[#*]", lambda _: next(parts), ours)] = tensor
                break
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"not in the published GPViT backbone: {_listed(unknown)}")
    return renamed


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)"))


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def fetch(path: str) -> str:
    """The path of a file on this machine, given as a path or an address; what is downloaded is kept for the next time.

    Raises:
        UserError: the file is missing or cannot be downloaded.
    """
    try:
        local_path = PathManager.get_local_path(path)
    except (OSError, HTTPException) as error:  # an unreachable address, a broken transfer
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot download {path} ({reason}): put the file somewhere by hand and give "
            'its path (train.init_checkpoint=PATH), or train.init_checkpoint="" to start from random weights'
        ) from None
    if not os.path.isfile(local_path):
        raise UserError(f"checkpoint {path or '(none given)'} does not exist")
    return local_path


def read(path: str) -> dict[str, Any]:
    """Reads a checkpoint file, given as a path or an address, to the CPU. Nothing in it is executed.

    Raises:
        UserError: the file is missing, cannot be downloaded, is damaged or holds more than data.
    """
    local_path = fetch(path)
    try:
        with torch.serialization.safe_globals(_METADATA_TYPES):
            data = torch.load(local_path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage happens to cause
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it contains {refused[1]}, which is code and not data" if refused else "the file is damaged"
        raise UserError(f"cannot read {path}: {reason}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a checkpoint")
    return data


_numpy_scalar = np.float64(0).__reduce__()[0]

# Harmless types that the metadata of published files and of optimizers contain beside tensors.
_METADATA_TYPES = [
    argparse.Namespace,
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # as NumPy 1 and 2 call it
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")),
]


def read_classes(path: str) -> list[str]:
    """The class names in the checkpoint of a detector.

    Raises:
        UserError: the file cannot be read or is no detector trained here, but for example an ImageNet classifier.
    """
    classes = read(path).get("classes")
    if not classes:
        raise UserError(f"{path} is no checkpoint of a detector trained here; give one, such as OUTPUT_DIR/model_final.pth")
    return classes


def load(model: nn.Module, path: str) -> None:
    """Loads a file into a built model, every tensor of it accounted for.

    A published ImageNet classifier goes into the GPViT inside the model; its head is dropped. A checkpoint of this
    project must fit the whole model.

    Raises:
        UserError: the file cannot be read or does not fit; the message names the keys.
    """
    data = read(path)
    if "model" in data:
        _load_strictly(model, data["model"], path)
        logger.info(f"loaded all {len(data['model'])} tensors of {path}")
        return
    backbones = [module for module in model.modules() if isinstance(module, GPViT)]
    if "state_dict" not in data or len(backbones) != 1:
        raise UserError(f"{path} has neither 'model' (this project's) nor 'state_dict' (published): {list(data)}")
    published = data["state_dict"]
    dropped = [key for key in published if key.startswith(("neck.", "head."))]
    try:
        weights = from_published({k.removeprefix("backbone."): v for k, v in published.items() if k not in dropped})
    except ValueError as error:
        raise UserError(f"{path} is no published ImageNet classifier: {error}") from None
    norms = [key for key in weights if key.startswith("out_norms.") and key not in backbones[0].state_dict()]
    for key in norms:
        del weights[key]
    _load_strictly(backbones[0], weights, path)
    logger.info(
        f"loaded {len(weights)} backbone tensors of {path}; dropped {len(dropped)} of its classifier and {len(norms)} "
        f"of a final norm that the model lacks; {len(model.state_dict()) - len(weights)} others start afresh"
    )
    logger.debug(f"dropped: {dropped + norms}")


def _load_strictly(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Copies weights into the model if names and shapes are the same on both sides, else changes nothing.

    Batch norm's step counter may be absent or surplus: frozen batch norm has none, and nothing here reads it.
    """
    wanted = model.state_dict()
    counters = {key for key in wanted.keys() ^ weights.keys() if key.endswith("num_batches_tracked")}
    problems = {
        "missing": [key for key in wanted if key not in weights and key not in counters],
        "surplus": [key for key in weights if key not in wanted and key not in counters],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in weights and weights[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        details = "; ".join(f"{len(keys)} {what} ({_listed(keys)})" for what, keys in problems.items() if keys)
        raise UserError(f"{path} does not fit the model: {details}")
    model.load_state_dict({key: tensor for key, tensor in weights.items() if key in wanted}, strict=not counters)


class Checkpointer(fvcore.common.checkpoint.Checkpointer):
    """Writes checkpoints that carry the names of their classes; reads them as :func:`read` and :func:`load` do."""

    def __init__(self, model: nn.Module, save_dir: str, *, classes: list[str], **checkpointables: Any) -> None:
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.classes = classes

    def save(self, name: str, **kwargs: Any) -> None:
        super().save(name, classes=self.classes, **kwargs)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        return super().load(fetch(path), checkpointables)

    def _load_file(self, path: str) -> dict[str, Any]:
        return read(path)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        _load_strictly(self.model, checkpoint.pop("model"), "the checkpoint")
