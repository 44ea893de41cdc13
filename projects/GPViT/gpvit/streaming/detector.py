"""Detectors over images of any size: the heads read regions of the streamed pyramid.

    for instances in detect(model, pixels): ...  # (H, W, 3) -> Detectron2's Instances, part by part

What a detector limits in an image, it limits per megapixel here: proposals of each level before
and of all levels after their suppression, and detections. The best ones of the whole image are
kept, and suppression is over the whole image, without regions.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from tqdm import tqdm

from ..modeling import GPViT
from ..modeling.segmentation import border
from .backbone import TOKENS, Part, around, in_float32, stream
from .image import ModelInput
from .pyramid import StreamedPyramid, check_pyramid
from .suppression import suppress

MEGAPIXEL = 1_000_000
BOXES = 256  # whose features are in memory at once

Module = TypeVar("Module", bound=nn.Module)


def check_detector(model: Any) -> None:
    """Raise a ValueError if a model cannot be streamed by :func:`detect`."""
    is_known = (
        isinstance(model, GeneralizedRCNN)
        and isinstance(model.proposal_generator, RPN)
        and type(model.roi_heads) in (StandardROIHeads, CascadeROIHeads)
        and not model.roi_heads.keypoint_on
    )
    if not is_known:
        raise ValueError(f"a {type(model).__name__} of this kind cannot be streamed; use tiles")
    check_pyramid(model.backbone)
    net = model.backbone.net
    if not isinstance(net, GPViT):
        raise ValueError(f"a {type(net).__name__} cannot be streamed; use tiles")


@torch.no_grad()
def detect(
    model: Any,
    pixels: Any,
    *,
    channels: Sequence[int] | slice = slice(None),
    folder: str | os.PathLike | None = None,
    tokens: int = TOKENS,
    progress: bool = False,
) -> Iterator[Instances]:
    """Yield the detections in an image, part by part.

    The image is not resized. In memory are, besides what :func:`.stream` needs, the boxes of the
    proposals, and one part of the detections.

    Args:
        model: Mask R-CNN, Cascade Mask R-CNN or Faster R-CNN on GPViT with a simple feature
            pyramid; in evaluation mode and float32.
        pixels, channels: see :class:`.ModelInput`.
        folder, tokens, progress: see :func:`.stream`.

    Yields:
        Instances on the CPU, an empty one if there are no detections: "pred_boxes", "scores",
        "pred_classes" and, of a detector that predicts masks, "pred_masks": (N, 1, M, M), the
        probabilities in each box, as Detectron2's heads return them.

    Raises:
        ValueError, OSError: see :func:`.stream`; or the model is another one.
    """
    check_detector(model)
    image = ModelInput(pixels, model, channels)
    source = stream(model.backbone.net, image, folder=folder, tokens=tokens, progress=progress)
    # The levels of a region have more cells than the map, with more channels.
    tokens = max(tokens // 4, 1)
    with in_float32(model.device):
        pyramid = StreamedPyramid(model.backbone, source, folder, tokens)
    regions = pyramid.regions(tokens)
    limit = max(image.size[0] * image.size[1] / MEGAPIXEL, 1)  # times those of the model

    with (
        in_float32(model.device),
        tqdm(regions, desc="proposals", unit="part", disable=not progress) as bar,
    ):
        boxes = propose(model.proposal_generator, pyramid, bar, image.size, limit)
    heads = _streamed_heads(model.roi_heads, pyramid, tokens)
    features = dict.fromkeys(pyramid.names, _stand_in(pyramid))
    found: list[Instances] = []
    for part in _parts(boxes, tokens, "boxes", progress):
        proposals = Instances(image.size, proposal_boxes=Boxes(boxes[part].to(pyramid.device)))
        with in_float32(model.device):
            (instances,) = heads._forward_box(features, [proposals])
        found.append(instances.to("cpu"))
    instances = Instances.cat(found)
    predictor = _predictors(model.roi_heads)[-1]
    kept = suppress(
        instances.pred_boxes.tensor,
        instances.scores,
        instances.pred_classes,
        predictor.test_nms_thresh,
    )
    if predictor.test_topk_per_image >= 0:
        kept = kept[: round(limit * predictor.test_topk_per_image)]
    instances = instances[kept]
    instances = instances[instances.pred_boxes.nonempty()]
    boxes = instances.pred_boxes.tensor
    for part in _parts(boxes, tokens, "detections", progress):
        detections = instances[part].to(pyramid.device)
        with in_float32(model.device):
            (detections,) = heads.forward_with_given_boxes(features, [detections])
        yield detections.to("cpu")


def propose(
    rpn: RPN,
    pyramid: StreamedPyramid,
    regions: Iterable[Part],
    size: tuple[int, int],
    limit: float,
) -> Tensor:
    """Return the proposals of an image, (N, 4), on the CPU, from the best to the worst.

    Args:
        rpn: the region proposal network.
        pyramid: its input.
        regions: of the map, in any order.
        size: height and width of the image.
        limit: factor of the numbers of proposals.
    """
    names = [pyramid.names.index(name) for name in rpn.in_features]
    best = [_Best(round(limit * rpn.pre_nms_topk[False])) for _ in names]
    for region in regions:
        _add_proposals(best, rpn, pyramid, names, region)
    scores, boxes, levels = _joined(best)
    usable = boxes.isfinite().all(dim=1) & scores.isfinite()
    proposals = Boxes(boxes.nan_to_num())
    proposals.clip(size)
    usable &= proposals.nonempty(threshold=rpn.min_box_size)
    scores, boxes, levels = scores[usable], proposals.tensor[usable], levels[usable]
    kept = suppress(boxes, scores, levels, rpn.nms_thresh)
    return boxes[kept[: round(limit * rpn.post_nms_topk[False])]]


def _add_proposals(
    best: Sequence["_Best"],
    rpn: RPN,
    pyramid: StreamedPyramid,
    indices: Sequence[int],
    region: Part,
) -> None:
    """Add the proposals of a region of the map to the best ones of each level."""
    inputs, insides, corners = [], [], []
    for index in indices:
        part = pyramid.of_level(index, *region)
        outer, inner = around(*part, border(rpn.rpn_head.conv), pyramid.sizes[index])
        inputs.append(pyramid.read(index, *outer))
        insides.append((slice(None), *inner))
        corners.append([pyramid.strides[index] * side.start for side in reversed(outer)])
    logits, deltas = rpn.rpn_head(inputs)
    anchors = rpn.anchor_generator(inputs)
    for number, (inside, corner) in enumerate(zip(insides, corners)):
        scores = logits[number][0]  # (A, h, w), and the others in the same order
        changes = deltas[number][0].unflatten(0, (-1, 4)).permute(0, 2, 3, 1)
        boxes = anchors[number].tensor.unflatten(0, (*scores.shape[1:], -1)).permute(2, 0, 1, 3)
        scores = scores[inside].flatten()
        chosen = best[number].candidates(scores)
        boxes = boxes[inside].flatten(0, 2)[chosen] + boxes.new_tensor([*corner, *corner])
        changes = changes[inside].flatten(0, 2)[chosen]
        proposals = rpn.box2box_transform.apply_deltas(changes, boxes)
        best[number].add(scores[chosen].float().cpu(), proposals.float().cpu())


class _Best:
    """The boxes with the highest scores of those added."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lowest = -torch.inf  # of the scores that can be among the best
        self.scores, self.boxes = torch.zeros(0), torch.zeros(0, 4)
        self.new: list[tuple[Tensor, Tensor]] = []

    def candidates(self, scores: Tensor) -> Tensor:
        """Return the indices of those that may be among the best."""
        chosen = scores.topk(min(self.limit, len(scores))).indices
        return chosen[scores[chosen] > self.lowest]

    def add(self, scores: Tensor, boxes: Tensor) -> None:
        self.new.append((scores, boxes))
        if sum(len(part) for part, _ in self.new) > self.limit:
            self.best()

    def best(self) -> tuple[Tensor, Tensor]:
        """Return scores and boxes, at most as many as the limit."""
        scores = torch.cat([self.scores, *(scores for scores, _ in self.new)])
        boxes = torch.cat([self.boxes, *(boxes for _, boxes in self.new)])
        chosen = scores.topk(min(self.limit, len(scores))).indices
        self.scores, self.boxes, self.new = scores[chosen], boxes[chosen], []
        if len(chosen) == self.limit:
            self.lowest = self.scores[-1].item()
        return self.scores, self.boxes


def _joined(best: Sequence[_Best]) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, boxes and numbers of the levels of all levels."""
    scores, boxes, levels = [], [], []
    for number, level in enumerate(best):
        level_scores, level_boxes = level.best()
        scores.append(level_scores)
        boxes.append(level_boxes)
        levels.append(torch.full(level_scores.shape, number))
    return torch.cat(scores), torch.cat(boxes), torch.cat(levels)


def _parts(boxes: Tensor, tokens: int, name: str, progress: bool) -> Iterator[Tensor]:
    """Yield the indices of boxes that are close to each other: region by region, row by row.

    There is at least one part, if only an empty one.
    """
    side = 8 * tokens**0.5  # pixels
    columns, rows = (boxes[:, :2] + boxes[:, 2:]).div(2 * side).floor().T
    order = torch.from_numpy(np.lexsort((columns.numpy(), rows.numpy())))
    region = torch.stack([rows, columns])[:, order]
    ends = (region[:, 1:] != region[:, :-1]).any(dim=0).nonzero()[:, 0] + 1
    with tqdm(total=len(boxes), desc=name, unit="box", disable=not progress) as bar:
        for indices in order.tensor_split(ends):
            for part in indices.split(BOXES):
                yield part
                bar.update(len(part))


def _streamed_heads(heads: StandardROIHeads, pyramid: StreamedPyramid, tokens: int) -> Any:
    """Return heads, with the same layers, that pool from the streamed pyramid.

    They return all boxes above the score threshold: suppression and limit are over the whole image.
    """
    parts: dict[str, nn.Module | None] = {}
    for name in ("box", "mask"):
        pooler = getattr(heads, f"{name}_pooler", None)
        if pooler is not None:
            names = getattr(heads, f"{name}_in_features")
            parts[f"{name}_pooler"] = _streamed_pooler(pooler, names, pyramid, tokens)
    predictors = nn.ModuleList()
    for predictor in _predictors(heads):
        predictor = _changed(predictor)
        predictor.test_nms_thresh, predictor.test_topk_per_image = 1.0, -1
        predictors.append(predictor)
    is_cascade = isinstance(heads.box_predictor, nn.ModuleList)
    parts["box_predictor"] = predictors if is_cascade else predictors[0]
    return _changed(heads, **parts)


def _predictors(heads: StandardROIHeads) -> list[Any]:
    """Return the predictors of the stages of a cascade, or the only one."""
    predictor = heads.box_predictor
    return list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]


def _streamed_pooler(
    pooler: ROIPooler, names: Sequence[str], pyramid: StreamedPyramid, tokens: int
) -> ROIPooler:
    layers = nn.ModuleList()
    for name, layer in zip(names, pooler.level_poolers):
        layers.append(_StreamedAlign(layer, pyramid, pyramid.names.index(name), tokens))
    return _changed(pooler, level_poolers=layers)


def _changed(module: Module, **parts: nn.Module | None) -> Module:
    """Return a module with other parts; all others are shared."""
    changed = copy.copy(module)
    changed._modules = {**module._modules, **parts}
    return changed


def _stand_in(pyramid: StreamedPyramid) -> Tensor:
    """What the heads take as a level, and do not read: its batch and channels count."""
    return torch.zeros(1, pyramid.channels, 0, 0, device=pyramid.device)


class _StreamedAlign(nn.Module):
    """RoIAlign of a level of the streamed pyramid, of which it reads what the boxes need."""

    def __init__(self, align: ROIAlign, pyramid: StreamedPyramid, index: int, tokens: int) -> None:
        super().__init__()
        self.align, self.pyramid, self.index = align, pyramid, index
        self.stride = pyramid.strides[index]
        # Cells of the level that are read at once, unless one box needs more.
        self.limit = 4 * tokens / pyramid.factors[index] ** 2

    def forward(self, stand_in: Tensor, boxes: Tensor) -> Tensor:
        """(1, C, 0, 0), (N, 5) -> (N, C, height, width)."""
        pooled = boxes.new_zeros(len(boxes), stand_in.shape[1], *self.align.output_size)
        todo = [torch.arange(len(boxes))]
        while todo:
            chosen = todo.pop()
            if not len(chosen):
                continue
            rows, columns = self.needed(boxes[chosen])
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if len(chosen) > 1 and height * width > self.limit:
                # Two halves, at the median of x or y.
                order = boxes[chosen, 2 if height > width else 1].argsort().cpu()
                todo += chosen[order].tensor_split(2)
                continue
            level = self.pyramid.read(self.index, rows, columns).contiguous()
            # Whole cells: the positions in the cells are the same floating-point numbers.
            corner = self.stride * boxes.new_tensor([0, *[columns.start, rows.start] * 2])
            pooled[chosen] = self.align(level, boxes[chosen] - corner)
        return pooled

    def needed(self, boxes: Tensor) -> tuple[slice, slice]:
        """Return the cells that boxes depend on: (N, 5) -> rows, columns."""
        # A sample depends on two cells in each direction.
        x0, y0 = (boxes[:, 1:3].nan_to_num() / self.stride).amin(0).floor().tolist()
        x1, y1 = (boxes[:, 3:5].nan_to_num() / self.stride).amax(0).ceil().tolist()
        sides = []
        for start, end, length in zip((y0, x0), (y1, x1), self.pyramid.sizes[self.index]):
            first = int(min(max(start - 1, 0), length - 1))
            sides.append(slice(first, int(min(max(end + 2, first + 1), length))))
        return sides[0], sides[1]
