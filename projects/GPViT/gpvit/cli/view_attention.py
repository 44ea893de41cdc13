r"""Draws where a GPViT's group tokens look in a picture, and the feature maps of its pyramid.

    gpvit view-attention --weights output/quickstart --input 'output/quickstart/data/images/val_0000*.png'

Two sheets for each picture. NAME_groups.png: for each group propagation block, how much its group tokens take of each place
(they gather from it) and how much each place takes of the tokens (they give back to it), the mean over the attention's
heads, in times of an even share; each row has its scale. On the left, each cell of 8 x 8 pixels has the colour of the token
that it takes most of. Shown are the tokens that most cells take most of; --tokens chooses others. NAME_features.png: the
maps of the pyramid, the three main components of each as red, green and blue.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..data.image_io import read_image
from ..data.sources import expanded
from ..utils.errors import UserError
from ..utils.files import atomic_write, make_folder, refuse_to_replace
from ..utils.text import LINE_LIMIT, one_line
from ..visualization.attention import inspect
from ..visualization.attention_sheet import DPI, draw_features, draw_groups
from .options import INDEX, add_detector, add_output, command_parser, detector


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("view-attention", __doc__)
    add_detector(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PICTURE", help="pictures or globs"
    )
    add_output(parser, "DIR", "where the sheets go", default="output/attention")
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=INDEX,
        metavar="N",
        help="numbers of the group tokens to show, from 0",
    )
    args = parser.parse_intermixed_args(arguments)

    paths = expanded(args.input)
    targets = [
        [args.output / f"{path.stem}_{sheet}.png" for sheet in ("groups", "features")]
        for path in paths
    ]
    check_targets(targets, args.overwrite)
    predictor = detector(args)
    make_folder(args.output)
    failed = 0
    for number, (path, (groups, features)) in enumerate(zip(paths, targets), start=1):
        try:
            picture = read_image(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        inspection = inspect(predictor, picture)
        for target, figure in (
            (groups, draw_groups(picture, inspection, path.name, args.tokens)),
            (features, draw_features(picture, inspection, path.name)),
        ):
            with atomic_write(target) as partial:
                figure.savefig(partial, dpi=DPI)
        print(
            one_line(f"[{number}/{len(paths)}] {path} -> {groups}, {features}", LINE_LIMIT),
            flush=True,
        )
    return 1 if failed else 0


def check_targets(targets: Sequence[Sequence[Path]], overwrite: bool) -> None:
    """Raises a UserError if a sheet would be written over another one."""
    files = [path for pair in targets for path in pair]
    if len(set(files)) < len(files):
        raise UserError(
            "two inputs have the same name and would be drawn to the same file; give them in two calls"
        )
    refuse_to_replace(files, overwrite)
