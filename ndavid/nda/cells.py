"""A batch as a grid of equal cells, moved about with one gather.

Jigsaws, stitches and every reordering of frames are the same thing: each cell of the output is some
cell of the input, of the same sample or of another. Only the index differs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor

from ndavid.nda.base import ShapeError, is_clip, mask_shape, num_frames


class CellGrid(NamedTuple):
    """How many cells a sample is cut into along time, height and width."""

    segments: int
    rows: int
    cols: int

    @property
    def cells(self) -> int:
        return self.segments * self.rows * self.cols


def pair(grid: int | tuple[int, int]) -> tuple[int, int]:
    """``(rows, cols)`` of a grid that may be given as one number."""
    return (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])


def fitted_shape(name: str, shape: Sequence[int], grid: CellGrid, *, crop: bool) -> tuple[int, ...]:
    """The part of ``shape`` that the grid divides: trailing frames, rows and columns are cut off.

    Raises:
        ShapeError: the grid does not divide the sizes and ``crop`` is False, or a cell would be
            empty.
    """
    sizes = (num_frames(shape), *shape[-2:])
    for what, size, parts in zip(("frames", "height", "width"), sizes, grid, strict=True):
        if size < parts:
            raise ShapeError(f"{name}: {what} {size} cannot be cut into {parts} parts")
        if size % parts and not crop:
            raise ShapeError(
                f"{name}: {what} {size} is not divisible into {parts} equal parts; choose a grid "
                "that divides it, or resize the input, or pass crop=True where the op has it"
            )
    fitted = [size - size % parts for size, parts in zip(sizes, grid, strict=True)]
    return (*shape[:2], *(fitted if is_clip(shape) else fitted[1:]))


def crop_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` without its trailing frames, rows and columns beyond ``shape``."""
    if tuple(x.shape) == tuple(shape):
        return x
    x = x[..., : shape[-2], : shape[-1]]
    return x[:, :, : shape[2]] if is_clip(shape) else x


def move_cells(x: Tensor, source: Tensor, grid: CellGrid) -> Tensor:
    """Fill each cell of the output with the cell of the input that ``source`` names.

    Args:
        x: ``(B, C, T, H, W)`` or ``(B, C, H, W)``, divisible by the grid.
        source: int64 with ``B * grid.cells`` elements in (sample, segment, row, column) order,
            each an index into that same order.
    """
    geometry = _geometry(tuple(x.shape), grid)
    build = _offsets.__wrapped__ if torch.compiler.is_compiling() else _offsets
    first, within, channel = build(geometry, x.device)
    batch, segments, rows, cols = x.shape[0], *grid
    lines = first.index_select(0, source.reshape(-1)).view(batch, segments, 1, rows, 1, cols)
    lines = (lines + within).view(batch, 1, geometry.lines) + channel
    return x.reshape(-1, geometry.run).index_select(0, lines.view(-1)).view(x.shape)


def cells_to_pixels(cells: Tensor, grid: CellGrid, shape: Sequence[int]) -> Tensor:
    """Spread a value per cell over its pixels: ``(B, cells)`` to the shape of a changed mask."""
    segments, rows, cols = grid
    spread = repeat(
        cells.reshape(shape[0], grid.cells),
        "b (s r c) -> b (s t) (r h) (c w)",
        s=segments,
        r=rows,
        c=cols,
        t=num_frames(shape) // segments,
        h=shape[-2] // rows,
        w=shape[-1] // cols,
    )
    return spread.view(mask_shape(shape))


class _Geometry(NamedTuple):
    """A batch as lines: the longest runs of pixels that lie together in memory and in one cell."""

    batch: int
    channels: int
    grid: CellGrid
    cell_frames: int  # lines of a cell along time
    cell_lines: int  # lines of a cell along height
    lines: int  # lines of one channel of one sample
    run: int  # pixels of one line


def _geometry(shape: tuple[int, ...], grid: CellGrid) -> _Geometry:
    frames, (height, width) = num_frames(shape), shape[-2:]
    cell_frames, cell_lines, run = frames // grid.segments, height // grid.rows, width // grid.cols
    if grid.cols == 1:
        cell_lines, run = 1, cell_lines * run
        if grid.rows == 1:
            cell_frames, run = 1, cell_frames * run
    lines = grid.cells * cell_frames * cell_lines
    return _Geometry(shape[0], shape[1], grid, cell_frames, cell_lines, lines, run)


@functools.lru_cache(maxsize=32)
def _offsets(g: _Geometry, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where lines lie: first line of each cell, lines within a cell, lines of each channel.

    Constants of a shape, kept because building them costs as much as moving a small batch.
    """
    segments, rows, cols = g.grid
    with torch.inference_mode(False):
        sample = torch.arange(g.batch, device=device).view(-1, 1, 1, 1) * (g.channels * g.lines)
        segment = torch.arange(segments, device=device).view(-1, 1, 1) * (g.lines // segments)
        row = torch.arange(rows, device=device).view(-1, 1) * (g.cell_lines * cols)
        first = (sample + segment + row + torch.arange(cols, device=device)).view(-1)
        frame = torch.arange(g.cell_frames, device=device) * (rows * g.cell_lines * cols)
        line = torch.arange(g.cell_lines, device=device) * cols
        within = frame.view(-1, 1, 1, 1) + line.view(1, 1, -1, 1)
        channel = (torch.arange(g.channels, device=device) * g.lines).view(-1, 1)
    return first, within, channel
