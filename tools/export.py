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
from pathlib import Path

import gpvit
import torch
import torchvision  # noqa: F401 (what is in a .pt2 file calls its operations)
from common import add_detector, detector, expanded, refuse_to_replace, run_command
from gpvit.data.image_io import read_image
from gpvit.export import graph as export
from gpvit.export.verify import check, load
from gpvit.utils.errors import UserError
from gpvit.utils.files import atomic_write
from gpvit.utils.paths import utf8_path
from gpvit.utils.text import LINE_LIMIT, one_line, print_anything


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


if __name__ == "__main__":
    run_command(main)
