"""Images of at least one pixel per side are predicted, trained on and drawn at any aspect ratio."""

import json
from pathlib import Path

import cv2
import detectron2.data.transforms as T
import gpvit.data
import numpy as np
import pytest
import train_net
from conftest import REPOSITORY, TINY
from detectors import write_detector
from detectron2.data import DatasetCatalog
from gpvit import Predictor
from gpvit.cli import predict, view_attention, view_data, view_results
from gpvit.cli.train import argument_parser
from gpvit.data.transforms import AugmentedImage
from gpvit.utils.errors import UserError
from gpvit.visualization.drawing import LARGEST_SIDE, SMALLEST_SIDE, draw_predictions, reduced
from PIL import Image

pytestmark = pytest.mark.long

SIZES = [(1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1), (3, 10000)]
RECIPES = {
    "resize": gpvit.data.train_augmentations("resize", 192, 320, 0),
    "lsj": gpvit.data.train_augmentations("lsj", 0, 0, 64),
    "3x": gpvit.data.multi_scale_crop([480, 800], 1333),
    "published": [gpvit.data.OpenCVResize(800, 1333)],
    "nested": [T.RandomApply(T.AugmentationList([T.ResizeShortestEdge(192, 320)]), prob=1)],
}


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained detector."""
    path = tmp_path_factory.mktemp("detector") / "model_final.pth"
    write_detector(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of thin images, each with an object that fills it and maybe a smaller one."""
    root = tmp_path_factory.mktemp("thin") / "data"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        images, objects = [], []
        for number, (height, width) in enumerate(SIZES, start=1):
            name = f"{split}_{number}.png"
            Image.fromarray(noise((height, width))).save(root / "images" / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for x, w in ((0, width), (width // 3, max(1, width // 2))):
                item = {"id": len(objects) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                item |= {"bbox": [x, 0, w, height], "area": w * height}
                item["segmentation"] = [[x, 0, x + w, 0, x + w, height, x, height]]
                objects.append(item)
        categories = [{"id": 1, "name": "line"}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("size", SIZES)
def test_thin_array_is_predicted_and_drawn(weights: Path, size: tuple[int, int]) -> None:
    predictor, image = Predictor.from_checkpoint(weights, "cpu"), noise(size)
    instances = predictor(image)
    assert len(instances) > 0 and instances.image_size == size
    assert instances.pred_masks.shape[1:] == size
    drawing = draw_predictions(image, instances[:3], predictor.classes)
    scale = min(max(1, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))
    for side, drawn_side in zip(size, drawing.shape):
        assert abs(drawn_side - max(1, scale * side)) <= 1
    drawing = draw_predictions(image, instances[:3], predictor.classes, resize=False)
    assert drawing.shape == image.shape


def test_thin_drawing_shows_image(weights: Path) -> None:
    image, color = np.zeros((1, 5120, 3), np.uint8), (200, 100, 50)
    image[:, 2560:] = color
    drawing = draw_predictions(image, Predictor.from_checkpoint(weights, "cpu")(image)[:0], [])
    assert drawing.shape == (1, 2560, 3)
    # Interpolation mixes colors in the middle.
    assert not drawing[0, :1270].any()
    assert np.abs(drawing[0, 1290:] - np.array(color, float)).max() <= 1


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_image_without_pixels_is_rejected(weights: Path, size: tuple[int, int]) -> None:
    predictor = Predictor.from_checkpoint(weights, "cpu")
    for image in (np.zeros((*size, 3), np.uint8), Image.new("RGB", size)):
        with pytest.raises(UserError, match="an array must be|the image has no pixels"):
            predictor(image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_augmentations_keep_thin_image_and_objects(
    data: Path, recipe: str, size: tuple[int, int]
) -> None:
    mapper = gpvit.data.InstanceMapper(
        True,
        augmentations=RECIPES[recipe],
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=True,
    )
    record = DatasetCatalog.get(gpvit.data.register_folder(str(data), "train"))[SIZES.index(size)]
    np.random.seed(0)
    for _ in range(5):
        output = mapper(record)
        height, width = output["image"].shape[1:]
        assert min(height, width) >= 1 and output["instances"].image_size == (height, width)
        assert len(output["instances"]) > 0
        for mask in output["instances"].gt_masks.tensor:
            assert mask.shape == (height, width) and mask.any()


def test_resize_equals_detectron2_unless_side_rounds_to_zero() -> None:
    for size in ((48, 64), (37, 641), (1, 640), (1, 641), (1, 5000)):
        image = noise(size)
        expected = T.ResizeShortestEdge(192, 320).get_transform(image)
        augmented = AugmentedImage(image)
        (transform,) = T.AugmentationList([T.ResizeShortestEdge(192, 320)])(augmented).transforms
        assert (transform.new_h, transform.new_w) == (max(1, expected.new_h), expected.new_w)
        if expected.new_h:  # Detectron2 rounds the height of the thinnest images to 0
            assert np.array_equal(augmented.image, expected.apply_image(image))


def test_reduced_image_has_at_least_one_pixel_per_side() -> None:
    assert reduced(noise((1, 2000)), 0.1).shape == (1, 200, 3)
    for size, scale in (((480, 640), 0.37), ((33, 57), 0.5), ((7, 9), 0.9)):
        expected = cv2.resize(noise(size), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        assert reduced(noise(size), scale).shape == expected.shape
    assert reduced(noise((4, 5)), 1.5).shape == (4, 5, 3)


def test_predict_and_view_commands_accept_thin_images(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    def call(main, *arguments: str | Path) -> None:
        assert main(list(map(str, arguments))) == 0

    detector = ("--weights", weights, "--device", "cpu")
    files = [data / "images" / f"train_{number + 1}.png" for number in range(len(SIZES))]
    demo = tmp_path / "demo"
    options = ("--json", "--cutouts", "--score-threshold", "0.2")
    call(predict.main, *detector, "--input", *files, "--output", demo, *options)
    written = json.loads((demo / "images.json").read_text())["images"]
    assert {(image["height"], image["width"]) for image in written} == set(SIZES)
    assert json.loads((demo / "predictions.json").read_text())
    for image in written:
        drawing = cv2.imread(str(demo / image["file_name"]))
        assert drawing is not None and min(drawing.shape) >= 1
    call(view_data.main, "--data", data, "--output", tmp_path / "data")
    groups = ("--input", files[0], files[3], "--output", tmp_path / "groups")
    call(view_attention.main, *detector, *groups)


def test_training_evaluation_and_view_results_accept_thin_images(
    data: Path, tmp_path: Path
) -> None:
    config = str(REPOSITORY / "configs" / "quickstart.py")
    command = ["--config-file", config, "--data", str(data), *TINY, "train.device=cpu"]
    command += [f"train.output_dir={tmp_path}", "train.max_iter=3", "train.eval_period=3"]
    command += ["train.pictures=2"]
    train_net.main(argument_parser().parse_intermixed_args(command))
    predictions = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert isinstance(predictions, list)
    assert {item["image_id"] for item in predictions} <= set(range(1, len(SIZES) + 1))
    rows = list(map(json.loads, (tmp_path / "metrics.json").read_text().splitlines()))
    for name in ("total_loss", "bbox/AP", "segm/AP"):
        values = [row[name] for row in rows if name in row]
        assert values and np.isfinite(values).all()
    assert (tmp_path / "pictures" / "0000003.png").is_file()
    assert view_results.main(["--input", str(tmp_path), "--number", "2"]) == 0
