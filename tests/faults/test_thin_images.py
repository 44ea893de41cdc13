"""An image of at least one pixel a side is predicted, trained on and drawn, however long it is."""

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
    """A data set of thin images, each with an object that fills it and, where there is room, another."""
    root = tmp_path_factory.mktemp("thin") / "data"
    for split in ("train", "val"):
        images, objects = [], []
        (root / "images").mkdir(parents=True, exist_ok=True)
        for number, (height, width) in enumerate(SIZES, start=1):
            name = f"{split}_{number}.png"
            Image.fromarray(noise((height, width))).save(root / "images" / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for x, w in ((0, width), (width // 3, max(1, width // 2))):
                outline = [[x, 0, x + w, 0, x + w, height, x, height]]
                item = {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, 0, w, height],
                }
                objects.append(item | {"area": w * height, "iscrowd": 0, "segmentation": outline})
        (root / "annotations").mkdir(exist_ok=True)
        content = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": 1, "name": "line"}],
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("size", SIZES)
def test_a_thin_array_is_predicted_and_drawn(weights: Path, size: tuple[int, int]) -> None:
    predictor, image = Predictor.from_checkpoint(weights, "cpu"), noise(size)
    found = predictor(image)
    assert len(found) > 0 and found.image_size == size and found.pred_masks.shape[1:] == size
    drawn = draw_predictions(image, found[:3], predictor.classes)
    scale = min(max(1, SMALLEST_SIDE / min(size)), LARGEST_SIDE / max(size))
    for side, drawn_side in zip(size, drawn.shape):
        assert abs(drawn_side - max(1, scale * side)) <= 1
    assert draw_predictions(image, found[:3], predictor.classes, resize=False).shape == image.shape


def test_a_thin_drawing_shows_the_image(weights: Path) -> None:
    image = np.zeros((1, 5120, 3), np.uint8)
    image[:, 2560:] = (200, 100, 50)
    drawn = draw_predictions(image, Predictor.from_checkpoint(weights, "cpu")(image)[:0], [])
    assert drawn.shape == (1, 2560, 3)
    assert (
        not drawn[0, :1270].any()
        and np.abs(drawn[0, 1290:] - np.array([200.0, 100, 50])).max() <= 1
    )


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(weights: Path, size: tuple[int, int]) -> None:
    predictor = Predictor.from_checkpoint(weights, "cpu")
    for picture in (np.zeros((*size, 3), np.uint8), Image.new("RGB", size)):
        with pytest.raises(UserError, match="an array must be|the image has no pixels"):
            predictor(picture)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_thin_image_and_its_objects_go_through_every_recipe(
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


def test_a_side_that_is_not_rounded_to_nothing_stays_as_it_was() -> None:
    for size in ((48, 64), (37, 641), (1, 640), (1, 641), (1, 5000)):
        image = noise(size)
        theirs = T.ResizeShortestEdge(192, 320).get_transform(image)
        ours = AugmentedImage(image)
        (transform,) = T.AugmentationList([T.ResizeShortestEdge(192, 320)])(ours).transforms
        assert (transform.new_h, transform.new_w) == (max(1, theirs.new_h), theirs.new_w)
        if theirs.new_h:
            assert np.array_equal(ours.image, theirs.apply_image(image))


def test_a_reduced_image_keeps_a_pixel_and_others_their_size() -> None:
    assert reduced(noise((1, 2000)), 0.1).shape == (1, 200, 3)
    for size, scale in (((480, 640), 0.37), ((33, 57), 0.5), ((7, 9), 0.9)):
        expected = cv2.resize(noise(size), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        assert reduced(noise(size), scale).shape == expected.shape
    assert reduced(noise((4, 5)), 1.5).shape == (4, 5, 3)


def test_the_demo_and_the_views_take_thin_images(weights: Path, data: Path, tmp_path: Path) -> None:
    def call(main, *arguments: str | Path) -> int:
        return main(list(map(str, arguments)))

    detector, images = ("--weights", weights, "--device", "cpu"), data / "images"
    options = ("--json", "--cutouts", "--score-threshold", "0.2")
    files = [images / f"train_{number + 1}.png" for number in range(len(SIZES))]
    assert (
        call(predict.main, *detector, "--input", *files, "--output", tmp_path / "demo", *options)
        == 0
    )
    written = json.loads((tmp_path / "demo" / "images.json").read_text())["images"]
    assert {(image["height"], image["width"]) for image in written} == set(SIZES)
    assert json.loads((tmp_path / "demo" / "predictions.json").read_text())
    for image in written:
        drawn = cv2.imread(str(tmp_path / "demo" / image["file_name"]))
        assert drawn is not None and min(drawn.shape) >= 1
    assert call(view_data.main, "--data", data, "--output", tmp_path / "data") == 0
    assert (
        call(
            view_attention.main,
            *detector,
            "--input",
            files[0],
            files[3],
            "--output",
            tmp_path / "groups",
        )
        == 0
    )


def test_a_detector_is_trained_on_thin_images_evaluated_and_viewed(
    data: Path, tmp_path: Path
) -> None:
    command = [
        "--config-file",
        str(REPOSITORY / "configs" / "quickstart.py"),
        "--data",
        str(data),
        *TINY,
    ]
    command += [
        "train.device=cpu",
        f"train.output_dir={tmp_path}",
        "train.max_iter=3",
        "train.eval_period=3",
    ]
    command += ["train.pictures=2"]
    train_net.main(argument_parser().parse_intermixed_args(command))
    found = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert isinstance(found, list)
    assert {item["image_id"] for item in found} <= set(range(1, len(SIZES) + 1))
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for name in ("total_loss", "bbox/AP", "segm/AP"):
        values = [row[name] for row in rows if name in row]
        assert values and np.isfinite(values).all()
    assert (tmp_path / "pictures" / "0000003.png").is_file()
    assert view_results.main(["--input", str(tmp_path), "--number", "2"]) == 0
