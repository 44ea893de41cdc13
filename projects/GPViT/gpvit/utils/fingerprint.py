"""Fingerprints of datasets: whether a run is resumed, and results are shown, with the data that they are of."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

VERSION = "2"


def dataset_fingerprint(records: Iterable[dict[str, Any]], classes: Sequence[str]) -> str:
    """A hash of what a dataset holds. Files may move to other folders; nothing else may change.

    It covers names, ids and sizes of the images, names of their label files, the class names in their order, and of
    each object class, box, mask and whether it is a crowd; not the pixels of the images.

    Args:
        records: in Detectron2's dataset format.
        classes: names of the classes.

    Returns:
        The version of this rule and 32 hexadecimal digits, "2:0123...".
    """
    found = hashlib.sha256(repr(list(classes)).encode(errors="surrogatepass"))
    for record in records:
        for part in _parts(record):
            found.update(b"%d:" % len(part))  # so that no two lists of parts are the same bytes
            found.update(part)
    return f"{VERSION}:{found.hexdigest()[:32]}"


def _parts(record: dict[str, Any]) -> Iterator[bytes]:
    names = [os.path.basename(record.get(key) or "") for key in ("file_name", "sem_seg_file_name")]
    objects = record.get("annotations", ())
    image = (
        *names,
        record.get("image_id"),
        record.get("width"),
        record.get("height"),
        len(objects),
    )
    yield repr(image).encode(errors="surrogatepass")
    for item in objects:
        mode = item.get("bbox_mode")
        crowd = bool(item.get("iscrowd"))
        yield b"%d %d %d" % (int(item["category_id"]), -1 if mode is None else int(mode), crowd)
        yield _numbers(item.get("bbox"))
        mask = item.get("segmentation")
        if isinstance(mask, dict):  # run lengths, compressed to text or bytes, or a list
            counts = mask.get("counts")
            yield _numbers(mask.get("size"))
            yield (
                counts.encode()
                if isinstance(counts, str)
                else counts
                if isinstance(counts, bytes)
                else _numbers(counts)
            )
        elif isinstance(mask, list):  # polygons
            yield b"%d" % len(mask)
            yield from map(_numbers, mask)


def _numbers(values: Any) -> bytes:
    """Numbers as float64; array is several times faster with short lists than NumPy."""
    try:
        return array("d", values).tobytes()
    except (TypeError, ValueError, OverflowError):  # none, or something else than numbers
        return repr(values).encode(errors="surrogatepass")


def like(saved: str, records: Iterable[dict[str, Any]], classes: Sequence[str]) -> str:
    """The fingerprint of a dataset by the rule, this or an older one, that another fingerprint was computed by."""
    return dataset_fingerprint(records, classes) if ":" in saved else _version_1(records)


def _version_1(records: Iterable[dict[str, Any]]) -> str:
    """Names and sizes of the images, classes and boxes of their objects: what checkpoints had until November 2026."""
    found = hashlib.sha256()
    for record in records:
        image = (
            os.path.basename(record["file_name"]),
            record["image_id"],
            record.get("width"),
            record.get("height"),
        )
        objects = [
            (item["category_id"], *map(float, item["bbox"]))
            for item in record.get("annotations", ())
        ]
        found.update(repr((image, objects)).encode())
    return found.hexdigest()[:16]
