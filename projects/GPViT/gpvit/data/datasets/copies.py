"""Images with the same content, which should not be in both train and val."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ...utils.errors import UserError
from ..image_io import read_image


def find_copies(paths: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return the paths whose files have the same bytes as one of the others, with that one.

    Files that cannot be read are skipped, and so are images of a single color, such as black
    frames.
    """
    by_size: dict[int, list[str]] = {}
    for path in others:
        with contextlib.suppress(OSError, ValueError):
            by_size.setdefault(os.path.getsize(path), []).append(path)
    digests: dict[str, bytes] = {}

    def digest(path: str) -> bytes:
        if path not in digests:
            digests[path] = hashlib.sha256(Path(path).read_bytes()).digest()
        return digests[path]

    found = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            for other in by_size.get(os.path.getsize(path), ()):
                same = path != other and digest(path) == digest(other)
                if same and not _has_one_color(path):
                    found[path] = other
                    break
    return found


def _has_one_color(path: str) -> bool:
    try:
        image = read_image(path)
    except UserError:
        return False
    return bool((image == image[0, 0]).all())
