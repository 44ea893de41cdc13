"""Inspecting the pickles in PyTorch's files before the files are loaded.

``torch.load(weights_only=True)`` refuses code, but accepts what exhausts memory or time: calls that
allocate as much memory as a number in the file states, and nested tuples that are small in the file
but take forever to compare. It also sets attributes of tensors that hide their methods.
"""

import os
import pickletools
import struct
import zipfile
from collections.abc import Collection
from typing import Any, BinaryIO

MAX_PICKLE = 2**28  # bytes; the optimizer of the largest model here needs about 1 MB
MAX_TUPLE = 10_000  # values in a tuple, including those of the tuples inside it
_LEGACY_PICKLES = 5  # magic number, version, machine, content, names of the storages

# What files of plain tensors refer to besides the types of storages, as "module name".
_PLAIN = frozenset(
    (
        "collections OrderedDict",
        "torch Size",
        "torch.nn.parameter Parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "_codecs encode",
    )
)
_NUMBER_TYPES = "Bool Byte Char Short Int Long Half BFloat16 Float Double ComplexFloat"
_STORAGES = frozenset(f"torch {number}Storage" for number in _NUMBER_TYPES.split())
# Signatures in a zip file: end of central directory, and the locator of its 64-bit variant.
_ZIP_END, _ZIP64_LOCATOR = b"PK\5\6", b"PK\6\7"


def content_fault(path: str, names: Collection[str]) -> str:
    """Return why a file must not be passed to ``torch.load``.

    Args:
        path: of a file in PyTorch's zip format or its legacy format.
        names: what the file may refer to besides plain tensors, such as "numpy.dtype".

    Returns:
        "" for a file of plain tensors and other data that PyTorch wrote.

    Raises:
        Exception: of various types, if the file is damaged.
    """
    allowed = set(_PLAIN | _STORAGES)
    for name in names:
        allowed.add(" ".join(name.rsplit(".", 1)))  # "numpy.dtype" -> "numpy dtype"
    if not zipfile.is_zipfile(path):
        return _legacy_fault(path, allowed)
    fault = _zip_fault(path)
    if fault:
        return fault
    with zipfile.ZipFile(path) as file:
        if file.testzip() is not None:  # PyTorch does not verify the checksums
            return "the file is damaged, its checksums are wrong"
        pickles = [entry for entry in file.infolist() if entry.filename.endswith(".pkl")]
        if any(entry.file_size > MAX_PICKLE for entry in pickles):
            return f"its pickle is larger than {MAX_PICKLE} bytes"
        for entry in pickles:
            with file.open(entry) as content:
                fault = _pickle_fault(content, allowed)
            if fault:
                return fault
    return ""


def _legacy_fault(path: str, allowed: Collection[str]) -> str:
    """The fault of a file in the legacy format: pickles, one after the other, before the data."""
    with open(path, "rb") as file:
        for _ in range(_LEGACY_PICKLES):
            fault = _pickle_fault(file, allowed)
            if fault:
                return fault
    return ""


def _zip_fault(path: str) -> str:
    """The fault of the archive itself.

    PyTorch stores tensors uncompressed. Compressed entries, or entries that share their bytes in
    the file, could expand to any amount of memory.
    """
    total = 0
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            is_stored = entry.compress_type == zipfile.ZIP_STORED
            if not is_stored or entry.compress_size != entry.file_size:
                return (
                    "it is a compressed archive, which PyTorch does not write; save it again with "
                    "torch.save"
                )
            total += entry.file_size
    if total > os.path.getsize(path):
        return (
            "its entries are larger than the file, which PyTorch does not write; save it again "
            "with torch.save"
        )
    with open(path, "rb") as file:
        if not _has_one_directory(file):
            return "it has two central directories, which PyTorch does not write"
    return ""


def _has_one_directory(file: BinaryIO) -> bool:
    """Return whether Python and PyTorch read the same entries of a zip file.

    A zip file ends with the 64-bit end record (56 bytes), its locator (20 bytes), and the end
    record (22 bytes and a comment of up to 64 KiB). The former two exist only in files of more than
    4 GB, or that claim so. Python expects the 64-bit record right before its locator; PyTorch
    follows the offset in the locator.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16 - 22))
    tail = file.read()
    end = tail.rfind(_ZIP_END)
    locator = tail[end - 20 : end]
    if end < 20 or not locator.startswith(_ZIP64_LOCATOR):
        return True
    # Locator: signature (4 bytes), disk number (4), offset of the 64-bit record (8), disks (4).
    (offset,) = struct.unpack_from("<Q", locator, 8)
    return offset == size - len(tail) + end - 20 - 56


def _pickle_fault(file: Any, allowed: Collection[str]) -> str:
    """The fault of the pickle at the current position of a file, which is left behind it.

    The operations are followed on a stack of sizes instead of values: a tuple's size is the number
    of values in it and in the tuples inside it, everything else has size 1.
    """
    sizes: list[int | None] = []  # the unpickler's stack; None is a mark
    memo: dict[int, tuple[int, Any]] = {}  # size and text of each memoized value
    text: Any = None  # the string that the last operation pushed, if it pushed one
    encoding = False  # whether the next call is one of _codecs.encode
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
                return f"it has a tuple of more than {MAX_TUPLE} values"
            # NumPy's bytes are (text, "latin1"); other codecs could multiply the size of a text.
            if encoding and name == "TUPLE2":
                if before != "latin1":
                    return "it contains _codecs.encode, which is code and not data"
                encoding = False
        elif name in ("REDUCE", "NEWOBJ", "BUILD") and encoding:
            return "it contains _codecs.encode, which is code and not data"
        for kind in operation.stack_after:
            sizes.append(None if kind is pickletools.markobject else size)
    return ""


def _popped(operation: Any, sizes: list[int | None]) -> list[int]:
    """Remove the operands of an operation from the stack and return their sizes."""
    if pickletools.markobject in operation.stack_before:
        # The topmost mark.
        mark = len(sizes) - 1 - sizes[::-1].index(None)
        # The operand below the mark, if any, is the container that the values are added to. It is
        # pushed again afterwards with size 1, so its size is not counted.
        below = operation.stack_before.index(pickletools.markobject)
        values = sizes[mark + 1 :]
        del sizes[mark - below :]
    else:
        count = len(operation.stack_before)
        values = sizes[len(sizes) - count :]
        del sizes[len(sizes) - count :]
    return [value or 1 for value in values]
