"""Which dataset the results in the folder of a training run or an evaluation are for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..config import load_config
from ..data.datasets.register import folder_of, require_files
from ..utils.errors import UserError, preview
from ..utils.events import read_evaluation, results_folders
from ..utils.fingerprint import dataset_fingerprint
from ..utils.text import one_line


def evaluated_tasks(folder: Path) -> set[str]:
    """Return the tasks in the folder's evaluation.json, names of :data:`.TASKS`, also averaged."""
    results = read_evaluation(folder / "evaluation.json").get("results")
    if not isinstance(results, dict):
        return set()
    # With several validation sets, the results of each are one level deeper.
    tasks = set(results)
    for part in results.values():
        if isinstance(part, dict):
            tasks |= set(part)
    return tasks


def require_single_set(folder: Path, results: str) -> None:
    """Raise a UserError if a folder has results of several validation sets.

    Args:
        folder: of a training run or an evaluation.
        results: name of the file or folder with results in the folder of each set.
    """
    if isinstance(read_evaluation(folder / "evaluation.json").get("data"), list):
        raise UserError(
            f"{folder} has results of several validation sets: give the folder of one of them, "
            f"{preview(results_folders(folder, results))}"
        )


def validation_dataset(folder: Path) -> tuple[str, str | None]:
    """Return the name of the validation dataset in a folder's config.yaml.

    Returns:
        The name in Detectron2's catalog, and the folder of a custom dataset, which is not
        registered yet; None for a dataset that is.

    Raises:
        UserError: there is no config, it names no dataset, or files of the dataset are missing.
    """
    config, hint = folder / "config.yaml", "give the dataset by --data"
    if not config.is_file():
        raise UserError(f"{config} does not exist: {hint}")
    cfg = load_config(str(config))
    name = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not isinstance(name, str):
        raise UserError(f"{config} names no validation dataset: {hint}")
    root = folder_of(cfg, name)
    if root is None:
        require_files(cfg.dataloader.test)
    return name, root


def require_same_data(
    folder: Path, records: Sequence[dict[str, Any]], classes: Sequence[str], data: str
) -> None:
    """Raise a UserError if evaluation.json shows that the results are for other data.

    Args:
        folder: of a training run or an evaluation.
        records, classes: of the dataset.
        data: its description.
    """
    evaluated = read_evaluation(folder / "evaluation.json").get("data")
    if not isinstance(evaluated, dict) or not isinstance(evaluated.get("fingerprint"), str):
        return
    if dataset_fingerprint(records, classes) != evaluated["fingerprint"]:
        raise UserError(
            f"the predictions in {folder} belong to other data than {data}: to "
            f"{one_line(evaluated.get('name'))} at the time of the evaluation; give that by "
            "--data, or evaluate again"
        )
