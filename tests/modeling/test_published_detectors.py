"""The published detectors match the official implementation, and convert to its files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import official
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, Instances
from gpvit import SIZES, GPViT, checkpoint
from gpvit.checkpoint import from_published
from gpvit.checkpoint.published import converted, kind_of, to_published
from gpvit.config import load_config
from torch import Tensor, nn

CONFIGS = {"maskrcnn": "mask_rcnn", "retinanet": "retinanet"}
MASK_RCNN, MASK_RCNN_PARTS, RETINANET = map(
    official.Reference, ("maskrcnn_l1", "maskrcnn_l1_parts", "retinanet_l1")
)
ALL_SIZES = pytest.mark.parametrize("size", SIZES)
BOTH = pytest.mark.parametrize("kind", CONFIGS)


def detector(kind: str, size: str = "L1") -> nn.Module:
    """The detector of a published config, for normalized images."""
    path = REPOSITORY / "configs" / "published" / f"{CONFIGS[kind]}_gpvit_{size.lower()}_1x.py"
    overrides = ["model.pixel_mean=[0.0,0.0,0.0]", "model.pixel_std=[1.0,1.0,1.0]"]
    cfg = load_config(str(path), overrides)
    return instantiate(cfg.model).eval()


class Loaded(NamedTuple):
    """A detector with the weights of a file in the official layout."""

    model: nn.Module
    path: str


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    folder = tmp_path_factory.mktemp("weights")
    detectors = {}
    for kind in CONFIGS:
        detectors[kind] = Loaded(detector(kind), official.save(folder / f"{kind}.pth", kind, "L1"))
        checkpoint.load(*detectors[kind])
    return detectors


class Results(NamedTuple):
    """What a detector computes for the reference image.

    Attributes:
        arrays: by their names in the reference file.
        detections: the model's output.
        inside: for Mask R-CNN, proposals and mask logits; for RetinaNet, the detections including
            empty ones, which Detectron2 removes at the end.
    """

    arrays: dict[str, Tensor]
    detections: Instances
    inside: tuple


def detect(model: nn.Module, hooks: dict[nn.Module, Callable[[Any], Any]]) -> Instances:
    """The detections in the reference image; each hook is called with the output of its module."""
    handles = []
    for module, hook in hooks.items():

        def call(module: nn.Module, args: Any, output: Any, hook: Callable = hook) -> None:
            hook(output)

        handles.append(module.register_forward_hook(call))
    image = official.image(3, (1, 3, 250, 310))[0]
    with torch.no_grad():
        (result,) = model([{"image": image, "height": 250, "width": 310}])
    for handle in handles:
        handle.remove()
    return result["instances"]


def box_set(instances: Instances) -> Tensor:
    """(N, 6): x1, y1, x2, y2, score, label."""
    scores, labels = instances.scores[:, None], instances.pred_classes[:, None].float()
    return torch.cat([instances.pred_boxes.tensor, scores, labels], dim=1)


def reference_box_set(reference: official.Reference) -> Tensor:
    names = ("det_boxes", "det_scores", "det_labels")
    boxes, scores, labels = (torch.from_numpy(reference.arrays[name]) for name in names)
    return torch.cat([boxes, scores[:, None], labels[:, None].float()], dim=1)


@pytest.fixture(scope="module")
def mask_rcnn(loaded: dict[str, Loaded]) -> Results:
    model = loaded["maskrcnn"].model
    arrays, proposals, mask_logits = {}, [], []

    def keep_rpn(output: tuple[list[Tensor], list[Tensor]]) -> None:
        for i, (logits, deltas) in enumerate(zip(*output)):
            arrays[f"rpn_logits_p{i + 2}"] = logits.clone()
            arrays[f"rpn_deltas_p{i + 2}"] = deltas.clone()

    detections = detect(
        model,
        {
            model.backbone.bottom_up: lambda maps: arrays.update(their_maps(maps)),
            model.backbone: arrays.update,
            model.proposal_generator.rpn_head: keep_rpn,
            model.proposal_generator: lambda output: proposals.extend(output[0]),
            model.roi_heads.mask_head.predictor: mask_logits.append,
        },
    )
    features = [arrays[f"p{level}"] for level in range(2, 6)]
    arrays.update(second_stage(model.roi_heads, features))
    return Results(arrays, detections, (*proposals, *mask_logits))


def their_maps(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's maps by their official names, which count from 1."""
    return {f"f{int(name[1:]) - 1}": output for name, output in maps.items()}


@torch.no_grad()
def second_stage(roi_heads: nn.Module, features: list[Tensor]) -> dict[str, Tensor]:
    """Outputs of the heads for the boxes of the reference file, masks for its first detections."""
    rois, detected, labels = (
        torch.from_numpy(MASK_RCNN.arrays[name]) for name in ("rois", "det_boxes", "det_labels")
    )
    boxes = [Boxes(rois[:, 1:])]
    box_features = roi_heads.box_pooler(features, boxes)
    cls_logits, box_deltas = roi_heads.box_predictor(roi_heads.box_head(box_features))
    mask_features = roi_heads.mask_pooler(features, boxes)
    det_mask_logits = roi_heads.mask_head.layers(
        roi_heads.mask_pooler(features, [Boxes(detected[:10])])
    )
    pooler = roi_heads.box_pooler
    return {
        "rois_level": assign_boxes_to_levels(
            boxes,
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        ),
        "roi_box_feats": box_features,
        "roi_cls_logits": cls_logits,
        "roi_box_deltas": box_deltas,
        "roi_mask_feats": mask_features,
        "roi_mask_logits": roi_heads.mask_head.layers(mask_features),
        "det_mask_logits": det_mask_logits[range(10), labels[:10]],
    }


@pytest.fixture(scope="module")
def retinanet(loaded: dict[str, Loaded]) -> Results:
    model = loaded["retinanet"].model
    arrays, inside = {}, []

    def keep_head(output: tuple[list[Tensor], list[Tensor]]) -> None:
        for i, (logits, deltas) in enumerate(zip(*output)):
            arrays[f"cls_logits_p{i + 3}"] = by_ratio_first(logits.clone(), dim=1)
            arrays[f"box_deltas_p{i + 3}"] = by_ratio_first(deltas.clone(), dim=1)

    def keep_anchors(anchors: list[Boxes]) -> None:
        for i, boxes in enumerate(anchors):
            cells = boxes.tensor[:18].unflatten(0, (2, 9))
            arrays[f"anchors_p{i + 3}_first_cells"] = by_ratio_first(cells, dim=1).flatten(0, 1)

    def keep_detections(*args: Any) -> Instances:
        inside.append(type(model).inference_single_image(model, *args))
        return inside[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "inference_single_image", keep_detections)
        detections = detect(
            model,
            {
                model.backbone.bottom_up: lambda maps: arrays.update(their_maps(maps)),
                model.backbone: arrays.update,
                model.head: keep_head,
                model.anchor_generator: keep_anchors,
            },
        )
    return Results(arrays, detections, tuple(inside))


def by_ratio_first(tensor: Tensor, dim: int) -> Tensor:
    """Reorder nine anchors, three sizes in three ratios: from size-major to ratio-major."""
    return tensor.unflatten(dim, (3, 3, -1)).transpose(dim, dim + 1).flatten(dim, dim + 2)


def plain(reference: official.Reference) -> list[str]:
    """Names of the arrays that are compared elementwise.

    Boxes are compared as sets, pasted masks with a tolerance of a few pixels.
    """
    others = ("proposals", "rois", "det_boxes", "det_scores", "det_labels", "det_masks_packed")
    return [name for name in reference.manifest["arrays"] if name not in others]


def test_every_reference_array_is_checked(mask_rcnn: Results, retinanet: Results) -> None:
    assert mask_rcnn.arrays.keys() == set(plain(MASK_RCNN))
    assert retinanet.arrays.keys() == set(plain(RETINANET))


@pytest.mark.parametrize("name", plain(MASK_RCNN))
def test_each_step_of_mask_rcnn_matches_official_implementation(
    name: str, mask_rcnn: Results
) -> None:
    if name == "rois_level":
        assert mask_rcnn.arrays[name].tolist() == MASK_RCNN.arrays[name].tolist()
    else:
        MASK_RCNN.check(name, mask_rcnn.arrays[name])


@pytest.mark.parametrize("name", plain(RETINANET))
def test_each_step_of_retinanet_matches_official_implementation(
    name: str, retinanet: Results
) -> None:
    RETINANET.check(name, retinanet.arrays[name])


def test_mask_rcnn_proposals_match_official_implementation(mask_rcnn: Results) -> None:
    proposals, _ = mask_rcnn.inside
    scores = proposals.objectness_logits.sigmoid()[:, None]
    actual = torch.cat([proposals.proposal_boxes.tensor, scores], dim=1)
    MASK_RCNN.check_boxes("proposals", actual, torch.from_numpy(MASK_RCNN.arrays["proposals"]))


def test_mask_rcnn_detections_and_masks_match_official_implementation(mask_rcnn: Results) -> None:
    same = MASK_RCNN.check_boxes(
        "detections", box_set(mask_rcnn.detections), reference_box_set(MASK_RCNN)
    )
    found, ours = same[:, :10].max(dim=0)
    assert found.all()
    _, logits = mask_rcnn.inside
    logits = logits[ours, mask_rcnn.detections.pred_classes[ours]]
    # The boxes differ by rounding; masks in identical boxes are compared above.
    expected_logits = torch.from_numpy(MASK_RCNN.arrays["det_mask_logits"])
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=2e-3)
    packed = MASK_RCNN.arrays["det_masks_packed"]
    expected = np.unpackbits(packed, axis=1, count=250 * 310).reshape(-1, 250, 310)
    masks = mask_rcnn.detections.pred_masks[ours].numpy()
    assert (masks != expected).sum((1, 2)).max() <= 20


def test_retinanet_detections_match_official_implementation(retinanet: Results) -> None:
    (inside,) = retinanet.inside
    RETINANET.check_boxes("detections", box_set(inside), reference_box_set(RETINANET))


def test_retinanet_drops_empty_detections(retinanet: Results) -> None:
    expected = reference_box_set(RETINANET)
    expected = expected[Boxes(expected[:, :4]).nonempty()]
    assert 0 < len(expected) < 100
    RETINANET.check_boxes("detections, not empty", box_set(retinanet.detections), expected)


@torch.no_grad()
def test_parts_of_mask_rcnn_match_official_implementation(
    loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded["maskrcnn"].model
    monkeypatch.setattr(model.backbone.bottom_up, "forward", lambda maps: maps)
    maps = {f"f{i + 2}": official.feature(200 + i, (1, 216, 32 >> i, 40 >> i)) for i in range(4)}
    arrays = {f"fpn_{name}": output for name, output in model.backbone(maps).items()}
    logits, deltas = model.proposal_generator.rpn_head([official.feature(210, (1, 256, 12, 15))])
    arrays.update(rpn_logits=logits[0], rpn_deltas=deltas[0])
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(official.feature(211, (3, 256, 7, 7))))
    arrays.update(box_head_cls_logits=logits, box_head_deltas=deltas)
    arrays["mask_head_logits"] = heads.mask_head.layers(official.feature(212, (2, 256, 14, 14)))
    assert arrays.keys() == MASK_RCNN_PARTS.manifest["arrays"].keys()
    for name, array in arrays.items():
        MASK_RCNN_PARTS.check(name, array)


def on_meta(kind: str, size: str) -> dict[str, Tensor]:
    """A published state dict on the meta device."""
    tensors = {}
    for key, shape in official.keys(kind, size).items():
        tensors[key] = torch.empty(shape, device="meta")
    return tensors


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@ALL_SIZES
@BOTH
def test_name_table_covers_detector_in_both_directions(kind: str, size: str) -> None:
    with torch.device("meta"):
        ours = detector(kind, size).state_dict()
    theirs = on_meta(kind, size)
    assert shapes(converted(theirs, kind_of(theirs))) == shapes(ours)
    assert shapes(to_published(ours, classes=[])["state_dict"]) == shapes(theirs)


@ALL_SIZES
@pytest.mark.parametrize(
    "kind", ["backbone", "classifier", "maskrcnn", "retinanet", "segformer", "upernet"]
)
@pytest.mark.parametrize("prefix", [True, False])
def test_from_published_returns_backbone_of_each_model(kind: str, size: str, prefix: bool) -> None:
    norms = {"segformer", "upernet"}
    features = ("block2", "block5", "block8", "last_feat") if kind in norms else ("last_feat",)
    with torch.device("meta"):
        net = GPViT(
            **SIZES[size], out_features=features, final_norm=kind not in ("maskrcnn", "retinanet")
        )
    theirs = on_meta(kind, size)
    bare = {key.removeprefix("backbone."): tensor for key, tensor in theirs.items()}
    if not prefix and kind not in ("maskrcnn", "retinanet"):
        theirs = bare
    elif prefix and kind == "backbone":
        theirs = {f"backbone.{key}": tensor for key, tensor in bare.items()}
    assert shapes(from_published(theirs)) == shapes(net.state_dict())


def test_unknown_tensors_and_parts_raise() -> None:
    theirs = on_meta("classifier", "L1")
    with pytest.raises(ValueError, match="backbone.strange"):
        from_published(theirs | {"backbone.strange": theirs["head.fc.weight"]})
    with pytest.raises(ValueError, match=r"head\.of_another"):
        from_published(
            {key: theirs[key] for key in theirs if not key.startswith("head.")}
            | {"head.of_another": torch.ones(1)}
        )
    with pytest.raises(ValueError, match='must be "backbone" or "model", got \'neck\''):
        from_published(theirs, part="neck")


@BOTH
def test_to_published_restores_the_file(
    kind: str, loaded: dict[str, Loaded], tmp_path: Path
) -> None:
    model, path = loaded[kind]
    original = checkpoint.read(path)
    torch.save(to_published(model.state_dict(), original.require_classes()), tmp_path / "back.pth")
    back = checkpoint.read(str(tmp_path / "back.pth"))
    assert back.title == original.title
    assert back.require_classes() == [f"class {i}" for i in range(80)]
    for ours, theirs in (
        (checkpoint.read_content(back.path)["state_dict"], official.weights(kind, "L1")),
        (back.weights, model.state_dict()),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_retinanet_anchors_are_reordered(loaded: dict[str, Loaded]) -> None:
    file = checkpoint.read(loaded["retinanet"].path)
    for layer, theirs, size in (("cls_score", "retina_cls", 80), ("bbox_pred", "retina_reg", 4)):
        for last in ("weight", "bias"):
            before = checkpoint.read_content(file.path)["state_dict"][f"bbox_head.{theirs}.{last}"]
            after = file.weights[f"head.{layer}.{last}"]
            order = [after[i * size : (i + 1) * size] for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]
            assert torch.equal(torch.cat(order), before)
            assert not torch.equal(after, before)


@ALL_SIZES
@BOTH
def test_detector_parameter_counts_match_official_implementation(kind: str, size: str) -> None:
    counts = json.loads((official.FOLDER / "complexity.json").read_text())["parameters"][kind]
    with torch.device("meta"):
        model = detector(kind, size)
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == counts[size.lower()]["total"]
    )


@pytest.fixture(params=["proposal_generator", "roi_heads.box_predictor", "RetinaNet"])
def box_transform(request: pytest.FixtureRequest, loaded: dict[str, Loaded]) -> Box2BoxTransform:
    """What decodes boxes, in every place of the published detectors."""
    if request.param == "RetinaNet":
        return loaded["retinanet"].model.box2box_transform
    return loaded["maskrcnn"].model.get_submodule(request.param).box2box_transform


def test_box_scale_is_limited_to_1000_sixteenths_both_ways(box_transform: Box2BoxTransform) -> None:
    boxes = torch.tensor([[10.0, 20.0, 110.0, 70.0]])
    deltas = torch.tensor([[0.0, 0.0, -99.0, 99.0, 0.0, 0.0, 99.0, -99.0]])
    x1, y1, x2, y2 = box_transform.apply_deltas(deltas, boxes).view(2, 4).unbind(1)
    largest = 1000 / 16
    torch.testing.assert_close(
        x2 - x1, torch.tensor([100 / largest, 100 * largest]), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        y2 - y1, torch.tensor([50 * largest, 50 / largest]), rtol=1e-4, atol=0
    )
    torch.testing.assert_close((x1 + x2) / 2, torch.tensor([60.0, 60.0]))


def test_box_decoding_within_limits_matches_detectron2(box_transform: Box2BoxTransform) -> None:
    torch.manual_seed(0)
    boxes = torch.rand(50, 4).cumsum(1) * 100
    limit = torch.tensor([3, 3, math.log(1000 / 16), math.log(1000 / 16)]) * torch.tensor(
        box_transform.weights
    )
    deltas = ((2 * torch.rand(50, 3, 4) - 1) * limit).flatten(1)
    expected = Box2BoxTransform(tuple(box_transform.weights)).apply_deltas(deltas, boxes)
    assert torch.equal(box_transform.apply_deltas(deltas, boxes), expected)


def test_retinanet_clips_boxes_before_nms(
    loaded: dict[str, Loaded],
) -> None:
    anchors = Boxes(torch.tensor([[50.0, 50.0, 100.0, 100.0], [50.0, 50.0, 400.0, 400.0]]))
    scores = torch.zeros(2, 80)
    scores[:, 7] = torch.tensor([0.8, 0.9])
    model = loaded["retinanet"].model
    found = model.inference_single_image([anchors], [scores], [torch.zeros(2, 4)], (100, 100))
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.pred_boxes.tensor.tolist() == [[50.0, 50.0, 100.0, 100.0]]
