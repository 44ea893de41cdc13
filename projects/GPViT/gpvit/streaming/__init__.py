"""Models over images of any size: part by part, with their maps on disk."""

from .backbone import stream

__all__ = ["stream"]
