"""Ops that break the layout of a frame: Jigsaw, Cutout, PatchResample.

Jigsaw and Cutout: Negative Data Augmentation (Sinha et al., ICLR 2021). PatchResample: Robust
Contrastive Learning Using Negative Samples with Diminished Semantics (Ge et al., NeurIPS 2021).

On clips all frames of a sample share one draw, unless ``per_frame=True``: a layout that changes
from frame to frame flickers, and telling flicker from video needs no idea of structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ndavid.nda import permutation
from ndavid.nda.base import (
    NegativeAugmentation,
    Params,
    ShapeError,
    is_clip,
    mask_shape,
    num_frames,
)
from ndavid.nda.boxes import box_mask, box_weights, fill_box, squares
from ndavid.nda.cells import CellGrid, cells_to_pixels, crop_to, fitted_shape, move_cells, pair


@dataclass(frozen=True)
class Jigsaw(NegativeAugmentation):
    """Cut each frame into a grid of patches and put them back in another order.

    Args:
        grid: patches along height and width, one number or ``(rows, cols)``. The paper's is 2.
        derangement: leave no patch in its place. Of the 23 non-identity orders of a 2x2 grid, 14
            keep at least one patch; dense losses want none, or the changed mask.
        crop: cut off trailing rows and columns that the grid does not divide, instead of raising.
            The output is then smaller than the input.
        per_frame: a new order in every frame of a clip.
        legacy: the official code's orders, **leak included**: it merges the patches transposed, so
            that 1 of its 23 orders for a 2x2 grid gives back the clean image as a "negative".
            Only for comparing with numbers made that way.

    Params:
        ``permutation`` int64 ``(B, cells)``, or ``(B, T, cells)`` per frame: the source patch of
        each patch, row by row.

    Differences from the official op: uniform over the orders that really change the picture; any
    grid; indivisible sizes raise instead of failing inside a stack.
    """

    name: ClassVar[str] = "jigsaw"
    acts_on: ClassVar[frozenset[str]] = frozenset({"space"})

    grid: int | tuple[int, int] = 2
    derangement: bool = False
    crop: bool = False
    per_frame: bool = False
    legacy: bool = False

    def __post_init__(self) -> None:
        rows, cols = pair(self.grid)
        if min(rows, cols) < 1 or rows * cols < 2:
            raise ValueError(f"jigsaw: a {rows}x{cols} grid has nothing to swap; use 2 or (1, 2)")
        if self.legacy and (rows != cols or self.derangement):
            raise ValueError("jigsaw: legacy has square grids only and knows no derangement")

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        fitted_shape(self.name, shape, self._cells(1), crop=self.crop)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return fitted_shape(self.name, shape, self._cells(1), crop=self.crop)

    def _cells(self, segments: int) -> CellGrid:
        return CellGrid(segments, *pair(self.grid))

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        frames = (num_frames(shape),) if self.per_frame and is_clip(shape) else ()
        count, cells = shape[0] * (frames[0] if frames else 1), self._cells(1).cells
        draw = permutation.derangements if self.derangement else permutation.non_identity
        order = draw(count, cells, generator)
        if self.legacy:
            side = self._cells(1).rows
            order = order.view(-1, side, side).transpose(1, 2)
        return {"permutation": order.reshape(shape[0], *frames, cells)}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        order = params["permutation"]
        draws = order.numel() // order.shape[-1]
        home = torch.arange(0, order.numel(), order.shape[-1], device=order.device)
        source = order.reshape(draws, -1) + home.view(-1, 1)
        x = crop_to(x, self.output_shape(x.shape))
        return move_cells(x, source, self._cells(draws // x.shape[0]))

    def moved_patch(self, shape: Sequence[int]) -> tuple[int, int]:
        rows, cols = pair(self.grid)
        return shape[-2] // rows, shape[-1] // cols

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        order = params["permutation"]
        moved = order != torch.arange(order.shape[-1], device=order.device)
        grid = self._cells(order.shape[1] if order.dim() == 3 else 1)
        return cells_to_pixels(moved, grid, self.output_shape(shape))


@dataclass(frozen=True)
class Cutout(NegativeAugmentation):
    """Blot out a square of each frame.

    Args:
        fill: what goes into the square, per channel and frame: the ``mean`` of what it covers (the
            official code's), ``zero``, or Gaussian ``noise`` with the mean and standard deviation
            of what it covers.
        min_side, max_side: bounds of the square's side, as shares of the frame's shorter side. The
            defaults give 10 to 19 pixels on 32, the official code's sizes.
        per_frame: a new square in every frame of a clip.

    Params:
        ``box`` int64 ``(B, 1 or T, 4)``: top, left, bottom, right; ``noise`` ``(B, C, 1 or T, s,
        s)`` of unit variance where ``fill="noise"``, ``s`` being the largest side.

    A square over constant content stays as it is under ``mean`` and ``noise``.

    Differences from the official op: sizes are relative, so it works beyond 32 pixels; the square
    lies within the frame.
    """

    name: ClassVar[str] = "cutout"
    acts_on: ClassVar[frozenset[str]] = frozenset({"value"})

    fill: Literal["mean", "zero", "noise"] = "mean"
    min_side: float = 0.31
    max_side: float = 0.6
    per_frame: bool = False

    def __post_init__(self) -> None:
        if self.fill not in ("mean", "zero", "noise"):
            raise ValueError(f"cutout: fill is mean, zero or noise, not {self.fill!r}")
        if not 0 < self.min_side <= self.max_side <= 1:
            raise ValueError("cutout: needs 0 < min_side <= max_side <= 1")

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        _sides(self.name, shape, self.min_side, self.max_side)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        frames = num_frames(shape) if self.per_frame else 1
        low, high = _sides(self.name, shape, self.min_side, self.max_side)
        sizes = squares((shape[-2], shape[-1]), low, high)
        index = torch.randint(len(sizes), (shape[0], frames), generator=generator)
        params = {"box": sizes.place(index, generator)}
        if self.fill == "noise":
            size = (shape[0], shape[1], frames, high, high)
            params["noise"] = torch.randn(size, generator=generator)
        return params

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        box = params["box"]
        inside = box_weights(box, x.shape)
        if self.fill == "zero":
            return fill_box(x, x.new_zeros(()), inside)
        values = x if x.dtype in (torch.float32, torch.float64) else x.float()
        mean = _box_mean(values, box, inside)
        if self.fill == "mean":
            return fill_box(x, _like(mean, x), inside)
        deviation = _box_mean((values - mean).square_(), box, inside).sqrt()
        noise = _tiled(params["noise"], x.shape)
        return fill_box(x, _like(mean + deviation * noise, x), inside)

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        return box_mask(params["box"], shape)


@dataclass(frozen=True)
class PatchResample(NegativeAugmentation):
    """Tile each frame with square patches taken from random places of that same frame.

    Keeps the texture and destroys the layout; patches repeat and overlap, unlike in a jigsaw. Ge et
    al. report that this beats permuting an image's own patches as a negative.

    Args:
        min_side, max_side: bounds of the patches' side, as shares of the frame's shorter side, one
            side a sample. The defaults are the paper's 16 to 72 pixels on 224.
        per_frame: new patches in every frame of a clip.

    Params:
        ``side`` int64 ``(B,)``; ``origin`` int64 ``(B, 1 or T, tiles)``: the source corner of each
        tile as ``top * W + left``, tiles row by row, more than needed where the side is large.

    Differences from the paper: no tile shows its own place, so every pixel comes from elsewhere.
    Sides are multiples of a unit, the largest divisor of the width that is not above the smallest
    side (16 on 224: sides 16, 32, 48, 64), so that whole runs of pixels move at once.
    """

    name: ClassVar[str] = "patch_resample"
    acts_on: ClassVar[frozenset[str]] = frozenset({"space"})

    min_side: float = 16 / 224
    max_side: float = 72 / 224
    per_frame: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= self.max_side < 1:
            raise ValueError("patch_resample: needs 0 < min_side <= max_side < 1")

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        self._tiling(shape)

    def _tiling(self, shape: Sequence[int]) -> _Tiling:
        height, width = shape[-2:]
        low, high = _sides(self.name, shape, self.min_side, self.max_side)
        unit = next(size for size in range(low, 0, -1) if width % size == 0)
        low, high = -(-low // unit), high // unit
        if low > high or high * unit >= min(height, width):
            raise ShapeError(
                f"patch_resample: frames of {height}x{width} have no patch side between "
                f"{self.min_side:g} and {self.max_side:g} of the shorter side that is a multiple "
                f"of {unit} pixels; widen min_side and max_side, or resize the input"
            )
        return _Tiling(unit, low, high, -(-height // (low * unit)), -(-width // (low * unit)))

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        frames = num_frames(shape) if self.per_frame else 1
        height, width = shape[-2:]
        tiling = self._tiling(shape)
        side = torch.randint(tiling.low, tiling.high + 1, (shape[0],), generator=generator)
        side = side * tiling.unit
        pixels = side.view(-1, 1, 1, 1)
        own_top = torch.arange(tiling.down).view(-1, 1) * pixels
        own_left = torch.arange(tiling.across) * pixels
        # Places a patch of this side may come from, without the tile's own one if it is among them.
        tops, lefts = height + 1 - pixels, width + 1 - pixels
        has_own = (own_top < tops) & (own_left < lefts)
        u = torch.rand(
            (shape[0], frames, tiling.down, tiling.across),
            dtype=torch.float64,
            generator=generator,
        )
        place = (u * (tops * lefts - has_own.long())).long()
        place += has_own & (place >= own_top * lefts + own_left)
        origin = place // lefts * width + place % lefts
        return {"side": side, "origin": origin.flatten(2)}

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        batch, (height, width) = x.shape[0], x.shape[-2:]
        tiling = self._tiling(x.shape)
        side, origin = params["side"].view(-1, 1, 1, 1), params["origin"]
        frames = origin.shape[1]
        origin = origin.view(batch, frames, tiling.down, tiling.across)
        # Where each run of ``unit`` pixels comes from: along a row of tiles, then down the frame.
        column = torch.arange(0, width, tiling.unit, device=x.device)
        across = (column // side).expand(batch, frames, tiling.down, len(column))
        strips = origin.gather(3, across) + column % side
        row = torch.arange(height, device=x.device).view(-1, 1)
        down = (row // side).expand(batch, frames, height, len(column))
        runs = strips.gather(2, down).add_(row % side * width)
        planes = torch.arange(0, x.numel(), height * width, device=x.device)
        planes = planes.view(batch, x.shape[1], -1, 1)
        starts = runs.view(batch, 1, frames, -1) + planes
        windows = x.reshape(-1).unfold(0, tiling.unit, 1)
        return windows.index_select(0, starts.view(-1)).view(x.shape)

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        return torch.ones(mask_shape(shape), dtype=torch.bool, device=params["side"].device)


class _Tiling(NamedTuple):
    """How PatchResample cuts a frame: sides are ``unit`` times ``low`` to ``high``."""

    unit: int  # pixels
    low: int
    high: int
    down: int  # tiles, at the smallest side
    across: int


def _sides(name: str, shape: Sequence[int], low: float, high: float) -> tuple[int, int]:
    """Whole pixels within the relative bounds of a square's side."""
    short = min(shape[-2:])
    # The margin keeps 0.1 * 30 = 3.0000000000000004 from rounding up to 4.
    smallest, largest = max(1, -int(-(low * short - 1e-9) // 1)), int(high * short + 1e-9)
    if smallest > largest:
        raise ShapeError(
            f"{name}: no whole number of pixels lies between {low:g} and {high:g} of {short}; "
            "widen min_side and max_side"
        )
    return smallest, largest


def _box_mean(values: Tensor, box: Tensor, inside: Tensor) -> Tensor:
    """Mean of each frame's box: ``(B, C, 1, 1)`` or ``(B, C, T, 1, 1)``."""
    batch, frames = box.shape[:2]
    area = (box[..., 2:] - box[..., :2]).prod(-1)
    total = (values * inside.to(values.dtype)).sum((-2, -1))
    if is_clip(values.shape):
        area = area.view(batch, 1, frames)
    return (total / area)[..., None, None]


def _like(values: Tensor, x: Tensor) -> Tensor:
    """``values`` in the dtype of ``x``; whole and within 0 to 255 for uint8."""
    if not x.is_floating_point():
        values = values.round().clamp(torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
    return values.to(x.dtype)


def _tiled(noise: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat a noise tile over the frame: no box is larger than the tile, so none sees a seam."""
    side, (height, width) = noise.shape[-1], shape[-2:]
    row = torch.arange(height, device=noise.device) % side
    column = torch.arange(width, device=noise.device) % side
    tiled = noise[..., row.view(-1, 1), column]
    return tiled if is_clip(shape) else tiled.squeeze(2)
