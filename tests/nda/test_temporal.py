"""Orders of frames: which ones come, which frames stay, and clips that do not move."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ndavid import nda

ORDER_OPS = [nda.FrameShuffle, nda.TemporalJigsaw, nda.FrameRepeat, nda.Reverse]


def test_frames_are_shown_in_the_drawn_order(distinct, seeded):
    x = distinct((6, 2, 8, 3, 5))
    for kind in ORDER_OPS:
        params = kind().sample(x.shape, seeded(0))
        y = kind().apply(x, params)
        for b in range(6):
            assert torch.equal(y[b], x[b][:, params["source"][b]])


def test_frame_shuffle_of_five_frames_knows_119_orders(seeded):
    source = nda.FrameShuffle().sample((20_000, 1, 5, 1, 1), seeded(0))["source"]
    assert len(Counter(map(tuple, source.tolist()))) == 119


def test_frame_repeat_freezes_any_frame(seeded):
    source = nda.FrameRepeat().sample((2_000, 1, 6, 1, 1), seeded(0))["source"]
    assert (source == source[:, :1]).all()
    assert set(source[:, 0].tolist()) == set(range(6))


def test_reverse_leaves_the_middle_frame(distinct, seeded):
    x = distinct((3, 1, 5, 2, 2))
    op = nda.Reverse()
    params = op.sample(x.shape, seeded(0))
    assert torch.equal(op.apply(x, params), x.flip(2))
    changed = op.changed_mask(params, x.shape).flatten(2).all(2)
    assert changed.tolist() == [[True, True, False, True, True]] * 3


def test_temporal_jigsaw_keeps_the_order_within_segments(seeded):
    source = nda.TemporalJigsaw(3).sample((1_000, 1, 12, 1, 1), seeded(0))["source"]
    segments = source.view(-1, 3, 4)
    assert (segments.diff(dim=2) == 1).all()
    assert len({tuple(row) for row in (segments[:, :, 0] // 4).tolist()}) == 5


def test_temporal_jigsaw_swap_is_iic_s_shuffle(seeded):
    op = nda.TemporalJigsaw(segments=4, swap=2)
    source = op.sample((3_000, 1, 16, 1, 1), seeded(0))["source"]
    order = source.view(-1, 4, 4)[:, :, 0] // 4
    assert ((order != torch.arange(4)).sum(1) == 2).all()
    assert len(order.unique(dim=0)) == 6


def test_temporal_jigsaw_refuses_or_crops_uneven_lengths(distinct, seeded):
    x = distinct((4, 1, 10, 2, 2))
    with pytest.raises(ValueError, match="frames 10 is not divisible into 4"):
        nda.TemporalJigsaw()(x)
    y = nda.TemporalJigsaw(crop=True)(x, generator=seeded(0))
    assert y.shape == (4, 1, 8, 2, 2)
    assert torch.equal(y.flatten(1).sort().values, x[:, :, :8].flatten(1).sort().values)


def test_cuboid_jigsaw_moves_cuboids_whole(distinct, seeded):
    x = distinct((20, 2, 6, 4, 8))
    op = nda.CuboidJigsaw(grid=(2, 4), segments=3)
    params = op.sample(x.shape, seeded(0))
    y = op.apply(x, params)
    for b in range(20):
        for to, come_from in enumerate(params["permutation"][b].tolist()):
            boxes = []
            for cell in (to, come_from):
                t, r, c = cell // 8 * 2, cell % 8 // 4 * 2, cell % 4 * 2
                boxes.append((b, slice(None), slice(t, t + 2), slice(r, r + 2), slice(c, c + 2)))
            assert torch.equal(y[boxes[0]], x[boxes[1]])
    back = {"permutation": params["permutation"].argsort(1)}
    assert torch.equal(op.apply(y, back), x)


def test_cuboid_jigsaw_crops_all_three_axes(distinct, seeded):
    x = distinct((4, 1, 5, 7, 9))
    with pytest.raises(ValueError, match="frames 5 is not divisible"):
        nda.CuboidJigsaw()(x)
    y = nda.CuboidJigsaw(crop=True)(x, generator=seeded(0))
    assert torch.equal(y.flatten(1).sort().values, x[:, :, :4, :6, :8].flatten(1).sort().values)


@pytest.mark.parametrize("kind", ORDER_OPS)
def test_one_frame_has_no_other_order(kind):
    with pytest.raises(ValueError, match="at least 2 frames"):
        kind().sample((4, 3, 1, 8, 8))


def test_motion_is_relative_to_the_clip_s_own_contrast(seeded):
    noise = torch.rand(5, 3, 8, 16, 16, generator=seeded(0))
    # Two independent normals differ by 2 / sqrt(pi) deviations; uniforms by 2 / sqrt(3).
    assert nda.motion(noise).tolist() == pytest.approx([2 / 3**0.5] * 5, rel=0.03)
    torch.testing.assert_close(nda.motion(noise * 255 - 40), nda.motion(noise))
    still = noise[:, :, :1].expand(-1, -1, 8, -1, -1)
    assert (nda.motion(still) == 0).all()
    assert (nda.motion(torch.zeros(2, 3, 4, 5, 5)) == 0).all(), "a black clip is a still"


@pytest.mark.parametrize("kind", ORDER_OPS)
def test_min_motion_flags_stills_and_leaves_them_out_of_the_mask(kind, distinct, seeded):
    x = distinct((4, 1, 8, 6, 6)) / 1000
    x[2] = x[2, :, :1]
    x[3] = x[3, :, :1] + 1e-4 * x[3]
    op = kind(min_motion=0.05)
    params = op.flag(x, op.sample(x.shape, seeded(0)))
    assert params["static"].tolist() == [False, False, True, True]
    mask = op.changed_mask(params, x.shape)
    assert mask[:2].flatten(1).any(1).all() and not mask[2:].any()
    # A flagged clip is broken all the same: whoever ignores flags must not get clean samples.
    assert not torch.equal(op.apply(x, params)[3], x[3])
    assert "static" not in kind().flag(x, kind().sample(x.shape, seeded(0)))


def test_flagging_compiles_without_a_graph_break(distinct, seeded):
    torch.compiler.reset()
    op, x = nda.Reverse(min_motion=0.1), distinct((4, 2, 6, 4, 4))
    params = op.sample(x.shape, seeded(0))

    def broken(x, params):
        params = op.flag(x, params)
        return op.apply(x, params), op.changed_mask(params, x.shape)

    y, mask = torch.compile(broken, fullgraph=True, backend="eager")(x, params)
    expected, expected_mask = broken(x, params)
    assert torch.equal(y, expected) and torch.equal(mask, expected_mask)


def test_arguments_that_cannot_work_are_refused():
    for build in (
        lambda: nda.TemporalJigsaw(1),
        lambda: nda.TemporalJigsaw(4, swap=1),
        lambda: nda.TemporalJigsaw(4, swap=5),
        lambda: nda.Reverse(min_motion=-1),
        lambda: nda.CuboidJigsaw(grid=1, segments=1),
    ):
        with pytest.raises(ValueError):
            build()
