"""What a run wrote down: ``metrics.json``, one JSON object a line, and ``evaluation.json``."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import atomic_write, cut, finite_or_text
from .text import LINE_LIMIT, one_line

LARGEST = (
    1e39  # beyond float32, in which losses are; matplotlib can draw no axis of much larger numbers
)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the file, with what is a finite number in them; none if there is no file.

    Every line has its "iteration", from 0 on: that behind which it was measured. Skips what has none, and what a full
    disk or a kill has cut short.
    """
    rows = [row for _, row in lines_of(path)]
    last = max((row["iteration"] for row in rows if "total_loss" in row), default=-1)
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        # Version 0.1 noted the evaluation at the end under the number of iterations, one further than the others.
        if row["iteration"] == last + 1 and "total_loss" not in row:
            row["iteration"] = max(last, 0)
        merged.setdefault(row["iteration"], {}).update(row)  # what was measured again counts
    yield from merged.values()


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same with each line as it is in the file."""
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    ):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(row, dict)
            and type(row.get("iteration")) is int
            and 0 <= row["iteration"] < 2**53
        ):
            yield line, {key: value for key, value in row.items() if is_number(value)}


def is_number(value: Any) -> bool:
    """Whether this is what a metric, or a score, may be."""
    return type(value) in (int, float) and abs(value) < LARGEST  # NaN is not


def read_evaluation(path: Path) -> dict[str, Any]:
    """What ``evaluation.json`` says; empty if there is no file. Raises a UserError if it is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
        raise UserError(f"{path} is not what an evaluation writes ({reason}); remove it") from None
    return content


RESULTS_OF_SETS = (
    "inference"  # as Detectron2 calls it: a folder for each of several validation sets
)


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """A folder's name for each dataset: its own if all file systems take it, else one like it with a hash."""
    folders = {}
    lowered = [name.lower() for name in names]
    for name in names:
        safe = cut(re.sub(r"[^\w-]", "_", name, flags=re.ASCII), 80) or "_"
        if safe != name or lowered.count(name.lower()) > 1:  # some file systems take A for a
            safe += "-" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
        folders[name] = safe
    return folders


def results_folders(folder: Path, file: str) -> list[Path]:
    """The folders of the validation sets in that of a run that have a file of this name."""
    return sorted(path.parent for path in folder.glob(f"{RESULTS_OF_SETS}/*/{file}"))


def save_evaluation(
    folder: str,
    results: dict[str, Any] | None,
    about: dict[str, Any],
    *,
    images: int | None = None,
    seconds_per_image: float | None = None,
    device: str | None = None,
    max_detections: int | None = None,
) -> None:
    """Writes ``evaluation.json``. Raises a UserError if it cannot be written; the old one is intact.

    Args:
        folder: of the run.
        results: as Detectron2's evaluators give them, of several validation sets by their names; None while there are
            none yet.
        about: what they are of: "weights", the file that the model comes from, or None in a run; "iteration",
            iterations that it was trained for, where they are known; "data", see
            :func:`gpvit.evaluation.coco_evaluation.evaluated_data`, of several validation sets a list;
            "settings", see :func:`.settings`.
        images: how many were evaluated.
        seconds_per_image: of one process, from the first image to the last: reading, the model, collecting its results.
        device: of the model.
        max_detections: of an image and class that AP counts.
    """
    content = {
        "results": results,
        "images": images,
        "seconds_per_image": seconds_per_image,
        "device": device,
        "max_detections": max_detections,
        **about,
    }
    text = json.dumps(finite_or_text(content), indent=1)
    with atomic_write(Path(folder, "evaluation.json")) as path:
        path.write_text(text, encoding="utf-8")
