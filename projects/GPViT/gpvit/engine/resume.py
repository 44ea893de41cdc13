"""Check the output folder of a run.

Find the checkpoint to resume from, and make sure that no other results are replaced.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig

from .. import checkpoint
from ..config import inference_config, renamed
from ..config.saved import RENAMED
from ..config.values import may_change
from ..evaluation.coco_evaluation import RESULTS
from ..utils.errors import UserError, preview
from ..utils.events import read_evaluation
from ..utils.precision import choose_dtype
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line

logger = logging.getLogger(__name__)

DATA = "content of the training data"  # a key next to those of the config, in checkpoints
TRAINING_FILES = ("model_*.pth", "metrics.json", "run.json")  # globs
EVALUATION_FILES = ("evaluation.json", RESULTS, "instances_predictions.pth")

STATE_TYPES = {"model": dict, "classes": list, "trainer": dict, "config": dict, "seed": int}


def numbered(folder: Path) -> list[Path]:
    """Return the periodic checkpoints, model_0001000.pth and so on, the oldest first."""
    paths = []
    for path in folder.glob("model_[0-9]*.pth"):
        if re.fullmatch(r"model_\d+", path.stem):
            paths.append(path)
    return sorted(paths)


def latest_checkpoint(folder: str) -> dict[str, Any] | None:
    """Read the valid checkpoint of a folder with the most iterations.

    Returns:
        The content of the checkpoint and its "path"; None if the folder has no checkpoints.

    Raises:
        UserError: no checkpoint is valid, or the processes see different ones.
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
            f"the processes do not see the same checkpoints in {folder}: "
            "give a train.output_dir on a disk that all machines share"
        )
    if error:
        raise UserError(error)
    if state is not None:
        logger.info(f"resuming from {one_line(state['path'], PATH_LIMIT)}")
    return state


def _latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the :func:`latest_checkpoint` that this process sees."""
    # model_final.pth may be that of an earlier start with fewer iterations, and model_best.pth may
    # be the only checkpoint. With equal iterations, the first of these wins: a numbered checkpoint
    # was saved before the evaluation that model_best.pth knows the metric of.
    final = list(folder.glob("model_final.pth"))
    best = list(folder.glob("model_best.pth"))
    newest_first = numbered(folder)[::-1]
    paths = final + best + newest_first
    if not paths:
        return None
    latest = None
    for candidates in (final, best, newest_first):
        state = _first_valid(candidates)
        if latest is None or (
            state and state["trainer"]["iteration"] > latest["trainer"]["iteration"]
        ):
            latest = state
    if latest is None:
        raise UserError(
            f"{folder} has {len(paths)} checkpoints, and none of them can be read: "
            "give another train.output_dir"
        )
    return latest


def _first_valid(paths: list[Path]) -> dict[str, Any] | None:
    for path in paths:
        try:
            content = checkpoint.read_content(str(path))
            fault = _state_fault(content)
            if fault:
                raise UserError(f"{path} is not the state of a training run: {fault}")
        except (UserError, OSError) as error:
            logger.warning(f"{one_line(error, LINE_LIMIT)}; trying another checkpoint")
        else:
            return content | {"path": str(path)}
    return None


def _state_fault(content: dict[str, Any]) -> str:
    """Return why a run cannot be resumed from the content of a checkpoint; "" if it can."""
    missing = STATE_TYPES.keys() - content.keys()
    if missing:
        return f"it has no {preview(sorted(missing))}"
    wrong = [key for key, kind in STATE_TYPES.items() if not isinstance(content[key], kind)]
    if wrong:
        return f"wrong type of {preview(wrong)}"
    if isinstance(content["seed"], bool) or not 0 <= content["seed"] < 2**63:
        return "its seed is invalid"
    iteration = content["trainer"].get("iteration")
    if type(iteration) is not int or not 0 <= iteration < 2**53:
        return "its iteration is missing or invalid"
    for text in (*content["classes"], *content["config"].keys(), *content["config"].values()):
        if not isinstance(text, str):
            return "its classes or config are not text"
    return ""


def require_unused_output_dir(folder: str) -> None:
    """Raise a UserError if a folder has checkpoints, which a new run would replace."""
    found = sorted(Path(folder).glob("model_*.pth"))
    if found:
        raise UserError(
            f"{folder} has checkpoints of a training run ({found[-1].name}): "
            "add --resume, or give another train.output_dir"
        )


def require_no_evaluation(folder: str) -> None:
    """Raise a UserError if a folder has results of ``--eval-only``, which a run would replace."""
    has_run = any(_find(folder, TRAINING_FILES))
    if Path(folder, "evaluation.json").exists() and not has_run:
        raise UserError(
            f"{folder} has the results of an evaluation: "
            "give another train.output_dir for the training run"
        )


def _find(folder: str, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder that match a glob, in the order of the globs."""
    found = []
    for pattern in patterns:
        found += sorted(Path(folder).glob(pattern))
    return found


def settings(cfg: DictConfig) -> str:
    """Return a hash of everything that evaluation results depend on, except weights and data."""
    text = inference_config(cfg)
    # By the old names, so that it equals the hash in results from before something was renamed.
    for old, new in RENAMED.items():
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    # The number of detections per image of the model is in inference_config. AP usually counts as
    # many; if it does not, its number belongs to the hash as well.
    counted = cfg.dataloader.evaluator.get("max_dets_per_image")
    if counted != cfg.dataloader.get("max_detections"):
        text += str(counted)
    dtype = choose_dtype(cfg.train.eval_dtype, cfg.train.device)
    if dtype != torch.float32:
        text += str(dtype)
    if "large_images" in cfg.train:
        text += str(cfg.train.large_images)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_same_evaluation(folder: str, about: dict[str, Any]) -> None:
    """Raise a UserError if an evaluation would replace the results of something else.

    The same evaluation (weights, data and settings) may be repeated in its folder.

    Args:
        folder: where the results would be written.
        about: "weights", "iteration", "settings" and "data", as in evaluation.json.
    """
    run_files = _find(folder, TRAINING_FILES)
    suggestion = f"give the evaluation another folder, such as {_unused_folder(folder, run_files)}"
    if run_files:
        raise UserError(
            f"{folder} is the folder of a training run ({run_files[0].name}), "
            f"whose results are not replaced: {suggestion}"
        )
    if not _find(folder, EVALUATION_FILES):
        return
    earlier = read_evaluation(Path(folder, "evaluation.json"))
    unknown = [key for key in about if key not in earlier]
    if unknown:  # an older version did not write them
        raise UserError(
            f"{folder} has results of an evaluation with unknown {preview(unknown)}: {suggestion}"
        )
    different = []
    for key, value in about.items():
        if _comparable(earlier[key]) != _comparable(value):
            different.append(key)
    if different:
        raise UserError(
            f"{folder} has the results of an evaluation with other {preview(different)}: "
            f"{suggestion}"
        )


def _unused_folder(folder: str, run_files: list[Path]) -> str:
    """Suggest a train.output_dir for an evaluation: in the folder of a run, else next to it."""
    parent = Path(folder) if run_files else Path(folder).parent
    for number in range(1, 100):
        name = "evaluation" if number == 1 else f"evaluation-{number}"
        if not (parent / name).exists():
            return f"train.output_dir={parent / name}"
    return f"train.output_dir={parent}/..."


def _comparable(value: Any) -> Any:
    """Convert a value of evaluation.json so that equal ones mean the same weights or data.

    Paths become absolute. Datasets become their fingerprint, or their name if there is none.
    """
    if isinstance(value, list):  # of several validation sets
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return value.get("fingerprint") or value.get("name")
    return os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value


def check_config_unchanged(saved: dict[str, str], present: dict[str, str], path: str) -> None:
    """Raise a UserError if a run would be resumed with another config.

    Keys that do not influence the result may change, see :func:`.may_change`.

    Args:
        saved: flattened config in the checkpoint.
        present: flattened config of this start.
        path: of the checkpoint.
    """
    saved = renamed(saved)
    changed = []
    for key in sorted(saved.keys() | present.keys()):
        if not may_change(key) and saved.get(key) != present.get(key):
            changed.append(f"{key}: {saved.get(key)} -> {present.get(key)}")
    if changed:
        raise UserError(
            f"{path} was written with another config or other data ({preview(changed)}): restore "
            "them to resume, or start a new run from its weights with "
            f"train.init_checkpoint={path} and another train.output_dir"
        )
