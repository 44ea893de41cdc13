"""Data sets and the mapper."""

import json
import re
import shutil
from pathlib import Path

import cv2
import gpvit.data
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from gpvit.config import load_config
from gpvit.data import folder_of, register_folder, use_folder
from gpvit.data.transforms import OpenCVResizeTransform
from gpvit.utils.errors import UserError
from PIL import Image
from pycocotools import mask as mask_api

MAPPER = dict(
    is_train=True, image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask"
)
MASK_RCNN, RETINANET = "published/mask_rcnn_gpvit_l1_1x", "published/retinanet_gpvit_l1_1x"


def test_a_folder_brings_its_classes_in_the_order_of_their_ids(synthetic_data: Path) -> None:
    name = gpvit.data.register_folder(str(synthetic_data), "train")
    records = DatasetCatalog.get(name)
    assert len(records) == 8
    assert MetadataCatalog.get(name).thing_classes == ["disc", "triangle", "cross"]
    ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert sorted(ids) == sorted(ids, key=ids.get) and sorted(ids.values()) == [0, 1, 2]
    assert max(ids) > 4  # there are gaps


def test_a_folder_may_be_registered_again_and_is_read_again(
    synthetic_data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(synthetic_data, tmp_path / "data")
    gpvit.data.register_folder(str(folder), "val")
    json_file = folder / "annotations" / "val.json"
    content = json.loads(json_file.read_text())
    content["images"] = content["images"][:1]
    json_file.write_text(json.dumps(content))
    assert len(DatasetCatalog.get(gpvit.data.register_folder(str(folder), "val"))) == 1


def test_a_folder_sets_data_and_number_of_classes_of_every_detector(synthetic_data: Path) -> None:
    for name in ("mask_rcnn_gpvit_l1", "cascade_mask_rcnn_gpvit_l1", MASK_RCNN, RETINANET):
        cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"))
        gpvit.data.use_folder(cfg, str(synthetic_data), train=True)
        if name == RETINANET:
            assert (cfg.model.num_classes, cfg.model.head.num_classes) == (3, 3)
        else:
            heads = cfg.model.roi_heads
            predictors = (
                heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
            )
            assert [predictor.num_classes for predictor in predictors] == [3] * len(predictors)
            assert heads.num_classes == heads.mask_head.num_classes == 3
        assert cfg.dataloader.evaluator.dataset_name == cfg.dataloader.test.dataset.names
        assert cfg.dataloader.test.dataset.names != cfg.dataloader.train.dataset.names


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: shutil.rmtree(d / "images"),
            "8 of its 8 images are not in .* and its subfolders: train_00000.png",
        ),
        (
            lambda d: (d / "annotations" / "train.json").unlink(),
            "there are no annotations for train, only .*val.json",
        ),
        (
            lambda d: (d / "annotations" / "train.json").write_text('{"images": ['),
            "not in COCO format",
        ),
        (lambda d: (d / "annotations" / "train.json").write_text("[]"), "not in COCO format"),
        (
            lambda d: (d / "annotations" / "train.json").write_text('{"categories": []}'),
            "no categories",
        ),
        (
            lambda d: (d / "annotations" / "train.json").write_text(
                '{"categories": [{"id": 1, "name": "cat"}],'
                '"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}],'
                '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, '
                '"segmentation": [[1, 1, 8, 1, 8, 8]]}]}'
            ),
            "declare different classes",
        ),
        (
            lambda d: (d / "annotations" / "train.json").write_text(
                '{"categories": [{"id": 1, "name": "cat"}], '
                '"annotations": [{"id": 7, "bbox": [0, 0, 1, 1]}]}'
            ),
            "1 annotations have no segmentation, first id 7",
        ),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_line(
    synthetic_data: Path, tmp_path: Path, damage, message: str
) -> None:
    folder = shutil.copytree(synthetic_data, tmp_path / "data")
    damage(folder)
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
    with pytest.raises(UserError, match=message) as error:
        gpvit.data.use_folder(cfg, str(folder), train=True)
    assert "\n" not in str(error.value)


@pytest.fixture
def boxes_only(synthetic_data: Path, tmp_path: Path) -> Path:
    """The synthetic data set without its masks."""
    folder = shutil.copytree(synthetic_data, tmp_path / "boxes_only")
    for json_file in (folder / "annotations").iterdir():
        content = json.loads(json_file.read_text())
        for item in content["annotations"]:
            del item["segmentation"]
        json_file.write_text(json.dumps(content))
    return folder


def test_only_a_detector_of_boxes_takes_data_without_masks(boxes_only: Path) -> None:
    cfg = load_config(str(REPOSITORY / "configs" / f"{MASK_RCNN}.py"))
    with pytest.raises(UserError, match="annotations have no segmentation"):
        gpvit.data.use_folder(cfg, str(boxes_only), train=True)

    cfg = load_config(str(REPOSITORY / "configs" / f"{RETINANET}.py"), ["dataloader.short_side=64"])
    gpvit.data.use_folder(cfg, str(boxes_only), train=True)
    mapper = instantiate(cfg.dataloader.train.mapper)
    for item in instantiate(cfg.dataloader.train.dataset):
        instances = mapper(item)["instances"]
        assert (
            len(instances)
            == sum(not annotation["iscrowd"] for annotation in item["annotations"])
            > 0
        )
        assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"}


def record(synthetic_data: Path, annotations: list[dict]) -> dict:
    image = next((synthetic_data / "images").iterdir())
    return {"file_name": str(image), "image_id": 1, "annotations": annotations}


def annotation(segmentation, iscrowd: int = 0) -> dict:
    return dict(
        bbox=[10, 10, 20, 20],
        bbox_mode=BoxMode.XYWH_ABS,
        category_id=1,
        segmentation=segmentation,
        iscrowd=iscrowd,
    )


@pytest.mark.parametrize("crowd", [False, True])
def test_an_image_without_objects_has_no_instances_and_its_masks(
    synthetic_data: Path, crowd: bool
) -> None:
    mapper = gpvit.data.InstanceMapper(augmentations=[], recompute_boxes=True, **MAPPER)
    annotations = [annotation([[10, 10, 30, 10, 30, 30]], iscrowd=1)] if crowd else []
    instances = mapper(record(synthetic_data, annotations))["instances"]
    assert len(instances) == 0 and len(instances.gt_boxes) == len(instances.gt_masks) == 0


@pytest.mark.parametrize("objects", [0, 1])
def test_a_detector_of_boxes_gets_no_masks_and_boxes_in_pixels_of_the_resized_image(
    synthetic_data: Path, objects: int
) -> None:
    no_flip = ["dataloader.train.mapper.augmentations.1.prob=0"]
    cfg = load_config(str(REPOSITORY / "configs" / f"{RETINANET}.py"), no_flip)
    mapper = instantiate(cfg.dataloader.train.mapper)
    one = annotation([[10, 10, 30, 10, 30, 20]]) | {
        "bbox": [10, 10, 20, 20]
    }  # integers; larger than its mask
    item = record(synthetic_data, [one] * objects)
    width, height = Image.open(item["file_name"]).size
    instances = mapper(item)["instances"]
    new_height, new_width = instances.image_size
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"}
    assert len(instances) == len(instances.gt_classes) == objects
    box = np.array([[10, 10], [30, 30]]) * [new_width / width, new_height / height]
    for gt_box in instances.gt_boxes:
        assert gt_box.tolist() == pytest.approx(box.flatten().tolist())


def test_polygons_and_run_lengths_go_together(synthetic_data: Path) -> None:
    mapper = gpvit.data.InstanceMapper(augmentations=[], recompute_boxes=True, **MAPPER)
    item = record(synthetic_data, [annotation([[10, 10, 30, 10, 30, 30, 10, 30]])])
    height, width = mapper(item)["instances"].image_size
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    item["annotations"].append(annotation(mask_api.encode(mask)))
    polygon, run_length = mapper(item)["instances"].gt_masks.tensor
    assert torch.equal(polygon, run_length) and polygon.sum() == 400


@pytest.mark.parametrize("recipe", ["resize", "lsj"])
@pytest.mark.parametrize("masks", [True, False])
def test_the_mapper_gives_what_detectron2s_gives_wherever_that_works(
    synthetic_data: Path, recipe: str, masks: bool
) -> None:
    augmentations = gpvit.data.train_augmentations(
        recipe, short_side=[100, 200], max_size=300, lsj_size=128
    )
    options = MAPPER | dict(
        augmentations=augmentations, use_instance_mask=masks, recompute_boxes=masks
    )
    mappers = gpvit.data.InstanceMapper(**options), DatasetMapper(**options)
    for item in DatasetCatalog.get(gpvit.data.register_folder(str(synthetic_data), "train")):
        for part in item["annotations"]:
            part["bbox"] = [
                float(value) for value in part["bbox"]
            ]  # Detectron2's truncates integers
        outputs = []
        for mapper in mappers:
            torch.manual_seed(7)
            np.random.seed(7)
            outputs.append(mapper(item))
        ours, theirs = outputs
        assert torch.equal(ours["image"], theirs["image"]) and ours.keys() == theirs.keys()
        ours, theirs = ours["instances"], theirs["instances"]
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes) and ours.has("gt_masks") == masks
        assert not masks or torch.equal(ours.gt_masks.tensor, theirs.gt_masks.tensor)


@pytest.mark.parametrize("recipe", ["resize", "lsj"])
def test_boxes_stay_tight_around_what_an_augmentation_leaves(
    synthetic_data: Path, recipe: str
) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    augmentations = gpvit.data.train_augmentations(
        recipe, short_side=[100, 200], max_size=300, lsj_size=128
    )
    mapper = gpvit.data.InstanceMapper(augmentations=augmentations, recompute_boxes=True, **MAPPER)
    for item in DatasetCatalog.get(gpvit.data.register_folder(str(synthetic_data), "train")):
        output = mapper(item)
        assert output["image"].shape[-2:] == output["instances"].image_size
        if recipe == "lsj":
            assert max(output["instances"].image_size) <= 128
        for mask, box in zip(output["instances"].gt_masks.tensor, output["instances"].gt_boxes):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(side) for side in tight]


def test_the_loader_of_a_config_gives_batches_with_masks(synthetic_data: Path) -> None:
    cfg = load_config(
        str(REPOSITORY / "configs" / "quickstart.py"),
        ["dataloader.train.num_workers=0", "dataloader.short_side=64"],
    )
    gpvit.data.use_folder(cfg, str(synthetic_data), train=True)
    cfg.dataloader.train.seed = 0  # as train_net.py does
    batch = next(iter(instantiate(cfg.dataloader.train)))
    assert len(batch) == cfg.dataloader.train.total_batch_size
    assert all(
        min(item["image"].shape[1:]) == 64 and item["instances"].has("gt_masks") for item in batch
    )


# (height, width) to its size for short_side=800 and max_size=1333: the smaller scale, rounded once,
# halves up.
SIZES = {
    (427, 640): (800, 1199),
    (640, 427): (1199, 800),
    (480, 640): (800, 1067),
    (333, 500): (800, 1201),
    (500, 500): (800, 800),
    (600, 1000): (800, 1333),
    (799, 1333): (799, 1333),
    (800, 1333): (800, 1333),
    (1080, 1920): (750, 1333),
    (101, 67): (1206, 800),
    (3, 1): (1333, 444),
    (1, 1000): (1, 1333),
    (1000, 1): (1333, 1),
    (352, 704): (667, 1333),  # 666.5
    (370, 620): (796, 1333),  # 795.5
}


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "expected"), SIZES.items())
def test_an_image_gets_the_published_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    transform = gpvit.data.OpenCVResize(800, 1333).get_transform(np.zeros(size, np.uint8))
    assert (transform.h, transform.w, transform.new_h, transform.new_w) == (*size, *expected)


def test_a_side_of_a_long_image_keeps_a_pixel() -> None:
    transform = gpvit.data.OpenCVResize(800, 1333).get_transform(np.zeros((1, 5000, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (1, 1333)


def test_rounding_in_two_steps_would_give_another_size() -> None:
    differ = [
        size
        for size in SIZES
        if T.ResizeShortestEdge.get_output_shape(*size, 800, 1333) != SIZES[size]
    ]
    assert differ == [(352, 704), (370, 620)]


@pytest.mark.parametrize("size", [(101, 67), (640, 427), (1080, 1920)])
def test_images_are_resized_by_opencvs_bilinear_whatever_their_layout_in_memory(
    size: tuple[int, int],
) -> None:
    image = noise(*size)
    layouts = (
        image,
        image[:, ::-1],
        image[::-1],
        image[::2, ::3],
        image.transpose(1, 0, 2),
        image[:, :, ::-1],
    )
    for view in layouts:
        transform = gpvit.data.OpenCVResize(200, 333).get_transform(view)
        expected = cv2.resize(
            view.copy(), (transform.new_w, transform.new_h), interpolation=cv2.INTER_LINEAR
        )
        assert np.array_equal(transform.apply_image(view), expected)


def test_shrinking_does_not_antialias() -> None:
    image = noise(120, 160)
    ours, pillows = (
        resize.get_transform(image).apply_image(image)
        for resize in (gpvit.data.OpenCVResize(40, 100), T.ResizeShortestEdge(40, 100))
    )
    assert ours.shape == pillows.shape and ours.std() > 1.5 * pillows.std()


@pytest.mark.parametrize("new_size", [(202, 134), (60, 41), (250, 33)])
def test_masks_stay_masks_and_take_the_nearest_pixel(new_size: tuple[int, int]) -> None:
    mask = noise(101, 67)[:, :, 0] % 2
    resized = OpenCVResizeTransform(101, 67, *new_size).apply_segmentation(mask)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, new_size)
    )
    assert resized.dtype == mask.dtype and np.array_equal(resized, mask[rows][:, columns])


def test_boxes_and_points_scale_with_each_side_of_the_image() -> None:
    transform = gpvit.data.OpenCVResize(800, 1333).get_transform(noise(370, 620))
    x, y = 1333 / 620, 796 / 370
    assert transform.apply_box(np.array([[31.0, 37.0, 620.0, 370.0]])) == pytest.approx(
        np.array([[31 * x, 37 * y, 1333, 796]])
    )
    assert transform.apply_coords(np.array([[0.0, 0.0], [310.0, 100.0]])) == pytest.approx(
        np.array([[0, 0], [310 * x, 100 * y]])
    )


@pytest.mark.parametrize("name", [MASK_RCNN, RETINANET])
def test_an_image_file_reaches_a_published_detector_as_published(name: str, tmp_path: Path) -> None:
    small = [
        "model.backbone.bottom_up.net.embed_dim=24",
        "model.backbone.bottom_up.net.group_tokens=[0,4,0,4]",
    ]
    no_flip = "dataloader.train.mapper.augmentations.1.prob=0"
    cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"), [*small, no_flip])
    rgb = noise(101, 67)
    Image.fromarray(rgb).save(tmp_path / "noise.png")
    resized = cv2.resize(rgb, (800, 1206), interpolation=cv2.INTER_LINEAR)
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        item = instantiate(loader.mapper)({"file_name": str(tmp_path / "noise.png"), "image_id": 1})
        assert np.array_equal(item["image"], resized.transpose(2, 0, 1))

    other = torch.from_numpy(noise(50, 70).transpose(2, 0, 1).copy())
    images = instantiate(cfg.model).preprocess_image([item, {"image": other}])
    assert images.tensor.shape == (2, 3, 1216, 800) and images.image_sizes == [
        (1206, 800),
        (50, 70),
    ]
    for padded, image in zip(images.tensor, (item["image"], other)):
        height, width = image.shape[1:]
        normalized = (image.double().numpy().T - [123.675, 116.28, 103.53]) / [
            58.395,
            57.12,
            57.375,
        ]
        assert np.allclose(padded[:, :height, :width], normalized.T, atol=1e-5)
        assert not padded[:, height:].any() and not padded[:, :, width:].any()


def test_the_3x_recipe_crops_half_of_the_images_before_it_resizes_them_and_mirrors_half() -> None:
    np.random.seed(0)
    short_sides, images = list(range(480, 801, 32)), 400
    recipe = T.AugmentationList(gpvit.data.multi_scale_crop(short_sides, 1333))
    mirrored, first_sides, last_sides = 0, [], []
    for _ in range(images):
        image = T.AugInput(np.zeros((300, 640), np.uint8))
        flip, *first, resize, crop = recipe(image).transforms
        mirrored += isinstance(flip, T.HFlipTransform)
        if len(first) == 2:
            first_sides.append(min(first[0].new_h, first[0].new_w))
            assert all(384 <= side <= 600 for side in (first[1].h, first[1].w))
            assert (resize.h, resize.w) == (first[1].h, first[1].w)
        else:
            assert isinstance(first[0], T.NoOpTransform) and (resize.h, resize.w) == (300, 640)
        new_size = (resize.new_h, resize.new_w)
        last_sides.append(1333 if max(new_size) == 1333 else min(new_size))
        assert image.image.shape == (crop.h, crop.w) == tuple(min(side, 1024) for side in new_size)
    assert 0.4 < mirrored / images < 0.6
    assert 0.4 < len(first_sides) / images < 0.6
    assert set(first_sides) == {400, 500, 600}
    assert set(last_sides) == {*short_sides, 1333}


def test_the_3x_recipe_cuts_boxes_where_it_crops_and_does_not_tighten_them(
    synthetic_data: Path,
) -> None:
    np.random.seed(0)
    name = MASK_RCNN.replace("1x", "3x")
    cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"))
    gpvit.data.use_folder(cfg, str(synthetic_data), train=True)
    mapper, looseness = instantiate(cfg.dataloader.train.mapper), []
    for item in instantiate(cfg.dataloader.train.dataset) * 3:
        output = mapper(item)
        instances = output["instances"]
        assert (
            output["image"].shape[1:] == instances.gt_masks.tensor.shape[1:] == instances.image_size
        )
        tight = instances.gt_masks.get_bounding_boxes().tensor
        looseness.append((tight - instances.gt_boxes.tensor) * torch.tensor([1, 1, -1, -1]))
    assert torch.cat(looseness).min() > -4  # pixels; the images are enlarged up to five times
    assert torch.cat(looseness).max() > 10


def test_datasets_with_the_same_folder_name_are_registered_separately(
    synthetic_data: Path, tmp_path: Path
) -> None:
    folders = []
    for name in ("a/twin", "a/coco:x", "b/twin", "b/coco:x"):
        folders.append(shutil.copytree(synthetic_data, tmp_path / name))
    names = [register_folder(str(folder), "val") for folder in folders]
    assert names[:2] == ["twin_val", "coco:x_val"] and re.fullmatch(r"twin_val-\w{8}", names[2])
    assert len(set(names)) == 4
    assert [register_folder(str(folder), "val") for folder in folders] == names
    for folder, name in zip(folders, names):
        cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
        use_folder(cfg, str(folder), train=True)
        assert cfg.dataloader.test.dataset.names == name and folder_of(cfg, name) == str(folder)
        assert folder_of(cfg, "coco_2017_val") is None and folder_of(cfg, ["a", "b"]) is None
    assert folder_of(cfg, "coco:/home/me/photos:val") == "/home/me/photos"  # of version 0.1
