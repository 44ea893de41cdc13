"""Evaluation of a detector on large images: in tiles, or streamed through the model."""

from typing import Any

from detectron2.config import LazyCall as L
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn

from ..large_images.tiles import Tiles
from ..predictor import Predictor
from ..streaming.detector import check_detector
from ..utils.errors import UserError
from ..utils.precision import choose_dtype


class UnreadImages:
    """A dataset mapper that leaves the image to the model."""

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        return dict(record)


class LargeImageDetector(nn.Module):
    """A detector of images of any size, with the interface of Detectron2's models.

    Args:
        predictor: has the model.
        tiles: how to cut images; None to stream them through the model.
    """

    def __init__(self, predictor: Predictor, tiles: Tiles | None) -> None:
        super().__init__()
        self.model, self.predictor, self.tiles = predictor.model, predictor, tiles

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Args: batch: records with "file_name"."""
        results = []
        for record in batch:
            parts = self.predictor.detect_large(record["file_name"], self.tiles)
            results.append({"instances": Instances.cat(list(parts))})
        return results


def read_by_model(cfg: DictConfig, model: nn.Module, classes: list[str]) -> nn.Module:
    """Prepare an evaluation by ``train.large_images``: the model reads the files itself.

    Args:
        cfg: the config, whose mapper is replaced.
        model: the detector.
        classes: names of its classes.

    Raises:
        UserError: the model cannot be streamed, or the tiles are impossible.
    """
    options = cfg.train.large_images
    tiles = Tiles(options.tile, options.overlap) if options.tile else None
    if tiles:
        tiles.check()
    else:
        try:
            check_detector(model)
        except ValueError as error:
            raise UserError(f"--stream: {error} (--tile 1024)") from None
    dtype = choose_dtype(cfg.train.eval_dtype, cfg.train.device)
    predictor = Predictor.of_model(model, cfg, classes, dtype)
    cfg.dataloader.test.mapper = L(UnreadImages)()
    return LargeImageDetector(predictor, tiles)
