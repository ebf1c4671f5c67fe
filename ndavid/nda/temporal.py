"""Ops that break the order of frames: FrameShuffle, TemporalJigsaw, FrameRepeat, Reverse.

FrameShuffle and Reverse go back to Shuffle and Learn (Misra et al., ECCV 2016) and the arrow of
time (Wei et al., CVPR 2018), where a wrong order is a class to tell; here it is a negative.
FrameRepeat and ``TemporalJigsaw(segments=4, swap=2)`` are the two intra-negatives of IIC:
Self-supervised Video Representation Learning Using Inter-intra Contrastive Framework (Tao et al.,
ACM MM 2020). CuboidJigsaw cuts along space and time at once.

Identical frames are the limit of every one of them: a shuffled still is a still, and a clip that
repeats itself may be put into the very order that it had. ``broken`` finds such samples by
comparing; ``min_motion`` finds those, too, that move a little. Where every frame has colours of its
own, both go by what the clips show (``ndavid.nda.content``).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ndavid.nda import permutation
from ndavid.nda.base import NegativeAugmentation, Params, ShapeError
from ndavid.nda.cells import CellGrid, cells_to_pixels, crop_to, fitted_shape, move_cells, pair


def motion(x: Tensor) -> Tensor:
    """How much each clip moves, in its own contrast: float32 ``(B,)``.

    The mean absolute difference of neighbouring frames, over all channels and pixels, divided by
    the standard deviation of the whole clip. 0 for a still, about 1.13 for white noise; the unit
    cancels, so uint8 and normalised clips give the same.

    UCF101 clips of 170x128 pixels, 16 frames at stride 3 (61 videos measured): median 0.11, a
    twentieth below 0.017. So 0.02 is a cautious ``min_motion``.

    Args:
        x: clips ``(B, C, T, H, W)``.
    """
    x = x.float()
    difference = x.diff(dim=2).abs_().mean(dim=(1, 2, 3, 4))
    contrast = x.std(dim=(1, 2, 3, 4), correction=0)
    return difference / contrast.clamp_min(torch.finfo(torch.float32).tiny)


class _FrameOrder(NegativeAugmentation):
    """What the frame ops share: every frame of the output is some frame of the input.

    Args:
        min_motion: flag samples that move less than this (see ``motion``; 0 flags none) in
            ``params["static"]`` ``(B,)``, which leaves them out of the changed mask. They are
            broken all the same: the flag says that the result is no negative, not that it is the
            input.

    Params:
        ``source`` int64 ``(B, T)``: the input frame that each output frame shows.
    """

    clips_only: ClassVar[bool] = True
    acts_on: ClassVar[frozenset[str]] = frozenset({"time"})

    min_motion: float

    def __post_init__(self) -> None:
        if self.min_motion < 0:
            raise ValueError(f"{self.name}: min_motion must not be negative")

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        if shape[2] < 2:
            raise ShapeError(
                f"{self.name}: a clip of 1 frame has only one order; use at least 2 frames"
            )

    def flag(self, x: Tensor, params: Params) -> Params:
        params = super().flag(x, params)
        if not self.min_motion:
            return params
        return {**params, "static": motion(x) < self.min_motion}

    @abc.abstractmethod
    def _source(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """The source frame of each output frame: int64 ``(batch, frames)``."""

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        frames = self.output_shape(shape)[2]
        return {"source": self._source(shape[0], frames, generator)}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        source = params["source"]
        batch, frames = source.shape
        x = crop_to(x, (*x.shape[:2], frames, *x.shape[3:]))
        home = torch.arange(0, batch * frames, frames, device=x.device).view(-1, 1)
        return move_cells(x, source + home, CellGrid(frames, 1, 1))

    def moved_patch(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[-2], shape[-1]

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        source = params["source"]
        moved = source != torch.arange(source.shape[1], device=source.device)
        return cells_to_pixels(moved, CellGrid(source.shape[1], 1, 1), self.output_shape(shape))


@dataclass(frozen=True)
class FrameShuffle(_FrameOrder):
    """Put the frames of each clip in a random order, uniform over all but the true one.

    Args:
        min_motion: flag samples that move less than this, in units of ``motion``; 0 flags none.
    """

    name: ClassVar[str] = "frame_shuffle"

    min_motion: float = 0.0

    def _source(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        return permutation.non_identity(batch, frames, generator)


@dataclass(frozen=True)
class TemporalJigsaw(_FrameOrder):
    """Cut each clip into segments of equal length and change their order.

    Args:
        segments: how many; the number of frames must be a multiple of it.
        swap: how many segments change place; 0 draws from all orders but the true one. 2 of 4 is
            IIC's shuffle.
        crop: cut off trailing frames that the segments do not divide, instead of raising.
        min_motion: flag samples that move less than this, in units of ``motion``; 0 flags none.
    """

    name: ClassVar[str] = "temporal_jigsaw"

    segments: int = 4
    swap: int = 0
    crop: bool = False
    min_motion: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 2:
            raise ValueError("temporal_jigsaw: needs at least 2 segments")
        if self.swap and not 2 <= self.swap <= self.segments:
            raise ValueError(f"temporal_jigsaw: swap is 0 or 2 to {self.segments}")

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        self.output_shape(shape)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return fitted_shape(self.name, shape, CellGrid(self.segments, 1, 1), crop=self.crop)

    def _source(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        if self.swap:
            order = permutation.partial_derangements(batch, self.segments, self.swap, generator)
        else:
            order = permutation.non_identity(batch, self.segments, generator)
        length = frames // self.segments
        return (order.unsqueeze(-1) * length + torch.arange(length)).view(batch, frames)


@dataclass(frozen=True)
class FrameRepeat(_FrameOrder):
    """Freeze each clip on one of its frames, drawn uniformly: appearance without motion.

    Args:
        min_motion: flag samples that move less than this, in units of ``motion``; 0 flags none.
    """

    name: ClassVar[str] = "frame_repeat"

    min_motion: float = 0.0

    def _source(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        frame = torch.randint(frames, (batch, 1), generator=generator)
        return frame.repeat(1, frames)


@dataclass(frozen=True)
class Reverse(_FrameOrder):
    """Play each clip backwards.

    Of an odd number of frames the middle one stays. Motion that looks the same both ways (a swing,
    a near-still) makes a poor negative: see ``min_motion``.

    Args:
        min_motion: flag samples that move less than this, in units of ``motion``; 0 flags none.
    """

    name: ClassVar[str] = "reverse"

    min_motion: float = 0.0

    def _source(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        return torch.arange(frames - 1, -1, -1).repeat(batch, 1)


@dataclass(frozen=True)
class CuboidJigsaw(NegativeAugmentation):
    """Cut each clip into cuboids along time, height and width and change their order.

    Args:
        grid: patches along height and width, one number or ``(rows, cols)``.
        segments: parts along time.
        derangement: leave no cuboid in its place.
        crop: cut off trailing frames, rows and columns that the cuts do not divide, instead of
            raising. The output is then smaller than the input.

    Params:
        ``permutation`` int64 ``(B, segments * rows * cols)``: the source of each cuboid.
    """

    name: ClassVar[str] = "cuboid_jigsaw"
    clips_only: ClassVar[bool] = True
    acts_on: ClassVar[frozenset[str]] = frozenset({"space", "time"})

    grid: int | tuple[int, int] = 2
    segments: int = 2
    derangement: bool = False
    crop: bool = False

    def __post_init__(self) -> None:
        if min(self._cells) < 1 or self._cells.cells < 2:
            raise ValueError("cuboid_jigsaw: needs at least 2 cuboids; raise grid or segments")

    @property
    def _cells(self) -> CellGrid:
        return CellGrid(self.segments, *pair(self.grid))

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        self.output_shape(shape)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return fitted_shape(self.name, shape, self._cells, crop=self.crop)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        draw = permutation.derangements if self.derangement else permutation.non_identity
        return {"permutation": draw(shape[0], self._cells.cells, generator)}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        order = params["permutation"]
        home = torch.arange(0, order.numel(), order.shape[1], device=order.device).view(-1, 1)
        x = crop_to(x, self.output_shape(x.shape))
        return move_cells(x, order + home, self._cells)

    def moved_patch(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[-2] // self._cells.rows, shape[-1] // self._cells.cols

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        order = params["permutation"]
        moved = order != torch.arange(order.shape[1], device=order.device)
        return cells_to_pixels(moved, self._cells, self.output_shape(shape))
