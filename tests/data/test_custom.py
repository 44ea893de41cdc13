"""Custom datasets in all supported formats and layouts."""

import json
import logging
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import gpvit.data
import numpy as np
import pytest
import torch
from coco_files import evaluate
from conftest import REPOSITORY
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from gpvit.cli import check_data
from gpvit.config import load_config
from gpvit.data.datasets import coco, custom
from gpvit.data.datasets.cache import write_folder
from gpvit.data.datasets.coco_rules import grouped
from gpvit.data.datasets.file_tree import Tree
from gpvit.data.datasets.image_root import find_image_root
from gpvit.data.datasets.splits import split_images
from gpvit.data.datasets.summary import table
from gpvit.data.image_io import read_image
from gpvit.evaluation.coco_evaluation import coco_fingerprint
from gpvit.utils.errors import UserError
from gpvit.utils.fingerprint import dataset_fingerprint
from PIL import Image
from pycocotools import mask as mask_api

CLASSES = ["cross", "disc", "triangle"]  # sorted, as labelme's are
SPLITS = ("train", "val")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpvit" / "data"


@pytest.fixture(scope="session")
def source(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic dataset in the default layout, with single-polygon objects only.

    All formats can represent these.
    """
    folder = tmp_path_factory.mktemp("source") / "data"
    shutil.copytree(synthetic_data / "images", folder / "images")
    categories = []
    for id, name in enumerate(CLASSES, start=1):
        categories.append({"id": id, "name": name, "supercategory": "shape"})
    for split, content in contents(synthetic_data).items():
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        kept = []
        for item in content["annotations"]:
            polygons = item["segmentation"]
            if isinstance(polygons, list) and len(polygons) == 1:
                points = points_of(item)
                item["category_id"] = 1 + CLASSES.index(names[item["category_id"]])
                item["bbox"] = [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]
                kept.append(item)
        content = {"images": content["images"], "annotations": kept, "categories": categories}
        write(folder / "annotations" / f"{split}.json", content)
    return folder


def contents(source: Path) -> dict[str, dict]:
    """Return the COCO files of a dataset in the default layout, by split."""
    folder = source / "annotations"
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in SPLITS}


def points_of(item: dict) -> np.ndarray:
    """Return the polygon of an annotation, (n, 2)."""
    return np.reshape(item["segmentation"][0], (-1, 2))


def annotations_of(content: dict, image: dict) -> list[dict]:
    return [item for item in content["annotations"] if item["image_id"] == image["id"]]


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def copy_images(source: Path, content: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        shutil.copy(source / "images" / image["file_name"], folder)


# Layouts: functions that write the source in another format or layout to a folder.

Build = Callable[[Path, Path], None]


def coco_layout(json_files: str, images: str, prefix: str = "") -> Build:
    """COCO files. SPLIT in the arguments is replaced by train and val."""

    def build(source: Path, folder: Path) -> None:
        for split, content in contents(source).items():
            copy_images(source, content, folder / images.replace("SPLIT", split))
            for image in content["images"]:
                image["file_name"] = prefix.replace("SPLIT", split) + image["file_name"]
            write(folder / json_files.replace("SPLIT", split), content)

    return build


def roboflow(source: Path, folder: Path) -> None:
    names = {"train": "train", "val": "valid"}
    for split, content in contents(source).items():
        split_folder = folder / names[split]
        copy_images(source, content, split_folder)
        content["categories"].insert(0, {"id": 0, "name": "shape", "supercategory": "none"})
        write(split_folder / "_annotations.coco.json", content)


def called_test(source: Path, folder: Path) -> None:
    coco_layout("SPLIT/labels.json", "SPLIT")(source, folder)
    (folder / "val").rename(folder / "test")


def merged(source: Path) -> dict:
    """Return both splits as one COCO file."""
    train, val = contents(source).values()
    for key, id_key in (("images", "id"), ("annotations", "id"), ("annotations", "image_id")):
        for entry in val[key]:
            entry[id_key] += 1000
    both = {key: train[key] + val[key] for key in ("images", "annotations")}
    return train | both


def one_file(source: Path, folder: Path) -> None:
    shutil.copytree(source / "images", folder / "images")
    write(folder / "all.json", merged(source))


def yolo_layout(images: str, labels: str, **entries: object) -> Build:
    """YOLO segmentation; ``entries`` are those of the YAML file."""

    def build(source: Path, folder: Path) -> None:
        for split, content in contents(source).items():
            copy_images(source, content, folder / images.replace("SPLIT", split))
            for image in content["images"]:
                name = Path(image["file_name"]).with_suffix(".txt").name
                path = folder / labels.replace("SPLIT", split) / name
                write(path, yolo_lines(annotations_of(content, image), image))
        write(folder / "data.yaml", {"names": CLASSES} | entries)

    return build


def yolo_lines(items: list[dict], image: dict) -> str:
    """Return one line per object: class number, x, y, x, y, ... in normalized coordinates."""
    lines = []
    for item in items:
        normalized = points_of(item) / [image["width"], image["height"]]
        numbers = " ".join(f"{value:.6f}" for value in normalized.ravel())
        lines.append(f"{item['category_id'] - 1} {numbers}")
    return "\n".join(lines) + "\n"


def labelme_layout(images: str) -> Build:
    def build(source: Path, folder: Path) -> None:
        for split, content in contents(source).items():
            split_folder = folder / images.replace("SPLIT", split)
            copy_images(source, content, split_folder)
            for image in content["images"]:
                path = split_folder / Path(image["file_name"]).with_suffix(".json").name
                write(path, labelme_content(annotations_of(content, image), image))

    return build


def labelme_content(items: list[dict], image: dict) -> dict:
    shapes = []
    for item in items:
        label = CLASSES[item["category_id"] - 1]
        shapes.append(labelme_shape(label, "polygon", *points_of(item).tolist()))
    return {
        "version": "5.5.0",
        "shapes": shapes,
        "imagePath": image["file_name"],
        "imageData": None,
        "imageHeight": image["height"],
        "imageWidth": image["width"],
    }


def labelme_shape(label: str, kind: str, *points: list[float], group: int | None = None) -> dict:
    return {"label": label, "shape_type": kind, "points": points, "group_id": group}


SPLIT = {
    "default": coco_layout("annotations/SPLIT.json", "images"),
    "folders in images": coco_layout("annotations/SPLIT.json", "images/SPLIT"),
    "COCO": coco_layout("annotations/instances_SPLIT2017.json", "SPLIT2017"),
    "COCO in images": coco_layout("annotations/instances_SPLIT2017.json", "images/SPLIT2017"),
    "anywhere": coco_layout("labels/final_SPLIT.json", "pictures/2024/may"),
    "with folders in the names": coco_layout("SPLIT.json", "photos/SPLIT", prefix="SPLIT/"),
    "with dots in the names": coco_layout("SPLIT/labels.json", "images", prefix="./"),
    "a test split": called_test,
    "Roboflow": roboflow,
    "YOLO by Roboflow": yolo_layout(
        "SPLIT/images", "SPLIT/labels", train="../train/images", val="../val/images"
    ),
    "YOLO by Ultralytics": yolo_layout(
        "images/SPLIT", "labels/SPLIT", names=dict(enumerate(CLASSES))
    ),
    "YOLO, folders of other names": yolo_layout(
        "SPLIT_a/images", "SPLIT_a/labels", path=".", train="train_a", val="val_a/images"
    ),
    "labelme": labelme_layout("SPLIT"),
}
UNSPLIT = {
    "one file": one_file,
    "YOLO": yolo_layout("images", "labels", train="images", val="images"),
    "YOLO in one folder": yolo_layout("data", "data"),
    "labelme": labelme_layout("."),
}


# Contents of a dataset, to compare.


def objects_of(data: Path, split: str) -> dict[str, list[tuple]]:
    """Return the objects of a split by image name: class, box, and mask as RLE."""
    found = {}
    for record in custom.read(str(data), split).records():
        size, objects = (record["height"], record["width"]), []
        for item in record["annotations"]:
            mask = mask_api.merge(mask_api.frPyObjects(item["segmentation"], *size))["counts"]
            objects.append((item["category_id"], tuple(np.round(item["bbox"], 2).tolist()), mask))
        found[Path(record["file_name"]).name] = sorted(objects)
        assert Image.open(record["file_name"]).size == size[::-1]
    return found


def objects_by_split(data: Path) -> dict[str, dict[str, list[tuple]]]:
    return {split: objects_of(data, split) for split in SPLITS}


def all_objects(data: Path) -> dict[str, list[tuple]]:
    return objects_of(data, "train") | objects_of(data, "val")


def file_paths(data: Path, split: str) -> list[Path]:
    """Return the paths of the images of a split."""
    return [Path(record["file_name"]) for record in custom.read(str(data), split).records()]


def modification_times(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


HELD_OUT = "2 of 12 images are held out for validation, by seed 0 and their names"


@pytest.mark.parametrize("name", SPLIT)
def test_all_layouts_give_the_same_records(source: Path, tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    SPLIT[name](source, data)
    before = modification_times(data)
    for split in SPLITS:
        assert list(custom.read(str(data), split).categories.values()) == CLASSES
        assert objects_of(data, split) == objects_of(source, split)
    assert modification_times(data) == before


@pytest.mark.parametrize("name", UNSPLIT)
def test_layouts_without_splits_are_split_without_changing_records(
    source: Path, tmp_path: Path, name: str
) -> None:
    data = tmp_path / "data"
    UNSPLIT[name](source, data)
    before = modification_times(data)
    parts = objects_by_split(data)
    assert len(parts["train"]) == 10 and len(parts["val"]) == 2  # a fifth of 12
    assert parts["train"] | parts["val"] == all_objects(source)
    assert HELD_OUT in custom.find_layout(str(data)).notes
    assert modification_times(data) == before


def test_split_of_a_single_file_depends_on_names_only(source: Path, tmp_path: Path) -> None:
    content, parts = merged(source), []
    for number, reverse in enumerate((False, True)):
        folder = tmp_path / str(number)
        shutil.copytree(source / "images", folder / "images")
        content["images"].sort(key=lambda image: image["id"], reverse=reverse)
        json_file = folder / "annotations" / "all.json"
        write(json_file, content)
        parts += [objects_by_split(folder), objects_by_split(json_file)]
    assert parts[0] == parts[1] == parts[2] == parts[3]
    assert not parts[0]["train"].keys() & parts[0]["val"].keys()


def test_single_file_named_train_is_split(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "images", tmp_path / "data" / "images")
    write(tmp_path / "data" / "annotations" / "train.json", merged(source))
    layout = custom.find_layout(str(tmp_path / "data"))
    assert layout.splits.keys() == {"train", "val"}
    assert len(layout.read("train").images) == 10 and len(layout.read("val").images) == 2
    assert HELD_OUT in layout.notes


@pytest.mark.parametrize("normalize_masks", [False, True])
def test_normalized_boxes_in_a_single_file_are_recomputed_from_masks(
    source: Path, tmp_path: Path, normalize_masks: bool
) -> None:
    shutil.copytree(source / "images", tmp_path / "data" / "images")
    content = merged(source)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = {}
    for item in content["annotations"]:
        width, height = sizes[item["image_id"]]
        x, y, w, h = boxes[item["id"]] = item["bbox"]
        item["bbox"] = [x / width, y / height, w / width, h / height]
        if normalize_masks:
            item["segmentation"] = [(points_of(item) / [width, height]).ravel().tolist()]
    write(tmp_path / "data" / "all.json", content)
    layout = custom.find_layout(str(tmp_path / "data"))
    for split in SPLITS:
        with pytest.raises(UserError, match=r"are they normalized\?"):
            layout.read(split, masks=normalize_masks)
        if not normalize_masks:
            for objects in layout.read(split).objects.values():
                for item in objects:
                    assert item["bbox"] == pytest.approx(boxes[item["id"]])


def test_val_json_alone_is_a_validation_split(source: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    shutil.copytree(source / "images", tmp_path / "images")
    shutil.copy(source / "annotations" / "val.json", tmp_path / "annotations")
    split = custom.SplitFiles(tmp_path / "annotations" / "val.json", tmp_path / "images")
    assert custom.find(str(tmp_path)) == {"val": split}


def test_held_out_images_never_change() -> None:
    names = [f"{number}.jpg" for number in range(12)]
    for ordered in (names, names[::-1]):
        parts, _ = split_images(dict.fromkeys(ordered))
        assert parts["val"] == {"4.jpg", "0.jpg"}  # users rely on these


def test_at_least_one_image_is_held_out() -> None:
    parts, _ = split_images({"a.jpg": None, "b.jpg": None})
    assert len(parts["train"]) == len(parts["val"]) == 1
    with pytest.raises(UserError, match="1 image cannot be split"):
        split_images({"a.jpg": None})


def test_variants_of_an_image_are_in_the_same_split() -> None:
    names = []
    for number in range(10):
        names += [f"{number}_jpg.rf.{variant}.jpg" for variant in "abc"]
    parts, _ = split_images(dict.fromkeys(names))
    train_originals = {name[0] for name in parts["train"]}
    val_originals = {name[0] for name in parts["val"]}
    assert len(parts["val"]) == 6 and not train_originals & val_originals


def test_variants_of_a_single_image_are_not_split() -> None:
    names = ["a_jpg.rf.1.jpg", "a_jpg.rf.2.jpg", "a_jpg.rf.3.jpg"]
    with pytest.raises(UserError, match="3 images that are variants of the same one .* be split"):
        split_images(dict.fromkeys(names))


def test_conversion_is_repeated_only_if_a_file_changes(
    source: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpvit.data.datasets import yolo

    data = tmp_path / "data"
    yolo_layout("images", "labels")(source, data)
    first = custom.find(str(data))
    folder = first["train"].json_file.parent
    assert folder.parent == cache and folder.name.startswith("data-")
    with monkeypatch.context() as patch:
        patch.setattr(yolo, "from_yolo", lambda *arguments: pytest.fail("it is converted again"))
        assert custom.find(str(data)) == first
    labels = sorted((data / "labels").iterdir())[0]
    lines = [f"2 0.1 0.1 0.5 0.1 0.5 0.{end}\n" for end in (5, 6, 7)]
    labels.write_text("".join(lines))
    assert custom.find(str(data)) != first
    objects = all_objects(data)[labels.with_suffix(".png").name]
    assert [category for category, *_ in objects] == [2, 2, 2]


def boxes_content(images: dict[int, str], box: list[float]) -> dict:
    """Return a COCO file without masks: 9 x 9 images by ID, each with the same box."""
    entries, objects = [], []
    for id, name in images.items():
        entries.append({"id": id, "file_name": name, "width": 9, "height": 9})
        objects.append({"id": id, "image_id": id, "category_id": 1, "bbox": box})
    categories = [{"id": 1, "name": "x"}]
    return {"images": entries, "annotations": objects, "categories": categories}


def test_datasets_of_equal_names_sizes_and_times_have_separate_caches(tmp_path: Path) -> None:
    images = {id: f"{id}.png" for id in range(5)}
    for folder, height in (("a", 4), ("b", 5)):
        json_file = tmp_path / folder / "data.json"
        write(json_file, boxes_content(images, [1, 1, 4, height]))
        os.utime(json_file, ns=(0, 0))
        for name in images.values():
            Image.new("RGB", (9, 9)).save(tmp_path / folder / name)
        file = custom.read(str(json_file), "train", masks=False)
        for [item] in file.objects.values():
            assert item["bbox"][3] == height


def test_of_simultaneous_conversions_the_first_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "new", {"a": "first"})
    write_folder(tmp_path / "new", {"a": "second"})
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
    assert (tmp_path / "new" / "a").read_text() == '"first"'


def test_moving_a_dataset_keeps_its_fingerprint(source: Path, tmp_path: Path) -> None:
    yolo_layout("images", "labels")(source, tmp_path / "before")
    before = dataset_fingerprint(custom.read(str(tmp_path / "before"), "train").records(), [])
    shutil.copytree(tmp_path / "before", tmp_path / "after", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "before")
    after = dataset_fingerprint(custom.read(str(tmp_path / "after"), "train").records(), [])
    assert after == before


def test_perfect_detections_of_converted_data_have_ap_100(source: Path, tmp_path: Path) -> None:
    yolo_layout("images", "labels")(source, tmp_path / "data")

    def perfect(image: dict, api, name: str) -> Instances:
        found = api.loadAnns(api.getAnnIds(image["id"]))
        boxes = torch.tensor([item["bbox"] for item in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.tensor(np.array(list(map(api.annToMask, found))), dtype=torch.bool)
        classes = torch.tensor([item["category_id"] - 1 for item in found])
        size = (image["height"], image["width"])
        scores = torch.ones(len(found))
        return Instances(
            size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes, pred_masks=masks
        )

    results = evaluate(tmp_path / "data", perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("build", [yolo_layout("images", "labels"), labelme_layout(".")])
def test_conversion_preserves_outlines_of_photos(
    real_data: Path, tmp_path: Path, build: Build
) -> None:
    source = tmp_path / "source"
    shutil.copytree(real_data / "fruits_nuts", source)
    for split, content in contents(source).items():
        for entry in content["categories"]:
            entry["name"] = CLASSES[entry["id"] - 1]
        write(source / "annotations" / f"{split}.json", content)
    build(source, tmp_path / "data")
    originals = polygons_by_image(source)
    ious = []
    for split in custom.find(str(tmp_path / "data")):
        for record in custom.read(str(tmp_path / "data"), split).records():
            size = (record["height"], record["width"])
            polygons = originals[Path(record["file_name"]).name]
            assert len(record["annotations"]) == len(polygons)
            for item, [original] in zip(record["annotations"], polygons):
                a, b = mask_api.frPyObjects([item["segmentation"][0], original], *size)
                ious.append(mask_api.iou([a], [b], [0])[0, 0])
    assert len(ious) == 165 and min(ious) > 0.999


def polygons_by_image(source: Path) -> dict[str, list]:
    found: dict[str, list] = {}
    for content in contents(source).values():
        for image in content["images"]:
            for item in annotations_of(content, image):
                found.setdefault(image["file_name"], []).append(item["segmentation"])
    return found


def test_labelme_groups_are_one_object_and_rectangles_have_no_mask(tmp_path: Path) -> None:
    parts = [[1, 1], [9, 1], [9, 9]], [[20, 1], [29, 1], [29, 9.5]]
    shapes = [
        labelme_shape("cat", "polygon", *parts[0], group=4),
        labelme_shape("cat", "polygon", *parts[1], group=4),
        labelme_shape("dog", "polygon", *parts[0], group=4),
        labelme_shape("dog", "rectangle", [9, 9], [1, 2]),
        labelme_shape("dog", "circle", [3, 3], [4, 4]),
    ]
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}.json", {"shapes": shapes, "imagePath": f"..\\photos\\{name}.png"})
    layout = custom.find_layout(str(tmp_path))
    assert "left out: 2 shapes without an outline (circle)" in layout.notes
    [record] = layout.read("val", masks=False).records()
    boxes = [(item["category_id"], item["bbox"]) for item in record["annotations"]]
    assert boxes == [(0, [1, 1, 28, 8.5]), (1, [1, 1, 8, 8]), (1, [1, 2, 8, 7])]
    content = json.loads(layout.splits["val"].json_file.read_text())
    assert [len(item.get("segmentation", [])) for item in content["annotations"]] == [2, 1, 0]
    assert [item["area"] for item in content["annotations"]] == [32 + 38.25, 32, 56]
    with pytest.raises(UserError, match="1 annotations have no segmentation"):
        layout.read("val")


def test_yolo_boxes_scores_and_images_without_labels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / f"{name}.png")
    box, box_with_score = "1 0.5 0.5 0.5 0.5\n", "0 0.5 0.5 0.5 0.5 0.9\n"
    polygon_with_score = "0 0 0 0.5 0 0.5 0.5 0.25\n"
    write(tmp_path / "labels" / "a.txt", f"{box}\n{box_with_score}{polygon_with_score}")
    write(tmp_path / "labels" / "b.txt", "")
    write(tmp_path / "d.yml", "names: {0: cat, 1: dog}\n")
    layout = custom.find_layout(str(tmp_path))
    note = "1 images have no label file and are treated as images without objects: images/c.png"
    assert note in layout.notes
    found = {}
    for split in SPLITS:
        content = json.loads(layout.splits[split].json_file.read_text())
        for image in content["images"]:
            found[image["file_name"]] = annotations_of(content, image)
    assert [len(found[f"images/{name}.png"]) for name in "abc"] == [3, 0, 0]
    items = found["images/a.png"]
    assert [item["bbox"] for item in items] == [[10, 5, 20, 10], [10, 5, 20, 10], [0, 0, 20, 10]]
    assert [item["category_id"] for item in items] == [2, 1, 1]
    assert [item.get("segmentation") for item in items] == [None, None, [[0, 0, 20, 0, 20, 10]]]


def test_images_that_the_yaml_file_does_not_list_are_not_used(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    yolo_layout("SPLIT/images", "SPLIT/labels", train="train/images", test="val")(source, data)
    for folder in ("images", "labels"):
        shutil.copytree(data / "train" / folder, data / "old" / folder)
    for given in (data, data / "data.yaml"):
        assert len(objects_of(given, "train")) == 8 and len(objects_of(given, "val")) == 4


def test_size_of_an_image_respects_exif_rotation(tmp_path: Path) -> None:
    from gpvit.data.datasets.to_coco import size_of

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    for suffix in ("jpg", "png", "tif", "webp"):
        path = tmp_path / f"rotated.{suffix}"
        Image.new("RGB", (40, 20)).save(path, exif=exif)
        assert size_of(path) == read_image(path).shape[:2] == (40, 20)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match="broken.jpg: cannot be read"):
        size_of(tmp_path / "broken.jpg")


@pytest.mark.parametrize("used", [False, True])
def test_group_category_of_roboflow_is_ignored_unless_it_has_objects(
    tmp_path: Path, used: bool
) -> None:
    categories = [
        {"id": 0, "name": "fruit", "supercategory": "none"},
        {"id": 1, "name": "fig", "supercategory": "fruit"},
        {"id": 2, "name": "fruit", "supercategory": "fruit"},
    ]
    content = boxes_content({1: "a.png"}, [1, 1, 4, 4]) | {"categories": categories}
    content["annotations"][0]["category_id"] = 0 if used else 2
    write(tmp_path / "all.json", content)
    file = coco.read(tmp_path / "all.json", tmp_path, masks=False)
    assert list(file.categories.values()) == (["fruit"] if used else []) + ["fig", "fruit"]
    assert ("group" in grouped(file.problems)) is not used


# Damage: functions that change a dataset.

Damage = Callable[[Path], object]


def put(name: str, content: object) -> Damage:
    return lambda folder: write(folder / name, content)


def remove(name: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return damage


def copy(name: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, folder / other)
        else:
            shutil.copy(folder / name, folder / other)

    return damage


def link_to_nowhere(folder: Path) -> None:
    (folder / "images" / "gone.png").symlink_to("nowhere")


COCO_2017 = "annotations/instances_train2017.json"
YAML = {"names": CLASSES}


@pytest.mark.parametrize(
    ("build", "damage", "message"),
    [
        (
            SPLIT["default"],
            remove("annotations"),
            "no annotations are recognized in 12 images; supported are",
        ),
        (
            SPLIT["default"],
            remove("images"),
            "8 of its 8 images are not in .* and its subfolders: train_00000",
        ),
        (
            SPLIT["default"],
            remove("annotations/train.json"),
            "there are no annotations for train, only .*/val.json",
        ),
        (
            SPLIT["COCO"],
            copy(COCO_2017, "annotations/instances_train2014.json"),
            "cannot tell which of annotations/instances_train2014.json, .* is for train",
        ),
        (
            SPLIT["folders in images"],
            put("annotations/val.json", "{"),
            "val.json is not valid JSON .*; fix it, or move it",
        ),
        (
            SPLIT["COCO"],
            put("data.yaml", YAML),
            "COCO in annotations/instances_train2017.*; YOLO in data.yaml; give",
        ),
        (
            SPLIT["anywhere"],
            copy("pictures", "old"),
            "in several folders, .*old/2024/may, .*pictures/2024/may; keep",
        ),
        (
            SPLIT["anywhere"],
            remove("pictures/2024/may/val_00001.png"),
            "1 of its 4 images are not in .*val_00001",
        ),
        (
            SPLIT["labelme"],
            put("val/val_00001.json", '{"shapes'),
            "cannot be used, .* cannot be read as a labelme file",
        ),
        (
            SPLIT["labelme"],
            put("val/val_00001.json", '["shapes"]'),
            "val_00001.json: cannot be read as .* .TypeError",
        ),
        (
            SPLIT["labelme"],
            remove("val/val_00001.png"),
            "val_00001.json: its image, val_00001.png, does not exist",
        ),
        (
            SPLIT["labelme"],
            copy("val/val_00001.json", "val/again.json"),
            "val_00001.json: belongs to the same image as .*again",
        ),
        (UNSPLIT["YOLO"], put("data.yaml", YAML | {"kpt_shape": [3, 2]}), "describes keypoints"),
        (UNSPLIT["YOLO"], put("data.yaml", "names"), "data.yaml: it has no keys"),
        (UNSPLIT["YOLO"], put("more.yaml", YAML), "data.yaml, more.yaml all have class names"),
        (UNSPLIT["YOLO"], link_to_nowhere, "No such file .*gone.png"),
        (UNSPLIT["YOLO"], remove("labels"), "has no images with labels"),
        (UNSPLIT["YOLO"], put("images/val_00001.png", "no image"), "val_00001.png: cannot be read"),
    ],
)
def test_ambiguous_or_damaged_dataset_raises_in_one_line(
    source: Path, tmp_path: Path, build: Build, damage: Damage, message: str
) -> None:
    build(source, tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(UserError, match=message) as error:
        for split in SPLITS:
            custom.read(str(tmp_path / "data"), split)
    assert "\n" not in str(error.value)


def deny_access(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Deny reading the paths with this end. Permissions would not stop tests that run as root."""

    def denying(function: Callable) -> Callable:
        def call(path: object = ".", *arguments: object, **options: object) -> object:
            if not isinstance(path, int) and os.fspath(path).endswith(end):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "scandir", denying(os.scandir))
    monkeypatch.setattr(Path, "open", denying(Path.open))


def test_too_long_path_raises_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^--data aaa.*: File name too long$"):
        custom.find_layout("a" * 300)


@pytest.mark.parametrize(
    ("build", "end", "message"),
    [
        (SPLIT["folders in images"], "images/val", "cannot list .*images/val: Permission denied"),
        (SPLIT["default"], "images", "cannot list .*images: Permission denied; make it readable"),
        (UNSPLIT["YOLO"], "a.log.txt", "cannot read .*a.log.txt: Permission denied"),
        (SPLIT["COCO"], "instances_val2017.json", "val2017.json cannot be read .Perm.*; fix it"),
        (SPLIT["labelme"], "val_00001.json", "val_00001.json: cannot be read as .*PermissionE"),
    ],
)
def test_unreadable_file_or_folder_raises_with_its_name(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: Build,
    end: str,
    message: str,
) -> None:
    build(source, tmp_path / "data")
    write(tmp_path / "data" / "a.log.txt", "output of another program")
    deny_access(monkeypatch, end)
    with pytest.raises(UserError, match=message) as error:
        custom.find_layout(str(tmp_path / "data")).read("val")
    assert "\n" not in str(error.value)


def test_folder_that_can_only_be_listed_raises_with_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SPLIT["folders in images"](source, tmp_path / "data")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("images/val"))
    with pytest.raises(UserError, match=r"cannot open the files in .*images/val; make it"):
        custom.find_layout(str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "all.json: not in COCO format"),
        ({"shapes": []}, "no categories"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}]}, "no categories"),
        ({"images": [{"id": 1}], "categories": []}, "no categories"),
    ],
)
def test_invalid_json_file_raises_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    write(tmp_path / "all.json", content)
    with pytest.raises(UserError, match=message) as error:
        custom.find(str(tmp_path / "all.json"))
    assert "\n" not in str(error.value)


def test_only_conversion_needs_supervision(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("labelme", "to_coco", "yolo"):
        monkeypatch.delitem(sys.modules, f"gpvit.data.datasets.{name}", raising=False)
        monkeypatch.delattr(gpvit.data.datasets, name, raising=False)
    monkeypatch.setitem(sys.modules, "supervision", None)
    SPLIT["labelme"](source, tmp_path / "data")
    with pytest.raises(UserError, match="pip install 'supervision"):
        custom.find(str(tmp_path / "data"))
    assert custom.find(str(source))["train"].json_file.exists()


def test_of_folders_with_all_images_the_one_named_as_the_split_or_images_is_used(
    source: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    content = contents(source)["val"]
    for folder in ("pictures/train", "pictures/val", "shots/images", "shots/masks"):
        copy_images(source, content, data / folder)
    for split in SPLITS:
        write(data / "labels" / f"{split}.json", content)
    tree = Tree(data / "pictures")
    for split in SPLITS:
        found = find_image_root(data / "labels" / f"{split}.json", tree, split)
        assert found == data / "pictures" / split
    found = find_image_root(data / "labels" / "val.json", Tree(data / "shots"), "val")
    assert found == data / "shots" / "images"


def test_folder_may_have_a_single_split(source: Path, tmp_path: Path) -> None:
    SPLIT["COCO"](source, tmp_path)
    (tmp_path / "annotations" / "instances_train2017.json").unlink()
    assert custom.find(str(tmp_path)).keys() == {"val"}
    with pytest.raises(UserError, match="no annotations for train, only .*instances_val2017.json"):
        custom.read(str(tmp_path), "train")


def test_summary_is_logged_before_the_first_use(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SPLIT["Roboflow"](source, tmp_path / "data")
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
    gpvit.data.use_folder(cfg, str(tmp_path / "data"), train=True)
    assert cfg.model.roi_heads.num_classes == 3
    with caplog.at_level(logging.INFO, "gpvit.data"):
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            DatasetCatalog.get(loader.dataset.names)
    [entry] = [entry for entry in caplog.records if entry.name == "gpvit.data.datasets.register"]
    lines = entry.getMessage().splitlines()
    assert lines[0] == f"{tmp_path / 'data'}: COCO format by Roboflow"
    rows = {}
    for line in lines:
        if line[-1].isdigit():
            label, *numbers = line.rsplit(maxsplit=2)
            rows[label.strip()] = list(map(int, numbers))
    classes, widths = {split: [] for split in SPLITS}, []  # of each object and image
    for split, content in contents(source).items():
        classes[split] += [item["category_id"] for item in content["annotations"]]
        widths += [image["width"] for image in content["images"]]
    assert rows["images"] == [8, 4]
    assert rows["objects"] == list(map(len, classes.values()))
    for id, name in enumerate(CLASSES, start=1):
        assert rows[name] == [found.count(id) for found in classes.values()]
    assert f"images are {min(widths)} to {max(widths)} pixels wide" in lines[-1]


def test_table_has_the_most_frequent_classes_and_those_without_objects() -> None:
    file = coco.CocoFile("a.json", "", categories={id: f"class {id}" for id in range(30)})
    file.images = {1: {"file_name": "a.png", "height": 5, "width": 7}}
    file.objects = {1: []}
    for id in range(28):
        file.objects[1] += [{"category_id": id, "iscrowd": 0}] * (id + 1)
    file.objects[1].append({"category_id": 29, "iscrowd": 1})
    lines = table({"train": file}).splitlines()
    assert lines[5].split() == ["class", "27", "28"] and lines[6].split() == ["class", "26", "27"]
    assert lines[-3].split() == ["and", "10", "more", "classes", str(sum(range(1, 9)))]
    assert lines[-2:] == [
        "classes without objects in train: class 28, class 29",
        "images are 7 pixels wide and 5 high",
    ]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("Roboflow", "COCO format by Roboflow"),
        ("YOLO by Ultralytics", "YOLO format, converted to COCO format in "),
    ],
)
def test_check_data_accepts_all_layouts(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, format: str
) -> None:
    SPLIT[name](source, tmp_path / "data")
    assert check_data.main(["--data", str(tmp_path / "data")]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path / 'data'}: {format}" in text
    assert "images                   8      4" in text
    image = next((tmp_path / "data").rglob("val_00001.png"))
    image.write_bytes(image.read_bytes()[:100])
    assert check_data.main(["--data", str(tmp_path / "data")]) == 1
    assert "val_00001.png: cannot be read" in capsys.readouterr().out


def test_check_data_finds_the_images_of_a_single_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    SPLIT["anywhere"](source, tmp_path / "data")
    json_file = tmp_path / "data" / "labels" / "final_train.json"
    message = "8 of its 8 images are not in .*; give the folder of its images by --images DIR"
    with pytest.raises(UserError, match=message):
        check_data.main(["--data", str(json_file)])
    json_file = shutil.move(json_file, tmp_path / "data")
    assert check_data.main(["--data", str(json_file)]) == 0
    assert "2 of 8 images are held out for validation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("names: &a [x]\nb: [*a, *a]\n", "line 1: has an anchor or alias"),
        ("names: [a]\nb: " + "[" * 1000, "line 2: is nested more than 50 levels deep"),
        ("names: [a]\nb: " + "1" * 10_000, "line 2: has a number of 10000 characters"),
    ],
)
def test_malicious_yaml_file_raises_in_one_line(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(UserError, match=reason) as raised:
        custom.find_layout(str(tmp_path / "data.yaml"))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500 + len(str(tmp_path))


def test_dataset_name_of_255_bytes_can_be_cached(source: Path, tmp_path: Path) -> None:
    json_file = tmp_path / ("é" * 125 + ".json")
    write(json_file, merged(source))
    shutil.copytree(source / "images", tmp_path / "images")
    assert custom.find_layout(str(json_file)).splits.keys() == {"train", "val"}


# Image names as programs write them.

NAMES = ["a 0.png", "b%1.png", "é2.png", "sub/c.png"]


def write_with_names(
    source: Path, folder: Path, names: dict[str, str], json_file: str = "annotations.json"
) -> None:
    """Write a COCO file whose image names differ from the files.

    Args:
        source: the dataset that images are taken from.
        folder: to write to.
        names: for each image, the path of the file and the name in the annotations.
        json_file: relative to the folder.
    """
    content = merged(source)
    content["images"] = content["images"][: len(names)]
    annotations = []
    for image, (path, written) in zip(content["images"], names.items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "images" / image["file_name"], folder / path)
        image["file_name"] = written
        annotations += annotations_of(content, image)
    content["annotations"] = annotations
    write(folder / json_file, content)


def by_windows(name: str) -> str:
    return name.replace("/", "\\")


WRITTEN = {
    "Windows": by_windows,
    "Windows, absolute": lambda name: "C:\\Users\\me\\photos\\" + by_windows(name),
    "X-AnyLabeling": lambda name: "..\\label\\" + by_windows(name),
    "Label Studio on Windows": lambda name: (
        "..\\..\\label-studio\\media\\upload\\4\\" + by_windows(name)
    ),
    "Label Studio": lambda name: "/data/upload/4/1a2b3c4d-" + Path(name).name,
    "Label Studio, local files": lambda name: (
        "/data/local-files/?d=" + quote(f"shots/{name}", safe="")
    ),
    "a URL": lambda name: "http://localhost:8080/data/upload/" + quote(name),
    "percent-encoded": quote,
    "percent-encoded backslashes": lambda name: quote(by_windows(name)),
    "another folder": lambda name: f"train/{name}",
    "absolute": lambda name: f"/home/me/photos/{name}",
    "double slashes": lambda name: f".//images//.//{name}",
    "a trailing space": lambda name: f"{name} ",
    "decomposed accents": lambda name: unicodedata.normalize("NFD", name),
}


@pytest.mark.parametrize("program", WRITTEN)
@pytest.mark.parametrize("layout", ["one file", "default"])
def test_names_as_programs_write_them_are_matched(
    source: Path, tmp_path: Path, program: str, layout: str
) -> None:
    data = tmp_path / "data"
    names = {f"images/{name}": WRITTEN[program](name) for name in NAMES}
    if layout == "one file":
        write_with_names(source, data, names)
        assert custom.find(str(data)).keys() == {"train", "val"}
        assert custom.find(str(data / "annotations.json")).keys() == {"train", "val"}
        files = [custom.read(str(data), split) for split in SPLITS]
    else:
        for split in SPLITS:
            write_with_names(source, data, names, f"annotations/{split}.json")
        files = [custom.read(str(data), "train")]
    found = {}
    for file in files:
        for record in file.records():
            found[record["image_id"]] = str(Path(record["file_name"]).relative_to(data))
    ids = [image["id"] for image in merged(source)["images"][: len(names)]]
    assert found == dict(zip(ids, names))
    for file in files:
        renamed = 0
        for id, image in file.images.items():
            written = file.written.get(id, image["file_name"])
            renamed += not (Path(file.image_root) / written).exists()
        kinds = [problem.kind for problem in file.problems]
        assert len(file.written) == kinds.count("image name") == renamed
        # The fingerprint is the same for the JSON file alone, without a search for images.
        assert coco_fingerprint(file) == coco_fingerprint(coco.read(file.path, ""))
    assert check_data.main(["--data", str(data)]) == 0


def test_existing_file_is_used_whatever_its_name(source: Path, tmp_path: Path) -> None:
    names = [
        "a%20b.png",
        "a b.png",
        "back\\slash.png",
        "#1 'two'\n\"x\" 😀.png",
        "%41.png",
        "A.png",
    ]
    write_with_names(source, tmp_path / "data", {f"images/{name}": name for name in names})
    for split in SPLITS:
        file = custom.read(str(tmp_path / "data"), split)
        assert not file.problems and not file.written
        assert {image["file_name"] for image in file.images.values()} <= set(names)


AMBIGUOUS = [
    (
        {"one/a.png": "x\\a.png", "two/a.png": "y\\b.png"},
        [r"x\\a.png (may be one/a.png, two/a.png)", r"y\\b.png"],
    ),
    (
        {"images/a.png": "one/a.png", "images/b.png": "two/a.png"},
        ["one/a.png (images/a.png may belong to another name)"],
    ),
    (
        {"images/a.png": "images/a.png", "images/b.png": "C:\\a.png"},
        ["C:\\a.png (images/a.png may belong to another"],
    ),
    (
        {"images/00000001-a.png": "00000002-a.png"},
        ["1 of its 1 images are not in", "00000002-a.png; searched for as written"],
    ),
    (
        {"images/a.png": "a.jpg"},
        ["a.jpg; searched for as written and by the last parts of their names"],
    ),
    ({".hidden/a.png": "C:\\a.png"}, ["C:\\a.png; searched"]),
]


@pytest.mark.parametrize(("names", "reasons"), AMBIGUOUS)
def test_names_of_several_images_or_none_raise(
    source: Path, tmp_path: Path, names: dict[str, str], reasons: list[str]
) -> None:
    write_with_names(source, tmp_path / "data", names)
    with pytest.raises(UserError) as error:
        custom.find_layout(str(tmp_path / "data"))
    for reason in reasons:
        assert reason.replace("\\\\", "\\") in str(error.value)


def test_image_with_the_longest_common_end_is_used(source: Path, tmp_path: Path) -> None:
    names = {"one/a.png": "D:\\shots\\one\\a.png", "two/a.png": "D:\\shots\\two\\a.png"}
    write_with_names(source, tmp_path / "data", names)
    for path in file_paths(tmp_path / "data", "train"):
        assert path.parent.name in ("one", "two")


def test_literal_reading_of_a_name_is_preferred(source: Path, tmp_path: Path) -> None:
    names = {"images/a%20b.png": "x\\a%20b.png", "images/a b.png": "x\\a b.png"}
    write_with_names(source, tmp_path / "data", names)
    found = {}
    for split in SPLITS:
        file = custom.read(str(tmp_path / "data"), split)
        for id, image in file.images.items():
            found[image["file_name"]] = file.written[id]
    assert found == names


def test_folder_of_the_json_file_then_that_of_the_split_then_images_is_preferred(
    source: Path, tmp_path: Path
) -> None:
    for split in SPLITS:
        names = {f"{split}/a.png": "D:\\a.png", f"{split}/b.png": "D:\\b.png"}
        write_with_names(source, tmp_path / "json folder", names, f"{split}/x.json")
        names = {f"im/{split}/a.png": "D:\\a.png"}
        write_with_names(source, tmp_path / "split", names, f"labels/{split}.json")
        names = {"images/a.png": "D:\\a.png"}
        write_with_names(source, tmp_path / "images", names, f"labels/{split}.json")
    write(tmp_path / "images" / "masks" / "a.png", "")
    for split in SPLITS:
        for data, folder in (("json folder", split), ("split", split), ("images", "images")):
            for path in file_paths(tmp_path / data, split):
                assert path.parent.name == folder


DELETED = {
    "a relative name": "train/a.png",
    "an absolute name": "C:\\data\\train\\a.png",
    "a percent-encoded name": "data%2Ftrain%2Fa.png",
}


@pytest.mark.parametrize("written", DELETED.values(), ids=DELETED)
def test_deleted_image_is_not_replaced_by_another_of_its_name(
    source: Path, tmp_path: Path, written: str
) -> None:
    data = tmp_path / "data"
    names = {"val/a.png": written, "train/b.png": "train/b.png"}
    write_with_names(source, data, names, "all.json")
    with pytest.raises(UserError, match=r"a\.png \(is not in that folder, .*; val/a.png may"):
        custom.find_layout(str(data))
    file = coco.read(data / "all.json", data, open_images=True)
    assert not file.written and file.problems[0].kind == "unreadable"
    # Without other images in the folder of the name, the images were moved, not deleted.
    (data / "train" / "b.png").rename(data / "val" / "b.png")
    (data / "train" / "notes.txt").write_text("all images are in val")
    assert custom.find_layout(str(data)).splits.keys() == {"train", "val"}


def test_name_of_a_file_outside_of_the_dataset_raises(source: Path, tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside" / "a.png"
    write(outside, "")
    for written in (str(outside), "../outside/a.png", "../../outside/a.png"):
        shutil.rmtree(data, ignore_errors=True)
        write_with_names(source, data, {"photos/a.png": written, "photos/b.png": "b.png"})
        if os.path.exists(data / written):
            with pytest.raises(UserError, match=r"a.png \(is a file outside of the dataset\)"):
                custom.find_layout(str(data))
        else:
            assert custom.find_layout(str(data)).splits


def test_absolute_name_or_wrong_parent_folder_is_matched_inside(
    source: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    inside = {str(data / "photos" / "a.png"), str(data / "photos" / "b.png")}
    for written in (str(data / "photos" / "a.png"), "../images/a.png"):
        shutil.rmtree(data, ignore_errors=True)
        write_with_names(source, data, {"photos/a.png": written, "photos/b.png": "b.png"})
        paths = [*file_paths(data, "train"), *file_paths(data, "val")]
        assert set(map(os.path.realpath, paths)) == inside


def test_absolute_name_in_the_default_layout_may_be_outside(source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "a.png"
    write(outside, "")
    names = {"images/a.png": str(outside)}
    for split in SPLITS:
        write_with_names(source, tmp_path / "data", names, f"annotations/{split}.json")
    assert file_paths(tmp_path / "data", "val") == [outside]


def test_check_data_finds_images_in_the_given_folder(source: Path, tmp_path: Path, capsys) -> None:
    names = {"shots/deep/a b.png": "D:\\x\\a%20b.png", "shots/c.png": "gone.png"}
    write_with_names(source, tmp_path, names, "labels/all.json")
    data = ["--data", str(tmp_path / "labels" / "all.json")]
    assert check_data.main([*data, "--images", str(tmp_path / "shots")]) == 1
    text = capsys.readouterr().out
    assert "note: 1 images do not exist under their names" in text
    assert "D:\\x\\a%20b.png is deep/a b.png" in text
    assert "gone.png: cannot be read: it does not exist" in text and "it was not found" in text
    assert check_data.main([*data, "--annotations-only"]) == 0


def test_check_data_finds_copies_of_images_in_both_splits(tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    for split, ids in {"train": (1, 2), "val": (3, 4)}.items():
        names = {id: f"{split}/{id}.png" for id in ids}
        write(data / f"{split}.json", boxes_content(names, [1, 1, 4, 4]))
        (data / split).mkdir()
        for id, name in names.items():  # 1 and 3 are the same image, 2 and 4 are black
            Image.fromarray(pixels * (id % 2)).save(data / name)
    assert check_data.main(["--data", str(data), "--boxes"]) == 0
    text = capsys.readouterr().out
    assert "note: 1 images are in both train and val\n" in text
    assert f"image 1 (train/1.png, the same as {data}/val/3.png)" in text
    assert check_data.main(["--data", str(data), "--boxes", "--annotations-only"]) == 0
    assert "in both train and val" not in capsys.readouterr().out


def same_name(data: Path) -> str:
    """Let both splits of the default layout name the same file."""
    for file in (data / "images").rglob("*.png"):
        shutil.move(file, data / "images" / file.name)
    (data / "images" / "train").rmdir()
    (data / "images" / "val").rmdir()
    return "./train_00000.png"


def linked_file(data: Path) -> str:
    link = data / "images" / "val" / "val_00001.png"
    link.unlink()
    link.symlink_to(data / "images" / "train" / "train_00000.png")
    return "val_00001.png"


def linked_folder(data: Path) -> str:
    shutil.rmtree(data / "images" / "val")
    (data / "images" / "val").symlink_to(data / "images" / "train")
    return "train_00000.png"


@pytest.mark.parametrize("share", [same_name, linked_file, linked_folder])
def test_images_in_both_splits_are_reported(
    source: Path,
    tmp_path: Path,
    share: Callable[[Path], str],
    capsys,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = tmp_path / "data"
    SPLIT["folders in images"](source, data)
    content = contents(data)["val"]
    content["images"] = content["images"][:1]
    [image] = content["images"]
    content["annotations"] = annotations_of(content, image)
    image["file_name"] = share(data)
    write(data / "annotations" / "val.json", content)
    check_data.main(["--data", str(data), "--annotations-only"])
    text = capsys.readouterr().out
    assert "note: 1 images are in both train and val\n    image 1 (train_00000.png)" in text
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
    gpvit.data.use_folder(cfg, str(data), train=True)
    with caplog.at_level(logging.INFO, "gpvit"):
        DatasetCatalog.get(cfg.dataloader.train.dataset.names)
    assert "1 images are in both train and val, first id 1 (train_00000.png)" in caplog.text


def test_classes_are_counted_by_name() -> None:
    first = coco.CocoFile("a", "", categories={1: "box", 2: "tri", 7: "tri"})
    second = coco.CocoFile("b", "", categories={0: "tri", 1: "box", 5: "dot"})
    for file, ids in ((first, [1, 1, 1, 2, 7]), (second, [0, 1, 5, 5])):
        file.images[1] = {"file_name": "a.png", "height": 9, "width": 9}
        file.objects[1] = [{"category_id": id, "iscrowd": 0} for id in ids]
    lines = table({"train": first, "val": second}).splitlines()
    assert [line.split() for line in lines[5:9]] == [
        ["box", "3", "1"],
        ["tri", "1", "1"],
        ["dot", "0", "2"],
        ["tri", "1", "0"],
    ]
    assert lines[9] == "classes without objects in train: dot"
