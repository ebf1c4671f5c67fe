"""Boxes within a frame: drawing them, which pixels they hold, and putting something in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ndavid.nda.base import is_clip, mask_shape


class BoxSizes:
    """The box sizes that an op may draw in frames of one size, smallest first.

    Listing them keeps every bound to the pixel and makes a draw two look-ups.

    Args:
        sizes: ``(height, width)`` of each box.
        frame: ``(H, W)``.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], frame: tuple[int, int]) -> None:
        self.sizes = torch.tensor(sizes).view(-1, 2)
        self._room = torch.tensor(frame) + 1 - self.sizes
        area = self.sizes.prod(1, dtype=torch.float64) / (frame[0] * frame[1])
        self._between = (area[1:] + area[:-1]) / 2

    def __len__(self) -> int:
        return len(self.sizes)

    def nearest(self, area: Tensor) -> Tensor:
        """Index of the size whose share of the frame is nearest to each ``area``."""
        return torch.bucketize(area, self._between)

    def place(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Boxes of the indexed sizes, uniform within the frame.

        Returns:
            int64 ``(*index.shape, 4)``: top, left, bottom, right.
        """
        room = self._room[index]
        u = torch.rand(room.shape, dtype=torch.float64, generator=generator)
        corner = (u * room).long()
        return torch.cat((corner, corner + self.sizes[index]), -1)


@functools.lru_cache(maxsize=32)
def squares(frame: tuple[int, int], smallest: int, largest: int) -> BoxSizes:
    """Squares with sides of ``smallest`` to ``largest`` pixels."""
    return BoxSizes([(side, side) for side in range(smallest, largest + 1)], frame)


@functools.lru_cache(maxsize=32)
def scaled_frames(frame: tuple[int, int], min_area: float, max_area: float) -> BoxSizes:
    """Boxes of the frame's aspect ratio, up to whole pixels, with an area within the bounds."""
    height, width = frame
    sizes = [(tall, max(1, round(tall * width / height))) for tall in range(1, height + 1)]
    pixels = height * width
    return BoxSizes([s for s in sizes if min_area <= s[0] * s[1] / pixels <= max_area], frame)


def box_mask(box: Tensor, shape: Sequence[int]) -> Tensor:
    """Which pixels each box holds, as a changed mask: bool ``(B, T, H, W)`` or ``(B, H, W)``."""
    rows, columns = _covered(box, shape)
    inside = rows.unsqueeze(-1) & columns.unsqueeze(-2)
    return (inside if is_clip(shape) else inside.squeeze(1)).expand(mask_shape(shape))


def box_weights(box: Tensor, shape: Sequence[int]) -> Tensor:
    """1.0 inside the box, 0.0 outside: ``(B, 1, H, W)``, for clips ``(B, 1, 1 or T, H, W)``."""
    rows, columns = _covered(box, shape)
    inside = rows.float().unsqueeze(-1) * columns.float().unsqueeze(-2)
    return inside.unsqueeze(1) if is_clip(shape) else inside


def fill_box(x: Tensor, fill: Tensor, weights: Tensor) -> Tensor:
    """``x`` with ``fill`` (any shape that broadcasts to it) where the weights are 1."""
    if _lerp_is_faster(x):
        return torch.lerp(x, fill.to(x.dtype).expand_as(x), weights.to(x.dtype))
    return torch.where(weights > 0, fill.to(x.dtype), x)


def paste_box_(x: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """``x`` with ``other`` where the weights are 1; ``other`` may be overwritten."""
    if _lerp_is_faster(x):
        return other.lerp_(x, 1 - weights.to(x.dtype))
    return torch.where(weights > 0, other, x)


def _lerp_is_faster(x: Tensor) -> bool:
    """Whether to select with ``lerp``, which is exact at weights 0 and 1 for all finite values.

    On the CPU ``torch.where`` goes through its mask pixel by pixel; ``lerp`` is vectorised there,
    some ten times faster.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _covered(box: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which rows ``(B, F, H)`` and columns ``(B, F, W)`` each box covers."""
    height, width = shape[-2:]
    low, high = box[..., :2, None], box[..., 2:, None]
    # |2p + 1 - (low + high)| < high - low is low <= p < high, in fewer steps for both axes at once.
    odd = torch.arange(1, 2 * max(height, width), 2, device=box.device)
    inside = (odd - (low + high)).abs_() < high - low
    return inside[..., 0, :height], inside[..., 1, :width]
