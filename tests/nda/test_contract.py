"""What every op promises, whatever it does: DESIGN's guarantees, over many draws."""

from __future__ import annotations

import pytest
import torch

from ndavid import nda

CLIP, IMAGE = (6, 2, 8, 12, 16), (6, 3, 12, 16)
VARIANTS = {
    "jigsaw": nda.Jigsaw(),
    "jigsaw-3x4": nda.Jigsaw((3, 4)),
    "jigsaw-row": nda.Jigsaw((1, 4), derangement=True),
    "jigsaw-column": nda.Jigsaw((6, 1)),
    "jigsaw-per-frame": nda.Jigsaw(2, per_frame=True),
    "stitch": nda.Stitch(),
    "stitch-per-frame": nda.Stitch(per_frame=True),
    "mixup": nda.Mixup(),
    "mixup-extreme": nda.Mixup(alpha=0.05),
    "cutout": nda.Cutout(),
    "cutout-zero": nda.Cutout(fill="zero"),
    "cutout-noise": nda.Cutout(fill="noise"),
    "cutout-per-frame": nda.Cutout(per_frame=True),
    "cut_mix": nda.CutMix(),
    "cut_mix-beta": nda.CutMix(beta=0.3, per_frame=True),
    "patch_resample": nda.PatchResample(min_side=0.15),
    "patch_resample-per-frame": nda.PatchResample(min_side=0.3, max_side=0.7, per_frame=True),
    "frame_shuffle": nda.FrameShuffle(),
    "temporal_jigsaw": nda.TemporalJigsaw(),
    "temporal_jigsaw-swap": nda.TemporalJigsaw(4, swap=2),
    "frame_repeat": nda.FrameRepeat(),
    "reverse": nda.Reverse(),
    "cuboid_jigsaw": nda.CuboidJigsaw(),
    "cuboid_jigsaw-flat": nda.CuboidJigsaw(grid=(3, 1), segments=4, derangement=True),
    "temporal_stitch": nda.TemporalStitch(),
    "one_of": nda.OneOf([nda.Jigsaw(), nda.CutMix(), nda.FrameShuffle()]),
    "compose": nda.Compose([nda.Stitch(), nda.Jigsaw(), nda.Reverse(), nda.Cutout()]),
    "nested": nda.OneOf([nda.Compose([nda.Mixup(), nda.Jigsaw()]), nda.TemporalJigsaw(2)]),
}
ON_IMAGES = {name: op for name, op in VARIANTS.items() if not op.clips_only}
PERMUTING = [name for name in VARIANTS if "jigsaw" in name or name in ("frame_shuffle", "reverse")]
CASES = [pytest.param(op, CLIP, id=f"clip-{name}") for name, op in VARIANTS.items()] + [
    pytest.param(op, IMAGE, id=f"image-{name}") for name, op in ON_IMAGES.items()
]
every_op = pytest.mark.parametrize(("op", "shape"), CASES)


def spread(mask, x):
    """A changed mask over the channels of ``x``."""
    return mask.unsqueeze(1).expand_as(x)


@every_op
def test_changes_every_sample_in_thousands_of_draws(op, shape, distinct, seeded):
    generator = seeded(0)
    # One channel tells as much as three; ten thousand samples in all.
    for batch, draws in ((2, 100), (3, 100), (8, 100), (2200, 4)):
        x = distinct((batch, 1, *shape[2:]))
        for _ in range(draws):
            changed = (op(x, generator=generator) != x).flatten(1).any(1)
            assert changed.all(), f"{(~changed).sum()} of {batch} samples came out clean"


@every_op
def test_output_equals_input_outside_the_mask_and_differs_within(op, shape, distinct, seeded):
    x = distinct((200, *shape[1:]))
    params = op.flag(x, op.sample(x.shape, seeded(1)))
    y, mask = op.apply(x, params), op.changed_mask(params, x.shape)
    assert mask.dtype == torch.bool and mask.shape == (x.shape[0], *x.shape[2:])
    assert torch.equal(y[~spread(mask, x)], x[~spread(mask, x)])
    # Within: a box filled with its mean may meet a pixel of just that value.
    differs = (y != x)[spread(mask, x)].float().mean()
    assert differs > 0.99


@every_op
def test_replays_and_depends_on_nothing_but_the_generator(op, shape, distinct, seeded):
    x = distinct(shape)
    before, state = x.clone(), torch.get_rng_state()
    params = op.sample(x.shape, seeded(5))
    torch.manual_seed(77)
    again = op.sample(x.shape, seeded(5))
    assert params.keys() == again.keys()
    assert all(torch.equal(params[key], again[key]) for key in params)
    assert torch.equal(op.apply(x, params), op.apply(x, again))
    assert torch.equal(op(x, generator=seeded(5)), op.apply(x, params))
    assert torch.equal(x, before), "apply wrote into its input"
    torch.set_rng_state(state)
    op(x)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@every_op
def test_every_parameter_is_on_the_cpu_and_per_sample(op, shape, seeded):
    for value in op.sample(shape, seeded(0)).values():
        assert value.device.type == "cpu"
        assert value.shape[0] == shape[0]


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


@every_op
def test_apply_compiles_without_a_graph_break(op, shape, distinct, seeded):
    torch.compiler.reset()
    x = distinct(shape)
    params = op.sample(shape, seeded(3))
    compiled = torch.compile(
        lambda x, params: (op.apply(x, params), op.changed_mask(params, x.shape)),
        fullgraph=True,
        backend="eager",
    )
    y, mask = compiled(x, params)
    assert torch.equal(y, op.apply(x, params))
    assert torch.equal(mask, op.changed_mask(params, shape))


@pytest.mark.parametrize("name", ["jigsaw", "stitch", "cut_mix", "cutout", "patch_resample"])
def test_apply_survives_functionalisation(name, distinct, seeded):
    torch.compiler.reset()
    op, x = VARIANTS[name], distinct(IMAGE)
    params = op.sample(IMAGE, seeded(3))
    compiled = torch.compile(op.apply, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, params), op.apply(x, params))


@pytest.mark.parametrize("name", PERMUTING)
def test_permuting_ops_keep_the_multiset_of_pixels(name, distinct, seeded):
    shape = (40, *CLIP[1:])
    x = distinct(shape)
    y = VARIANTS[name](x, generator=seeded(0))
    assert torch.equal(y.flatten(2).sort().values, x.flatten(2).sort().values)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_spatial_op_does_the_same_in_every_frame(name, distinct, seeded):
    op = ON_IMAGES[name]
    if "per-frame" in name or getattr(op, "per_frame", False):
        pytest.skip("asked to differ between frames")
    x = distinct(CLIP)
    params = op.sample(CLIP, seeded(4))
    frames = {k: v.squeeze(2) if k == "noise" else v for k, v in params.items()}
    if "noise" in params:
        frames["noise"] = params["noise"]
    y = op.apply(x, params)
    for t in range(CLIP[2]):
        torch.testing.assert_close(y[:, :, t], op.apply(x[:, :, t], frames), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "cutout-noise"])
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
