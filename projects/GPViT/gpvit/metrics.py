"""What a training wrote down: ``metrics.json``, one JSON object a line."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the file; none if there is no file. Skips what a full disk or a kill has cut short."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "iteration" in row:
                yield row
