r"""Visualize group-token attention and the feature maps of the pyramid for images.

    gpvit view-attention --weights output/quickstart \
        --input 'output/quickstart/data/images/val_0000*.png'

Writes two figures for each image. NAME_groups.png shows, for each group propagation block, the
attention of its group tokens to the image features (grouping), and that of the image features to
the group tokens (ungrouping), averaged over heads and relative to uniform attention; each row has
its own color scale. In the leftmost column, each patch of 8 x 8 pixels has the color of the group
token that it attends to most. By default, the tokens that most patches attend to most are shown.
NAME_features.png shows the feature maps, with their first three principal components as red, green
and blue. Of an image that is classified, the part in the center is shown, which the model sees.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..data.image_io import read_image
from ..data.sources import expand_globs
from ..utils.errors import UserError
from ..utils.files import atomic_write, check_overwrite, make_folder
from ..utils.text import LINE_LIMIT, one_line
from ..visualization.attention import inspect, visible_part
from ..visualization.attention_sheet import draw_features, draw_groups
from ..visualization.style import DPI
from .options import INDEX, add_model, add_output, command_parser, load_pytorch_predictor


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("view-attention", __doc__)
    add_model(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="IMAGE", help="images or glob patterns"
    )
    add_output(parser, "DIR", "folder to write to", default="output/attention")
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=INDEX,
        metavar="N",
        help="indices of the group tokens to show, from 0 (default: chosen for each image)",
    )
    args = parser.parse_intermixed_args(arguments)

    paths = expand_globs(args.input)
    targets = [targets_of(path, args.output) for path in paths]
    check_targets(targets, args.overwrite)
    predictor = load_pytorch_predictor(args)
    make_folder(args.output)
    failed = False
    for number, (path, (groups, features)) in enumerate(zip(paths, targets), start=1):
        try:
            image = read_image(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        inspection = inspect(predictor, image)
        image = visible_part(predictor, image)
        figures = {
            groups: draw_groups(image, inspection, path.name, args.tokens),
            features: draw_features(image, inspection, path.name),
        }
        for target, figure in figures.items():
            with atomic_write(target) as partial:
                figure.savefig(partial, dpi=DPI)
        line = f"[{number}/{len(paths)}] {path} -> {groups}, {features}"
        print(one_line(line, LINE_LIMIT), flush=True)
    return int(failed)


def targets_of(path: Path, output: Path) -> tuple[Path, Path]:
    """Return the paths of the two figures for an image."""
    return output / f"{path.stem}_groups.png", output / f"{path.stem}_features.png"


def check_targets(targets: Sequence[tuple[Path, Path]], overwrite: bool) -> None:
    """Raise a UserError if a figure would replace another one."""
    files: list[Path] = []
    for pair in targets:
        files += pair
    if len(set(files)) < len(files):
        raise UserError(
            "two inputs have the same name, so that their figures would replace each other; run "
            "the command once for each"
        )
    check_overwrite(files, overwrite)
