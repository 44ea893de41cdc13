"""Paths for libraries that take only text."""

import contextlib
import os
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def utf8_path(path: str | os.PathLike) -> Iterator[str]:
    """The path for a library that takes only UTF-8: of a file or folder with another name, that of a link to it.

    OpenCV ends the process at another path, and TensorBoard, PyTorch and ONNX Runtime raise errors.
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
