"""Image classification: the map of a backbone is pooled to one vector, which a linear layer scores.

For B images and K classes:

    x = GPViT(images)["last_feat"]      (B, C, H, W), normalized by the backbone's last LayerNorm
    x = neck(x)                         (B, C): attention pooling (L1, L2) or the mean (L3, L4)
    logits = head(x)                    (B, K)
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.distributions import Beta

from .layers import Linear, gather

POOLINGS = ("attention", "mean")


class AttentionPooling(nn.Module):
    """Attention of one learned query to all cells of a map: (B, C, H, W) -> (B, C).

    Only the keys are projected: the values are the cells as they are, and nothing follows.

    Args:
        dim: C.
        num_heads: of the attention; divides C.

    Raises:
        ValueError: it does not.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the {dim} channels of the map")
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm_query = nn.LayerNorm(dim)
        self.key = Linear(dim, dim, bias=False)
        nn.init.trunc_normal_(self.key.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        query = self.norm_query(self.query).expand(x.shape[0], -1, -1)  # (B, 1, C)
        return gather(query, x, self.key, self.num_heads)[:, 0]


class MeanPooling(nn.Module):
    """The mean over all cells of a map: (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Classifier of complete images.

    Args:
        backbone: such as :class:`.GPViT`.
        num_classes: K.
        pooling: "attention" or "mean".
        pixel_mean, pixel_std: of the three channels, to normalize images.
        in_feature: name of the backbone's map that is pooled.
        num_heads: of the attention pooling.
        label_smoothing: weight of a uniform distribution over the classes in the targets.
        mixup: parameter of the Beta distribution of mixup; 0: no mixup.
        cutmix: the same of CutMix. With both, each batch gets one of the two, with equal
            probability.
        linear_probing: train the linear layer only. Everything before it is frozen, including
            batch norm statistics and drop path.

    Raises:
        ValueError: there is no such pooling, or the heads do not divide the channels.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pooling: str,
        pixel_mean: list[float],
        pixel_std: list[float],
        in_feature: str = "last_feat",
        num_heads: int = 6,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        linear_probing: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling}")
        dim = backbone.output_shape()[in_feature].channels
        self.backbone, self.in_feature = backbone, in_feature
        self.neck = AttentionPooling(dim, num_heads) if pooling == "attention" else MeanPooling()
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixup, self.cutmix = mixup, cutmix
        self.linear_probing = linear_probing
        if linear_probing:
            self.backbone.requires_grad_(False)
            self.neck.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments that a yacs config states, see ``add_gpvit_config``."""
        options = cfg.MODEL.CLASSIFIER
        return {
            "backbone": build_backbone(cfg),
            "num_classes": options.NUM_CLASSES,
            "pooling": options.POOLING,
            "num_heads": options.NUM_HEADS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "label_smoothing": options.LABEL_SMOOTHING,
            "mixup": options.MIXUP,
            "cutmix": options.CUTMIX,
            "linear_probing": options.LINEAR_PROBING,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "ImageClassifier":
        super().train(mode)
        if self.linear_probing:
            self.backbone.eval()
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return losses in training; in inference a dict with "scores" for each image.

        Args:
            batched_inputs: dicts with "image", (3, h, w); in training with "label", the index of
                the class. Images of different sizes are padded, which changes their scores.

        Returns:
            In training "loss_cls", a scalar; in inference "scores": (K,), probabilities.
        """
        images = self.preprocess_image(batched_inputs).tensor
        if not self.training:
            scores = self.logits(images).softmax(-1)
            return [{"scores": scores_of_image} for scores_of_image in scores]
        labels = torch.tensor([item["label"] for item in batched_inputs], device=self.device)
        targets = F.one_hot(labels, self.num_classes).to(images.dtype)
        if self.mixup or self.cutmix:
            images, targets = mix(images, targets, self.mixup, self.cutmix)
        loss = F.cross_entropy(self.logits(images), targets, label_smoothing=self.label_smoothing)
        return {"loss_cls": loss}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize the images, and pad them to one size."""
        normalized = []
        for item in batched_inputs:
            normalized.append((item["image"].to(self.device) - self.pixel_mean) / self.pixel_std)
        return ImageList.from_tensors(normalized, self.backbone.size_divisibility)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, h, w), normalized -> (B, K), float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.linear_probing):
            features = self.neck(self.backbone(images)[self.in_feature])
        return self.head(features).float()


def mix(images: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another one, by mixup or by CutMix.

    Mixup (Zhang et al., ICLR 2018) averages two images; CutMix (Yun et al., ICCV 2019) replaces a
    box by that of the other image. Random numbers come from PyTorch's global CPU generator, which
    the trainer seeds for each iteration.

    Args:
        images: (B, 3, h, w).
        targets: (B, K), probabilities of the classes.
        mixup, cutmix: see :class:`ImageClassifier`; one of them may be 0.

    Returns:
        Mixed images and targets, of the same shapes.
    """
    cut = cutmix > 0 and (mixup == 0 or torch.rand(()).item() < 0.5)
    alpha = cutmix if cut else mixup
    fraction = Beta(alpha, alpha).sample().item()  # of each image itself
    partner = torch.randperm(len(images)).to(images.device)
    if cut:
        height, width = images.shape[2:]
        top, bottom, left, right = cutmix_box(height, width, fraction)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        fraction = 1 - (bottom - top) * (right - left) / (height * width)  # after clipping
    else:
        mixed = fraction * images + (1 - fraction) * images[partner]
    return mixed, fraction * targets + (1 - fraction) * targets[partner]


def cutmix_box(height: int, width: int, fraction: float) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of CutMix's box; ``fraction`` of the area is outside.

    Its center is uniform in the image, which clips the box.
    """
    side = (1 - fraction) ** 0.5
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    return top, bottom, left, right
