"""Files that a run writes: ``metrics.json`` (JSON Lines) and ``evaluation.json``."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import atomic_write, finite_or_text, truncate_name
from .text import LINE_LIMIT, one_line

# Larger than any float32, the type of losses; matplotlib draws no axis of much larger numbers.
LARGEST = 1e39


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the finite numbers of each iteration in the file; nothing if there is no file.

    Every row has its "iteration", counted from 0: the one after which it was measured. Lines
    without one are skipped, and so are lines truncated by a full disk or a killed process.
    """
    rows = [row for _, row in lines_of(path)]
    last = max((row["iteration"] for row in rows if "total_loss" in row), default=-1)
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        # Version 0.1 logged the final evaluation under the number of iterations, which is one more
        # than the last iteration.
        if row["iteration"] == last + 1 and "total_loss" not in row:
            row["iteration"] = max(last, 0)
        # A resumed run repeats iterations after its checkpoint: the later values count.
        merged.setdefault(row["iteration"], {}).update(row)
    yield from merged.values()


def lines_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each valid line of the file as text and as its finite numbers."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        iteration = row.get("iteration") if isinstance(row, dict) else None
        # type(), since True is an int too; floats hold integers exactly up to 2**53.
        if type(iteration) is int and 0 <= iteration < 2**53:
            yield line, {key: value for key, value in row.items() if is_number(value)}


def is_number(value: Any) -> bool:
    """Return whether a value can be a metric or a score: a finite number, and not a bool."""
    return type(value) in (int, float) and abs(value) < LARGEST  # False for NaN


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read ``evaluation.json``; return an empty dict if there is no file.

    Raises:
        UserError: the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
        raise UserError(f"{path} is not a valid evaluation file ({reason}); remove it") from None
    return content


# Detectron2's name for the folder that has a subfolder for each of several validation sets.
RESULTS_OF_SETS = "inference"


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """Return a folder name for each dataset.

    It is the dataset's name if every file system accepts it, else a similar one with a hash.
    """
    folders = {}
    lowered = [name.lower() for name in names]
    for name in names:
        safe = truncate_name(re.sub(r"[^\w-]", "_", name, flags=re.ASCII), 80) or "_"
        # Some file systems do not distinguish "A" from "a".
        if safe != name or lowered.count(name.lower()) > 1:
            safe += "-" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
        folders[name] = safe
    return folders


def results_folders(folder: Path, file: str) -> list[Path]:
    """Return the validation sets' folders, in the output folder of a run, that contain ``file``."""
    return sorted(path.parent for path in folder.glob(f"{RESULTS_OF_SETS}/*/{file}"))


def save_evaluation(
    folder: str,
    results: dict[str, Any] | None,
    about: dict[str, Any],
    *,
    images: int | None = None,
    seconds_per_image: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    max_detections: int | None = None,
) -> None:
    """Write ``evaluation.json``.

    Args:
        folder: output folder of the run.
        results: in the format of Detectron2's evaluators, by dataset name if there are several
            validation sets; None if there are no results yet.
        about: what was evaluated: "weights", the file of the model, or None during a run;
            "iteration", the number of iterations of training, where it is known; "data", see
            :func:`gpvit.evaluation.coco_evaluation.evaluated_data`, a list for several validation
            sets; "settings", see :func:`gpvit.engine.resume.settings`.
        images: number of evaluated images.
        seconds_per_image: of one process, from the first image to the last, for reading the image,
            running the model and collecting its results.
        device, dtype: of the model.
        max_detections: number of detections per image and class that AP counts.

    Raises:
        UserError: the file cannot be written; the old one is intact.
    """
    content = {
        "results": results,
        "images": images,
        "seconds_per_image": seconds_per_image,
        "device": device,
        "dtype": dtype,
        "max_detections": max_detections,
        **about,
    }
    text = json.dumps(finite_or_text(content), indent=1)
    with atomic_write(Path(folder, "evaluation.json")) as path:
        path.write_text(text, encoding="utf-8")
