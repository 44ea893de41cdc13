"""Converts published files to this project's names, and detectors trained here to the published layout.

    python tools/convert_checkpoint.py gpvit_l1_maskrcnn_1x.pth mask_rcnn_l1.safetensors
    python tools/convert_checkpoint.py --to-published output/published/retinanet_gpvit_l1_1x/model_final.pth official.pth

The input is a path or an address. The output is a .safetensors file or, by any other name, PyTorch's format, with the
names of the classes, the config and the source noted in it; the published layout has the names of the classes only. Every
tool here takes either as a checkpoint.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import contextlib
from pathlib import Path
from typing import Any

import gpvit
import torch
from common import refuse_to_replace, run_command
from gpvit.checkpoint import published
from gpvit.config import inference_config
from gpvit.predictor import config_of
from gpvit.utils.errors import UserError, listed
from gpvit.utils.files import atomic_write
from gpvit.utils.text import LINE_LIMIT, one_line, print_anything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="checkpoint: path or address")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--to-published", action="store_true", help="write the layout of the published files")
    args = parser.parse_args()
    print_anything()
    refuse_to_replace([args.output], args.overwrite, "output")
    if args.to_published and args.output.suffix == ".safetensors":
        raise UserError("published files are in PyTorch's format; give the output a name that ends in .pth")
    file = gpvit.checkpoint.read(args.input)
    try:
        content = convert(file, str(args.output), args.to_published)
    except ValueError as error:
        raise UserError(f"cannot convert {args.input}: {error}") from None
    print(one_line(f"{args.output}: {content}", LINE_LIMIT))


def convert(file: gpvit.checkpoint.File, output: str, to_published: bool) -> str:
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
    gpvit.checkpoint.write(output, file.weights, **metadata)
    left_out = f", {len(file.dropped)} left out ({listed(file.dropped)})" if file.dropped else ""
    return f"{file.title}, {len(file.weights)} tensors{left_out}{classes}"


if __name__ == "__main__":
    run_command(main)
