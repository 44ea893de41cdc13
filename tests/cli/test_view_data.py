"""`gpvit view-data` draws the images of a dataset with their annotations."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from gpvit.cli import view_data
from gpvit.utils.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def view(*arguments: object) -> int:
    return view_data.main(["--data", *map(str, arguments)])


@pytest.fixture
def data_copy(synthetic_data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(synthetic_data, tmp_path / "data")


def test_all_images_are_drawn_and_on_sheet(
    capsys: pytest.CaptureFixture, synthetic_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert view(synthetic_data, "--split", "val", "--output", out) == 0
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    names = ["sheet.png"]
    for image in content["images"]:
        names.append(f"{image['id']}_{Path(image['file_name']).stem}.png")
        before = cv2.imread(str(synthetic_data / "images" / image["file_name"]))
        after = cv2.imread(str(out / names[-1]))
        assert min(after.shape[:2]) >= 640
        resized = cv2.resize(after, before.shape[1::-1])
        assert np.abs(resized.astype(int) - before).mean() > 2
    assert len(names) == 5
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet.shape[1] > 4 * 640 and "[4/4]" in capsys.readouterr().out


def test_drawings_are_not_resampled_on_sheet(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    drawings = []
    for i in range(5):
        drawings.append((f"{i}", generator.integers(0, 255, (40 + i, 60, 3), np.uint8)))
    view_data.save_sheet(drawings, tmp_path / "sheet.png")
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    for _, drawing in drawings:
        # Rounding errors only; shifted by one pixel, the difference is a million times larger.
        assert cv2.matchTemplate(sheet, drawing, cv2.TM_SQDIFF).min() < 1000


def test_ids_classes_number_and_seed_select_images(
    monkeypatch: pytest.MonkeyPatch,
    synthetic_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    # Drawing is slow, and not needed here.
    monkeypatch.setattr(view_data, "draw_annotations", lambda image, record, classes: image)

    def drawn(*arguments: object) -> list[str]:
        """Return the lines of the drawn images, without the path of the drawing."""
        assert view(synthetic_data, "--output", tmp_path / "out", "--overwrite", *arguments) == 0
        lines = capsys.readouterr().out.splitlines()[:-1]
        return [line.split(" -> ")[0] for line in lines]

    content = json.loads((synthetic_data / "annotations" / "train.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    ids = list(names)
    by_id = drawn("--ids", ids[5], ids[1])
    assert names[ids[5]] in by_id[0] and len(by_id) == 2
    first = drawn("--number", 3, "--seed", 0)
    assert len(first) == 3
    assert drawn("--number", 3, "--seed", 0) == first
    assert drawn("--number", 3, "--seed", 1) != first
    disc = next(entry["id"] for entry in content["categories"] if entry["name"] == "disc")
    counts = dict.fromkeys(names.values(), 0)
    for item in content["annotations"]:
        counts[names[item["image_id"]]] += item["category_id"] == disc
    expected = {
        f"{name}: {count} object{'s' * (count != 1)}" for name, count in counts.items() if count
    }
    assert {line.rpartition("/")[2] for line in drawn("--classes", "disc")} == expected
    for arguments, message in (
        (["--classes", "cat"], "there are no classes cat; the dataset has disc, triangle, cross"),
        (["--ids", "99999"], "there are no images with the IDs 99999"),
    ):
        with pytest.raises(UserError, match=message):
            view(synthetic_data, "--output", tmp_path / "none", *arguments)


def test_existing_files_are_kept_without_overwrite(synthetic_data: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_text("precious")
    with pytest.raises(
        UserError, match="sheet.png already exists; give another --output, or --overwrite"
    ):
        view(synthetic_data, "--output", tmp_path, "--number", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert view(synthetic_data, "--output", tmp_path, "--number", 1, "--overwrite") == 0
    assert (tmp_path / "sheet.png").read_bytes()[1:4] == b"PNG"


def test_dollar_signs_in_file_name_are_drawn_literally(data_copy: Path, tmp_path: Path) -> None:
    json_file = data_copy / "annotations" / "val.json"
    content = json.loads(json_file.read_text())
    image = content["images"][0]
    images = data_copy / "images"
    (images / image["file_name"]).rename(images / "a$b_$c.png")
    image["file_name"] = "a$b_$c.png"
    json_file.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert view(data_copy, "--split", "val", "--ids", image["id"], "--output", out) == 0
    assert (out / f"{image['id']}_a$b_$c.png").is_file()
    assert (out / "sheet.png").is_file()


def test_unreadable_images_are_skipped_and_listed_at_end(
    capsys: pytest.CaptureFixture, data_copy: Path, tmp_path: Path
) -> None:
    first, second, *_ = sorted((data_copy / "images").glob("val_*.png"))
    first.write_bytes(first.read_bytes()[:200])
    cv2.imwrite(str(second), np.zeros((9, 9, 3), np.uint8))
    assert view(data_copy, "--split", "val", "--output", tmp_path / "out") == 1
    assert len(list((tmp_path / "out").iterdir())) == 3
    damaged, wrong_size = capsys.readouterr().err.splitlines()
    assert f"{first}: cannot be read" in damaged
    assert f"{second}: is 9 x 9 pixels, but" in wrong_size


@pytest.mark.parametrize("some_masks", [False, True])
def test_objects_without_mask_are_drawn_as_boxes(
    data_copy: Path, tmp_path: Path, some_masks: bool
) -> None:
    json_file, images = data_copy / "annotations" / "val.json", data_copy / "images"
    content = json.loads(json_file.read_text())
    without_mask = 0
    for number, item in enumerate(content["annotations"]):
        if number % 2 or not some_masks:
            del item["segmentation"]
            without_mask += 1
    json_file.write_text(json.dumps(content))
    records, _ = view_data.load(json_file, images)
    items = []
    for record in records:
        items += record["annotations"]
    assert len(items) == len(content["annotations"])
    assert sum(not item["segmentation"] for item in items) == without_mask
    options = ("--images", images, "--output", tmp_path / "out", "--number", 1)
    assert view(json_file, *options) == 0


def test_json_file_without_its_images_requires_images_option(
    data_copy: Path, tmp_path: Path
) -> None:
    json_file = data_copy / "annotations" / "val.json"
    assert view(json_file, "--output", tmp_path / "out", "--number", 1) == 0
    (tmp_path / "alone").mkdir()
    moved = shutil.move(json_file, tmp_path / "alone")
    with pytest.raises(
        UserError, match="4 of its 4 images are not in .*; give their folder by --images DIR"
    ):
        view(moved, "--output", tmp_path / "none")
    options = ("--images", data_copy / "images", "--output", tmp_path / "given", "--number", 1)
    assert view(moved, *options) == 0
