"""What every op of the registry promises, as checks that raise, and the ops that they are put to.

The cases come from ``nda.OPS``: each op with its defaults and with every argument varied, one at a
time. An op that is put into the registry is checked from then on, without a line here.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

import torch
from torch import Tensor

from ndavid import nda
from ndavid.nda.base import NegativeAugmentation, is_clip

CLIP, IMAGE = (6, 2, 8, 12, 16), (6, 3, 12, 16)

# Published faults that are there to be compared with: they break the contract on purpose.
_FAULTS = ("legacy",)
# Of numbers, tried in this order; the first that the op and both shapes take is a variant.
_WHOLE, _REAL = (2, 3, 4), (0.3, 0.15, 0.55, 2.0, 0.05)
_GRIDS = ((3, 4), (1, 4), (6, 1))
# Defaults that no op takes at 12 x 16 pixels.
_NEEDED: dict[str, dict[str, object]] = {"patch_resample": {"min_side": 0.15}}


def variants(
    registry: dict[str, type[NegativeAugmentation]] | None = None,
) -> dict[str, NegativeAugmentation]:
    """Every op of the registry by a name that says what is varied: ``jigsaw``, ``jigsaw-grid=...``.

    Raises:
        AssertionError: an argument of an op could not be varied.
    """
    made: dict[str, NegativeAugmentation] = {}
    for name, kind in (nda.OPS if registry is None else registry).items():
        needed = _NEEDED.get(name, {})
        made[name] = kind(**needed)
        if not dataclasses.is_dataclass(kind):
            continue
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name in _FAULTS:
                continue
            found = [
                (value, op)
                for value in _values(hints[field.name], getattr(made[name], field.name))
                if (op := _built(kind, {**needed, field.name: value})) is not None
            ]
            assert found, f"no other value of {name}:{field.name} was found: add one here"
            many = 1 if hints[field.name] in (int, float) else len(found)
            made |= {f"{name}-{field.name}={value}": op for value, op in found[:many]}
    return made


def combinations() -> dict[str, NegativeAugmentation]:
    """Ops made of several."""
    return {
        "one_of": nda.OneOf([nda.Jigsaw(), nda.CutMix(), nda.FrameShuffle()]),
        "compose": nda.Compose([nda.Stitch(), nda.Jigsaw(), nda.Reverse(), nda.Cutout()]),
        "nested": nda.OneOf([nda.Compose([nda.Mixup(), nda.Jigsaw()]), nda.TemporalJigsaw(2)]),
    }


def _values(hint: object, default: object) -> list[object]:
    if hint is bool:
        return [not default]
    if typing.get_origin(hint) is typing.Literal:
        return [value for value in typing.get_args(hint) if value != default]
    if hint is int:
        return [value for value in _WHOLE if value != default]
    if hint is float:
        return [value for value in _REAL if value != default]
    return [value for value in _GRIDS if value != default]


def _built(
    kind: type[NegativeAugmentation], arguments: dict[str, object]
) -> NegativeAugmentation | None:
    try:
        op = kind(**arguments)
        op.check(CLIP)
        if not op.clips_only:
            op.check(IMAGE)
    except ValueError:
        return None
    return op


# --- inputs --------------------------------------------------------------------------------------


def distinct(shape: Sequence[int]) -> Tensor:
    """A float32 batch that holds each whole number once, in random places."""
    count = torch.Size(shape).numel()
    assert count < 2**24, "float32 cannot tell more whole numbers apart"
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return order.float().view(*shape) + 1


def alike(shape: Sequence[int]) -> dict[str, Tensor]:
    """Batches in which an op may change nothing, for their content; every other sample is plain."""
    made = {"byte_copies": distinct(shape), "plain": distinct(shape), "tiled": distinct(shape)}
    made["byte_copies"][:] = made["byte_copies"][:1].clone()
    made["plain"][::2] = 7.0
    height, width = shape[-2] // 2, shape[-1] // 2
    tile = made["tiled"][::2, ..., :height, :width]
    made["tiled"][::2] = tile.repeat(*[1] * (len(shape) - 2), 2, 2)
    if is_clip(shape):
        made |= {"still": distinct(shape), "loop": distinct(shape)}
        made["still"][::2] = made["still"][::2, :, :1].clone()
        loop = made["loop"][::2, :, : shape[2] // 4]
        made["loop"][::2] = loop.repeat(1, 1, 4, 1, 1)
    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(mask: Tensor, x: Tensor) -> Tensor:
    """A changed mask over the channels of ``x``."""
    return mask.unsqueeze(1).expand_as(x)


# --- checks --------------------------------------------------------------------------------------


def check_changes_every_sample(op: NegativeAugmentation, shape: Sequence[int]) -> None:
    """No draw of thousands leaves a sample of distinct pixels as it was."""
    generator = seeded(0)
    # One channel tells as much as three; some three thousand samples in all.
    for batch, draws in ((2, 40), (3, 40), (8, 20), (1300, 2)):
        x = distinct((batch, 1, *shape[2:]))
        for _ in range(draws):
            made = op.broken(x, generator=generator)
            clean = (made.pixels == x).flatten(1).all(1)
            assert not clean.any(), f"{int(clean.sum())} of {batch} samples came out clean"
            assert made.changed.all() and not made.params["unchanged"].any()


def check_mask(op: NegativeAugmentation, shape: Sequence[int]) -> None:
    """Outside the mask the output equals the input bit for bit; within it differs."""
    x = distinct((200, *shape[1:]))
    params = op.flag(x, op.sample(x.shape, seeded(1)))
    y, mask = op.apply(x, params), op.changed_mask(params, x.shape)
    assert mask.dtype == torch.bool and mask.shape == (x.shape[0], *x.shape[2:])
    assert torch.equal(y[~spread(mask, x)], x[~spread(mask, x)]), "changed outside the mask"
    # Within: a box filled with its mean may meet a pixel of just that value.
    differs = (y != x)[spread(mask, x)].float().mean()
    assert differs > 0.99, f"{1 - differs:.0%} of what the mask claims is as it was"


def check_replay(op: NegativeAugmentation, shape: Sequence[int]) -> None:
    """A draw depends on nothing but the generator, applies alike for ever and writes nowhere."""
    x = distinct(shape)
    before, state = x.clone(), torch.get_rng_state()
    params = op.sample(x.shape, seeded(5))
    torch.manual_seed(77)
    again = op.sample(x.shape, seeded(5))
    assert params.keys() == again.keys()
    assert all(torch.equal(params[key], again[key]) for key in params)
    assert torch.equal(op.apply(x, params), op.apply(x, again)), "a replay differs"
    assert torch.equal(op(x, generator=seeded(5)), op.apply(x, params))
    made = op.broken(x, generator=seeded(5))
    assert torch.equal(made.pixels, op.apply(x, params))
    assert torch.equal(op.apply(x, made.params), made.pixels), "flags alter what is applied"
    assert torch.equal(x, before), "apply wrote into its input"
    torch.set_rng_state(state)
    op(x)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def check_parameters(op: NegativeAugmentation, shape: Sequence[int]) -> None:
    """Parameters lie on the CPU, the batch first; a partner is another sample, and each is one."""
    for seed in range(50):
        for key, value in op.sample(shape, seeded(seed)).items():
            assert value.device.type == "cpu"
            assert value.shape[0] == shape[0]
            if key.split(".")[-1] == "partner":
                assert (value != torch.arange(shape[0])).all(), "a sample is its own partner"
                assert sorted(value.tolist()) == list(range(shape[0]))


def check_multiset(op: NegativeAugmentation, shape: Sequence[int]) -> None:
    """What only moves pixels keeps them all."""
    x = distinct((40, *shape[1:]))
    y = op(x, generator=seeded(0))
    assert torch.equal(y.flatten(2).sort().values, x.flatten(2).sort().values)


def check_known(op: NegativeAugmentation, shape: Sequence[int]) -> None:
    """Of content that may come out as it went in, the flag says of each sample whether it did."""
    for name, x in alike(shape).items():
        for seed in range(3):
            made = op.broken(x, generator=seeded(seed))
            same = [torch.equal(a, b) for a, b in zip(made.pixels, x, strict=True)]
            assert made.params["unchanged"].tolist() == same, name
            assert not (made.changed & made.params["unchanged"]).any(), name
            mask = op.changed_mask(made.params, x.shape)
            assert torch.equal(mask.flatten(1).any(1), made.changed), name
            for sample in torch.tensor(same).nonzero().flatten().tolist():
                assert not mask[sample].any(), f"{name}: unchanged, and the mask claims a change"


CHECKS = (
    check_changes_every_sample,
    check_mask,
    check_replay,
    check_parameters,
    check_known,
)
