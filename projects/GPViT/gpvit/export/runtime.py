"""Exported models in ONNX Runtime, with the interface of the PyTorch models."""

from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..modeling.segmentation import resize
from ..modeling.semantic_inference import Prediction, class_map, resize_matrix

Size = tuple[int, int]  # height, width


class OnnxModel(nn.Module):
    """Base class.

    Args:
        session: ONNX Runtime's InferenceSession.
        metadata: that of the file.

    Attributes:
        classes: names of the classes.
        palette: their colors, not verified.
        config: YAML of the model and the test-time mapper.
    """

    def __init__(self, session: Any, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.session = session
        self.outputs = [output.name for output in session.get_outputs()]
        self.classes: list[str] = metadata["classes"]
        self.smallest_side: int = metadata["smallest_side"]
        self.config: str = metadata["config"]
        self.palette: Any = metadata["palette"]

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the outputs of the PyTorch model.

        Args:
            batched_inputs: dicts with "image" (3, H, W), uint8, all of one size, and optionally
                "height" and "width" of the output.
        """
        images = torch.stack([item["image"] for item in batched_inputs])
        height, width = images.shape[2:]
        images = self.padded(images)
        values = self.session.run(self.outputs, {"images": images.numpy()})
        outputs = dict(zip(self.outputs, map(torch.from_numpy, values)))
        results = []
        for index, item in enumerate(batched_inputs):
            size = item.get("height", height), item.get("width", width)
            results.append(self.output_of(index, outputs, (height, width), size))
        return results

    def padded(self, images: Tensor) -> Tensor:
        """Pad images (B, 3, H, W) that are too small for the graph, with their mean color."""
        height, width = (max(side, self.smallest_side) for side in images.shape[2:])
        if (height, width) == images.shape[2:]:
            return images
        mean = images.float().mean((2, 3), keepdim=True).round().to(images.dtype)
        padded = mean.expand(-1, -1, height, width).clone()
        padded[:, :, : images.shape[2], : images.shape[3]] = images
        return padded

    def output_of(
        self, index: int, outputs: dict[str, Tensor], input_size: Size, size: Size
    ) -> dict[str, Any]:
        """Return the output for one image.

        Args:
            index: of the image in the batch.
            outputs: of the graph.
            input_size, size: height and width of the image in the batch, and of the output.
        """
        raise NotImplementedError

    def require_classes(self, number: int) -> None:
        """Raise a ValueError if the graph has another number of classes than names."""
        if number != len(self.classes):
            raise ValueError(f"the graph has {number} classes, and {len(self.classes)} names")


class OnnxDetector(OnnxModel):
    """An exported detector: {"instances": Instances}."""

    test_score_thresh = 0.0  # in addition to that of the graph

    def output_of(
        self, index: int, outputs: dict[str, Tensor], input_size: Size, size: Size
    ) -> dict[str, Any]:
        is_kept = (outputs["image_index"] == index) & (outputs["scores"] > self.test_score_thresh)
        kept = {name: value[is_kept] for name, value in outputs.items()}
        classes = kept["classes"]
        if not ((classes >= 0) & (classes < len(self.classes))).all():
            raise ValueError(f"the graph has other classes than its {len(self.classes)} names")
        instances = Instances(input_size)
        instances.pred_boxes = Boxes(kept["boxes"])
        instances.scores, instances.pred_classes = kept["scores"], classes
        if "masks" in kept:
            instances.pred_masks = kept["masks"][:, None]
        return {"instances": detector_postprocess(instances, *size)}


class OnnxSegmentor(OnnxModel):
    """An exported segmentation model: {"sem_seg": logits, or class indices}."""

    class_map = False

    def output_of(
        self, index: int, outputs: dict[str, Tensor], input_size: Size, size: Size
    ) -> dict[str, Any]:
        height, width = input_size
        logits = outputs["logits"][index, :, :height, :width]
        self.require_classes(len(logits))
        if not self.class_map:
            return {"sem_seg": resize(logits[None], size)[0]}
        rows = resize_matrix(logits.shape[1], size[0], logits)
        columns = resize_matrix(logits.shape[2], size[1], logits)
        return {"sem_seg": class_map([Prediction(logits, rows, columns)])}


class OnnxClassifier(OnnxModel):
    """An exported classifier: {"scores": probabilities}."""

    def output_of(
        self, index: int, outputs: dict[str, Tensor], input_size: Size, size: Size
    ) -> dict[str, Any]:
        scores = outputs["scores"][index]
        self.require_classes(len(scores))
        return {"scores": scores}
