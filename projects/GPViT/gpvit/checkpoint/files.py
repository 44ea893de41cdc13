"""Checkpoint files: fetched, read and verified without executing anything in them, and written."""

import json
import logging
import os
import pickle
import platform
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
    """The path of a file on this machine, given as a path or an address; what is downloaded is kept for the next time.

    Of a model on the Hugging Face Hub, hf://USER/NAME, that of its weights; see :func:`.download`.

    Raises:
        UserError: the file is missing or cannot be downloaded.
    """
    if path.startswith("hf://"):
        return download(path)
    # The cache has a file under its address: one with such parts would be written elsewhere.
    if "://" in path and {".", ".."} & {*re.split(r"[/\\?#]", path)}:
        raise UserError(f"cannot download {path}: an address with . or .. as a part is not allowed")
    try:
        local_path = PathManager.get_local_path(path)
    # An unreachable address, a broken transfer, no address at all, or none that Detectron2 knows.
    except (OSError, HTTPException, ValueError, RuntimeError) as error:
        reason = one_line(getattr(error, "reason", error))
        raise UserError(
            f"cannot download {path} ({reason}): put the file somewhere by hand and give its path instead; training may "
            'also start from random weights (train.init_checkpoint="")'
        ) from None
    if os.path.isdir(local_path):
        return find_checkpoint(local_path)
    if not os.path.isfile(local_path):
        raise UserError(f"checkpoint {path or '(none given)'} does not exist")
    return local_path


def find_checkpoint(folder: str) -> str:
    """The checkpoint of a training's folder that is for use: the best one, else the final one, else the newest; or the
    one of a folder that :mod:`gpvit.hub` made.

    Raises:
        UserError: the folder has none.
    """
    names = ("model_best.pth", "model_final.pth", "model_[0-9]*.pth", "model.safetensors")
    found = next((paths[-1] for name in names if (paths := sorted(Path(folder).glob(name)))), None)
    if found is None:
        raise UserError(
            f"folder {folder} has no checkpoint of a detector (looked for {', '.join(names)})"
        )
    return str(found)


@dataclass(frozen=True)
class File:
    """A checkpoint file, read.

    Attributes:
        path: where it came from; of a folder, the file in it.
        weights: tensors under this project's names; of a whole detector, or of a backbone alone.
        classes: names of a detector's classes, where they are known.
        dropped: names in the file of tensors that have no place in a detector.
        kind: of a published file; None of a checkpoint of this project.
        config: what :func:`gpvit.config.inference_config` gave, where the file has it.
        about: other facts that came with it, where it has them: "versions" (str by str), "licence" and "source" (str),
            "iterations" of its training (int).
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
        """ "L1" to "L4"; "" of another GPViT."""
        return size_name(self.weights)

    @property
    def title(self) -> str:
        """What the file holds, for messages."""
        return f"published {self.kind.name} {self.size}".strip() if self.kind else "checkpoint"

    @property
    def is_backbone(self) -> bool:
        return "pos_embed" in self.weights

    def require_classes(self) -> list[str]:
        """The names of the classes. Raises a UserError if the file is no detector's."""
        if not self.classes:
            raise UserError(
                f"{self.path} is no checkpoint of a detector with named classes; give one, such as "
                "OUTPUT_DIR/model_final.pth or a published Mask R-CNN or RetinaNet"
            )
        return self.classes


def read(path: str) -> File:
    """Reads a checkpoint of this project or a published file, given as a path or an address, to the CPU.

    Of a folder, that of :func:`find_checkpoint`. Nothing in it is executed.

    Raises:
        UserError: the file is missing, cannot be downloaded, is damaged, holds more than data or is of neither kind.
    """
    if os.path.isdir(path):
        path = find_checkpoint(path)
    content = read_content(path)
    key: str | None = next((key for key in ("model", "state_dict") if key in content), None)
    if key is None:
        raise UserError(
            f"{path} has neither 'model' (this project's) nor 'state_dict' (published): {preview(list(content))}"
        )
    if content.get("ema") is not None:
        key = "ema"  # what a training averaged is what it is for
    tensors, meta = content[key], content.get("meta")
    require_weights(tensors, f"cannot use {path}: its '{key}'")
    if key in ("model", "ema"):
        classes, config = content.get("classes"), content.get("inference_config")
        if not isinstance(config, str | None) or not (classes is None or _are_names(classes)):
            raise UserError(
                f"cannot use {path}: its 'classes' are no list of names, or its 'inference_config' is no text"
            )
        return File(path, tensors, classes, config=config, about=_facts(content))
    try:
        kind = published.kind_of(tensors)
        weights = published.converted(tensors, kind)
    except ValueError as error:
        raise UserError(f"cannot use {path}: {error}") from None
    classes = (
        published.classes_of(tensors, meta if isinstance(meta, dict) else {})
        if kind.is_detector
        else None
    )
    dropped = [name for name in tensors if name.startswith(kind.dropped)]
    return File(path, weights, classes, dropped, kind)


# What a tensor of weights may hold. Complex numbers would lose a part when they are loaded.
WEIGHT_TYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)


def require_weights(tensors: Any, what: str) -> None:
    """Raises a UserError, about ``what``, for anything but a dict of names to plain tensors on the CPU."""
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{what} is not a dict of tensors by name")
    for name, tensor in tensors.items():
        if fault := _weight_fault(tensor):
            raise UserError(f"{what} is not a dict of tensors to load: {one_line(name)} {fault}")


def _weight_fault(tensor: Any) -> str:
    if type(tensor) not in (Tensor, nn.Parameter) or vars(tensor):
        return f"is a {type(tensor).__name__}" + (
            " with attributes of its own" if isinstance(tensor, Tensor) else ""
        )
    if (
        tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_quantized
        or tensor.is_neg()
    ):
        return "is sparse, nested, quantized or negated"
    if tensor.device.type != "cpu":
        return f"has no values (device {tensor.device})"
    if tensor.dtype not in WEIGHT_TYPES:
        return f"is of {tensor.dtype}"
    # A few bytes may stand for any number of equal values, by strides of 0, until they are copied.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"repeats its values to the shape {tuple(tensor.shape)}"
    return ""


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    """What else a checkpoint says of itself, where it is what :attr:`File.about` promises."""
    found = {key: content.get(key) for key in ("versions", "licence", "source", "iterations")}
    if isinstance(trainer := content.get("trainer"), dict):
        found["iterations"] = trainer.get("iteration", found["iterations"])
    versions = found["versions"]
    texts = [*versions.keys(), *versions.values()] if isinstance(versions, dict) else [versions]
    fits = {
        "versions": all(isinstance(text, str) for text in texts) and isinstance(versions, dict),
        "licence": isinstance(found["licence"], str),
        "source": isinstance(found["source"], str),
        "iterations": type(found["iterations"]) is int and 0 <= found["iterations"] < 2**53,
    }
    return {key: found[key] for key, fit in fits.items() if fit}


def _are_names(classes: Any) -> bool:
    return isinstance(classes, list) and all(isinstance(name, str) for name in classes)


def read_content(path: str) -> dict[str, Any]:
    """What a file holds: of a ``.safetensors`` file, "model" and its metadata. Raises as :func:`read` does."""
    local_path = fetch(path)
    try:
        if local_path.endswith(".safetensors"):
            with utf8_path(local_path) as readable, safe_open(readable, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            return {"model": tensors} | {
                key: _parsed(value) for key, value in metadata.items() if key != "format"
            }
        if fault := content_fault(local_path, [name for _, name in _STAND_INS]):
            raise UserError(f"cannot read {path}: {fault}")
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol", module="torch")
            content = torch.load(local_path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch raises whatever the damage happens to cause
        raise UserError(f"cannot read {path}: {_why_unread(local_path, path, error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not a checkpoint: its entries are not named by text")
    # Many tensors of the same bytes, or of bytes that are not in the file, would take more memory than it has.
    for key in ("model", "ema", "state_dict"):
        values: Iterable[Any] = content[key].values() if isinstance(content.get(key), dict) else ()
        held = sum(
            value.numel() * value.element_size() for value in values if type(value) is Tensor
        )
        if held > 2 * os.path.getsize(local_path):
            raise UserError(
                f"cannot read {path}: the tensors in its '{key}' are larger than the file"
            )
    return content


# What PyTorch's format before zip files begins with: a pickled number. 0x80 begins any pickle.
_LEGACY_START = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)


def _why_unread(local_path: str, path: str, error: Exception) -> str:
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it contains {one_line(refused[1])}, which is code and not data"
    with open(local_path, "rb") as file:
        start = file.read(len(_LEGACY_START))
    if start[:1] == b"\x80" and start != _LEGACY_START:
        return (
            "it is a plain pickle, as Detectron2's model zoo has them, which is not read since a pickle may run code; give "
            "a published GPViT or a checkpoint of this project"
        )
    again = (
        ""
        if local_path == path
        else f"; delete {os.path.realpath(local_path)} to download it again"
    )
    return f"the file is damaged{again}"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def write(path: str, weights: Mapping[str, Tensor], **metadata: Any) -> None:
    """Writes weights with metadata such as ``classes``; a ``.safetensors`` file or, by any other name, PyTorch's.

    Raises:
        UserError: the file cannot be written; what was there is still there.
    """
    if path.endswith(".safetensors"):
        tensors = {key: tensor.contiguous() for key, tensor in weights.items()}
        texts = {"format": "pt"} | {key: json.dumps(value) for key, value in metadata.items()}
        content = safetensors.torch.save(tensors, texts)
        with atomic_write(path) as partial:
            partial.write_bytes(content)
    else:
        save({"model": dict(weights)} | metadata, path)


def versions() -> dict[str, str]:
    """What a checkpoint was made with."""
    return {
        "gpvit": __version__,
        "torch": str(torch.__version__),  # a class of PyTorch's otherwise
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }


def save(content: dict[str, Any], path: str) -> None:
    """Writes a dict in PyTorch's format.

    At any moment, ``path`` is what it was before or the whole new file.

    Raises:
        UserError: the file cannot be written, for example on a full disk; what was there is still there.
    """
    with atomic_write(path) as partial, open(partial, "wb") as file:
        torch.save(content, file)


class _Unread:
    """Takes the place of an object in the metadata of a file: takes all that the file says of it, and does nothing.

    The types themselves would not be harmless: NumPy believes what a file says of the layout of an array's memory.
    """

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


# Names that the metadata of published files contain beside plain data. None of these values is ever used.
_STAND_INS: list[Any] = [
    (_Unread, "argparse.Namespace"),
    (_Unread, "numpy.dtype"),
    (_Unread, "numpy.ndarray"),
    # As NumPy 1 and 2 call them.
    *(
        (_Unread, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        (_Unread, f"numpy.dtypes.{name}DType")
        for name in ("Float32", "Float64", "Int32", "Int64", "Bool", "Str")
    ),
    *(
        (_Unread, f"numpy.{name}")
        for name in ("float32", "float64", "int32", "int64", "bool_", "str_")
    ),
    *(
        (_Unread, f"pathlib.{name}")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    (_Unread, "datetime.datetime"),
]
