"""Sharing models as folders with model cards, and through the Hugging Face Hub."""

from ..checkpoint.huggingface import CARD, FILES, download, parsed
from .share import local_address, new_folder, pull, push, usable_config, write

__all__ = [
    "CARD",
    "FILES",
    "download",
    "local_address",
    "new_folder",
    "parsed",
    "pull",
    "push",
    "usable_config",
    "write",
]
