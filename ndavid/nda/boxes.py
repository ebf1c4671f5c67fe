"""Boxes within a frame: where they lie, which pixels they hold, and putting something in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ndavid.nda.base import is_clip, mask_shape


def draw_origins(sides: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Top and left of boxes with the given ``sides`` ``(..., 2)``, uniform within the frame."""
    room = torch.tensor(tuple(size)) + 1 - sides
    u = torch.rand(sides.shape, dtype=torch.float64, generator=generator)
    return (u * room).long()


def box_weights(box: Tensor, shape: Sequence[int]) -> Tensor:
    """1.0 inside the box, 0.0 outside: ``(B, 1, H, W)``, for clips ``(B, 1, 1 or T, H, W)``."""
    rows, columns = _sides_inside(box, shape)
    inside = rows.float().unsqueeze(-1) * columns.float().unsqueeze(-2)
    return inside.unsqueeze(1) if is_clip(shape) else inside


def mask_of(box: Tensor, shape: Sequence[int]) -> Tensor:
    """The box as a changed mask: bool ``(B, T, H, W)`` or ``(B, H, W)``."""
    rows, columns = _sides_inside(box, shape)
    inside = rows.unsqueeze(-1) & columns.unsqueeze(-2)
    return (inside if is_clip(shape) else inside.squeeze(1)).expand(mask_shape(shape))


def blend(inside: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """``inside`` where the weights are 1 and ``x`` where they are 0, both exactly.

    On the CPU ``torch.where`` works through a mask pixel by pixel; ``lerp`` is vectorised, some ten
    times faster, and exact at its two ends for all finite values.
    """
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return torch.lerp(x, inside.expand_as(x), weights.to(x.dtype))
    return torch.where(weights > 0, inside, x)


def _sides_inside(box: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which rows ``(B, F, H)`` and columns ``(B, F, W)`` each box covers."""
    top, left, bottom, right = box.unsqueeze(-1).unbind(2)
    row = torch.arange(shape[-2], device=box.device)
    column = torch.arange(shape[-1], device=box.device)
    return (row >= top) & (row < bottom), (column >= left) & (column < right)
