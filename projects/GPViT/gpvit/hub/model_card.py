"""Model cards: README.md files that describe a shared model, its usage, results and license."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import DictConfig, ListConfig, OmegaConf

from .. import checkpoint
from ..checkpoint.describe import architecture_of, size_name
from ..config import load_config
from ..evaluation.metrics import TASKS, parse_metric
from ..utils.errors import UserError
from ..utils.events import RESULTS_OF_SETS, folder_names, read_metrics
from ..utils.text import PATH_LIMIT, markdown, one_line

PAPER = "https://github.com/ChenhongyiYang/GPViT"
MOST_VERSIONS = 10  # packages listed in a card; a training run records 4
EXAMPLE_OF_OBJECTS = """instances = predictor("image.jpg")
print([predictor.classes[index] for index in instances.pred_classes], instances.scores)"""
EXAMPLE_OF_CLASSES = """logits = predictor("image.jpg")  # (K, H, W)
print({predictor.classes[index] for index in logits.argmax(0).unique()})"""
EXAMPLE_OF_SCORES = """scores = predictor("image.jpg")  # (K,), probabilities
print({predictor.classes[index]: scores[index].item() for index in scores.topk(3).indices})"""
EXAMPLES = {
    "detection": EXAMPLE_OF_OBJECTS,
    "segmentation": EXAMPLE_OF_CLASSES,
    "classification": EXAMPLE_OF_SCORES,
}
METRIC_TYPES = {"detection": "mAP", "segmentation": "mIoU", "classification": "accuracy"}
VALIDATION = "the validation dataset"  # if its name is not known


@dataclass(frozen=True)
class TrainingRun:
    """What the folder of a training run records about a checkpoint in it; empty where unknown.

    Attributes:
        train_data, val_data: names of the datasets in one line, without their folders.
        images: number of images in the evaluation.
        metrics: metrics on the validation data, from 0 to 100, by names such as "bbox/AP" and
            "segm/AP-cat".
    """

    train_data: str = ""
    val_data: str = ""
    images: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def read_training_run(file: checkpoint.File) -> TrainingRun:
    """Return what the folder of a checkpoint records about the training run that wrote it."""
    folder, iterations = Path(file.path).parent, file.about.get("iterations")
    if iterations is None:
        return TrainingRun()
    images = _evaluated_images(folder / "evaluation.json")
    try:
        cfg = load_config(str(folder / "config.yaml"))
    except UserError:  # the checkpoint was moved out of its folder
        metrics = _metrics(folder / "metrics.json", iterations)
        return TrainingRun(images=images, metrics=metrics)
    train = OmegaConf.select(cfg, "dataloader.train.dataset.names")
    test = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    dataset = ""
    if isinstance(test, ListConfig) and len(test) > 1:
        # With several validation sets, each has a folder of its own; the card is about the first.
        first = test[0]
        set_folder = folder / RESULTS_OF_SETS / folder_names(list(map(str, test)))[str(first)]
        images = _evaluated_images(set_folder / "evaluation.json")
        dataset = one_line(first, PATH_LIMIT)
        test = first
    metrics = _metrics(folder / "metrics.json", iterations, dataset)
    return TrainingRun(_data_names(train), _data_names(test), images, metrics)


def _data_names(names: Any) -> str:
    """Return the names of datasets in one line.

    Names of version 0.1, such as "coco:/home/me/photos:val", contain a private path; they become
    "photos (val)".
    """
    if isinstance(names, str):
        names = [names]
    elif not isinstance(names, list | ListConfig):
        names = []
    public_names = []
    for name in map(str, names):
        folder, _, split = name.rpartition(":")
        public_names.append(f"{Path(folder).name} ({split})" if name.startswith("coco:") else name)
    return one_line(", ".join(public_names))


def _metrics(path: Path, iterations: int, dataset: str = "") -> dict[str, float]:
    """Return the metrics of the evaluation after ``iterations`` iterations.

    If averaged weights were evaluated, their metrics are returned: these are the shared weights.

    Args:
        path: of metrics.json.
        iterations: number of iterations of the checkpoint.
        dataset: the validation set, in one line, if there are several.
    """
    metrics: dict[bool, dict[str, float]] = {False: {}, True: {}}  # by whether averaged
    for row in read_metrics(path):
        for key, value in row.items():
            metric = parse_metric(key)
            # Rows count iterations from 0.
            if metric and metric.dataset == dataset and row["iteration"] == iterations - 1:
                metrics[metric.averaged][f"{metric.task}/{metric.name}"] = float(value)
    return metrics[True] or metrics[False]


def _evaluated_images(path: Path) -> int | None:
    """Return the number of images of a training run's last evaluation, from evaluation.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    # A training run writes "weights": null, and `--eval-only` the path of a checkpoint.
    is_of_run = isinstance(content, dict) and content.get("weights", "") is None
    images = content.get("images") if is_of_run else None
    return images if type(images) is int and 0 < images < 2**53 else None


def model_card(
    file: checkpoint.File, cfg: DictConfig, license_id: str, address: str, run: TrainingRun
) -> ModelCard:
    """Return the model card of a detector.

    Args:
        file: its checkpoint.
        cfg: its config.
        license_id: identifier of the license on the Hugging Face Hub, such as "apache-2.0".
        address: the address or path that users load it from; the last part is the model's name.
        run: the training run that wrote the checkpoint.
    """
    name = address.rpartition("/")[2]
    sections = (
        _summary(file, name),
        _usage(cfg, address, EXAMPLES[task_of(file)]),
        _classes(file, run),
        _results(file, run),
        _versions(file),
        f"## License\n\n{markdown(license_id)}",
    )
    header = _header(file, one_line(license_id), one_line(name), run).to_yaml()
    text = "\n\n".join(filter(None, sections))
    return ModelCard(f"---\n{header}\n---\n\n{text}\n")


def versions(file: checkpoint.File) -> dict[str, str]:
    """Return the package versions recorded in a checkpoint, or else those in use."""
    return file.about.get("versions") or checkpoint.versions()


def task_of(file: checkpoint.File) -> str:
    """Return the task of the model, see :class:`.Architecture`."""
    architecture = architecture_of(file.weights)
    return architecture.task if architecture else "detection"


def has_masks(file: checkpoint.File) -> bool:
    return any(key.startswith("roi_heads.mask_head.") for key in file.weights)


def _header(file: checkpoint.File, license_id: str, name: str, run: TrainingRun) -> ModelCardData:
    """Return the YAML header, which the Hub shows and searches."""
    pipeline, task_tags = "object-detection", ["object-detection"]
    if has_masks(file):
        pipeline, task_tags = "image-segmentation", ["object-detection", "instance-segmentation"]
    elif task_of(file) == "segmentation":
        pipeline, task_tags = "image-segmentation", ["semantic-segmentation"]
    elif task_of(file) == "classification":
        pipeline, task_tags = "image-classification", ["image-classification"]
    results = []
    for task_name, task in TASKS.items():
        value = run.metrics.get(f"{task_name}/{task.main}")
        if value is not None:
            # Runs of anything but word characters become one hyphen in the dataset's identifier.
            dataset_type = re.sub(r"\W+", "-", run.val_data).strip("-") or "unnamed"
            result = EvalResult(
                task_type=pipeline,
                dataset_type=dataset_type,
                dataset_name=run.val_data or VALIDATION,
                metric_type=METRIC_TYPES[task_of(file)],
                metric_name=f"COCO AP ({task.label})"
                if task.main == "AP"
                else task.metrics[task.main],
                metric_value=round(value, 1),
            )
            results.append(result)
    return ModelCardData(
        license=license_id,
        library_name="gpvit",
        pipeline_tag=pipeline,
        tags=["gpvit", "detectron2", *task_tags],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _summary(file: checkpoint.File, name: str) -> str:
    size = size_name(file.weights)
    backbone = f"[GPViT]({PAPER})" + (f"-{size}" if size else "")
    if task_of(file) == "classification":
        kind = checkpoint.architecture(file.weights)  # "an image classifier with mean pooling"
        return (
            f"# {markdown(name)}\n\n"
            f"{kind[0].upper()}{kind[1:]} and a {backbone} backbone. It assigns one of "
            f"{len(file.classes or [])} classes to an image."
        )
    if task_of(file) == "segmentation":
        return (
            f"# {markdown(name)}\n\n"
            f"A model for {checkpoint.architecture(file.weights)} and a {backbone} backbone. It "
            f"assigns one of {len(file.classes or [])} classes to each pixel of an image."
        )
    if has_masks(file):
        kind, predictions = "instance segmentation", "a bounding box, a mask"
    else:
        kind, predictions = "object detection", "a bounding box"
    return (
        f"# {markdown(name)}\n\n"
        f"An {kind} model: {checkpoint.architecture(file.weights)} and a {backbone} backbone. It "
        f"detects objects of {len(file.classes or [])} classes and predicts {predictions}, a class "
        "label and a confidence score for each."
    )


def _usage(cfg: DictConfig, address: str, example: str) -> str:
    short_side, max_size, crop_size = (
        markdown(cfg.dataloader.get(key) or "") for key in ("short_side", "max_size", "crop_size")
    )
    resizing = ""
    if short_side and crop_size:
        resizing = (
            f"Images of any size are accepted. They are resized so that the shorter side is "
            f"{short_side} pixels, and the {crop_size} x {crop_size} pixels in the center are "
            "classified. "
        )
    elif short_side and max_size:
        resizing = (
            f"Images of any size are accepted. They are resized so that the shorter side is "
            f"{short_side} pixels, or less if the longer side would exceed {max_size} pixels. "
        )
    return f"""## Usage

The model requires the package GPViT for Detectron2 (`gpvit`). In Python:

```python
import gpvit

predictor = gpvit.Predictor.from_checkpoint({python_text(address)})
{example}
```

On the command line:

```bash
gpvit predict --weights {shell_text(address)} --input 'images/*.jpg'
```

{resizing}`model.safetensors` contains the weights, the class names and the config; `config.yaml` is
a readable copy of the config. Loading the model does not execute code from this repository."""


def python_text(address: str) -> str:
    """Return an address as a Python string literal for a card."""
    return one_line(json.dumps(address, ensure_ascii=False), PATH_LIMIT)


def shell_text(address: str) -> str:
    """Return an address as an argument of a shell command for a card."""
    return one_line(shlex.quote(address), PATH_LIMIT)


def _classes(file: checkpoint.File, run: TrainingRun) -> str:
    """Return the list of classes, or the table of their AP if the training run measured it."""
    names, metrics = file.classes or [], run.metrics
    columns = {}  # the main metric of each class, by column heading
    for task_name, task in TASKS.items():
        values = [metrics.get(_class_metric(task_name, name)) for name in names]
        if any(value is not None for value in values):
            heading = task.of_class.rstrip("-")
            columns[f"{task.metrics.get(heading, heading)} ({task.label})"] = values
    if not columns:
        return "## Classes\n\n" + ", ".join(map(markdown, names))
    rows = []
    for name, *values in zip(names, *columns.values()):
        rows.append([markdown(name), *map(_figure, values)])
    return "## Classes\n\n" + _table(["class", *columns], rows)


def _results(file: checkpoint.File, run: TrainingRun) -> str:
    """Return the section on the training run and its COCO metrics."""
    headings: list[str] = []
    rows = []
    for task_name, task in TASKS.items():
        values = [run.metrics.get(f"{task_name}/{metric}") for metric in task.metrics]
        if values[0] is not None:  # the main metric
            headings = list(task.metrics.values())
            rows.append([task.label, *map(_figure, values)])
    trained = ""
    if "iterations" in file.about:
        data = f" on {markdown(run.train_data)}" if run.train_data else ""
        trained = f"Trained for {file.about['iterations']} iterations{data}."
    if not rows:
        return f"## Training\n\n{trained}" if trained else ""
    data = markdown(run.val_data) if run.val_data else VALIDATION
    if run.images:
        data = f"{run.images} images of {data}"
    metrics = "COCO AP" if task_of(file) == "detection" else "Metrics"
    evaluated = (
        f"{metrics} in percent, evaluated on {data} during training. Results on images from other "
        "sources may differ."
    )
    return f"## Training and results\n\n{trained} {evaluated}\n\n" + _table(["", *headings], rows)


def _versions(file: checkpoint.File) -> str:
    action = "Trained" if "versions" in file.about else "Saved"
    packages = [markdown(" ".join(version)) for version in versions(file).items()]
    return f"## Versions\n\n{action} with {', '.join(packages[:MOST_VERSIONS])}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    # "---:" aligns all columns but the first to the right.
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _class_metric(task: str, name: str) -> str:
    """Return the name of a class's metric in metrics.json, such as "segm/AP-cat"."""
    return f"{task}/{TASKS[task].of_class}{one_line(name)}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
