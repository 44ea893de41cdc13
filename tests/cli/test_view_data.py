"""`gpvit view-data`: pictures of a data set with its annotations."""

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
def copied(synthetic_data: Path, tmp_path: Path) -> Path:
    return shutil.copytree(synthetic_data, tmp_path / "data")


def test_every_image_is_drawn_and_all_are_on_the_sheet(
    capsys: pytest.CaptureFixture, synthetic_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert view(synthetic_data, "--split", "val", "--output", out) == 0
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    names = {f"{image['id']}_{Path(image['file_name']).stem}.png" for image in content["images"]}
    assert {path.name for path in out.iterdir()} == names | {"sheet.png"} and len(names) == 4
    for image in content["images"]:
        before = cv2.imread(str(synthetic_data / "images" / image["file_name"]))
        after = cv2.imread(str(out / f"{image['id']}_{Path(image['file_name']).stem}.png"))
        assert (
            min(after.shape[:2]) >= 640
            and np.abs(cv2.resize(after, before.shape[1::-1]).astype(int) - before).mean() > 2
        )
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet.shape[1] > 4 * 640 and "[4/4]" in capsys.readouterr().out


def test_a_picture_lies_on_the_sheet_pixel_by_pixel(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = [(f"{i}", generator.integers(0, 255, (40 + i, 60, 3), np.uint8)) for i in range(5)]
    view_data.save_sheet(pictures, tmp_path / "sheet.png")
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    for _, picture in pictures:
        assert (
            cv2.matchTemplate(sheet, picture, cv2.TM_SQDIFF).min() < 1000
        )  # it rounds; one pixel aside it is a million times more


def test_ids_classes_number_and_seed_choose(
    monkeypatch: pytest.MonkeyPatch,
    synthetic_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(
        view_data, "draw_annotations", lambda image, record, classes: image
    )  # which takes a while

    def drawn(*arguments: object) -> list[str]:
        assert view(synthetic_data, "--output", tmp_path / "out", "--overwrite", *arguments) == 0
        return [line.split(" -> ")[0] for line in capsys.readouterr().out.splitlines()[:-1]]

    content = json.loads((synthetic_data / "annotations" / "train.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    ids = [image["id"] for image in content["images"]]
    assert [
        names[ids[5]] in drawn("--ids", ids[5], ids[1])[0],
        len(drawn("--ids", ids[5], ids[1])),
    ] == [True, 2]
    first, again, other = (drawn("--number", 3, "--seed", seed) for seed in (0, 0, 1))
    assert len(first) == 3 and first == again != other
    disc = next(entry["id"] for entry in content["categories"] if entry["name"] == "disc")
    counts = {names[id]: 0 for id in ids}
    for item in content["annotations"]:
        counts[names[item["image_id"]]] += item["category_id"] == disc
    expected = {f"{name}: {count} objects" for name, count in counts.items() if count}
    assert {line.rpartition("/")[2] for line in drawn("--classes", "disc")} == expected
    for arguments, message in (
        (["--classes", "cat"], "there are no classes cat; there are disc, triangle, cross"),
        (["--ids", "99999"], "there are no images with id 99999"),
    ):
        with pytest.raises(UserError, match=message):
            view(synthetic_data, "--output", tmp_path / "none", *arguments)


def test_nothing_is_overwritten_unless_told(synthetic_data: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_text("precious")
    with pytest.raises(
        UserError, match="there is .*sheet.png already; give another --output, or --overwrite"
    ):
        view(synthetic_data, "--output", tmp_path, "--number", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert view(synthetic_data, "--output", tmp_path, "--number", 1, "--overwrite") == 0
    assert (tmp_path / "sheet.png").read_bytes()[1:4] == b"PNG"


def test_a_name_with_dollars_stands_on_the_sheet_as_it_is(copied: Path, tmp_path: Path) -> None:
    json_file = copied / "annotations" / "val.json"
    content = json.loads(json_file.read_text())
    image = content["images"][0]
    (copied / "images" / image["file_name"]).rename(copied / "images" / "a$b_$c.png")
    image["file_name"] = "a$b_$c.png"
    json_file.write_text(json.dumps(content))
    assert view(copied, "--split", "val", "--ids", image["id"], "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / f"{image['id']}_a$b_$c.png").is_file() and (
        tmp_path / "out" / "sheet.png"
    ).is_file()


def test_broken_images_are_told_at_the_end_and_the_others_drawn(
    capsys: pytest.CaptureFixture, copied: Path, tmp_path: Path
) -> None:
    first, second, *_ = sorted((copied / "images").glob("val_*.png"))
    first.write_bytes(first.read_bytes()[:200])
    cv2.imwrite(str(second), np.zeros((9, 9, 3), np.uint8))
    assert view(copied, "--split", "val", "--output", tmp_path / "out") == 1
    assert len(list((tmp_path / "out").iterdir())) == 3
    errors = capsys.readouterr().err.splitlines()
    assert (
        len(errors) == 2
        and f"{first}: cannot be read" in errors[0]
        and f"{second}: is 9 x 9 pixels, and" in errors[1]
    )


@pytest.mark.parametrize("some", [False, True])
def test_objects_with_only_a_box_are_drawn_beside_masks(
    copied: Path, tmp_path: Path, some: bool
) -> None:
    json_file = copied / "annotations" / "val.json"
    content = json.loads(json_file.read_text())
    counts = {"with": 0, "without": 0}
    for number, item in enumerate(content["annotations"]):
        if number % 2 or not some:
            del item["segmentation"]
        counts["with" if "segmentation" in item else "without"] += 1
    json_file.write_text(json.dumps(content))
    records, _ = view_data.load(json_file, copied / "images")
    items = [item for record in records for item in record["annotations"]]
    assert sum(not item["segmentation"] for item in items) == counts["without"] and len(
        items
    ) == len(content["annotations"])
    assert (
        view(json_file, "--images", copied / "images", "--output", tmp_path / "out", "--number", 1)
        == 0
    )


def test_a_file_without_images_beside_needs_to_be_told_where_they_are(
    copied: Path, tmp_path: Path
) -> None:
    json_file = copied / "annotations" / "val.json"
    assert view(json_file, "--output", tmp_path / "out", "--number", 1) == 0
    (tmp_path / "alone").mkdir()
    lone = shutil.move(json_file, tmp_path / "alone")
    with pytest.raises(
        UserError, match="of its 4 images, 4 are not in .*; give their folder by --images DIR"
    ):
        view(lone, "--output", tmp_path / "none")
    assert (
        view(lone, "--images", copied / "images", "--output", tmp_path / "there", "--number", 1)
        == 0
    )
