"""Paths for libraries that accept only UTF-8."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def utf8_path(path: str | os.PathLike) -> Iterator[str]:
    """Yield the path, or a temporary symbolic link to it if the path is not valid UTF-8.

    With such a path, OpenCV terminates the process, and TensorBoard, PyTorch and ONNX Runtime raise
    errors.
    """
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            suffix = os.path.splitext(text)[1].encode("ascii", "replace").decode()
            link = os.path.join(folder, f"link{suffix}")
            os.symlink(os.path.abspath(text), link)
            yield link
    else:
        yield text
