"""Register custom datasets with Detectron2, and compare the classes of datasets and models."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n
from omegaconf import DictConfig, ListConfig

from ...utils.errors import UserError, preview, reason_of
from ...utils.text import LINE_LIMIT, one_line
from ..label_maps import Color, class_palette
from . import (
    coco,
    custom,
    imagenet,  # noqa: F401 (registers ImageNet)
    semantic,  # noqa: F401 (registers ADE20K)
)
from .class_folders import ClassificationData, find_classification
from .coco_rules import log_problems
from .custom_semantic import SemanticData, balanced_weights, find_semantic, ignore_value_of

BALANCED = "balanced"  # class weights by the pixels of a custom dataset


def register_folder(root: str, split: str, *, masks: bool = True) -> str:
    """Register a split of a custom dataset with Detectron2.

    The rules of :mod:`gpvit.data.datasets.coco` are applied to it.

    Args:
        root: a folder or file in a format of :mod:`gpvit.data.datasets.custom`.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Returns:
        The name of the dataset in Detectron2's catalog. Its metadata has the class names in the
        order of their IDs, as printed (:func:`.one_line`).

    Raises:
        UserError: files are missing, or the annotations have a problem that stops training.
    """
    return _register(root, split, custom.read(root, split, masks=masks))


def _register(root: str, split: str, data: coco.CocoFile, summary: str = "") -> str:
    """Register a split that was already read, see :func:`register_folder`.

    Args:
        root, split: as in :func:`register_folder`.
        data: its contents.
        summary: logged once, before the first use of the dataset.
    """

    def records() -> list[dict[str, Any]]:
        if summary:
            log_first_n(logging.INFO, summary, name=__name__, key="message")
        return data.records()

    name = _new_dataset(root, split, records)
    MetadataCatalog.get(name).set(
        thing_classes=list(map(one_line, data.categories.values())),  # which Detectron2 prints
        thing_dataset_id_to_contiguous_id={id: i for i, id in enumerate(data.categories)},
        json_file=data.path,
        image_root=data.image_root,
        evaluator_type="coco",
        coco_file=data,  # for gpvit.evaluation and class_names
    )
    return name


def register_semantic_folder(root: str, split: str) -> str:
    """Register a split of a custom dataset for semantic segmentation with Detectron2.

    Args:
        root: a folder or file in a format of :mod:`gpvit.data.datasets.custom_semantic`.
        split: "train" or "val".

    Returns:
        The name of the dataset in Detectron2's catalog. Its metadata has ``stuff_classes``,
        ``stuff_colors`` and ``ignore_label``.

    Raises:
        UserError: files are missing, or have a problem that stops training.
    """
    data = find_semantic(root)
    _require_split(data, split)
    return _register_semantic(data, split)


def register_classification_folder(root: str, split: str) -> str:
    """Register a split of a custom dataset for classification with Detectron2.

    Args:
        root: a folder or file, see :func:`.find_classification`.
        split: "train" or "val".

    Returns:
        The name of the dataset in Detectron2's catalog. Its metadata has ``thing_classes``.

    Raises:
        UserError: files are missing, or have a problem that stops training.
    """
    data = find_classification(root, [split])
    _require_split(data, split)
    return _register_classification(data, split)


def _require_split(data: SemanticData | ClassificationData, split: str) -> None:
    if split not in data.splits:
        raise UserError(
            f"--data {data.data}: there are no images for {split}, only for "
            f"{', '.join(data.splits)}"
        )
    data.splits[split].raise_if_fatal(data.data)


def _register_semantic(data: SemanticData, split: str, summary: str = "") -> str:
    """Register a split that was already read; the summary is logged before its first use."""
    name = _new_dataset(data.data, split, _records_of(data, split, summary))
    MetadataCatalog.get(name).set(
        stuff_classes=data.classes,
        stuff_colors=data.palette,
        ignore_label=ignore_value_of(len(data.classes)),
        image_root=data.image_root,
        evaluator_type="sem_seg",
    )
    return name


def _register_classification(data: ClassificationData, split: str, summary: str = "") -> str:
    """Register a split that was already read; the summary is logged before its first use."""
    name = _new_dataset(data.data, split, _records_of(data, split, summary))
    MetadataCatalog.get(name).set(
        thing_classes=data.classes,
        image_root=data.image_root,
        evaluator_type="classification",
    )
    return name


def _records_of(
    data: SemanticData | ClassificationData, split: str, summary: str
) -> Callable[[], list[dict[str, Any]]]:
    """Return a function that returns a split's records, after logging its summary and problems."""

    def records() -> list[dict[str, Any]]:
        if summary:
            log_first_n(logging.INFO, summary, name=__name__, key="message")
        part = data.splits[split]
        log_problems(part.path, part.problems)
        return part.records

    return records


def _new_dataset(root: str, split: str, records: Callable[[], list[dict[str, Any]]]) -> str:
    """Register the records of a custom dataset, and return its name in the catalog."""
    folder = os.path.abspath(root)
    name = _dataset_name(folder, split)
    if name in DatasetCatalog:  # registering it again would raise, or keep the old records
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, records)
    MetadataCatalog.get(name).set(folder=folder)
    return name


def _dataset_name(folder: str, split: str) -> str:
    """Return the name of a split in the catalog, such as "photos_val" for /home/me/photos.

    If another dataset already has that name, a hash of the folder is appended.
    """
    path = Path(folder)
    name = f"{path.stem if os.path.isfile(folder) else path.name}_{split}"
    if name in DatasetCatalog and MetadataCatalog.get(name).get("folder") != folder:
        name += "-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return name


def use_folder(cfg: DictConfig, root: str, *, train: bool) -> None:
    """Register a custom dataset, and set the datasets and the number of classes of a config to it.

    A summary of the dataset is logged before its first use.

    Args:
        cfg: the config to change.
        root: a folder or file, see :func:`register_folder`.
        train: whether the training split is used as well, not only the validation split.

    Raises:
        UserError: as :func:`register_folder`, or the splits have different classes.
    """
    task = task_of(cfg.model)
    if task == "segmentation":
        _use_semantic_folder(cfg, root, train=train)
        return
    if task == "classification":
        _use_classification_folder(cfg, root, train=train)
        return
    layout = custom.find_layout(root)
    masks = cfg.dataloader.train.mapper.use_instance_mask
    files = layout.read_all(("train", "val") if train else ("val",), masks=masks)
    classes = list(files["val"].categories.values())
    if train:
        files["train"].problems += coco.images_in_both(files["train"], files["val"])
    summary = layout.summary(files)
    names = {split: _register(root, split, data, summary) for split, data in files.items()}
    _set_datasets(cfg, root, names, len(classes))


def task_of(model: DictConfig) -> str:
    """Return the task of a model, given its config, as in :class:`.Architecture`."""
    if "sem_seg_head" in model:
        return "segmentation"
    return "classification" if "pooling" in model else "detection"


def _use_classification_folder(cfg: DictConfig, root: str, *, train: bool) -> None:
    """As :func:`use_folder`, for classification."""
    splits = ("train", "val") if train else ("val",)
    data = find_classification(root, splits)
    for split in splits:
        _require_split(data, split)
    summary = data.summary()
    names = {split: _register_classification(data, split, summary) for split in splits}
    _set_datasets(cfg, root, names, len(data.classes))


def _use_semantic_folder(cfg: DictConfig, root: str, *, train: bool) -> None:
    """As :func:`use_folder`, for semantic segmentation."""
    data = find_semantic(root)
    splits = ("train", "val") if train else ("val",)
    for split in splits:
        _require_split(data, split)
    summary = data.summary()
    names = {split: _register_semantic(data, split, summary) for split in splits}
    _set_datasets(cfg, root, names, len(data.classes))
    head = cfg.model.sem_seg_head
    head.ignore_value = ignore_value = ignore_value_of(len(data.classes))
    cfg.dataloader.train.mapper.ignore_value = ignore_value
    if head.get("class_weights") == BALANCED:  # in evaluation there is no loss
        head.class_weights = balanced_weights(data.splits["train"].pixels) if train else None


def _set_datasets(cfg: DictConfig, root: str, names: dict[str, str], num_classes: int) -> None:
    """Set the datasets and the number of classes of a config.

    Args:
        cfg: the config to change.
        root: of the custom dataset.
        names: of the registered datasets, by split.
        num_classes: of the dataset.
    """
    previous_names = cfg.dataloader.test.dataset.names
    folders: dict[str, str] = {}
    for split, name in names.items():
        loader = cfg.dataloader.train if split == "train" else cfg.dataloader.test
        loader.dataset.names = name
        folders[name] = os.path.abspath(root)
    # In a saved config, the evaluator has the name of the validation set as well.
    evaluator = cfg.dataloader.get("evaluator", {})
    if evaluator.get("dataset_name") == previous_names:
        evaluator.dataset_name = cfg.dataloader.test.dataset.names
    # For processes that read the config without registering the datasets, see folder_of.
    cfg.dataloader.folders = folders
    set_num_classes(cfg.model, num_classes)


def folder_of(cfg: DictConfig, names: Any) -> str | None:
    """Return the folder of a custom dataset that a config names, or None for other datasets.

    Args:
        cfg: a config that :func:`use_folder` has changed, possibly in another process.
        names: ``dataset.names`` of one of its loaders.
    """
    if not isinstance(names, str):
        return None
    folders = cfg.dataloader.get("folders") or {}
    if folders.get(names):
        return folders[names]
    # Version 0.1 had names of the form coco:FOLDER:SPLIT instead.
    kind, _, rest = names.partition(":")
    return rest.rpartition(":")[0] if kind == "coco" else None


def require_files(loader: DictConfig) -> None:
    """Raise a UserError if a loader's datasets are not registered or their files do not exist."""
    for name in _names_of(loader):
        if name not in DatasetCatalog:
            raise UserError(
                f"dataset {name} is not registered; to use a custom dataset, add --data DIR"
            )
        json_file = MetadataCatalog.get(name).get("json_file", "")
        if json_file and not os.path.isfile(json_file):
            raise UserError(
                f"{json_file} of dataset {name} does not exist: put it there, or set "
                "DETECTRON2_DATASETS to the folder that contains coco/; to use a custom dataset, "
                "add --data DIR"
            )
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") not in ("sem_seg", "classification"):
            continue
        for folder in (metadata.get("image_root"), metadata.get("sem_seg_root")):
            if folder and not os.path.isdir(folder):
                raise UserError(
                    f"{folder} of dataset {name} does not exist: put it there, or set "
                    "DETECTRON2_DATASETS to the folder with "
                    f"{metadata.get('root_folder', 'ADEChallengeData2016')}/"
                )


def _names_of(loader: DictConfig) -> list[str]:
    """Return the names of a loader's datasets, of which a config may have one or several."""
    names = loader.dataset.names
    return [names] if isinstance(names, str) else list(names)


def set_num_classes(model: DictConfig, num_classes: int) -> None:
    """Set the number of classes in the config of a model."""
    # All other numbers of classes are references to this one.
    _part_with_classes(model)[0].num_classes = num_classes


def _part_with_classes(model: DictConfig) -> tuple[DictConfig, str]:
    """Return the part of a model's config that has the number of classes, and its key."""
    for name in ("roi_heads", "sem_seg_head"):
        if name in model:
            return model[name], f"model.{name}"
    return model, "model"


def class_names(loader: DictConfig) -> list[str]:
    """Return the class names of the datasets of a loader.

    Raises:
        UserError: a dataset has no class names, or the datasets have different ones.
    """
    first, *others = _names_of(loader)
    classes = _classes_of(first)
    for other in others:
        _require_equal(first, classes, other, _classes_of(other))
    return classes


def palette(loader: DictConfig) -> list[Color]:
    """Return the color of each class of a loader's datasets; [] unless they have label maps."""
    metadata = MetadataCatalog.get(_names_of(loader)[0])
    if metadata.get("evaluator_type") != "sem_seg":
        return []
    return metadata.get("stuff_colors") or class_palette(len(metadata.stuff_classes))


def _classes_of(name: str) -> list[str]:
    """Return the class names of a registered dataset."""
    metadata = MetadataCatalog.get(name)
    file = metadata.get("coco_file")
    if file:
        return list(file.categories.values())  # thing_classes has them as printed
    if metadata.get("evaluator_type") == "sem_seg" and metadata.get("stuff_classes"):
        return [name.strip() for name in metadata.stuff_classes]  # "window " in Detectron2
    if not metadata.get("thing_classes"):
        # Detectron2's register_coco_instances sets thing_classes when the records are loaded.
        try:
            DatasetCatalog.get(name)
        except Exception as error:
            reason = reason_of(error, LINE_LIMIT)
            raise UserError(f"dataset {name} cannot be read ({reason})") from error
    classes = metadata.get("thing_classes")
    if not classes:
        raise UserError(
            f"dataset {name} is registered without class names: add MetadataCatalog.get({name!r})"
            ".thing_classes = [...] to the code that registers it"
        )
    return list(classes)


def _require_equal(first: str, classes: list[str], second: str, others: list[str]) -> None:
    """Raise a UserError if two datasets have different classes or another order of them."""
    if classes == others:
        return
    # The first class that differs; if there is none, one list is the beginning of the other.
    number = 0
    while number < min(len(classes), len(others)) and classes[number] == others[number]:
        number += 1
    raise UserError(
        f"datasets {first} and {second} have different classes, from class number {number} on: "
        f"{preview(classes[number:]) or 'none'} and {preview(others[number:]) or 'none'}"
    )


def check_classes(cfg: DictConfig, *, train: bool) -> list[str]:
    """Check that the datasets of a config have the same classes, as many as its model.

    Args:
        cfg: the config.
        train: whether the training set is checked as well.

    Returns:
        The class names.

    Raises:
        UserError: there is a difference, or a dataset has no class names.
    """
    test_loader, train_loader = cfg.dataloader.test, cfg.dataloader.train
    classes = class_names(test_loader)
    if train:
        train_names, test_names = str(train_loader.dataset.names), str(test_loader.dataset.names)
        _require_equal(train_names, class_names(train_loader), test_names, classes)
    if cfg.model.get("sem_seg_head", {}).get("class_weights") == BALANCED:
        raise UserError(
            f"model.sem_seg_head.class_weights={BALANCED} needs a custom dataset: add --data DIR, "
            "or list a weight for each class"
        )
    for key, number in _class_counts(*_part_with_classes(cfg.model)):
        # A class-agnostic mask head predicts one mask for all classes.
        agnostic = number == 1 and key.endswith("mask_head.num_classes")
        if number != len(classes) and not agnostic:
            raise UserError(
                f"the model is for {number} classes, the data has {len(classes)}: "
                f"{key}={len(classes)}"
            )
    return classes


def _class_counts(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of all ``num_classes`` in a config, those of outer nodes first.

    Inner ones usually are references to the outer one, so an error should name that.
    """
    children: list[Any] = []
    if isinstance(node, DictConfig):
        children = list(node)
    elif isinstance(node, ListConfig):
        children = list(range(len(node)))
    if "num_classes" in children:
        yield f"{key}.num_classes", node.num_classes
    for name in children:
        yield from _class_counts(node[name], f"{key}.{name}")
