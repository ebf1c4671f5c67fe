"""What every op promises, whatever it does: DESIGN's guarantees, over many draws.

The ops come from the registry (`contract.variants`), so that none can be forgotten; and ops that
break the contract on purpose show that the checks can fail.
"""

from __future__ import annotations

import op_contract as contract
import pytest
import torch
from op_contract import CLIP, IMAGE
from torch import Tensor

from ndavid import nda
from ndavid.nda.base import NegativeAugmentation

VARIANTS = {**contract.variants(), **contract.combinations()}
ON_IMAGES = {name: op for name, op in VARIANTS.items() if not op.clips_only}
# Of the ops that move pixels about, those that show some twice and others not at all.
REPEATING = ("patch_resample", "frame_repeat")
PERMUTING = [
    name
    for name, op in VARIANTS.items()
    if op.acts_on <= {"space", "time"} and op.name not in REPEATING
]
CASES = [pytest.param(op, CLIP, id=f"clip-{name}") for name, op in VARIANTS.items()] + [
    pytest.param(op, IMAGE, id=f"image-{name}") for name, op in ON_IMAGES.items()
]
every_op = pytest.mark.parametrize(("op", "shape"), CASES)


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@every_op
def test_keeps_the_contract(op, shape, check):
    check(op, shape)


@pytest.mark.parametrize("name", PERMUTING)
def test_permuting_ops_keep_the_multiset_of_pixels(name):
    contract.check_multiset(VARIANTS[name], CLIP)


def test_every_op_of_the_registry_is_among_the_cases():
    assert set(nda.OPS.values()) <= {type(op) for op in VARIANTS.values()}
    assert set(contract.variants(nda.OPS | {Idle.name: Idle})) > set(contract.variants())


def test_content_that_cannot_be_changed_is_flagged():
    """Not only right where it is said, but said: of stills, plain areas and byte copies."""
    seen = 0
    for name, op in contract.variants().items():
        x = contract.alike(CLIP)
        for content, rows in (("still", slice(0, None, 2)), ("plain", slice(0, None, 2))):
            fails = op.acts_on <= ({"time"} if content == "still" else {"time", "space"})
            if fails:
                made = op.broken(x[content], generator=contract.seeded(0))
                assert made.params["unchanged"][rows].all(), (name, content)
                seen += 1
        if op.acts_on == {"sample"}:
            made = op.broken(x["byte_copies"], generator=contract.seeded(0))
            assert made.params["unchanged"].all() and not made.changed.any(), name
            seen += 1
    assert seen > 20


def test_a_clip_that_repeats_with_the_segments_length_is_found():
    """Of the lengths that are looped in J-HMDB one in six: 8 blocks of 5 frames at stride 3."""
    source = contract.distinct((1, 2, 15, 4, 4))[:, :, (3 * torch.arange(40)) % 15]
    params = (op := nda.TemporalJigsaw(4)).sample(source.shape, contract.seeded(0))
    assert torch.equal(op.apply(source, params), source)
    made = op.broken(source, generator=contract.seeded(0))
    assert made.params["unchanged"].all() and not made.changed.any()
    # Of 16 frames a loop it is another clip.
    other = contract.distinct((1, 2, 16, 4, 4))[:, :, (3 * torch.arange(40)) % 16]
    assert op.broken(other, generator=contract.seeded(0)).changed.all()


# --- ops that lie --------------------------------------------------------------------------------


class Idle(NegativeAugmentation):
    """Changes nothing and claims that it changed everything."""

    name = "idle"
    acts_on = frozenset({"value"})

    def _draw(self, shape, generator) -> dict[str, Tensor]:
        return {"number": torch.randint(9, (shape[0],), generator=generator)}

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x.clone()

    def changed_mask(self, params: dict[str, Tensor], shape) -> Tensor:
        return torch.ones(shape[0], *shape[2:], dtype=torch.bool)


class MostlyIdle(Idle):
    """Leaves one sample in a hundred as it was."""

    name = "mostly_idle"

    def _draw(self, shape, generator) -> dict[str, Tensor]:
        return {"number": torch.randint(100, (shape[0],), generator=generator)}

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x + params["number"].sign().view(-1, *[1] * (x.dim() - 1))


class Secretive(Idle):
    """Changes everything and claims half of it."""

    name = "secretive"

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x + 1

    def changed_mask(self, params: dict[str, Tensor], shape) -> Tensor:
        mask = super().changed_mask(params, shape).clone()
        mask[..., : shape[-1] // 2] = False
        return mask


class Restless(Secretive):
    """Another result at every replay."""

    name = "restless"

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x + torch.rand(())


class Scribbler(Secretive):
    """Writes into its input."""

    name = "scribbler"

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x.add_(1).clone()


class Lonely(Secretive):
    """Takes a sample for its own partner."""

    name = "lonely"

    def _draw(self, shape, generator) -> dict[str, Tensor]:
        return {"partner": torch.arange(shape[0])}


class Lossy(Secretive):
    """Says that it moves pixels and loses some."""

    name = "lossy"

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return x.roll(1, -1).clamp_min(10)


@pytest.mark.parametrize(
    ("liar", "check", "says"),
    [
        (Idle, contract.check_changes_every_sample, "came out clean"),
        (Idle, contract.check_mask, "of what the mask claims is as it was"),
        (MostlyIdle, contract.check_changes_every_sample, "came out clean"),
        (Secretive, contract.check_mask, "changed outside the mask"),
        (Restless, contract.check_replay, "a replay differs"),
        (Scribbler, contract.check_replay, None),
        (Lonely, contract.check_parameters, "its own partner"),
        (Lossy, contract.check_multiset, None),
    ],
)
def test_the_checks_find_an_op_that_lies(liar, check, says, monkeypatch):
    monkeypatch.setitem(nda.OPS, liar.name, liar)
    with pytest.raises(AssertionError, match=says):
        check(contract.variants()[liar.name], CLIP)


def test_an_idle_op_is_masked_for_all_that_it_claims():
    made = Idle().broken(contract.distinct(CLIP), generator=contract.seeded(0))
    assert made.params["unchanged"].all() and not made.changed.any()
    assert not Idle().changed_mask(made.params, CLIP).any()
    contract.check_known(Idle(), CLIP)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "=" not in name or "per_" in name])
def test_what_is_done_on_the_device_compiles_without_a_graph_break(name, distinct, seeded):
    torch.compiler.reset()
    op, x = VARIANTS[name], distinct(CLIP)
    params = op.sample(CLIP, seeded(3))

    def known(x, params):
        flagged = op.flag(x, params)
        broken = op.apply(x, flagged)
        flagged = op.compare(x, broken, flagged)
        return broken, flagged["unchanged"], op.changed_mask(flagged, x.shape)

    compiled = torch.compile(known, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(x, params), known(x, params), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
@every_op
def test_keeps_shape_dtype_and_device(op, shape, dtype, seeded):
    x = torch.randint(0, 256, shape, generator=seeded(0)).to(dtype)
    y = op(x, generator=seeded(0))
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert (y != x).flatten(1).any(1).all()


@every_op
def test_any_memory_layout_gives_the_same(op, shape, distinct, seeded):
    x = distinct(shape)
    fancy = x.to(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)
    params = op.sample(shape, seeded(2))
    # Sums of whole numbers this large round; everything else is exact.
    torch.testing.assert_close(op.apply(fancy, params), op.apply(x, params), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["jigsaw", "stitch", "cut_mix", "cutout", "patch_resample"])
def test_apply_survives_functionalisation(name, distinct, seeded):
    torch.compiler.reset()
    op, x = VARIANTS[name], distinct(IMAGE)
    params = op.sample(IMAGE, seeded(3))
    compiled = torch.compile(op.apply, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, params), op.apply(x, params))


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_spatial_op_does_the_same_in_every_frame(name, distinct, seeded):
    op = ON_IMAGES[name]
    if getattr(op, "per_frame", False):
        pytest.skip("asked to differ between frames")
    x = distinct(CLIP)
    params = op.sample(CLIP, seeded(4))
    frames = {k: v.squeeze(2) if k == "noise" else v for k, v in params.items()}
    if "noise" in params:
        frames["noise"] = params["noise"]
    y = op.apply(x, params)
    for t in range(CLIP[2]):
        torch.testing.assert_close(y[:, :, t], op.apply(x[:, :, t], frames), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "cutout-fill=noise"])
def test_blocks_folded_into_channels_are_broken_alike(name, distinct, seeded):
    """DPC hands over (B, N*C, T, H, W) and relies on one draw for all N blocks."""
    op, blocks = VARIANTS[name], 3
    folded = distinct((CLIP[0], blocks * CLIP[1], *CLIP[2:]))
    params = op.sample(folded.shape, seeded(6))
    together = op.apply(folded, params).chunk(blocks, dim=1)
    for block, broken in zip(folded.chunk(blocks, dim=1), together, strict=True):
        torch.testing.assert_close(broken, op.apply(block, params), rtol=1e-6, atol=0)


@every_op
def test_gradients_reach_the_input(op, shape, distinct, seeded):
    x = (distinct(shape) / 1000).requires_grad_()
    op(x, generator=seeded(0)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [n for n, op in VARIANTS.items() if op.needs_partner])
def test_a_batch_of_one_has_no_partner(name):
    with pytest.raises(ValueError, match="raise the batch size"):
        VARIANTS[name].sample((1, *CLIP[1:]))


@pytest.mark.parametrize("name", [n for n, op in VARIANTS.items() if not op.needs_partner])
def test_a_batch_of_one_is_enough_without_a_partner(name, distinct, seeded):
    x = distinct((1, *CLIP[1:]))
    for seed in range(50):
        assert not torch.equal(VARIANTS[name](x, generator=seeded(seed)), x)


@pytest.mark.parametrize("name", [n for n, op in VARIANTS.items() if op.clips_only])
def test_ops_in_time_refuse_images(name):
    with pytest.raises(ValueError, match="works on clips"):
        VARIANTS[name].sample(IMAGE)


def test_parameters_of_another_batch_are_refused(distinct, seeded):
    op = nda.Jigsaw()
    params = op.sample((4, 3, 8, 8), seeded(0))
    with pytest.raises(ValueError, match="drawn for a batch of 4, x has 5"):
        op.apply(distinct((5, 3, 8, 8)), params)


def test_other_ranks_than_clips_and_images_are_refused():
    with pytest.raises(ValueError, match="expected clips"):
        nda.Jigsaw().sample((3, 8, 8))


def test_without_a_generator_every_call_draws_anew(distinct):
    x, op = distinct((64, 1, 8, 8)), nda.Jigsaw()
    torch.manual_seed(0)
    first = op(x)
    torch.manual_seed(0)
    assert not torch.equal(op(x), first)


@pytest.mark.gpu
@every_op
def test_gpu_agrees_with_cpu(op, shape, distinct, seeded):
    x = distinct(shape) / 1000
    params = op.sample(shape, seeded(9))
    on_gpu = op.apply(x.cuda(), op.flag(x.cuda(), params)).cpu()
    torch.testing.assert_close(on_gpu, op.apply(x, params), rtol=1e-5, atol=1e-6)
    mask = op.changed_mask(op.flag(x.cuda(), params), shape)
    assert mask.device.type == "cuda"
    assert torch.equal(mask.cpu(), op.changed_mask(params, shape))


@pytest.mark.gpu
def test_a_gpu_generator_is_refused():
    with pytest.raises(ValueError, match="drawn on the CPU"):
        nda.Jigsaw().sample((4, 3, 8, 8), torch.Generator("cuda"))
