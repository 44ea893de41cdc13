"""Semantic segmentation: the two heads of the published models, and their meta-architecture.

A head takes four maps of the backbone, all with C channels at stride 8, and returns logits at that
stride. For B images and K classes:

    maps = GPViT(out_features=("block2", "block5", "block8", "last_feat"))(images)
    SegFormerHead: each map -> 256 channels; concatenated, fused -> (B, K, H, W)
    UPerNetHead:   pyramid pooling of the last map, top-down sums over all maps -> (B, K, H, W)

The logits are resized to the network's input, and then to the original image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, meta_arch
from detectron2.structures import ImageList
from torch import Tensor, nn

from .layers import ConvNormReLU
from .semantic_inference import (
    Prediction,
    Windows,
    class_map,
    resize_matrix,
    resize_twice,
    sliding_class_map,
    sliding_logits,
)

STRIDE = 8  # of the maps
POOLED_SIDES = (1, 2, 3, 6)  # of UPerNet's pyramid pooling, in cells
AVERAGES = ("all", "labeled")


class SegmentationHead(nn.Module):
    """Base class: what both heads share, that is everything but the layers.

    As in Detectron2, ``head(features, targets)`` returns ``(None, losses)`` in training, and
    ``(logits, {})`` in inference, with logits at the size of the network's input.

    Args:
        in_features: names of the maps, from the first block to the last.
        num_classes: K.
        ignore_value: label of the pixels that do not count.
        loss_average: what the sum of the pixels' losses is divided by: the number of "all" pixels,
            as published, including ignored and padded ones; or of the "labeled" ones, as usual.
        class_weights: weight of each class in the loss; None: 1.

    Raises:
        ValueError: an argument does not fit the others.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        num_classes: int,
        ignore_value: int,
        loss_average: str,
        class_weights: Sequence[float] | None,
    ) -> None:
        super().__init__()
        if loss_average not in AVERAGES:
            raise ValueError(
                f"loss_average must be one of {', '.join(AVERAGES)}, got {loss_average}"
            )
        if isinstance(class_weights, str):
            raise ValueError(f"class_weights={class_weights} are computed from --data only")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"{len(class_weights)} class_weights do not fit {num_classes} classes")
        self.in_features, self.num_classes = list(in_features), num_classes
        self.ignore_value, self.loss_average = ignore_value, loss_average
        weights = (
            None
            if class_weights is None
            else torch.tensor(list(class_weights), dtype=torch.float32)
        )
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments that a yacs config states."""
        options = cfg.MODEL.SEM_SEG_HEAD
        return {
            "in_channels": input_shape[options.IN_FEATURES[0]].channels,
            "in_features": options.IN_FEATURES,
            "num_classes": options.NUM_CLASSES,
            "channels": options.CONVS_DIM,
            "norm": options.NORM,
            "ignore_value": options.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Compute the losses in training, and the logits in inference.

        Args:
            features: maps of the backbone by name, (B, C, H, W).
            targets: (B, 8H, 8W), class indices or ``ignore_value``; needed in training.
        """
        if self.training:
            assert targets is not None
            return None, self.losses([features[name] for name in self.in_features], targets)
        return resize(self.layers(features).float(), scale=STRIDE), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return the logits at stride 8: maps by name, (B, C, H, W) -> (B, K, H, W)."""
        return self.logits([features[name] for name in self.in_features])

    def logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Four times (B, C, H, W) -> (B, K, H, W)."""
        raise NotImplementedError

    @property
    def halo(self) -> int:
        """The cells around a region of the maps that its logits depend on, in each direction."""
        raise NotImplementedError

    def losses(self, maps: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch, scalars."""
        return {"loss_sem_seg": self.cross_entropy(self.logits(maps), targets)}

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of logits, resized to the targets, as a scalar.

        Args:
            logits: (B, K, H, W).
            targets: (B, 8H, 8W), class indices or ``ignore_value``.
        """
        logits = resize(logits.float(), targets.shape[-2:])
        total = F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            ignore_index=self.ignore_value,
            reduction="sum",
        )
        if self.loss_average == "all":
            return total / targets.numel()
        is_labeled = targets != self.ignore_value
        if self.class_weights is None:
            return total / is_labeled.sum().clamp(min=1)
        # As PyTorch's weighted mean; without labeled pixels the sum is 0.
        weights = self.class_weights[targets.where(is_labeled, 0)] * is_labeled
        return total / weights.sum().clamp(min=1e-12)


@SEM_SEG_HEADS_REGISTRY.register()
class SegFormerHead(SegmentationHead):
    """Fuses four maps by 1x1 convolutions; the head of SegFormer (Xie et al., NeurIPS 2021).

    Args:
        in_channels: C.
        channels: of each layer.
        dropout: probability that a channel of the last layer is dropped in training.
        norm: batch norm of each layer, a name for :func:`detectron2.layers.get_norm`.
        in_features, num_classes, ignore_value, loss_average, class_weights: see
            :class:`SegmentationHead`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        in_features: Sequence[str] = ("block2", "block5", "block8", "last_feat"),
        channels: int = 256,
        dropout: float = 0.1,
        norm: str = "SyncBN",
        ignore_value: int = 255,
        loss_average: str = "all",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            in_features=in_features,
            num_classes=num_classes,
            ignore_value=ignore_value,
            loss_average=loss_average,
            class_weights=class_weights,
        )
        self.convs = nn.ModuleList()
        for _ in in_features:
            self.convs.append(conv(in_channels, channels, 1, norm))
        self.fusion = conv(len(in_features) * channels, channels, 1, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = predictor(channels, num_classes)

    def logits(self, maps: Sequence[Tensor]) -> Tensor:
        projected = [layer(x) for layer, x in zip(self.convs, maps)]
        return self.predictor(self.dropout(self.fusion(torch.cat(projected, dim=1))))

    @property
    def halo(self) -> int:
        return max(map(border, self.convs)) + border(self.fusion) + border(self.predictor)


@SEM_SEG_HEADS_REGISTRY.register()
class UPerNetHead(SegmentationHead):
    """Pyramid pooling and top-down sums; the head of UPerNet (Xiao et al., ECCV 2018).

    In training, an auxiliary head on the last map adds a second loss.

    Args:
        in_channels: C.
        channels: of each layer.
        auxiliary_channels: of the auxiliary head.
        auxiliary_weight: of its loss; 0 for no auxiliary head.
        dropout: probability that a channel of the last layer of a head is dropped in training.
        norm: batch norm of each layer, a name for :func:`detectron2.layers.get_norm`.
        in_features, num_classes, ignore_value, loss_average, class_weights: see
            :class:`SegmentationHead`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        in_features: Sequence[str] = ("block2", "block5", "block8", "last_feat"),
        channels: int = 512,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
        norm: str = "SyncBN",
        ignore_value: int = 255,
        loss_average: str = "all",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            in_features=in_features,
            num_classes=num_classes,
            ignore_value=ignore_value,
            loss_average=loss_average,
            class_weights=class_weights,
        )
        self.pooled = nn.ModuleList()
        for _ in POOLED_SIDES:
            self.pooled.append(conv(in_channels, channels, 1, norm))
        self.bottleneck = conv(in_channels + len(POOLED_SIDES) * channels, channels, 3, norm)
        self.laterals, self.outputs = nn.ModuleList(), nn.ModuleList()
        for _ in in_features[:-1]:
            self.laterals.append(conv(in_channels, channels, 1, norm))
            self.outputs.append(conv(channels, channels, 3, norm))
        self.fusion = conv(len(in_features) * channels, channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = predictor(channels, num_classes)
        self.auxiliary_weight = auxiliary_weight
        if auxiliary_weight:
            self.auxiliary_conv = conv(in_channels, auxiliary_channels, 3, norm)
            self.auxiliary_predictor = predictor(auxiliary_channels, num_classes)

    def logits(self, maps: Sequence[Tensor]) -> Tensor:
        last = maps[-1]
        contexts = self.contexts([average_pool(last, side) for side in POOLED_SIDES])
        size = last.shape[-2:]
        return self.fuse(maps, self.pool(last, [resize(context, size) for context in contexts]))

    # The parts of this, for maps that are not in memory: the first one is for the whole map, the
    # others are for a region.

    def contexts(self, averages: Sequence[Tensor]) -> list[Tensor]:
        """Return contexts of several extents, from the averages of the last map.

        For each of POOLED_SIDES: (B, C, side, side) -> (B, channels, side, side).
        """
        return [layer(x) for layer, x in zip(self.pooled, averages)]

    def pool(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Add contexts to the last map: (B, C, H, W) -> (B, channels, H, W).

        ``contexts``: resized to the map, each (B, channels, H, W).
        """
        return self.bottleneck(torch.cat([x, *contexts], dim=1))

    def fuse(self, maps: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """Return the logits: four times (B, C, H, W), (B, channels, H, W) -> (B, K, H, W)."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps)] + [pooled]
        for i in reversed(range(len(self.laterals))):
            levels[i] = levels[i] + levels[i + 1]
        # The last level, that of the pyramid pooling, is taken as it is.
        fused = [output(x) for output, x in zip(self.outputs, levels)] + levels[-1:]
        return self.predictor(self.dropout(self.fusion(torch.cat(fused, dim=1))))

    @property
    def halo(self) -> int:
        of_levels = max(map(border, [*self.laterals, self.bottleneck]))
        of_outputs = max(map(border, self.outputs), default=0)
        return of_levels + of_outputs + border(self.fusion) + border(self.predictor)

    def auxiliary_logits(self, maps: Sequence[Tensor]) -> Tensor:
        """Four times (B, C, H, W), of which the last is used -> (B, K, H, W)."""
        return self.auxiliary_predictor(self.dropout(self.auxiliary_conv(maps[-1])))

    def losses(self, maps: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        losses = super().losses(maps, targets)
        if self.auxiliary_weight:
            loss = self.cross_entropy(self.auxiliary_logits(maps), targets)
            losses["loss_auxiliary"] = self.auxiliary_weight * loss
        return losses


def average_pool(x: Tensor, side: int) -> Tensor:
    """Adaptive average pooling: (B, C, H, W) -> (B, C, side, side)."""
    if not torch.compiler.is_compiling():
        return F.adaptive_avg_pool2d(x, side)
    # ONNX has no adaptive pooling of images of any size: two matrix products instead.
    rows, columns = pooling_matrix(x.shape[2], side, x), pooling_matrix(x.shape[3], side, x)
    return rows @ x @ columns.T


def pooling_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """The matrix that averages a line over bins as adaptive pooling does: (bins, length)."""
    bin_index = torch.arange(bins, device=like.device)[:, None]
    first = bin_index * length // bins
    end = ((bin_index + 1) * length + bins - 1) // bins  # rounded up
    cell = torch.arange(length, device=like.device)
    inside = ((cell >= first) & (cell < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def conv(in_channels: int, out_channels: int, kernel: int, norm: str) -> ConvNormReLU:
    """A convolution with norm and ReLU, initialized as published: Kaiming, by the outputs."""
    layer = ConvNormReLU(in_channels, out_channels, kernel, norm=norm)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def border(layer: nn.Module) -> int:
    """The cells around a region that a layer's output in it depends on, in each direction."""
    convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    return sum(module.kernel_size[0] // 2 for module in convs)


def predictor(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to the classes, initialized as published."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def resize(x: Tensor, size: Sequence[int] | None = None, scale: int | None = None) -> Tensor:
    """Bilinear interpolation, not antialiased: (B, K, h, w) -> (B, K, H, W)."""
    return F.interpolate(x, size, scale, mode="bilinear", align_corners=False)


class SemanticSegmentor(meta_arch.SemanticSegmentor):
    """Detectron2's, with training batches of a fixed size and more kinds of inference.

    By default, the logits of the complete image are resized to the network's input and then to the
    original image, as published.

    Args:
        backbone, pixel_mean, pixel_std: see Detectron2's.
        sem_seg_head: one of this module, or Detectron2's ``SemSegFPNHead``.
        train_size: side in pixels of the square that training images are padded to (with 0 after
            normalization, labels with ``ignore_value``); 0: the size of the largest of the batch.
        class_map: return class indices instead of logits, which takes less time and memory.
        window: side in pixels of sliding windows over the network's input, whose logits are
            averaged; 0: the complete image.
        stride: of the windows, in pixels; 0: two thirds of their side.
        scales: factors of the network's input whose probabilities are averaged.
        flip: average with the probabilities of the mirrored image as well.

    Raises:
        ValueError: there are no scales, or windows leave gaps.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        train_size: int = 0,
        class_map: bool = False,
        window: int = 0,
        stride: int = 0,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        super().__init__(
            backbone=backbone,
            sem_seg_head=sem_seg_head,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        if window and not 0 <= stride <= window:
            raise ValueError(f"stride={stride} must be at most window={window}")
        if not scales:
            raise ValueError("there must be at least one of scales")
        self.train_size, self.class_map = train_size, class_map
        self.window, self.stride = window, stride or round(2 / 3 * window)
        self.scales, self.flip = tuple(scales), flip

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return losses in training; in inference a dict with "sem_seg" for each image.

        Args:
            batched_inputs: dicts with "image", (3, h, w); in training with "sem_seg", (h, w),
                class indices; in inference optionally with "height" and "width" of the original
                image, whose size the result has.

        Returns:
            In inference "sem_seg": logits, (K, height, width); with several scales or flips the
            logarithm of the averaged probabilities; with ``class_map`` class indices, (height,
            width), int64.
        """
        if self.training:
            features = self.backbone(self.preprocess_image(batched_inputs).tensor)
            labels = [item["sem_seg"].to(self.device) for item in batched_inputs]
            targets = self._batch(labels, self.sem_seg_head.ignore_value).tensor
            return self.sem_seg_head(features, targets)[1]
        if self.window or self.flip or self.scales != (1.0,):
            return [{"sem_seg": self._predict_parts(item)} for item in batched_inputs]
        batch = self.preprocess_image(batched_inputs)
        results = []
        for logits, item, (height, width) in zip(
            self._logits(batch.tensor), batched_inputs, batch.image_sizes
        ):
            size = item.get("height", height), item.get("width", width)
            padded = batch.tensor.shape[-2:]
            if self.class_map:
                rows = resize_twice(logits.shape[1], padded[0], height, size[0], logits)
                columns = resize_twice(logits.shape[2], padded[1], width, size[1], logits)
                result = class_map([Prediction(logits, rows, columns)])
            else:
                at_input = resize(logits[None], padded)[:, :, :height, :width]
                result = resize(at_input, size)[0]
            results.append({"sem_seg": result})
        return results

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize the images, and pad them to one size."""
        return self._batch([self._normalized(item["image"]) for item in batched_inputs])

    def _predict_parts(self, item: dict[str, Any]) -> Tensor:
        """Return "sem_seg" of an image from windows, scales and flips."""
        image = item["image"]
        height, width = image.shape[1:]
        size = item.get("height", height), item.get("width", width)
        is_single = self.scales == (1.0,) and not self.flip
        if is_single and self.class_map:
            windows = Windows.over(height, width, self.window, self.stride)
            return sliding_class_map(self._logits_of_image, image, windows, size)
        predictions = []
        for scale in self.scales:
            scaled = image
            if scale != 1:
                new_size = [max(16, round(side * scale / 16) * 16) for side in (height, width)]
                scaled = resize(image[None].float(), new_size)[0]
            logits = self._logits_of_scaled(scaled)
            predictions.append(_fitted(logits, size))
            if self.flip:
                mirrored = self._logits_of_scaled(scaled.flip(-1)).flip(-1)
                predictions.append(_fitted(mirrored, size))
        if self.class_map:
            return class_map(predictions)
        resized = [resize(prediction.logits[None], size)[0] for prediction in predictions]
        if len(resized) == 1:
            return resized[0]
        mean = torch.stack([logits.softmax(0) for logits in resized]).mean(0)
        return mean.clamp_(min=torch.finfo(mean.dtype).tiny).log_()

    def _logits_of_scaled(self, image: Tensor) -> Tensor:
        """Return logits at the size of an image, from windows if there are any: (K, h, w)."""
        if not self.window:
            return self._logits_of_image(image)
        height, width = image.shape[1:]
        windows = Windows.over(height, width, self.window, self.stride)
        return sliding_logits(self._logits_of_image, image, windows)

    def _logits_of_image(self, image: Tensor) -> Tensor:
        """Return logits at the size of an image, which is padded for the network: (K, h, w)."""
        batch = self._batch([self._normalized(image)])
        logits = resize(self._logits(batch.tensor), batch.tensor.shape[-2:])
        return logits[0, :, : image.shape[1], : image.shape[2]]

    def _logits(self, images: Tensor) -> Tensor:
        """Return the head's logits before they are resized: (B, 3, h, w) -> (B, K, h', w')."""
        return self.sem_seg_head.layers(self.backbone(images)).float()

    def _normalized(self, image: Tensor) -> Tensor:
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def _batch(self, tensors: list[Tensor], padding: float = 0.0) -> ImageList:
        constraints = self.backbone.padding_constraints
        if self.training and self.train_size:
            constraints = {"square_size": self.train_size}
        divisibility = self.backbone.size_divisibility
        return ImageList.from_tensors(tensors, divisibility, padding, constraints)


def _fitted(logits: Tensor, size: tuple[int, int]) -> Prediction:
    """Return logits with their resize to the original image."""
    rows = resize_matrix(logits.shape[1], size[0], logits)
    return Prediction(logits, rows, resize_matrix(logits.shape[2], size[1], logits))


@contextmanager
def predicting_class_maps(model: nn.Module) -> Iterator[None]:
    """Let a segmentation model return class maps; other models are unchanged."""
    if not isinstance(model, SemanticSegmentor):
        yield
        return
    before, model.class_map = model.class_map, True
    try:
        yield
    finally:
        model.class_map = before
