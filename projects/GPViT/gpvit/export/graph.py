"""Models as graphs of tensor operations, for :mod:`torch.export` and ONNX.

Detectron2's inference has branches that depend on the data (is there any box? are all of them
finite?), which cannot be exported. The modules here compute the same without such branches, from
the detector's own modules, for a batch of B images of one size:

    images (B, 3, H, W) -> normalize, pad -> backbone -> {"p2": (B, C, H/4, W/4), ...}
    R-CNN:     RPN -> at most 1000 boxes -> box head (cascade: three) -> detections -> mask head
    RetinaNet: head -> at most 1000 boxes per level -> detections

B is any number from 1, and H and W are any sizes from :func:`smallest_side`. The outputs are the N
detections of all images by descending score:

    boxes (N, 4): x0, y0, x1, y1 in pixels
    scores (N,)
    classes (N,): int64, from 0
    image_index (N,): int64, the image of each detection, from 0
    masks (N, 28, 28): probabilities in the box (not for RetinaNet)

A segmentation model has one output, at the size of the images, and a classifier probabilities:

    logits (B, K, H, W)
    scores (B, K)
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

from ..modeling import ImageClassifier, SemanticSegmentor
from ..modeling.deformable_attention import sampling_by_row
from ..utils.errors import UserError

OUTPUTS = ["boxes", "scores", "classes", "image_index", "masks"]
SEGMENTATION_OUTPUTS, CLASSIFIER_OUTPUTS = ["logits"], ["scores"]
MAX_BATCH = 2**16
Side = int | SymInt
# Type checkers resolve this to Any, because Detectron2 has no types. With nn.Module, they would
# take every attribute for a Tensor or a Module. An ImageClassifier, too, may be meant.
Detector: TypeAlias = "GeneralizedRCNN | RetinaNet | SemanticSegmentor"


def smallest_side(model: Detector) -> int:
    """Return the smallest height and width of an image, in pixels.

    The coarsest feature map must be larger than 1 x 1, since torch.export specializes the graph for
    sizes of 1, and padding must not be the only reason for it.
    """
    strides = [shape.stride for shape in model.backbone.output_shape().values()]
    return max(*strides, model.backbone.size_divisibility) + 1


def export(model: Detector) -> ExportedProgram:
    """Export a model in evaluation mode.

    Its input is a batch of images (B, 3, H, W), RGB, uint8.

    Raises:
        UserError: models of this type cannot be exported.
    """
    torch.library.register_fake("torchvision::nms", _fake_nms, allow_override=True)
    smallest = smallest_side(model)
    # Height and width differ, so that torch.export does not assume square images, and there are two
    # images, since it specializes the graph for one.
    size = smallest + 31, smallest + 63
    example = torch.zeros(2, 3, *size, dtype=torch.uint8, device=model.device)
    height, width = Dim("height", min=smallest), Dim("width", min=smallest)
    shapes = {"images": {0: Dim("batch"), 2: height, 3: width}}
    with torch.no_grad():
        return torch.export.export(
            graph_of(model),
            (example,),
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def export_onnx(model: Detector) -> torch.onnx.ONNXProgram:
    """Export a model to ONNX. Raises the same errors as :func:`export`."""
    with sampling_by_row(model):
        program = export(model)
    names = program.graph_signature.user_outputs
    outputs = OUTPUTS
    if isinstance(model, SemanticSegmentor):
        outputs = SEGMENTATION_OUTPUTS
    elif isinstance(model, ImageClassifier):
        outputs = CLASSIFIER_OUTPUTS
    with torch.no_grad():  # with gradients, attention has another layout than in the program
        onnx_program = torch.onnx.export(
            program, input_names=["images"], output_names=outputs[: len(names)], verbose=False
        )
    assert onnx_program is not None  # None is returned by the TorchScript exporter only
    return onnx_program


def graph_of(model: Detector) -> nn.Module:
    """Return the module to export for a model."""
    if isinstance(model, ImageClassifier):
        return ClassifierGraph(model).eval()
    if model.backbone.padding_constraints.get("square_size"):
        raise UserError(
            "a pyramid with square_pad cannot be exported; set model.backbone.square_pad=0"
        )
    if isinstance(model, RetinaNet):
        return RetinaNetGraph(model).eval()
    if isinstance(model, GeneralizedRCNN):
        return RCNNGraph(model).eval()
    if isinstance(model, SemanticSegmentor):
        if model.window or model.flip or model.scales != (1.0,):
            raise UserError(
                "windows, scales and flips cannot be exported; add model.window=0 model.flip=False "
                "'model.scales=[1.0]'"
            )
        return SegmentationGraph(model).eval()
    raise UserError(
        f"{type(model).__name__} cannot be exported; use Mask R-CNN, Cascade Mask R-CNN, "
        "RetinaNet, a segmentation model or a classifier"
    )


class Graph(nn.Module):
    """Base class of the exported modules: from images to feature maps."""

    model: Detector

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the model.

        Args:
            images: (B, 3, H, W), RGB, from 0 to 255, resized as by the predictor.

        Returns:
            The outputs described in this module's docstring.
        """
        batch = normalized_and_padded(self.model, images)
        return self.predict(self.model.backbone(batch), images.shape[-2:])

    def predict(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        """Return the outputs from feature maps (B, C, h, w); ``size`` is (H, W)."""
        raise NotImplementedError


class RCNNGraph(Graph):
    """Mask R-CNN and Cascade Mask R-CNN."""

    def predict(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        heads = self.model.roi_heads
        maps = [features[name] for name in heads.box_in_features]
        proposals, images = self.propose(features, size)
        boxes, scores = self.classify(maps, proposals, images, size)
        is_cascade = isinstance(heads.box_predictor, nn.ModuleList)
        predictor = heads.box_predictor[-1] if is_cascade else heads.box_predictor
        # One candidate for each pair of proposal and class whose score passes the threshold.
        proposal, classes = (scores > predictor.test_score_thresh).nonzero().unbind(1)
        outputs = select_detections(
            boxes.expand(-1, scores.shape[1], 4)[proposal, classes],
            scores[proposal, classes],
            classes,
            images[proposal],
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
            (maps[0].shape[0], *size),
        )
        if heads.mask_on:
            outputs["masks"] = self.masks(features, outputs)
        return outputs

    def propose(self, features: dict[str, Tensor], size: Sequence[Side]) -> tuple[Tensor, Tensor]:
        """Return the proposals of the RPN, (P, 4), and their images, (P,)."""
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        num_anchors = rpn.anchor_generator.num_anchors[0]
        # Boxes, logits, levels and images of the candidates of each level.
        candidates: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        level_outputs = zip(rpn.anchor_generator(maps), *rpn.rpn_head(maps))
        for level, (anchors, logits, deltas) in enumerate(level_outputs):
            logits = by_anchor(logits, num_anchors)[..., 0]  # (B, h * w * A)
            logits, image, anchor = best_of_each(logits, rpn.pre_nms_topk[False])
            deltas = by_anchor(deltas, num_anchors)[image, anchor]
            boxes = decode(rpn.box2box_transform, deltas, anchors.tensor[anchor], size)[:, 0]
            candidates.append((boxes, logits, torch.full_like(image, level), image))
        boxes, scores, levels, images = map(torch.cat, zip(*candidates))
        is_large = (boxes[:, 2:] - boxes[:, :2] > rpn.min_box_size).all(1)
        boxes, scores, levels, images = (x[is_large] for x in (boxes, scores, levels, images))
        shape = (maps[0].shape[0], *size)
        limit = rpn.post_nms_topk[False]
        kept = nms(boxes, scores, levels, images, rpn.nms_thresh, limit, shape)
        return boxes[kept], images[kept]

    def classify(
        self, maps: list[Tensor], boxes: Tensor, images: Tensor, size: Sequence[Side]
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (P, K or 1, 4) and scores (P, K) of proposals (P, 4) in images (P,).

        In a cascade, each stage refines the boxes of the previous stage, and the scores are the
        mean over the stages.
        """
        heads = self.model.roi_heads
        if isinstance(heads.box_head, nn.ModuleList):
            stages = list(zip(heads.box_head, heads.box_predictor))
        else:
            stages = [(heads.box_head, heads.box_predictor)]
        scores = []
        for head, predictor in stages:
            logits, deltas = predictor(head(pool(heads.box_pooler, maps, boxes, images)))
            logits, deltas = logits[:-1], deltas[:-1]  # without the empty box that pool() appends
            scores.append(logits.softmax(-1)[:, :-1])  # without the background class
            refined = decode(predictor.box2box_transform, deltas, boxes, size)
            boxes = refined[:, 0]  # for the next stage; the stages of a cascade have one box each
        return refined, sum(scores) * (1 / len(scores))

    def masks(self, features: dict[str, Tensor], detections: dict[str, Tensor]) -> Tensor:
        """Return masks (N, 28, 28) of detections."""
        heads = self.model.roi_heads
        boxes, classes = detections["boxes"], detections["classes"]
        maps = [features[name] for name in heads.mask_in_features]
        pooled = pool(heads.mask_pooler, maps, boxes, detections["image_index"])
        logits = heads.mask_head.layers(pooled)[:-1]  # (N, K or 1, 28, 28)
        channel = classes if logits.shape[1] > 1 else torch.zeros_like(classes)
        return logits[torch.arange(classes.shape[0], device=classes.device), channel].sigmoid()


class RetinaNetGraph(Graph):
    """RetinaNet."""

    def predict(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        model = self.model
        maps = [features[name] for name in model.head_in_features]
        num_anchors = model.anchor_generator.num_anchors[0]
        # Boxes, scores, classes and images of the candidates of each level.
        candidates: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for anchors, logits, deltas in zip(model.anchor_generator(maps), *model.head(maps)):
            scores = by_anchor(logits, num_anchors).sigmoid()  # (B, h * w * A, K)
            num_classes = scores.shape[2]
            scores, image, index = best_of_each(scores.flatten(1), model.test_topk_candidates)
            is_kept = scores > model.test_score_thresh
            scores, image, index = scores[is_kept], image[is_kept], index[is_kept]
            anchor = index // num_classes
            deltas = by_anchor(deltas, num_anchors)[image, anchor]
            boxes = decode(model.box2box_transform, deltas, anchors.tensor[anchor], size)[:, 0]
            candidates.append((boxes, scores, index % num_classes, image))
        boxes, scores, classes, images = map(torch.cat, zip(*candidates))
        return select_detections(
            boxes,
            scores,
            classes,
            images,
            model.test_nms_thresh,
            model.max_detections_per_image,
            (maps[0].shape[0], *size),
        )


class SegmentationGraph(Graph):
    """Segmentation models."""

    def predict(self, features: dict[str, Tensor], size: Sequence[Side]) -> dict[str, Tensor]:
        logits, _ = self.model.sem_seg_head(features)
        height, width = size
        return {"logits": logits[:, :, :height, :width]}


class ClassifierGraph(nn.Module):
    """Classifiers."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the probabilities: (B, 3, H, W), from 0 to 255 -> {"scores": (B, K)}."""
        logits = self.model.logits(normalized_and_padded(self.model, images))
        return {"scores": logits.softmax(-1)}


def normalized_and_padded(model: Detector, images: Tensor) -> Tensor:
    """Normalize images (B, 3, H, W), and pad them at the bottom and on the right."""
    height, width = images.shape[-2:]
    divisor = model.backbone.size_divisibility
    # Up to the next multiple of the divisor.
    bottom = (height + divisor - 1) // divisor * divisor - height
    right = (width + divisor - 1) // divisor * divisor - width
    normalized = (images - model.pixel_mean) / model.pixel_std
    return F.pad(normalized, (0, right, 0, bottom))


def by_anchor(x: Tensor, num_anchors: int) -> Tensor:
    """(B, A * K, h, w) -> (B, A, K, h, w) -> (B, h, w, A, K) -> (B, h * w * A, K)"""
    return x.unflatten(1, (num_anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)


def best_of_each(scores: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best scores of each image: (B, M) -> values, rows and columns, each (B * limit,).

    If M is smaller than the limit, all are returned.
    """
    values, columns = scores.topk(torch.sym_min(scores.shape[1], limit))
    rows = torch.arange(scores.shape[0], device=scores.device)[:, None].expand_as(columns)
    return values.flatten(), rows.flatten(), columns.flatten()


def decode(
    transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor, size: Sequence[Side]
) -> Tensor:
    """Apply deltas (M, 4k) to boxes (M, 4) and clip the results (M, k, 4) to the image."""
    x0, y0, x1, y1 = transform.apply_deltas(deltas, boxes).unflatten(1, (-1, 4)).unbind(2)
    height, width = size
    return torch.stack(
        [x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)], dim=2
    )


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    images: Tensor,
    nms_threshold: float,
    limit: int,
    shape: Sequence[Side],
) -> dict[str, Tensor]:
    """Return at most ``limit`` detections of each image after NMS.

    Args:
        boxes, scores, classes, images: (M, 4) and (M,) of all candidates.
        nms_threshold, limit: see :func:`nms`.
        shape: (B, H, W).
    """
    kept = nms(boxes, scores, classes, images, nms_threshold, limit, shape)
    kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(1)]  # clipping may leave empty boxes
    return {
        "boxes": boxes[kept],
        "scores": scores[kept],
        "classes": classes[kept],
        "image_index": images[kept],
    }


def nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    images: Tensor,
    threshold: float,
    limit: int,
    shape: Sequence[Side],
) -> Tensor:
    """Return the indices that non-maximum suppression keeps, by descending score.

    Boxes suppress boxes of their group in their image, and at most ``limit`` of each image remain.
    """
    num_images, height, width = shape
    # All boxes are inside their image: these offsets separate different groups and images. One in
    # each direction keeps them small, since large ones would round the coordinates.
    offsets = torch.stack([groups.mul(width), images.mul(height)], dim=1).repeat(1, 2)
    kept = torch.ops.torchvision.nms(boxes + offsets, scores, threshold)
    images = images[kept]
    is_of_image = images[:, None] == torch.arange(num_images, device=images.device)  # (N, B)
    rank = is_of_image.long().cumsum(0).gather(1, images[:, None])[:, 0]  # in the image, from 1
    kept = kept[rank <= limit]
    # Without this limit, torch.export's upper bounds of what follows would exceed 64 bits.
    torch._check(kept.shape[0] <= MAX_BATCH * limit)
    return kept


def pool(pooler: ROIPooler, maps: list[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
    """Pool the features of boxes (M, 4) in images (M,), and of an empty box: (M + 1, C, h, w).

    Each box is pooled from the level for its size, as in Detectron2's ``assign_boxes_to_levels``.
    The empty box keeps the layers that follow from getting an empty batch, for which torch.export
    specializes the graph.
    """
    boxes, images = F.pad(boxes, (0, 0, 0, 1)), F.pad(images, (0, 1))
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    # Equation 1 of the FPN paper (Lin et al., CVPR 2017).
    levels = (pooler.canonical_level + torch.log2(side / pooler.canonical_box_size + 1e-8)).floor()
    levels = levels.clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)  # (M + 1, 5)
    pooled = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], *pooler.output_size)
    for level, (layer, x) in enumerate(zip(pooler.level_poolers, maps)):
        indices = (levels == level).nonzero()[:, 0]
        pooled = pooled.index_put((indices,), layer(x, rois[indices]))
    return pooled


def _fake_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return a tensor of unknown length, the shape of the result of torchvision's NMS.

    torchvision's own function for this (seen in 0.29) declares that NMS keeps at least two boxes,
    so that the graph would raise an error for images with fewer.
    """
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
