"""Own data in the layouts that people have."""

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
from gpvit.data.datasets import coco as annotations
from gpvit.data.datasets import custom as layouts
from gpvit.data.image_io import read_image
from gpvit.evaluation.coco_evaluation import coco_fingerprint
from gpvit.utils.errors import UserError
from gpvit.utils.fingerprint import dataset_fingerprint
from PIL import Image
from pycocotools import mask as mask_api

CLASSES = ["cross", "disc", "triangle"]  # in the order that labelme gets


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache is not touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpvit" / "data"


@pytest.fixture(scope="session")
def source(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic data set with objects of one outline each, which every format can hold, in the plainest layout."""
    folder = tmp_path_factory.mktemp("source") / "data"
    shutil.copytree(synthetic_data / "images", folder / "images")
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        content = json.loads((synthetic_data / "annotations" / f"{split}.json").read_text())
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        kept = [
            a
            for a in content["annotations"]
            if isinstance(a["segmentation"], list) and len(a["segmentation"]) == 1
        ]
        for item in kept:
            item["category_id"] = 1 + CLASSES.index(names[item["category_id"]])
            points = np.reshape(item["segmentation"][0], (-1, 2))
            item["bbox"] = [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]
        categories = [
            {"id": id, "name": name, "supercategory": "shape"}
            for id, name in enumerate(CLASSES, start=1)
        ]
        content = {"images": content["images"], "annotations": kept, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def contents(source: Path) -> dict[str, dict]:
    return {
        split: json.loads((source / "annotations" / f"{split}.json").read_text())
        for split in ("train", "val")
    }


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def copy_images(source: Path, content: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        shutil.copy(source / "images" / image["file_name"], folder)


def coco(json_files: str, images: str, prefix: str = "") -> Callable[[Path, Path], None]:
    """A layout of COCO files, whose paths have SPLIT in the place of train and val."""

    def build(source: Path, folder: Path) -> None:
        for split, content in contents(source).items():
            copy_images(source, content, folder / images.replace("SPLIT", split))
            for image in content["images"]:
                image["file_name"] = prefix.replace("SPLIT", split) + image["file_name"]
            write(folder / json_files.replace("SPLIT", split), content)

    return build


def roboflow(source: Path, folder: Path) -> None:
    for split, content in contents(source).items():
        folder_of_split = folder / {"train": "train", "val": "valid"}[split]
        copy_images(source, content, folder_of_split)
        content["categories"].insert(0, {"id": 0, "name": "shape", "supercategory": "none"})
        write(folder_of_split / "_annotations.coco.json", content)


def called_test(source: Path, folder: Path) -> None:
    coco("SPLIT/labels.json", "SPLIT")(source, folder)
    (folder / "val").rename(folder / "test")


def yolo(images: str, labels: str, **entries: object) -> Callable[[Path, Path], None]:
    def build(source: Path, folder: Path) -> None:
        for split, content in contents(source).items():
            copy_images(source, content, folder / images.replace("SPLIT", split))
            for image in content["images"]:
                lines = []
                for item in content["annotations"]:
                    if item["image_id"] == image["id"]:
                        shares = np.reshape(item["segmentation"][0], (-1, 2)) / [
                            image["width"],
                            image["height"],
                        ]
                        lines.append(
                            " ".join(
                                [
                                    str(item["category_id"] - 1),
                                    *(f"{value:.6f}" for value in shares.ravel()),
                                ]
                            )
                        )
                name = Path(image["file_name"]).with_suffix(".txt").name
                write(folder / labels.replace("SPLIT", split) / name, "\n".join(lines) + "\n")
        lists = {key: value for key, value in entries.items() if key != "names"}
        write(folder / "data.yaml", {"names": entries.get("names", CLASSES)} | lists)

    return build


def labelme(images: str) -> Callable[[Path, Path], None]:
    def build(source: Path, folder: Path) -> None:
        for split, content in contents(source).items():
            place = folder / images.replace("SPLIT", split)
            copy_images(source, content, place)
            for image in content["images"]:
                shapes = [
                    {
                        "label": CLASSES[item["category_id"] - 1],
                        "points": np.reshape(item["segmentation"][0], (-1, 2)).tolist(),
                        "group_id": None,
                        "shape_type": "polygon",
                    }
                    for item in content["annotations"]
                    if item["image_id"] == image["id"]
                ]
                entry = {
                    "version": "5.5.0",
                    "shapes": shapes,
                    "imagePath": image["file_name"],
                    "imageData": None,
                }
                size = {"imageHeight": image["height"], "imageWidth": image["width"]}
                write(place / Path(image["file_name"]).with_suffix(".json").name, entry | size)

    return build


SPLIT = {
    "plain": coco("annotations/SPLIT.json", "images"),
    "folders in images": coco("annotations/SPLIT.json", "images/SPLIT"),
    "COCO": coco("annotations/instances_SPLIT2017.json", "SPLIT2017"),
    "COCO in images": coco("annotations/instances_SPLIT2017.json", "images/SPLIT2017"),
    "anywhere": coco("labels/final_SPLIT.json", "pictures/2024/may"),
    "with folders in the names": coco("SPLIT.json", "photos/SPLIT", prefix="SPLIT/"),
    "with dots in the names": coco("SPLIT/labels.json", "images", prefix="./"),
    "a test split": called_test,
    "Roboflow": roboflow,
    "YOLO, Roboflow's": yolo(
        "SPLIT/images", "SPLIT/labels", train="../train/images", val="../val/images"
    ),
    "YOLO, Ultralytics'": yolo("images/SPLIT", "labels/SPLIT", names=dict(enumerate(CLASSES))),
    "YOLO, folders of other names": yolo(
        "SPLIT_a/images", "SPLIT_a/labels", path=".", train="train_a", val="val_a/images"
    ),
    "labelme": labelme("SPLIT"),
}
UNSPLIT = {
    "one file": coco("all.json", "images"),
    "YOLO": yolo("images", "labels", train="images", val="images"),
    "YOLO in one folder": yolo("data", "data"),
    "labelme": labelme("."),
}


def known(records: list[dict]) -> dict[str, list[tuple]]:
    """Objects by the name of the image: class, box, and mask as RLE."""
    found = {}
    for record in records:
        size, objects = (record["height"], record["width"]), []
        for item in record["annotations"]:
            mask = mask_api.merge(mask_api.frPyObjects(item["segmentation"], *size))["counts"]
            objects.append((item["category_id"], tuple(np.round(item["bbox"], 2).tolist()), mask))
        found[Path(record["file_name"]).name] = sorted(objects)
        assert Image.open(record["file_name"]).size == size[::-1]
    return found


def all_files(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", SPLIT)
def test_every_layout_gives_the_same_records(source: Path, tmp_path: Path, name: str) -> None:
    SPLIT[name](source, tmp_path / "data")
    before = all_files(tmp_path / "data")
    for split in ("train", "val"):
        file = layouts.read(str(tmp_path / "data"), split)
        assert list(file.categories.values()) == CLASSES
        assert known(file.records()) == known(layouts.read(str(source), split).records())
    assert all_files(tmp_path / "data") == before


@pytest.mark.parametrize("name", UNSPLIT)
def test_what_is_not_split_gives_the_same_records_in_two_parts(
    source: Path, tmp_path: Path, name: str
) -> None:
    if name == "one file":
        shutil.copytree(source / "images", tmp_path / "data" / "images")
        write(tmp_path / "data" / "all.json", merged(source))
    else:
        UNSPLIT[name](source, tmp_path / "data")
    before = all_files(tmp_path / "data")
    layout = layouts.detect_format(str(tmp_path / "data"))
    parts = {split: known(layout.read(split).records()) for split in ("train", "val")}
    assert len(parts["train"]) == 10 and len(parts["val"]) == 2  # a fifth of 12
    expected = {
        **known(layouts.read(str(source), "train").records()),
        **known(layouts.read(str(source), "val").records()),
    }
    assert parts["train"] | parts["val"] == expected
    assert "2 of 12 images are set apart to validate, by seed 0 and their names" in layout.notes
    assert all_files(tmp_path / "data") == before


def merged(source: Path) -> dict:
    """Both splits in one file."""
    train, val = contents(source).values()
    for offset, key in (("images", "id"), ("annotations", "id"), ("annotations", "image_id")):
        for entry in val[offset]:
            entry[key] += 1000
    return train | {key: train[key] + val[key] for key in ("images", "annotations")}


def test_a_single_file_is_split_by_names_alone(source: Path, tmp_path: Path) -> None:
    content, parts = merged(source), []
    for number, reverse in enumerate((False, True)):
        folder = tmp_path / str(number)
        shutil.copytree(source / "images", folder / "images")
        content["images"].sort(key=lambda image: image["id"], reverse=reverse)
        write(folder / "annotations" / "all.json", content)
        for given in (folder, folder / "annotations" / "all.json"):
            splits = layouts.find(str(given))
            parts.append(
                {split: known(layouts.read(str(given), split).records()) for split in splits}
            )
    assert (
        parts[0] == parts[1] == parts[2] == parts[3]
        and not parts[0]["train"].keys() & parts[0]["val"].keys()
    )


def test_a_single_file_is_split_whatever_it_is_called(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "images", tmp_path / "data" / "images")
    write(tmp_path / "data" / "annotations" / "train.json", merged(source))
    layout = layouts.detect_format(str(tmp_path / "data"))
    assert {split: len(layout.read(split).images) for split in layout.splits} == {
        "train": 10,
        "val": 2,
    }
    assert "2 of 12 images are set apart to validate, by seed 0 and their names" in layout.notes


@pytest.mark.parametrize("masks_too", [False, True])
def test_normalized_boxes_are_made_from_masks_in_a_single_file_as_in_two(
    source: Path, tmp_path: Path, masks_too: bool
) -> None:
    shutil.copytree(source / "images", tmp_path / "data" / "images")
    content = merged(source)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = {}
    for item in content["annotations"]:
        width, height = sizes[item["image_id"]]
        x, y, w, h = boxes[item["id"]] = item["bbox"]
        item["bbox"] = [x / width, y / height, w / width, h / height]
        if masks_too:
            points = np.reshape(item["segmentation"][0], (-1, 2)) / [width, height]
            item["segmentation"] = [points.ravel().tolist()]
    write(tmp_path / "data" / "all.json", content)
    layout = layouts.detect_format(str(tmp_path / "data"))
    for split in ("train", "val"):
        with pytest.raises(UserError, match=r"are they normalized\?"):
            layout.read(split, masks=masks_too)
        if not masks_too:
            objects = [item for items in layout.read(split).objects.values() for item in items]
            for item in objects:
                assert item["bbox"] == pytest.approx(boxes[item["id"]])


def test_val_json_alone_is_evaluated_on(source: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    shutil.copytree(source / "images", tmp_path / "images")
    shutil.copy(source / "annotations" / "val.json", tmp_path / "annotations")
    assert layouts.find(str(tmp_path)) == {
        "val": layouts.Split(tmp_path / "annotations" / "val.json", tmp_path / "images")
    }


def test_who_splits_and_when_makes_no_difference() -> None:
    names = [f"{number}.jpg" for number in range(12)]
    for given in (names, names[::-1]):
        assert layouts.split_images(given, lambda name: None)[0]["val"] == {
            "4.jpg",
            "0.jpg",
        }  # which people go by


def test_at_least_one_image_is_set_apart_and_variants_of_one_stay_together() -> None:
    parts, _ = layouts.split_images(["a.jpg", "b.jpg"], lambda name: None)
    assert len(parts["train"]) == len(parts["val"]) == 1
    names = [f"{number}_jpg.rf.{variant}.jpg" for number in range(10) for variant in "abc"]
    parts, _ = layouts.split_images(names, lambda name: None)
    originals = {split: {name[0] for name in part} for split, part in parts.items()}
    assert len(parts["val"]) == 6 and not originals["train"] & originals["val"]
    with pytest.raises(UserError, match="1 image cannot be split"):
        layouts.split_images(["a.jpg"], lambda name: None)


def test_converted_data_is_written_once_and_anew_when_something_changes(
    source: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpvit.data.datasets import yolo as reader

    folder = tmp_path / "data"
    yolo("images", "labels")(source, folder)
    first = layouts.find(str(folder))
    assert first["train"].json_file.parent.parent == cache and first[
        "train"
    ].json_file.parent.name.startswith("data-")
    with monkeypatch.context() as patch:
        patch.setattr(reader, "from_yolo", lambda *arguments: pytest.fail("it is converted again"))
        assert layouts.find(str(folder)) == first
    label = sorted((folder / "labels").iterdir())[0]
    label.write_text("".join(f"2 0.1 0.1 0.5 0.1 0.5 0.{end}\n" for end in (5, 6, 7)))
    assert layouts.find(str(folder)) != first
    found = {
        **known(layouts.read(str(folder), "train").records()),
        **known(layouts.read(str(folder), "val").records()),
    }
    assert [item[0] for item in found[label.with_suffix(".png").name]] == [2, 2, 2]


def test_data_of_the_same_names_sizes_and_times_in_two_folders_are_told_apart(
    tmp_path: Path,
) -> None:
    for number, folder in enumerate(("a", "b"), start=1):
        file = tmp_path / folder / "data.json"
        names = [f"{image}.png" for image in range(5)]
        images = [
            {"id": id, "file_name": name, "width": 9, "height": 9} for id, name in enumerate(names)
        ]
        objects = [
            {"id": id, "image_id": id, "category_id": 1, "bbox": [1, 1, 4, number + 3]}
            for id in range(5)
        ]
        write(
            file, {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "x"}]}
        )
        os.utime(file, ns=(0, 0))
        for name in names:
            Image.new("RGB", (9, 9)).save(tmp_path / folder / name)
        read = layouts.read(str(file), "train", masks=False)
        assert {item["bbox"][3] for items in read.objects.values() for item in items} == {
            number + 3
        }


def test_of_processes_that_convert_at_once_one_is_first_and_the_others_take_its_files(
    tmp_path: Path,
) -> None:
    layouts._write(tmp_path / "new", {"a": "first"})
    layouts._write(tmp_path / "new", {"a": "second"})
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and (
        tmp_path / "new" / "a"
    ).read_text() == '"first"'


def test_data_that_moved_is_the_same_to_a_training_that_goes_on(
    source: Path, tmp_path: Path
) -> None:
    yolo("images", "labels")(source, tmp_path / "before")
    before = dataset_fingerprint(layouts.read(str(tmp_path / "before"), "train").records(), [])
    shutil.copytree(tmp_path / "before", tmp_path / "after", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "before")
    assert (
        dataset_fingerprint(layouts.read(str(tmp_path / "after"), "train").records(), []) == before
    )


def test_converted_data_is_evaluated(source: Path, tmp_path: Path) -> None:
    yolo("images", "labels")(source, tmp_path / "data")

    def perfect(image: dict, api, name: str) -> Instances:
        found = api.loadAnns(api.getAnnIds(image["id"]))
        boxes = torch.tensor([item["bbox"] for item in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.tensor(np.array([api.annToMask(item) for item in found]), dtype=torch.bool)
        classes = torch.tensor([item["category_id"] - 1 for item in found])
        size = (image["height"], image["width"])
        scores = torch.ones(len(found))
        return Instances(
            size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes, pred_masks=masks
        )

    results = evaluate(tmp_path / "data", perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("kind", [yolo("images", "labels"), labelme(".")])
def test_outlines_of_photos_survive_conversion(real_data: Path, tmp_path: Path, kind) -> None:
    source = tmp_path / "source"
    shutil.copytree(real_data / "fruits_nuts", source)
    for split, content in contents(source).items():
        for entry in content["categories"]:
            entry["name"] = CLASSES[entry["id"] - 1]
        write(source / "annotations" / f"{split}.json", content)
    kind(source, tmp_path / "data")
    overlaps = []
    for split in layouts.find(str(tmp_path / "data")):
        for record in layouts.read(str(tmp_path / "data"), split).records():
            name, size = Path(record["file_name"]).name, (record["height"], record["width"])
            mine = [item["segmentation"] for item in record["annotations"]]
            original = by_image(source)[name]
            assert len(mine) == len(original)
            pairs = [mask_api.frPyObjects([a[0], b[0]], *size) for a, b in zip(mine, original)]
            overlaps += [mask_api.iou([a], [b], [0])[0, 0] for a, b in pairs]
    assert len(overlaps) == 165 and min(overlaps) > 0.999


def by_image(source: Path) -> dict[str, list]:
    found: dict[str, list] = {}
    for content in contents(source).values():
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for item in content["annotations"]:
            found.setdefault(names[item["image_id"]], []).append(item["segmentation"])
    return found


def test_labelme_groups_are_one_object_and_rectangles_have_no_mask(tmp_path: Path) -> None:
    def shape(label: str, kind: str, *points: list[float], group: int | None = None) -> dict:
        return {"label": label, "shape_type": kind, "points": points, "group_id": group}

    parts = [[1, 1], [9, 1], [9, 9]], [[20, 1], [29, 1], [29, 9.5]]
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
        shapes = [shape("cat", "polygon", *part, group=4) for part in parts] + [
            shape("dog", "polygon", *parts[0], group=4)
        ]
        shapes += [
            shape("dog", "rectangle", [9, 9], [1, 2]),
            shape("dog", "circle", [3, 3], [4, 4]),
        ]
        write(tmp_path / f"{name}.json", {"shapes": shapes, "imagePath": f"..\\photos\\{name}.png"})
    layout = layouts.detect_format(str(tmp_path))
    assert "left out: 2 shapes that are no outlines (circle)" in layout.notes
    [record] = layout.read("val", masks=False).records()
    boxes = [(item["category_id"], item["bbox"]) for item in record["annotations"]]
    assert boxes == [(0, [1, 1, 28, 8.5]), (1, [1, 1, 8, 8]), (1, [1, 2, 8, 7])]
    content = json.loads(layout.splits["val"].json_file.read_text())
    assert [len(item.get("segmentation", [])) for item in content["annotations"]] == [2, 1, 0]
    assert [item["area"] for item in content["annotations"]] == [32 + 38.25, 32, 56]
    with pytest.raises(UserError, match="1 annotations have no segmentation"):
        layout.read("val")


def test_yolo_boxes_scores_and_images_without_labels(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / f"{name}.png")
    write(
        tmp_path / "labels" / "a.txt",
        "1 0.5 0.5 0.5 0.5\n\n0 0.5 0.5 0.5 0.5 0.9\n0 0 0 0.5 0 0.5 0.5 0.25\n",
    )
    write(tmp_path / "labels" / "b.txt", "")
    write(tmp_path / "d.yml", "names: {0: cat, 1: dog}\n")
    layout = layouts.detect_format(str(tmp_path))
    assert (
        "1 images have no file of labels: taken for images without objects: images/c.png"
        in layout.notes
    )
    found = {}
    for split in ("train", "val"):
        content = json.loads(layout.splits[split].json_file.read_text())
        found |= {
            image["file_name"]: [a for a in content["annotations"] if a["image_id"] == image["id"]]
            for image in content["images"]
        }
    assert [len(found[f"images/{name}.png"]) for name in "abc"] == [3, 0, 0]
    items = found["images/a.png"]
    assert [item["bbox"] for item in items] == [[10, 5, 20, 10], [10, 5, 20, 10], [0, 0, 20, 10]]
    assert [item["category_id"] for item in items] == [2, 1, 1]
    assert [item.get("segmentation") for item in items] == [None, None, [[0, 0, 20, 0, 20, 10]]]


def test_images_that_the_yaml_file_does_not_say_are_no_part_of_the_data(
    source: Path, tmp_path: Path
) -> None:
    yolo("SPLIT/images", "SPLIT/labels", train="train/images", test="val")(
        source, tmp_path / "data"
    )
    for folder in ("images", "labels"):
        shutil.copytree(tmp_path / "data" / "train" / folder, tmp_path / "data" / "old" / folder)
    for given in (tmp_path / "data", tmp_path / "data" / "data.yaml"):
        found = {
            split: known(layouts.read(str(given), split).records()) for split in ("train", "val")
        }
        assert [len(records) for records in found.values()] == [8, 4]


def test_sizes_are_those_of_the_picture_as_it_is_seen(tmp_path: Path) -> None:
    from gpvit.data.datasets.to_coco import size_of

    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "tif", "webp"):
        path = tmp_path / f"turned.{suffix}"
        Image.new("RGB", (40, 20)).save(path, exif=exif)
        assert size_of(path) == read_image(path).shape[:2] == (40, 20)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match="broken.jpg: cannot be read"):
        size_of(tmp_path / "broken.jpg")


@pytest.mark.parametrize("used", [False, True])
def test_the_group_that_roboflow_writes_before_the_classes_is_left_out_if_it_is_one(
    tmp_path: Path, used: bool
) -> None:
    categories = [{"id": 0, "name": "fruit", "supercategory": "none"}]
    categories += [
        {"id": id, "name": name, "supercategory": "fruit"}
        for id, name in ((1, "fig"), (2, "fruit"))
    ]
    item = {
        "id": 1,
        "image_id": 1,
        "category_id": 0 if used else 2,
        "bbox": [1, 1, 4, 4],
        "area": 16,
        "iscrowd": 0,
    }
    images = [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}]
    write(
        tmp_path / "all.json", {"categories": categories, "images": images, "annotations": [item]}
    )
    file = annotations.read(tmp_path / "all.json", tmp_path, masks=False)
    assert list(file.categories.values()) == (["fruit"] if used else []) + ["fig", "fruit"]
    assert ("group" in annotations.grouped(file.problems)) is not used


def put(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: write(folder / name, content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    )


def copy(name: str, other: str) -> Callable[[Path], object]:
    return lambda folder: (shutil.copytree if (folder / name).is_dir() else shutil.copy)(
        folder / name, folder / other
    )


COCO_2017, LABEL = "annotations/instances_train2017.json", "labels/val_00001.txt"
YAML = {"names": CLASSES}


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        (
            SPLIT["plain"],
            remove("annotations"),
            "no annotations are recognised in 12 images; accepted are",
        ),
        (
            SPLIT["plain"],
            remove("images"),
            "of its 8 images, 8 are not in .* and its folders: train_00000",
        ),
        (
            SPLIT["plain"],
            remove("annotations/train.json"),
            "there are no annotations for train, only .*/val.json",
        ),
        (
            SPLIT["COCO"],
            copy(COCO_2017, "annotations/instances_train2014.json"),
            "it cannot be told which",
        ),
        (
            SPLIT["folders in images"],
            put("annotations/val.json", "{"),
            "val.json is no JSON .*; correct it, or move it",
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
            "of its 4 images, 1 are not in .*val_00001",
        ),
        (
            SPLIT["labelme"],
            put("val/val_00001.json", '{"shapes'),
            "cannot be used, .* cannot be read as labelme's",
        ),
        (
            SPLIT["labelme"],
            put("val/val_00001.json", '["shapes"]'),
            "val_00001.json: cannot be read as .* .TypeError",
        ),
        (
            SPLIT["labelme"],
            remove("val/val_00001.png"),
            "val_00001.json: its image, val_00001.png, is not there",
        ),
        (
            SPLIT["labelme"],
            copy("val/val_00001.json", "val/again.json"),
            "val_00001.json: is of the same image as .*again",
        ),
        (UNSPLIT["YOLO"], put("data.yaml", YAML | {"kpt_shape": [3, 2]}), "is of key points"),
        (UNSPLIT["YOLO"], put("data.yaml", "names"), "data.yaml: it holds no keys"),
        (UNSPLIT["YOLO"], put("more.yaml", YAML), "data.yaml, more.yaml all have names of classes"),
        (
            UNSPLIT["YOLO"],
            lambda folder: (folder / "images" / "gone.png").symlink_to("nowhere"),
            "No such file .*gone.png",
        ),
        (UNSPLIT["YOLO"], remove("labels"), "has no images with labels"),
        (UNSPLIT["YOLO"], put("images/val_00001.png", "no image"), "val_00001.png: cannot be read"),
    ],
)
def test_what_is_not_clear_is_refused_in_one_line(
    source: Path, tmp_path: Path, kind, damage, message: str
) -> None:
    kind(source, tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(UserError, match=message) as error:
        for split in ("train", "val"):
            layouts.read(str(tmp_path / "data"), split)
    assert "\n" not in str(error.value)


def unreadable(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Lets nobody read what has a path that ends so; root, who may run the tests, could."""

    def refusing(function: Callable) -> Callable:
        def call(path: object = ".", *arguments: object, **options: object) -> object:
            if not isinstance(path, int) and os.fspath(path).endswith(end):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(Path, "open", refusing(Path.open))


def test_a_path_that_cannot_be_looked_at_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^--data aaa.*: File name too long$"):
        layouts.detect_format("a" * 300)


@pytest.mark.parametrize(
    ("kind", "end", "message"),
    [
        (SPLIT["folders in images"], "images/val", "cannot list .*images/val: Permission denied"),
        (SPLIT["plain"], "images", "cannot list .*images: Permission denied; make it readable"),
        (UNSPLIT["YOLO"], "a.log.txt", "cannot read .*a.log.txt: Permission denied"),
        (SPLIT["COCO"], "instances_val2017.json", "val2017.json cannot be read .Perm.*; correct"),
        (SPLIT["labelme"], "val_00001.json", "val_00001.json: cannot be read as .*PermissionE"),
    ],
)
def test_what_cannot_be_read_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind, end: str, message: str
) -> None:
    kind(source, tmp_path / "data")
    write(tmp_path / "data" / "a.log.txt", "what somebody else wrote")
    unreadable(monkeypatch, end)
    with pytest.raises(UserError, match=message) as error:
        layouts.detect_format(str(tmp_path / "data")).read("val")
    assert "\n" not in str(error.value)


def test_files_in_a_folder_that_can_only_be_listed_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SPLIT["folders in images"](source, tmp_path / "data")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("images/val"))
    with pytest.raises(UserError, match=r"cannot open the files in .*images/val; make it"):
        layouts.detect_format(str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "all.json: not in COCO format"),
        ({"shapes": []}, "no categories"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}]}, "no categories"),
        ({"images": [{"id": 1}], "categories": []}, "no categories"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: object, message: str) -> None:
    write(tmp_path / "all.json", content)
    with pytest.raises(UserError, match=message) as error:
        layouts.find(str(tmp_path / "all.json"))
    assert "\n" not in str(error.value)


def test_without_supervision_the_error_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("labelme", "to_coco", "yolo"):
        monkeypatch.delitem(sys.modules, f"gpvit.data.datasets.{name}", raising=False)
        monkeypatch.delattr(gpvit.data.datasets, name, raising=False)
    monkeypatch.setitem(sys.modules, "supervision", None)
    SPLIT["labelme"](source, tmp_path / "data")
    with pytest.raises(UserError, match="pip install 'supervision"):
        layouts.find(str(tmp_path / "data"))
    assert layouts.find(str(source))["train"].json_file.exists()


def test_of_folders_that_have_all_images_the_one_called_as_the_split_or_images_counts(
    source: Path, tmp_path: Path
) -> None:
    images = contents(source)["val"]
    for folder in ("pictures/train", "pictures/val", "shots/images", "shots/masks"):
        copy_images(source, images, tmp_path / "data" / folder)
    for split in ("train", "val"):
        write(tmp_path / "data" / "labels" / f"{split}.json", images)
    tree = layouts.Tree(tmp_path / "data" / "pictures")
    for split in ("train", "val"):
        found = layouts.image_root(tmp_path / "data" / "labels" / f"{split}.json", tree, split)
        assert found == tmp_path / "data" / "pictures" / split
    tree = layouts.Tree(tmp_path / "data" / "shots")
    found = layouts.image_root(tmp_path / "data" / "labels" / "val.json", tree, "val")
    assert found == tmp_path / "data" / "shots" / "images"


def test_a_folder_with_one_split_has_that_one(source: Path, tmp_path: Path) -> None:
    SPLIT["COCO"](source, tmp_path)
    (tmp_path / "annotations" / "instances_train2017.json").unlink()
    assert layouts.find(str(tmp_path)).keys() == {"val"}
    with pytest.raises(UserError, match="no annotations for train, only .*instances_val2017.json"):
        layouts.read(str(tmp_path), "train")


def test_what_was_found_is_in_the_log_before_the_data_is_used(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SPLIT["Roboflow"](source, tmp_path / "data")
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
    gpvit.data.use_folder(cfg, str(tmp_path / "data"), train=True)
    assert cfg.model.roi_heads.num_classes == 3
    with caplog.at_level(logging.INFO, "gpvit.data"):
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            DatasetCatalog.get(loader.dataset.names)
    [text] = [
        entry.getMessage()
        for entry in caplog.records
        if entry.name == "gpvit.data.datasets.register"
    ]
    lines = text.splitlines()
    assert lines[0] == f"{tmp_path / 'data'}: COCO format by Roboflow"
    numbers = {
        line.rsplit(maxsplit=2)[0].strip(): [int(n) for n in line.split()[-2:]]
        for line in lines
        if line[-1].isdigit()
    }
    files = {split: layouts.read(str(source), split) for split in ("train", "val")}
    objects = {
        split: [item for items in file.objects.values() for item in items]
        for split, file in files.items()
    }
    assert numbers["images"] == [8, 4]
    assert numbers["objects"] == [len(found) for found in objects.values()]
    for id, name in enumerate(CLASSES, start=1):
        assert numbers[name] == [
            sum(item["category_id"] == id for item in found) for found in objects.values()
        ]
    sides = [image["width"] for file in files.values() for image in file.images.values()]
    assert f"images are {min(sides)} to {max(sides)} pixels wide" in lines[-1]


def test_a_table_of_many_classes_has_the_most_frequent_and_those_without_objects() -> None:
    file = annotations.CocoFile("a.json", "", categories={id: f"class {id}" for id in range(30)})
    file.images = {1: {"file_name": "a.png", "height": 5, "width": 7}}
    file.objects = {
        1: [{"category_id": id, "iscrowd": 0} for id in range(28) for _ in range(id + 1)]
    }
    file.objects[1].append({"category_id": 29, "iscrowd": 1})
    lines = layouts.table({"train": file}).splitlines()
    assert [line.split() for line in lines[5:7]] == [["class", "27", "28"], ["class", "26", "27"]]
    assert [line.split() for line in lines[-3:-2]] == [
        ["and", "10", "classes", "more", str(sum(range(1, 9)))]
    ]
    assert lines[-2:] == [
        "classes without objects in train: class 28, class 29",
        "images are 7 pixels wide and 5 high",
    ]


@pytest.mark.parametrize("name", ["Roboflow", "YOLO, Ultralytics'"])
def test_the_checker_takes_every_layout(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    SPLIT[name](source, tmp_path / "data")
    assert check_data.main(["--data", str(tmp_path / "data")]) == 0
    text = capsys.readouterr().out
    what = (
        "COCO format by Roboflow"
        if name == "Roboflow"
        else "YOLO format, converted to COCO format in "
    )
    assert f"{tmp_path / 'data'}: {what}" in text
    assert "images                   8      4" in text
    image = next((tmp_path / "data").rglob("val_00001.png"))
    image.write_bytes(image.read_bytes()[:100])
    assert check_data.main(["--data", str(tmp_path / "data")]) == 1
    assert "val_00001.png: cannot be read" in capsys.readouterr().out


def test_the_checker_finds_the_images_of_a_single_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    SPLIT["anywhere"](source, tmp_path / "data")
    given = tmp_path / "data" / "labels" / "final_train.json"
    with pytest.raises(
        UserError,
        match="of its 8 images, 8 are not in .*; give the folder of its images by --images DIR",
    ):
        check_data.main(["--data", str(given)])
    given = shutil.move(given, tmp_path / "data")
    assert check_data.main(["--data", str(given)]) == 0
    assert "2 of 8 images are set apart to validate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("names: &a [x]\nb: [*a, *a]\n", "line 1: has an anchor or alias"),
        ("names: [a]\nb: " + "[" * 1000, "line 2: is nested more than 50 levels deep"),
        ("names: [a]\nb: " + "1" * 10_000, "line 2: has a number of 10000 characters"),
    ],
)
def test_what_would_choke_a_reader_of_yaml_is_one_line(
    tmp_path: Path, names: str, reason: str
) -> None:
    (tmp_path / "data.yaml").write_text(names)
    with pytest.raises(UserError, match=reason) as raised:
        layouts.detect_format(str(tmp_path / "data.yaml"))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500 + len(str(tmp_path))


def test_a_name_of_255_bytes_has_a_cache(source: Path, tmp_path: Path) -> None:
    json_file = tmp_path / ("é" * 125 + ".json")
    write(json_file, merged(source))
    shutil.copytree(source / "images", tmp_path / "images")
    assert layouts.detect_format(str(json_file)).splits.keys() == {"train", "val"}


# Names of images as programs write them.

NAMES = ["a 0.png", "b%1.png", "é2.png", "sub/c.png"]


def as_written(
    source: Path, folder: Path, names: dict[str, str], json_file: str = "annotations.json"
) -> dict:
    """A file of annotations with four images, of which each is under the one name and written as the other."""
    content = merged(source)
    content["images"] = content["images"][: len(names)]
    for image, (there, written) in zip(content["images"], names.items()):
        (folder / there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "images" / image["file_name"], folder / there)
        image["file_name"] = written
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids]
    write(folder / json_file, content)
    return content


WRITTEN = {
    "Windows": lambda name: name.replace("/", "\\"),
    "Windows, absolute": lambda name: "C:\\Users\\me\\photos\\" + name.replace("/", "\\"),
    "X-AnyLabeling": lambda name: "..\\label\\" + name.replace("/", "\\"),
    "Label Studio on Windows": lambda name: (
        "..\\..\\label-studio\\media\\upload\\4\\" + name.replace("/", "\\")
    ),
    "Label Studio": lambda name: "/data/upload/4/1a2b3c4d-" + Path(name).name,
    "Label Studio, local files": lambda name: (
        "/data/local-files/?d=" + quote(f"shots/{name}", safe="")
    ),
    "an address": lambda name: "http://localhost:8080/data/upload/" + quote(name),
    "percent": quote,
    "percent and backslashes": lambda name: quote(name.replace("/", "\\")),
    "another folder": lambda name: f"train/{name}",
    "absolute": lambda name: f"/home/me/photos/{name}",
    "doubled slashes": lambda name: f".//images//.//{name}",
    "a space at its end": lambda name: f"{name} ",
    "letters in two characters": lambda name: unicodedata.normalize("NFD", name),
}


@pytest.mark.parametrize("program", WRITTEN)
@pytest.mark.parametrize("layout", ["one file", "plain"])
def test_names_as_programs_write_them_are_those_images(
    source: Path, tmp_path: Path, program: str, layout: str
) -> None:
    folder, images = tmp_path / "data", {f"images/{name}": WRITTEN[program](name) for name in NAMES}
    if layout == "one file":
        as_written(source, folder, images)
        splits = layouts.detect_format(str(folder)).splits
        assert (
            splits.keys()
            == layouts.detect_format(str(folder / "annotations.json")).splits.keys()
            == {"train", "val"}
        )
        files = [layouts.read(str(folder), split) for split in splits]
    else:
        for split in ("train", "val"):
            as_written(source, folder, images, f"annotations/{split}.json")
        files = [layouts.read(str(folder), "train")]
    found = {record["image_id"]: record["file_name"] for file in files for record in file.records()}
    assert {str(Path(name).relative_to(folder)) for name in found.values()} == set(images)
    written = dict(zip((image["id"] for image in merged(source)["images"]), images))
    assert {id: str(Path(name).relative_to(folder)) for id, name in found.items()} == written
    for file in files:
        named = [file.written.get(id, image["file_name"]) for id, image in file.images.items()]
        others = [name for name in named if not (Path(file.image_root) / name).exists()]
        assert (
            len(others)
            == len(file.written)
            == sum(problem.kind == "image name" for problem in file.problems)
        )
        # The same data by its file alone, where nobody looks for images.
        alone = annotations.read(file.path, "")
        assert coco_fingerprint(file) == coco_fingerprint(alone)
    assert check_data.main(["--data", str(folder)]) == 0


def test_a_file_that_is_called_so_is_that_file(source: Path, tmp_path: Path) -> None:
    names = [
        "a%20b.png",
        "a b.png",
        "back\\slash.png",
        "#1 'two'\n\"x\" 😀.png",
        "%41.png",
        "A.png",
    ]
    as_written(source, tmp_path / "data", {f"images/{name}": name for name in names})
    for file in (layouts.read(str(tmp_path / "data"), split) for split in ("train", "val")):
        assert not file.problems and not file.written
        assert {image["file_name"] for image in file.images.values()} <= set(names)


AMBIGUOUS = [
    (
        {"one/a.png": "x\\a.png", "two/a.png": "y\\b.png"},
        [r"x\\a.png (may be one/a.png, two/a.png)", r"y\\b.png"],
    ),
    (
        {"images/a.png": "one/a.png", "images/b.png": "two/a.png"},
        ["one/a.png (images/a.png may be that of another name)"],
    ),
    (
        {"images/a.png": "images/a.png", "images/b.png": "C:\\a.png"},
        ["C:\\a.png (images/a.png may be that of another"],
    ),
    (
        {"images/00000001-a.png": "00000002-a.png"},
        ["1 images, 1 are not in", "00000002-a.png; looked for as written"],
    ),
    (
        {"images/a.png": "a.jpg"},
        ["a.jpg; looked for as written and by the last parts of their names"],
    ),
    ({".hidden/a.png": "C:\\a.png"}, ["C:\\a.png; looked"]),
]


@pytest.mark.parametrize(("names", "reasons"), AMBIGUOUS)
def test_names_that_may_mean_several_images_or_none_are_listed(
    source: Path, tmp_path: Path, names, reasons
) -> None:
    as_written(source, tmp_path / "data", names)
    with pytest.raises(UserError) as error:
        layouts.detect_format(str(tmp_path / "data"))
    for reason in reasons:
        assert reason.replace("\\\\", "\\") in str(error.value)


def test_the_longest_end_decides_and_then_the_folder_beside_the_file_or_called_as_the_split(
    source: Path, tmp_path: Path
) -> None:
    names = {"one/a.png": "D:\\shots\\one\\a.png", "two/a.png": "D:\\shots\\two\\a.png"}
    as_written(source, tmp_path / "a", names)
    assert {
        Path(r["file_name"]).parent.name
        for r in layouts.read(str(tmp_path / "a"), "train").records()
    } <= {"one", "two"}
    as_written(
        source, tmp_path / "e", {"images/a%20b.png": "x\\a%20b.png", "images/a b.png": "x\\a b.png"}
    )
    files = [layouts.read(str(tmp_path / "e"), split) for split in ("train", "val")]
    found = {
        file.written[id]: image["file_name"] for file in files for id, image in file.images.items()
    }
    assert found == {"x\\a%20b.png": "images/a%20b.png", "x\\a b.png": "images/a b.png"}
    for split in ("train", "val"):
        as_written(
            source,
            tmp_path / "b",
            {f"{split}/a.png": "D:\\a.png", f"{split}/b.png": "D:\\b.png"},
            f"{split}/x.json",
        )
        as_written(
            source, tmp_path / "c", {f"im/{split}/a.png": "D:\\a.png"}, f"labels/{split}.json"
        )
        as_written(source, tmp_path / "d", {"images/a.png": "D:\\a.png"}, f"labels/{split}.json")
    write(tmp_path / "d" / "masks" / "a.png", "")
    for data in "bcd":
        for split in ("train", "val"):
            records = layouts.read(str(tmp_path / data), split).records()
            folders = {Path(record["file_name"]).parent.name for record in records}
            assert folders == {"images" if data == "d" else split}


DELETED = {
    "a relative name": "train/a.png",
    "an absolute name": "C:\\data\\train\\a.png",
    "a percent-encoded name": "data%2Ftrain%2Fa.png",
}


@pytest.mark.parametrize("written", DELETED.values(), ids=DELETED)
def test_a_deleted_image_is_not_replaced_by_another_of_its_name(
    source: Path, tmp_path: Path, written: str
) -> None:
    folder = tmp_path / "data"
    as_written(source, folder, {"val/a.png": written, "train/b.png": "train/b.png"}, "all.json")
    with pytest.raises(UserError, match=r"a\.png \(is not in that folder, .*; val/a.png may"):
        layouts.detect_format(str(folder))
    file = annotations.read(folder / "all.json", folder, open_images=True)
    assert not file.written and [problem.kind for problem in file.problems][:1] == ["unreadable"]
    (folder / "train" / "b.png").rename(folder / "val" / "b.png")  # now there is no such folder
    (folder / "train" / "notes.txt").write_text("all images are in val")
    assert layouts.detect_format(str(folder)).splits.keys() == {"train", "val"}


def test_a_name_leads_out_of_the_folder_only_where_it_did(source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "a.png"
    write(outside, "")
    for written in (str(outside), "../outside/a.png", "../../outside/a.png"):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        as_written(source, tmp_path / "data", {"photos/a.png": written, "photos/b.png": "b.png"})
        if os.path.exists(tmp_path / "data" / written):
            with pytest.raises(UserError, match=r"a.png \(is elsewhere\)"):
                layouts.detect_format(str(tmp_path / "data"))
        else:
            assert layouts.detect_format(str(tmp_path / "data")).splits
    inside = str(tmp_path / "data" / "photos" / "a.png")  # absolute, and the file there
    for name in (inside, "../images/a.png"):
        shutil.rmtree(tmp_path / "data")
        as_written(source, tmp_path / "data", {"photos/a.png": name, "photos/b.png": "b.png"})
        records = [
            r
            for split in ("train", "val")
            for r in layouts.read(str(tmp_path / "data"), split).records()
        ]
        assert {os.path.realpath(record["file_name"]) for record in records} == {
            inside,
            inside.replace("a.png", "b.png"),
        }
    for split in ("train", "val"):  # the plain layout, where it did
        as_written(
            source, tmp_path / "plain", {"images/a.png": str(outside)}, f"annotations/{split}.json"
        )
    assert [r["file_name"] for r in layouts.read(str(tmp_path / "plain"), "val").records()] == [
        str(outside)
    ]


def test_check_data_finds_images_in_the_folder_that_is_given(
    source: Path, tmp_path: Path, capsys
) -> None:
    as_written(
        source,
        tmp_path,
        {"shots/deep/a b.png": "D:\\x\\a%20b.png", "shots/c.png": "gone.png"},
        "labels/all.json",
    )
    assert (
        check_data.main(
            ["--data", str(tmp_path / "labels" / "all.json"), "--images", str(tmp_path / "shots")]
        )
        == 1
    )
    text = capsys.readouterr().out
    assert (
        "to know: 1 images are not there under their names" in text
        and "D:\\x\\a%20b.png is deep/a b.png" in text
    )
    assert "gone.png: cannot be read: it does not exist" in text and "it is not there" in text
    assert (
        check_data.main(["--data", str(tmp_path / "labels" / "all.json"), "--annotations-only"])
        == 0
    )


def test_check_data_finds_copies_of_images_in_both_splits(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "data"
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
    for split, ids in {"train": (1, 2), "val": (3, 4)}.items():
        images = [
            {"id": id, "file_name": f"{split}/{id}.png", "width": 9, "height": 9} for id in ids
        ]
        objects = [{"id": id, "image_id": id, "category_id": 1, "bbox": [1, 1, 4, 4]} for id in ids]
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "x"}]}
        write(folder / f"{split}.json", content)
        (folder / split).mkdir()
        for id in ids:  # 1 and 3 are the same picture, 2 and 4 are black
            Image.fromarray(pixels * (id % 2)).save(folder / split / f"{id}.png")
    assert check_data.main(["--data", str(folder), "--boxes"]) == 0
    text = capsys.readouterr().out
    assert "to know: 1 images are in train and in val\n" in text
    assert f"image 1 (train/1.png, the same as {folder}/val/3.png)" in text
    assert check_data.main(["--data", str(folder), "--boxes", "--annotations-only"]) == 0
    assert "in train and in val" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["the same file", "a link", "a linked folder"])
def test_images_in_train_and_val_are_told_once_both_are_known(
    source: Path, tmp_path: Path, kind: str, capsys, caplog: pytest.LogCaptureFixture
) -> None:
    coco("annotations/SPLIT.json", "images/SPLIT")(source, tmp_path / "data")
    val, train = contents(source).values()
    val, train = tmp_path / "data" / "images" / "val", tmp_path / "data" / "images" / "train"
    if kind == "a link":
        (val / "val_00001.png").unlink()
        (val / "val_00001.png").symlink_to(train / "train_00000.png")
    elif kind == "a linked folder":
        shutil.rmtree(val)
        val.symlink_to(train)
    path = tmp_path / "data" / "annotations" / "val.json"
    content = json.loads(path.read_text())
    name = {
        "the same file": "../train/train_00000.png",
        "a link": "val_00001.png",
        "a linked folder": "train_00000.png",
    }
    content["images"] = content["images"][:1]
    content["images"][0]["file_name"] = name[kind]
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]
    ]
    path.write_text(json.dumps(content))
    if kind == "the same file":  # such a name is only looked up in the plain layout
        for file in (tmp_path / "data" / "images").rglob("*.png"):
            shutil.move(file, tmp_path / "data" / "images" / file.name)
        (tmp_path / "data" / "images" / "train").rmdir()
        content["images"][0]["file_name"] = "./train_00000.png"
        path.write_text(json.dumps(content))
        shutil.rmtree(val)
    check_data.main(["--data", str(tmp_path / "data"), "--annotations-only"])
    text = capsys.readouterr().out
    assert "to know: 1 images are in train and in val\n    image 1 (train_00000.png)" in text
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
    gpvit.data.use_folder(cfg, str(tmp_path / "data"), train=True)
    with caplog.at_level(logging.INFO, "gpvit"):
        DatasetCatalog.get(cfg.dataloader.train.dataset.names)
    assert "1 images are in train and in val, first id 1 (train_00000.png)" in caplog.text


def test_classes_are_counted_by_their_names(source: Path, tmp_path: Path) -> None:
    first = annotations.CocoFile("a", "", categories={1: "box", 2: "tri", 7: "tri"})
    second = annotations.CocoFile("b", "", categories={0: "tri", 1: "box", 5: "dot"})
    for file, ids in ((first, [1, 1, 1, 2, 7]), (second, [0, 1, 5, 5])):
        file.images[1] = {"file_name": "a.png", "height": 9, "width": 9}
        file.objects[1] = [{"category_id": id, "iscrowd": 0} for id in ids]
    lines = layouts.table({"train": first, "val": second}).splitlines()
    assert [line.split() for line in lines[5:9]] == [
        ["box", "3", "1"], ["tri", "1", "1"], ["dot", "0", "2"], ["tri", "1", "0"]
    ]  # fmt: skip
    assert lines[9] == "classes without objects in train: dot"
