"""Assign the images of a dataset to train and val: as the dataset states, or by a hold-out."""

import hashlib
from collections.abc import Mapping

from ...utils.errors import UserError, preview
from .file_tree import SPLIT_WORDS

SEED = 0
VAL_FRACTION = 0.2  # of the images, held out for validation


def split_images(
    stated_splits: Mapping[str, str | None],
) -> tuple[dict[str, set[str]], list[str]]:
    """Assign images to "train" and "val".

    Args:
        stated_splits: by the name of each image, relative to the folder of the dataset: the split
            that the dataset states for it, "train", "val" or "test", or None.

    Returns:
        The names by split, and notes. A test split is used for validation if there is no other. If
        no split but train is stated, images are held out.

    Raises:
        UserError: a split is stated for some of the images only, or images cannot be held out.
    """
    by_split: dict[str | None, set[str]] = {}
    for name, split in stated_splits.items():
        by_split.setdefault(split, set()).add(name)
    stated = {split: by_split[split] for split in SPLIT_WORDS if split in by_split}
    unknown = by_split.get(None, set())
    if not stated or (stated.keys() == {"train"} and not unknown):
        return hold_out(set().union(*by_split.values()))
    if unknown:
        raise UserError(
            f"only some images are in folders named train, val or test, {len(unknown)} others are "
            f"not ({preview(sorted(unknown))}); move these, too"
        )
    notes = []
    if "val" in stated and "test" in stated:
        notes.append(f"not used: {len(stated['test'])} test images")
    parts = {"train": stated.get("train"), "val": stated.get("val") or stated.get("test")}
    return {split: part for split, part in parts.items() if part}, notes


def hold_out(names: set[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Hold out a fraction of the images for validation.

    Which ones only depends on the seed and on their names. Variants of an image stay together.

    Returns:
        The names by split, "train" and "val", and a note.

    Raises:
        UserError: there is only one image, or only variants of one.
    """
    # Roboflow names the augmented variants of an image NAME.rf.HASH.jpg.
    variants: dict[str, set[str]] = {}
    for name in names:
        variants.setdefault(name.partition(".rf.")[0], set()).add(name)
    if len(variants) < 2:
        images = f"{len(names)} image" if len(names) == 1 else f"{len(names)} images"
        if len(names) > 1:
            images += " that are variants of the same one (NAME.rf.HASH)"
        raise UserError(f"{images} cannot be split into train and val; add images")
    # The order of the hashes is random, but depends on nothing but the seed and the names.
    order = sorted(variants, key=_hash)
    count = max(1, round(VAL_FRACTION * len(order)))
    val = set().union(*(variants[original] for original in order[:count]))
    note = (
        f"{len(val)} of {len(names)} images are held out for validation, by seed {SEED} and their "
        "names"
    )
    return {"train": names - val, "val": val}, [note]


def _hash(name: str) -> bytes:
    return hashlib.sha256(f"{SEED} {name}".encode(errors="surrogateescape")).digest()
