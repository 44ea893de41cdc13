"""Reading, loading and writing weights, ours and published ones."""

from .describe import architecture
from .files import (
    File,
    fetch,
    find_checkpoint,
    is_palette,
    read,
    read_content,
    save,
    versions,
    write,
)
from .loading import load, load_strictly, require_fit, require_same
from .published import from_published

__all__ = [
    "File",
    "architecture",
    "fetch",
    "find_checkpoint",
    "from_published",
    "is_palette",
    "load",
    "load_strictly",
    "read",
    "read_content",
    "require_fit",
    "require_same",
    "save",
    "versions",
    "write",
]
