"""Several validation sets, each of which is evaluated alone and has its own metrics and folder of results."""

import copy
import os
from typing import Any

from omegaconf import DictConfig, ListConfig

from ..utils.errors import UserError
from ..utils.events import RESULTS_OF_SETS, folder_names
from ..utils.text import PATH_LIMIT, one_line


def validation_names(cfg: DictConfig) -> list[str]:
    """The names of a config's validation sets in Detectron2.

    Raises:
        UserError: there is none, or one is there twice.
    """
    names = _as_list(cfg.dataloader.test.dataset.names)
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"dataloader.test.dataset.names={one_line(names)} must be names of datasets"
        )
    shown = [one_line(name, PATH_LIMIT) for name in names]  # by which their metrics are told apart
    twice = [name for name in shown if shown.count(name) > 1]
    if twice:
        raise UserError(
            f"dataloader.test.dataset.names has {twice[0]} twice; name each validation set once"
        )
    return names


def _as_list(names: Any) -> list[Any]:
    return list(names) if isinstance(names, list | tuple | ListConfig) else [names]


def validation_sets(cfg: DictConfig) -> dict[str, DictConfig]:
    """For each validation set, by its name in one line, the config of an evaluation on it alone.

    Of several, the results of each go to ``inference/NAME`` in ``train.output_dir``. To be called before the config
    gets a model to optimize, since it is copied.

    Raises:
        UserError: see :func:`validation_names`.
    """
    names = validation_names(cfg)
    folders = folder_names(names)
    given = cfg.dataloader.evaluator.get("dataset_name")
    if given is not None and _as_list(given) != names:
        raise UserError(
            f"dataloader.evaluator.dataset_name={one_line(given)} is not what is evaluated "
            f"(dataloader.test.dataset.names={one_line(names)}); give the names there alone"
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
