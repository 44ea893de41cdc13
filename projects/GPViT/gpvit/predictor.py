"""A trained detector, ready for pictures."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, overload

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from . import checkpoint
from .config import CONFIGS, config_from_yaml, load_config, with_overrides
from .data.datasets.register import set_num_classes
from .data.image_io import MAX_PIXELS, from_pillow, read_image
from .data.instance_mapper import CHANNELS
from .data.transforms import AugmentedImage
from .utils.environment import set_defaults
from .utils.errors import UserError, reason_of

ImageInput = str | os.PathLike | np.ndarray | Image.Image
Output: TypeAlias = Instances | Tensor | dict[str, Instances | Tensor]


class Predictor:
    """Runs a detector on pictures.

    Args:
        cfg: a config of this project; its test-time resizing is used.
        weights: a checkpoint of a training or a published detector, or the folder of a training; the class names come
            with it.
        device: "cpu", "cuda" or another that PyTorch knows; None for a GPU if there is one.

    Raises:
        UserError: the checkpoint cannot be read or is not the config's, or the device cannot be used.
    """

    def __init__(
        self,
        cfg: DictConfig,
        weights: str | os.PathLike | checkpoint.File,
        device: str | None = None,
    ) -> None:
        set_defaults()  # where oneDNN has not computed yet: images of many sizes would take memory without end
        file = weights if isinstance(weights, checkpoint.File) else checkpoint.read(str(weights))
        self.path, self.cfg = file.path, cfg
        self.classes: list[str] = file.require_classes()
        set_num_classes(cfg.model, len(self.classes))
        self.model = _to_device(instantiate(cfg.model), device).eval()
        checkpoint.load(self.model, file, self.classes)
        self.augmentations = T.AugmentationList(
            instantiate(cfg.dataloader.test.mapper.augmentations)
        )
        self.channels = CHANNELS[cfg.dataloader.test.mapper.image_format]

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        device: str | None = None,
        *,
        config_file: str | None = None,
        overrides: Sequence[str] = (),
    ) -> "Predictor":
        """A detector with the config that its checkpoint carries; that of a published detector is known here.

        Args:
            path: file, folder or address of a checkpoint.
            device: as above.
            config_file: a config to take instead.
            overrides: ``key=value`` changes to the config.

        Raises:
            UserError: as above, or the checkpoint carries no config.
        """
        file = checkpoint.read(str(path))
        if config_file:
            return cls(with_overrides(load_config(config_file), overrides), file, device)
        cfg = with_overrides(config_of(file), overrides)
        try:
            set_num_classes(cfg.model, len(file.require_classes()))
            with torch.device("meta"):  # takes no memory, whatever sizes the config names
                checkpoint.require_fit(instantiate(cfg.model), file, file.classes)
            return cls(cfg, file, device)
        except UserError:
            raise
        except Exception as error:  # whatever the values in the config cause where they are used
            raise UserError(
                f"cannot build the detector of {file.path}: {reason_of(error)}"
            ) from error

    @overload
    def __call__(self, pictures: ImageInput, batch_size: int = ...) -> Output: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, pictures: Sequence[ImageInput], batch_size: int = ...) -> list[Output]: ...
    def __call__(
        self, pictures: ImageInput | Sequence[ImageInput], batch_size: int = 4
    ) -> Output | list[Output]:
        """What the model gives, on the CPU: of one picture, or a list for a list.

        Of a detector, its "instances" in the coordinates of the picture; of other models whatever is in their output, such
        as "sem_seg" or "scores", or all of several by their names.

        Args:
            pictures: a path, an array (H, W, 3), RGB, uint8, or a PIL image; or a list of these.
            batch_size: how many go through the model together, at most.

        Raises:
            UserError: a picture cannot be read or is no such array.
        """
        if isinstance(pictures, ImageInput):
            return next(self.stream([pictures]))
        return list(self.stream(pictures, batch_size))

    @torch.no_grad()
    def stream(self, pictures: Iterable[ImageInput], batch_size: int = 1) -> Iterator[Output]:
        """The same, one picture after the other; only a batch of them is held.

        What goes through the model together are neighbours that have the same size there, so that none is padded for
        another's sake: that would change what is found in it.
        """
        batch: list[dict[str, Any]] = []
        for picture in pictures:
            image = as_rgb(picture)
            entry = {"image": self.resize(image), "height": image.shape[0], "width": image.shape[1]}
            if batch and entry["image"].shape != batch[0]["image"].shape:
                yield from self._run(batch)
                batch = []
            batch.append(entry)
            if len(batch) >= batch_size:  # at once: a camera's next picture may be long in coming
                yield from self._run(batch)
                batch = []
        if batch:
            yield from self._run(batch)

    def _run(self, batch: list[dict[str, Any]]) -> list[Output]:
        try:
            return [_on_cpu(output) for output in self.model(batch)]
        except (
            Exception
        ) as error:  # of a config whose parts do not go together, or a lack of memory
            height, width = batch[0]["image"].shape[1:]
            raise UserError(
                f"the detector of {self.path} failed on an image of {width} x {height} pixels: {reason_of(error)}"
            ) from error

    def resize(self, image: np.ndarray) -> Tensor:
        """A picture as the model takes it: (H, W, 3), RGB, uint8 -> (3, h, w), uint8, in the model's order of channels."""
        resized = AugmentedImage(image[:, :, self.channels])
        try:
            for augmentation in self.augmentations.augs:
                transform = augmentation.get_transform(resized.image)
                if getattr(transform, "new_h", 0) * getattr(transform, "new_w", 0) > MAX_PIXELS:
                    raise ValueError(f"it would have {transform.new_w} x {transform.new_h} pixels")
                resized.transform(transform)
        except Exception as error:
            size = "{1} x {0}".format(*image.shape)
            raise UserError(
                f"an image of {size} pixels cannot be resized as {self.path} says: {reason_of(error)}"
            ) from error
        return torch.from_numpy(resized.image.transpose(2, 0, 1).copy())


def _to_device(model: nn.Module, device: str | None) -> nn.Module:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # an unknown name, no driver, or a PyTorch without GPU support
        raise UserError(f"cannot run on device {device}: {str(error).splitlines()[0]}") from None


def _on_cpu(output: dict[str, Any]) -> Output:
    """What a model gives of an image: "instances" of a detector, "sem_seg" or "scores"; of several, all by their names."""
    found = {
        name: value.to("cpu")
        for name, value in output.items()
        if isinstance(value, Instances | Tensor)
    }
    return next(iter(found.values())) if len(found) == 1 else found


def as_rgb(picture: ImageInput) -> np.ndarray:
    """A picture as (H, W, 3), RGB, uint8, of at least one pixel. Raises a UserError if it cannot be."""
    if isinstance(picture, np.ndarray):
        if (
            picture.ndim != 3
            or picture.shape[2] != 3
            or picture.dtype != np.uint8
            or not picture.size
        ):
            raise UserError(
                f"an array must be (height, width, 3), RGB, uint8, got {picture.shape} of {picture.dtype}; "
                "a path or a PIL image is converted"
            )
        return picture
    if isinstance(picture, Image.Image):
        if not picture.width or not picture.height:
            raise UserError(f"the image has no pixels: it is {picture.width} x {picture.height}")
        return from_pillow(picture)
    return read_image(picture)


def config_of(file: checkpoint.File) -> DictConfig:
    """The config of a detector from its checkpoint. Raises a UserError if it carries none."""
    if file.config is not None:
        return config_from_yaml(file.config, f"the config in {file.path}")
    if file.kind and file.kind.config and file.size:
        return load_config(
            str(CONFIGS / "published" / f"{file.kind.config.format(file.size.lower())}.py")
        )
    raise UserError(
        f"{file.path} carries no config: give that of its training (--config-file, or Predictor(cfg, ...))"
    )
