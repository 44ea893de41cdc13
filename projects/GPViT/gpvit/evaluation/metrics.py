"""The metrics of each task: their names in results and metrics.json, and how they are shown.

Evaluators give metrics by task, as Detectron2 does, in percent. A metric's whole name is ``TASK/METRIC``, such as
``segm/AP50``; of the averaged weights ``ema_TASK/METRIC``, and of several validation sets ``SET/TASK/METRIC``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ..utils.errors import UserError, preview
from ..utils.text import PATH_LIMIT, one_line
from .validation_sets import validation_names


class Task(NamedTuple):
    """The metrics of a task.

    label: what is evaluated, for people.
    metrics: their names and column headings, the main one first.
    of_class: what the name of a class's own metric begins with; the class follows.
    brief: those of a table of several evaluations.
    """

    label: str
    metrics: dict[str, str]
    of_class: str
    brief: tuple[str, ...]

    @property
    def main(self) -> str:
        return next(iter(self.metrics))


COCO = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}
# In the order in which they are shown; the last one that a model has is the one that sums it up.
TASKS = {
    "bbox": Task("boxes", COCO, "AP-", ("AP", "AP50", "AP75")),
    "segm": Task("masks", COCO, "AP-", ("AP", "AP50", "AP75")),
}
AVERAGED = "ema_"  # before the tasks of the averaged weights
OF_TASKS = "|".join(
    f"{name}/(?:{'|'.join(task.metrics)}|{re.escape(task.of_class)}.+)"
    for name, task in TASKS.items()
)
NAME = re.compile(
    rf"(?:(?P<of_set>.*?)/)??(?P<averaged>{AVERAGED})?(?P<metric>{OF_TASKS})", re.DOTALL
)


class Metric(NamedTuple):
    """The whole name of a metric, taken apart.

    of_set: the validation set; "" of a single one.
    averaged: whether it is of the averaged weights.
    task: a key of :data:`TASKS`.
    name: of the task's metrics, or of a class's own.
    """

    of_set: str
    averaged: bool
    task: str
    name: str

    @property
    def is_main(self) -> bool:
        return self.name == TASKS[self.task].main


def parse_metric(name: str) -> Metric | None:
    """Takes the whole name of a metric apart; None if it is of no task here, such as a loss."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    task, _, metric = match["metric"].partition("/")
    return Metric(match["of_set"] or "", match["averaged"] is not None, task, metric)


def metric_prefixes(cfg: DictConfig) -> list[str]:
    """What the names of metrics begin with, for each validation set; "" for a single one."""
    names = validation_names(cfg)
    return [f"{one_line(name, PATH_LIMIT)}/" for name in names] if len(names) > 1 else [""]


def main_metrics(cfg: DictConfig) -> list[str]:
    """Metrics of which the first that is there sums up an evaluation: the last task, averaged weights, the first set."""
    prefixes = metric_prefixes(cfg)
    names = []
    for task in reversed(TASKS):
        for weights in (AVERAGED, ""):
            names += [f"{prefix}{weights}{task}/{TASKS[task].main}" for prefix in prefixes]
    return names


def known_metrics(cfg: DictConfig, classes: Sequence[str]) -> list[str]:
    """What an evaluation may be asked for; nothing if its evaluator has tasks that are not known here."""
    tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks")
    if not tasks or not all(task in TASKS for task in tasks):
        return []
    names = []
    for prefix in metric_prefixes(cfg):
        for weights in ("", AVERAGED) if cfg.train.ema_decay else ("",):
            for task in tasks:
                of_classes = [
                    TASKS[task].of_class + one_line(name) for name in classes if len(classes) > 1
                ]
                names += [
                    f"{prefix}{weights}{task}/{metric}"
                    for metric in [*TASKS[task].metrics, *of_classes]
                ]
    return names


def of_average(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of the averaged weights, whose tasks have names of their own; of several validation sets, too."""
    renamed = {}
    for name, value in results.items():
        is_set = isinstance(value, Mapping) and any(
            isinstance(metrics, Mapping) for metrics in value.values()
        )
        if is_set:
            renamed[name] = of_average(value)
        else:
            renamed[AVERAGED + name] = value
    return renamed


def check_best_metric(name: str | None, cfg: DictConfig, classes: list[str]) -> None:
    """Raises a UserError if no evaluation will have a metric of this name; "" or None, for none, is fine.

    Where the evaluator is not known here, that can be said of the validation set alone.
    """
    known, prefixes = known_metrics(cfg, classes), metric_prefixes(cfg)
    if not name or name in known or (not known and name.startswith(tuple(prefixes))):
        return
    choices = [f"{prefix}{name}" for prefix in prefixes]
    if len(prefixes) > 1 and (not known or choices[0] in known):
        raise UserError(
            f"train.best_metric={name} does not say of which validation set: name one of {preview(choices)}"
        )
    raise UserError(f"train.best_metric={name} is none of {', '.join(known)}")
