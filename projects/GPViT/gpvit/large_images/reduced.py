"""Reduced versions of images that are read in parts."""

import itertools
from typing import Any

import cv2
import numpy as np

WINDOW = 2048  # pixels of the image that are read at once, in each direction


def read_reduced(pixels: Any, scale: float) -> np.ndarray:
    """Read an image at a scale of at most 1, in parts of about WINDOW x WINDOW pixels."""
    height, width = pixels.shape[:2]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    result = np.empty((*size, 3), np.uint8)
    # A part has at least one pixel of the result.
    y_edges = edges(size[0], min(size[0], -(-height // WINDOW)))
    x_edges = edges(size[1], min(size[1], -(-width // WINDOW)))
    for top, bottom in itertools.pairwise(y_edges):
        for left, right in itertools.pairwise(x_edges):
            rows = slice(round(top * height / size[0]), round(bottom * height / size[0]))
            columns = slice(round(left * width / size[1]), round(right * width / size[1]))
            part = np.ascontiguousarray(pixels[rows, columns])
            part = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
            result[top:bottom, left:right] = part
    return result


def edges(length: int, parts: int) -> np.ndarray:
    """Divide a length into nearly equal parts of whole pixels: (parts + 1,), from 0 to length."""
    return np.arange(parts + 1) * length // parts
