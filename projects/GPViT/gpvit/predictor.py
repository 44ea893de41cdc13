"""A trained detector, ready for pictures."""

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig

from . import checkpoint
from .data import set_num_classes


class Predictor:
    """Runs the detector of a config on one picture at a time.

    Args:
        cfg: a config of this project; its test-time resizing is used.
        weights: a checkpoint of a training or a published detector; the class names come with it.
        device: "cpu", "cuda" or another that PyTorch knows.
    """

    def __init__(self, cfg: DictConfig, weights: str, device: str) -> None:
        file = checkpoint.read(weights)
        self.classes: list[str] = file.require_classes()
        set_num_classes(cfg.model, len(self.classes))
        self.model = instantiate(cfg.model).to(device).eval()
        checkpoint.load(self.model, file, self.classes)
        self.augmentations = T.AugmentationList(instantiate(cfg.dataloader.test.mapper.augmentations))

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detections on the CPU, in the coordinates of the picture: (H, W, 3), RGB, uint8."""
        height, width = image.shape[:2]
        (output,) = self.model([{"image": self.resize(image), "height": height, "width": width}])
        return output["instances"].to("cpu")

    def resize(self, image: np.ndarray) -> torch.Tensor:
        """A picture as the model takes it: (H, W, 3), RGB, uint8 -> (3, h, w), RGB, uint8."""
        resized = T.AugInput(image)
        self.augmentations(resized)
        return torch.from_numpy(resized.image.transpose(2, 0, 1).copy())
