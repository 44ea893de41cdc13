"""Inference with a trained model on images of any source."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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
from .data.label_maps import Color, class_palette
from .data.transforms import AugmentedImage
from .large_images.detections import with_cropped_masks
from .large_images.readers import open_large
from .large_images.tiles import Tiles, detect_in_tiles
from .streaming.detector import detect
from .streaming.segmenter import ClassesOfTile, segment
from .utils.environment import set_defaults
from .utils.errors import UserError, preview, reason_of
from .utils.precision import choose_dtype, predict_in_float32

ImageInput = str | os.PathLike | np.ndarray | Image.Image
Output: TypeAlias = Instances | Tensor | dict[str, Instances | Tensor]


class Predictor:
    """Run a model on images.

    Args:
        cfg: a config of this project, whose test-time resizing is used.
        weights: a checkpoint of a run, an official model, or the folder of a run; it contains the
            class names as well.
        device: "cpu", "cuda" or any other device of PyTorch; None for a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; "auto" for bfloat16 on GPUs that compute in it,
            else float32. Scores, boxes and masks are computed in float32 in any case.

    Raises:
        UserError: the checkpoint cannot be read or does not match the config, or device or dtype
            cannot be used.
    """

    def __init__(
        self,
        cfg: DictConfig,
        weights: str | os.PathLike | checkpoint.File,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        # Limits oneDNN's cache of compiled operations, which grows with every new image size. This
        # has an effect only before oneDNN's first computation.
        set_defaults()
        file = weights if isinstance(weights, checkpoint.File) else checkpoint.read(str(weights))
        classes = file.require_classes()
        set_num_classes(cfg.model, len(classes))
        model = _to_device(instantiate(cfg.model), device)
        checkpoint.load(model, file, classes)
        predict_in_float32(model)
        self.autocast_device = next(model.parameters()).device.type
        self.dtype = choose_dtype(dtype, next(model.parameters()).device)
        self._use(model, cfg, file.path, classes, file.about.get("palette"))

    def _use(
        self,
        model: nn.Module,
        cfg: DictConfig,
        path: str,
        classes: list[str],
        palette: list[Color] | None,
    ) -> None:
        """Set all attributes but the dtype and its device."""
        self.model, self.cfg, self.path, self.classes = model.eval(), cfg, path, classes
        self.palette = class_palette(len(classes))
        if palette and len(palette) == len(classes):
            self.palette = [(red, green, blue) for red, green, blue in palette]
        mapper = cfg.dataloader.test.mapper
        self.augmentations = T.AugmentationList(instantiate(mapper.augmentations))
        self.channels = CHANNELS[mapper.image_format]

    @classmethod
    def of_model(
        cls, model: nn.Module, cfg: DictConfig, classes: list[str], dtype: torch.dtype
    ) -> "Predictor":
        """Return a predictor with a model that was built before; ``dtype``: of its layers."""
        predictor = cls.__new__(cls)
        predictor.autocast_device = next(model.parameters()).device.type
        predictor.dtype = dtype
        predictor._use(model, cfg, str(cfg.train.init_checkpoint), classes, None)
        return predictor

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        device: str | None = None,
        dtype: str = "auto",
        *,
        config_file: str | None = None,
        overrides: Sequence[str] = (),
    ) -> "Predictor":
        """Build a model with the config in its checkpoint, or that of an official model.

        Args:
            path: file, folder or address of a checkpoint, or an ONNX file of ``gpvit export``,
                which runs in ONNX Runtime, in float32.
            device, dtype: as above.
            config_file: a config to use instead.
            overrides: ``key=value`` changes to the config.

        Raises:
            UserError: as above, or the checkpoint contains no config.
        """
        if is_onnx(path):
            if "://" in str(path):
                raise UserError(f"{path}: an ONNX file is not downloaded; give a file")
            given = [f"config file {config_file}"] if config_file else []
            given += overrides
            given += [f"dtype {dtype}"] if dtype not in ("auto", "float32") else []
            if given:
                raise UserError(
                    f"{path}: an ONNX file runs in float32, with the config that it was exported "
                    f"with; remove {preview(given)}"
                )
            return cls._from_onnx(Path(path), device)
        file = checkpoint.read(str(path))
        if config_file:
            return cls(with_overrides(load_config(config_file), overrides), file, device, dtype)
        cfg = with_overrides(config_of(file), overrides)
        try:
            set_num_classes(cfg.model, len(file.require_classes()))
            # The config is not trusted: compare its model with the weights before memory is used.
            with torch.device("meta"):
                checkpoint.require_fit(instantiate(cfg.model), file, file.classes)
            return cls(cfg, file, device, dtype)
        except UserError:
            raise
        except Exception as error:  # values of the config may cause exceptions of any type
            raise UserError(f"cannot build the model of {file.path}: {reason_of(error)}") from error

    @classmethod
    def _from_onnx(cls, path: Path, device: str | None) -> "Predictor":
        from .export.onnx_file import load_onnx  # imports ONNX Runtime

        model = load_onnx(path, device)
        palette = model.palette if checkpoint.is_palette(model.palette) else None
        cfg = config_from_yaml(model.config, f"the config in {path}")
        predictor = cls.__new__(cls)
        predictor.autocast_device, predictor.dtype = "cpu", torch.float32
        try:
            predictor._use(model, cfg, str(path), model.classes, palette)
        except Exception as error:  # values of the config may cause exceptions of any type
            raise UserError(f"cannot use the config in {path}: {reason_of(error)}") from error
        return predictor

    @overload
    def __call__(self, images: ImageInput, batch_size: int = ...) -> Output: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[ImageInput], batch_size: int = ...) -> list[Output]: ...
    def __call__(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 4
    ) -> Output | list[Output]:
        """Return the output of the model for an image, or a list of outputs for a list of images.

        Args:
            images: a path, an RGB array of shape (H, W, 3) and type uint8, or a PIL image; or a
                list of these.
            batch_size: maximum number of images that are processed together.

        Returns:
            the "instances" of a detector, on the CPU and in the coordinates of the original image.
            For other models, the value in their output, such as "sem_seg" or "scores", or a dict if
            there are several.

        Raises:
            UserError: an image cannot be read, or an array has another shape or type.
        """
        if isinstance(images, ImageInput):
            return next(self.stream([images]))
        return list(self.stream(images, batch_size))

    @torch.no_grad()
    def stream(self, images: Iterable[ImageInput], batch_size: int = 1) -> Iterator[Output]:
        """Yield the outputs for images one by one; no more than a batch is in memory.

        A batch contains consecutive images of the same size after resizing. Images of different
        sizes would be padded, which changes the predictions.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        batch: list[dict[str, Any]] = []
        for image_input in images:
            image = as_rgb(image_input)
            entry = {"image": self.resize(image), "height": image.shape[0], "width": image.shape[1]}
            if batch and entry["image"].shape != batch[0]["image"].shape:
                yield from self._run(batch)
                batch = []
            batch.append(entry)
            # Run a full batch before reading on: the next image of a camera may take a while.
            if len(batch) >= batch_size:
                yield from self._run(batch)
                batch = []
        if batch:
            yield from self._run(batch)

    def _run(self, batch: list[dict[str, Any]]) -> list[Output]:
        try:
            is_mixed = self.dtype != torch.float32
            with torch.autocast(self.autocast_device, self.dtype, enabled=is_mixed):
                return list(map(_on_cpu, self.model(batch)))
        except Exception as error:  # parts of the config do not match, or memory is exhausted
            height, width = batch[0]["image"].shape[1:]
            raise UserError(
                f"the model of {self.path} failed on an image of {width} x {height} pixels: "
                f"{reason_of(error)}"
            ) from error

    def detect_large(
        self,
        image: Any,
        tiles: Tiles | None = None,
        *,
        folder: str | os.PathLike | None = None,
        progress: bool = False,
    ) -> Iterator[Instances]:
        """Yield the detections in an image of any size, part by part.

        Without tiles, the image is streamed: see :func:`gpvit.streaming.detector.detect`. It keeps
        its size, computes in float32, and has no tiles and seams. With tiles, each of them is an
        image of its own, resized as at test time.

        Args:
            image: as above, or what :func:`.open_large` takes or returns as pixels.
            tiles: the tiles; None to stream the image.
            folder: for decoded pixels and the maps of a streamed image, see
                :func:`gpvit.streaming.stream`; by default that of :mod:`tempfile`.
            progress: whether to show progress bars.

        Yields:
            "pred_boxes", "scores", "pred_classes" and, of a detector that predicts masks,
            "pred_masks" as :class:`.CroppedMasks`. At least one part, if only an empty one.

        Raises:
            UserError: the image cannot be read, the model is no detector or cannot be streamed, or
                there is too little space in the folder.
        """
        source = as_rgb(image) if isinstance(image, Image.Image) else image
        pixels = open_large(source, folder)
        if tiles:
            yield detect_in_tiles(self._detect, pixels, tiles, progress=progress)
            return
        parts = detect(self.model, pixels, channels=self.channels, folder=folder, progress=progress)
        with self._streaming_errors():
            for instances in parts:
                yield with_cropped_masks(instances)

    def segment_large(
        self,
        image: Any,
        *,
        folder: str | os.PathLike | None = None,
        progress: bool = False,
    ) -> Iterator[ClassesOfTile]:
        """Yield the class map of an image of any size, tile by tile.

        The image is not resized: see :func:`gpvit.streaming.segmenter.segment`, which also has the
        arguments. :func:`.save_label_map_tiles` writes the tiles to a file.

        Raises:
            UserError: the image cannot be read, the model is no segmentation model or cannot be
                streamed, or there is too little space in the folder.
        """
        source = as_rgb(image) if isinstance(image, Image.Image) else image
        pixels = open_large(source, folder)
        tiles = segment(
            self.model, pixels, channels=self.channels, folder=folder, progress=progress
        )
        with self._streaming_errors():
            yield from tiles

    @contextmanager
    def _streaming_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except OSError as error:
            raise UserError(error.strerror or str(error)) from None
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None
        except Exception as error:  # memory is exhausted
            raise UserError(f"the model of {self.path} failed: {reason_of(error)}") from error

    def _detect(self, image: np.ndarray) -> Instances:
        found = self(image)
        if not isinstance(found, Instances):
            raise UserError(f"{self.path} is not a detector")
        return found

    def resize(self, image: np.ndarray) -> Tensor:
        """Convert an RGB image (H, W, 3), uint8, to the input of the model (3, h, w), uint8.

        The image is resized as at test time, and its channels are in the order of the config.
        """
        resized = AugmentedImage(image[:, :, self.channels])
        try:
            for augmentation in self.augmentations.augs:
                transform = augmentation.get_transform(resized.image)
                # Checked before the memory is allocated. Transforms without new_h do not resize.
                if getattr(transform, "new_h", 0) * getattr(transform, "new_w", 0) > MAX_PIXELS:
                    raise ValueError(f"it would have {transform.new_w} x {transform.new_h} pixels")
                resized.transform(transform)
        except Exception as error:
            height, width = image.shape[:2]
            raise UserError(
                f"an image of {width} x {height} pixels cannot be resized by the config of "
                f"{self.path}: {reason_of(error)}"
            ) from error
        return torch.from_numpy(resized.image.transpose(2, 0, 1).copy())  # (H, W, C) -> (C, H, W)


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether a model's name is that of an ONNX file."""
    return str(path).lower().endswith(".onnx")


def _to_device(model: nn.Module, device: str | None) -> nn.Module:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device)
    # An unknown name, no driver, or a PyTorch without GPU support.
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot run on device {device}: {str(error).splitlines()[0]}") from None


def _on_cpu(output: dict[str, Any]) -> Output:
    """Return what a model predicts for an image: one value, or several by name, on the CPU."""
    found = {}
    for name, value in output.items():
        if isinstance(value, Instances | Tensor):
            found[name] = value.to("cpu")
    return next(iter(found.values())) if len(found) == 1 else found


def as_rgb(image: ImageInput) -> np.ndarray:
    """Convert an image to an RGB array (H, W, 3), uint8.

    Raises:
        UserError: the image cannot be read, has no pixels, or is an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        if not is_rgb or not image.size:
            raise UserError(
                f"an array must be (height, width, 3), RGB, uint8, got {image.shape} of "
                f"{image.dtype}; a path or a PIL image is converted"
            )
        return image
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise UserError(f"the image has no pixels: it is {image.width} x {image.height}")
        return from_pillow(image)
    if not isinstance(image, str | os.PathLike):
        raise UserError(f"an image must be a path, an array or a PIL image, got {type(image)}")
    return read_image(image)


def config_of(file: checkpoint.File) -> DictConfig:
    """Return the config of a model, given its checkpoint.

    Raises:
        UserError: the checkpoint contains no config and is not an official model.
    """
    if file.config is not None:
        return config_from_yaml(file.config, f"the config in {file.path}")
    if file.kind and file.kind.config and file.size:
        name = file.kind.config.format(file.size.lower())  # such as mask_rcnn_gpvit_l1_1x
        return load_config(str(CONFIGS / "published" / f"{name}.py"))
    raise UserError(
        f"{file.path} contains no config: give the config of its run (--config-file, or "
        "Predictor(cfg, ...))"
    )
