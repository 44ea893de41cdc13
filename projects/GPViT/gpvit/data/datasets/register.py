"""Custom datasets in Detectron2's catalog, and the classes of all datasets."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n
from omegaconf import DictConfig, ListConfig

from ...utils.errors import UserError, preview, reason_of
from ...utils.text import LINE_LIMIT, one_line
from . import coco, custom


def register_folder(root: str, split: str, *, masks: bool = True) -> str:
    """Registers a custom dataset with Detectron2, with the rules of :mod:`gpvit.data.datasets.coco` applied to it.

    Args:
        root: a folder or file that :mod:`gpvit.data.datasets.custom` understands.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Returns:
        The name under which Detectron2 knows it; the metadata has the class names, in the order of their ids, as they
        are shown (:func:`.one_line`).

    Raises:
        UserError: files are missing, or the annotations have a problem that stops.
    """
    return _register(root, split, custom.read(root, split, masks=masks), "")


def _register(root: str, split: str, data: coco.CocoFile, summary: str) -> str:
    """The same for what was read; ``summary`` goes to the log before the data is used for the first time."""

    def records() -> list[dict[str, Any]]:
        if summary:
            log_first_n(logging.INFO, summary, name=__name__, key="message")
        return data.records()

    folder = os.path.abspath(root)
    name = _name(folder, split)
    if name in DatasetCatalog:  # Detectron2 would keep the old one or raise
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, records)
    MetadataCatalog.get(name).set(
        thing_classes=[
            one_line(name) for name in data.categories.values()
        ],  # Detectron2 prints them
        thing_dataset_id_to_contiguous_id={id: i for i, id in enumerate(data.categories)},
        json_file=data.path,
        image_root=data.image_root,
        evaluator_type="coco",
        coco_file=data,  # for gpvit.evaluation and class_names
        folder=folder,
    )
    return name


def _name(folder: str, split: str) -> str:
    """What a split is called: "photos_val" of /home/me/photos; with a hash if another dataset has this name."""
    name = f"{Path(folder).stem if os.path.isfile(folder) else Path(folder).name}_{split}"
    if name in DatasetCatalog and MetadataCatalog.get(name).get("folder") != folder:
        name += "-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return name


def use_folder(cfg: DictConfig, root: str, *, train: bool) -> None:
    """Points a config at a custom dataset (see :func:`register_folder`): datasets, classes and outputs of the heads.

    What was found is in the log before the data is used.
    """
    layout, masks = custom.detect_format(root), cfg.dataloader.train.mapper.use_instance_mask
    files = {
        split: layout.read(split, masks=masks)
        for split in (("train", "val") if train else ("val",))
    }
    classes = {split: list(data.categories.values()) for split, data in files.items()}
    if train and classes["train"] != classes["val"]:
        raise UserError(
            f"--data {root}: {files['train'].path} and {files['val'].path} declare different classes: "
            f"{preview(classes['train'])} and {preview(classes['val'])}"
        )
    if train:
        files["train"].problems += coco.images_in_both(files["train"], files["val"])
    summary = layout.summary(files)
    folders: dict[str, str] = {}
    evaluator, before = cfg.dataloader.get("evaluator", {}), cfg.dataloader.test.dataset.names
    for split, data in files.items():
        loader = cfg.dataloader.train if split == "train" else cfg.dataloader.test
        loader.dataset.names = name = _register(root, split, data, summary)
        folders[name] = os.path.abspath(root)
    if evaluator.get("dataset_name") == before:  # a saved config names its data twice
        evaluator.dataset_name = cfg.dataloader.test.dataset.names
    cfg.dataloader.folders = (
        folders  # for who reads the config when the datasets are not registered
    )
    set_num_classes(cfg.model, len(classes["val"]))


def folder_of(cfg: DictConfig, names: Any) -> str | None:
    """The folder of a custom dataset that a config names, see :func:`use_folder`; None for other data.

    Args:
        cfg: the config, maybe of another process.
        names: ``dataset.names`` of one of its loaders.
    """
    if not isinstance(names, str):
        return None
    folders = cfg.dataloader.get("folders") or {}
    kind, _, rest = names.partition(":")  # version 0.1: coco:FOLDER:SPLIT
    return folders.get(names) or (rest.rpartition(":")[0] if kind == "coco" else None)


def require_files(loader: DictConfig) -> None:
    """Raises a UserError if a loader's data sets are unknown or their annotations are not there."""
    names = loader.dataset.names
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            raise UserError(f"data set {name} is not registered; give your own data by --data DIR")
        json_file = MetadataCatalog.get(name).get("json_file", "")
        if json_file and not os.path.isfile(json_file):
            raise UserError(
                f"{json_file} of data set {name} does not exist: put it there, or set DETECTRON2_DATASETS to the "
                "folder above coco/, or give your own data by --data DIR"
            )


def set_num_classes(model: DictConfig, num_classes: int) -> None:
    """Sets the number of classes of a detector's config."""
    detector = model.roi_heads if "roi_heads" in model else model
    detector.num_classes = num_classes  # the predictors' numbers refer to this one


def class_names(loader: DictConfig) -> list[str]:
    """The class names of the data sets behind a loader's config.

    Raises:
        UserError: a data set has none, or not those of another one.
    """
    names = loader.dataset.names
    first, *others = [names] if isinstance(names, str) else names
    classes = _classes_of(first)
    for other in others:
        _require_equal(first, classes, other, _classes_of(other))
    return classes


def _classes_of(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    if file := metadata.get("coco_file"):
        return list(file.categories.values())  # "thing_classes" are these as they are shown
    if not metadata.get(
        "thing_classes"
    ):  # Detectron2's register_coco_instances knows them when it has read the file
        try:
            DatasetCatalog.get(name)
        except Exception as error:
            raise UserError(
                f"data set {name} cannot be read ({reason_of(error, LINE_LIMIT)})"
            ) from error
    if classes := metadata.get("thing_classes"):
        return list(classes)
    raise UserError(
        f"data set {name} is registered without the names of its classes: add MetadataCatalog.get({name!r})"
        ".thing_classes = [...] to where it is registered"
    )


def _require_equal(first: str, classes: list[str], second: str, others: list[str]) -> None:
    """Raises a UserError if two data sets have different classes, or the same ones in another order."""
    if classes != others:
        same = [one == other for one, other in zip(classes, others)]
        number = same.index(False) if False in same else len(same)
        raise UserError(
            f"data sets {first} and {second} have different classes, from class number {number} on: "
            f"{preview(classes[number:]) or 'none'} and {preview(others[number:]) or 'none'}"
        )


def check_classes(cfg: DictConfig, *, train: bool) -> list[str]:
    """Compares the classes of a config's data with each other, and their number with that of its model.

    Args:
        train: whether the training data counts, too.

    Returns:
        The names of the classes.

    Raises:
        UserError: there is a difference, or a data set has no class names.
    """
    classes = class_names(cfg.dataloader.test)
    if train:
        names = [
            str(loader.dataset.names) for loader in (cfg.dataloader.train, cfg.dataloader.test)
        ]
        _require_equal(names[0], class_names(cfg.dataloader.train), names[1], classes)
    part = "roi_heads" if "roi_heads" in cfg.model else ""
    for key, number in _class_counts(
        cfg.model[part] if part else cfg.model, f"model.{part}" if part else "model"
    ):
        agnostic = number == 1 and key.endswith(
            "mask_head.num_classes"
        )  # one mask for whatever class
        if number != len(classes) and not agnostic:
            raise UserError(
                f"the model is for {number} classes, the data has {len(classes)}: {key}={len(classes)}"
            )
    return classes


def _class_counts(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The numbers of classes in the config of a detector's heads, the one that others refer to first."""
    children = (
        list(node)
        if isinstance(node, DictConfig)
        else range(len(node))
        if isinstance(node, ListConfig)
        else ()
    )
    if "num_classes" in children:
        yield f"{key}.num_classes", node.num_classes
    for name in children:
        yield from _class_counts(node[name], f"{key}.{name}")
