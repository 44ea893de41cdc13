"""A detector is built from its checkpoint alone, and predicts the same for every kind of input."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from conftest import REPOSITORY
from detectors import CONFIG, TINY_MODEL, write_detector
from detectron2.structures import Instances
from gpvit import Predictor
from gpvit.config import load_config
from gpvit.utils.errors import UserError
from PIL import Image


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    path = tmp_path_factory.mktemp("detector") / "model_final.pth"
    write_detector(path)
    return Predictor.from_checkpoint(path, "cpu")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Images of three sizes. The first two have one size, the last two after resizing."""
    rng = np.random.default_rng(0)
    sizes = ((48, 64), (48, 64), (80, 40), (160, 80))
    return [rng.integers(0, 255, (*size, 3), np.uint8) for size in sizes]


def assert_same(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected) > 0 and found.image_size == expected.image_size
    assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert (found.pred_masks == expected.pred_masks).float().mean() > 0.999


def test_checkpoint_contains_config_classes_and_weights(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    assert predictor.classes == ["class 0", "class 1", "class 2"]
    with_config = Predictor(load_config(CONFIG, TINY_MODEL), predictor.path, "cpu")
    assert_same(predictor(images[0]), with_config(images[0]))
    assert predictor.resize(images[0]).shape == (3, 64, 85)  # short side of the checkpoint's config


def test_images_and_batch_sizes_of_other_kinds_are_refused(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="must be a path, an array or a PIL image, got .*Tensor"):
        predictor([torch.zeros(3, 8, 8)])
    with pytest.raises(UserError, match="^batch_size must be at least 1, got 0$"):
        predictor([], batch_size=0)


def test_overrides_change_config_of_checkpoint(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    changed = Predictor.from_checkpoint(
        predictor.path, "cpu", overrides=["dataloader.short_side=96"]
    )
    assert changed.resize(images[0]).shape == (3, 96, 128)


def test_folder_resolves_to_best_then_final_then_newest_checkpoint(
    tmp_path: Path,
) -> None:
    names = ("model_0000100.pth", "model_0000200.pth", "model_final.pth", "model_best.pth")
    for classes, name in enumerate(names, start=2):
        write_detector(tmp_path / name, classes=classes)
    for classes, name in reversed(list(enumerate(names, start=2))):
        predictor = Predictor.from_checkpoint(tmp_path, "cpu")
        assert Path(predictor.path).name == name and len(predictor.classes) == classes
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="has no checkpoint"):
        Predictor.from_checkpoint(tmp_path)


def test_official_detector_needs_no_config(tmp_path: Path, images: list[np.ndarray]) -> None:
    file = official.save(tmp_path / "published.pth", "retinanet", "L1")
    predictor = Predictor.from_checkpoint(file, "cpu", overrides=["dataloader.short_side=64"])
    assert predictor.classes[:2] == ["class 0", "class 1"] and len(predictor.classes) == 80
    assert predictor.model.backbone.bottom_up.net.pos_embed.shape[-1] == 216
    assert predictor(images[0]).image_size == (48, 64)


def test_path_array_pil_image_and_list_give_same_predictions(
    predictor: Predictor, images: list[np.ndarray], tmp_path: Path
) -> None:
    expected = predictor(images[0])
    pil_image, path = Image.fromarray(images[0]), tmp_path / "image.png"
    pil_image.save(path)
    for image in (path, str(path), pil_image):
        assert_same(predictor(image), expected)
    found = predictor([images[0], pil_image, path])
    assert isinstance(found, list) and len(found) == 3
    for instances in found:
        assert_same(instances, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batch_size_does_not_change_predictions(
    predictor: Predictor, images: list[np.ndarray], batch_size: int
) -> None:
    for found, image in zip(predictor(images, batch_size), images, strict=True):
        assert_same(found, predictor(image))


def test_consecutive_images_of_one_size_are_batched(
    monkeypatch: pytest.MonkeyPatch, predictor: Predictor, images: list[np.ndarray]
) -> None:
    batch_sizes = []
    run = predictor._run

    def counted_run(batch: list[dict]) -> list[Instances]:
        batch_sizes.append(len(batch))
        return run(batch)

    monkeypatch.setattr(predictor, "_run", counted_run)
    assert len(list(predictor.stream([*images, images[3]], batch_size=2))) == 5
    assert batch_sizes == [2, 2, 1]


def test_stream_yields_before_it_reads_next_image(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    read = []

    def image_source() -> Iterator[np.ndarray]:
        for image in images * 2:
            read.append(image)
            yield image

    for number, _ in enumerate(predictor.stream(image_source()), start=1):
        assert len(read) == number


def test_predictions_have_size_of_original_image(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    for image in images:
        found = predictor(image)
        assert found.pred_masks.shape[1:] == image.shape[:2]
        assert found.pred_boxes.inside_box(image.shape[:2]).all()


def test_non_rgb_array_and_missing_file_raise(
    predictor: Predictor, images: list[np.ndarray], tmp_path: Path
) -> None:
    grayscale, one_channel = images[0][..., 0], images[0][..., :1]
    floating_point, six_channels = images[0].astype(np.float32), np.dstack([images[0]] * 2)
    for array in (grayscale, one_channel, floating_point, six_channels):
        with pytest.raises(UserError, match=r"must be \(height, width, 3\), RGB, uint8, got"):
            predictor(array)
    with pytest.raises(UserError, match="missing.png: cannot be read: it does not exist"):
        predictor([images[0], tmp_path / "missing.png"])


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_unavailable_device_raises(predictor: Predictor, device: str) -> None:
    with pytest.raises(UserError, match=f"cannot run on device {device}: "):
        Predictor.from_checkpoint(predictor.path, device)


def test_checkpoint_without_config_needs_config_file(tmp_path: Path) -> None:
    write_detector(tmp_path / "model_final.pth", with_config=False)
    with pytest.raises(UserError, match="contains no config: give the config of its run"):
        Predictor.from_checkpoint(tmp_path, "cpu")
    Predictor.from_checkpoint(tmp_path, "cpu", config_file=CONFIG, overrides=TINY_MODEL)


def test_resizing_beyond_maximum_number_of_pixels_raises(tmp_path: Path) -> None:
    write_detector(tmp_path / "model.pth")
    overrides = ["dataloader.test.mapper.augmentations.0.short_edge_length=3000"]
    overrides += ["dataloader.test.mapper.augmentations.0.max_size=1000000"]
    predictor = Predictor.from_checkpoint(tmp_path / "model.pth", "cpu", overrides=overrides)
    with pytest.raises(UserError, match="cannot be resized .* 300000 x 3000 pixels"):
        predictor.resize(np.zeros((4, 400, 3), np.uint8))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"sem_seg": torch.arange(6.0).view(1, 2, 3)}, torch.arange(6.0).view(1, 2, 3)),
        ({"scores": torch.arange(4.0)}, torch.arange(4.0)),
        (
            {"scores": torch.arange(4.0), "sem_seg": torch.zeros(1)},
            {"scores": torch.arange(4.0), "sem_seg": torch.zeros(1)},
        ),
    ],
)
def test_output_of_other_models_is_returned(
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
    output: dict,
    expected: torch.Tensor | dict,
) -> None:
    monkeypatch.setattr(predictor, "model", lambda batch: [output] * len(batch))
    found = predictor(np.zeros((48, 64, 3), np.uint8))
    assert type(found) is type(expected) and str(found) == str(expected)


# Prints the resident memory in MiB after each image. With "many sizes", the number of detections
# varies from 1 to 100 as well. The factors are prime, so that the combinations do not repeat soon.
MEMORY_AFTER_IMAGES = """
import resource, sys
import numpy as np
from gpvit import Predictor

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

predictor = Predictor.from_checkpoint(sys.argv[1], "cpu")
image = np.random.default_rng(0).integers(0, 255, (190, 250, 3), np.uint8)
for i in range(int(sys.argv[2])):
    if sys.argv[3] == "many sizes":
        predictor.model.roi_heads.box_predictor.test_topk_per_image = 1 + 37 * i % 100
        predictor(image[: 40 + 37 * i % 150, : 40 + 61 * i % 210])
    else:
        predictor(image)
    print("MiB", resident(), flush=True)
"""


def memory_after_images(
    folder: Path, number: int, sizes: str, **variables: str
) -> tuple[list[float], str]:
    """Run the script above in another process.

    Returns:
        the memory in MiB after each image, and the complete output of the process.
    """
    write_detector(folder / "model.pth", overrides=[])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")} | variables
    arguments = [str(folder / "model.pth"), str(number), sizes]
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_AFTER_IMAGES, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    memory = re.findall(r"^MiB (\S+)", result.stdout, re.MULTILINE)
    return list(map(float, memory)), result.stdout


@pytest.mark.slow
def test_memory_grows_by_less_than_300_mib_over_500_sizes(tmp_path: Path) -> None:
    """It grows by 70 to 200 MiB, and by 580 or more if oneDNN's cache is not limited."""
    memory, _ = memory_after_images(tmp_path, 500, "many sizes")
    growth = max(memory[20:]) - memory[20]
    print(f"\nmemory after 20 sizes: {memory[20]:.0f} MiB, growth until 500: {growth:.0f} MiB")
    assert len(memory) == 500 and growth < 300


@pytest.mark.slow
def test_nothing_is_compiled_after_first_image_of_a_size(tmp_path: Path) -> None:
    """The limit of oneDNN's cache is large enough for one size."""
    memory, output = memory_after_images(tmp_path, 4, "one size", ONEDNN_VERBOSE="2")
    of_each_image = output.split("MiB")[: len(memory)]
    compiled = [part.count("create:cache_miss") for part in of_each_image]
    print(f"\noneDNN compiled {compiled} operations for each image")
    assert compiled[0] > 0 and not any(compiled[1:])
