"""Datasets in labelme format, written by labelme and by other programs."""

import base64
import io
import json
import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gpvit.cli import check_data
from gpvit.data.datasets import custom as layouts
from gpvit.data.datasets.coco_rules import Problem
from gpvit.utils.errors import UserError
from PIL import Image
from pycocotools import mask as mask_api

WIDTH, HEIGHT = 40, 30
GOOD = {"label": "a", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]], "group_id": None}
ANOTHER = GOOD | {"points": [[20, 1], [29, 1], [29, 9]]}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirect the cache to a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, "PNG")


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def entry(*shapes: object, image_path: object = "", **entries: object) -> dict[str, object]:
    """The content of a labelme file, of the image at the path ``image_path``."""
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"shapes": list(shapes), "imagePath": image_path} | size | entries


def dataset(folder: Path, *shapes: object) -> Path:
    """Write two images in train, with these shapes between two valid ones, and one in val."""
    for name in ("train/0", "train/1", "val/2"):
        image(folder / f"{name}.png")
        added = shapes if name.startswith("train") else ()
        content = entry(GOOD, *added, ANOTHER, image_path=os.path.basename(f"{name}.png"))
        write(folder / f"{name}.json", content)
    return folder


def read(folder: Path, masks: bool = False) -> layouts.coco.CocoFile:
    """The train split, with its problems."""
    layout = layouts.find_layout(str(folder))
    file = layouts.coco.read(*layout.splits["train"], masks=masks, train=True)
    layout.refer_to_user_files("train", file)
    assert all(problem.image_id is problem.annotation_id is None for problem in file.problems)
    return file


def object_counts(file: layouts.coco.CocoFile) -> list[int]:
    return list(map(len, file.objects.values()))


def refused(folder: Path, split: str = "train") -> str:
    """The message of the error that the dataset raises, which has one line."""
    with pytest.raises(UserError) as raised:
        layouts.read(str(folder), split)
    message = str(raised.value)
    assert "\n" not in message and message.isprintable()
    return message


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"points": [[1, 1], [2, 2]]}, "shape", "has 2 point(s); expected at least 3"),
        ({"points": []}, "shape", "malformed points"),
        ({"points": None}, "shape", "points None are not pairs of numbers"),
        ({"points": [[1, "x"], [2, 2], [3, 3]]}, "shape", "are not pairs of numbers"),
        ({"points": [[1, 1, 1], [2, 2, 2], [3, 3, 3]]}, "shape", "are not pairs of numbers"),
        ({"points": [[1, 1], [2, float("nan")], [3, 3]]}, "shape", "NaN or infinity"),
        ({"points": [[1, 1], [2, 10**400], [3, 3]]}, "shape", "too large"),
        ({"label": None}, "shape", "it has no label"),
        ({"label": ""}, "shape", "it has no label"),
        ({"label": ["a\n"]}, "shape", "label ['a\\n'] is not text"),
        ({"group_id": [1]}, "shape", "group_id [1] is not a number"),
        ({"shape_type": "rectangle", "points": [[1, 1]]}, "shape", "expected at least 2"),
        ({"shape_type": "mask"}, "shape", "3 points, not two corners"),
        ({"points": [[1, 1], [1, 1], [1, 1]]}, "empty box", "0 x 0"),
        ({"points": [[100, 1], [110, 1], [110, 5]]}, "box outside", ""),
    ],
)
def test_invalid_shape_is_dropped_and_reported(
    tmp_path: Path, changes: dict, kind: str, reason: str
) -> None:
    folder = dataset(tmp_path, GOOD | changes)
    for _ in range(2):  # the second time from the cache
        file = read(folder)
        details = [problem.detail for problem in file.problems if problem.kind == kind]
        for name, detail in zip("01", details, strict=True):
            assert detail.partition(": ")[0] == f"train/{name}.json, shape 2"
            assert reason in detail
        assert object_counts(file) == [2, 2] and file.num_annotations == 6
    file.raise_if_fatal()


@pytest.mark.parametrize("outline", ["polygon", "mask"])
def test_rectangle_grouped_with_outline_is_part_of_the_mask(tmp_path: Path, outline: str) -> None:
    group = {"label": "a", "group_id": 1}
    corners = [[2, 2], [12, 2], [12, 12], [2, 12]]
    first = group | {"shape_type": "polygon", "points": corners}
    if outline == "mask":  # the same 10 x 10 pixels; the corners are the first and the last pixel
        pixels = png(np.ones((10, 10)))
        first = group | {"shape_type": "mask", "points": [[2, 2], [11, 11]], "mask": pixels}
    rectangle = group | {"shape_type": "rectangle", "points": [[22, 10], [12, 2]]}
    huge = rectangle | {"points": [[1e9, 1e9], [-1e9, -1e9]]}
    file = read(dataset(tmp_path, first, rectangle), masks=True)
    assert file.problems == []
    [_, item, _] = file.objects[1]
    assert item["bbox"] == [2, 2, 20, 10] and item["area"] == 180
    file = read(dataset(tmp_path, first, huge), masks=True)
    expected = "polygon" if outline == "polygon" else "shape"
    assert expected in [problem.kind for problem in file.problems]
    assert file.objects[1][1]["bbox"] == [2, 2, 10, 10]  # the huge rectangle is dropped


def test_empty_group_id_does_not_join_shapes(tmp_path: Path) -> None:
    separate = ANOTHER | {"group_id": "", "points": [[30, 1], [39, 1], [39, 9]]}
    file = read(dataset(tmp_path, GOOD | {"group_id": ""}, separate))
    assert object_counts(file) == [3, 3]  # of 4 shapes, one repeats another


@pytest.mark.parametrize("kind", ["Polygon", "quadrilateral", "rotation"])
def test_aliases_of_polygon_types_are_accepted(tmp_path: Path, kind: str) -> None:
    shape = GOOD | {"shape_type": kind, "points": [[10, 10], [20, 12], [18, 20], [9, 18]]}
    file = read(dataset(tmp_path, shape), masks=True)
    assert object_counts(file) == [3, 3] and file.problems == []


def test_uppercase_json_suffix_is_accepted(tmp_path: Path) -> None:
    folder = dataset(tmp_path, GOOD | {"points": [[10, 10], [20, 12], [18, 20]]})
    (folder / "train" / "1.json").rename(folder / "train" / "1.JSON")
    assert object_counts(read(folder)) == [3, 3]


def test_error_of_too_few_label_files_gives_the_reasons(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}.json", entry(GOOD, image_path="a.png"))
    message = refused(tmp_path)
    assert "cannot be split" in message
    assert "b.json: belongs to the same image as a.json" in message


@pytest.mark.parametrize("shape", [None, 5, "x", [], {}, {"points": GOOD["points"]}])
def test_malformed_shape_entry_is_dropped(tmp_path: Path, shape: object) -> None:
    file = read(dataset(tmp_path, shape))
    assert [problem.kind for problem in file.problems] == ["shape", "shape"]
    assert file.num_annotations == 6


def test_checker_writes_all_problems_to_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = dataset(
        tmp_path / "d", *[GOOD | {"points": [[1, 1], [2, 2]]}] * 4, GOOD | {"shape_type": "circle"}
    )
    assert check_data.main(["--data", str(folder), "--json", str(tmp_path / "problems.json")]) == 0
    text = capsys.readouterr().out
    assert (
        "dropped: 8 shapes of labelme files are not valid objects\n"
        "    (train/0.json, shape 2: LabelMe polygon shape"
    ) in text
    assert "train.json: 2 images, 4 of 12 annotations used" in text
    assert "left out: 2 shapes without an outline (circle)" in text
    assert len(json.loads((tmp_path / "problems.json").read_text())) == 8


def test_unusable_label_files_raise_and_are_all_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    write(folder / "train/1.json", b'{"shapes": [')
    write(folder / "train/no image.json", b"")
    write(folder / "train/a.json", entry(GOOD, image_path="0.png"))
    write(folder / "train/b.json", entry(GOOD, image_path="gone.png"))
    file = read(folder)
    problems = [problem for problem in file.problems if problem.kind == "label file"]
    assert [problem.detail.partition(" (")[0] for problem in problems] == [
        "train/1.json: cannot be read as a labelme file",
        "train/a.json: belongs to the same image as train/0.json, train/0.png",
        "train/b.json: its image, gone.png, does not exist or is ambiguous; searched by its path, "
        "its name, and the name b",
        "train/no image.json: cannot be read as a labelme file",
    ]
    expected = "4 label files cannot be used, first train/1.json: cannot be read as a labelme file"
    assert expected in refused(folder)
    for name in ("0", "1", "a", "b", "no image"):
        (folder / f"train/{name}.json").unlink()
    write(folder / "val/2.json", b'"shapes"')
    expected = (
        "no labelme file can be used: val/2.json: cannot be read as a labelme file (TypeError"
    )
    assert expected in refused(folder)


@pytest.mark.parametrize(
    ("image_path", "name"),
    [
        ("..\\label\\12.png", "images/12.png"),
        ("C:\\data\\images\\x.png", "images/x.png"),
        ("/home/a/x.png", "deep/er/x.png"),
        ("my%20image%231.png", "images/my image#1.png"),
        ("upload/4/0a1b2c3d-x.png", "images/x.png"),
        ("../b/images/x.png", "images/x.png"),
        (unicodedata.normalize("NFD", "\xe9.png"), "images/\xe9.png"),
        ("caf%E9.png", "images/caf\udce9.png"),
        ("a\nb\N{SNAKE}.png", "images/a\nb\N{SNAKE}.png"),
        ("-rf %.png", "images/-rf %.png"),
        ("renamed.png", "images/labels.jpg"),
        ("", "images/labels.jpg"),
        (None, "images/labels.jpg"),
        (5, "images/labels.jpg"),
    ],
)
def test_image_paths_of_other_programs_are_resolved(
    tmp_path: Path, image_path: object, name: str
) -> None:
    image(tmp_path / "d" / name)
    image(tmp_path / "x.png")  # outside of the dataset
    image(tmp_path / "d" / "other" / "2.png")
    write(tmp_path / "d" / "annotated" / "labels.json", entry(GOOD, image_path=image_path))
    write(tmp_path / "d" / "other" / "2.json", entry(GOOD, image_path="2.png"))
    layout = layouts.find_layout(str(tmp_path / "d"))
    found = []
    for split in layout.splits:
        found += [image["file_name"] for image in layout.read(split).images.values()]
    assert sorted(found) == sorted([name, "other/2.png"])


@pytest.mark.parametrize(
    "image_path",
    ["../../x.png", "/etc/passwd", "HERE/x.png", "a/x.png", "..", "b\0.png", "x" * 5000],
)
def test_image_outside_of_dataset_or_ambiguous_raises(tmp_path: Path, image_path: str) -> None:
    folder = dataset(tmp_path / "d")
    image(tmp_path / "x.png")
    for name in ("b/c/x.png", "b/d/x.png"):
        image(folder / name)
    write(
        folder / "train/gone.json",
        entry(GOOD, image_path=image_path.replace("HERE", str(tmp_path))),
    )
    message = refused(folder)
    assert "train/gone.json: its image, " in message and "searched by" in message


def test_image_path_takes_precedence_over_file_name(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    for name in ("images/train/a/7.png", "images/train/b/7.png", "images/train/8.png"):
        image(folder / name)
    write(folder / "labels/8.json", entry(GOOD, image_path="..\\data\\b\\7.png"))
    assert "images/train/b/7.png" in {image["file_name"] for image in read(folder).images.values()}


def test_deleted_image_is_not_replaced_by_one_of_the_same_name(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    for name in ("train/0.png", "train/1.png"):
        (folder / name).unlink()
    for name in ("train/9.png", "other/0.png", "1.png"):
        image(folder / name)
    write(folder / "train/9.json", entry(GOOD, image_path="9.png"))
    details = [problem.detail for problem in read(folder).problems if problem.kind == "label file"]
    assert [detail.partition(",")[0] for detail in details] == [
        "train/0.json: its image",
        "train/1.json: its image",
    ]
    for name in ("0", "1"):  # imagePath names a folder, which is not that of the labelme file
        (folder / f"train/{name}.json").unlink()
        write(folder / f"labels/{name}.json", entry(GOOD, image_path=f"..\\train\\{name}.png"))
    message = refused(folder, "val")
    assert "labels/0.json: its image, ..\\train\\0.png, does not exist" in message


def test_image_found_at_another_path_is_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    write(folder / "labels/7.json", entry(GOOD, image_path="..\\label\\7.png"))
    write(folder / "labels/8.json", entry(GOOD, image_path="8.png"))
    for name in "78":
        image(folder / f"train/images/{name}.png")
    assert layouts.find_layout(str(folder)).notes == [
        "2 images are not where their labelme files expect them; found by their names: "
        "labels/7.json: ..\\label\\7.png is train/images/7.png, "
        "labels/8.json: 8.png is train/images/8.png"
    ]


def test_images_unlabeled_or_of_unsupported_formats_are_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    image(folder / "train/more.png")
    write(folder / "train/x.heic", b"")
    assert layouts.find_layout(str(folder)).notes == [
        "left out: 2 images without a labelme file: train/more.png, train/x.heic"
    ]
    write(folder / "train/x.json", entry(GOOD, image_path="x.heic"))
    assert "train/x.json: its image, train/x.heic, is of an unsupported format" in refused(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_accepted(tmp_path: Path, encoding: str) -> None:
    folder = dataset(tmp_path)
    content = entry(GOOD | {"label": "\xe4"}, image_path="0.png")
    write(folder / "train/0.json", json.dumps(content, ensure_ascii=False).encode(encoding))
    assert "\xe4" in read(folder).categories.values()


@pytest.mark.parametrize(
    "sides", [("x", None), (0, 0), (-1, 5), (1e999, 5), (True, True), (10**9, 10**9), ([], {})]
)
def test_invalid_image_size_is_read_from_the_image(tmp_path: Path, sides: tuple) -> None:
    folder = dataset(tmp_path)
    write(
        folder / "train/0.json",
        entry(GOOD, image_path="0.png", imageHeight=sides[0], imageWidth=sides[1]),
    )
    record = read(folder).images[1]
    assert (record["height"], record["width"]) == (HEIGHT, WIDTH)


def test_duplicate_shape_reports_both_shape_numbers(tmp_path: Path) -> None:
    file = read(dataset(tmp_path, GOOD | {"shape_type": "circle"}, ANOTHER))
    assert [(problem.kind, problem.detail) for problem in file.problems] == [
        ("object twice", "train/0.json, shape 4: same as shape 3"),
        ("object twice", "train/1.json, shape 4: same as shape 3"),
    ]


def png(pixels: np.ndarray, mode: str = "L") -> str:
    """A mask, (H, W), as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def only_object(file: layouts.coco.CocoFile, category: str) -> dict:
    """The one object of the category in the first image."""
    [item] = [item for item in file.objects[1] if file.categories[item["category_id"]] == category]
    return item


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_masks_are_read_pixel_by_pixel(tmp_path: Path, mode: str) -> None:
    pixels = np.tri(6, 11, 3) > 0  # rows 20 to 25, columns 7 to 17
    shape = {
        "label": "m",
        "shape_type": "mask",
        "points": [[7.0, 20.0], [17.0, 25.0]],
        "mask": png(pixels, mode),
    }
    file = read(dataset(tmp_path, shape), masks=True)
    item = only_object(file, "m")
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[20:26, 7:18] = pixels
    assert (mask_api.decode(item["segmentation"]) == expected).all()
    assert item["bbox"] == [7, 20, 9, 6] and item["area"] == pixels.sum() and not file.problems


def test_mask_at_the_border_is_cropped_as_in_labelme(tmp_path: Path) -> None:
    shape = {
        "label": "m",
        "shape_type": "mask",
        "points": [[36, 26], [WIDTH, HEIGHT]],
        "mask": png(np.ones((4, 4))),
    }
    file = read(dataset(tmp_path, shape), masks=True)
    assert [36, 26, 4, 4] in [item["bbox"] for item in file.objects[1]] and not file.problems


def test_a_group_of_a_mask_and_polygons_is_one_object(tmp_path: Path) -> None:
    shape = {
        "label": "a",
        "shape_type": "mask",
        "points": [[30, 20], [35, 25]],
        "mask": png(np.ones((6, 6))),
        "group_id": 1,
    }
    huge = GOOD | {"group_id": 1, "points": [[0, 0], [1e9, 0], [1e9, 1e9]]}
    file = read(dataset(tmp_path, shape, GOOD | {"group_id": 1}, huge), masks=True)
    grouped = next(item for item in file.objects[1] if isinstance(item["segmentation"], dict))
    mask = mask_api.decode(grouped["segmentation"])
    assert len(file.objects[1]) == 3
    # The pixels of the mask and of the polygon are set; those of the huge polygon are not.
    assert mask[20:26, 30:36].all() and mask[3, 7] and not mask[15, 15]


def test_empty_parts_of_a_group_are_reported_and_do_not_extend_the_box(tmp_path: Path) -> None:
    group = {"label": "m", "group_id": 1}
    corners = [[30, 20], [35, 25]]
    mask = group | {"shape_type": "mask", "points": corners, "mask": png(np.ones((6, 6)))}
    empty = mask | {"points": [[2, 3], [4, 5]], "mask": png(np.zeros((3, 3)))}
    flat = GOOD | group | {"points": [[1, 1], [9, 1], [5, 1]]}
    outside = GOOD | group | {"points": [[-9, 1], [-1, 1], [-1, 9]]}
    file = read(dataset(tmp_path, empty, mask, flat, outside), masks=True)
    details = [problem.detail for problem in file.problems if "train/0.json" in problem.detail]
    assert [problem.kind for problem in file.problems] == ["shape"] * 6
    assert details == [
        "train/0.json, shape 2: its mask has no pixel",
        "train/0.json, shape 4: no area inside of the image",
        "train/0.json, shape 5: no area inside of the image",
    ]
    item = only_object(file, "m")
    assert item["bbox"] == [30, 20, 6, 6] and item["area"] == 36


def bomb() -> str:
    """A small PNG in base64 with more pixels than Pillow opens (a decompression bomb)."""
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("mask", "points", "reason"),
    [
        (None, [[1, 1], [2, 2]], "its mask is not a PNG in base64"),
        ("***", [[1, 1], [2, 2]], "its mask is not a PNG in base64"),
        (
            base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode(),
            [[1, 1], [2, 2]],
            "its mask is not a PNG in base64",
        ),
        (
            png(np.ones((5, 5))),
            [[1, 1], [9, 9]],
            "its mask has 5 x 5 pixels, but its points span 9 x 9",
        ),
        (png(np.ones((5, 5))), [[-1, 1], [3, 5]], "its mask leaves the image, which is 40 x 30"),
        (
            png(np.ones((5, 5))),
            [[36, 1], [40, 5]],
            "its mask has 5 x 5 pixels, but its points span 4 x 5",
        ),
        (
            png(np.ones((5, 5))),
            [[50, 1], [54, 5]],
            "its mask has 5 x 5 pixels, but its points span -10 x 5",
        ),
        (png(np.ones((5, 5)))[:60], [[1, 1], [5, 5]], "its mask is damaged"),
        (bomb(), [[1, 1], [2, 2]], "its mask has too many pixels to be opened"),
        (bomb(), [[0, 0], [29_999, 29_999]], "its mask has too many pixels to be opened"),
    ],
)
def test_invalid_mask_is_dropped(tmp_path: Path, mask: object, points: list, reason: str) -> None:
    shape = {"label": "m", "shape_type": "mask", "points": points, "mask": mask}
    file = read(dataset(tmp_path, shape))
    assert "m" in file.categories.values()
    assert [problem.kind for problem in file.problems] == ["shape", "shape"]
    for problem in file.problems:
        assert f"shape 2: {reason}" in problem.detail


@pytest.mark.parametrize("kind", ["rotation", "oriented_rectangle"])
def test_rotated_rectangles_become_polygons(tmp_path: Path, kind: str) -> None:
    corners = [[20, 5], [25, 10], [20, 15], [15, 10]]
    shape = GOOD | {"label": "r", "shape_type": kind, "points": corners, "direction": 0.7}
    file = read(dataset(tmp_path, shape), masks=True)
    item = only_object(file, "r")
    assert item["segmentation"] == [[20, 5, 25, 10, 20, 15, 15, 10]]
    assert item["bbox"] == [15, 5, 10, 10]


def test_image_whose_name_is_a_part_of_another_name_is_reported_by_its_name() -> None:
    file = SimpleNamespace(images={1: {"file_name": "1.jpg"}, 2: {"file_name": "11.jpg"}})
    problem = Problem("file twice", 1, detail="1.jpg, same as 2")
    reported = layouts._refer_to_user_file(problem, file, {})
    assert reported.detail == "1.jpg: same as 11.jpg"
