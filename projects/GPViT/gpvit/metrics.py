"""What a run wrote down: ``metrics.json``, one JSON object a line, and ``evaluation.json``."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the file; none if there is no file. Skips what a full disk or a kill has cut short."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "iteration" in row:
                yield row


def read_evaluation(path: Path) -> dict[str, Any]:
    """What ``evaluation.json`` says; empty if there is no file. Raises a UserError if it is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path} is not what an evaluation writes ({reason}); remove it") from None
    return content
