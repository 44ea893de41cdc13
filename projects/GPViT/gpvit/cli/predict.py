r"""Finds objects in pictures and videos, and draws them.

    gpvit predict --weights output/my_training --input pictures clip.mp4 'more/*.jpg' --json --cutouts
    gpvit predict --weights output/my_training --webcam

A folder stands for all pictures below it. The NAME of an input is its path below the folder that was given, or below the
fixed part of the glob. All goes to --output, and nothing there is replaced without --overwrite:

    NAME
        A picture, or a video, with its objects drawn. Pictures that are neither JPEG nor PNG get .png behind their name,
        videos other than MP4 get .mp4. Pictures become 640 to 2560 pixels large for it; a video keeps its size and frames
        per second, and loses its sound.
    webcam.mp4
        What the camera saw until Ctrl-C.
    predictions.json (--json)
        The objects, in COCO's format of results: a list of image_id, category_id, bbox ([x, y, width, height] in pixels),
        score and, if the detector gives masks, segmentation (RLE).
    images.json (--json)
        What the numbers mean, as a COCO file without annotations: images (id, file_name, which is NAME, height, width, and
        the number of the frame in a video, from 0) and categories (id, name).
    cutouts/NAME/001_apple_93.png, of a video cutouts/NAME/frame_000012_001_apple_93.png (--cutouts)
        Each object alone with its score in percent, transparent outside of its mask (all its box if there are no masks).

What cannot be read is listed at the end, with exit code 1; the rest is done all the same.
"""

import argparse
import contextlib
import re
import subprocess
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ..data.image_io import read_image, save_image
from ..data.sources import InputImage, Source, sources_of
from ..data.video_io import VideoReader, VideoWriter
from ..evaluation.coco_results import ResultsWriter
from ..predictor import Predictor
from ..utils.errors import UserError
from ..utils.files import cut, make_folder, refuse_to_replace
from ..utils.signals import stop_signals_to
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..visualization.drawing import cut_outs, draw_predictions
from .options import COUNT, SCORE, add_detector, add_output, command_parser, detector

CUTOUT = re.compile(r"(frame_\d{6,}_)?\d{3,}_[\w-]*_\d+\.png")


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    if args.show:
        require_window()
    sources = (
        [Source(args.webcam, "webcam.mp4")] if args.webcam else sources_of(args.input, args.output)
    )
    check_targets(sources, args)
    predictor = detector(args)
    try:
        run = Run(predictor, args)
        with stop_signals_to(run.stop), run:
            if pictures := [source for source in sources if not source.is_video]:
                run.pictures(pictures)
            for source in sources:
                if source.is_video and not run.stopped:
                    run.video(source)
    except OSError as error:  # inputs that cannot be read are among the run's problems
        raise UserError(
            f"cannot write to {one_line(args.output, PATH_LIMIT)}: {error.strerror or error}"
        ) from None
    return run.report()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("predict", __doc__)
    add_detector(parser)
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input", nargs="+", metavar="PATH", help="pictures, globs, folders, videos"
    )
    inputs.add_argument(
        "--webcam",
        nargs="?",
        const="0",
        metavar="N",
        help="number of a camera (0), or a stream's address",
    )
    add_output(parser, "DIR", "where all goes", default="output/predict")
    parser.add_argument(
        "--json", action="store_true", help="write predictions.json and images.json"
    )
    parser.add_argument("--cutouts", action="store_true", help="write each object alone, as PNG")
    parser.add_argument("--show", action="store_true", help="show the pictures in a window; Q ends")
    parser.add_argument(
        "--score-threshold",
        default=0.5,
        type=SCORE,
        metavar="S",
        help="take what scores at least this (%(default)s)",
    )
    parser.add_argument(
        "--batch-size", default=1, type=COUNT, metavar="N", help="run so many of one size together"
    )
    return parser.parse_intermixed_args(arguments)


def require_window() -> None:
    """Raises a UserError if no window can be opened."""
    if re.search(r"GUI: +NONE", cv2.getBuildInformation()):
        raise UserError(
            "--show: this OpenCV opens no windows; install opencv-python in place of opencv-python-headless, or leave "
            "--show out"
        )
    # In a process of its own: without a display, OpenCV may end the process.
    if subprocess.run(
        [sys.executable, "-c", "import cv2; cv2.namedWindow('')"], capture_output=True
    ).returncode:
        raise UserError("--show: there is no display to open a window on; leave --show out")


def target_of(source: Source, output: Path) -> Path:
    kinds = {".mp4"} if source.is_video else {".jpg", ".jpeg", ".png"}
    kept = Path(source.name).suffix.lower() in kinds
    return output / (source.name if kept else source.name + (".mp4" if source.is_video else ".png"))


def check_targets(sources: list[Source], args: argparse.Namespace) -> None:
    """Raises a UserError if a file would be overwritten, before anything is written."""
    targets = [target_of(source, args.output) for source in sources]
    if args.json:
        targets += [args.output / "predictions.json", args.output / "images.json"]
    if args.cutouts:
        targets += [args.output / "cutouts" / source.name for source in sources]
    seen: set[Path] = {Path(source.path).resolve() for source in sources}
    for target in targets:
        if target.resolve() in seen:
            raise UserError(
                f"{target} is an input, or would be written twice; give another --output, or run in parts"
            )
        seen.add(target.resolve())
    refuse_to_replace(targets, args.overwrite)


class Run:
    """Takes pictures and videos through the detector, writes all that is wanted, and keeps count. A context."""

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        self.predictor, self.args = predictor, args
        for module in (
            predictor.model.modules()
        ):  # so that masks, of the picture's size, are made of the others only
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = max(module.test_score_thresh, args.score_threshold)
        self.counts = Counter(dict.fromkeys(("picture", "frame", "object"), 0))
        self.problems: list[str] = []
        self.stopped, self.exit_code = False, 0
        self.cutouts: defaultdict[Path, set[str]] = defaultdict(
            set
        )  # folder -> names that were written
        make_folder(args.output)
        self.results = ResultsWriter(args.output, predictor.classes) if args.json else None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.results:
            self.results.close()

    def stop(self, number: int, _: object) -> None:
        """On a signal, what has been read is finished; for a camera, that is how it ends."""
        self.stopped = True
        self.exit_code = 0 if self.args.webcam else 128 + number

    def pictures(self, sources: list[Source]) -> None:
        bar = tqdm(sources, unit="picture", disable=None)
        numbers = {source: number for number, source in enumerate(sources, start=1)}
        for picture, instances in self.detect(self.read(bar)):
            drawn = draw_predictions(picture.image, instances, self.predictor.classes)
            target = target_of(picture.source, self.args.output)
            save_image(target, drawn)
            self.counts["picture"] += 1
            if bar.disable:
                number = f"{numbers[picture.source]}/{len(sources)}"
                found = f"{picture.source.path}: {counted(len(instances), 'object')}"
                print(one_line(f"[{number}] {found} -> {target}", LINE_LIMIT), flush=True)
            self.show(drawn, hold=True)

    def read(self, sources: Iterable[Source]) -> Iterator[InputImage]:
        for source in sources:
            if self.stopped:
                return
            try:
                image = read_image(source.path)
            except UserError as error:
                self.problems.append(str(error))
            else:
                yield InputImage(source, image)

    def video(self, source: Source) -> None:
        try:
            reader = VideoReader(source.path)
        except UserError as error:
            self.problems.append(str(error))
            return
        before = self.counts.copy()
        target = target_of(source, self.args.output)
        with VideoWriter(target, reader.fps) as writer:
            for picture, instances in self.detect(self.frames(source, reader)):
                drawn = draw_predictions(
                    picture.image, instances, self.predictor.classes, resize=False
                )
                writer.write(drawn)
                self.counts["frame"] += 1
                self.show(drawn, hold=False)
        if self.args.cutouts:
            self.forget_old_cutouts(source)
        if writer.written and not sys.stderr.isatty():
            new = self.counts - before
            found = f"{counted(new['object'], 'object')} in {counted(new['frame'], 'frame')}"
            print(one_line(f"{source.path}: {found} -> {target}", LINE_LIMIT))

    def frames(self, source: Source, reader: VideoReader) -> Iterator[InputImage]:
        bar = tqdm(
            reader, desc=one_line(source.name), total=reader.frames, unit="frame", disable=None
        )
        try:
            for number, image in enumerate(bar):
                yield InputImage(source, image, number)
                if self.stopped:
                    return
        except (
            UserError
        ) as error:  # not one that the detector could see, which has earlier frames to finish
            self.problems.append(str(error))

    def detect(self, pictures: Iterable[InputImage]) -> Iterator[tuple[InputImage, Instances]]:
        """What is found in each picture, after it went to all outputs but the drawn one."""
        waiting: deque[InputImage] = deque()

        def images() -> Iterator[np.ndarray]:
            for picture in pictures:
                waiting.append(picture)
                yield picture.image

        for instances in self.predictor.stream(images(), self.args.batch_size):
            if not isinstance(instances, Instances):
                raise UserError(
                    f"{self.predictor.path} is no detector, whose objects could be drawn"
                )
            picture = waiting.popleft()
            instances = instances[instances.scores >= self.args.score_threshold]
            self.counts["object"] += len(instances)
            if self.results:
                self.results.add(picture, instances)
            if self.args.cutouts:
                self.cut_out(picture, instances)
            yield picture, instances

    def cut_out(self, picture: InputImage, instances: Instances) -> None:
        folder = self.args.output / "cutouts" / picture.source.name
        frame = "" if picture.frame is None else f"frame_{picture.frame:06}_"
        for i, rgba in enumerate(cut_outs(picture.image, instances)):
            name = cut(re.sub(r"[^\w-]+", "-", self.predictor.classes[instances.pred_classes[i]]))
            if rgba.size:  # a mask may be empty
                path = folder / f"{frame}{i + 1:03}_{name}_{100 * instances.scores[i]:.0f}.png"
                save_image(path, rgba)
                self.cutouts[folder].add(path.name)
        if picture.frame is None:
            self.forget_old_cutouts(picture.source)

    def forget_old_cutouts(self, source: Source) -> None:
        """Removes what --overwrite replaces, once the new ones are there."""
        folder = self.args.output / "cutouts" / source.name
        written = self.cutouts.pop(folder, set())
        for path in folder.glob("*.png"):
            if path.name not in written and CUTOUT.fullmatch(path.name):
                path.unlink()
        with contextlib.suppress(OSError):  # there is none, or it has files
            folder.rmdir()

    def show(self, drawn: np.ndarray, *, hold: bool) -> None:
        """In a window; args: hold: until a key is pressed."""
        if not self.args.show or self.stopped:
            return
        cv2.imshow("GPViT", drawn[..., ::-1])
        key = cv2.waitKey(1)
        while (
            hold
            and key < 0
            and not self.stopped
            and cv2.getWindowProperty("GPViT", cv2.WND_PROP_VISIBLE) > 0
        ):
            key = cv2.waitKey(50)
        self.stopped |= key in map(ord, "qQ")

    def report(self) -> int:
        """Says what was done; the exit code."""
        done = ", ".join(
            counted(number, what)
            for what, number in self.counts.items()
            if number or what == "object"
        )
        print(f"{done} -> {one_line(self.args.output, PATH_LIMIT)}")
        if self.problems:
            print(
                f"error: {counted(len(self.problems), 'input')} cannot be used, or not whole:",
                file=sys.stderr,
            )
            print(*(f"  {problem}" for problem in self.problems), sep="\n", file=sys.stderr)
        return self.exit_code or (1 if self.problems else 0)


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
