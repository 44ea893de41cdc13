"""The card of a model that is handed on: what it is, how to use it, how well it did where, and its licence."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import DictConfig, ListConfig, OmegaConf

from .. import checkpoint
from ..checkpoint.describe import size_name
from ..config import load_config
from ..evaluation.metrics import TASKS, parse_metric
from ..utils.errors import UserError
from ..utils.events import RESULTS_OF_SETS, folder_names, read_metrics
from ..utils.text import PATH_LIMIT, markdown, one_line

PAPER = "https://github.com/ChenhongyiYang/GPViT"
MOST_VERSIONS = 10  # that a card lists; a training run notes 4
VALIDATION = "the training's validation data"  # where its name is not known


@dataclass(frozen=True)
class Training:
    """What the folder of a training says about a checkpoint in it; empty where it says nothing.

    Attributes:
        train_data, val_data: names of the data sets in one line, without the folders they are in.
        images: how many were evaluated.
        metrics: COCO's metrics of the validation data, 0 to 100, by names such as "bbox/AP" and "segm/AP-cat".
    """

    train_data: str = ""
    val_data: str = ""
    images: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def training_of(file: checkpoint.File) -> Training:
    """What can be said about the training that a checkpoint is of."""
    folder, done = Path(file.path).parent, file.about.get("iterations")
    if done is None:
        return Training()
    images = _images(folder / "evaluation.json")
    try:
        cfg = load_config(str(folder / "config.yaml"))
    except UserError:  # moved away from its folder
        return Training(images=images, metrics=_metrics(folder / "metrics.json", done))
    train, test = (
        OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") for split in ("train", "test")
    )
    of_set = ""
    if isinstance(test, ListConfig) and len(test) > 1:  # the card is about the first validation set
        inside = folder_names(list(map(str, test)))[str(test[0])]
        images, of_set = (
            _images(folder / RESULTS_OF_SETS / inside / "evaluation.json"),
            one_line(test[0], PATH_LIMIT),
        )
        test = test[0]
    metrics = _metrics(folder / "metrics.json", done, of_set)
    return Training(_data_name(train), _data_name(test), images, metrics)


def _data_name(names: Any) -> str:
    """The names in one line. Version 0.1 had folders in them, which are nobody's business: "photos (val)" of these."""
    listed_names = (
        [names] if isinstance(names, str) else names if isinstance(names, list | ListConfig) else []
    )
    shown = []
    for name in map(str, listed_names):
        folder, _, split = name.rpartition(":")
        shown.append(f"{Path(folder).name} ({split})" if name.startswith("coco:") else name)
    return one_line(", ".join(shown))


def _metrics(path: Path, done: int, of_set: str = "") -> dict[str, float]:
    """What was measured after ``done`` iterations; of the averaged weights, where there are any, since these are used.

    Args:
        path: of metrics.json.
        done: iterations.
        of_set: the validation set, in one line, if there are several.
    """
    measured: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for row in read_metrics(path):
        for key, value in row.items():
            metric = parse_metric(key)
            if metric and metric.of_set == of_set and row["iteration"] == done - 1:
                measured[metric.averaged][f"{metric.task}/{metric.name}"] = float(value)
    return measured[True] or measured[False]


def _images(path: Path) -> int | None:
    """The number of images in an evaluation that a training made."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    made_by_it = isinstance(content, dict) and content.get("weights", "") is None
    images = content.get("images") if made_by_it else None
    return images if type(images) is int and 0 < images < 2**53 else None


def model_card(
    file: checkpoint.File, cfg: DictConfig, licence: str, address: str, training: Training
) -> ModelCard:
    """The README.md of a model.

    Args:
        file: its checkpoint.
        cfg: its config.
        licence: as the Hugging Face Hub writes it, such as "apache-2.0".
        address: what people will give to load it; its last part is the model's name.
        training: what is known about it.
    """
    name = address.rpartition("/")[2]
    sections = (
        _summary(file, name),
        _use(cfg, address),
        _classes(file, training),
        _results(file, training),
        _versions(file),
        f"## Licence\n\n{markdown(licence)}",
    )
    header = _header(file, one_line(licence), one_line(name), training).to_yaml()
    return ModelCard(
        f"---\n{header}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"
    )


def versions(file: checkpoint.File) -> dict[str, str]:
    """What a model was made with; of a file that does not say, what it is written with now."""
    return file.about.get("versions") or checkpoint.versions()


def has_masks(file: checkpoint.File) -> bool:
    return any(key.startswith("roi_heads.mask_head.") for key in file.weights)


def _header(file: checkpoint.File, licence: str, name: str, training: Training) -> ModelCardData:
    pipeline = "image-segmentation" if has_masks(file) else "object-detection"
    kinds = ["object-detection", *(["instance-segmentation"] if has_masks(file) else [])]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=re.sub(r"\W+", "-", training.val_data).strip("-") or "unnamed",
            dataset_name=training.val_data or VALIDATION,
            metric_type="mAP",
            metric_name=f"{task.main} of {task.label} (COCO)",
            metric_value=round(training.metrics[f"{name}/{task.main}"], 1),
        )
        for name, task in TASKS.items()
        if f"{name}/{task.main}" in training.metrics
    ]
    return ModelCardData(
        license=licence,
        library_name="gpvit",
        pipeline_tag=pipeline,
        tags=["gpvit", "detectron2", *kinds],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _summary(file: checkpoint.File, name: str) -> str:
    size, finds = size_name(file.weights), "boxes and masks" if has_masks(file) else "boxes"
    backbone = f"[GPViT]({PAPER})" + (f"-{size}" if size else "")
    return (
        f"# {markdown(name)}\n\nA {checkpoint.architecture(file.weights)} on a {backbone} backbone. It finds objects of "
        f"{len(file.classes or [])} classes in pictures, and gives {finds}, classes and scores."
    )


def _use(cfg: DictConfig, address: str) -> str:
    sizes = [markdown(cfg.dataloader.get(key) or "") for key in ("short_side", "max_size")]
    resized = "Pictures of any size; the shorter side is scaled to {} pixels, the longer to {} at most. ".format(
        *sizes
    )
    return f"""## Use

With GPViT for Detectron2, in Python and from the shell:

```python
import gpvit

predictor = gpvit.Predictor.from_checkpoint({python_text(address)})
instances = predictor("picture.jpg")
print([predictor.classes[number] for number in instances.pred_classes], instances.scores)
```

```bash
gpvit predict --weights {shell_text(address)} --input 'pictures/*.jpg'
```

{resized if all(sizes) else ""}Classes and config come with the weights; `config.yaml` is that config once more, to be read.
No file here is code."""


def python_text(address: str) -> str:
    """An address as Python code in a card."""
    return one_line(json.dumps(address, ensure_ascii=False), PATH_LIMIT)


def shell_text(address: str) -> str:
    """An address as part of a shell command in a card."""
    return one_line(shlex.quote(address), PATH_LIMIT)


def _classes(file: checkpoint.File, training: Training) -> str:
    names, metrics = file.classes or [], training.metrics
    tasks = {
        name: task
        for name, task in TASKS.items()
        if any(_of_class(name, cls) in metrics for cls in names)
    }
    if not tasks:
        return "## Classes\n\n" + ", ".join(map(markdown, names))
    rows = []
    for cls in names:
        rows.append(
            [markdown(cls), *(_figure(metrics.get(_of_class(name, cls))) for name in tasks)]
        )
    return "## Classes\n\n" + _table(
        ["class", *(f"AP of {task.label}" for task in tasks.values())], rows
    )


def _results(file: checkpoint.File, training: Training) -> str:
    metrics = training.metrics
    columns: dict[str, str] = {}
    rows = []
    for name, task in TASKS.items():
        if f"{name}/{task.main}" in metrics:
            columns = task.metrics
            rows.append(
                [task.label, *(_figure(metrics.get(f"{name}/{column}")) for column in columns)]
            )
    trained = (
        f"Trained for {file.about['iterations']} iterations" if "iterations" in file.about else ""
    )
    if trained:
        trained += f" on {markdown(training.train_data)}." if training.train_data else "."
    if not rows:
        return f"## Training\n\n{trained}" if trained else ""
    where = markdown(training.val_data) if training.val_data else VALIDATION
    where = f"{training.images} images of {where}" if training.images else where
    said = f"COCO's AP, 0 to 100, as the training measured it on {where}; other pictures may give other figures."
    return f"## Training and results\n\n{trained} {said}\n\n" + _table(
        ["", *columns.values()], rows
    )


def _versions(file: checkpoint.File) -> str:
    what = "Trained" if "versions" in file.about else "Written to this file"
    stated = [markdown(" ".join(version)) for version in versions(file).items()]
    return f"## Versions\n\n{what} with {', '.join(stated[:MOST_VERSIONS])}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of_class(task: str, name: str) -> str:
    """What the metric of a class is called in metrics.json."""
    return f"{task}/{TASKS[task].of_class}{one_line(name)}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
