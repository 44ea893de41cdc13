"""Detections of very large images as GeoJSON and as COCO results."""

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from detectron2.structures import Boxes, Instances
from gpvit.data.cropped_masks import Crop, CroppedMasks, crop, empty_crop
from gpvit.data.masks import run_lengths
from gpvit.evaluation.coco_results import ResultsWriter, coco_json
from gpvit.large_images.results import GeoJsonWriter, mask_polygons
from gpvit.utils.errors import UserError
from pycocotools import mask as mask_api
from shapely.geometry import shape

HOSTILE = ['quote " \\ </script>', "line\nbreak\u2028 \u2029\x00", "\udcff"]


def random_masks(count: int) -> list[np.ndarray]:
    """Nonempty masks of few pixels, with holes, touching corners, and often pixels at borders."""
    rng = np.random.default_rng(0)
    masks = []
    while len(masks) < count:
        height, width = rng.integers(1, 9, 2)
        mask = np.zeros((height, width), bool)
        part = mask[rng.integers(0, 2) :, rng.integers(0, 2) :]
        part[:] = rng.random(part.shape) < rng.choice([0.1, 0.5, 0.7, 0.9, 1])
        if mask.any():
            masks.append(mask)
    return masks


def detections(crops: list[Crop], size: tuple[int, int]) -> Instances:
    masks = CroppedMasks.of(crops, size)
    count = len(crops)
    return Instances(
        size,
        pred_boxes=masks.get_bounding_boxes(),
        scores=torch.linspace(0.12345, 1, count),
        pred_classes=torch.arange(count) % 3,
        pred_masks=masks,
    )


def only_boxes(boxes: list[list[float]], size: tuple[int, int] = (100, 100)) -> Instances:
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.ones(len(boxes)),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
    )


def written(path: Path, *chunks: Instances, **options: Any) -> dict[str, Any]:
    with GeoJsonWriter(path, HOSTILE, **options) as writer:
        for chunk in chunks:
            writer.add(chunk)
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    check_rfc_7946(content)
    return content


def check_rfc_7946(content: dict[str, Any]) -> None:
    assert content.keys() == {"type", "features"} and content["type"] == "FeatureCollection"
    for feature in content["features"]:
        assert feature.keys() == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        geometry = feature["geometry"]
        assert geometry.keys() == {"type", "coordinates"}
        polygons = geometry["coordinates"]
        if geometry["type"] == "Polygon":
            polygons = [polygons]
        else:
            assert geometry["type"] == "MultiPolygon" and len(polygons) > 1
        for polygon in polygons:
            for number, ring in enumerate(polygon):
                assert len(ring) >= 4 and ring[0] == ring[-1]
                assert all(len(position) == 2 for position in ring)
                assert shapely.LinearRing(ring).is_ccw == (number == 0)  # holes are clockwise


def test_outlines_are_valid_and_fill_the_masks() -> None:
    for mask in random_masks(800):
        polygons = []
        for exterior, *holes in mask_polygons(crop(mask)):
            polygons.append(shapely.Polygon(exterior, holes))
        geometry = shapely.MultiPolygon(polygons)
        assert geometry.is_valid, shapely.is_valid_reason(geometry)
        assert geometry.area == mask.sum()
        y, x = np.nonzero(mask)
        assert shapely.contains_xy(geometry, x + 0.5, y + 0.5).all()


def test_geojson_follows_rfc_7946(tmp_path: Path) -> None:
    masks = random_masks(200)
    chunk = detections([crop(mask, 50, 70) for mask in masks], (100, 100))
    features = written(tmp_path / "a.geojson", chunk[:90], chunk[90:90], chunk[90:])["features"]
    assert len(features) == 200
    for number, (feature, mask) in enumerate(zip(features, masks)):
        geometry = shape(feature["geometry"])
        assert geometry.area == mask.sum()
        y, x = np.nonzero(mask)
        expected = (50 + x.min(), 70 + y.min(), 50 + x.max() + 1, 70 + y.max() + 1)
        assert geometry.bounds == expected
        properties = feature["properties"]
        assert (properties["id"], properties["class"]) == (number + 1, HOSTILE[number % 3])
        assert properties["score"] == round(float(chunk.scores[number]), 4)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1)])
def test_rings_have_the_direction_of_rfc_7946_in_map_coordinates(
    tmp_path: Path, signs: tuple[int, int]
) -> None:
    masks = random_masks(100)
    chunk = detections([crop(mask) for mask in masks], (10, 10))

    def to_map(points: np.ndarray) -> np.ndarray:
        return points * 0.5 * signs + [700_000, 5_000_000]

    features = written(tmp_path / "a.geojson", chunk, to_coordinates=to_map)["features"]
    for feature, mask in zip(features, masks):
        assert shape(feature["geometry"]).area == mask.sum() / 4


def test_objects_without_mask_have_their_box(tmp_path: Path) -> None:
    (feature,) = written(tmp_path / "a.geojson", only_boxes([[1, 2, 5.125, 9]]))["features"]
    expected = [[[1, 2], [5.12, 2], [5.12, 9], [1, 9], [1, 2]]]
    assert feature["geometry"] == {"type": "Polygon", "coordinates": expected}
    empty_mask = detections([crop(np.zeros((5, 5), bool))], (5, 5))
    empty_mask.pred_boxes = Boxes(torch.tensor([[1.0, 1, 3, 4]]))
    (feature,) = written(tmp_path / "a.geojson", empty_mask)["features"]
    assert shape(feature["geometry"]).bounds == (1, 1, 3, 4)


def test_geojson_without_objects_is_valid(tmp_path: Path) -> None:
    assert written(tmp_path / "a.geojson") == {"type": "FeatureCollection", "features": []}
    assert written(tmp_path / "b.geojson", only_boxes([]))["features"] == []


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text("old")
    writer = GeoJsonWriter(path, ["a"], lambda points: points * np.nan)
    with pytest.raises(UserError, match="a.geojson: .* not finite"), writer:
        writer.add(only_boxes([[0, 0, 9, 9]]))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_rles_equal_those_of_pycocotools() -> None:
    corners = [(0, 0), (-1, -1), (0, -1), (-1, 0)]
    masks = random_masks(1000)
    for corner in corners:
        mask = np.zeros((40, 50), bool)
        mask[corner] = True
        masks.append(mask)
    masks.extend([np.zeros((3, 4), bool), np.ones((700, 900), bool)])
    for mask in masks:
        (rle,) = CroppedMasks.of([crop(mask)], mask.shape).rles()
        assert rle == mask_api.encode(np.asfortranarray(mask.view(np.uint8)))


def test_memory_of_results_does_not_depend_on_the_image(tmp_path: Path) -> None:
    size = (60_000, 60_000)
    block = np.ones((30, 30), bool)
    crops = [Crop(0, 0, block), Crop(59_970, 59_970, block), Crop(31_000, 44_000, block)]
    chunk = detections([*crops, empty_crop()], size)
    chunk.pred_boxes.tensor[-1] = torch.tensor([0, 0, 5, 5])
    image = SimpleNamespace(shape=(*size, 3))
    tracemalloc.start()
    writer = ResultsWriter(tmp_path, ["a", "b", "c"])
    input_image = SimpleNamespace(image=image, source=SimpleNamespace(name="a.tif"), frame=None)
    writer.add(input_image, chunk)
    writer.close()
    written(tmp_path / "a.geojson", chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    results = json.loads((tmp_path / "predictions.json").read_text())
    for result, expected in zip(results, [*crops, None]):
        rle = result["segmentation"]
        lengths = run_lengths(rle["counts"])
        assert rle["size"] == list(size) and lengths.sum() == 60_000**2
        assert lengths[1::2].sum() == (900 if expected else 0)
        if expected:
            assert lengths[0] == expected.left * 60_000 + expected.top


def test_coco_results_of_cropped_masks_equal_those_of_full_masks() -> None:
    masks = np.random.default_rng(0).random((20, 30, 40)) < 0.5
    masks[3] = False
    full = detections([crop(mask) for mask in masks], (30, 40))
    cropped = coco_json(full, 7)
    full.pred_masks = torch.from_numpy(masks)
    assert json.dumps(cropped) == json.dumps(coco_json(full, 7))


def test_coco_results_of_images_too_large_for_rle_are_boxes() -> None:
    crops = [Crop(5, 6, np.ones((3, 3), bool))]
    (result,) = coco_json(detections(crops, (2**16, 2**16)), 1)
    assert "segmentation" not in result and result["bbox"] == [5, 6, 3, 3]


def test_cut_masks_equal_cut_arrays() -> None:
    masks = np.random.default_rng(0).random((30, 12, 15)) < 0.2
    cut = CroppedMasks.of([crop(mask) for mask in masks], (12, 15)).cut(4, 2, 11, 9)
    assert cut.image_size == (7, 7)
    assert np.array_equal(cut.tensor.numpy(), masks[:, 2:9, 4:11])
