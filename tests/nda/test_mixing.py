"""Stitch, Mixup, CutMix and TemporalStitch: who meets whom, and how much of each is left."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ndavid import nda
from ndavid.nda.boxes import scaled_frames

CLIP = (5, 2, 6, 8, 12)


def test_stitch_keeps_one_half_and_takes_the_other_from_the_partner(distinct, seeded):
    x = distinct((50, *CLIP[1:]))
    op = nda.Stitch()
    params = op.sample(x.shape, seeded(0))
    y = op.apply(x, params)
    assert set(params["axis"].view(-1).tolist()) == {0, 1}, "the axis is drawn per sample"
    for b, (partner, axis) in enumerate(zip(params["partner"], params["axis"], strict=True)):
        expected = x[b].clone()
        half = (..., slice(4, None), slice(None)) if axis == 0 else (..., slice(6, None))
        expected[half] = x[partner][half]
        assert torch.equal(y[b], expected)


def test_stitch_needs_even_sizes():
    with pytest.raises(ValueError, match="width 9 is not divisible"):
        nda.Stitch().sample((4, 3, 8, 9))


def test_mixup_blends_by_the_sample_s_own_share(distinct, seeded):
    x = distinct(CLIP)
    op = nda.Mixup()
    params = op.sample(x.shape, seeded(0))
    share = params["share"].view(-1, 1, 1, 1, 1)
    expected = share * x + (1 - share) * x[params["partner"]]
    torch.testing.assert_close(op.apply(x, params), expected)


def test_mixup_shares_follow_the_paper_s_beta(seeded):
    share = nda.Mixup().sample((20_000, 1, 2, 2), seeded(0))["share"]
    assert share.mean().item() == pytest.approx(0.5, abs=0.003)
    assert share.std().item() == pytest.approx((4 * 51) ** -0.5, abs=0.003)


def test_mixup_never_lets_one_picture_win(seeded):
    share = nda.Mixup(alpha=0.02, min_share=0.2).sample((5_000, 1, 2, 2), seeded(0))["share"]
    assert share.min() >= 0.2 and share.max() <= 0.8 + 1e-6


@given(
    st.integers(6, 40), st.integers(6, 40), st.floats(0.02, 0.6), st.floats(0.25, 0.35), st.data()
)
def test_cut_mix_area_keeps_its_bounds_to_the_pixel(height, width, low, span, data):
    # Small frames may have no box of their aspect ratio in between: 6x8 px, 0.44 to 0.69.
    assume(len(scaled_frames((height, width), low, low + span)))
    op = nda.CutMix(
        beta=data.draw(st.sampled_from([0.3, 1.0, 4.0])), min_area=low, max_area=low + span
    )
    shape = (64, 1, height, width)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    params = op.sample(shape, generator)
    area = op.changed_mask(params, shape).flatten(1).float().mean(1)
    assert (area >= low - 1e-6).all() and (area <= low + span + 1e-6).all()
    top, left, bottom, right = params["box"].view(-1, 4).unbind(1)
    assert torch.equal((bottom - top) * (right - left), (area * height * width).round().long())
    assert (params["box"] >= 0).all() and (bottom <= height).all() and (right <= width).all()


def test_cut_mix_pastes_the_partner_s_own_place_into_every_frame(distinct, seeded):
    x = distinct(CLIP)
    op = nda.CutMix()
    params = op.sample(x.shape, seeded(0))
    y = op.apply(x, params)
    for b in range(CLIP[0]):
        expected = x[b].clone()
        top, left, bottom, right = params["box"][b, 0].tolist()
        box = (..., slice(top, bottom), slice(left, right))
        expected[box] = x[params["partner"][b]][box]
        assert torch.equal(y[b], expected)


def test_cut_mix_areas_are_uniform_by_default(seeded):
    op, shape = nda.CutMix(), (20_000, 1, 64, 64)
    box = op.sample(shape, seeded(0))["box"].view(-1, 4)
    area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])) / 64**2
    assert area.mean().item() == pytest.approx(0.3, abs=0.01)
    shares = torch.histc(area, bins=4, min=0.1, max=0.5) / len(area)
    assert (shares - 0.25).abs().max() < 0.04


def test_cut_mix_without_a_fitting_box_is_refused():
    with pytest.raises(ValueError, match="widen min_area and max_area"):
        nda.CutMix(min_area=0.3, max_area=0.31).sample((4, 3, 4, 4))


@pytest.mark.parametrize("frames", [2, 5, 8])
def test_temporal_stitch_continues_with_the_partner(frames, distinct, seeded):
    x = distinct((5, 2, frames, 4, 4))
    op = nda.TemporalStitch()
    params = op.sample(x.shape, seeded(0))
    half = frames // 2
    expected = torch.cat((x[:, :, :half], x[params["partner"]][:, :, half:]), dim=2)
    assert torch.equal(op.apply(x, params), expected)
    mask = op.changed_mask(params, x.shape)
    assert not mask[:, :half].any() and mask[:, half:].all()


def test_temporal_stitch_needs_two_frames():
    with pytest.raises(ValueError, match="no halves"):
        nda.TemporalStitch().sample((4, 3, 1, 8, 8))


@pytest.mark.parametrize("kind", [nda.Stitch, nda.Mixup, nda.CutMix, nda.TemporalStitch])
def test_legacy_partners_leak_and_the_mask_says_so(kind, distinct, seeded):
    x = distinct((4, 1, 4, 8, 8))
    generator, leaks, draws = seeded(0), 0, 1_000
    for _ in range(draws):
        params = kind(legacy=True).sample(x.shape, generator)
        clean = params["partner"] == torch.arange(4)
        changed = kind(legacy=True).changed_mask(params, x.shape).flatten(1).any(1)
        assert torch.equal(changed, ~clean)
        leaks += clean.sum().item()
    # 24 permutations of 4 have one fixed point each on average; the identity (4 of the 24) is out.
    assert leaks / (4 * draws) == pytest.approx(20 / 23 / 4, abs=0.03)


def test_arguments_that_cannot_work_are_refused():
    for build in (
        lambda: nda.Mixup(alpha=0),
        lambda: nda.Mixup(min_share=0.6),
        lambda: nda.CutMix(beta=-1),
        lambda: nda.CutMix(min_area=0.5, max_area=0.4),
    ):
        with pytest.raises(ValueError):
            build()
