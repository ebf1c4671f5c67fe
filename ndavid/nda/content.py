"""What clips show, apart from colours that were drawn for each of their frames anew.

Where they were, the pixels of two equal frames differ, and a still in another order looks like a
negative. The data then say which cells of which frames are equal, and ops move those cells about as
they move the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# What is added to the ids of cells that an op overwrote: hardly ever another cell's id.
_NEW = 0x1E3779B97F4A7C15


class Content(NamedTuple):
    """What a batch of clips shows."""

    cells: Tensor
    """int64 (B, 1, T, g, g): ids of the cells of a grid, equal where their pixels were equal before
    the colours; g divides the height and the width of the clips."""
    uncoloured: Tensor
    """(B, C, T, h, w): the clips before the colours, smaller, in the units of the clips."""


def cell_side(content: Content, shape: Sequence[int]) -> int:
    """Pixels of a cell's side, in clips of ``shape``."""
    return shape[-1] // content.cells.shape[-1]


def crop_cells(cells: Tensor, shape: Sequence[int], side: int) -> Tensor:
    """Cells (B, C, T, g, g) without those that lie beyond clips of ``shape``."""
    frames, height, width = shape[2:]
    return cells[:, :, :frames, : -(-height // side), : -(-width // side)]


def overwritten(cells: Tensor, changed: Tensor, side: int) -> Tensor:
    """New ids for cells (B, C, T, g, g) in which pixels ``changed``, bool (B, T, H, W)."""
    touched = F.max_pool2d(changed.to(cells.device).float(), side, ceil_mode=True) > 0
    return torch.where(touched.unsqueeze(1), cells + _NEW, cells)


def at_pixels(cells: Tensor, side: int, like: Tensor) -> Tensor:
    """What holds of cells (..., g, g) of ``side`` pixels, for pixels (..., H, W) of ``like``."""
    height, width = like.shape[-2:]
    spread = cells.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
    return spread[..., :height, :width]
