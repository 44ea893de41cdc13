r"""Hands a detector on: as a folder, or through the Hugging Face Hub.

    python tools/share.py push --weights output/quickstart --to ./my_detector --licence apache-2.0
    python tools/share.py push --weights ./my_detector --to USER/NAME --licence apache-2.0 --private
    python tools/share.py pull USER/NAME --to ./their_detector

The folder or repository has the weights as used for inference with classes, config, versions and licence in one
.safetensors file, the config once more to be read, and a model card, which says what the training has measured. Write a
folder first, look at its README.md, add what others should know, and push that folder: its README.md stays as you left it.

Every tool here, and gpvit.Predictor.from_checkpoint, takes the folder or hf://USER/NAME as a checkpoint. `hf auth login`
logs in to the Hub. Nothing in a model that was pulled is executed.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import tempfile
from pathlib import Path

from common import run_command
from gpvit import hub
from gpvit.utils.errors import UserError, listed
from gpvit.utils.text import LINE_LIMIT, PATH_LIMIT, one_line, print_anything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    push_parser = commands.add_parser("push", help="write a folder, or a repository of the Hub")
    push_parser.add_argument("--weights", required=True, help="checkpoint, or the folder of a training or model")
    push_parser.add_argument("--to", required=True, metavar="USER/NAME or ./FOLDER", help="where the model goes")
    push_parser.add_argument("--licence", "--license", required=True, help="of the weights, such as apache-2.0")
    push_parser.add_argument("--private", action="store_true", help="make a repository that only its owners see")
    push_parser.add_argument("--config-file", default="", metavar="FILE", help="if the checkpoint does not carry its config")
    pull_parser = commands.add_parser("pull", help="copy a model of the Hub to a folder")
    pull_parser.add_argument("model", metavar="USER/NAME", help="@REVISION may follow: a branch, tag or commit")
    pull_parser.add_argument("--to", metavar="FOLDER", help="where it goes (default: output/NAME)")
    for subparser in (push_parser, pull_parser):
        subparser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    args = parser.parse_args()
    print_anything()
    if args.command == "push":
        push(args)
    else:
        pull(args)


def push(args: argparse.Namespace) -> None:
    address = address_of(args.to)
    if address:
        with tempfile.TemporaryDirectory() as folder:
            write(args, Path(folder), address)
            page = hub.push(Path(folder), address, private=args.private, overwrite=args.overwrite)
        print(one_line(f'{page}: load it with gpvit.Predictor.from_checkpoint("{address}")', LINE_LIMIT))
        return
    if args.private:
        raise UserError(f"--private is for the Hub, and {args.to} is a folder")
    target = Path(args.to).expanduser()
    with hub.new_folder(target, args.overwrite) as folder:
        write(args, folder, hub.local_address(target))
    files = ", ".join(hub.FILES)
    print(f"{one_line(target, PATH_LIMIT)}: {files}; complete {hub.CARD} by what others should know")


def write(args: argparse.Namespace, folder: Path, address: str) -> None:
    hub.write(args.weights, folder, licence=args.licence, address=address, config_file=args.config_file)


def pull(args: argparse.Namespace) -> None:
    address = args.model if args.model.startswith("hf://") else f"hf://{args.model}"
    folder = Path(args.to or f"output/{hub.parsed(address).id.rpartition('/')[2]}").expanduser()
    with hub.new_folder(folder, args.overwrite) as partial:
        file = hub.pull(address, partial)
    classes = file.require_classes()
    licence = one_line(file.about.get("licence", "not stated"))
    path = one_line(folder, PATH_LIMIT)
    print(f"{path}: {len(classes)} classes ({listed(classes)}), licence {licence}")


def address_of(target: str) -> str:
    """hf://USER/NAME of what --to says; "" of a folder. Raises a UserError if it could be either."""
    if target.startswith("hf://"):
        return target
    if target.startswith((".", "/", "~")) or target.count("/") != 1 or target.endswith("/"):
        return ""
    if Path(target).parent.is_dir():
        raise UserError(f"--to {target} could be a folder or a repository: say ./{target} or hf://{target}")
    return f"hf://{target}"


if __name__ == "__main__":
    run_command(main)
