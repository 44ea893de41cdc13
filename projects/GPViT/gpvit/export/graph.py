"""A detector as a graph of tensor operations, for :mod:`torch.export` and from there for ONNX.

Detectron2's own inference decides by what it sees (is there a box at all? are all of them finite?), which no graph can.
Here is the same, step by step, for one image and without a branch, from the detector's own modules:

    image (3, H, W) -> normalised and padded -> backbone -> {"p2": (1, C, H/4, W/4), ...}
    R-CNN:     RPN -> at most 1000 boxes -> box head, or three of them one after the other -> detections -> mask head
    RetinaNet: head -> at most 1000 boxes of each level -> detections

H and W are any from :func:`smallest_side` up. N detections, the best first, are

    boxes (N, 4): x0, y0, x1, y1 in pixels, scores (N,), classes (N,): int64, from 0,
    masks (N, 28, 28): probabilities inside of the box (not of RetinaNet)
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.poolers import ROIPooler
from torch import SymInt, Tensor, nn
from torch.export import Dim, ExportedProgram

from ..modeling.deformable_attention import sampling_by_grid
from ..utils.errors import UserError

OUTPUTS = ["boxes", "scores", "classes", "masks"]
Side = int | SymInt
# Types of nothing, to the type checker: PyTorch's own types take whatever a module holds for a Tensor or a Module.
Detector: TypeAlias = "GeneralizedRCNN | RetinaNet"


def smallest_side(model: Detector) -> int:
    """Smallest side in pixels that a graph is for: of a map of one pixel, torch.export makes a special case."""
    return max(shape.stride for shape in model.backbone.output_shape().values()) + 1


def export(model: Detector) -> ExportedProgram:
    """The graph of a detector in evaluation mode: (3, H, W), RGB, uint8 -> boxes, scores, classes and perhaps masks.

    Raises:
        UserError: the detector is of a kind that cannot be exported.
    """
    torch.library.register_fake("torchvision::nms", _any_number_of_boxes, allow_override=True)
    smallest = smallest_side(model)
    example = torch.zeros(3, smallest + 31, smallest + 63, dtype=torch.uint8, device=model.device)
    shapes = {"image": {1: Dim("height", min=smallest), 2: Dim("width", min=smallest)}}
    with torch.no_grad():
        return torch.export.export(
            graph_of(model),
            (example,),
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def export_onnx(model: Detector) -> torch.onnx.ONNXProgram:
    """The same in ONNX. Raises as :func:`export` does."""
    with sampling_by_grid(model):
        program = export(model)
    names = program.graph_signature.user_outputs
    exported = torch.onnx.export(
        program, input_names=["image"], output_names=OUTPUTS[: len(names)], verbose=False
    )
    assert exported is not None  # as only the older exporter returns
    return exported


def graph_of(model: Detector) -> "Graph":
    """The module that is exported."""
    if model.backbone.padding_constraints.get("square_size"):
        raise UserError(
            "a pyramid with square_pad cannot be exported; set model.backbone.square_pad=0"
        )
    if isinstance(model, RetinaNet):
        return RetinaNetGraph(model).eval()
    if isinstance(model, GeneralizedRCNN):
        return RCNNGraph(model).eval()
    raise UserError(
        f"{type(model).__name__} cannot be exported; Mask R-CNN, Cascade Mask R-CNN and RetinaNet can"
    )


class Graph(nn.Module):
    """What all detectors have in common: images as the predictor makes them, to maps."""

    model: Detector

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Args: image: (3, H, W), RGB, 0 to 255. Returns: see the head of this file."""
        size = image.shape[-2:]
        step = self.model.backbone.size_divisibility
        bottom, right = ((side + step - 1) // step * step - side for side in size)
        x = (image - self.model.pixel_mean) / self.model.pixel_std
        return self.detect(self.model.backbone(F.pad(x, (0, right, 0, bottom))[None]), size)

    def detect(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        raise NotImplementedError


class RCNNGraph(Graph):
    """Mask R-CNN and Cascade Mask R-CNN."""

    def detect(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        heads = self.model.roi_heads
        maps = [features[name] for name in heads.box_in_features]
        boxes, scores = self.classify(maps, self.propose(features, size), size)
        cascade = isinstance(heads.box_predictor, nn.ModuleList)
        predictor = heads.box_predictor[-1] if cascade else heads.box_predictor
        anchor, classes = (scores > predictor.test_score_thresh).nonzero().unbind(1)
        boxes = boxes.expand(-1, scores.shape[1], 4)[anchor, classes]
        scores = scores[anchor, classes]
        outputs = best_of(
            boxes, scores, classes, predictor.test_nms_thresh, predictor.test_topk_per_image, size
        )
        if heads.mask_on:
            outputs["masks"] = self.masks(features, outputs["boxes"], outputs["classes"])
        return outputs

    def propose(self, features: dict[str, Tensor], size: Sequence[Side]) -> Tensor:
        """The RPN's boxes: (P, 4)."""
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        of_levels: list[tuple[Tensor, Tensor, Tensor]] = []
        for level, (anchors, logits, deltas) in enumerate(
            zip(rpn.anchor_generator(maps), *rpn.rpn_head(maps))
        ):
            logits = logits[0].permute(1, 2, 0).flatten()  # (1, A, h, w) -> (h * w * A,)
            deltas = (
                deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2)
            )  # -> (h * w * A, 4)
            logits, best = logits.topk(torch.sym_min(logits.shape[0], rpn.pre_nms_topk[False]))
            decoded = decode(rpn.box2box_transform, deltas[best], anchors.tensor[best], size)[:, 0]
            of_levels.append((decoded, logits, torch.full_like(best, level)))
        boxes, scores, levels = map(torch.cat, zip(*of_levels))
        large = (boxes[:, 2:] - boxes[:, :2] > rpn.min_box_size).all(1)
        boxes, scores, levels = boxes[large], scores[large], levels[large]
        return boxes[nms(boxes, scores, levels, rpn.nms_thresh, size)[: rpn.post_nms_topk[False]]]

    def classify(
        self, maps: list[Tensor], boxes: Tensor, size: Sequence[Side]
    ) -> tuple[Tensor, Tensor]:
        """(P, 4) -> (P, K or 1, 4) and (P, K); each head of a cascade goes on from the boxes of the one before it."""
        heads = self.model.roi_heads
        cascade = isinstance(heads.box_head, nn.ModuleList)
        stages = (
            list(zip(heads.box_head, heads.box_predictor))
            if cascade
            else [(heads.box_head, heads.box_predictor)]
        )
        scores = []
        for head, predictor in stages:
            logits, deltas = (x[:-1] for x in predictor(head(pool(heads.box_pooler, maps, boxes))))
            scores.append(logits.softmax(-1)[:, :-1])
            decoded = decode(predictor.box2box_transform, deltas, boxes, size)
            boxes = decoded[:, 0]
        return decoded, sum(scores) * (1 / len(scores))

    def masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        """(N, 4), (N,) -> (N, 28, 28)."""
        heads = self.model.roi_heads
        pooled = pool(heads.mask_pooler, [features[name] for name in heads.mask_in_features], boxes)
        logits = heads.mask_head.layers(pooled)[:-1]  # (N, K or 1, 28, 28)
        of_class = classes if logits.shape[1] > 1 else torch.zeros_like(classes)
        return logits[torch.arange(classes.shape[0], device=classes.device), of_class].sigmoid()


class RetinaNetGraph(Graph):
    """RetinaNet."""

    def detect(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        model = self.model
        maps = [features[name] for name in model.head_in_features]
        boxes, scores, classes = [], [], []
        for anchors, logits, deltas in zip(model.anchor_generator(maps), *model.head(maps)):
            per_cell = model.anchor_generator.num_anchors[0]
            # (1, A * K, h, w) -> (h * w * A, K), and so for the deltas
            logits, deltas = (
                x[0].unflatten(0, (per_cell, -1)).permute(2, 3, 0, 1).flatten(0, 2)
                for x in (logits, deltas)
            )
            probabilities = logits.sigmoid()
            anchor, class_ = (probabilities > model.test_score_thresh).nonzero().unbind(1)
            found = probabilities[anchor, class_]
            found, best = found.topk(torch.sym_min(found.shape[0], model.test_topk_candidates))
            anchor = anchor[best]
            boxes.append(
                decode(model.box2box_transform, deltas[anchor], anchors.tensor[anchor], size)[:, 0]
            )
            scores.append(found)
            classes.append(class_[best])
        found = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
        return best_of(*found, model.test_nms_thresh, model.max_detections_per_image, size)


def decode(
    transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor, size: Sequence[Side]
) -> Tensor:
    """Moves boxes, and clips them to the image: (M, 4k), (M, 4) -> (M, k, 4)."""
    x0, y0, x1, y1 = transform.apply_deltas(deltas, boxes).unflatten(1, (-1, 4)).unbind(2)
    height, width = size
    return torch.stack(
        [x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)], dim=2
    )


def best_of(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    nms_threshold: float,
    limit: int,
    size: Sequence[Side],
) -> dict[str, Tensor]:
    """The detections: (M, 4), (M,), (M,) -> (N, 4), (N,), (N,)."""
    kept = nms(boxes, scores, classes, nms_threshold, size)[:limit]
    kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(1)]  # clipped, a box may be empty
    return {"boxes": boxes[kept], "scores": scores[kept], "classes": classes[kept]}


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, size: Sequence[Side]
) -> Tensor:
    """Non-maximum suppression among the boxes of each group: the indices of those that stay, the best first."""
    away = groups.mul(size[0] + size[1])  # so far apart that boxes of two groups never meet
    return torch.ops.torchvision.nms(boxes + away[:, None], scores, threshold)


def pool(pooler: ROIPooler, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """Each box from the map that suits its size: (M, 4) -> (M + 1, C, h, w), the last one of an empty box.

    Where there are no boxes, the layers behind would otherwise get nothing, of which torch.export makes a special case.
    """
    boxes = F.pad(boxes, (0, 0, 0, 1))
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    levels = (pooler.canonical_level + torch.log2(side / pooler.canonical_box_size + 1e-8)).floor()
    levels = levels.clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    rois = F.pad(boxes, (1, 0))  # in front, the number of the image: 0
    pooled = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], *pooler.output_size)
    for level, (layer, x) in enumerate(zip(pooler.level_poolers, maps)):
        here = (levels == level).nonzero()[:, 0]
        pooled = pooled.index_put((here,), layer(x, rois[here]))
    return pooled


def _any_number_of_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """torchvision's own says that at least two boxes stay, and the graph would refuse images with fewer (seen: 0.29)."""
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
