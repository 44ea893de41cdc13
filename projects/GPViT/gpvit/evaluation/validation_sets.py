"""Several validation sets, evaluated one by one, with their own metrics and results folders."""

import copy
import os
from typing import Any

from omegaconf import DictConfig, ListConfig

from ..utils.errors import UserError
from ..utils.events import RESULTS_OF_SETS, folder_names
from ..utils.text import PATH_LIMIT, one_line


def validation_names(cfg: DictConfig) -> list[str]:
    """The Detectron2 names of a config's validation sets.

    Raises:
        UserError: there is none, or a name occurs twice.
    """
    names = _as_list(cfg.dataloader.test.dataset.names)
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"dataloader.test.dataset.names={one_line(names)} must be names of datasets"
        )
    # Metrics are named after these short names, so they must differ, too.
    short_names = [one_line(name, PATH_LIMIT) for name in names]
    for name in short_names:
        if short_names.count(name) > 1:
            raise UserError(
                f"dataloader.test.dataset.names has {name} twice; name each validation set once"
            )
    return names


def _as_list(names: Any) -> list[Any]:
    return list(names) if isinstance(names, list | tuple | ListConfig) else [names]


def validation_sets(cfg: DictConfig) -> dict[str, DictConfig]:
    """One evaluation config per validation set, by the name of the set in one line.

    With several sets, results are written to ``inference/NAME`` in ``train.output_dir``. Call it
    before the optimizer config refers to a model, because the config is copied.

    Raises:
        UserError: see :func:`validation_names`.
    """
    names = validation_names(cfg)
    folders = folder_names(names)
    given = cfg.dataloader.evaluator.get("dataset_name")
    if given is not None and _as_list(given) != names:
        raise UserError(
            f"dataloader.evaluator.dataset_name={one_line(given)} is not the evaluated dataset "
            f"(dataloader.test.dataset.names={one_line(names)}); set only the latter"
        )
    sets = {}
    for name in names:
        alone = copy.deepcopy(cfg)
        alone.dataloader.test.dataset.names = name
        evaluator = alone.dataloader.evaluator
        if "dataset_name" in evaluator:
            evaluator.dataset_name = name
        if len(names) > 1:
            folder = os.path.join(RESULTS_OF_SETS, folders[name])
            if evaluator.get("output_dir"):
                evaluator.output_dir = os.path.join(evaluator.output_dir, folder)
            alone.train.output_dir = os.path.join(cfg.train.output_dir, folder)
        sets[one_line(name, PATH_LIMIT)] = alone
    return sets
