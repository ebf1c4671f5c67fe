"""Breaking the blocks of a clip on purpose, and knowing which cells of them are really broken.

Two spans. ``block`` lays the blocks side by side as channels, so that one draw acts inside every
block alike; ``clip`` joins them in time, so that frames may move from block to block.

A dense model encodes every block by itself. A cell that shows what another block shows there would
therefore be encoded to a true target, the row's own positive as likely as not. `without_repeats`
takes such cells out, draw by draw; `refuse_whole_block_moves` refuses early the operations that
make little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.nda.base import NegativeAugmentation, Params, cropped_like
from ndavid.nda.content import Content, at_pixels, cell_side

Span = Literal["block", "clip"]

_JOIN = {"block": "b n c t h w -> b (n c) t h w", "clip": "b n c t h w -> b c (n t) h w"}
_SPLIT = {"block": "b (n c) t h w -> b n c t h w", "clip": "b c (n t) h w -> b n c t h w"}


class BrokenBlocks(NamedTuple):
    """Broken copies of the blocks of B samples, K draws each, draws first."""

    blocks: Tensor
    """(K * B, N, C, T, H, W)"""
    changed: Tensor
    """(K * B, N, H, W) float: the share of the block's frames that changed at each pixel; 0 in
    blocks that barely move (``min_motion``) or came out as they went in."""
    differs: Tensor
    """bool (K * B, N, H, W): pixels that came out of some frame not as they went in. The operation
    may have moved what looks the same everywhere: frames of a still background. Cells that show
    the same in other colours count as the same, if the blocks' content is known."""
    partner: Tensor
    """(K * B,) index of the sample that lent content, -1 where none did."""
    cells: Tensor | None = None
    """int64 (K * B, N, 1, T, g, g): what the broken blocks show, as in `Content`, if known."""


def break_blocks(
    operation: NegativeAugmentation,
    blocks: Tensor,
    *,
    span: Span,
    draws: int,
    generator: torch.Generator | None,
    content: Content | None = None,
) -> BrokenBlocks:
    """Applies ``operation`` to blocks (B, N, C, T, H, W), ``draws`` times independently.

    Each draw sees the batch as it is (rather than the batch repeated), so that a partner is never
    another copy of the sample itself. Raises what the operation raises on shapes it cannot take.

    ``content`` is that of the blocks, with a dimension N as theirs: cells (B, N, 1, T, g, g),
    uncoloured (B, N, C, T, h, w). It is needed where every frame has colours of its own.
    """
    outputs = [_break_once(operation, blocks, span, generator, content) for _ in range(draws)]
    *parts, cells = zip(*outputs, strict=True)
    shown = None if content is None else torch.cat(cells)
    return BrokenBlocks._make([*map(torch.cat, parts), shown])


def changed_cells(
    changed: Tensor, differs: Tensor, grid: tuple[int, int], min_changed: float
) -> Tensor:
    """Which cells are negatives: bool (B, N, h, w).

    A cell stands for its own patch of pixels; what a wide receptive field sees beside it is not
    counted.

    Args:
        changed: (B, N, H, W) shares, as in `BrokenBlocks`.
        differs: bool (B, N, H, W), likewise.
        grid: (h, w).
        min_changed: the least share of a cell that must have changed. Of such cells those count in
            which some pixel differs; at 0 all cells count, untouched ones too.
    """
    shares = F.adaptive_avg_pool2d(changed, grid)
    # A half that the mean rounds to 0.49999997 is still a half.
    enough = shares >= min_changed - 1e-4
    if not min_changed:
        return enough
    return enough & (F.adaptive_max_pool2d(differs.to(changed.dtype), grid) > 0)


def without_repeats(
    broken: BrokenBlocks, blocks: Tensor, content: Content | None = None
) -> BrokenBlocks:
    """Counts as changed only what differs from every block (B, N, C, T, H, W) of its own sample.

    For blocks that are encoded one by one and were broken with ``span="clip"``, which may put the
    cell of one block, all its frames, into the same cell of another. The pixels themselves are
    compared, so that a clip that repeats itself (a loop, a still background) is found out too; and
    what their cells show, given the ``content`` of the blocks, as `break_blocks` had it. A pixel's
    share of changed frames is the least over all blocks.
    """
    frames, height, width = broken.blocks.shape[-3:]
    after = rearrange(broken.blocks, "(k b) n c t h w -> k b n c t h w", b=len(blocks))
    changed = broken.changed
    for shift in range(blocks.shape[1]):
        before = blocks.roll(shift, dims=1)[..., :frames, :height, :width]
        differs = (after != before).any(dim=3)
        if content is not None and broken.cells is not None:
            shown = rearrange(broken.cells, "(k b) n c t h w -> k b n c t h w", b=len(blocks))
            unlike = shown != cropped_like(content.cells.roll(shift, dims=1), shown[0])
            differs &= at_pixels(unlike.any(dim=3), cell_side(content, blocks.shape), differs)
        share = reduce(differs.float(), "k b n t h w -> (k b) n h w", "mean")
        changed = torch.minimum(changed, share)
    return broken._replace(changed=changed)


def refuse_whole_block_moves(
    operation: NegativeAugmentation, spec: str, *, num_blocks: int, block_len: int
) -> None:
    """ConfigError if, across blocks, ``operation`` puts a whole block where another one was.

    `without_repeats` would take those blocks out, and little or nothing would be left.

    Found by trying: the operation breaks a clip whose pixels are all different, and every output
    block is compared with every other input block of its sample.
    """
    generator = torch.Generator().manual_seed(0)
    for height in _PROBE_SIZES:
        shape = (4, num_blocks, 1, block_len, height, height)
        blocks = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
        try:
            # Several draws, for operations that choose between alternatives.
            broken = break_blocks(operation, blocks, span="clip", draws=4, generator=generator)
        except ValueError:
            continue  # a grid that does not divide this size; the real one is not known yet
        if _moves_whole_blocks(blocks.repeat(4, 1, 1, 1, 1, 1), broken.blocks):
            raise ConfigError(
                f"nda.spec {spec!r} with nda.span=clip moves whole blocks of {block_len} frames; "
                "blocks are encoded one by one, so the broken clip would hold the positive itself. "
                "Use nda.span=block, an operation that also reorders within blocks, or "
                "nda.where=context, where order does matter"
            )
        return


# Together they are divided by every grid up to 16.
_PROBE_SIZES = (48, 60, 56, 36, 44, 52)


def _moves_whole_blocks(before: Tensor, after: Tensor) -> bool:
    num_blocks = before.shape[1]
    for shift in range(1, num_blocks):
        same = after == before.roll(shift, dims=1)
        if bool(same.flatten(start_dim=2).all(dim=2).any()):
            return True
    return False


def _break_once(
    operation: NegativeAugmentation,
    blocks: Tensor,
    span: Span,
    generator: torch.Generator | None,
    content: Content | None,
) -> BrokenBlocks:
    """One draw for blocks (B, N, C, T, H, W)."""
    clips, num_blocks = rearrange(blocks, _JOIN[span]), blocks.shape[1]
    # Pixels are no activations: autocast would round what an operation computes, such as a mean.
    with torch.autocast(clips.device.type, enabled=False):
        params = operation.sample(clips.shape, generator)
        broken = operation.apply(clips, params)
        if span == "clip" and broken.shape[2] != clips.shape[2]:
            raise ConfigError(
                f"{operation.name} crops {clips.shape[2]} frames to {broken.shape[2]}, which are "
                f"no longer {num_blocks} blocks: use span=block, or lengths that it divides"
            )
        broken = rearrange(broken, _SPLIT[span], n=num_blocks)
        changed = _changed(operation, params, blocks, span, content)
    differs = (broken != cropped_like(blocks, broken)).any(dim=2).any(dim=2)
    cells = None
    if content is not None:
        side = cell_side(content, blocks.shape)
        joined = rearrange(content.cells, _JOIN[span])
        cells = operation.apply_to_content(joined, params, clips.shape, side)
        cells = rearrange(cells, _SPLIT[span], n=num_blocks)
        unlike = (cells != cropped_like(content.cells, cells)).any(dim=2).any(dim=2)
        differs &= at_pixels(unlike, side, differs)
    changed = changed * differs.flatten(2).any(2)[..., None, None]
    partner = _partner(params, len(blocks)).to(blocks.device)
    return BrokenBlocks(broken, changed, differs, partner, cells)


def _changed(
    operation: NegativeAugmentation,
    params: Params,
    blocks: Tensor,
    span: Span,
    content: Content | None,
) -> Tensor:
    """The share of changed frames (B, N, H, W) that the operation reports for one draw."""
    num_blocks = blocks.shape[1]
    # One draw acts in every block, but a still block may lie in a clip that moves: with span=block
    # each is flagged by its own motion.
    units = _units(blocks, span)
    # Motion is not that of colours.
    seen = units if content is None else _units(content.uncoloured, span)
    masks = [
        operation.changed_mask(operation.flag(shown, params), unit.shape).to(blocks.device)
        for unit, shown in zip(units, seen, strict=True)
    ]
    # Blocks follow one another in time either way.
    joined = torch.cat(masks, dim=1).float()
    return reduce(joined, "b (n t) h w -> b n h w", "mean", n=num_blocks)


def _units(blocks: Tensor, span: Span) -> Sequence[Tensor]:
    """Each block by itself, or all as one clip."""
    return blocks.unbind(1) if span == "block" else (rearrange(blocks, _JOIN[span]),)


def _partner(params: Params, batch: int) -> Tensor:
    """Whom each sample borrowed from, -1 for nobody: (B,).

    Combined operations keep the parameters of their i-th part under "i."; a part that a sample did
    not choose lent it nothing. A sequence holds one mixing operation at most.
    """
    partner = torch.full((batch,), -1)
    for key, lender in params.items():
        *path, name = key.split(".")
        if name != "partner":
            continue
        for depth, part in enumerate(path):
            choice = params.get(".".join([*path[:depth], "choice"]))
            if choice is not None:
                lender = torch.where(choice == int(part), lender, -1)
        partner = torch.maximum(partner.to(lender.device), lender)
    return partner
