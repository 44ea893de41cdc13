"""YOLO datasets: classes and splits from the YAML file, and the search for images and labels."""

import codecs
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from gpvit.cli import check_data
from gpvit.data.datasets import custom as layouts
from gpvit.utils.errors import UserError
from PIL import Image

LINE = "0 0.2 0.2 0.6 0.2 0.6 0.6\n"
ANOTHER = "0 0.3 0.3 0.7 0.3 0.7 0.7\n"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirect the cache to a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(path, "PNG")


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_list(path: Path, names: list[str]) -> None:
    """Write a text list of images below images/."""
    write(path, "".join(f"images/{name}\n" for name in names))


def dataset(folder: Path, *names: str, labels: str | None = LINE, **entries: object) -> Path:
    """Write a YOLO dataset with images of these names below images/, and their labels.

    Args:
        labels: content of each label file; None for images without label files.
        entries: keys to add to the YAML file.
    """
    for name in names:
        image(folder / "images" / name)
        if labels is not None:
            write((folder / "labels" / name).with_suffix(".txt"), labels)
    write(folder / "data.yaml", yaml.safe_dump({"names": ["a", "b"]} | entries))
    return folder


def parts(given: Path) -> dict[str, list[str]]:
    """The images of each split, by their paths relative to images/."""
    layout = layouts.find_layout(str(given))
    found = {}
    for split in layout.splits:
        images = layout.read(split).images.values()
        found[split] = sorted(os.path.relpath(image["file_name"], "images") for image in images)
    return found


def notes(given: Path) -> str:
    return "\n".join(layouts.find_layout(str(given)).notes)


def refused(given: Path) -> str:
    """The message of the error that the dataset raises, which has one line."""
    with pytest.raises(UserError) as raised:
        layouts.find_layout(str(given))
    message = str(raised.value)
    assert "\n" not in message and message.isprintable()
    return message


def problems(given: Path, split: str = "train") -> list[tuple[str, str]]:
    """The kind and the detail of each problem in a split."""
    layout = layouts.find_layout(str(given))
    file = layouts.coco.read(*layout.splits[split], masks=False)
    layout.refer_to_user_files(split, file)
    assert all(problem.image_id is problem.annotation_id is None for problem in file.problems)
    return [(problem.kind, problem.detail) for problem in file.problems]


SIX = [f"{number}.png" for number in range(6)]
SPLIT = {"train": SIX[:4], "val": SIX[4:]}


@pytest.mark.parametrize(
    "line",
    [
        "images/{}",
        "./images/{}",
        "images\\{}",
        ".\\images\\{}",
        "data/images/{}",  # written by Darknet and CVAT, relative to the parent folder
        "../elsewhere/images/{}",
        "/home/a/data/images/{}",
        "C:\\data\\images\\{}",
        "HERE/images/{}",
        "  images/{}  ",
    ],
)
def test_text_lists_with_any_form_of_path_are_read(tmp_path: Path, line: str) -> None:
    folder = dataset(tmp_path / "d", *SIX, train="train.txt", val="val.txt", path=".")
    for split, names in SPLIT.items():
        lines = [line.replace("HERE", str(folder)).format(name) for name in names]
        write(folder / f"{split}.txt", codecs.BOM_UTF8 + "\r\n\r\n".join(lines).encode())
    assert parts(folder) == parts(folder / "data.yaml") == SPLIT
    assert notes(folder) == ""


def test_listed_names_match_across_encodings_and_unicode_forms(tmp_path: Path) -> None:
    names = [
        "é.png",
        "-a b%20.png",
        "#\"'%.png",
        "e\u0301x.png",
        "\u2028.png",
        "\N{SNAKE}.png",
        "  c.png",
        "x\udce9.png",
    ]
    image(tmp_path / "images" / "0.png")
    for name in names:
        image(tmp_path / "images" / name)
        write((tmp_path / "labels" / name).with_suffix(".txt"), LINE)
    # The first and the fourth name are written percent-encoded and in the composed Unicode form.
    lines = ["images/%C3%A9.png", f"images/{names[1]}", f"images/{names[2]}", "images/\xe9x.png"]
    lines += [f"images/{name}" for name in names[4:7]]
    write(tmp_path / "train.txt", "\r".join(lines).encode("utf-16"))
    write(tmp_path / "val.txt", b"images/x\xe9.png")
    write(tmp_path / "data.yaml", "names: [a]\ntrain: train.txt\nval: val.txt\n")
    assert parts(tmp_path) == {"train": sorted(names[:-1]), "val": [names[-1]]}
    assert check_data.main(["--data", str(tmp_path), "--json", str(tmp_path / "problems.txt")]) == 0


@pytest.mark.parametrize(
    ("entries", "given"),
    [
        ({"train": ["images/a", "images/b"], "val": "images/c"}, "d"),
        (
            {"path": "..", "train": ["d/images/a", "d/images/b"], "val": ["d/images/c"]},
            "d/data.yaml",
        ),
        ({"train": "../images", "val": "..\\images\\c"}, "d"),
        ({"Train": ["./images/a/", "images\\b"], "valid": "images/c"}, "d"),
        ({"path": "HERE", "train": ["images/a", "b.txt"], "val": "images/c"}, "d"),
        (
            {
                "path": "/not/here",
                "train": ["/not/here/images/a", "C:\\x\\d\\images\\b"],
                "val": "d/images/c",
            },
            "d",
        ),
        (
            {"train": ["images/a", "images/b"], "validation": "images/c", "test": "../test/images"},
            "d",
        ),
    ],
)
def test_splits_of_folders_and_lists_are_read(tmp_path: Path, entries: dict, given: str) -> None:
    names = {"train": ["a/0.png", "a/1.png", "b/x/2.png"], "val": ["c/3.png"]}
    entries = json.loads(json.dumps(entries).replace("HERE", str(tmp_path / "d")))
    folder = dataset(tmp_path / "d", *names["train"], *names["val"], **entries)
    write(folder / "b.txt", "./images/b/x/2.png\n")
    found = parts(tmp_path / given)
    for split, group in found.items():
        found[split] = [name.removeprefix("../d/images/") for name in group]
    assert found == names


def test_yaml_file_outside_of_the_dataset_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(tmp_path / "sets" / "d", "train/0.png", "val/1.png")
    (folder / "data.yaml").unlink()
    write(folder / "train.txt", "./images/train/0.png\n")
    expected = {"train": ["train/0.png"], "val": ["val/1.png"]}
    monkeypatch.chdir(tmp_path)
    for path, train in (
        ("../sets/d", "images/train"),
        (folder, "train.txt"),
        ("sets/d", f"{folder}/images/train"),
    ):
        content = {"path": str(path), "train": train, "val": "images/val", "names": ["a"]}
        write(tmp_path / "configs" / "d.yaml", yaml.safe_dump(content))
        assert parts(tmp_path / "configs" / "d.yaml") == expected
    write(
        tmp_path / "configs" / "d.yaml",
        "train: ../sets/d/images/train\nval: ../sets/d/images/val\nnames: [a]\n",
    )
    assert parts(tmp_path / "configs" / "d.yaml") == expected
    write(
        folder / "deeper" / "d.yml", "path: ..\nnames: [a]\ntrain: images/train\nval: images/val\n"
    )
    assert parts(folder) == parts(folder / "deeper" / "d.yml") == expected
    write(
        tmp_path / "other" / "data.yaml",
        f"path: {folder}\nnames: [a]\ntrain: images/train\nval: images/val\n",
    )
    message = refused(tmp_path / "other")
    assert "lies outside of" in message and "give the YAML file itself" in message


@pytest.mark.parametrize("line", ["0 4 3 24 3 24 18", "0 20 10 8 4"])
def test_labels_in_pixels_raise(tmp_path: Path, line: str) -> None:
    folder = dataset(tmp_path, *SIX, labels=f"{line}\n")
    expected = "label files are not valid objects, first .* not normalized; is it in pixels"
    with pytest.raises(UserError, match=expected):
        layouts.read(str(folder), "train", masks=False)


def test_second_label_file_of_an_image_is_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path, *SIX)
    write(folder / "images" / "0.txt", ANOTHER)
    expected = "left out: 1 label files of images that have another label file: images/0.txt"
    assert expected in notes(folder)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("images/aval", "val"),
        ("a", "images/val"),
        ("backup", "images/train"),
        ("images/labels", ".."),
        ("train", "."),
    ],
)
def test_symlink_to_a_folder_does_not_hide_it(tmp_path: Path, link: str, target: str) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    (folder / link).symlink_to(target)
    assert parts(folder) == {"train": ["train/0.png", "train/1.png"], "val": ["val/2.png"]}
    assert notes(folder) == ""


def test_symlink_named_labels_takes_precedence_over_its_target(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    (folder / "labels").rename(folder / "lab_v2")
    (folder / "labels").symlink_to("lab_v2")
    assert parts(folder) == {"train": ["train/0.png", "train/1.png"], "val": ["val/2.png"]}
    assert notes(folder) == ""


def test_class_names_keep_their_spelling_in_yaml(tmp_path: Path) -> None:
    folder = dataset(tmp_path, *SIX)
    write(folder / "data.yaml", "names: [010, 1.10, 1_000, 12:30, 0x1F, 1e3]\nnc: 6\n")
    classes = layouts.read(str(folder), "train").categories.values()
    assert list(classes) == ["010", "1.10", "1_000", "12:30", "0x1F", "1e3"]


def test_missing_and_duplicate_entries_of_lists_are_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path, *SIX, "more.png", train="train.txt", val="val.txt", test="test.txt")
    write_list(folder / "train.txt", [*SIX[:4], "gone.png", "0.png"])
    write_list(folder / "val.txt", [*SIX[3:], "gone too.png"])
    write(folder / "test.txt", "images/more.png\nimages/0.png\n")
    assert parts(folder) == {"train": SIX[:3], "val": SIX[3:]}
    assert notes(folder).splitlines() == [
        "data.yaml: train: train.txt: left out: 1 of 5 images that do not exist: images/gone.png",
        "data.yaml: val: val.txt: left out: 1 of 4 images that do not exist: images/gone too.png",
        "not used: 1 test images",
    ]
    assert problems(folder) == [("named twice", "train.txt: images/0.png")]
    assert problems(folder, "val") == [("named for two", "images/3.png, used for val")]


@pytest.mark.parametrize(
    "line", ["a/gone.png", "/home/a/data/images/a/gone.png", "C:\\data\\images\\a\\gone.png"]
)
def test_deleted_listed_image_is_not_replaced_from_another_folder(
    tmp_path: Path, line: str
) -> None:
    folder = dataset(
        tmp_path, "a/0.png", "a/1.png", "gone.png", path="images", train="../train.txt", val="a"
    )
    write(folder / "train.txt", f"a/0.png\n{line}\n")
    assert f"left out: 1 of 2 images that do not exist: {line}" in notes(folder)
    assert parts(folder)["train"] == ["a/0.png"]


def test_images_in_no_list_are_dropped_and_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path, *SIX, train="train.txt", test="val.txt")
    write_list(folder / "train.txt", SIX[:3])
    write(folder / "val.txt", f"images/{SIX[3]}")
    assert parts(folder) == {"train": SIX[:3], "val": SIX[3:4]}
    expected = "left out: 2 images that are in no split of data.yaml: images/4.png, images/5.png"
    assert notes(folder) == expected


@pytest.mark.parametrize(
    ("train", "val", "found", "note"),
    [
        ("images", "images", None, "the same 4 images for train and val: used for train only"),
        (
            "images/a",
            "images",
            {"train": ["a/0.png", "a/1.png"], "val": ["b/2.png", "b/3.png"]},
            "images/a/0.png, used for train",
        ),
        (
            "images",
            "images/b",
            {"train": ["a/0.png", "a/1.png"], "val": ["b/2.png", "b/3.png"]},
            "images/b/2.png, used for val",
        ),
    ],
)
def test_train_and_val_never_share_an_image(
    tmp_path: Path, train: str, val: str, found: dict, note: str
) -> None:
    folder = dataset(tmp_path, "a/0.png", "a/1.png", "b/2.png", "b/3.png", train=train, val=val)
    if found:
        assert parts(folder) == found
        overlap = problems(folder) + problems(folder, "val")
        assert overlap[0] == ("named for two", note) and len(overlap) == 2
    else:
        assert note in notes(folder)
        assert "1 of 4 images are held out for validation" in notes(folder)


def test_split_missing_in_yaml_is_found_by_folder_name(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "a/0.png", "a/1.png", "val/2.png", "c/3.png", train="images/a")
    assert parts(folder) == {"train": ["a/0.png", "a/1.png"], "val": ["val/2.png"]}
    assert "left out: 1 images that are in no split of data.yaml: images/c/3.png" in notes(folder)
    folder = dataset(tmp_path, val="images/a")
    assert parts(folder) == {"val": ["a/0.png", "a/1.png"]}
    folder = dataset(tmp_path, train="images/c", val=None, test="")
    assert parts(folder) == {"train": ["c/3.png"], "val": ["val/2.png"]}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("images/gone", "train is images/gone, which does not exist (searched from HERE/)"),
        ("gone.txt", "train is gone.txt, which does not exist"),
        (["images/train", "gone"], "train is gone, which does not exist"),
        ([], "train is an empty list"),
        ([None], "train is None, which is not a path"),
        ({"a": "images/train"}, "train is {'a': 'images/train'}, which is not a path"),
        (True, "train is True, which is not a path"),
        ("https://x.org/coco.zip", "train is https://x.org/coco.zip, a URL; download it"),
        ("images/tr*", "patterns are not supported"),
        ("images/[ab]/*.png", "patterns are not supported"),
        ("empty", "train is empty, which has no images"),
        ("empty.txt", "empty.txt: it is empty"),
        (
            "unread.txt",
            "unread.txt, which lists only images of unsupported formats: images/3.heic",
        ),
        ("wrong.txt", "wrong.txt: none of its 2 images is in HERE: images/gone.png, root:x"),
        ("data.yaml", "which is neither a folder nor a text list"),
        ("../outside", "which lies outside of HERE; give the YAML file itself"),
        ("../outside/list.txt", "which lies outside of HERE; give the YAML file itself"),
        ("pipe.txt", "which is neither a folder nor a text list"),
        ("x" * 5000, "which does not exist"),
        ("a\0b\n", "train is a\\x00b\\n, which does not exist"),
        ("images/unlabeled", "none of the 1 images for train has labels"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_invalid_split_entry_raises(
    tmp_path: Path, train: object, message: str, split: str
) -> None:
    other = "val" if split == "train" else "train"
    folder = dataset(
        tmp_path / "d", "train/0.png", "val/1.png", **{other: f"images/{other}", split: train}
    )
    image(folder / "images" / "unlabeled" / "2.png")
    image(tmp_path / "outside" / "3.png")
    write(tmp_path / "outside" / "list.txt", "3.png")
    write(folder / "empty" / "readme.md", "")
    write(folder / "empty.txt", "\n\n")
    write(folder / "images" / "3.heic", "")
    write(folder / "unread.txt", "images/3.heic")
    write(folder / "wrong.txt", "images/gone.png\nroot:x\n")
    os.mkfifo(folder / "pipe.txt")
    expected = (
        message.replace("HERE", str(folder))
        .replace("train is", f"{split} is")
        .replace("for train", f"for {split}")
    )
    assert expected in refused(folder)


def test_missing_test_split_is_ignored_if_val_exists(tmp_path: Path) -> None:
    folder = dataset(
        tmp_path,
        "train/0.png",
        "val/1.png",
        train="images/train",
        val="images/val",
        test="../test/images",
    )
    assert parts(folder) == {"train": ["train/0.png"], "val": ["val/1.png"]}
    expected = "test is ../test/images, which does not exist"
    assert "not used: " in notes(folder) and expected in notes(folder)
    folder = dataset(tmp_path, train="images/train", test="gone")
    assert "test is gone, which does not exist" in refused(folder)


# The search for images and labels.


def test_supported_suffixes_are_found_and_others_reported(tmp_path: Path) -> None:
    suffixes = ("jfif", "jpe", "mpo", "JPEG", "jp2", "pgm", "webp", "apng", "tiff")
    names = [f"train/{suffix}/0.{suffix}" for suffix in suffixes]
    folder = dataset(tmp_path, *names, "val/0.png")
    write(folder / "images/train/b.heic", "")
    write(folder / "labels/train/b.txt", LINE)
    write(folder / "images/val/c.AVIF", "")
    assert parts(folder)["train"] == sorted(names)
    expected = (
        "left out: 2 images of unsupported formats (.AVIF, .heic), 1 of them with labels: "
        "images/train/b.heic, images"
    )
    assert expected in notes(folder)
    write(folder / "train.txt", "images/train/b.heic\nimages/val/0.png\nimages/train/jpe/0.jpe\n")
    assert ".heic" in notes(dataset(folder, train="train.txt", val="images/val"))


@pytest.mark.parametrize(
    ("extra", "used", "left_out"),
    [
        ("images/train/background/x/0.png", True, False),  # in a folder of images with labels
        ("images/background/0.png", False, True),  # all other folders name their splits
        ("preview/0.png", False, True),
        ("images/test/0.png", False, True),  # without labels, this is not a split
        ("0.png", False, True),
    ],
)
def test_images_without_labels_are_negatives_or_reported(
    tmp_path: Path, extra: str, used: bool, left_out: bool
) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    image(folder / extra)
    found = parts(folder)
    assert (os.path.relpath(extra, "images") in found["train"]) is used and len(found["val"]) == 1
    negative = f"1 images have no label file and are treated as images without objects: {extra}"
    assert (negative in notes(folder)) is used
    dropped = f"left out: 1 images without labels, in folders without labels: {extra}"
    assert (dropped in notes(folder)) is left_out


def test_unlabeled_images_listed_in_yaml_are_negatives(tmp_path: Path) -> None:
    folder = dataset(
        tmp_path, "train/0.png", "val/1.png", train=["images/train", "negatives"], val="images/val"
    )
    image(folder / "negatives" / "2.png")
    image(folder / "preview" / "3.png")
    assert parts(folder)["train"] == ["../negatives/2.png", "train/0.png"]
    assert "left out: 1 images that are in no split of data.yaml: preview/3.png" in notes(folder)


def test_negatives_in_a_folder_without_splits_are_used(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "a/0.png", "a/1.png", "a/2.png", "a/3.png")
    image(folder / "images" / "background" / "4.png")
    found = parts(folder)
    assert sorted(found["train"] + found["val"]) == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
        "a/3.png",
        "background/4.png",
    ]


def test_labels_are_found_next_to_images_or_in_parallel_labels_folder(tmp_path: Path) -> None:
    dataset(tmp_path / "images", "a/images/0.png", "b/1.png", train="images/a", val="images/b")
    (tmp_path / "images/labels/a/images").rename(tmp_path / "images/images/a/labels")
    (tmp_path / "images/labels/b/1.txt").rename(tmp_path / "images/images/b/1.txt")
    assert parts(tmp_path / "images") == {"train": ["a/images/0.png"], "val": ["b/1.png"]}
    assert notes(tmp_path / "images") == ""


def test_label_file_of_several_images_is_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/0.jpg", "val/1.png")
    assert parts(folder)["train"] == ["train/0.jpg", "train/0.png"]
    assert notes(folder) == (
        "1 label files belong to several images, which differ in their suffix: labels/train/0.txt"
    )


def test_labels_without_an_image_are_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    for name in ("labels/train/gone.txt", "labels/empty.txt", "annotations/lost.txt"):
        write(folder / name, "" if "empty" in name else LINE)
    for name in ("labels/classes.txt", "readme.txt", "train.txt"):
        write(folder / name, "images/train/0.png and a line of words")
    assert notes(folder) == (
        "left out: 3 label files whose image does not exist: "
        "annotations/lost.txt, labels/empty.txt, labels/train/gone.txt"
    )
    for name in ("0", "1"):
        (folder / f"labels/train/{name}.txt").rename(folder / f"labels/train/{name}{name}.txt")
    (folder / "labels/val/2.txt").rename(folder / "labels/2.txt")
    message = refused(folder)
    assert "has no images with labels" in message
    assert "6 label files do not belong to an image" in message


@pytest.mark.parametrize("number", ["%.18e", "%.3E"])
def test_labels_in_scientific_notation_are_recognized(tmp_path: Path, number: str) -> None:
    folder = dataset(tmp_path, "train/0.png", "val/1.png")
    values = [number % value for value in (0, 0.0002, 0.2, 0.6, 0.5)]
    write(folder / "annotations/lost.txt", " ".join(values) + "\n")
    expected = "left out: 1 label files whose image does not exist: annotations/lost.txt"
    assert notes(folder) == expected


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("d\xe9cran", "d%C3%A9cran"),
        ("d%C3%A9cran", "d\xe9cran"),
        ("d\xe9cran", unicodedata.normalize("NFD", "d\xe9cran")),
        (unicodedata.normalize("NFD", "d\xe9cran"), "d\xe9cran"),
        ("my image #1", "my%20image%20%231"),
        ("x\udce9", "x%E9"),
    ],
)
def test_label_names_match_after_decoding_and_normalization(
    tmp_path: Path, name: str, label: str
) -> None:
    folder = dataset(tmp_path, f"train/{name}.png", "val/0.png")
    (folder / f"labels/train/{name}.txt").rename(folder / f"labels/train/{label}.txt")
    file = layouts.read(str(folder), "train")
    assert list(map(len, file.objects.values())) == [1]
    expected = "1 label files belong to images whose names differ by percent-encoding, Unicode form"
    assert expected in notes(folder)


def test_label_file_that_matches_two_images_is_dropped(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "val/1.png")
    for name in ("a b.png", "a%20b.png"):
        image(folder / "images/train" / name)
    write(folder / "labels/train/a%20b.txt", LINE)
    # The exact name of one image takes precedence.
    assert "differ by" not in notes(folder) and "1 images have no label file" in notes(folder)
    (folder / "labels/train/a%20b.txt").rename(folder / "labels/train/%61%20b.txt")
    # Now both names match the label file only after decoding.
    assert "2 images have no label file" in notes(folder)
    assert "left out: 1 label files" in notes(folder)


# Invalid content of labels, images and YAML files.


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        ("2 0.2 0.2 0.6 0.2 0.6 0.6", "class", "class 2, but there are names for 0 to 1"),
        ("-1 0.2 0.2 0.6 0.2", "class", "class -1, but"),
        ("1.5 0.2 0.2 0.6 0.2", "line", "Invalid class id '1.5'"),
        ("a 0.2 0.2 0.6 0.2", "line", "Invalid class id 'a'"),
        ("nan 0.2 0.2 0.6 0.2", "line", "Invalid class id 'nan'"),
        ("1e30 0.2 0.2 0.6 0.2", "line", "too large"),
        ("1e999999999 0.2 0.2 0.6 0.2", "line", "class id '1e999999999' is too large"),
        ("-1e999999999 0.2 0.2 0.6 0.2", "line", "is too large"),
        ("0 nan 0.2 0.6 0.2", "line", "Invalid box ('nan'"),
        ("0 0.2 0.2 inf 0.2 0.6 0.6", "line", "must contain only finite numeric values"),
        ("0 0.2 0.2 nan 0.2 0.6 0.6", "line", "must contain only finite numeric values"),
        ("0 0.2 0.2 0.6 x 0.6 0.6", "line", "could not convert string to float: 'x'"),
        ("0 0.2 0.2 0.6 0.2 0.6 0.6 0.5", "line", "an odd number of coordinates"),
        ("0 0.2", "line", "expected at least 5 tokens"),
        ("0", "line", "expected at least 5 tokens"),
        ("0 0.2 0.2 -0.6 0.2", "line", "Invalid box extent"),
        ("0,0.2,0.2,0.6,0.2", "line", "expected at least 5 tokens"),
        (b"caf\xe9 0.2 0.2 0.6 0.2", "line", "Invalid class id 'caf\\udce9'"),
        ("0 0.2 0.2 0.6 0.0", "empty box", "24 x 0"),
    ],
)
def test_invalid_line_is_dropped_and_reported(
    tmp_path: Path, line: str | bytes, kind: str, reason: str
) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    invalid = line if isinstance(line, bytes) else line.encode()
    content = b"\r\n".join([LINE.strip().encode(), b"", invalid, ANOTHER.encode()])
    for name in ("0", "1"):
        write(folder / f"labels/train/{name}.txt", content)
    for _ in range(2):  # the second time from the cache
        (first, detail), second = problems(folder)
        assert first == kind and reason in detail
        assert detail.startswith("labels/train/0.txt, line 3: ")
        assert second == (first, detail.replace("0.txt", "1.txt"))
    file = layouts.read(str(folder), "train", masks=False)
    assert list(map(len, file.objects.values())) == [2, 2] and file.num_annotations == 6


def test_checker_writes_all_problems_to_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = dataset(tmp_path / "d", "train/0.png", "train/1.png", "val/2.png")
    write(
        folder / "labels/train/0.txt",
        LINE + "9 0.1 0.1 0.2 0.2\n" * 7 + "0 0.1\n" + "0 0.2 0.2 0.7 0.2 0.2 0.6\n",
    )
    arguments = ["--data", str(folder), "--boxes", "--json", str(tmp_path / "p.json")]
    assert check_data.main(arguments) == 0
    text = capsys.readouterr().out
    what = "7 lines of label files have a class without a name in the YAML file"
    assert f"dropped: {what}\n    (labels/train/0.txt, line 2:" in text
    assert "train.json: 2 images, 3 of 11 annotations used" in text
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [row["kind"] for row in rows] == ["line", *["class"] * 7]
    assert check_data.main(["--data", str(folder / "data.yaml"), "--annotations-only"]) == 0
    assert "2 images, 3 of 11 annotations used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\0\1\2", "is not a text file"), (None, "is not a text file")]
)
def test_unreadable_label_files_raise_and_are_all_reported(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    for name in ("0", "1"):
        path = folder / f"labels/train/{name}.txt"
        path.unlink()
        write(path, content) if content else os.mkfifo(path)
    assert problems(folder)[:2] == [
        ("label file", f"labels/train/{name}.txt: {reason}") for name in "01"
    ]
    expected = f"2 label files cannot be used, first labels/train/0.txt: {reason}: fix"
    with pytest.raises(UserError, match=expected) as raised:
        layouts.read(str(folder), "train")
    assert str(raised.value).endswith(
        f"All problems: gpvit check-data --annotations-only --data {folder}"
    )
    layouts.read(str(folder), "val")


def test_unreadable_images_raise_and_are_all_reported(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "train/2.png", "val/2.png")
    write(folder / "images/train/0.png", "no image")
    write(folder / "images/train/1.png", "")
    assert [kind for kind, _ in problems(folder)] == ["unreadable", "unreadable"]
    expected = "2 images cannot be read, first .*0.png: cannot be read: it is not an image"
    with pytest.raises(UserError, match=expected):
        layouts.read(str(folder), "train")


def test_extra_number_of_all_outlines_is_treated_as_score(tmp_path: Path) -> None:
    folder = dataset(
        tmp_path, "train/0.png", "train/1.png", "val/2.png", labels=LINE.replace("\n", " 0.9\n")
    )
    file = layouts.read(str(folder), "train")
    [item] = file.objects[1]
    assert item["segmentation"] == [[8, 4, 24, 4, 24, 12]] and not file.problems
    assert "3 outlines have one extra number, which is treated as a score" in notes(folder)


@pytest.mark.parametrize(
    "encode", [lambda text: codecs.BOM_UTF8 + text.encode(), lambda text: text.encode("utf-16")]
)
def test_byte_order_marks_and_line_endings_are_accepted(
    tmp_path: Path, encode: Callable[[str], bytes]
) -> None:
    folder = dataset(tmp_path, "train/0.png", "val/1.png")
    write(folder / "labels/train/0.txt", encode((LINE + ANOTHER).replace("\n", "\r")))
    write(
        folder / "data.yaml",
        encode("names: [\xe4, b]\r\ntrain: images/train\r\nval: images/val\r\n"),
    )
    file = layouts.read(str(folder), "train")
    assert len(file.objects[1]) == 2 and not file.problems
    assert file.categories == {1: "\xe4", 2: "b"}


@pytest.mark.parametrize("name", ["data.yaml", "my.yml", "DATA.YAML"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("names:\n\t- a\n", "is not valid YAML: line 2: found character"),
        (
            b"x: 1\r\nnames: [b\xf6x]\r\n",
            "is not valid YAML: line 2: byte 0xf6 is not UTF-8",
        ),
        (b"x: 1\nnames: ['\x1b']\n", "is not valid YAML: line 2: control characters"),
        ("names: [a\nnc: 1\n", "is not valid YAML: line 2"),
        ("names: {0: a, 0: b}", "is not valid YAML: line 1: has the key 0 twice"),
        ("names: {1: a, 2: b}", "its names are numbered 1, 2, not from 0 to 1"),
        ("names: {0: a, 2: b}", "its names are numbered 0, 2, not from 0 to 1"),
        ("names: {a: 0, b: 1}", "its names are numbered a, b, not from 0 to 1"),
        ("nc: 2\n", 'it has no "names" of classes'),
        ("names:\n", 'it has no "names" of classes'),
        ("names: []\n", '"names" are [], not a list'),
        ("names: {}\n", '"names" are [], not a list'),
        ("names: box\n", "\"names\" are 'box', not a list"),
        ("names: 5\n", "\"names\" are '5', not a list"),
        ("names: [a, null]\n", "the name of class 1 is None, not text"),
        ("names: [a, no]\n", "the name of class 1 is False, not text; put it in quotes"),
        ("names: [[a], b]\n", "the name of class 0 is ['a'], not text"),
        ("names: {0: {name: a}}\n", "the name of class 0 is {'name': 'a'}, not text"),
        ("names: [a, '']\n", "the name of class 1 is '', not text"),
        ("names: [2024-01-01]\n", "the name of class 0 is datetime.date(2024, 1, 1), not text"),
        ("names: [a, b]\nnc: 3\n", '"nc" is 3, but there are 2 names'),
        ("names", "it has no keys"),
        ("", "it has no keys"),
    ],
)
def test_invalid_yaml_file_raises(
    tmp_path: Path, name: str, content: str | bytes, reason: str
) -> None:
    folder = dataset(tmp_path / "d", "train/0.png", "val/1.png")
    (folder / "data.yaml").unlink()
    write(folder / name, content)
    for given in (folder, folder / name):
        message = refused(given)
        assert reason in message and name in message
        assert "no annotations are recognized" not in message


def test_numeric_and_duplicate_class_names_are_accepted(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "val/1.png", names={"1": "a", "0": 7, 2: "a"}, nc="3")
    file = layouts.read(str(folder), "train")
    assert list(file.categories.values()) == ["7", "a", "a"]
    assert [problem.kind for problem in file.problems] == ["same name"]


def test_unrelated_yaml_files_are_ignored(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "val/1.png")
    write(folder / "hyperparameters.yaml", "lr0: 0.01\n")
    write(folder / "broken.yml", "\t")
    assert parts(folder) == {"train": ["train/0.png"], "val": ["val/1.png"]}
    write(folder / "more.yaml", "names: [a]")
    assert "data.yaml, more.yaml all have class names" in refused(folder)


def test_oriented_boxes_become_polygons(tmp_path: Path) -> None:
    folder = dataset(
        tmp_path, "train/0.png", "val/1.png", labels="1 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5\n"
    )
    [item] = layouts.read(str(folder), "train").objects[1]
    assert item["segmentation"] == [[20, 2, 36, 10, 20, 18, 4, 10]]


FOLDS = [["fold1/data.yaml", "fold2/data.yaml"], ["fold 1.yaml", "fold-1.yaml"]]


@pytest.mark.parametrize("files", FOLDS)
def test_yaml_files_of_one_folder_have_separate_splits(tmp_path: Path, files: list[str]) -> None:
    folder = dataset(tmp_path / "sets", *SIX)
    (folder / "data.yaml").unlink()
    for number, file in enumerate(files):
        # The second YAML file swaps train and val.
        halves = (SIX[:3], SIX[3:]) if number == 0 else (SIX[3:], SIX[:3])
        for split, names in zip(("train", "val"), halves, strict=True):
            write_list(folder / f"{split}{number}.txt", names)
        lists = {"train": f"train{number}.txt", "val": f"val{number}.txt"}
        path = ".." if "/" in file else "."
        write(folder / file, yaml.safe_dump({"names": ["a"], "path": path} | lists))
    assert parts(folder / files[0]) == {"train": SIX[:3], "val": SIX[3:]}
    assert parts(folder / files[1]) == {"train": SIX[3:], "val": SIX[:3]}


@pytest.mark.parametrize(
    ("given", "json_file", "reason"),
    [
        ("data.yaml", "data.yaml", "data.yaml is the dataset itself; give another file name"),
        (".", "data.yaml", "data.yaml already exists in the dataset; remove it, or give"),
        (".", "labels/train/0.txt", "0.txt already exists in the dataset"),
        ("all.json", "all.json", "all.json is the dataset itself; give another file name"),
    ],
)
def test_checker_does_not_overwrite_dataset_files(
    tmp_path: Path, given: str, json_file: str, reason: str
) -> None:
    folder = dataset(tmp_path / "d", "train/0.png", "train/1.png", "val/2.png")
    if given == "all.json":  # one COCO file: the checker reads a copy in the cache, split in two
        folder = tmp_path / "coco"
        sides = {"width": 40, "height": 20}
        images = [{"id": number, "file_name": f"{number}.png", **sides} for number in range(4)]
        for entry in images:
            image(folder / entry["file_name"])
        item = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [2, 2, 4, 4]}
        content = {"categories": [{"id": 1, "name": "a"}], "images": images, "annotations": [item]}
        write(folder / "all.json", json.dumps(content))
    before = (folder / json_file).read_bytes()
    with pytest.raises(UserError, match=reason):
        check_data.main(
            ["--data", str(folder / given), "--boxes", "--json", str(folder / json_file)]
        )
    assert (folder / json_file).read_bytes() == before


def test_duplicate_line_reports_both_line_numbers(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    write(folder / "labels/train/1.txt", "\n" + LINE + ANOTHER + LINE)
    assert problems(folder) == [("object twice", "labels/train/1.txt, line 4: same as line 2")]


def test_duplicate_image_file_reports_the_first(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train/0.png", "train/1.png", "val/2.png")
    (folder / "images/train/1.png").unlink()
    (folder / "images/train/1.png").symlink_to("0.png")
    assert problems(folder) == [("file twice", "images/train/1.png: same as images/train/0.png")]
