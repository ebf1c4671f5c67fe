"""Which way up a picture is shown: the display matrix that cameras and editors write into a file.

The matrix (ISO 14496-12, 6.2.2; FFmpeg's `av_display_matrix`) has nine numbers, (a, b, u, c, d, v,
x, y, w), in 16.16 fixed point. A stored pixel (p, q), with q counted downwards, is shown at
(a p + c q + x, b p + d q + y). The sign of its determinant tells a mirrored picture from a turned
one, which its angle alone does not.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Orientation:
    """What turns stored frames into those that players show, one of eight.

    Attributes:
        mirrored: left and right change places; done first.
        turns: counter-clockwise quarter turns after that, 0 to 3.
    """

    mirrored: bool = False
    turns: int = 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) as shown of a frame that is stored as `height` by `width`."""
        return (width, height) if self.turns % 2 else (height, width)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """A view of a stored picture (H, W, C) as players show it."""
        if self.mirrored:
            picture = picture[:, ::-1]
        return np.rot90(picture, self.turns) if self.turns else picture


def from_matrix(matrix: bytes) -> Orientation:
    """The orientation that a display matrix of nine native 32-bit integers asks for.

    Angles between quarters occur in no file we know; they are rounded. A matrix that squeezes the
    picture into nothing is no wish that can be granted: the picture stays as stored.
    """
    if len(matrix) != 36:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    determinant = a * d - b * c
    if determinant == 0:
        return Orientation()
    # The turn that is left once the mirroring, which negates the matrix's first column, is undone.
    mirrored = determinant < 0
    across, down = (-a, -b) if mirrored else (a, b)
    return Orientation(mirrored, round(math.atan2(-down, across) / (math.pi / 2)) % 4)
