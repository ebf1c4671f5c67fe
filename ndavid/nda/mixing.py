"""Ops that mix two samples of the batch: Stitch, Mixup, CutMix, TemporalStitch.

Negative Data Augmentation (Sinha et al., ICLR 2021); mixup is Zhang et al. (ICLR 2018) and CutMix
Yun et al. (ICCV 2019), both used here to make negatives instead of positives. TemporalStitch is
Stitch along time.

The official code takes partners from a permutation of the batch that merely differs from the
identity: about one sample a batch meets itself and enters as a clean "negative". Here a partner is
always another sample. ``legacy=True`` brings those fixed points back, only for comparing with
numbers made that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ndavid.nda import permutation
from ndavid.nda.base import (
    NegativeAugmentation,
    Params,
    ShapeError,
    mask_shape,
    num_frames,
)
from ndavid.nda.boxes import box_mask, box_weights, paste_box_, scaled_frames
from ndavid.nda.cells import CellGrid, cells_to_pixels, fitted_shape, move_cells


@dataclass(frozen=True)
class _Mixing(NegativeAugmentation):
    """What the mixing ops share: a partner for each sample, ``params["partner"]`` ``(B,)``."""

    needs_partner: ClassVar[bool] = True
    acts_on: ClassVar[frozenset[str]] = frozenset({"sample"})

    def apply_to_content(
        self, cells: Tensor, params: Params, shape: Sequence[int], side: int
    ) -> Tensor:
        """A cell shows nothing new where the partner shows the same, which all lend in place."""
        partner = params["partner"].to(cells.device)
        after = super().apply_to_content(cells, params, shape, side)
        return torch.where(cells.index_select(0, partner) == cells, cells, after)

    def _partners(self, batch: int, generator: torch.Generator, legacy: bool) -> Tensor:
        if legacy:
            return permutation.non_identity(1, batch, generator)[0]
        return permutation.partners(batch, generator)

    def _has_partner(self, params: Params) -> Tensor:
        """False only for the fixed points that legacy draws let through: bool ``(B,)``."""
        partner = params["partner"]
        return partner != torch.arange(len(partner), device=partner.device)


@dataclass(frozen=True)
class Stitch(_Mixing):
    """Join the top (or left) half of each sample to the bottom (or right) half of another.

    Args:
        per_frame: a new choice of axis in every frame of a clip; the partner stays.
        legacy: partners with the official code's fixed points.

    Params:
        ``partner`` int64 ``(B,)``; ``axis`` int64 ``(B, 1 or T)``: 0 replaces the bottom half, 1
        the right one.

    Raises ``ShapeError`` for a batch of one, or a height or width that is odd.

    Differences from the official op: the axis is drawn per sample, not per batch.
    """

    name: ClassVar[str] = "stitch"

    per_frame: bool = False
    legacy: bool = False

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        fitted_shape(self.name, shape, CellGrid(1, 2, 2), crop=False)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        frames = num_frames(shape) if self.per_frame else 1
        axis = torch.randint(2, (shape[0], frames), generator=generator)
        return {"partner": self._partners(shape[0], generator, self.legacy), "axis": axis}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        partner, axis = params["partner"], params["axis"]
        batch, frames = axis.shape
        own = torch.arange(batch * frames * 4, device=x.device).view(batch, frames, 4)
        shift = (partner - torch.arange(batch, device=x.device)) * (frames * 4)
        source = torch.addcmul(own, _quarters(axis), shift.view(-1, 1, 1))
        return move_cells(x, source, CellGrid(frames, 2, 2))

    def moved_patch(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[-2] // 2, shape[-1] // 2

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        axis = params["axis"]
        replaced = _quarters(axis).bool() & self._has_partner(params).view(-1, 1, 1)
        return cells_to_pixels(replaced, CellGrid(axis.shape[1], 2, 2), shape)


@dataclass(frozen=True)
class Mixup(_Mixing):
    """Blend each sample with another one, in every pixel.

    Args:
        alpha: the share of the sample is drawn from Beta(alpha, alpha). The paper's 25 keeps it
            near one half (standard deviation 0.07): neither picture wins.
        min_share: each picture's least share; matters for small alpha only.
        legacy: partners with the official code's fixed points.

    Params:
        ``partner`` int64 ``(B,)``; ``share`` float32 ``(B,)``: the sample's own share.

    Differences from the official op: the share is drawn per sample, not per batch.
    """

    name: ClassVar[str] = "mixup"

    alpha: float = 25.0
    min_share: float = 0.1
    legacy: bool = False

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError("mixup: alpha must be positive")
        if not 0 < self.min_share <= 0.5:
            raise ValueError("mixup: needs 0 < min_share <= 0.5")

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        share = _beta(shape[0], self.alpha, generator)
        share = share.clamp_(self.min_share, 1 - self.min_share).float()
        return {"partner": self._partners(shape[0], generator, self.legacy), "share": share}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        share = params["share"].view(-1, *[1] * (x.dim() - 1))
        mixed = x.index_select(0, params["partner"])
        if x.is_floating_point():
            return mixed.lerp_(x, share.to(x.dtype))
        return torch.lerp(mixed.float(), x.float(), share).round_().to(x.dtype)

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        changed = self._has_partner(params).view(-1, *[1] * (len(shape) - 2))
        return changed.expand(mask_shape(shape))


@dataclass(frozen=True)
class CutMix(_Mixing):
    """Paste a box of another sample into each sample, at the same place.

    Args:
        beta: the box's area is ``min_area + (max_area - min_area) * Beta(beta, beta)``, as a share
            of the frame; 1 is uniform, the paper's.
        min_area, max_area: bounds of the replaced share, which hold to the pixel. Their mean, 0.3,
            is what the official code replaces on average.
        per_frame: a new box in every frame of a clip; the partner stays.
        legacy: partners with the official code's fixed points.

    Params:
        ``partner`` int64 ``(B,)``; ``box`` int64 ``(B, 1 or T, 4)``: top, left, bottom, right.

    The box has the frame's aspect ratio, up to whole pixels.

    Differences from the official op: one box a sample, not one a batch; it lies within the frame
    instead of being clipped at its border, where 7.7% of the official draws replace less than 5%.
    """

    name: ClassVar[str] = "cut_mix"

    beta: float = 1.0
    min_area: float = 0.1
    max_area: float = 0.5
    per_frame: bool = False
    legacy: bool = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError("cut_mix: beta must be positive")
        if not 0 < self.min_area <= self.max_area < 1:
            raise ValueError("cut_mix: needs 0 < min_area <= max_area < 1")

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        if not len(scaled_frames((shape[-2], shape[-1]), self.min_area, self.max_area)):
            raise ShapeError(
                f"cut_mix: no box of whole pixels covers {self.min_area:g} to {self.max_area:g} of "
                f"{shape[-2]}x{shape[-1]} pixels; widen min_area and max_area"
            )

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        frames = num_frames(shape) if self.per_frame else 1
        sizes = scaled_frames((shape[-2], shape[-1]), self.min_area, self.max_area)
        area = _beta(shape[0] * frames, self.beta, generator)
        area = self.min_area + (self.max_area - self.min_area) * area
        box = sizes.place(sizes.nearest(area).view(shape[0], frames), generator)
        return {"partner": self._partners(shape[0], generator, self.legacy), "box": box}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        other = x.index_select(0, params["partner"])
        return paste_box_(x, other, box_weights(params["box"], x.shape))

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        changed = self._has_partner(params).view(-1, *[1] * (len(shape) - 2))
        return box_mask(params["box"], shape) & changed


@dataclass(frozen=True)
class TemporalStitch(_Mixing):
    """Continue the first half of each clip with the second half of another.

    Each half is real motion; the cut between them, and what they show together, is not. An odd
    number of frames leaves the longer part to the partner.

    Args:
        legacy: partners with the official code's fixed points.

    Params:
        ``partner`` int64 ``(B,)``.
    """

    name: ClassVar[str] = "temporal_stitch"
    clips_only: ClassVar[bool] = True

    legacy: bool = False

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        if shape[2] < 2:
            raise ShapeError("temporal_stitch: a clip of 1 frame has no halves; use longer clips")

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        return {"partner": self._partners(shape[0], generator, self.legacy)}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        batch, frames = x.shape[0], x.shape[2]
        frame = torch.arange(frames, device=x.device)
        sample = torch.arange(batch, device=x.device).view(-1, 1)
        sample = torch.where(frame < frames // 2, sample, params["partner"].view(-1, 1))
        return move_cells(x, sample * frames + frame, CellGrid(frames, 1, 1))

    def moved_patch(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[-2], shape[-1]

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        replaced = torch.arange(shape[2], device=params["partner"].device) >= shape[2] // 2
        changed = replaced & self._has_partner(params).view(-1, 1)
        return cells_to_pixels(changed, CellGrid(shape[2], 1, 1), shape)


def _quarters(axis: Tensor) -> Tensor:
    """1 for the quarters that are replaced (axis 0: the lower, 1: the right two), else 0."""
    # Quarters count 00, 01, 10, 11: the first bit says lower, the second right.
    return (torch.arange(4, device=axis.device) >> (1 - axis.unsqueeze(-1))) & 1


def _beta(count: int, concentration: float, generator: torch.Generator) -> Tensor:
    """Draws from Beta(concentration, concentration): float64 ``(count,)``."""
    if concentration == 1:
        return torch.rand(count, dtype=torch.float64, generator=generator)
    # torch.distributions.Beta draws the same way, but takes no generator.
    both = torch.full((count, 2), concentration, dtype=torch.float64)
    return torch._sample_dirichlet(both, generator=generator)[:, 0]
