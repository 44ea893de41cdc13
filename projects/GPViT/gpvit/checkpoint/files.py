"""Download, read, verify and write checkpoint files. Nothing in a file is ever executed."""

import json
import logging
import os
import pickle
import platform
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import detectron2
import safetensors.torch
import torch
from detectron2.utils.file_io import PathManager
from safetensors import safe_open
from torch import Tensor, nn

from ..utils.errors import UserError, preview
from ..utils.files import atomic_write
from ..utils.paths import utf8_path
from ..utils.pickles import content_fault
from ..utils.text import one_line
from ..version import __version__
from . import published
from .describe import size_name
from .huggingface import download

logger = logging.getLogger(__name__)


def fetch(path: str) -> str:
    """Return the local path of a file, which is downloaded if necessary and cached.

    Args:
        path: of a file or folder, or an address. For hf://USER/NAME, a model on the Hugging Face
            Hub, the file is that of its weights; see :func:`.download`.

    Raises:
        UserError: the file is missing or cannot be downloaded.
    """
    if path.startswith("hf://"):
        return download(path)
    # The path in the cache contains the address, so ".." in it would lead out of the cache.
    if "://" in path and {".", ".."} & set(re.split(r"[/\\?#]", path)):
        raise UserError(f"cannot download {path}: an address with . or .. as a part is not allowed")
    try:
        local_path = PathManager.get_local_path(path)
    # OSError: an unreachable address; HTTPException: an interrupted transfer;
    # ValueError: a malformed address; RuntimeError: an unknown name in Detectron2's catalog.
    except (OSError, HTTPException, ValueError, RuntimeError) as error:
        reason = one_line(getattr(error, "reason", error))
        raise UserError(
            f"cannot download {path} ({reason}): download the file manually and give its path "
            'instead; to train from random weights, set train.init_checkpoint=""'
        ) from None
    if os.path.isdir(local_path):
        return find_checkpoint(local_path)
    if not os.path.isfile(local_path):
        raise UserError(f"checkpoint {path or '(none given)'} does not exist")
    return local_path


def find_checkpoint(folder: str) -> str:
    """Return the checkpoint to use from the folder of a training run or of a shared model.

    It is the best checkpoint if there is one, else the final one, else the newest.

    Raises:
        UserError: the folder contains none.
    """
    patterns = ("model_best.pth", "model_final.pth", "model_[0-9]*.pth", "model.safetensors")
    for pattern in patterns:
        # Iterations are padded with zeros, so the newest checkpoint is the last in order of names.
        paths = sorted(Path(folder).glob(pattern))
        if paths:
            return str(paths[-1])
    raise UserError(
        f"folder {folder} has no checkpoint of a detector (looked for {', '.join(patterns)})"
    )


@dataclass(frozen=True)
class File:
    """The content of a checkpoint file.

    Attributes:
        path: of the file, also if its folder was given.
        weights: tensors under this project's names, of a complete model or of a backbone alone.
        classes: class names of a complete model, if they are known.
        dropped: names of tensors that were in the file, see :meth:`backbone_alone`.
        kind: of an official file; None for a checkpoint of this project.
        config: from :func:`gpvit.config.inference_config`, if the file contains one.
        about: optional facts: "versions" (a dict of strings), "license" and "source" (strings),
            "iterations", the length of the training run (int), and "palette", the color of each
            class as [R, G, B].
    """

    path: str
    weights: dict[str, Tensor]
    classes: list[str] | None = None
    dropped: list[str] = field(default_factory=list)
    kind: published.Kind | None = None
    config: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """ "L1" to "L4"; "" for any other GPViT."""
        return size_name(self.weights)

    @property
    def title(self) -> str:
        """A short description for messages."""
        return f"published {self.kind.name} {self.size}".strip() if self.kind else "checkpoint"

    @property
    def is_backbone(self) -> bool:
        """Whether the weights are those of a backbone alone."""
        return "pos_embed" in self.weights

    def backbone_alone(self) -> "File":
        """Return the file of a complete model without everything around its backbone."""
        prefix = published.backbone_prefix(self.weights)
        around = [key for key in self.weights if not key.startswith(prefix)]
        weights = published.backbone_of(self.weights)
        return replace(self, weights=weights, classes=None, dropped=self.dropped + around)

    def require_classes(self) -> list[str]:
        """Return the class names. Raise a UserError if the file is not a model with classes."""
        if not self.classes:
            raise UserError(
                f"{self.path} is not a checkpoint of a model with class names; give one, such as "
                "OUTPUT_DIR/model_final.pth or a published model"
            )
        return self.classes


def read(path: str) -> File:
    """Read a checkpoint of this project or an official file to the CPU.

    Nothing in the file is executed.

    Args:
        path: of a file, or of a folder as in :func:`find_checkpoint`, or an address.

    Raises:
        UserError: the file is missing, cannot be downloaded, is damaged, contains more than data,
            or is neither kind of file.
    """
    if os.path.isdir(path):
        path = find_checkpoint(path)
    content = read_content(path)
    if "model" in content:
        key = "model"
    elif "state_dict" in content:
        key = "state_dict"
    else:
        raise UserError(
            f"{path} has neither 'model' (this project's) nor 'state_dict' (published): "
            f"{preview(list(content))}"
        )
    if content.get("ema") is not None:
        key = "ema"  # a run that averages its weights does so to use the average
    require_weights(content[key], f"cannot use {path}: its '{key}'")
    if key == "state_dict":
        return _official_file(path, content)
    classes, config = content.get("classes"), content.get("inference_config")
    valid_classes = classes is None or (isinstance(classes, list) and _are_strings(classes))
    if not valid_classes or not isinstance(config, str | None):
        raise UserError(
            f"cannot use {path}: 'classes' must be a list of names and 'inference_config' a string"
        )
    return File(path, content[key], classes, config=config, about=_facts(content))


def _official_file(path: str, content: dict[str, Any]) -> File:
    state_dict, meta = content["state_dict"], content.get("meta")
    try:
        kind = published.kind_of(state_dict)
        weights = published.converted(state_dict, kind)
    except ValueError as error:
        raise UserError(f"cannot use {path}: {error}") from None
    classes = published.classes_of(state_dict, meta if isinstance(meta, dict) else {})
    about = {}
    palette = meta.get("PALETTE") if isinstance(meta, dict) else None
    if is_palette(palette):
        about["palette"] = palette
    return File(path, weights, classes, kind=kind, about=about)


# What a tensor of weights may hold. Complex numbers would lose their imaginary part when loaded.
WEIGHT_TYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)


def require_weights(tensors: Any, what: str) -> None:
    """Raise a UserError about ``what`` unless this is a dict of names to plain CPU tensors."""
    if not isinstance(tensors, dict) or not _are_strings(tensors):
        raise UserError(f"{what} is not a dict of tensors by name")
    for name, tensor in tensors.items():
        fault = _weight_fault(tensor)
        if fault:
            raise UserError(f"{what} is not a dict of tensors to load: {one_line(name)} {fault}")


def _are_strings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _weight_fault(tensor: Any) -> str:
    """Return why an object is not a plain tensor, or ""."""
    if type(tensor) not in (Tensor, nn.Parameter) or vars(tensor):
        attributes = " with additional attributes" if isinstance(tensor, Tensor) else ""
        return f"is a {type(tensor).__name__}{attributes}"
    is_dense = tensor.layout is torch.strided and not tensor.is_nested
    if not is_dense or tensor.is_quantized or tensor.is_neg():
        return "is sparse, nested, quantized or negated"
    if tensor.device.type != "cpu":
        return f"has no values (device {tensor.device})"
    if tensor.dtype not in WEIGHT_TYPES:
        return f"is of {tensor.dtype}"
    # With strides of 0, a few bytes are a tensor of any size, until it is copied.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"repeats its values to the shape {tuple(tensor.shape)}"
    return ""


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    """Return :attr:`File.about`: those of the facts in a checkpoint that have the right type."""
    facts: dict[str, Any] = {}
    versions = content.get("versions")
    if isinstance(versions, dict) and _are_strings([*versions.keys(), *versions.values()]):
        facts["versions"] = versions
    for key, stated in (("licence", "license"), ("license", "license"), ("source", "source")):
        if isinstance(content.get(key), str):  # models shared before version 0.2 have "licence"
            facts[stated] = content[key]
    if is_palette(content.get("palette")):
        facts["palette"] = content["palette"]
    iterations, trainer = content.get("iterations"), content.get("trainer")
    if isinstance(trainer, dict):
        iterations = trainer.get("iteration", iterations)
    if type(iterations) is int and 0 <= iterations < 2**53:  # exact as a number in JSON
        facts["iterations"] = iterations
    return facts


def is_palette(value: Any) -> bool:
    """Whether a value from a file is a list of colors [R, G, B]."""
    if not isinstance(value, list) or not value:
        return False
    for color in value:
        if not isinstance(color, list | tuple) or len(color) != 3:
            return False
        if not all(type(channel) is int and 0 <= channel <= 255 for channel in color):
            return False
    return True


def read_content(path: str) -> dict[str, Any]:
    """Return the dict in a file; for a ``.safetensors`` file, "model" and its metadata.

    Raises:
        UserError: as in :func:`read`.
    """
    local_path = fetch(path)
    try:
        if local_path.endswith(".safetensors"):
            return _read_safetensors(local_path)
        fault = content_fault(local_path, _STAND_IN_NAMES)
        if fault:
            raise UserError(f"cannot read {path}: {fault}")
        stand_ins: list[Any] = [(_Unread, name) for name in _STAND_IN_NAMES]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol", module="torch")
            content = torch.load(local_path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged file causes exceptions of any type
        raise UserError(f"cannot read {path}: {_why_unread(local_path, path, error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if not _are_strings(content):
        raise UserError(f"{path} is not a checkpoint: its keys are not strings")
    _check_memory(content, local_path, path)
    return content


def _read_safetensors(local_path: str) -> dict[str, Any]:
    with utf8_path(local_path) as readable, safe_open(readable, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    content: dict[str, Any] = {"model": tensors}
    for key, text in metadata.items():
        if key == "format":  # "pt", which is part of the file format
            continue
        try:
            content[key] = json.loads(text)
        except ValueError:
            content[key] = text
    return content


def _check_memory(content: dict[str, Any], local_path: str, path: str) -> None:
    """Raise a UserError if the tensors are larger than the file.

    Many tensors may share their bytes, or have bytes that are not in the file.
    """
    for key in ("model", "ema", "state_dict"):
        tensors = content.get(key)
        num_bytes = 0
        for tensor in tensors.values() if isinstance(tensors, dict) else ():
            if type(tensor) is Tensor:
                num_bytes += tensor.numel() * tensor.element_size()
        if num_bytes > 2 * os.path.getsize(local_path):
            raise UserError(
                f"cannot read {path}: the tensors in its '{key}' are larger than the file"
            )


# The start of PyTorch's format before it used zip files: a pickled number. Byte 0x80 starts any
# pickle of protocol 2 or later.
_LEGACY_START = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


def _why_unread(local_path: str, path: str, error: Exception) -> str:
    # PyTorch's message is: Unsupported global: GLOBAL posix.system was not an allowed global ...
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return f"it contains {one_line(refused[1])}, which is code and not data"
    with open(local_path, "rb") as file:
        start = file.read(len(_LEGACY_START))
    if start[:1] == b"\x80" and start != _LEGACY_START:
        return (
            "it is a plain pickle, like the files of Detectron2's model zoo, which is not read "
            "because a pickle may run code; give a published GPViT or a checkpoint of this project"
        )
    if path.lower().endswith((".onnx", ".pt2")):
        return "it is an exported model: give the checkpoint that it was exported from"
    if local_path == path:
        return "the file is damaged"
    return f"the file is damaged; delete {os.path.realpath(local_path)} to download it again"


def write(path: str, weights: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write weights with metadata such as ``classes``, atomically.

    The format is that of safetensors if the name ends with ``.safetensors``, else PyTorch's.

    Raises:
        UserError: the file cannot be written; an existing file is intact.
    """
    if path.endswith(".safetensors"):
        tensors = {key: tensor.contiguous() for key, tensor in weights.items()}
        texts = {"format": "pt"}
        for key, value in metadata.items():
            texts[key] = json.dumps(value)
        content = safetensors.torch.save(tensors, texts)
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    else:
        save({"model": dict(weights)} | metadata, path)


def versions() -> dict[str, str]:
    """Return the versions that are recorded in a checkpoint."""
    return {
        "gpvit": __version__,
        "torch": str(torch.__version__),  # without str, an instance of a subclass of str
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }


def save(content: dict[str, Any], path: str) -> None:
    """Write a dict in PyTorch's format, atomically.

    Raises:
        UserError: the file cannot be written, for example on a full disk; an existing file is
            intact.
    """
    with atomic_write(path) as partial, open(partial, "wb") as file:
        torch.save(content, file)


class _Unread:
    """Stand-in for an object in the metadata of a file: accepts any arguments and ignores them.

    The real types would not be safe: NumPy trusts the memory layout of an array that a file states.
    """

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


# Types in the metadata of official files besides plain data. None of these values is ever used.
# NumPy 1 has its functions in numpy.core, NumPy 2 in numpy._core.
_STAND_IN_NAMES = (
    "argparse.Namespace",
    "datetime.datetime",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int32DType",
    "numpy.dtypes.Int64DType",
    "numpy.dtypes.BoolDType",
    "numpy.dtypes.StrDType",
    "numpy.float32",
    "numpy.float64",
    "numpy.int32",
    "numpy.int64",
    "numpy.bool_",
    "numpy.str_",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
)
