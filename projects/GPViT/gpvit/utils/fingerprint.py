"""Dataset fingerprints, which show whether runs and results belong to the same data."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

VERSION = "2"


def dataset_fingerprint(records: Iterable[dict[str, Any]], classes: Sequence[str]) -> str:
    """Return a hash of a dataset's content, which does not depend on the folders of its files.

    It covers the file names, ids and sizes of the images in their order, the names of their label
    files, the classes and boxes of classified images, the class names in their order, and each
    object's class, box, mask and crowd flag. The pixels of the images are not covered.

    Args:
        records: in Detectron2's dataset format.
        classes: class names.

    Returns:
        The version of this format and 32 hexadecimal digits, such as "2:0123...".
    """
    digest = hashlib.sha256(repr(list(classes)).encode(errors="surrogatepass"))
    for record in records:
        for part in _parts(record):
            # The length in front makes the sequence of parts unambiguous.
            digest.update(b"%d:" % len(part))
            digest.update(part)
    return f"{VERSION}:{digest.hexdigest()[:32]}"


def _parts(record: dict[str, Any]) -> Iterator[bytes]:
    objects = record.get("annotations", ())
    image = (
        os.path.basename(record.get("file_name") or ""),
        os.path.basename(record.get("sem_seg_file_name") or ""),
        record.get("image_id"),
        record.get("width"),
        record.get("height"),
        len(objects),
    )
    yield repr(image).encode(errors="surrogatepass")
    if "label" in record:  # of a classified image
        yield b"%d" % record["label"]
        yield _numbers(record.get("box"))
    for item in objects:
        mode = item.get("bbox_mode")
        crowd = bool(item.get("iscrowd"))
        yield b"%d %d %d" % (int(item["category_id"]), -1 if mode is None else int(mode), crowd)
        yield _numbers(item.get("bbox"))
        mask = item.get("segmentation")
        if isinstance(mask, dict):  # RLE
            yield _numbers(mask.get("size"))
            yield _rle_counts(mask.get("counts"))
        elif isinstance(mask, list):  # polygons
            yield b"%d" % len(mask)
            yield from map(_numbers, mask)


def _rle_counts(counts: Any) -> bytes:
    """The counts of an RLE, which are compressed (text or bytes) or a list of integers."""
    if isinstance(counts, str):
        return counts.encode()
    return counts if isinstance(counts, bytes) else _numbers(counts)


def _numbers(values: Any) -> bytes:
    """Numbers as float64, or the representation of a value that is not a list of numbers."""
    try:
        return array("d", values).tobytes()  # several times faster than NumPy for short lists
    except (TypeError, ValueError, OverflowError):
        return repr(values).encode(errors="surrogatepass")


def fingerprint_like(saved: str, records: Iterable[dict[str, Any]], classes: Sequence[str]) -> str:
    """Return the fingerprint of a dataset in the version of the fingerprint ``saved``."""
    return dataset_fingerprint(records, classes) if ":" in saved else _version_1(records)


def _version_1(records: Iterable[dict[str, Any]]) -> str:
    """The fingerprint in checkpoints written before November 2026.

    It covers names and sizes of the images, and classes and boxes of the objects.
    """
    digest = hashlib.sha256()
    for record in records:
        image = (
            os.path.basename(record["file_name"]),
            record["image_id"],
            record.get("width"),
            record.get("height"),
        )
        objects = []
        for item in record.get("annotations", ()):
            objects.append((item["category_id"], *map(float, item["bbox"])))
        digest.update(repr((image, objects)).encode())
    return digest.hexdigest()[:16]
