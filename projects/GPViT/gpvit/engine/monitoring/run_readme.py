"""README.md in the folder of a training: what it is, how far it is, what it found, and what the files are."""

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig
from torch import nn

from ... import checkpoint
from ...data.datasets.register import folder_of
from ...evaluation.coco_evaluation import RESULTS
from ...evaluation.metrics import TASKS, main_metrics, parse_metric
from ...utils.errors import UserError
from ...utils.events import RESULTS_OF_SETS, read_metrics
from ...utils.files import atomic_write
from ...utils.text import LINE_LIMIT, PATH_LIMIT, markdown, markdown_code, one_line
from ..checkpointer import Checkpointer
from ..hooks import MonitorHook, best_effort
from ..setup import device_name

logger = logging.getLogger(__name__)

FIRST_LINE = (
    "<!-- Written by train_net.py, and anew at each evaluation. -->"  # gpvit train is the same
)

# What a training leaves, as globs.
FILES = {
    "model_best.pth": "the checkpoint with the best {best_metric}",
    "model_final.pth": "the checkpoint of the last iteration",
    "model_[0-9]*.pth": "checkpoints on the way, by the iterations that were done; `--resume` takes the newest of all",
    "config.yaml": "the whole config, overrides included; `--config-file` takes it",
    "log.txt*": "the log, one file for each process, of all starts",
    "metrics.json": "losses, AP, learning rate and times: one JSON object a line",
    "curves.png": "losses and AP over the iterations",
    "pictures": "truth and prediction for a few validation pictures, by the iterations that were done",
    "evaluation.json": "the last evaluation: AP, number of images, seconds for each, and which data it was of",
    RESULTS_OF_SETS: "the same for each validation set, in a folder of its own, with the files of what was found",
    RESULTS: "what the last evaluation found, in COCO's format",
    "instances_predictions.pth": "the same as PyTorch saves it",
    "events.out.tfevents.*": "for TensorBoard",
    "not_finite_*.json": "iterations that failed; `gpvit replay --input FILE` repeats one",
    "wandb": "for Weights & Biases; `wandb_id` is the run there",
    "run.json": "when, where and by which command the training was started, for this page",
    ".lock": "keeps a second run out of the folder; of the operating system's kind, so that nothing is to be removed",
}


OF_ONE_SET = (RESULTS, "instances_predictions.pth")


class RunReadme(MonitorHook):
    """Keeps the page up to date.

    Args:
        cfg: the training's config.
        sets: its :func:`.validation_sets`.
        config_file: where it came from.
        model: the detector.
        seed: of the training.
        data: what it is for, its names in Detectron2, and its records.
        checkpoints: know the classes, and which metric is to be the best.
        resume: whether earlier starts in the folder are of the same training.
    """

    def __init__(
        self,
        cfg: DictConfig,
        sets: Mapping[str, DictConfig],
        config_file: str,
        model: nn.Module,
        seed: int,
        data: Iterable[tuple[str, Any, Iterable[dict[str, Any]]]],
        checkpoints: Checkpointer,
        *,
        resume: bool,
    ) -> None:
        self.cfg, self.config_file, self.seed, self.classes = (
            cfg,
            config_file,
            seed,
            checkpoints.classes,
        )
        self.folder, self.checkpoints = Path(cfg.train.output_dir), checkpoints
        self.results = [
            Path(alone.train.output_dir) for alone in sets.values()
        ]  # the folders of each validation set
        self.model = described(model)
        self.data = [
            f"| {markdown(split)} | {where(names)} | {counted(records)} |"
            for split, names, records in data
        ]
        self.starts = self._starts(resume)
        self.path = self.folder / "README.md"
        self.is_ours = not self.path.exists()
        with contextlib.suppress(OSError):  # a folder of this name, or no right to read it
            self.is_ours |= self.path.read_text(encoding="utf-8", errors="replace").startswith(
                FIRST_LINE
            )
        if not self.is_ours:
            logger.warning(
                f"{one_line(self.path, PATH_LIMIT)} was not written by a training: it stays as it is"
            )

    def before_train(self) -> None:
        with best_effort("no run.json"), atomic_write(self.folder / "run.json") as path:
            path.write_text(json.dumps({"starts": self.starts}, indent=1), encoding="utf-8")
        self._write(
            f"In training since {self.starts[-1]['time']}, from iteration {self.trainer.done:,}."
        )

    def after_evaluation(self) -> None:
        self._write(f"In training: {self._progress()} done at {now()}.")

    def after_train(self) -> None:
        early = (
            ""
            if self.trainer.done >= self.cfg.train.max_iter
            else ", where it had stopped getting better"
        )
        self._write(f"Trained: {self._progress()}{early}, until {now()}.")

    def on_stop(self) -> None:
        self._write(
            f"Stopped at {now()}: {self._progress()} done. The command below goes on, with `--resume`."
        )

    def _progress(self) -> str:
        return f"{self.trainer.done:,} of {self.cfg.train.max_iter:,} iterations"

    def _starts(self, resume: bool) -> list[dict[str, Any]]:
        """Time, iteration, command, device and versions of each start, this one last."""
        earlier = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["starts"]
            types = {"time": str, "iteration": int, "device": str}
            if all(type(start[key]) is kind for start in found for key, kind in types.items()):
                earlier = found
        start = {
            "time": now(),
            "iteration": self.checkpoints.trainer.done,
            "command": command(),
            "device": device_name(self.cfg.train.device),
            "versions": ", ".join(
                f"{name} {version}" for name, version in checkpoint.versions().items()
            ),
        }
        return [*(earlier if resume else ()), start]

    def _write(self, state: str) -> None:
        if not self.is_ours:
            return
        with best_effort("no README.md this time"):
            sections = [self._results(), self._origin(), self._use(), self._files()]
            parts = [
                FIRST_LINE,
                f"# {markdown(self.folder.resolve().name)}",
                state,
                *sum(sections, []),
            ]
            with atomic_write(self.path) as path:
                path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def _results(self) -> list[str]:
        """The AP of each evaluation, as a table and as curves, and which checkpoint is the one to use."""
        rows = evaluations(self.folder / "metrics.json")
        if not rows:
            return []
        names = sorted(
            set().union(*rows.values()), key=lambda name: (name.split("/")[0], len(name), name)
        )
        lines = [
            f"| iterations | {' | '.join(map(markdown, names))} |",
            "|---:" * (len(names) + 1) + "|",
        ]
        for done, row in rows.items():
            lines.append(
                f"| {done:,} | "
                + " | ".join(f"{row[name]:.1f}" if name in row else "" for name in names)
                + " |"
            )
        numbered = [
            path.name for path in self.folder.glob("pictures/[0-9]*.png") if path.stem.isdecimal()
        ]
        pictures = [f"![](pictures/{name})" for name in sorted(numbered)[-1:]]
        curves = ["![](curves.png)"] if (self.folder / "curves.png").exists() else []
        return [
            "## Results (validation, %)",
            "\n".join(lines),
            self._best(rows),
            *curves,
            *pictures,
        ]

    def _best(self, rows: dict[int, dict[str, float]]) -> str:
        main = (self.checkpoints.best_metric, *main_metrics(self.cfg))
        name = next((name for name in main if any(name in row for row in rows.values())), None)
        if name is None:
            return ""
        done = max(
            (done for done, row in rows.items() if name in row), key=lambda done: rows[done][name]
        )
        told = f"Best {markdown(name)}: {rows[done][name]:.1f}, after {done:,} iterations"
        files = ["model_final.pth"] if done == self.trainer.done else []
        files = ["model_best.pth", *files, f"model_{done:07}.pth"]
        kept = next((file for file in files if (self.folder / file).exists()), None)
        if kept is None:
            option = markdown_code(f"train.best_metric={name}")
            return f"{told}; {option} would have kept its checkpoint."
        return f"{told}, in `{kept}`."

    def _origin(self) -> list[str]:
        last = self.starts[-1]
        starts = []
        for start in self.starts:
            time, device = markdown(start["time"]), markdown(start["device"])
            starts.append(f"| {time} | {start['iteration']:,} | {device} |")
        facts = [
            f"- config: {markdown_code(self.config_file)} with the overrides of the command; all of it is in `config.yaml`",
            f"- model: {self.model}",
            f"- {len(self.classes)} classes: {shortened(self.classes)}",
            f"- seed: {self.seed}",
            f"- versions: {markdown(last['versions'], LINE_LIMIT)}",
        ]
        return [
            "## What was trained",
            f"```bash\n{one_line(last['command'], LINE_LIMIT)}\n```",
            "\n".join(facts),
            "\n".join(["| data | file | images | objects |", "|---|---|---:|---:|", *self.data]),
            "\n".join(["| started | at iteration | on |", "|---|---:|---|", *starts]),
        ]

    def _use(self) -> list[str]:
        try:
            checkpoint.find_checkpoint(str(self.folder))
        except UserError:
            return []
        folder = one_line(shlex.quote(str(self.folder)), PATH_LIMIT)
        data = folder_of(self.cfg, self.cfg.dataloader.test.dataset.names)
        option = f" --data {one_line(shlex.quote(data), PATH_LIMIT)}" if data else ""
        evaluation = [
            f"python train_net.py --config-file {folder}/config.yaml --eval-only{option} \\",
            f"    train.init_checkpoint={folder} train.output_dir={folder}/evaluation",
        ]
        lines = [f"gpvit predict --weights {folder} --input 'PICTURES/*.jpg'", *evaluation]
        for results in self.results:
            if (results / RESULTS).exists():
                path = one_line(shlex.quote(str(results)), PATH_LIMIT)
                lines += [
                    f"gpvit view-results --input {path}",
                    f"gpvit view-results --input {path} --report",
                ]
        lines.append(f"tensorboard --logdir {folder}")
        return ["## Use", "```bash\n" + "\n".join(lines) + "\n```"]

    def _files(self) -> list[str]:
        others = (
            OF_ONE_SET if len(self.results) > 1 else (RESULTS_OF_SETS,)
        )  # of before the config was changed
        found = [
            (pattern, what)
            for pattern, what in FILES.items()
            if pattern not in others and any(self.folder.glob(pattern))
        ]
        best_metric = markdown(self.checkpoints.best_metric)
        rows = [
            f"| `{pattern}` | {what.format(best_metric=best_metric)} |" for pattern, what in found
        ]
        return ["## Files", "\n".join(["| file | |", "|---|---|", *rows])]


def evaluations(metrics: Path) -> dict[int, dict[str, float]]:
    """Iterations that were done -> the few metrics that sum each evaluation up, from ``metrics.json``."""
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(metrics):
        kept = {}
        for name, value in row.items():
            metric = parse_metric(name)
            if metric and metric.name in TASKS[metric.task].brief:
                kept[name] = value
        if kept:
            found.setdefault(row["iteration"] + 1, {}).update(kept)
    return found


def command() -> str:
    """What this job was started by, as it may be typed again."""
    program, *arguments = sys.argv
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if (
        Path(program).name == "gpvit" and not by_torchrun
    ):  # a script of pip's, which needs no Python before it
        return shlex.join(["gpvit", *arguments])
    module = Path(program).name in ("gpvit", "__main__.py")
    return shlex.join(
        [
            *(launcher() if by_torchrun else ["python"]),
            *(["-m", "gpvit"] if module else [program]),
            *arguments,
        ]
    )


def launcher() -> list[str]:
    """torchrun, as it starts the processes of this job."""
    processes, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    machines = [] if processes == here else ["--nnodes", str(processes // here)]
    return ["torchrun", *machines, "--nproc-per-node", str(here)]


def described(model: nn.Module) -> str:
    parameters = [parameter.numel() for parameter in model.parameters()]
    fixed = sum(
        parameter.numel() for parameter in model.parameters() if not parameter.requires_grad
    )
    suffix = f", {fixed / 1e6:.2f} of them fixed" if fixed else ""
    return f"{type(model).__name__}, {sum(parameters) / 1e6:.2f} million parameters{suffix}"


def where(names: Any) -> str:
    """The files of annotations behind data sets of Detectron2; their names, if they have none."""
    names = [names] if isinstance(names, str) else names
    return ", ".join(
        markdown_code(MetadataCatalog.get(name).get("json_file", name)) for name in names
    )


def counted(records: Iterable[dict[str, Any]]) -> str:
    objects = [
        sum(not item.get("iscrowd") for item in record.get("annotations", ())) for record in records
    ]
    return f"{len(objects):,} | {sum(objects):,}"


def shortened(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(map(markdown, names[:most])) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
