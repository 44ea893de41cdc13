"""Images of any size in ``gpvit predict``: --tile and --stream."""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from detectron2.structures import Instances

from ..data.image_io import save_image
from ..data.sources import InputImage, Source
from ..export.runtime import OnnxSegmentor
from ..large_images.label_map_file import save_label_map_tiles
from ..large_images.readers import georeference, open_large
from ..large_images.reduced import read_reduced
from ..large_images.results import GeoJsonWriter
from ..modeling import SemanticSegmentor
from ..streaming.detector import check_detector
from ..streaming.segmenter import ClassesOfTile, check_segmenter
from ..utils.errors import UserError
from ..utils.files import make_folder
from ..utils.signals import stop_signals_to
from ..utils.text import PATH_LIMIT, one_line
from ..visualization.drawing import drawing_scale
from ..visualization.overview import Overview
from .options import tiles_of

if TYPE_CHECKING:
    from .predict import Run, SegmentationRun

REGIONS = "regions"  # folder of the drawings at full size
REGION = re.compile(r"(best|worst)_\d+_x\d+_y\d+\.png")  # their file names
COORDINATES = ("image", "map")  # of --geojson


class Stopped(BaseException):
    """A signal asked the command to stop. No model or decoder catches it as an error of its own."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--geojson",
        choices=COORDINATES,
        nargs="?",
        const="image",
        help="with --tile or --stream, write the outlines of the objects to NAME.geojson, in "
        "pixels of the image (default), or in longitude and latitude if it is a GeoTIFF",
    )
    parser.add_argument(
        "--temp-dir",
        type=Path,
        metavar="DIR",
        help="with --tile or --stream, folder for decoded images and intermediate results "
        "(default: that of the system)",
    )


def is_large(args: argparse.Namespace) -> bool:
    """Whether the command line asks for large images; raise a UserError for what does not fit."""
    tiles_of(args)
    if args.temp_dir and not args.temp_dir.is_dir():
        raise UserError(f"--temp-dir: {one_line(args.temp_dir, PATH_LIMIT)} is no folder")
    if args.tile or args.stream:
        for option in ("--cutouts", "--webcam"):
            if getattr(args, option[2:]):
                raise UserError(f"{option} cannot be combined with --tile or --stream")
        return True
    for option in ("--geojson", "--temp-dir"):
        if getattr(args, option[2:].replace("-", "_")):
            raise UserError(f"{option} needs --tile N or --stream")
    return False


def targets_of(source: Source, args: argparse.Namespace) -> list[Path]:
    """Return what is written for an image besides its drawing and label map."""
    targets = [args.output / REGIONS / source.name]
    return [*targets, geojson_of(source, args.output)] if args.geojson else targets


def geojson_of(source: Source, output: Path) -> Path:
    return output / f"{source.name}.geojson"


def check_model(run: "Run") -> None:
    """Raise a UserError if a model cannot be used for --tile or --stream."""
    model, args = run.predictor.model, run.args
    if args.tile:
        return
    try:
        if isinstance(model, SemanticSegmentor | OnnxSegmentor):
            check_segmenter(model)
        else:
            check_detector(model)
    except ValueError as error:
        raise UserError(f"{run.predictor.path}: {error}") from None


def predict_large_images(run: "Run", sources: Sequence[Source]) -> None:
    """Predict images one by one and write what was found; collect what cannot be read."""
    check_model(run)

    def stop(number: int, frame: object) -> None:
        run.stop(number, frame)
        signal.signal(number, lambda *_: os._exit(128 + number))  # the next one ends the process
        raise Stopped

    with stop_signals_to(stop):
        for number, source in enumerate(sources, start=1):
            if run.stopped:
                return
            try:
                predict_large_image(run, source, f"[{number}/{len(sources)}]")
            except Stopped:
                run.problems.append(f"{source.path}: stopped before it was complete")
                return


def predict_large_image(run: "Run", source: Source, progress: str) -> None:
    try:
        drawn, description = run.predict_large(source)
    except UserError as error:
        message = str(error)
        named = message if source.path in message else f"{source.path}: {message}"
        run.problems.append(named)
    else:
        run.finish_image(source, drawn, description, progress)


def detect_objects(run: "Run", source: Source) -> tuple[np.ndarray, int]:
    """Detect objects, write results and drawings of regions; return the overview and the count."""
    args, predictor = run.args, run.predictor
    to_coordinates = georeference(source.path).to_lonlat if args.geojson == "map" else None
    pixels = open_large(source.path, args.temp_dir)
    overview, count = Overview(predictor.classes), 0
    writers: list[Callable[[Instances], None]] = [overview.add]
    with contextlib.ExitStack() as files:
        if args.geojson:
            path = geojson_of(source, args.output)
            make_folder(path.parent)
            geojson = GeoJsonWriter(path, predictor.classes, to_coordinates)
            writers.append(files.enter_context(geojson).add)
        if run.results:
            image = InputImage(source, pixels)
            writers.append(files.enter_context(run.results.image(image)))
        for found in predictor.detect_large(
            pixels, tiles_of(args), folder=args.temp_dir, progress=sys.stderr.isatty()
        ):
            found = found[found.scores >= run.threshold]
            count += len(found)
            for write in writers:
                write(found)
    folder = args.output / REGIONS / source.name
    for path in folder.glob("*.png"):
        if REGION.fullmatch(path.name):
            path.unlink()
    with contextlib.suppress(OSError):  # it does not exist, or is not empty
        folder.rmdir()
    for name, drawn in overview.regions(pixels):
        save_image(folder / f"{name}.png", drawn)
    return overview.draw(pixels), count


def segment_image(
    run: "SegmentationRun", source: Source, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Write the label map of an image; return image and label map as small as their drawing."""
    pixels = open_large(source.path, run.args.temp_dir)
    height, width = pixels.shape[:2]
    scale = min(drawing_scale(height, width), 1)
    image = read_reduced(pixels, scale)
    # The pixels of the label map that the centers of the drawing's pixels are in.
    rows, columns = (
        ((np.arange(side) + 0.5) * length / side).astype(int)
        for side, length in zip(image.shape, (height, width))
    )
    labels = np.zeros(image.shape[:2], np.int64)

    def noted(tiles: Iterator[ClassesOfTile]) -> Iterator[ClassesOfTile]:
        for rows_of, columns_of, classes in tiles:
            y = np.flatnonzero((rows >= rows_of.start) & (rows < rows_of.stop))
            x = np.flatnonzero((columns >= columns_of.start) & (columns < columns_of.stop))
            part = classes.numpy()[rows[y, None] - rows_of.start, columns[x] - columns_of.start]
            labels[y[:, None], x] = part
            run.note(classes.unique().numpy())
            yield rows_of, columns_of, classes

    make_folder(path.parent)
    predictor = run.predictor
    tiles = predictor.segment_large(pixels, folder=run.args.temp_dir, progress=sys.stderr.isatty())
    save_label_map_tiles(
        path, noted(tiles), height, width, predictor.palette, len(predictor.classes)
    )
    return image, labels
