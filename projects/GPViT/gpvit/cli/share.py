r"""Hands a detector on: as a folder, or through the Hugging Face Hub.

    gpvit share push --weights output/quickstart --output ./my_detector --license apache-2.0
    gpvit share push --weights ./my_detector --output USER/NAME --license apache-2.0 --private
    gpvit share pull --weights USER/NAME --output ./their_detector

The folder or repository has the weights as used for inference with classes, config, versions and licence in one
.safetensors file, the config once more to be read, and a model card, which says what the training has measured. Write a
folder first, look at its README.md, add what others should know, and push that folder: its README.md stays as you left it.

Every command here, and gpvit.Predictor.from_checkpoint, takes the folder or hf://USER/NAME as a checkpoint. `hf auth login`
logs in to the Hub. Nothing in a model that was pulled is executed.
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
    parser = command_parser("share", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    push_parser = commands.add_parser("push", help="write a folder, or a repository of the Hub")
    push_parser.add_argument(
        "--weights", required=True, help="checkpoint, or the folder of a training or model"
    )
    push_parser.add_argument(
        "--output", required=True, metavar="USER/NAME or ./FOLDER", help="where the model goes"
    )
    push_parser.add_argument(
        "--license", "--licence", required=True, help="of the weights, such as apache-2.0"
    )
    push_parser.add_argument(
        "--private", action="store_true", help="make a repository that only its owners see"
    )
    push_parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="if the checkpoint does not carry its config",
    )
    pull_parser = commands.add_parser("pull", help="copy a model of the Hub to a folder")
    address = "on the Hub; @REVISION may follow: a branch, tag or commit"
    pull_parser.add_argument("--weights", required=True, metavar="USER/NAME", help=address)
    pull_parser.add_argument("--output", metavar="FOLDER", help="where it goes (output/NAME)")
    for subparser in (push_parser, pull_parser):
        subparser.add_argument(
            "--overwrite", action="store_true", help="replace a model that is there"
        )
    args = parser.parse_args(arguments)
    if args.command == "push":
        push(args)
    else:
        pull(args)


def push(args: argparse.Namespace) -> None:
    address = address_of(args.output)
    if address:
        with tempfile.TemporaryDirectory() as folder:
            write(args, Path(folder), address)
            page = hub.push(Path(folder), address, private=args.private, overwrite=args.overwrite)
        print(
            one_line(
                f'{page}: load it with gpvit.Predictor.from_checkpoint("{address}")', LINE_LIMIT
            )
        )
        return
    if args.private:
        raise UserError(f"--private is for the Hub, and {args.output} is a folder")
    target = Path(args.output).expanduser()
    with hub.new_folder(target, args.overwrite) as folder:
        write(args, folder, hub.local_address(target))
    files = ", ".join(hub.FILES)
    print(
        f"{one_line(target, PATH_LIMIT)}: {files}; complete {hub.CARD} by what others should know"
    )


def write(args: argparse.Namespace, folder: Path, address: str) -> None:
    hub.write(
        args.weights, folder, licence=args.license, address=address, config_file=args.config_file
    )


def pull(args: argparse.Namespace) -> None:
    address = args.weights if args.weights.startswith("hf://") else f"hf://{args.weights}"
    folder = Path(args.output or f"output/{hub.parsed(address).id.rpartition('/')[2]}").expanduser()
    with hub.new_folder(folder, args.overwrite) as partial:
        file = hub.pull(address, partial)
    classes = file.require_classes()
    licence = one_line(file.about.get("licence", "not stated"))
    path = one_line(folder, PATH_LIMIT)
    print(f"{path}: {len(classes)} classes ({preview(classes)}), licence {licence}")


def address_of(target: str) -> str:
    """hf://USER/NAME of what --output says; "" of a folder. Raises a UserError if it could be either."""
    if target.startswith("hf://"):
        return target
    if target.startswith((".", "/", "~")) or target.count("/") != 1 or target.endswith("/"):
        return ""
    if Path(target).parent.is_dir():
        raise UserError(
            f"--output {target} could be a folder or a repository: say ./{target} or hf://{target}"
        )
    return f"hf://{target}"
