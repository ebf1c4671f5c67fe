"""Jigsaw, Cutout and PatchResample against naive loops and their own bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ndavid import nda


def naive_jigsaw(x, orders, rows, cols):
    """One image at a time, one patch at a time: out patch p shows source patch orders[b][p]."""
    out = torch.empty_like(x)
    height, width = x.shape[-2] // rows, x.shape[-1] // cols
    for b, order in enumerate(orders):
        for to, come_from in enumerate(order.tolist()):
            (r, c), (sr, sc) = divmod(to, cols), divmod(come_from, cols)
            out[b, ..., r * height : (r + 1) * height, c * width : (c + 1) * width] = x[
                b, ..., sr * height : (sr + 1) * height, sc * width : (sc + 1) * width
            ]
    return out


grids = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda g: g[0] * g[1] > 1)


@given(grids, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_jigsaw_equals_a_naive_loop_and_comes_back(grid, tall, wide, clip, seed):
    rows, cols = grid
    shape = (3, 2, *([2] if clip else []), rows * tall, cols * wide)
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    op = nda.Jigsaw(grid)
    params = op.sample(shape, torch.Generator().manual_seed(seed))
    y = op.apply(x, params)
    assert torch.equal(y, naive_jigsaw(x, params["permutation"], rows, cols))
    back = {"permutation": params["permutation"].argsort(-1)}
    assert torch.equal(op.apply(y, back), x)


def test_jigsaw_with_the_identity_forced_gives_the_input_back(distinct):
    x = distinct((3, 2, 4, 12, 16))
    for grid in (2, (3, 4), (1, 2)):
        op = nda.Jigsaw(grid)
        same = op.sample(x.shape)["permutation"].sort(-1).values
        assert torch.equal(op.apply(x, {"permutation": same}), x)
        assert not op.changed_mask({"permutation": same}, x.shape).any()


def test_jigsaw_derangement_leaves_no_patch(distinct, seeded):
    for grid in (2, 3, (1, 2), 4):
        op = nda.Jigsaw(grid, derangement=True)
        params = op.sample((300, 1, 12, 12), seeded(0))
        assert op.changed_mask(params, (300, 1, 12, 12)).all()


def test_jigsaw_per_frame_draws_for_every_frame(distinct, seeded):
    x = distinct((4, 2, 6, 8, 8))
    op = nda.Jigsaw(2, per_frame=True)
    params = op.sample(x.shape, seeded(0))
    assert params["permutation"].shape == (4, 6, 4)
    assert len(params["permutation"].view(-1, 4).unique(dim=0)) > 6
    y = op.apply(x, params)
    for t in range(6):
        expected = naive_jigsaw(x[:, :, t], params["permutation"][:, t], 2, 2)
        assert torch.equal(y[:, :, t], expected)


def test_jigsaw_refuses_or_crops_what_the_grid_does_not_divide(distinct, seeded):
    x = distinct((4, 3, 7, 9))
    with pytest.raises(ValueError, match="height 7 is not divisible into 2"):
        nda.Jigsaw(2)(x)
    op = nda.Jigsaw(2, crop=True)
    y = op(x, generator=seeded(0))
    assert y.shape == (4, 3, 6, 8) == op.output_shape(x.shape)
    assert torch.equal(y.flatten(2).sort().values, x[..., :6, :8].flatten(2).sort().values)
    params = op.sample(x.shape, seeded(0))
    mask = op.changed_mask(params, x.shape)
    assert mask.shape == (4, 6, 8)
    assert torch.equal(
        y[~mask.unsqueeze(1).expand_as(y)], x[..., :6, :8][~mask[:, None].expand_as(y)]
    )
    with pytest.raises(ValueError, match="cannot be cut into 16"):
        nda.Jigsaw(16, crop=True)(x)


@pytest.mark.parametrize("grid", [1, (1, 1), (0, 4)])
def test_a_grid_without_a_second_patch_is_refused(grid):
    with pytest.raises(ValueError, match="nothing to swap"):
        nda.Jigsaw(grid)


def test_legacy_jigsaw_leaks_as_often_as_the_official_code(distinct, seeded):
    x = distinct((20_000, 1, 2, 2))
    clean = (nda.Jigsaw(legacy=True)(x, generator=seeded(0)) == x).flatten(1).all(1).float().mean()
    assert clean.item() == pytest.approx(1 / 23, abs=0.006)
    assert not (nda.Jigsaw()(x, generator=seeded(0)) == x).flatten(1).all(1).any()
    with pytest.raises(ValueError, match="square grids only"):
        nda.Jigsaw((2, 3), legacy=True)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 2**31))
def test_cutout_squares_keep_their_bounds(height, width, seed):
    op = nda.Cutout(min_side=0.3, max_side=0.6)
    shape = (64, 1, height, width)
    params = op.sample(shape, torch.Generator().manual_seed(seed))
    top, left, bottom, right = params["box"].view(-1, 4).unbind(1)
    side, short = bottom - top, min(height, width)
    assert torch.equal(side, right - left)
    assert (side >= 0.3 * short - 1e-6).all() and (side <= 0.6 * short + 1e-6).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= height).all() and (right <= width).all()
    covered = op.changed_mask(params, shape).flatten(1).sum(1)
    assert torch.equal(covered, side * side)


def test_cutout_sizes_on_32_pixels_are_the_official_ones(seeded):
    box = nda.Cutout().sample((5_000, 3, 32, 32), seeded(0))["box"].view(-1, 4)
    assert set((box[:, 2] - box[:, 0]).tolist()) == set(range(10, 20))


@pytest.mark.parametrize("per_frame", [False, True])
def test_cutout_fills_with_the_mean_of_what_it_covers(per_frame, distinct, seeded):
    x = distinct((5, 2, 4, 10, 12)) / 1000
    op = nda.Cutout(per_frame=per_frame)
    params = op.sample(x.shape, seeded(1))
    y = op.apply(x, params)
    for b in range(5):
        for t in range(4):
            top, left, bottom, right = params["box"][b, t if per_frame else 0].tolist()
            covered = x[b, :, t, top:bottom, left:right]
            filled = y[b, :, t, top:bottom, left:right]
            mean = covered.mean((1, 2), keepdim=True).expand_as(covered)
            torch.testing.assert_close(filled, mean)


def test_cutout_noise_keeps_the_mean_and_spread_of_what_it_covers(seeded):
    x = torch.randn(64, 2, 60, 60, generator=seeded(0)) * 3 + 5
    op = nda.Cutout(fill="noise", min_side=0.5, max_side=0.5)
    params = op.sample(x.shape, seeded(1))
    inside = op.changed_mask(params, x.shape).unsqueeze(1).expand_as(x)
    filled = op.apply(x, params)[inside]
    assert filled.mean().item() == pytest.approx(5, abs=0.05)
    assert filled.std().item() == pytest.approx(3, abs=0.05)


def test_cutout_zero_is_zero_and_uint8_mean_is_rounded(seeded):
    x = torch.randint(1, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=seeded(0))
    for fill in ("zero", "mean"):
        op = nda.Cutout(fill=fill)
        params = op.sample(x.shape, seeded(1))
        y = op.apply(x, params)
        for b, (top, left, bottom, right) in enumerate(params["box"].view(-1, 4).tolist()):
            covered = x[b, :, top:bottom, left:right].float().mean((1, 2)).round()
            expected = covered if fill == "mean" else torch.zeros(3)
            assert torch.equal(y[b, :, top, left].float(), expected)


def naive_patch_resample(x, params, shortest):
    """Pixel by pixel: which tile, which place within it, and where that tile comes from."""
    out = torch.empty_like(x)
    height, width = x.shape[-2:]
    across = -(-width // shortest)
    for b in range(len(x)):
        side = params["side"][b].item()
        for i in range(height):
            for j in range(width):
                origin = params["origin"][b, 0, i // side * across + j // side].item()
                top, left = divmod(origin, width)
                assert top + side <= height and left + side <= width, "patch outside the frame"
                out[b, :, i, j] = x[b, :, top + i % side, left + j % side]
    return out


@pytest.mark.parametrize("size", [(16, 24), (15, 21), (13, 17), (20, 20)])
def test_patch_resample_equals_a_naive_loop_and_moves_every_pixel(size, distinct, seeded):
    x = distinct((6, 2, *size))
    op = nda.PatchResample(min_side=0.2, max_side=0.6)
    params = op.sample(x.shape, seeded(0))
    y = op.apply(x, params)
    tiling = op._tiling(x.shape)
    assert torch.equal(y, naive_patch_resample(x, params, tiling.unit * tiling.low))
    assert (y != x).all()


def test_patch_resample_sides_keep_their_bounds(seeded):
    op = nda.PatchResample()
    side = op.sample((4_000, 3, 224, 224), seeded(0))["side"]
    assert set(side.tolist()) == {16, 32, 48, 64}
    with pytest.raises(ValueError, match="no whole number of pixels"):
        nda.PatchResample(min_side=0.01, max_side=0.02).sample((2, 3, 32, 32))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nda.Cutout(fill="blur"), "mean, zero or noise"),
        (lambda: nda.Cutout(min_side=0.7), "min_side <= max_side"),
        (lambda: nda.PatchResample(max_side=1.0), "max_side < 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
