"""Looking at the pickles of PyTorch's files before they are loaded.

PyTorch's own reader for weights refuses code. It lets pass what only takes memory or time: calls that allocate as much as a
number says, and tuples of tuples that are small in the file and without end for whoever compares them. It also gives
tensors attributes that hide their methods.
"""

import os
import pickletools
import struct
import zipfile
from collections.abc import Collection
from typing import Any, BinaryIO

MAX_PICKLE = 2**28  # bytes; of the optimizer of the largest model here it is about 1 MB
MAX_TUPLE = 10_000  # values in a tuple, those of tuples in it included
_LEGACY_PICKLES = 5  # magic number, version, machine, content, names of the storages

# Besides types of storages and of numbers, what a file of plain tensors consists of.
_PLAIN = frozenset(
    {"collections OrderedDict", "torch Size", "torch.nn.parameter Parameter", "_codecs encode"}
    | {
        f"torch._utils {name}"
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    }
)
_STORAGES = frozenset(
    f"torch {kind}Storage"
    for kind in (
        "Bool",
        "Byte",
        "Char",
        "Short",
        "Int",
        "Long",
        "Half",
        "BFloat16",
        "Float",
        "Double",
        "ComplexFloat",
    )
)
_ZIP_END, _ZIP64_LOCATOR = b"PK\5\6", b"PK\6\7"


def content_fault(path: str, names: Collection[str]) -> str:
    """Why a file is not to be given to ``torch.load``; "" for one that PyTorch wrote of plain tensors and other data.

    Args:
        path: of a file in PyTorch's format, that of zip files or the one before.
        names: what it may name besides plain tensors, such as "numpy.dtype".

    Raises:
        Exception: it is damaged; of many kinds.
    """
    allowed = _PLAIN | _STORAGES | {" ".join(name.rsplit(".", 1)) for name in names}
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return next(
                filter(None, (_pickle_fault(file, allowed) for _ in range(_LEGACY_PICKLES))), ""
            )
    if fault := _zip_fault(path):
        return fault
    with zipfile.ZipFile(path) as file:
        if file.testzip() is not None:  # PyTorch does not look at them
            return "the file is damaged, its checksums are wrong"
        pickles = [entry for entry in file.infolist() if entry.filename.endswith(".pkl")]
        if any(entry.file_size > MAX_PICKLE for entry in pickles):
            return f"it describes its content in more than {MAX_PICKLE} bytes"
        for entry in pickles:
            with file.open(entry) as content:
                if fault := _pickle_fault(content, allowed):
                    return fault
    return ""


def _zip_fault(path: str) -> str:
    """PyTorch stores tensors as they are. A deflated entry, or many that share their bytes, may take any memory."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ):
        return "it is a compressed archive, which PyTorch does not write; save it again with torch.save"
    if sum(entry.file_size for entry in entries) > os.path.getsize(path):
        return "its entries are larger than the file, which PyTorch does not write; save it again with torch.save"
    with open(path, "rb") as file:
        if not _has_one_directory(file):
            return "it has two lists of its entries"
    return ""


def _has_one_directory(file: BinaryIO) -> bool:
    """Whether Python and PyTorch read the same entries: where both look if the file has more than 4 GB or says so."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16 - 22))
    tail = file.read()
    end = tail.rfind(_ZIP_END)
    locator = tail[end - 20 : end]
    if end < 20 or not locator.startswith(_ZIP64_LOCATOR):
        return True
    (offset,) = struct.unpack_from("<Q", locator, 8)
    return offset == size - len(tail) + end - 20 - 56


def _pickle_fault(file: Any, allowed: Collection[str]) -> str:
    """What is wrong with the pickle that a file goes on with; leaves the file behind it."""
    sizes: list[int | None] = []  # of the values on the unpickler's stack; None is a mark
    memo: dict[int, tuple[int, Any]] = {}
    text: Any = None  # the last one that was put on the stack, if that was the last operation
    encoding = False  # whether the next call is _codecs.encode
    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = sizes[-1] or 1, text
            continue
        values = _popped(operation, sizes)
        size, before, text = 1, text, None
        if name == "GLOBAL":
            if argument not in allowed:
                return f"it contains {argument.replace(' ', '.')}, which is code and not data"
            encoding = encoding or argument == "_codecs encode"
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            size, text = memo[argument]
        elif "UNICODE" in name or "STRING" in name:
            text = argument
        elif "TUPLE" in name:
            size += sum(values)
            if size > MAX_TUPLE:
                return "it has a tuple without end"
            if encoding and name == "TUPLE2":  # NumPy's bytes; other codecs multiply them
                if before != "latin1":
                    return "it contains _codecs.encode, which is code and not data"
                encoding = False
        elif name in ("REDUCE", "NEWOBJ", "BUILD") and encoding:
            return "it contains _codecs.encode, which is code and not data"
        sizes += [
            None if kind is pickletools.markobject else size for kind in operation.stack_after
        ]
    return ""


def _popped(operation: Any, sizes: list[int | None]) -> list[int]:
    """Takes what an operation needs from the stack. Returns: the sizes of the values."""
    if pickletools.markobject in operation.stack_before:
        place = len(sizes) - 1 - sizes[::-1].index(None)
        # What comes before the mark is one container, which goes back as it is.
        below = operation.stack_before.index(pickletools.markobject)
        values = sizes[place + 1 :]
        del sizes[place - below :]
    else:
        count = len(operation.stack_before)
        values = sizes[len(sizes) - count :]
        del sizes[len(sizes) - count :]
    return [value or 1 for value in values]
