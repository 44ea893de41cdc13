"""Comparison of an exported model with the PyTorch model."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import onnxruntime
import torch
import torchvision  # noqa: F401 (registers the operators that a .pt2 file contains)
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from ..modeling import ImageClassifier, SemanticSegmentor
from ..utils.errors import UserError

Outputs = dict[str, Tensor]
TOLERANCE = 0.01  # pixels of a box, probabilities of scores and masks
# Fraction of detections that must agree: rounding may move one across a threshold.
MIN_AGREEMENT = 0.99
BATCH_SIZE = 4
TIMED_IMAGES, REPEATS = 3, 3


def load(path: Path) -> Callable[[Tensor], Outputs]:
    """Return an exported model as a function of a batch of images."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Outputs:
        outputs = session.run(names, {"images": images.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs)))

    return run


def eager(model: nn.Module, images: Tensor) -> Outputs:
    """Return the outputs of the PyTorch model for a batch (B, 3, H, W), as an exported one does."""
    inputs = [{"image": image} for image in images]
    if isinstance(model, ImageClassifier):
        return {"scores": torch.stack([output["scores"] for output in model(inputs)])}
    if isinstance(model, SemanticSegmentor):
        model.class_map = False
        return {"logits": torch.stack([output["sem_seg"] for output in model(inputs)])}
    if isinstance(model, GeneralizedRCNN):
        # Without postprocessing, masks are those of the mask head: (N, 1, 28, 28).
        found = model.inference(inputs, do_postprocess=False)
    else:
        found = [output["instances"] for output in model(inputs)]
    detections = []
    for index, instances in enumerate(found):
        instances = instances[instances.pred_boxes.nonempty()]
        outputs = {
            "boxes": instances.pred_boxes.tensor,
            "scores": instances.scores,
            "classes": instances.pred_classes,
            "image_index": torch.full_like(instances.pred_classes, index),
        }
        if instances.has("pred_masks"):
            outputs["masks"] = instances.pred_masks[:, 0]
        detections.append(outputs)
    joined = {}
    for name in detections[0]:
        joined[name] = torch.cat([outputs[name] for outputs in detections])
    return joined


@torch.no_grad()
def check(model: nn.Module, exported: Callable[[Tensor], Outputs], images: list[Tensor]) -> str:
    """Compare the outputs and run times on images; return a summary in one line.

    Raises:
        UserError: there are no detections, or the outputs differ.
    """
    compare = compare_detections
    if isinstance(model, ImageClassifier):
        compare = compare_scores
    elif isinstance(model, SemanticSegmentor):
        compare = compare_logits
    agreement = compare(model, exported, batches(images))
    return (
        f"on {len(images)} images, {agreement}; takes "
        f"{time_ratio(model, exported, images[:TIMED_IMAGES]):.2f} of PyTorch's time "
        f"({torch.get_num_threads()} threads)"
    )


def batches(images: list[Tensor]) -> Iterator[Tensor]:
    """Yield the first image alone, then the images of each size in batches."""
    yield images[0][None]
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for image in images:
        by_shape.setdefault(image.shape, []).append(image)
    for same_shape in by_shape.values():
        for start in range(0, len(same_shape), BATCH_SIZE):
            yield torch.stack(same_shape[start : start + BATCH_SIZE])


def compare_scores(
    model: nn.Module, exported: Callable[[Tensor], Outputs], batches: Iterable[Tensor]
) -> str:
    """Return how many images have the same class; raise a UserError if too few do."""
    equal, total, largest = 0, 0, 0.0
    for batch in batches:
        first, second = eager(model, batch)["scores"], exported(batch)["scores"]
        equal += int((first.argmax(1) == second.argmax(1)).sum())
        total += len(batch)
        largest = max(largest, float((first - second).abs().max()))
    if equal < MIN_AGREEMENT * total or largest > TOLERANCE:
        raise UserError(
            f"not exported: {1 - equal / total:.1%} of the images have another class in the "
            f"exported model, and scores differ by up to {largest:.1e}; please report this with "
            "the versions of torch and onnxruntime"
        )
    return (
        f"{equal / total:.1%} of the images have PyTorch's class, largest difference of the scores "
        f"{largest:.1e}"
    )


def compare_logits(
    model: nn.Module, exported: Callable[[Tensor], Outputs], batches: Iterable[Tensor]
) -> str:
    """Return how many pixels have the same class; raise a UserError if too few do."""
    equal, total, largest = 0, 0, 0.0
    for batch in batches:
        first, second = eager(model, batch)["logits"], exported(batch)["logits"]
        equal += int((first.argmax(1) == second.argmax(1)).sum())
        total += first[:, 0].numel()
        largest = max(largest, float((first - second).norm() / first.norm()))
    if equal < MIN_AGREEMENT * total:
        raise UserError(
            f"not exported: {1 - equal / total:.1%} of the pixels have another class in the "
            "exported model; please report this with the versions of torch and onnxruntime"
        )
    return (
        f"{equal / total:.1%} of the pixels have PyTorch's class, largest relative difference of "
        f"the logits {largest:.1e}"
    )


def compare_detections(
    model: nn.Module, exported: Callable[[Tensor], Outputs], batches: Iterable[Tensor]
) -> str:
    """Return how many detections agree; raise a UserError if there are none or too few agree."""
    distances = torch.cat([differences(eager(model, batch), exported(batch)) for batch in batches])
    if not len(distances):
        raise UserError(
            "nothing is detected on any image of --input, so that nothing can be compared; give "
            "other images"
        )
    agreeing = distances[distances <= TOLERANCE]
    agreement = len(agreeing) / len(distances)
    if len(agreeing) < MIN_AGREEMENT * len(distances):
        raise UserError(
            f"not exported: {1 - agreement:.1%} of the detections are missing in PyTorch or in the "
            f"exported model, or differ by more than {TOLERANCE} (pixels, probabilities); please "
            "report this with the versions of torch and onnxruntime"
        )
    return (
        f"{agreement:.1%} of the detections agree with PyTorch's, largest difference "
        f"{agreeing.max():.1e} (pixels, probabilities)"
    )


def time_ratio(
    model: nn.Module, exported: Callable[[Tensor], Outputs], images: list[Tensor]
) -> float:
    """Return the median run time for one image, divided by that of the PyTorch model."""
    model_times: list[float] = []
    exported_times: list[float] = []
    for image in images * REPEATS:
        batch = image[None]
        start = time.perf_counter()
        eager(model, batch)
        middle = time.perf_counter()
        exported(batch)
        model_times.append(middle - start)
        exported_times.append(time.perf_counter() - middle)
    return median(exported_times) / median(model_times)


def differences(first: Outputs, second: Outputs) -> Tensor:
    """Return the distance of each detection to the nearest one of its class in the other outputs.

    The distance is the largest absolute difference of coordinates, scores and mask values. The
    order of the detections does not matter.

    Returns:
        (N + M,) for N and M detections; inf where the other has none of the class in the image.
    """
    # All are (N, M).
    distances = [
        (first["boxes"][:, None] - second["boxes"]).abs().amax(2),
        (first["scores"][:, None] - second["scores"]).abs(),
    ]
    if "masks" in first:
        masks = first["masks"].flatten(1), second["masks"].flatten(1)
        distances.append(torch.cdist(*masks, p=torch.inf))
    distance = torch.stack(distances).amax(0)
    for name in ("classes", "image_index"):
        distance[first[name][:, None] != second[name]] = torch.inf
    # One more row and column, so that there is always a minimum, also without detections.
    distance = nn.functional.pad(distance, (0, 1, 0, 1), value=torch.inf)
    return torch.cat([distance[:-1].amin(1), distance[:, :-1].amin(0)])
