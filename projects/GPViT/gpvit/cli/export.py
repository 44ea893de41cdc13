"""Writes a trained detector as a file that runs without this project: ONNX (.onnx) or torch.export's format (.pt2).

    gpvit export --weights output/quickstart --input 'output/quickstart/data/images/val_*.png' --output model.onnx

The file takes one image of any size, and gives what gpvit/export/graph.py says. It is kept only if it finds the same
as PyTorch on the images given.
"""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision  # noqa: F401 (what is in a .pt2 file calls its operations)

from ..data.image_io import read_image
from ..data.sources import expanded
from ..export import graph
from ..export.verify import check, load
from ..predictor import Predictor
from ..utils.errors import UserError
from ..utils.files import atomic_write, refuse_to_replace
from ..utils.paths import utf8_path
from ..utils.text import LINE_LIMIT, one_line
from .options import add_detector, add_output, command_parser, detector


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("export", __doc__)
    add_detector(parser, device="cpu")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="IMAGE",
        help="pictures or globs to check it with",
    )
    add_output(parser, "FILE", "to write, .onnx or .pt2")
    args = parser.parse_intermixed_args(arguments)

    if args.output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--output {args.output}: the name must end in .onnx or .pt2")
    refuse_to_replace([args.output], args.overwrite)
    predictor = detector(args)
    paths = expanded(args.input)
    images = [predictor.resize(read_image(path)) for path in paths]
    smallest = graph.smallest_side(predictor.model)
    for path, image in zip(paths, images):
        if min(image.shape[1:]) < smallest:
            raise UserError(
                f"{path} is resized to {image.shape[2]} x {image.shape[1]}, and {smallest} x {smallest} is the "
                "smallest that is exported; raise dataloader.short_side"
            )

    with atomic_write(args.output) as partial, utf8_path(partial) as name:
        write(predictor, Path(name), metadata(predictor))
        report = check(predictor.model, load(Path(name)), images)
    print(one_line(f"{args.output}: {report}", LINE_LIMIT))


def metadata(predictor: Predictor) -> dict[str, int | list[str]]:
    """What a user of the file must know: names of the classes, and which sizes the detector is for."""
    return {
        "classes": predictor.classes,
        "smallest_side": graph.smallest_side(predictor.model),
        "short_side": predictor.cfg.dataloader.short_side,
        "max_size": predictor.cfg.dataloader.max_size,
    }


def write(predictor: Predictor, path: Path, metadata: dict[str, int | list[str]]) -> None:
    if path.suffix == ".pt2":
        content = io.BytesIO()  # on a full disk, PyTorch would end the process
        torch.export.save(
            graph.export(predictor.model),
            content,
            extra_files={"metadata.json": json.dumps(metadata)},
        )
        path.write_bytes(content.getbuffer())
    else:
        logging.getLogger("onnxscript").setLevel(
            logging.ERROR
        )  # its optimizer tells what it leaves alone
        program = graph.export_onnx(predictor.model)
        program.model.metadata_props.update(
            {key: json.dumps(value) for key, value in metadata.items()}
        )
        program.save(path)
