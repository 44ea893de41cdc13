"""Reading videos and cameras, and writing videos, frame by frame with OpenCV."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.paths import utf8_path

DEFAULT_FPS = 25.0  # if a video or a camera does not specify it
MISSING = 0.05  # accepted fraction of missing frames: some files only estimate their number

# OpenCV and its decoders would print warnings; what matters is raised as an error here.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoReader:
    """Iterates over the frames of a video.

    Args:
        source: a file, an address that OpenCV opens (rtsp://...), or the number of a camera.

    Attributes:
        fps: frames per second, from the metadata.
        frames: number of frames, from the metadata; None for a camera.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        if source.isdecimal():
            self._capture = cv2.VideoCapture(int(source))
        else:
            with utf8_path(source) as path:
                self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened() and source.isdecimal():
            raise UserError(
                f"camera {source}: cannot be opened; check that it is connected, not in use and "
                "that you may access it"
            )
        if not self._capture.isOpened():
            raise UserError(
                f"{source}: cannot be opened as a video; check it, or convert it to MP4"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # OpenCV returns 0, negative or huge values if the metadata is missing.
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        self.frames = int(frames) if 0 < frames < 2**31 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, (H, W, 3), RGB, uint8, upright.

        Raises:
            UserError: no frame can be read, the size changes, or the video ends well before the
                number of frames in its metadata.
        """
        read, size = 0, None
        while True:
            success, frame = self._capture.read()
            if not success:
                break
            size = size or frame.shape
            if frame.shape != size:
                raise UserError(
                    f"{self.source}: the size changes after {read} frames; convert it to one size"
                )
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read += 1
        if not read:
            raise UserError(f"{self.source}: no frame can be read; check it, or convert it to MP4")
        if self.frames is not None and self.frames - read > max(2, MISSING * self.frames):
            raise UserError(
                f"{self.source}: breaks off after {read} of {self.frames} frames; the results "
                "until then are kept"
            )


class VideoWriter:
    """A context manager that writes an MP4 file, which replaces an existing one atomically.

    Args:
        path: of the file, which is opened with the first frame.
        fps: frames per second.

    Raises:
        UserError: it cannot be written, or is incomplete at the end; an existing file is unchanged.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.written = 0
        self._writer: cv2.VideoWriter | None = None
        self._file, self._partial = contextlib.ExitStack(), path

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3), RGB, uint8, of the same size as the others; the last row or column of
                an odd size is cut off.
        """
        if self._writer is None:
            self._writer = self._open(frame.shape[1], frame.shape[0])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.written += 1

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        with contextlib.ExitStack() as file:
            self._partial = file.enter_context(atomic_write(self.path))
            # MPEG-4 Part 2 is in every package of OpenCV; an H.264 encoder is not.
            path = file.enter_context(utf8_path(self._partial))
            writer = cv2.VideoWriter(
                path, cv2.VideoWriter.fourcc(*"mp4v"), self.fps, (width, height)
            )
            if not writer.isOpened():
                raise UserError(
                    f"cannot write {self.path}: OpenCV cannot create this file ({width} x {height} "
                    "pixels)"
                )
            self._file = file.pop_all()
        return writer

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV reports no error if the disk is full. So count the frames in the file.
        with utf8_path(self._partial) as path:
            frames = max(0, cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))
        try:
            with self._file:  # replaces the file unless an error is raised inside
                if frames != self.written:
                    raise UserError(
                        f"{self.path} would hold {frames:.0f} of {self.written} frames; is the "
                        "disk full?"
                    )
        except UserError:
            if error is None:  # do not hide the original error
                raise
