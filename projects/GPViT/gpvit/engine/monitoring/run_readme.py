"""README.md in the output folder of a run: its settings, progress, results and files."""

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
from ...data.label_maps import LABEL_MAPS
from ...evaluation.classification_evaluation import RESULTS as CLASSIFICATION_RESULTS
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

# A README.md that begins like this may be replaced. Older versions continue the line differently.
MARKER = "<!-- Written by train_net.py"
FIRST_LINE = f"{MARKER} and updated at each evaluation. -->"  # also by `gpvit train`

# Output files, as globs, and their descriptions.
FILES = {
    "model_best.pth": "checkpoint with the best {best_metric}",
    "model_final.pth": "checkpoint of the last iteration",
    "model_[0-9]*.pth": "periodic checkpoints, named by completed iterations; "
    "`--resume` uses the latest checkpoint of all",
    "config.yaml": "complete config, including overrides; can be given to `--config-file`",
    "log.txt*": "log of all starts, one file per process",
    "metrics.json": "losses, metrics, learning rate and times, as JSON lines",
    "curves.png": "losses and metrics over the iterations",
    "pictures": "ground truth and predictions for a few validation images, "
    "named by completed iterations",
    "evaluation.json": "last evaluation: metrics, number of images, seconds per image, dataset",
    RESULTS_OF_SETS: "the same for each validation set, in a folder of its own, "
    "with the predictions",
    RESULTS: "detections of the last evaluation, in COCO format",
    "instances_predictions.pth": "the same detections, saved by PyTorch",
    CLASSIFICATION_RESULTS: "best classes of each image in the last evaluation",
    LABEL_MAPS: "predicted label maps of the last evaluation",
    "events.out.tfevents.*": "for TensorBoard",
    "not_finite_*.json": "reports of failed iterations; `gpvit replay --input FILE` repeats one",
    "wandb": "for Weights & Biases; `wandb_id` is the ID of the run there",
    "run.json": "time, device and command of each start, for this page",
    ".lock": "prevents a second run in this folder; it is an operating system lock, "
    "so it need not be removed after a crash",
}
PREDICTIONS = (RESULTS, CLASSIFICATION_RESULTS, LABEL_MAPS)  # which `gpvit view-results` reads
FILES_OF_ONE_SET = (*PREDICTIONS, "instances_predictions.pth")


class RunReadme(MonitorHook):
    """Keeps README.md up to date, unless there is one that somebody else wrote.

    Args:
        cfg: the config of the run.
        sets: its :func:`.validation_sets`.
        config_file: path of the config file.
        model: the detector.
        seed: of the run.
        data: (split, names of the datasets in Detectron2, records) for each split.
        checkpointer: knows the classes, and the metric that selects the best checkpoint.
        resume: whether earlier starts in the folder belong to the same run.
    """

    def __init__(
        self,
        cfg: DictConfig,
        sets: Mapping[str, DictConfig],
        config_file: str,
        model: nn.Module,
        seed: int,
        data: Iterable[tuple[str, Any, Iterable[dict[str, Any]]]],
        checkpointer: Checkpointer,
        *,
        resume: bool,
    ) -> None:
        self.cfg, self.config_file, self.seed = cfg, config_file, seed
        self.folder, self.checkpointer = Path(cfg.train.output_dir), checkpointer
        self.classes = checkpointer.classes
        # The folder with the results of each validation set.
        self.results = [Path(set_cfg.train.output_dir) for set_cfg in sets.values()]
        self.model = model_summary(model)
        self.data = []  # rows of a table
        for split, names, records in data:
            files, counts = annotation_files(names), count_images_and_objects(records)
            self.data.append(f"| {markdown(split)} | {files} | {counts} |")
        self.starts = [*(read_starts(self.folder / "run.json") if resume else ()), self._start()]
        self.path = self.folder / "README.md"
        self.is_ours = not self.path.exists()
        with contextlib.suppress(OSError):  # a folder of this name, or an unreadable file
            text = self.path.read_text(encoding="utf-8", errors="replace")
            self.is_ours |= text.startswith(MARKER)
        if not self.is_ours:
            logger.warning(
                f"{one_line(self.path, PATH_LIMIT)} was not written by a run: it is not replaced"
            )

    def _start(self) -> dict[str, Any]:
        """Return the entry of this start in run.json."""
        return {
            "time": now(),
            "iteration": self.checkpointer.trainer.done,
            "command": command(),
            "device": device_name(self.cfg.train.device),
            "versions": ", ".join(map(" ".join, checkpoint.versions().items())),
        }

    def before_train(self) -> None:
        with (
            best_effort("run.json was not written"),
            atomic_write(self.folder / "run.json") as path,
        ):
            path.write_text(json.dumps({"starts": self.starts}, indent=1), encoding="utf-8")
        start = self.starts[-1]["time"]
        self._write(f"Training since {start}, from iteration {self.trainer.done:,}.")

    def after_evaluation(self) -> None:
        self._write(f"Training: {self._progress()} completed at {now()}.")

    def after_train(self) -> None:
        is_early = self.trainer.done < self.cfg.train.max_iter
        early = " (stopped early, without further improvement)" if is_early else ""
        self._write(f"Finished: {self._progress()}{early} completed at {now()}.")

    def on_stop(self) -> None:
        self._write(
            f"Stopped at {now()}: {self._progress()} completed. "
            "To continue, run the command below with `--resume`."
        )

    def _progress(self) -> str:
        return f"{self.trainer.done:,} of {self.cfg.train.max_iter:,} iterations"

    def _write(self, state: str) -> None:
        """Write the page; ``state`` is a sentence on the progress of the run."""
        if not self.is_ours:
            return
        with best_effort("README.md was not written"):
            paragraphs = [FIRST_LINE, f"# {markdown(self.folder.resolve().name)}", state]
            for section in (self._results, self._origin, self._use, self._files):
                paragraphs += section()
            with atomic_write(self.path) as path:
                path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")

    def _results(self) -> list[str]:
        """Return the main metrics of each evaluation, the best checkpoint, curves and images."""
        rows = read_evaluations(self.folder / "metrics.json")
        if not rows:
            return []
        # By validation set and task, then AP before AP50.
        names = sorted(
            set().union(*rows.values()), key=lambda name: (name.split("/")[0], len(name), name)
        )
        lines = [
            f"| iterations | {' | '.join(map(markdown, names))} |",
            "|---:" * (len(names) + 1) + "|",
        ]
        for done, row in rows.items():
            cells = [f"{row[name]:.1f}" if name in row else "" for name in names]
            lines.append(f"| {done:,} | {' | '.join(cells)} |")
        paragraphs = ["## Results (validation, %)", "\n".join(lines), self._best(rows)]
        if (self.folder / "curves.png").exists():
            paragraphs.append("![](curves.png)")
        drawings = []
        for path in self.folder.glob("pictures/[0-9]*.png"):
            if path.stem.isdecimal():
                drawings.append(path.name)
        if drawings:
            paragraphs.append(f"![](pictures/{max(drawings)})")  # the newest
        return paragraphs

    def _best(self, rows: dict[int, dict[str, float]]) -> str:
        """Return a sentence on the best evaluation, and the checkpoint of its iteration."""
        measured = set().union(*rows.values())
        candidates = (self.checkpointer.best_metric, *main_metrics(self.cfg))
        name = next((name for name in candidates if name in measured), None)
        if name is None:
            return ""
        values = {done: row[name] for done, row in rows.items() if name in row}
        done = max(values, key=values.__getitem__)
        best = f"Best {markdown(name)}: {values[done]:.1f}, after {done:,} iterations"
        files = ["model_best.pth", f"model_{done:07}.pth"]
        if done == self.trainer.done:
            files.insert(1, "model_final.pth")
        for file in files:
            if (self.folder / file).exists():
                return f"{best}, in `{file}`."
        option = markdown_code(f"train.best_metric={name}")
        return f"{best}. Its checkpoint was not kept; {option} keeps it."

    def _origin(self) -> list[str]:
        """Return command, config, model, data and starts."""
        last = self.starts[-1]
        starts = []
        for start in self.starts:
            time, device = markdown(start["time"]), markdown(start["device"])
            starts.append(f"| {time} | {start['iteration']:,} | {device} |")
        config = markdown_code(self.config_file)
        facts = [
            f"- config: {config} with the overrides in the command; complete in `config.yaml`",
            f"- model: {self.model}",
            f"- {len(self.classes)} classes: {first_names(self.classes)}",
            f"- seed: {self.seed}",
            f"- versions: {markdown(last['versions'], LINE_LIMIT)}",
        ]
        return [
            "## Training",
            f"```bash\n{one_line(last['command'], LINE_LIMIT)}\n```",
            "\n".join(facts),
            "\n".join(["| data | file | images | objects |", "|---|---|---:|---:|", *self.data]),
            "\n".join(["| started | at iteration | on |", "|---|---:|---|", *starts]),
        ]

    def _use(self) -> list[str]:
        """Return commands for the checkpoint of the run; nothing if there is none yet."""
        try:
            checkpoint.find_checkpoint(str(self.folder))
        except UserError:
            return []
        folder = one_line(shlex.quote(str(self.folder)), PATH_LIMIT)
        data = folder_of(self.cfg, self.cfg.dataloader.test.dataset.names)
        option = f" --data {one_line(shlex.quote(data), PATH_LIMIT)}" if data else ""
        lines = [
            f"gpvit predict --weights {folder} --input 'IMAGES/*.jpg'",
            f"python train_net.py --config-file {folder}/config.yaml --eval-only{option} \\",
            f"    train.init_checkpoint={folder} train.output_dir={folder}/evaluation",
        ]
        for results in self.results:
            if any((results / name).exists() for name in PREDICTIONS):
                path = one_line(shlex.quote(str(results)), PATH_LIMIT)
                lines.append(f"gpvit view-results --input {path}")
                lines.append(f"gpvit view-results --input {path} --report")
        lines.append(f"tensorboard --logdir {folder}")
        return ["## Usage", "```bash\n" + "\n".join(lines) + "\n```"]

    def _files(self) -> list[str]:
        """Return a table of the files of the run."""
        # Left over from before the number of validation sets was changed in the config.
        outdated = FILES_OF_ONE_SET if len(self.results) > 1 else (RESULTS_OF_SETS,)
        best_metric = markdown(self.checkpointer.best_metric)
        lines = ["| file | |", "|---|---|"]
        for pattern, description in FILES.items():
            if pattern not in outdated and any(self.folder.glob(pattern)):
                lines.append(f"| `{pattern}` | {description.format(best_metric=best_metric)} |")
        return ["## Files", "\n".join(lines)]


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts in run.json: time, iteration, command, device and versions of each.

    The list is empty if the file is missing or malformed.
    """
    types = {"time": str, "iteration": int, "device": str}  # of what the page shows of all starts
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        for start in starts:
            for key, kind in types.items():
                if type(start[key]) is not kind:
                    return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return starts


def read_evaluations(metrics: Path) -> dict[int, dict[str, float]]:
    """Read the main metrics of each evaluation from ``metrics.json``, by completed iterations."""
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
    """Return the shell command that starts this job again."""
    program, *arguments = sys.argv
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    # The console script that pip installs is started without Python.
    if Path(program).name == "gpvit" and not by_torchrun:
        return shlex.join(["gpvit", *arguments])
    launcher = torchrun() if by_torchrun else ["python"]
    is_package = Path(program).name in ("gpvit", "__main__.py")
    script = ["-m", "gpvit"] if is_package else [program]
    return shlex.join([*launcher, *script, *arguments])


def torchrun() -> list[str]:
    """Return the torchrun command that starts as many processes as this job has."""
    world_size = int(os.environ["WORLD_SIZE"])
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = []
    if world_size != local_world_size:
        nodes = ["--nnodes", str(world_size // local_world_size)]
    return ["torchrun", *nodes, "--nproc-per-node", str(local_world_size)]


def model_summary(model: nn.Module) -> str:
    """Return class and number of parameters."""
    total = frozen = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if not parameter.requires_grad:
            frozen += parameter.numel()
    suffix = f", {frozen / 1e6:.2f} million of them frozen" if frozen else ""
    return f"{type(model).__name__}, {total / 1e6:.2f} million parameters{suffix}"


def annotation_files(names: Any) -> str:
    """Return the annotation files of datasets in Detectron2; the name of those without a file."""
    names = [names] if isinstance(names, str) else names
    files = [MetadataCatalog.get(name).get("json_file", name) for name in names]
    return ", ".join(map(markdown_code, files))


def count_images_and_objects(records: Iterable[dict[str, Any]]) -> str:
    """Return two cells of a table. Crowds do not count as objects, and label maps have none."""
    images, objects, has_objects = 0, 0, False
    for record in records:
        images += 1
        has_objects |= "annotations" in record
        for item in record.get("annotations", ()):
            objects += not item.get("iscrowd")
    return f"{images:,} | {objects:,}" if has_objects else f"{images:,} | \N{EM DASH}"


def first_names(names: Sequence[str], most: int = 20) -> str:
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(markdown, names[:most])) + others


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
