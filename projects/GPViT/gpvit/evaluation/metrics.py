"""The metrics of each task: their names in results and metrics.json, and their labels.

Evaluators return metrics per task in percent, as Detectron2 does. The full name of a metric is
``TASK/METRIC``, such as ``segm/AP50``; with a prefix for averaged weights, ``ema_TASK/METRIC``, and
with several validation sets, ``SET/TASK/METRIC``.
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

    Attributes:
        label: what is evaluated, for people.
        metrics: names and column headings, the main metric first.
        of_class: prefix of the name of a per-class metric; the class name follows.
        brief: metrics in a table of several evaluations.
    """

    label: str
    metrics: dict[str, str]
    of_class: str
    brief: tuple[str, ...]

    @property
    def main(self) -> str:
        return next(iter(self.metrics))


COCO = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}
# In the order of display. The last one that a model has sums up an evaluation.
SEMANTIC = {"mIoU": "mIoU", "mACC": "mean accuracy", "pACC": "pixel accuracy", "mF1": "mean F1"}
SEMANTIC |= {"fwIoU": "weighted IoU", "mBoundaryIoU": "boundary mIoU"}
CLASSIFICATION = {"top1": "top-1", "top5": "top-5", "mACC": "mean class accuracy"}
TASKS = {
    "classification": Task("images", CLASSIFICATION, "top1-", ("top1", "top5")),
    "sem_seg": Task("classes", SEMANTIC, "IoU-", ("mIoU", "mACC", "pACC")),
    "bbox": Task("boxes", COCO, "AP-", ("AP", "AP50", "AP75")),
    "segm": Task("masks", COCO, "AP-", ("AP", "AP50", "AP75")),
}
AVERAGED = "ema_"  # prefix of the tasks of the averaged weights


def _task_pattern(name: str, task: Task) -> str:
    """Pattern of the metrics of a task and of its classes: ``bbox/(?:AP|AP50|...|AP\\-.+)``."""
    metrics = "|".join(task.metrics)
    return f"{name}/(?:{metrics}|{re.escape(task.of_class)}.+)"


METRICS_OF_TASKS = "|".join(map(_task_pattern, TASKS.keys(), TASKS.values()))
# [SET/][ema_]TASK/METRIC. Both SET and the class name in METRIC may contain slashes; the lazy
# quantifiers try no SET first, then the shortest one, so the class name gets all the rest.
# DOTALL because names from files may contain line breaks.
NAME = re.compile(
    rf"(?:(?P<dataset>.*?)/)??(?P<averaged>{AVERAGED})?(?P<metric>{METRICS_OF_TASKS})", re.DOTALL
)


class Metric(NamedTuple):
    """The parts of the full name of a metric.

    Attributes:
        dataset: name of the validation set; "" if there is only one.
        averaged: whether it belongs to the averaged weights.
        task: a key of :data:`TASKS`.
        name: a metric of the task or of one of its classes.
    """

    dataset: str
    averaged: bool
    task: str
    name: str

    @property
    def is_main(self) -> bool:
        return self.name == TASKS[self.task].main


def parse_metric(name: str) -> Metric | None:
    """Split the full name of a metric; None if it is of no task here, such as a loss."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    task, _, metric = match["metric"].partition("/")
    return Metric(match["dataset"] or "", match["averaged"] is not None, task, metric)


def metric_prefixes(cfg: DictConfig) -> list[str]:
    """Prefix of metric names for each validation set; [""] for a single one."""
    names = validation_names(cfg)
    return [f"{one_line(name, PATH_LIMIT)}/" for name in names] if len(names) > 1 else [""]


def main_metrics(cfg: DictConfig) -> list[str]:
    """Candidates for the metric that sums up an evaluation, best first; not all of them exist.

    Order: the last task, the averaged weights, the first validation set.
    """
    prefixes = metric_prefixes(cfg)
    names = []
    for task in reversed(TASKS):
        for weights in (AVERAGED, ""):
            names += [f"{prefix}{weights}{task}/{TASKS[task].main}" for prefix in prefixes]
    return names


def known_metrics(cfg: DictConfig, classes: Sequence[str]) -> list[str]:
    """All metrics of an evaluation; empty if its evaluator has tasks other than :data:`TASKS`."""
    tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks")
    if not tasks or not all(task in TASKS for task in tasks):
        return []
    names = []
    for prefix in metric_prefixes(cfg):
        for weights in ("", AVERAGED) if cfg.train.ema_decay else ("",):
            for task in tasks:
                metrics = list(TASKS[task].metrics)
                if len(classes) > 1:  # with one class, its metrics are the overall ones
                    metrics += [TASKS[task].of_class + one_line(name) for name in classes]
                names += [f"{prefix}{weights}{task}/{metric}" for metric in metrics]
    return names


def rename_averaged(results: Mapping[str, Any]) -> dict[str, Any]:
    """Add :data:`AVERAGED` to the task names in results, also inside of several validation sets."""
    renamed = {}
    for name, value in results.items():
        # Results of a validation set are nested one level deeper than those of a task.
        inner = value.values() if isinstance(value, Mapping) else ()
        if any(isinstance(metrics, Mapping) for metrics in inner):
            renamed[name] = rename_averaged(value)
        else:
            renamed[AVERAGED + name] = value
    return renamed


def check_best_metric(name: str | None, cfg: DictConfig, classes: list[str]) -> None:
    """Raise a UserError if no evaluation will have a metric of this name; "" and None are valid.

    With an unknown evaluator, only the prefix of the validation set is checked.
    """
    known, prefixes = known_metrics(cfg, classes), metric_prefixes(cfg)
    if not name or name in known or (not known and name.startswith(tuple(prefixes))):
        return
    choices = [f"{prefix}{name}" for prefix in prefixes]
    if len(prefixes) > 1 and (not known or choices[0] in known):
        raise UserError(
            f"train.best_metric={name} does not name the validation set: use one of "
            f"{preview(choices)}"
        )
    raise UserError(f"train.best_metric={name} is none of {', '.join(known)}")
