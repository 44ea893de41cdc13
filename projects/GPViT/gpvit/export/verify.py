"""Comparison of an exported model with the PyTorch model."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnxruntime
import torch
import torchvision  # noqa: F401 (registers the operators that a .pt2 file contains)
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from ..modeling import ImageClassifier, SemanticSegmentor
from ..utils.errors import UserError

Detections = dict[str, Tensor]
TOLERANCE = 0.01  # pixels of a box, probabilities of scores and masks
# Fraction of detections that must agree: rounding may move one across a threshold.
MIN_AGREEMENT = 0.99
TIMED_IMAGES, REPEATS = 3, 3


def load(path: Path) -> Callable[[Tensor], Detections]:
    """Return an exported detector as a function of an image."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    [input_name] = [node.name for node in session.get_inputs()]  # "image", "images" of a classifier

    def run(image: Tensor) -> Detections:
        outputs = session.run(names, {input_name: image.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs)))

    return run


def eager(model: nn.Module, image: Tensor) -> Detections:
    """Return the detections of the PyTorch model in the format of an exported one.

    Args:
        model: the PyTorch model.
        image: (3, H, W); for a classifier a batch, (B, 3, H, W).
    """
    if isinstance(model, ImageClassifier):
        outputs = model([{"image": item} for item in image])
        return {"scores": torch.stack([output["scores"] for output in outputs])}
    inputs = [{"image": image}]
    if isinstance(model, SemanticSegmentor):
        model.class_map = False
        return {"logits": model(inputs)[0]["sem_seg"]}
    if isinstance(model, GeneralizedRCNN):
        # Without postprocessing, masks are those of the mask head: (N, 1, 28, 28).
        (instances,) = model.inference(inputs, do_postprocess=False)
    else:
        instances = model(inputs)[0]["instances"]
    instances = instances[instances.pred_boxes.nonempty()]
    outputs = {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "classes": instances.pred_classes,
    }
    if instances.has("pred_masks"):
        outputs["masks"] = instances.pred_masks[:, 0]
    return outputs


@torch.no_grad()
def check(model: nn.Module, exported: Callable[[Tensor], Detections], images: list[Tensor]) -> str:
    """Compare the outputs and run times on images; return a summary in one line.

    Raises:
        UserError: there are no detections, or the outputs differ.
    """
    num_images = len(images)
    if isinstance(model, ImageClassifier):
        images = batches(images)
        agreement = compare_scores(model, exported, images)
    elif isinstance(model, SemanticSegmentor):
        agreement = compare_logits(model, exported, images)
    else:
        agreement = compare_detections(model, exported, images)
    return (
        f"on {num_images} images, {agreement}; takes "
        f"{time_ratio(model, exported, images[:TIMED_IMAGES]):.2f} of PyTorch's time "
        f"({torch.get_num_threads()} threads)"
    )


def batches(images: list[Tensor]) -> list[Tensor]:
    """Return the first image alone, and all images of each size together."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for image in images:
        by_shape.setdefault(image.shape, []).append(image)
    return [images[0][None], *map(torch.stack, by_shape.values())]


def compare_scores(
    model: nn.Module, exported: Callable[[Tensor], Detections], batches: list[Tensor]
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
    model: nn.Module, exported: Callable[[Tensor], Detections], images: list[Tensor]
) -> str:
    """Return how many pixels have the same class; raise a UserError if too few do."""
    equal, total, largest = 0, 0, 0.0
    for image in images:
        first, second = eager(model, image)["logits"], exported(image)["logits"]
        equal += int((first.argmax(0) == second.argmax(0)).sum())
        total += first[0].numel()
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
    model: nn.Module, exported: Callable[[Tensor], Detections], images: list[Tensor]
) -> str:
    """Return how many detections agree; raise a UserError if there are none or too few agree."""
    distances = torch.cat([differences(eager(model, image), exported(image)) for image in images])
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
    model: nn.Module, exported: Callable[[Tensor], Detections], images: list[Tensor]
) -> float:
    """Return the median run time of the exported detector divided by that of the PyTorch model."""
    model_times: list[float] = []
    exported_times: list[float] = []
    for image in images * REPEATS:
        start = time.perf_counter()
        eager(model, image)
        middle = time.perf_counter()
        exported(image)
        model_times.append(middle - start)
        exported_times.append(time.perf_counter() - middle)
    return median(exported_times) / median(model_times)


def differences(first: Detections, second: Detections) -> Tensor:
    """Return the distance of each detection to the nearest one of its class in the other set.

    The distance is the largest absolute difference of coordinates, scores and mask values. The
    order of the detections does not matter.

    Returns:
        (N + M,) for N and M detections; inf where the other set has none of the class.
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
    distance[first["classes"][:, None] != second["classes"]] = torch.inf
    # One more row and column, so that there is always a minimum, also without detections.
    distance = nn.functional.pad(distance, (0, 1, 0, 1), value=torch.inf)
    return torch.cat([distance[:-1].amin(1), distance[:, :-1].amin(0)])
