"""Convert official GPViT checkpoints to this project's format, and detectors to the official one.

    gpvit convert --weights gpvit_l1_maskrcnn_1x.pth --output mask_rcnn_l1.safetensors
    gpvit convert --weights output/my_retinanet --output official.pth --to-published

The output is a .safetensors file or, with any other suffix, a PyTorch file. It contains weights,
class names, config and source; in the official format, only weights and class names. All commands
accept both formats as --weights.
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
from ..utils.files import atomic_write, check_overwrite
from ..utils.text import LINE_LIMIT, one_line
from .options import add_output, command_parser


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("convert", __doc__)
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="checkpoint, folder of a training run, URL or hf://USER/NAME",
    )
    add_output(parser, "FILE", "checkpoint to write")
    parser.add_argument(
        "--to-published",
        action="store_true",
        help="write the format of the official checkpoints, as a .pth file",
    )
    args = parser.parse_args(arguments)
    check_overwrite([args.output], args.overwrite)
    if args.to_published and args.output.suffix == ".safetensors":
        raise UserError(
            "the official checkpoints are PyTorch files; give an --output that ends in .pth"
        )
    file = checkpoint.read(args.weights)
    try:
        content = convert(file, str(args.output), args.to_published)
    except ValueError as error:
        raise UserError(f"cannot convert {args.weights}: {error}") from None
    print(one_line(f"{args.output}: {content}", LINE_LIMIT))


def convert(file: checkpoint.File, output: str, to_published: bool) -> str:
    """Write the converted checkpoint and return a description of its content."""
    classes = f", {len(file.classes)} class names" if file.classes else ""
    if to_published:
        content = published.to_published(file.weights, file.classes)
        if "palette" in file.about:
            content["meta"]["PALETTE"] = file.about["palette"]
        with atomic_write(output) as partial, partial.open("wb") as output_file:
            torch.save(content, output_file)
        return f"{len(content['state_dict'])} tensors in the official format{classes}"
    metadata: dict[str, Any] = {"source": file.path}
    if file.classes:
        metadata["classes"] = file.classes
        if "palette" in file.about:
            metadata["palette"] = file.about["palette"]
        with contextlib.suppress(UserError):  # the checkpoint may have no config
            metadata["inference_config"] = inference_config(config_of(file))
    checkpoint.write(output, file.weights, **metadata)
    dropped = f", {len(file.dropped)} left out ({preview(file.dropped)})" if file.dropped else ""
    return f"{file.title}, {len(file.weights)} tensors{dropped}{classes}"
