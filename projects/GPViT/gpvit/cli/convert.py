"""Converts published files to this project's names, and detectors trained here to the published layout.

    gpvit convert --weights gpvit_l1_maskrcnn_1x.pth --output mask_rcnn_l1.safetensors
    gpvit convert --weights output/published/retinanet_gpvit_l1_1x --output official.pth --to-published

The weights are a path or an address. The output is a .safetensors file or, by any other name, PyTorch's format, with the
names of the classes, the config and the source noted in it; the published layout has the names of the classes only. Every
command here takes either as a checkpoint.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from .. import checkpoint
from ..checkpoint import published
from ..config import inference_config
from ..predictor import config_of
from ..utils.errors import UserError, preview
from ..utils.files import atomic_write, refuse_to_replace
from ..utils.text import LINE_LIMIT, one_line
from .options import add_output, command_parser


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("convert", __doc__)
    parser.add_argument(
        "--weights", required=True, metavar="PATH", help="checkpoint: path or address"
    )
    add_output(parser, "FILE", "file to write")
    parser.add_argument(
        "--to-published", action="store_true", help="write the layout of the published files"
    )
    args = parser.parse_args(arguments)
    refuse_to_replace([args.output], args.overwrite)
    if args.to_published and args.output.suffix == ".safetensors":
        raise UserError(
            "published files are in PyTorch's format; give the output a name that ends in .pth"
        )
    file = checkpoint.read(args.weights)
    try:
        content = convert(file, str(args.output), args.to_published)
    except ValueError as error:
        raise UserError(f"cannot convert {args.weights}: {error}") from None
    print(one_line(f"{args.output}: {content}", LINE_LIMIT))


def convert(file: checkpoint.File, output: str, to_published: bool) -> str:
    """Writes the file and says what is in it now."""
    classes = f", {len(file.classes)} class names" if file.classes else ""
    if to_published:
        content = published.to_published(file.weights, file.classes)
        with atomic_write(output) as partial, partial.open("wb") as output_file:
            torch.save(content, output_file)
        return f"{len(content['state_dict'])} tensors in the published layout{classes}"
    metadata: dict[str, Any] = {"source": file.path}
    if file.classes:
        metadata["classes"] = file.classes
        with contextlib.suppress(UserError):  # there may be none
            metadata["inference_config"] = inference_config(config_of(file))
    checkpoint.write(output, file.weights, **metadata)
    left_out = f", {len(file.dropped)} left out ({preview(file.dropped)})" if file.dropped else ""
    return f"{file.title}, {len(file.weights)} tensors{left_out}{classes}"
