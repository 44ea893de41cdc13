r"""Detect objects in images and videos, segment or classify them, and draw the results.

    gpvit predict --weights output/my_run --input images clip.mp4 'more/*.jpg' --json --cutouts
    gpvit predict --weights output/my_run --webcam

A folder stands for all images in it and its subfolders. The NAME of an input is its path relative
to the given folder, or to the part of a glob pattern before the first wildcard. The following is
written to --output; existing files are only replaced with --overwrite:

    NAME
        The image or video with the detected objects drawn. Images that are neither JPEG nor PNG
        get the suffix .png appended, videos other than MP4 get .mp4. Images are scaled to between
        640 and 2560 pixels; a video keeps its size and frame rate, and loses its sound.
    label_maps/NAME, with .png appended unless it is a PNG (segmentation models, images only)
        The class index of each pixel, with the colors of the drawing as palette.
    webcam.mp4
        The frames of the webcam until Ctrl-C.
    predictions.json (--json)
        The detections in COCO's results format: a list of image_id, category_id, bbox ([x, y,
        width, height] in pixels), score and, if the detector predicts masks, segmentation (RLE).
    images.json (--json)
        A COCO file without annotations that defines these IDs: images (id, file_name, which is
        NAME, height, width, and the index of the frame in a video, from 0) and categories (id,
        name).
    cutouts/NAME/001_apple_93.png, for videos cutouts/NAME/frame_000012_001_apple_93.png (--cutouts)
        Each object cropped, with its score in percent; transparent outside its mask. The complete
        box is kept if the detector predicts no masks.

With --tile or --stream, images may have any size. The following differs:

    NAME
        The image in gray with the density of the objects, at most 2560 pixels large.
    regions/NAME/best_1_x2000_y4000.png, worst_1_...
        Drawings at full size: of the regions with the highest and lowest mean scores.
    label_maps/NAME.tif
        A tiled TIFF.
    NAME.geojson (--geojson)
        The outlines of the objects with class and score.

A segmentation model draws its classes with a legend, and takes neither --json nor --cutouts. A
classifier draws the five best classes with their scores below an image, and the best one into the
frames of a video; with --json, it writes predictions.json only: a list of file_name (NAME), frame
(in a video) and predictions (class and score, the best first).

Inputs that cannot be read are skipped and listed at the end; the exit code is then 1.
"""

import argparse
import contextlib
import re
import subprocess
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances
from torch import Tensor
from tqdm import tqdm

from ..data.image_io import read_image, save_image
from ..data.label_maps import LABEL_MAPS, label_map_name, save_labels
from ..data.sources import InputImage, Source, sources_of
from ..data.video_io import VideoReader, VideoWriter
from ..evaluation.classification_evaluation import TOP
from ..evaluation.classification_results import ScoresWriter
from ..evaluation.coco_results import ResultsWriter
from ..export.runtime import OnnxClassifier, OnnxSegmentor
from ..modeling import ImageClassifier, SemanticSegmentor
from ..predictor import Output, Predictor
from ..utils.errors import UserError
from ..utils.files import check_overwrite, make_folder, truncate_name
from ..utils.precision import DTYPES
from ..utils.signals import stop_signals_to
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..visualization.classification_drawing import draw_label, draw_scores
from ..visualization.drawing import cut_outs, draw_predictions
from ..visualization.label_drawing import draw_labels, with_legend
from .options import (
    COUNT,
    SCORE,
    add_large_images,
    add_model,
    add_output,
    command_parser,
    load_predictor,
)
from .predict_large import (
    add_options,
    detect_objects,
    is_large,
    predict_large_images,
    segment_image,
    targets_of,
)

DEFAULT_SCORE = 0.5
# The file names of cutouts: frame (videos only), number, class name and score in percent.
CUTOUT = re.compile(r"(frame_\d{6,}_)?\d{3,}_[\w-]*_\d+\.png")


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    if args.show:
        require_window()
    large = is_large(args)
    if args.webcam:
        sources = [Source(args.webcam, "webcam.mp4")]
    else:
        sources = sources_of(args.input, args.output)
    for source in sources:
        if large and source.is_video:
            raise UserError(f"{source.path} is a video: --tile and --stream are for images")
    check_targets(sources, args, labels=False)
    predictor = load_predictor(args, args.dtype)
    try:
        run: Run
        if isinstance(predictor.model, SemanticSegmentor | OnnxSegmentor):
            images = [source for source in sources if not source.is_video]
            check_targets(images, args, labels=True)
            run = SegmentationRun(predictor, args)
        elif isinstance(predictor.model, ImageClassifier | OnnxClassifier):
            run = ClassificationRun(predictor, args)
        else:
            run = Run(predictor, args)
        with stop_signals_to(run.stop), run:
            images = [source for source in sources if not source.is_video]
            if large:
                predict_large_images(run, images)
            elif images:
                run.predict_images(images)
            for source in sources:
                if source.is_video and not run.stopped:
                    run.predict_video(source)
    except OSError as error:  # of an output: the run collects the errors of its inputs
        raise UserError(
            f"cannot write to {one_line(args.output, PATH_LIMIT)}: {error.strerror or error}"
        ) from None
    return run.report()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("predict", __doc__)
    add_model(parser, onnx=True)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="precision (default: bfloat16 on GPUs that compute in it, else float32)",
    )
    add_large_images(parser)
    add_options(parser)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, videos, folders or glob patterns"
    )
    inputs.add_argument(
        "--webcam",
        nargs="?",
        const="0",
        metavar="N",
        help="index of a camera, or URL of a stream (default: 0)",
    )
    add_output(parser, "DIR", "folder to write to", default="output/predict")
    parser.add_argument(
        "--json", action="store_true", help="write predictions.json and images.json"
    )
    parser.add_argument(
        "--cutouts", action="store_true", help="write each object as a cropped PNG image"
    )
    parser.add_argument(
        "--show", action="store_true", help="show each image in a window; press Q to stop"
    )
    parser.add_argument(
        "--score-threshold",
        type=SCORE,
        metavar="S",
        help=f"minimum score of a detection (default: {DEFAULT_SCORE})",
    )
    parser.add_argument(
        "--batch-size",
        default=1,
        type=COUNT,
        metavar="N",
        help="maximum number of images of the same size per batch (default: %(default)s)",
    )
    return parser.parse_intermixed_args(arguments)


def require_window() -> None:
    """Raise a UserError if no window can be opened."""
    # The build information has a line "  GUI:     NONE", or the name of a toolkit.
    if re.search(r"GUI: +NONE", cv2.getBuildInformation()):
        raise UserError(
            "--show: this build of OpenCV cannot open windows; install opencv-python in place of "
            "opencv-python-headless, or leave --show out"
        )
    # In a separate process: without a display, OpenCV may abort the process.
    command = [sys.executable, "-c", "import cv2; cv2.namedWindow('')"]
    if subprocess.run(command, capture_output=True).returncode:
        raise UserError("--show: there is no display to open a window on; leave --show out")


def label_map_of(source: Source, args: argparse.Namespace) -> Path:
    """Return the path of the label map of an image."""
    name = f"{source.name}.tif" if args.stream else label_map_name(source.name)
    return args.output / LABEL_MAPS / name


def target_of(source: Source, output: Path) -> Path:
    """Return the path of the drawn image or video."""
    if source.is_video:
        suffixes, fallback = {".mp4"}, ".mp4"
    else:
        suffixes, fallback = {".jpg", ".jpeg", ".png"}, ".png"
    keeps_suffix = Path(source.name).suffix.lower() in suffixes
    return output / (source.name if keeps_suffix else source.name + fallback)


def check_targets(sources: list[Source], args: argparse.Namespace, *, labels: bool) -> None:
    """Raise a UserError if a file would be overwritten, before anything is written.

    Args:
        sources: the inputs.
        args: of the command line.
        labels: whether label maps are written.
    """
    targets = [target_of(source, args.output) for source in sources]
    if args.json:
        targets += [args.output / "predictions.json", args.output / "images.json"]
    if args.cutouts:
        targets += [args.output / "cutouts" / source.name for source in sources]
    for source in sources:
        if labels:
            targets.append(label_map_of(source, args))
        if args.tile or args.stream:
            targets += targets_of(source, args)
    seen: set[Path] = {Path(source.path).resolve() for source in sources}
    for target in targets:
        if target.resolve() in seen:
            raise UserError(
                f"{target} is an input, or would be written twice; give another --output, or run "
                "the command separately for inputs of the same name"
            )
        seen.add(target.resolve())
    check_overwrite(targets, args.overwrite)


class Run:
    """A run of a model over images and videos, as a context manager; here of a detector.

    It writes the requested outputs, counts images, frames and objects, and collects the errors of
    inputs that cannot be read.
    """

    noun = "object"  # what is counted in an image

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        self.predictor, self.args = predictor, args
        # Masks as large as the image are only computed for detections that pass the threshold.
        self.threshold = DEFAULT_SCORE if args.score_threshold is None else args.score_threshold
        modules: Iterable[Any] = predictor.model.modules()
        for module in modules:
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = max(module.test_score_thresh, self.threshold)
        self.counts = Counter({"image": 0, "frame": 0, self.noun: 0})
        self.problems: list[str] = []
        self.stopped, self.exit_code = False, 0
        self.cutouts: defaultdict[Path, set[str]] = defaultdict(set)  # folder -> files written
        make_folder(args.output)
        self.results = self.open_results() if args.json else None

    def open_results(self) -> Any:
        """Return what writes the files of --json."""
        return ResultsWriter(self.args.output, self.predictor.classes)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.results:
            self.results.close()

    def stop(self, number: int, _: object) -> None:
        """Handle a signal: finish what has been read. For a webcam, this is the normal end."""
        self.stopped = True
        self.exit_code = 0 if self.args.webcam else 128 + number

    def predict_images(self, sources: list[Source]) -> None:
        bar = tqdm(sources, unit="image", disable=None)
        numbers = {source: number for number, source in enumerate(sources, start=1)}
        for image, found in self.predict(self.read(bar)):
            progress = f"[{numbers[image.source]}/{len(sources)}]" if bar.disable else ""
            self.finish_image(image.source, self.draw(image, found), self.describe(found), progress)

    def finish_image(
        self, source: Source, drawn: np.ndarray, description: str, progress: str
    ) -> None:
        """Save the drawing of an image, count it, and report it unless a bar shows the progress."""
        target = target_of(source, self.args.output)
        save_image(target, drawn)
        self.counts["image"] += 1
        if progress:
            line = f"{progress} {source.path}: {description} -> {target}"
            print(one_line(line, LINE_LIMIT), flush=True)
        self.show(drawn, hold=True)

    def predict_large(self, source: Source) -> tuple[np.ndarray, str]:
        """Predict an image of any size; return its drawing and what was found."""
        drawn, count = detect_objects(self, source)
        self.counts["object"] += count
        return drawn, counted(count, self.noun)

    def read(self, sources: Iterable[Source]) -> Iterator[InputImage]:
        """Yield the images that can be read."""
        for source in sources:
            if self.stopped:
                return
            try:
                image = read_image(source.path)
            except UserError as error:
                self.problems.append(str(error))
            else:
                yield InputImage(source, image)

    def predict_video(self, source: Source) -> None:
        try:
            reader = VideoReader(source.path)
        except UserError as error:
            self.problems.append(str(error))
            return
        counts_before = self.counts.copy()
        target = target_of(source, self.args.output)
        with VideoWriter(target, reader.fps) as writer:
            for frame, found in self.predict(self.frames(source, reader)):
                drawn = self.draw(frame, found)
                writer.write(drawn)
                self.counts["frame"] += 1
                self.show(drawn, hold=False)
        if self.args.cutouts:
            self.remove_old_cutouts(source)
        if writer.written and not sys.stderr.isatty():
            new = self.counts - counts_before
            counts = self.of_video(new)
            print(one_line(f"{source.path}: {counts} -> {target}", LINE_LIMIT))

    def frames(self, source: Source, reader: VideoReader) -> Iterator[InputImage]:
        """Yield the frames of a video until the end, an error or a signal."""
        bar = tqdm(
            reader, desc=one_line(source.name), total=reader.frames, unit="frame", disable=None
        )
        try:
            for number, image in enumerate(bar):
                yield InputImage(source, image, number)
                if self.stopped:
                    return
        # Not raised to the detector, which has yet to process the frames before the error.
        except UserError as error:
            self.problems.append(str(error))

    def predict(self, images: Iterable[InputImage]) -> Iterator[tuple[InputImage, Any]]:
        """Run the model, and yield each image with what was found; write all but drawings."""
        # Images that were passed to the predictor and have no result yet: at most one batch.
        pending: deque[InputImage] = deque()

        def arrays() -> Iterator[np.ndarray]:
            for image in images:
                pending.append(image)
                yield image.image

        for output in self.predictor.stream(arrays(), self.args.batch_size):
            image = pending.popleft()
            yield image, self.take(image, output)

    def take(self, image: InputImage, output: Output) -> Any:
        """Return the detections of an image; count them and write results and cutouts."""
        if not isinstance(output, Instances):
            raise UserError(f"{self.predictor.path} is not a detector: nothing can be drawn")
        instances = output[output.scores >= self.threshold]
        self.counts["object"] += len(instances)
        if self.results:
            self.results.add(image, instances)
        if self.args.cutouts:
            self.cut_out(image, instances)
        return instances

    def draw(self, image: InputImage, found: Any) -> np.ndarray:
        """Draw what :meth:`take` returned; a frame of a video keeps its size."""
        is_image = image.frame is None
        return draw_predictions(image.image, found, self.predictor.classes, resize=is_image)

    def of_video(self, counts: Counter[str]) -> str:
        """Describe what was found in a video, by the counts of it alone."""
        return f"{counted(counts['object'], 'object')} in {counted(counts['frame'], 'frame')}"

    def describe(self, found: Any) -> str:
        """Describe what was found in an image."""
        return counted(len(found), self.noun)

    def cut_out(self, image: InputImage, instances: Instances) -> None:
        """Write each object as an image."""
        folder = self.args.output / "cutouts" / image.source.name
        frame = "" if image.frame is None else f"frame_{image.frame:06}_"
        for i, rgba in enumerate(cut_outs(image.image, instances)):
            if not rgba.size:  # an empty mask
                continue
            # Path separators, spaces, dots etc. in class names become "-".
            name = truncate_name(
                re.sub(r"[^\w-]+", "-", self.predictor.classes[instances.pred_classes[i]])
            )
            path = folder / f"{frame}{i + 1:03}_{name}_{100 * instances.scores[i]:.0f}.png"
            save_image(path, rgba)
            self.cutouts[folder].add(path.name)
        if image.frame is None:
            self.remove_old_cutouts(image.source)

    def remove_old_cutouts(self, source: Source) -> None:
        """Remove the cutouts of an earlier run, after the new ones were written."""
        folder = self.args.output / "cutouts" / source.name
        written = self.cutouts.pop(folder, set())
        for path in folder.glob("*.png"):
            if path.name not in written and CUTOUT.fullmatch(path.name):
                path.unlink()
        with contextlib.suppress(OSError):  # the folder does not exist, or is not empty
            folder.rmdir()

    def show(self, drawn: np.ndarray, *, hold: bool) -> None:
        """Show an image in a window; with ``hold``, until a key is pressed or the window closed."""
        if not self.args.show or self.stopped:
            return
        cv2.imshow("GPViT", drawn[..., ::-1])  # RGB -> BGR
        key = cv2.waitKey(1)  # -1 if no key was pressed
        while (
            hold
            and key < 0
            and not self.stopped
            and cv2.getWindowProperty("GPViT", cv2.WND_PROP_VISIBLE) > 0
        ):
            key = cv2.waitKey(50)
        self.stopped |= key in map(ord, "qQ")

    def report(self) -> int:
        """Print the counts and the inputs that could not be read; return the exit code."""
        counts = []
        for noun, number in self.counts.items():
            if number or noun == self.noun:
                counts.append(counted(number, noun))
        print(f"{', '.join(counts)} -> {one_line(self.args.output, PATH_LIMIT)}")
        if self.problems:
            inputs = counted(len(self.problems), "input")
            print(f"error: {inputs} could not be read completely:", file=sys.stderr)
            for problem in self.problems:
                print(f"  {problem}", file=sys.stderr)
        return self.exit_code or (1 if self.problems else 0)


class SegmentationRun(Run):
    """A run of a segmentation model."""

    noun = "class"

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        detector_options = ("--json", "--cutouts", "--score-threshold", "--tile", "--geojson")
        refuse(predictor, "a segmentation model", args, *detector_options)
        assert isinstance(predictor.model, SemanticSegmentor | OnnxSegmentor)
        predictor.model.class_map = True
        super().__init__(predictor, args)
        self.seen: set[int] = set()  # classes, in all images and frames

    def take(self, image: InputImage, output: Output) -> np.ndarray:
        """Return the label map of an image, (H, W); write it, unless it is a frame of a video."""
        assert isinstance(output, Tensor)
        labels = output.numpy()
        self.note(np.unique(labels))
        if image.frame is None:
            path = label_map_of(image.source, self.args)
            make_folder(path.parent)
            save_labels(path, labels, self.predictor.palette)
        return labels

    def draw(self, image: InputImage, found: np.ndarray) -> np.ndarray:
        classes, palette = self.predictor.classes, self.predictor.palette
        is_image = image.frame is None
        drawn = draw_labels(image.image, found, classes, palette, resize=is_image)
        return with_legend(drawn, found, classes, palette) if is_image else drawn

    def note(self, classes: np.ndarray) -> None:
        """Count classes that occur."""
        self.seen.update(classes.tolist())
        self.counts["class"] = len(self.seen)

    def predict_large(self, source: Source) -> tuple[np.ndarray, str]:
        image, labels = segment_image(self, source, label_map_of(source, self.args))
        return self.draw(InputImage(source, image), labels), self.describe(labels)

    def of_video(self, counts: Counter[str]) -> str:
        return counted(counts["frame"], "frame")

    def describe(self, found: np.ndarray) -> str:
        return counted(len(np.unique(found)), self.noun)


class ClassificationRun(Run):
    """A run of a classifier."""

    noun = "class"

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        detector_options = ("--cutouts", "--score-threshold", "--tile", "--stream", "--geojson")
        refuse(predictor, "a classifier", args, *detector_options)
        super().__init__(predictor, args)
        self.seen: set[int] = set()  # classes that are the best of an image

    def open_results(self) -> ScoresWriter:
        return ScoresWriter(self.args.output, self.predictor.classes)

    def take(self, image: InputImage, output: Output) -> tuple[list[int], list[float]]:
        """Return the best classes and their scores."""
        assert isinstance(output, Tensor)
        best = output.topk(min(TOP, len(output)))
        indices, scores = best.indices.tolist(), best.values.tolist()
        self.seen.add(indices[0])
        self.counts[self.noun] = len(self.seen)
        if self.results:
            self.results.add(image, indices, scores)
        return indices, scores

    def draw(self, image: InputImage, found: tuple[list[int], list[float]]) -> np.ndarray:
        if image.frame is None:
            return draw_scores(image.image, self.predictor.classes, *found)
        return draw_label(image.image, self.describe(found), resize=False)

    def describe(self, found: tuple[list[int], list[float]]) -> str:
        """Return the best class with its score, such as "cat 93%"."""
        indices, scores = found
        return f"{one_line(self.predictor.classes[indices[0]])} {scores[0]:.0%}"

    def of_video(self, counts: Counter[str]) -> str:
        return counted(counts["frame"], "frame")


def refuse(predictor: Predictor, model: str, args: argparse.Namespace, *options: str) -> None:
    """Raise a UserError if one of these options of detectors is given."""
    for option in options:
        value = getattr(args, option[2:].replace("-", "_"))
        if value is not None and value is not False:
            raise UserError(f"{option}: {predictor.path} is {model}, no detector")


def counted(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"
