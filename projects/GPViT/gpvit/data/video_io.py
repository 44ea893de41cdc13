"""Videos and cameras, frame by frame, by OpenCV."""

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

DEFAULT_FPS = 25.0  # where a video or a camera does not say
MISSING = 0.05  # of the frames that a file says it has: some only estimate it

# What OpenCV and its decoders would write to the terminal; what matters is an error here.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoReader:
    """Frames of a video, one after the other.

    Args:
        source: a file, an address that OpenCV opens (rtsp://...), or the number of a camera.

    Attributes:
        fps: frames a second, as the video says.
        frames: how many it says it has; None of a camera.

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
                f"camera {source}: cannot be opened; is it there, unused, and may it be read?"
            )
        if not self._capture.isOpened():
            raise UserError(
                f"{source}: cannot be opened as a video; check it, or convert it to MP4"
            )
        fps, frames = (
            self._capture.get(cv2.CAP_PROP_FPS),
            self._capture.get(cv2.CAP_PROP_FRAME_COUNT),
        )
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        self.frames = int(frames) if 0 < frames < 2**31 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3), RGB, uint8, upright.

        Raises:
            UserError: not one can be read, the size changes, or the video ends well before it says it does.
        """
        read, size = 0, None
        while True:
            good, frame = self._capture.read()
            if not good:
                break
            size = size or frame.shape
            if frame.shape != size:
                raise UserError(
                    f"{self.source}: the size changes after {read} frames; convert it to one size"
                )
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read += 1
        if not read:
            raise UserError(f"{self.source}: gives no picture; check it, or convert it to MP4")
        if self.frames is not None and self.frames - read > max(2, MISSING * self.frames):
            raise UserError(
                f"{self.source}: breaks off after {read} of {self.frames} frames; what was read is kept"
            )


class VideoWriter:
    """Writes an MP4 file; a context, at whose end it takes the place of one that was there.

    Args:
        path: of the file, which is opened with the first frame.
        fps: frames a second.

    Raises:
        UserError: it cannot be written, or is not whole at the end; the old one is intact.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.written = 0
        self._writer: cv2.VideoWriter | None = None
        self._file, self._partial = contextlib.ExitStack(), path

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frame: np.ndarray) -> None:
        """Args: frame: (H, W, 3), RGB, uint8, all of one size; an odd last row or column is cut off."""
        if self._writer is None:
            self._writer = self._open(frame.shape[1], frame.shape[0])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.written += 1

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        with contextlib.ExitStack() as file:
            self._partial = file.enter_context(atomic_write(self.path))
            # MPEG-4 Part 2: what OpenCV's packages bring along; for H.264 they have no encoder.
            path = file.enter_context(utf8_path(self._partial))
            writer = cv2.VideoWriter(
                path, cv2.VideoWriter.fourcc(*"mp4v"), self.fps, (width, height)
            )
            if not writer.isOpened():
                raise UserError(
                    f"cannot write {self.path}: OpenCV cannot make this file ({width} x {height} pixels)"
                )
            self._file = file.pop_all()
        return writer

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV does not say when the disk is full.
        with utf8_path(self._partial) as path:
            frames = max(0, cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))
        try:
            with self._file:
                if frames != self.written:
                    raise UserError(
                        f"{self.path} would hold {frames:.0f} of {self.written} frames; is the disk full?"
                    )
        except UserError:
            if error is None:  # else that is what is to be told
                raise
