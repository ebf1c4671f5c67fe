"""A few samples as a method sees them, beside what it makes of them as negatives: for pictures.

A method that breaks its samples has

    broken_samples(batch, *, generator) -> BrokenSamples | None

which draws as a training step does and runs no network: nothing of the method changes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ndavid.models.normalize import Normalize


class BrokenSamples(NamedTuple):
    """B samples before and after the operation, pixels float in [0, 1] up to rounding."""

    before: Tensor
    """(B, C, H, W) or (B, C, T, H, W)"""
    after: Tensor
    """the same; smaller where the operation crops"""
    used: Tensor
    """(B,) bool: False where the method takes the sample for unchanged, and masks it"""
    note: str
    """which part of a sample is shown, in words"""


def as_pixels(normalized: Tensor, normalize: Normalize) -> Tensor:
    """Undoes ``normalize``: float pixels (B, C, [T,] H, W) in [0, 1] where they were before."""
    shape = (len(normalize.scale), *[1] * (normalized.ndim - 2))
    return (normalized - normalize.shift.view(shape)) / normalize.scale.view(shape)
