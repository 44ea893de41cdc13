r"""Share a detector as a folder or through the Hugging Face Hub.

    gpvit share push --weights output/quickstart --output ./my_detector --license apache-2.0
    gpvit share push --weights ./my_detector --output USER/NAME --license apache-2.0 --private
    gpvit share pull --weights USER/NAME --output ./their_detector

The folder or repository contains model.safetensors (inference weights, class names, config,
versions and license), the config in a readable file, and a model card with the results of the
training run. To edit the model card, write a folder first, edit its README.md, and push that
folder: the README.md is pushed as edited.

All commands and gpvit.Predictor.from_checkpoint accept the folder, or hf://USER/NAME, as a
checkpoint. Log in to the Hub with `hf auth login`. No code from a pulled model is executed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import hub
from ..utils.errors import UserError, preview
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from .options import command_parser


def main(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    if args.command == "push":
        push(args)
    else:
        pull(args)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("share", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    push_parser = commands.add_parser("push", help="write a folder, or a repository on the Hub")
    push_parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="checkpoint, or folder of a training run or of a shared model",
    )
    push_parser.add_argument(
        "--output",
        required=True,
        metavar="TARGET",
        help="USER/NAME on the Hub, or a folder such as ./NAME",
    )
    push_parser.add_argument(
        "--license",
        "--licence",
        required=True,
        metavar="ID",
        help="license of the weights, such as apache-2.0",
    )
    push_parser.add_argument(
        "--private", action="store_true", help="create a private repository on the Hub"
    )
    push_parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="config of the detector (default: the one in the checkpoint)",
    )
    pull_parser = commands.add_parser("pull", help="download a model from the Hub to a folder")
    pull_parser.add_argument(
        "--weights",
        required=True,
        metavar="USER/NAME",
        help="model on the Hub, optionally with @REVISION: a branch, tag or commit",
    )
    pull_parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: output/NAME)"
    )
    for subparser in (push_parser, pull_parser):
        subparser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    return parser.parse_args(arguments)


def push(args: argparse.Namespace) -> None:
    address = address_of(args.output)
    if address:
        with tempfile.TemporaryDirectory() as folder:
            write(args, Path(folder), address)
            page = hub.push(Path(folder), address, private=args.private, overwrite=args.overwrite)
        usage = f'load it with gpvit.Predictor.from_checkpoint("{address}")'
        print(one_line(f"{page}: {usage}", LINE_LIMIT))
        return
    if args.private:
        raise UserError(f"--private applies to the Hub only, and {args.output} is a folder")
    target = Path(args.output).expanduser()
    with hub.new_folder(target, args.overwrite) as folder:
        write(args, folder, hub.local_address(target))
    files = ", ".join(hub.FILES)
    path = one_line(target, PATH_LIMIT)
    print(f"{path}: {files}; describe the model's use and limits in {hub.CARD}")


def write(args: argparse.Namespace, folder: Path, address: str) -> None:
    hub.write(
        args.weights, folder, license=args.license, address=address, config_file=args.config_file
    )


def pull(args: argparse.Namespace) -> None:
    address = args.weights if args.weights.startswith("hf://") else f"hf://{args.weights}"
    folder = Path(args.output or f"output/{hub.parsed(address).id.rpartition('/')[2]}").expanduser()
    with hub.new_folder(folder, args.overwrite) as partial:
        file = hub.pull(address, partial)
    classes = file.require_classes()
    license_id = one_line(file.about.get("license", "not stated"))
    path = one_line(folder, PATH_LIMIT)
    print(f"{path}: {len(classes)} classes ({preview(classes)}), license {license_id}")


def address_of(target: str) -> str:
    """Return hf://USER/NAME for the value of --output, or "" for a folder.

    Raises:
        UserError: it could be either.
    """
    if target.startswith("hf://"):
        return target
    if target.startswith((".", "/", "~")) or target.count("/") != 1 or target.endswith("/"):
        return ""
    if Path(target).parent.is_dir():
        raise UserError(
            f"--output {target} could be a folder or a repository: give ./{target} or hf://{target}"
        )
    return f"hf://{target}"
