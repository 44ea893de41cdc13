"""Exported models in ONNX Runtime, with the interface of the PyTorch models."""

from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..modeling.segmentation import resize
from ..modeling.semantic_inference import Prediction, class_map, resize_matrix


class OnnxModel(nn.Module):
    """Base class: calls the graph for one image after the other.

    Args:
        session: ONNX Runtime's InferenceSession.
        metadata: that of the file.

    Attributes:
        classes: names of the classes.
        config: YAML of the model and the test-time mapper.
    """

    def __init__(self, session: Any, metadata: dict[str, Any]) -> None:
        super().__init__()
        self.session = session
        self.input = session.get_inputs()[0].name
        self.outputs = [output.name for output in session.get_outputs()]
        self.classes: list[str] = metadata["classes"]
        self.smallest_side: int = metadata["smallest_side"]
        self.config: str = metadata["config"]

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the outputs of the PyTorch model for dicts with "image", "height", "width"."""
        results = []
        for item in batched_inputs:
            height, width = item["image"].shape[1:]
            if min(height, width) < self.smallest_side:
                raise ValueError(f"sides must have at least {self.smallest_side} pixels")
            size = item.get("height", height), item.get("width", width)
            results.append(self.predict(item["image"], size))
        return results

    def predict(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Return the output for an image (3, h, w), uint8, at the size of the original image."""
        raise NotImplementedError

    def require_classes(self, number: int) -> None:
        """Raise a ValueError if the graph has another number of classes than names."""
        if number != len(self.classes):
            raise ValueError(f"the graph has {number} classes, and {len(self.classes)} names")

    def run(self, image: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the graph by name."""
        values = self.session.run(self.outputs, {self.input: image.numpy()})
        return dict(zip(self.outputs, map(torch.from_numpy, values)))


class OnnxDetector(OnnxModel):
    """An exported detector: {"instances": Instances}."""

    test_score_thresh = 0.0  # in addition to that of the graph

    def predict(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        outputs = self.run(image)
        classes = outputs["classes"]
        if not ((classes >= 0) & (classes < len(self.classes))).all():
            raise ValueError(f"the graph has other classes than its {len(self.classes)} names")
        instances = Instances(tuple(image.shape[1:]))
        instances.pred_boxes = Boxes(outputs["boxes"])
        instances.scores, instances.pred_classes = outputs["scores"], classes
        if "masks" in outputs:
            instances.pred_masks = outputs["masks"][:, None]
        instances = instances[instances.scores > self.test_score_thresh]
        return {"instances": detector_postprocess(instances, *size)}


class OnnxSegmentor(OnnxModel):
    """An exported segmentation model: {"sem_seg": logits, or class indices}."""

    class_map = False

    def predict(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        logits = self.run(image)["logits"]
        self.require_classes(len(logits))
        if not self.class_map:
            return {"sem_seg": resize(logits[None], size)[0]}
        rows = resize_matrix(logits.shape[1], size[0], logits)
        columns = resize_matrix(logits.shape[2], size[1], logits)
        return {"sem_seg": class_map([Prediction(logits, rows, columns)])}


class OnnxClassifier(OnnxModel):
    """An exported classifier: {"scores": probabilities}."""

    def predict(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        (scores,) = self.run(image[None])["scores"]
        self.require_classes(len(scores))
        return {"scores": scores}
