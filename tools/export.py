"""Writes a trained detector as a file that runs without this project: ONNX (.onnx) or torch.export's format (.pt2).

    python tools/export.py --weights output/quickstart --input 'output/quickstart/data/images/val_*.png' --output model.onnx

The file takes one image of any size, and gives what gpvit/export.py says. It is kept only if it finds the same as PyTorch
on the pictures given.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import gpvit
import onnxruntime
import torch
import torchvision  # noqa: F401 (what is in a .pt2 file calls its operations)
from common import add_detector, detector, expanded, refuse_to_replace, run_command
from detectron2.modeling import GeneralizedRCNN
from gpvit import export
from gpvit.data.image_io import read_image
from gpvit.utils.errors import UserError
from gpvit.utils.files import atomic_write
from gpvit.utils.paths import utf8_path
from gpvit.utils.text import LINE_LIMIT, one_line, print_anything
from torch import Tensor, nn

Detections = dict[str, Tensor]
TOLERANCE = 0.01  # pixels of a box, probabilities of scores and masks
SHARE = 0.99  # of the detections: one that is just at a threshold may fall to either side of it
TIMED, REPEATS = 3, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_detector(parser, device="cpu")
    parser.add_argument("--input", required=True, nargs="+", metavar="IMAGE", help="pictures or globs to check it with")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="to write, .onnx or .pt2")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_intermixed_args()
    print_anything()

    if args.output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--output {args.output}: the name must end in .onnx or .pt2")
    refuse_to_replace([args.output], args.overwrite)
    predictor = detector(args)
    paths = expanded(args.input)
    images = [predictor.resize(read_image(path)) for path in paths]
    smallest = export.smallest_side(predictor.model)
    for path, image in zip(paths, images):
        if min(image.shape[1:]) < smallest:
            raise UserError(
                f"{path} is resized to {image.shape[2]} x {image.shape[1]}, and {smallest} x {smallest} is the "
                "smallest that is exported; raise dataloader.short_side"
            )

    with atomic_write(args.output) as partial, utf8_path(partial) as path:
        write(predictor, Path(path), metadata(predictor))
        report = check(predictor.model, load(Path(path)), images)
    print(one_line(f"{args.output}: {report}", LINE_LIMIT))


def metadata(predictor: gpvit.Predictor) -> dict[str, int | list[str]]:
    """What a user of the file must know: names of the classes, and which sizes the detector is for."""
    return {
        "classes": predictor.classes,
        "smallest_side": export.smallest_side(predictor.model),
        "short_side": predictor.cfg.dataloader.short_side,
        "max_size": predictor.cfg.dataloader.max_size,
    }


def write(predictor: gpvit.Predictor, path: Path, metadata: dict[str, int | list[str]]) -> None:
    if path.suffix == ".pt2":
        content = io.BytesIO()  # on a full disk, PyTorch would end the process
        torch.export.save(export.export(predictor.model), content, extra_files={"metadata.json": json.dumps(metadata)})
        path.write_bytes(content.getbuffer())
    else:
        logging.getLogger("onnxscript").setLevel(logging.ERROR)  # its optimizer tells what it leaves alone
        program = export.export_onnx(predictor.model)
        program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
        program.save(path)


def load(path: Path) -> Callable[[Tensor], Detections]:
    """The written detector, as its users run it."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> Detections:
        return {name: torch.from_numpy(x) for name, x in zip(names, session.run(names, {"image": image.numpy()}))}

    return run


def eager(model: nn.Module, image: Tensor) -> Detections:
    """What the detector itself finds, in the form of the exported one."""
    if isinstance(model, GeneralizedRCNN):
        (found,) = model.inference([{"image": image}], do_postprocess=False)  # masks as they come from the mask head
    else:
        found = model([{"image": image}])[0]["instances"]
    found = found[found.pred_boxes.nonempty()]
    outputs = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "classes": found.pred_classes}
    return outputs | ({"masks": found.pred_masks[:, 0]} if found.has("pred_masks") else {})


@torch.no_grad()
def check(model: nn.Module, exported: Callable[[Tensor], Detections], images: list[Tensor]) -> str:
    """Compares results and times, and says so in one line.

    Raises:
        UserError: the results differ.
    """
    found = torch.cat([differences(eager(model, image), exported(image)) for image in images])
    if not len(found):
        raise UserError("nothing is detected on any picture of --input, so nothing can be checked; give others")
    same = found[found <= TOLERANCE]
    if len(same) < SHARE * len(found):
        raise UserError(
            f"not exported: {1 - len(same) / len(found):.1%} of the detections are not PyTorch's, or differ by more than "
            f"{TOLERANCE} (pixels, probabilities); please report it with the versions of torch and onnxruntime"
        )
    times = {model: [], exported: []}
    for image in images[:TIMED] * REPEATS:
        for run in times:
            began = time.perf_counter()
            run([{"image": image}]) if run is model else run(image)
            times[run].append(time.perf_counter() - began)
    ratio = median(times[exported]) / median(times[model])
    return (
        f"on {len(images)} pictures {len(same) / len(found):.1%} of the detections are PyTorch's, largest difference "
        f"{same.max():.1e} (pixels, probabilities); takes {ratio:.2f} of PyTorch's time ({torch.get_num_threads()} threads)"
    )


def differences(ours: Detections, theirs: Detections) -> Tensor:
    """Of every detection on either side to the most similar one of its class on the other: (N + M,), inf without one.

    What is compared are coordinates, scores and masks; the order of equal scores does not matter.
    """
    by_part = [(ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2), (ours["scores"][:, None] - theirs["scores"]).abs()]
    if "masks" in ours:
        by_part.append(torch.cdist(ours["masks"].flatten(1), theirs["masks"].flatten(1), p=torch.inf))
    distance = torch.stack(by_part).amax(0)  # (N, M)
    distance[ours["classes"][:, None] != theirs["classes"]] = torch.inf
    distance = nn.functional.pad(distance, (0, 1, 0, 1), value=torch.inf)  # there is always one to take the minimum of
    return torch.cat([distance[:-1].amin(1), distance[:, :-1].amin(0)])


if __name__ == "__main__":
    run_command(main)
