"""Choices, sequences, and the text form of both."""

from __future__ import annotations

import pytest
import torch

from ndavid import nda
from ndavid.errors import ConfigError

CLIP = (40, 2, 8, 12, 16)


def test_one_of_gives_each_sample_the_result_of_its_own_choice(distinct, seeded):
    ops = [nda.Jigsaw(), nda.Mixup(), nda.Reverse()]
    op, x = nda.OneOf(ops), distinct(CLIP)
    params = op.sample(x.shape, seeded(0))
    y, mask = op.apply(x, params), op.changed_mask(params, x.shape)
    assert set(params["choice"].tolist()) == {0, 1, 2}
    for i, part in enumerate(ops):
        own = {k[2:]: v for k, v in params.items() if k.startswith(f"{i}.")}
        chosen = params["choice"] == i
        assert torch.equal(y[chosen], part.apply(x, own)[chosen])
        assert torch.equal(mask[chosen], part.changed_mask(own, x.shape)[chosen])


def test_one_of_chooses_uniformly(seeded):
    op = nda.OneOf([nda.Jigsaw(), nda.Cutout(), nda.Mixup()])
    choice = op.sample((9_000, 1, 4, 4), seeded(0))["choice"]
    assert (torch.bincount(choice, minlength=3) - 3_000).abs().max() < 250


def test_compose_applies_in_order_and_unites_the_masks(distinct, seeded):
    first, second = nda.CutMix(), nda.Jigsaw(2)
    op, x = nda.Compose([first, second]), distinct(CLIP)
    params = op.sample(x.shape, seeded(0))
    own = [{k[2:]: v for k, v in params.items() if k.startswith(f"{i}.")} for i in range(2)]
    assert torch.equal(op.apply(x, params), second.apply(first.apply(x, own[0]), own[1]))
    united = first.changed_mask(own[0], x.shape) | second.changed_mask(own[1], x.shape)
    assert torch.equal(op.changed_mask(params, x.shape), united)


def test_compose_refuses_ops_that_could_undo_each_other():
    for ops in (
        [nda.Jigsaw(2), nda.Jigsaw(2)],
        [nda.FrameShuffle(), nda.Reverse()],
        [nda.Stitch(), nda.CutMix()],
        [nda.CuboidJigsaw(), nda.Jigsaw()],
        [nda.OneOf([nda.Reverse(), nda.Cutout()]), nda.FrameShuffle()],
    ):
        with pytest.raises(ValueError, match="could undo each other"):
            nda.Compose(ops)


def test_traits_of_the_parts_are_traits_of_the_whole():
    assert nda.OneOf([nda.Jigsaw(), nda.Stitch()]).needs_partner
    assert nda.Compose([nda.Jigsaw(), nda.Reverse()]).clips_only
    assert not nda.Compose([nda.Jigsaw(), nda.Cutout()]).needs_partner
    with pytest.raises(ValueError, match="at least one op"):
        nda.OneOf([])


def test_crops_pass_through(distinct, seeded):
    x = distinct((6, 1, 9, 7, 9))
    op = nda.Compose([nda.TemporalJigsaw(4, crop=True), nda.Jigsaw(2, crop=True), nda.Mixup()])
    params = op.sample(x.shape, seeded(0))
    assert op.apply(x, params).shape == (6, 1, 8, 6, 8) == op.output_shape(x.shape)
    assert op.changed_mask(params, x.shape).shape == (6, 8, 6, 8)
    with pytest.raises(ValueError, match=r"crop .* differently"):
        nda.OneOf([nda.Jigsaw(2, crop=True), nda.Jigsaw(3, crop=True)]).sample((4, 1, 7, 9))


def test_flags_of_the_parts_reach_the_mask(distinct, seeded):
    x = distinct((8, 1, 4, 4, 4))
    x[:4] = x[:4, :, :1]
    either = nda.OneOf([nda.Reverse(min_motion=0.1), nda.FrameShuffle(min_motion=0.1)])
    params = either.flag(x, either.sample(x.shape, seeded(0)))
    mask = either.changed_mask(params, x.shape).flatten(1).any(1)
    assert mask.tolist() == [False] * 4 + [True] * 4
    both = nda.Compose([nda.Jigsaw(derangement=True), nda.Reverse(min_motion=0.1)])
    params = both.flag(x, both.sample(x.shape, seeded(0)))
    assert both.changed_mask(params, x.shape).all(), "the jigsaw breaks stills too"


SPECS = {
    "jigsaw": nda.Jigsaw(),
    "jigsaw:grid=3,derangement=true": nda.Jigsaw(3, derangement=True),
    "jigsaw:grid=2x3,crop=true,per_frame=true": nda.Jigsaw((2, 3), crop=True, per_frame=True),
    "mixup:alpha=1.5": nda.Mixup(1.5),
    "cutout:fill=noise,max_side=0.5": nda.Cutout(fill="noise", max_side=0.5),
    "temporal_jigsaw:segments=4,swap=2": nda.TemporalJigsaw(4, swap=2),
    "frame_shuffle:min_motion=0.02": nda.FrameShuffle(min_motion=0.02),
    "jigsaw:grid=2 | frame_shuffle": nda.OneOf([nda.Jigsaw(2), nda.FrameShuffle()]),
    "jigsaw > reverse": nda.Compose([nda.Jigsaw(), nda.Reverse()]),
    " jigsaw>reverse |stitch": nda.OneOf(
        [nda.Compose([nda.Jigsaw(), nda.Reverse()]), nda.Stitch()]
    ),
}


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_says_what_python_says(spec):
    op = nda.from_spec(spec)
    assert op == SPECS[spec]
    assert nda.from_spec(nda.to_spec(op)) == op


@pytest.mark.parametrize("name", nda.OPS)
def test_every_op_has_a_name_in_specs(name):
    assert type(nda.from_spec(name)) is nda.OPS[name]
    assert nda.to_spec(nda.OPS[name]()) == name
    words = "".join(word.capitalize() for word in name.split("_"))
    assert nda.OPS[name].__name__ == words


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jigsw", "did you mean 'jigsaw'"),
        ("jigsaw:gird=3", "no argument 'gird'; did you mean 'grid'"),
        ("jigsaw:grid=three", "grid='three' is not a whole number or ROWSxCOLS"),
        ("jigsaw:grid=2x2x2", "is not a whole number or ROWSxCOLS"),
        ("jigsaw:crop=maybe", "crop='maybe' is not true or false"),
        ("mixup:alpha=big", "alpha='big' is not a number"),
        ("cutout:fill=blur", "is not mean or zero or noise"),
        ("jigsaw:grid=2,grid=3", "write grid=VALUE once"),
        ("jigsaw:grid", "write grid=VALUE once"),
        ("jigsaw:grid=1", "nothing to swap"),
        ("", "an op is missing"),
        ("jigsaw | ", "an op is missing"),
        ("jigsaw > patch_resample", "could undo each other"),
    ],
)
def test_a_spec_that_cannot_be_meant_says_why(spec, message):
    with pytest.raises(ConfigError, match=message):
        nda.from_spec(spec)


def test_what_a_spec_cannot_say_is_refused():
    with pytest.raises(ConfigError, match="cannot nest"):
        nda.to_spec(nda.Compose([nda.OneOf([nda.Jigsaw(), nda.Cutout()]), nda.Reverse()]))
