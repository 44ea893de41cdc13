"""What a run finds in its output folder: the newest checkpoint to resume from, or files of another run, which stay."""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig

from .. import checkpoint
from ..config import inference_config, renamed
from ..config.saved import RENAMED
from ..config.values import may_change
from ..evaluation.coco_evaluation import RESULTS
from ..utils.errors import UserError, preview
from ..utils.events import read_evaluation
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line

logger = logging.getLogger(__name__)

DATA = "content of the training data"  # a key beside those of the config
OF_TRAINING = ("model_*.pth", "metrics.json", "run.json")
OF_EVALUATION = ("evaluation.json", RESULTS, "instances_predictions.pth")


def numbered(folder: Path) -> list[Path]:
    """The checkpoints on the way, the oldest first."""
    return sorted(
        path for path in folder.glob("model_[0-9]*.pth") if re.fullmatch(r"model_\d+", path.stem)
    )


def latest_checkpoint(folder: str) -> dict[str, Any] | None:
    """The state in the good checkpoint of a folder with most iterations; None if there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, and none is good; or other processes see others.
    """
    state, error = None, ""
    try:
        state = _latest_checkpoint(Path(folder))
    except UserError as failure:
        error = str(failure)
    seen = comm.all_gather(
        (state and state["path"], state and state["trainer"]["iteration"], error)
    )
    if len(set(seen)) > 1:
        raise UserError(
            f"the processes do not see the same checkpoints in {folder}, which must be on a disk that they share"
        )
    if error:
        raise UserError(error)
    if state is not None:
        logger.info(f"resuming from {one_line(state['path'], PATH_LIMIT)}")
    return state


def _latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    # An earlier end may have been gone beyond, and the best may be the only one. It comes before a numbered one of the same
    # iterations, which was written before the evaluation that it was the best of, and so knows of no such metric.
    final, best = (
        [path] if (path := folder / f"model_{name}.pth").exists() else []
        for name in ("final", "best")
    )
    paths = numbered(folder)[::-1]
    if not (final or best or paths):
        return None
    newest = None
    for candidates in (final, best, paths):
        state = _first_good(candidates)
        if newest is None or (
            state and state["trainer"]["iteration"] > newest["trainer"]["iteration"]
        ):
            newest = state
    if newest is None:
        count = len(final + best + paths)
        raise UserError(
            f"{folder} has {count} checkpoints, and none of them can be read; give another train.output_dir"
        )
    return newest


def _first_good(paths: list[Path]) -> dict[str, Any] | None:
    for path in paths:
        try:
            content = checkpoint.read_content(str(path))
            if fault := _state_fault(content):
                raise UserError(f"{path} is not the state of a training run: {fault}")
        except (UserError, OSError) as error:
            logger.warning(f"{one_line(error, LINE_LIMIT)}; looking for another checkpoint")
        else:
            return content | {"path": str(path)}
    return None


def _state_fault(content: dict[str, Any]) -> str:
    """Why a training run cannot be resumed from what a file holds; "" if it has all entries, each of its type."""
    types = {"model": dict, "classes": list, "trainer": dict, "config": dict, "seed": int}
    if missing := types.keys() - content.keys():
        return f"it has no {preview(sorted(missing))}"
    if wrong := [key for key, kind in types.items() if not isinstance(content[key], kind)]:
        return f"{preview(wrong)} is of another type"
    if isinstance(content["seed"], bool) or not 0 <= content["seed"] < 2**63:
        return "its seed is none"
    iteration = content["trainer"].get("iteration")
    if type(iteration) is not int or not 0 <= iteration < 2**53:
        return "it does not say its iteration"
    texts = [*content["classes"], *content["config"].keys(), *content["config"].values()]
    return (
        "" if all(isinstance(text, str) for text in texts) else "its classes or config are not text"
    )


def require_unused_output_dir(folder: str) -> None:
    """Raises a UserError if a folder has checkpoints, among which those of another training would be lost."""
    if found := sorted(Path(folder).glob("model_*.pth")):
        raise UserError(
            f"{folder} has checkpoints of a training ({found[-1].name}): add --resume, or give another train.output_dir"
        )


def refuse_evaluated(folder: str) -> None:
    """Raises a UserError if a folder has the results of ``--eval-only``, which those of a training run would replace."""
    if any(Path(folder).glob("evaluation.json")) and not any(
        map(any, map(Path(folder).glob, OF_TRAINING))
    ):
        raise UserError(
            f"{folder} has the results of an evaluation: give the training another train.output_dir"
        )


def settings(cfg: DictConfig) -> str:
    """A hash of what results depend on beside weights and data."""
    text = inference_config(
        cfg
    )  # with the detections of an image that the detector gives, which AP counts, too
    for old, new in RENAMED.items():  # so that results of before a name changed stay comparable
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    counted, given = (
        cfg.dataloader.evaluator.get("max_dets_per_image"),
        cfg.dataloader.get("max_detections"),
    )
    if counted != given:
        text += str(counted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_to_replace_results(folder: str, about: dict[str, Any]) -> None:
    """Raises a UserError if an evaluation would replace what a training run, or an evaluation of something else, wrote.

    Args:
        folder: where its results would go.
        about: what evaluation.json will say of "weights", "iteration", "settings" and "data".
    """
    there = {
        pattern: sorted(Path(folder).glob(pattern)) for pattern in (*OF_TRAINING, *OF_EVALUATION)
    }
    parent = Path(folder) if any(there[pattern] for pattern in OF_TRAINING) else Path(folder).parent
    names = ("evaluation", *(f"evaluation-{number}" for number in range(2, 100)))
    free = next((name for name in names if not (parent / name).exists()), "...")
    suggestion = (
        f"give the evaluation a folder of its own, for example train.output_dir={parent / free}"
    )
    if found := [path.name for pattern in OF_TRAINING for path in there[pattern]]:
        raise UserError(
            f"{folder} is the folder of a training ({found[0]}), whose results stay as they are: {suggestion}"
        )
    if any(there[pattern] for pattern in OF_EVALUATION):
        earlier = read_evaluation(Path(folder, "evaluation.json"))
        unknown = [key for key in about if key not in earlier]
        if unknown:  # of an older version
            raise UserError(
                f"{folder} has results of which {preview(unknown)} are not known: {suggestion}"
            )
        others = [
            key for key, value in about.items() if _comparable(earlier[key]) != _comparable(value)
        ]
        if others:
            raise UserError(
                f"{folder} has the results of an evaluation with other {preview(others)}: {suggestion}"
            )


def _comparable(value: Any) -> Any:
    """A path as an absolute one; data by their content, wherever they are, or by their name if it is not known."""
    if isinstance(value, list):  # of several validation sets
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return value.get("fingerprint") or value.get("name")
    return os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value


def check_config_unchanged(saved: dict[str, str], present: dict[str, str], path: str) -> None:
    """Raises a UserError if a training would go on with another config than it began with, where that matters."""
    saved = renamed(saved)
    keys = sorted(key for key in saved.keys() | present.keys() if not may_change(key))
    changed = [
        f"{key}: {saved.get(key)} -> {present.get(key)}"
        for key in keys
        if saved.get(key) != present.get(key)
    ]
    if changed:
        raise UserError(
            f"{path} was written with another config or other data ({preview(changed)}): give the old ones to resume, or "
            f"begin anew from its weights with train.init_checkpoint={path} and another train.output_dir"
        )
