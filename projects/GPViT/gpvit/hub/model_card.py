"""The card of a model that is handed on: what it is, how to use it, how well it did where, and its licence."""

import json
import math
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
from ..utils.errors import UserError
from ..utils.events import RESULTS_OF_SETS, folder_names, read_metrics
from ..utils.text import PATH_LIMIT, markdown, one_line

PAPER = "https://github.com/ChenhongyiYang/GPViT"
TASKS = {"bbox": "boxes", "segm": "masks"}
COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}
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
        return Training(images=images, metrics=_metrics(folder / "metrics.json", done, final=False))
    train, test = (OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") for split in ("train", "test"))
    max_iter = OmegaConf.select(cfg, "train.max_iter")
    final = done >= (max_iter if type(max_iter) is int else math.inf)
    prefix = ""
    if isinstance(test, ListConfig) and len(test) > 1:  # the card is about the first validation set
        of_set = folder / RESULTS_OF_SETS / folder_names(list(map(str, test)))[str(test[0])]
        images, prefix = _images(of_set / "evaluation.json"), f"{one_line(test[0], PATH_LIMIT)}/"
        test = test[0]
    metrics = _metrics(folder / "metrics.json", done, final=final, of_set=prefix)
    return Training(_data_name(train), _data_name(test), images, metrics)


def _data_name(names: Any) -> str:
    """ "photos (val)" of "/home/me/photos:val": where somebody keeps data is nobody else's business."""
    listed_names = [names] if isinstance(names, str) else names if isinstance(names, list | ListConfig) else []
    parts = [str(name).rpartition(":") for name in listed_names]
    shown = [f"{Path(folder).name} ({split})" if folder else split for folder, _, split in parts]
    return one_line(", ".join(shown))


def _metrics(path: Path, done: int, *, final: bool, of_set: str = "") -> dict[str, float]:
    """What was measured after ``done`` iterations; of the averaged weights, where there are any, since these are used.

    Args:
        path: of metrics.json.
        done: iterations.
        final: whether these are all iterations of the training.
        of_set: what the names of the metrics begin with, if there are several validation sets.
    """
    # The last evaluation is noted under the number of iterations, those before under that of the iteration.
    noted = (done - 1, done) if final else (done - 1,)
    entries: dict[str, Any] = {}
    for entry in read_metrics(path):
        entries |= entry if entry["iteration"] in noted else {}
    entries = {key.removeprefix(of_set): value for key, value in entries.items() if key.startswith(of_set)}
    prefix = "ema_" if any(key.startswith("ema_") for key in entries) else ""
    found = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if re.match(r"(bbox|segm)/AP", key)}


def _images(path: Path) -> int | None:
    """The number of images in an evaluation that a training made."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    made_by_it = isinstance(content, dict) and content.get("weights", "") is None
    images = content.get("images") if made_by_it else None
    return images if type(images) is int and 0 < images < 2**53 else None


def model_card(file: checkpoint.File, cfg: DictConfig, licence: str, address: str, training: Training) -> ModelCard:
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
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n")


def versions(file: checkpoint.File) -> dict[str, str]:
    """What a model was made with; of a file that does not say, what it is written with now."""
    return file.about.get("versions") or checkpoint.versions()


def has_masks(file: checkpoint.File) -> bool:
    return any(key.startswith("roi_heads.mask_head.") for key in file.weights)


def _header(file: checkpoint.File, licence: str, name: str, training: Training) -> ModelCardData:
    task = "image-segmentation" if has_masks(file) else "object-detection"
    kinds = ["object-detection", *(["instance-segmentation"] if has_masks(file) else [])]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"\W+", "-", training.val_data).strip("-") or "unnamed",
            dataset_name=training.val_data or VALIDATION,
            metric_type="mAP",
            metric_name=f"AP of {what} (COCO)",
            metric_value=round(training.metrics[f"{kind}/AP"], 1),
        )
        for kind, what in TASKS.items()
        if f"{kind}/AP" in training.metrics
    ]
    return ModelCardData(
        license=licence,
        library_name="gpvit",
        pipeline_tag=task,
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
    resized = "Pictures of any size; the shorter side is scaled to {} pixels, the longer to {} at most. ".format(*sizes)
    return f"""## Use

With GPViT for Detectron2, in Python and from the shell:

```python
import gpvit

predictor = gpvit.Predictor.from_checkpoint({python_text(address)})
instances = predictor("picture.jpg")
print([predictor.classes[number] for number in instances.pred_classes], instances.scores)
```

```bash
python tools/demo.py --weights {shell_text(address)} --input 'pictures/*.jpg' --output output/demo
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
    kinds = [kind for kind in TASKS if any(_metric(kind, name) in metrics for name in names)]
    if not kinds:
        return "## Classes\n\n" + ", ".join(map(markdown, names))
    rows = []
    for name in names:
        rows.append([markdown(name), *(_figure(metrics.get(_metric(kind, name))) for kind in kinds)])
    return "## Classes\n\n" + _table(["class", *(f"AP of {TASKS[kind]}" for kind in kinds)], rows)


def _results(file: checkpoint.File, training: Training) -> str:
    metrics = training.metrics
    rows = [
        [what, *(_figure(metrics.get(f"{kind}/{column}")) for column in COLUMNS)]
        for kind, what in TASKS.items()
        if f"{kind}/AP" in metrics
    ]
    trained = f"Trained for {file.about['iterations']} iterations" if "iterations" in file.about else ""
    if trained:
        trained += f" on {markdown(training.train_data)}." if training.train_data else "."
    if not rows:
        return f"## Training\n\n{trained}" if trained else ""
    where = markdown(training.val_data) if training.val_data else VALIDATION
    where = f"{training.images} images of {where}" if training.images else where
    said = f"COCO's AP, 0 to 100, as the training measured it on {where}; other pictures may give other figures."
    return f"## Training and results\n\n{trained} {said}\n\n" + _table(["", *COLUMNS.values()], rows)


def _versions(file: checkpoint.File) -> str:
    what = "Trained" if "versions" in file.about else "Written to this file"
    stated = [markdown(" ".join(version)) for version in versions(file).items()]
    return f"## Versions\n\n{what} with {', '.join(stated[:MOST_VERSIONS])}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metric(kind: str, name: str) -> str:
    """What the AP of a class is called in metrics.json."""
    return f"{kind}/AP-{one_line(name)}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
