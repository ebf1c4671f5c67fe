"""What a clip shows, apart from colours that are drawn for every frame anew.

Such colours make two frames of a still differ, and no method can tell afterwards that they are the
same. So the worker, which has seen the clip before its colours, sends two small things along:
``content``, by which equal cells of frames are found, and ``uncoloured``, by which motion is.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels of a cell's side, about; DPC's own cells are twice as long.
_CELL = 16
# Pixels of an uncoloured frame's side, about: motion is a mean, for which a sample will do.
_SMALL = 32
# Bytes of a word. Not 8: a change in the highest byte alone would reach the highest byte alone of
# the sum, and be lost once in 256 times.
_WORD = 4
_FRAMES = 8


class ClipContent(NamedTuple):
    """What one clip of T frames shows."""

    content: Tensor
    """int64 (T, g, g): two cells of a size have equal ids if and (but once in billions) only if
    their pixels are equal, in whatever frame, place or clip."""
    uncoloured: Tensor
    """uint8 (T, C, s, s): every so many-th pixel"""


def content_of(clip: Tensor) -> ClipContent:
    """The content of square frames, uint8 (T, C, size, size), as they are before their colours."""
    stride = max(1, clip.shape[-1] // _SMALL)
    small = clip[..., stride // 2 :: stride, stride // 2 :: stride]
    return ClipContent(_cell_ids(clip), small)


def _cell_ids(clip: Tensor) -> Tensor:
    """Sums of all words of a cell, each times a number of its own, modulo 2**64."""
    # A few frames at a time, whose words stay in the cache.
    return torch.cat([_ids_of_frames(frames) for frames in clip.split(_FRAMES)])


def _ids_of_frames(clip: Tensor) -> Tensor:
    frames, channels, size, _ = clip.shape
    cell = _cell_side(size)
    grid = size // cell
    # A copy, as words must begin where memory allows it.
    cells = clip.clone(memory_format=torch.contiguous_format)
    cells = cells.view(frames, channels, grid, cell, grid, cell)
    if cell % _WORD:
        cells = F.pad(cells, (0, -cell % _WORD))
    words = cells.view(torch.int32).long()
    # Sums along whole lines first, which is several times as fast.
    lines = words.flatten(-2).mul_(_weights(channels, cell, grid)).sum(dim=3).sum(dim=1)
    return lines.view(frames, grid, grid, -1).sum(dim=-1)


def _cell_side(size: int) -> int:
    """The shortest side that divides ``size`` and is at least `_CELL`, or ``size``."""
    return next(side for side in range(min(_CELL, size), size + 1) if size % side == 0)


@functools.lru_cache(maxsize=8)
def _weights(channels: int, cell: int, grid: int) -> Tensor:
    """Odd numbers, drawn once and for all, alike for the cells of a line: (C, 1, cell, words)."""
    generator = torch.Generator().manual_seed(0)
    words = -(-cell // _WORD)
    weights = torch.randint(2**62, (channels, 1, cell, 1, words), generator=generator)
    return (2 * weights + 1).expand(-1, -1, -1, grid, -1).flatten(-2)
