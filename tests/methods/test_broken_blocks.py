"""Breaking blocks: what acts where, what is reported as changed, and what is refused."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ndavid import nda
from ndavid.errors import ConfigError
from ndavid.methods.broken_blocks import (
    break_blocks,
    changed_cells,
    refuse_whole_block_moves,
    without_repeats,
)
from ndavid.nda.base import NegativeAugmentation


class BorrowLeft(NegativeAugmentation):
    """Each clip's left half becomes that of the next clip of the batch."""

    name: ClassVar[str] = "borrow_left"
    needs_partner: ClassVar[bool] = True
    acts_on: ClassVar[frozenset[str]] = frozenset({"sample"})

    def _draw(self, shape, generator) -> dict[str, Tensor]:
        return {"partner": torch.arange(shape[0]).roll(-1)}

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        half = x.shape[-1] // 2
        lent = x[params["partner"]]
        return torch.cat([lent[..., :half], x[..., half:]], dim=-1)

    def changed_mask(self, params: dict[str, Tensor], shape) -> Tensor:
        mask = torch.zeros(shape[0], *shape[2:], dtype=torch.bool)
        mask[..., : shape[-1] // 2] = True
        return mask


class RollFrames(NegativeAugmentation):
    """Frames move on by ``by``; those that fall out come in again at the start."""

    name: ClassVar[str] = "roll_frames"
    acts_on: ClassVar[frozenset[str]] = frozenset({"time"})

    def __init__(self, by: int) -> None:
        self.by = by

    def _draw(self, shape, generator) -> dict[str, Tensor]:
        return {}

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x.roll(self.by, dims=2)

    def changed_mask(self, params: dict[str, Tensor], shape) -> Tensor:
        return torch.ones(shape[0], *shape[2:], dtype=torch.bool)


class MirrorByMatrix(RollFrames):
    """Left and right change sides, by a matrix product: what autocast would do in bfloat16."""

    def __init__(self) -> None:
        super().__init__(0)

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x @ torch.eye(x.shape[-1]).flip(0)


def distinct_blocks(batch=3, num_blocks=4, channels=2, block_len=5, size=8) -> Tensor:
    shape = (batch, num_blocks, channels, block_len, size, size)
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def constant_blocks() -> Tensor:
    """Four clips, each of one value of its own: 10, 20, 30 and 40."""
    return 10.0 * torch.arange(1, 5).reshape(4, 1, 1, 1, 1, 1).expand(4, 2, 3, 6, 16, 16)


def break_with(operation, blocks: Tensor, span="block", draws=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return break_blocks(operation, blocks, span=span, draws=draws, generator=generator)


def test_span_block_acts_inside_every_block_alike() -> None:
    blocks = distinct_blocks()
    broken = break_with(nda.FrameShuffle(), blocks).blocks
    for sample in range(len(blocks)):
        # The order of the frames, read off each block by looking its frames up.
        orders = [
            [
                next(t for t in range(5) if torch.equal(frame, blocks[sample, n, :, t]))
                for frame in broken[sample, n].unbind(1)
            ]
            for n in range(4)
        ]
        assert sorted(orders[0]) == list(range(5)) and orders[0] != list(range(5))
        assert all(order == orders[0] for order in orders)


def test_span_clip_moves_frames_between_blocks() -> None:
    blocks = distinct_blocks()
    broken = break_with(RollFrames(1), blocks, span="clip").blocks
    assert torch.equal(broken[:, 1, :, 0], blocks[:, 0, :, 4])
    assert torch.equal(broken[:, 0, :, 0], blocks[:, 3, :, 4])
    assert torch.equal(broken[:, :, :, 1:], blocks[:, :, :, :-1])


def test_span_clip_gives_a_spatial_operation_one_draw_for_the_whole_clip() -> None:
    one_frame = torch.rand(3, 1, 2, 1, 8, 8)
    broken = break_with(nda.Jigsaw(), one_frame.expand(-1, 4, -1, 5, -1, -1), span="clip").blocks
    assert torch.equal(broken, broken[:, :1, :, :1].expand_as(broken))
    assert not torch.equal(broken[:, :1, :, :1], one_frame)


@pytest.mark.parametrize("span", ["block", "clip"])
def test_mixing_borrows_the_same_block_of_another_sample(span: str) -> None:
    blocks = distinct_blocks()
    result = break_with(BorrowLeft(), blocks, span=span)
    assert result.partner.tolist() == [1, 2, 0]
    assert torch.equal(result.blocks[..., :4], blocks.roll(-1, dims=0)[..., :4])
    assert torch.equal(result.blocks[..., 4:], blocks[..., 4:])


@pytest.mark.parametrize(
    "spec",
    [
        "stitch",
        "mixup",
        "cut_mix",
        "temporal_stitch",
        "mixup | stitch | reverse > cut_mix | reverse",
    ],
)
def test_library_operations_say_whom_they_borrowed_from(spec: str) -> None:
    """What is not one's own value came from the partner."""
    blocks = constant_blocks()
    result = break_with(nda.from_spec(spec), blocks, draws=3)
    own = blocks.repeat(3, 1, 1, 1, 1, 1)
    for sample in range(12):
        foreign = result.blocks[sample] != own[sample]
        partner = int(result.partner[sample])
        if not foreign.any():  # reversed constants
            assert spec.count("|") and partner == -1
            continue
        assert partner not in (-1, sample % 4)
        low, high = sorted([10.0 * (partner + 1), 10.0 * (sample % 4 + 1)])
        values = result.blocks[sample][foreign]
        assert (values >= low - 1e-3).all() and (values <= high + 1e-3).all()


def test_clips_that_borrowed_nothing_say_so() -> None:
    assert break_with(nda.Jigsaw(), distinct_blocks()).partner.tolist() == [-1, -1, -1]
    # Of alternatives, only the one that a sample chose counts.
    blocks = constant_blocks()
    result = break_with(nda.from_spec("reverse | temporal_stitch"), blocks, draws=10)
    lent = (result.blocks != blocks.repeat(10, 1, 1, 1, 1, 1)).flatten(1).any(1)
    assert torch.equal(result.partner >= 0, lent) and lent.any() and not lent.all()


@pytest.mark.parametrize("spec", ["stitch", "frame_shuffle", "jigsaw"])
def test_draws_are_independent_and_never_of_oneself(spec: str) -> None:
    blocks = torch.rand(2, 3, 3, 6, 16, 16)
    result = break_with(nda.from_spec(spec), blocks, draws=8)
    originals = blocks.repeat(8, 1, 1, 1, 1, 1)
    assert result.blocks.shape == originals.shape
    for sample in range(16):
        assert not torch.equal(result.blocks[sample], originals[sample])
    draws = result.blocks.reshape(8, -1)
    assert len({tuple(draw[:50].tolist()) + tuple(draw[-50:].tolist()) for draw in draws}) > 1


@pytest.mark.parametrize("span", ["block", "clip"])
@pytest.mark.parametrize(
    "spec", ["jigsaw", "stitch", "cutout", "cut_mix", "frame_shuffle", "reverse"]
)
def test_unchanged_pixels_are_reported_as_such(spec: str, span: str) -> None:
    blocks = torch.rand(4, 3, 3, 5, 16, 16)
    result = break_with(nda.from_spec(spec), blocks, span=span)
    moved = (result.blocks != blocks).any(dim=2).float().mean(dim=2)  # (B, N, H, W)
    assert torch.all(moved <= result.changed + 1e-6)
    assert result.changed.max() > 0
    torch.testing.assert_close(moved, result.changed)


def test_operations_run_outside_autocast() -> None:
    blocks = torch.rand(2, 2, 3, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        broken = break_with(MirrorByMatrix(), blocks).blocks
    assert torch.equal(broken, blocks.flip(-1))


def test_cells_count_when_enough_of_them_changed() -> None:
    changed = torch.zeros(1, 1, 8, 8)
    changed[..., :4, :4] = 1.0  # the first of 2x2 cells: all of it
    changed[..., :4, 4:6] = 1.0  # the second: half
    changed[..., 4:, :4] = 0.4  # the third: 2 of 5 frames

    def cells(least: float, differs: torch.Tensor = changed > 0) -> list[list[bool]]:
        return changed_cells(changed, differs, (2, 2), least)[0, 0].tolist()

    assert cells(0.5) == [[True, True], [False, False]]
    assert cells(0.3) == [[True, True], [True, False]]
    assert cells(0.6) == [[True, False], [False, False]]
    # What was moved and looks as before is no negative, were it all of the cell; but a pixel is.
    nearly = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    nearly[..., 3, 5] = True
    assert cells(0.3, nearly) == [[False, True], [False, False]]
    assert cells(0, nearly) == [[True, True], [True, True]]


def test_half_is_half_whatever_the_rounding() -> None:
    for size in range(3, 40):
        changed = torch.full((1, 1, size, size), 0.5)
        assert changed_cells(changed, changed > 0, (1, 1), 0.5).all()
    third = torch.full((1, 1, 6, 6), 0.3)
    assert changed_cells(third, third > 0, (2, 2), 0.3).all()


@pytest.mark.parametrize("by", [5, 10])
def test_moving_whole_blocks_is_refused(by: int) -> None:
    with pytest.raises(ConfigError, match=r"whole blocks of 5 frames.*span=block"):
        refuse_whole_block_moves(RollFrames(by), "roll_frames", num_blocks=3, block_len=5)


def refused(operation: NegativeAugmentation, spec: str) -> bool:
    try:
        refuse_whole_block_moves(operation, spec, num_blocks=3, block_len=5)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("by", [1, 4, 7])
def test_moving_parts_of_blocks_is_not_refused(by: int) -> None:
    assert not refused(RollFrames(by), "roll_frames")


@pytest.mark.parametrize(
    "spec",
    [
        "temporal_jigsaw:segments=3",
        "temporal_jigsaw:segments=3 | frame_shuffle",
        "frame_shuffle | temporal_jigsaw:segments=3",
    ],
)
def test_library_operations_that_move_whole_blocks_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="whole blocks"):
        refuse_whole_block_moves(nda.from_spec(spec), spec, num_blocks=3, block_len=5)


@pytest.mark.parametrize(
    "spec",
    [
        "frame_shuffle",
        "reverse",
        "jigsaw:grid=3",
        "jigsaw:grid=7",
        "stitch",
        "temporal_jigsaw:segments=5",
        # Moves some cells from block to block and breaks others: the former are taken out.
        "jigsaw > temporal_jigsaw:segments=3",
    ],
)
def test_library_operations_that_break_blocks_are_not_refused(spec: str) -> None:
    assert not refused(nda.from_spec(spec), spec)


def test_single_frame_blocks_make_every_reordering_a_move_of_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="whole blocks"):
        refuse_whole_block_moves(nda.FrameShuffle(), "frame_shuffle", num_blocks=4, block_len=1)


def whole_cells_from_elsewhere(broken: Tensor, blocks: Tensor, grid: int) -> Tensor:
    """In loops: which cells (KB, N, grid, grid) equal the same cell of some block of the sample."""
    side = blocks.shape[-1] // grid
    found = torch.zeros(*broken.shape[:2], grid, grid, dtype=torch.bool)
    for kb in range(len(broken)):
        for n in range(broken.shape[1]):
            for row in range(grid):
                for col in range(grid):
                    place = (..., slice(row * side, (row + 1) * side))
                    place = (*place, slice(col * side, (col + 1) * side))
                    cell, own = broken[kb, n][place], blocks[kb % len(blocks)]
                    found[kb, n, row, col] = any(torch.equal(cell, b[place]) for b in own)
    return found


@pytest.mark.parametrize(
    ("spec", "num_blocks", "something_is_left"),
    [
        ("cuboid_jigsaw:grid=2,segments=3", 3, True),
        ("cuboid_jigsaw", 8, True),
        ("jigsaw > temporal_jigsaw:segments=3", 3, True),
        ("temporal_jigsaw:segments=3", 3, False),
    ],
)
def test_cells_that_came_whole_from_another_block_are_no_negatives(
    spec: str, num_blocks: int, something_is_left: bool
) -> None:
    blocks = distinct_blocks(batch=4, num_blocks=num_blocks)
    broken = break_with(nda.from_spec(spec), blocks, span="clip", draws=4)
    repeats = whole_cells_from_elsewhere(broken.blocks, blocks, grid=2)
    before = changed_cells(broken.changed, broken.differs, (2, 2), 0.5)
    new = without_repeats(broken, blocks).changed
    after = changed_cells(new, broken.differs, (2, 2), 0.5)
    assert (before & repeats).any()  # what would have been a positive among the negatives
    assert torch.equal(after, before & ~repeats)
    assert after.any() == something_is_left


def test_what_is_left_of_a_moved_cell_is_no_negative_either() -> None:
    """Cut out a corner of a block that came from elsewhere: the rest is still a true target."""
    blocks = torch.rand(4, 3, 2, 5, 16, 16)
    operation = nda.from_spec("temporal_jigsaw:segments=3 > cutout")
    broken = break_with(operation, blocks, span="clip", draws=4)
    whole = broken.changed.amin(dim=(-2, -1)) == 1  # moved to another place in time
    left = without_repeats(broken, blocks).changed
    assert whole.any()
    assert torch.all((left == 0) | (left == 1))
    # The square has 31% to 60% of the side, in blocks that moved and in those that did not.
    area = left.mean(dim=(-2, -1))
    assert torch.all((area >= 0.31**2) & (area <= 0.6**2))


def test_a_clip_that_repeats_itself_is_compared_by_its_pixels() -> None:
    """Looped in time, two blocks show the same: neither is a negative of the other."""
    blocks = torch.rand(2, 1, 3, 5, 8, 8).expand(-1, 3, -1, -1, -1, -1)
    moved = break_with(RollFrames(5), blocks, span="clip")
    assert torch.equal(moved.blocks, blocks)
    assert (without_repeats(moved, blocks).changed == 0).all()
    mixed = break_with(RollFrames(2), blocks, span="clip")
    assert (without_repeats(mixed, blocks).changed > 0.9).all()


def test_fewer_frames_than_needed_may_stay_in_place() -> None:
    """Four frames of five from the same places of another block: a fifth has changed."""
    blocks = torch.rand(2, 2, 3, 5, 8, 8)
    broken = break_with(RollFrames(5), blocks, span="clip")
    edited = broken.blocks.clone()
    edited[:, :, :, 2] = 0.0
    share = without_repeats(broken._replace(blocks=edited), blocks).changed
    torch.testing.assert_close(share, torch.full_like(share, 0.2))


@pytest.mark.parametrize("still", [0, 2])
def test_min_motion_looks_at_each_block_by_itself(still: int) -> None:
    blocks = torch.rand(3, 3, 2, 5, 8, 8)
    blocks[1, still] = blocks[1, still, :, :1] + 1e-3 * torch.rand(2, 5, 8, 8)
    plain = break_with(nda.FrameShuffle(), blocks)
    flagged = break_with(nda.FrameShuffle(min_motion=0.1), blocks)
    assert torch.equal(flagged.blocks, plain.blocks)
    expected = plain.changed.clone()
    expected[1, still] = 0
    assert expected.sum() < plain.changed.sum() and torch.equal(flagged.changed, expected)


@pytest.mark.parametrize("span", ["block", "clip"])
@pytest.mark.parametrize("spec", ["frame_shuffle", "frame_shuffle:min_motion=0.02", "reverse"])
def test_a_block_that_came_out_as_it_went_in_is_no_negative(spec: str, span: str) -> None:
    blocks = torch.rand(3, 3, 2, 5, 8, 8)
    blocks[1, 1] = blocks[1, 1, :, :1].clone()
    result = break_with(nda.from_spec(spec), blocks, span=span, draws=3)
    same = (result.blocks == blocks.repeat(3, 1, 1, 1, 1, 1)).flatten(2).all(2)
    assert same.any() or spec != "reverse"
    assert (result.changed[same] == 0).all() and (result.changed[~same] > 0).any()


def test_a_cropped_block_is_compared_with_what_is_left_of_it() -> None:
    blocks = torch.rand(2, 2, 1, 5, 7, 7)
    blocks[0, 1] = 0.5
    result = break_with(nda.Jigsaw(crop=True), blocks)
    assert result.blocks.shape[-2:] == result.changed.shape[-2:] == (6, 6)
    assert (result.changed[0, 1] == 0).all() and (result.changed[0, 0] > 0).any()


@pytest.mark.parametrize("span", ["block", "clip"])
def test_the_still_part_of_a_shuffled_block_is_known(span: str) -> None:
    """Frames change place everywhere; on the left, where nothing moves, none can tell."""
    blocks = torch.rand(3, 2, 3, 5, 16, 16)
    blocks[..., :8] = blocks[:, :1, :, :1, :, :8]
    result = break_with(nda.FrameShuffle(), blocks, span=span, draws=2)
    assert not result.differs[..., :8].any() and result.differs[..., 8:].all()
    cells = changed_cells(result.changed, result.differs, (2, 2), 0.2)
    assert not cells[..., 0].any() and cells[..., 1].any()


def test_a_looped_clip_in_another_order_of_its_loops_is_unchanged() -> None:
    loop = torch.rand(2, 3, 1, 3, 4, 8, 8)[:, :1].expand(2, 3, 1, 3, 4, 8, 8)
    blocks = loop.reshape(2, 3, 3, 4, 8, 8).repeat(1, 1, 1, 2, 1, 1)  # each block shows it twice
    result = break_with(nda.TemporalJigsaw(2), blocks)
    assert torch.equal(result.blocks, blocks)
    assert not result.differs.any() and not result.changed.any()
