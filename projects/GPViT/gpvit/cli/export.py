r"""Export a trained model to ONNX (.onnx) or torch.export's format (.pt2).

    gpvit export --weights output/quickstart --output model.onnx \
        --input 'output/quickstart/data/images/val_*.png'

The exported file runs without this project. It takes a batch of images of one size, which may be
any; gpvit/export/graph.py describes inputs and outputs. The file is written only if its outputs for
the images of --input agree with PyTorch's.
"""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 (registers the operators that a .pt2 file contains)

from ..config import inference_config
from ..data.image_io import read_image
from ..data.sources import expand_globs
from ..export import graph
from ..export.verify import check, load
from ..predictor import Predictor
from ..utils.errors import UserError
from ..utils.files import atomic_write, check_overwrite
from ..utils.paths import utf8_path
from ..utils.text import LINE_LIMIT, one_line
from .options import add_model, add_output, command_parser, load_pytorch_predictor


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("export", __doc__)
    add_model(parser, device="cpu")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="IMAGE",
        help="images or glob patterns to compare the outputs on",
    )
    add_output(parser, "FILE", "file to write, .onnx or .pt2")
    args = parser.parse_intermixed_args(arguments)

    if args.output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--output {args.output}: the name must end in .onnx or .pt2")
    check_overwrite([args.output], args.overwrite)
    predictor = load_pytorch_predictor(args)
    paths = expand_globs(args.input)
    images = [predictor.resize(read_image(path)) for path in paths]
    smallest = graph.smallest_side(predictor.model)
    for path, image in zip(paths, images):
        if min(image.shape[1:]) < smallest:
            raise UserError(
                f"{path} is resized to {image.shape[2]} x {image.shape[1]} pixels, and an exported "
                f"model needs at least {smallest} x {smallest}; give other images, or raise "
                "dataloader.short_side and dataloader.max_size"
            )

    with atomic_write(args.output) as partial, utf8_path(partial) as name:
        write(predictor, Path(name), metadata(predictor))
        report = check(predictor.model, load(Path(name)), images)
    print(one_line(f"{args.output}: {report}", LINE_LIMIT))


def metadata(predictor: Predictor) -> dict[str, Any]:
    """Return class names and colors, sizes to resize to, and config, for users of the file."""
    metadata = {
        "classes": predictor.classes,
        "palette": predictor.palette,
        "smallest_side": graph.smallest_side(predictor.model),
        "config": inference_config(predictor.cfg),  # for gpvit.Predictor
    }
    for key in ("short_side", "max_size", "crop_size"):
        if key in predictor.cfg.dataloader:
            metadata[key] = predictor.cfg.dataloader[key]
    return metadata


def write(predictor: Predictor, path: Path, metadata: dict[str, Any]) -> None:
    if path.suffix == ".pt2":
        content = io.BytesIO()  # PyTorch aborts the process if it writes to a full disk itself
        torch.export.save(
            graph.export(predictor.model),
            content,
            extra_files={"metadata.json": json.dumps(metadata)},
        )
        path.write_bytes(content.getbuffer())
    else:
        # Its optimizer logs each operation that it leaves unchanged.
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = graph.export_onnx(predictor.model)
        for key, value in metadata.items():
            program.model.metadata_props[key] = json.dumps(value)
        program.save(path)
