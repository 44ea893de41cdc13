"""Whether a written detector finds what PyTorch finds."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnxruntime
import torch
import torchvision  # noqa: F401 (what is in a .pt2 file calls its operations)
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from ..utils.errors import UserError

Detections = dict[str, Tensor]
TOLERANCE = 0.01  # pixels of a box, probabilities of scores and masks
SHARE = 0.99  # of the detections: one that is just at a threshold may fall to either side of it
TIMED, REPEATS = 3, 3


def load(path: Path) -> Callable[[Tensor], Detections]:
    """The written detector, as its users run it."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> Detections:
        return {
            name: torch.from_numpy(x)
            for name, x in zip(names, session.run(names, {"image": image.numpy()}))
        }

    return run


def eager(model: nn.Module, image: Tensor) -> Detections:
    """What the detector itself finds, in the form of the exported one."""
    if isinstance(model, GeneralizedRCNN):
        (found,) = model.inference(
            [{"image": image}], do_postprocess=False
        )  # masks as they come from the mask head
    else:
        found = model([{"image": image}])[0]["instances"]
    found = found[found.pred_boxes.nonempty()]
    outputs = {
        "boxes": found.pred_boxes.tensor,
        "scores": found.scores,
        "classes": found.pred_classes,
    }
    return outputs | ({"masks": found.pred_masks[:, 0]} if found.has("pred_masks") else {})


@torch.no_grad()
def check(model: nn.Module, exported: Callable[[Tensor], Detections], images: list[Tensor]) -> str:
    """Compares results and times, and says so in one line.

    Raises:
        UserError: the results differ.
    """
    found = torch.cat([differences(eager(model, image), exported(image)) for image in images])
    if not len(found):
        raise UserError(
            "nothing is detected on any picture of --input, so nothing can be checked; give others"
        )
    same = found[found <= TOLERANCE]
    if len(same) < SHARE * len(found):
        raise UserError(
            f"not exported: {1 - len(same) / len(found):.1%} of the detections are not PyTorch's, or differ by more than "
            f"{TOLERANCE} (pixels, probabilities); please report it with the versions of torch and onnxruntime"
        )
    ours: list[float] = []
    theirs: list[float] = []
    for image in images[:TIMED] * REPEATS:
        start = time.perf_counter()
        model([{"image": image}])
        between = time.perf_counter()
        exported(image)
        ours.append(between - start)
        theirs.append(time.perf_counter() - between)
    ratio = median(theirs) / median(ours)
    return (
        f"on {len(images)} pictures {len(same) / len(found):.1%} of the detections are PyTorch's, largest difference "
        f"{same.max():.1e} (pixels, probabilities); takes {ratio:.2f} of PyTorch's time ({torch.get_num_threads()} threads)"
    )


def differences(ours: Detections, theirs: Detections) -> Tensor:
    """Of every detection on either side to the most similar one of its class on the other: (N + M,), inf without one.

    What is compared are coordinates, scores and masks; the order of equal scores does not matter.
    """
    by_part = [
        (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2),
        (ours["scores"][:, None] - theirs["scores"]).abs(),
    ]
    if "masks" in ours:
        by_part.append(
            torch.cdist(ours["masks"].flatten(1), theirs["masks"].flatten(1), p=torch.inf)
        )
    distance = torch.stack(by_part).amax(0)  # (N, M)
    distance[ours["classes"][:, None] != theirs["classes"]] = torch.inf
    distance = nn.functional.pad(
        distance, (0, 1, 0, 1), value=torch.inf
    )  # there is always one to take the minimum of
    return torch.cat([distance[:-1].amin(1), distance[:, :-1].amin(0)])
