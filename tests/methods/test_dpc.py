"""DpcMethod: its loss against loops, and the traps of negatives, each with a test of its own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.losses.contrastive import InfoNce
from ndavid.methods.broken_blocks import break_blocks
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig

SMALL = DpcConfig(encoder="resnet2d3d10_half", num_blocks=4, block_len=4, pred_steps=2, dropout=0.0)
SIZE = 64  # 2x2 cells


def clips(batch: int = 2, seed: int = 0, size: int = SIZE) -> dict[str, Tensor]:
    """Coloured noise that moves: every frame of every clip is another one."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, 16, 8, 8, generator=g)
    video = F.interpolate(small, size=(16, size, size), mode="trilinear", align_corners=False)
    return {"video": (video * 255).to(torch.uint8)}


def make(config: NdaConfig | None = None, dpc: DpcConfig = SMALL, **options) -> DpcMethod:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DpcMethod(dpc, config, **options)


def step(method: DpcMethod, batch: dict[str, Tensor], *, seed: int = 0, step: int = 0) -> dict:
    return method(batch, generator=torch.Generator().manual_seed(seed), step=step)


def gradients(method: DpcMethod, batch: dict[str, Tensor], **options) -> list[Tensor]:
    method.zero_grad()
    step(method, batch, **options)["loss"].backward()
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in method.parameters()]


def flat(maps: Tensor) -> Tensor:
    """(B, P, D, h, w) -> (B * P * h * w, D), in that order."""
    return maps.movedim(2, -1).reshape(-1, maps.shape[2])


# --- without NDA -------------------------------------------------------------------------------


def test_plain_loss_is_cross_entropy_over_all_scores() -> None:
    method, batch = make().eval(), clips(3)
    scores = method.dpc.scores(method._blocks(batch["video"]))
    rows = scores.flatten(0, 2).flatten(1, 3)
    expected = F.cross_entropy(rows, torch.arange(len(rows)))
    result = step(method, batch)
    torch.testing.assert_close(result["loss"], expected)
    assert set(result) == {"loss", "top1", "top5"}
    assert result["top1"] == (rows.argmax(1) == torch.arange(len(rows))).float().mean()
    assert all(not value.requires_grad for name, value in result.items() if name != "loss")


def test_normalised_features_with_temperature() -> None:
    method, batch = make(normalize=True, temperature=0.1).eval(), clips(2)
    predictions, targets = method.dpc(method._blocks(batch["video"]))
    scores = F.normalize(flat(predictions), dim=1) @ F.normalize(flat(targets), dim=1).T / 0.1
    expected = F.cross_entropy(scores, torch.arange(len(scores)))
    torch.testing.assert_close(step(method, batch)["loss"], expected)


@pytest.mark.parametrize("change", [{"spec": ""}, {"spec": "", "weight": 3.0, "share": "batch"}])
def test_no_operation_is_the_plain_loss_to_the_bit_and_costs_nothing(change, monkeypatch) -> None:
    batch, encoded = clips(2), []
    plain = step(make(), batch)["loss"]
    method = make(NdaConfig(**change))
    encode = method.dpc.encode
    monkeypatch.setattr(method.dpc, "encode", lambda blocks: encoded.append(1) or encode(blocks))
    assert torch.equal(step(method, batch)["loss"], plain)
    assert len(encoded) == 1


# --- the NDA term, in every place it can enter ---------------------------------------------------


def naive_loss(method: DpcMethod, batch: dict[str, Tensor], seed: int) -> float:
    """The objective in loops and float64, from the same draw of broken clips."""
    config, blocks = method.nda, method._blocks(batch["video"])
    predictions, targets = method.dpc(blocks)
    steps = method.dpc.config.pred_steps
    chosen = {"future": blocks[:, -steps:], "all": blocks, "context": blocks[:, :-steps]}
    broken = break_blocks(
        method.operation,
        chosen[config.where],
        span=config.span,
        draws=config.per_sample,
        generator=torch.Generator().manual_seed(seed),
    )
    features = method.dpc.encode(broken.blocks)
    changed, differs = broken.changed, broken.differs
    if config.span == "clip" and config.where != "context":
        originals = chosen[config.where].repeat(config.per_sample, 1, 1, 1, 1, 1)
        for other in originals.unbind(1):
            differs = (broken.blocks != other.unsqueeze(1)).any(dim=2).float().mean(dim=2)
            changed = torch.minimum(changed, differs)
    true = predictions
    if config.where == "context":
        features, true = method.dpc.predict_from(features), targets
        changed = changed.mean(1, keepdim=True).expand(-1, steps, -1, -1)
        differs = differs.any(1, keepdim=True).expand(-1, steps, -1, -1)
    total, (samples, _, _, height, width) = 0.0, predictions.shape
    side = SIZE // height
    if config.entry == "pooled":
        total += height * width * naive_pooled(config, broken, features, changed, method, batch)
    for b in range(samples):
        for p in range(steps):
            for h in range(height):
                for w in range(width):
                    query = predictions[b, p, :, h, w].double()
                    logits = flat(targets).double() @ query
                    positive = float(query @ targets[b, p, :, h, w].double())
                    denominator = float(logits.exp().sum())
                    for k in range(len(features) if config.entry == "cells" else 0):
                        if config.share == "own" and k % samples != b:
                            continue
                        if config.share == "batch" and broken.partner[k] == b:
                            continue
                        for q in range(features.shape[1]):
                            if config.where == "context" and q != p:
                                continue
                            place = (k, q, slice(h * side, None), slice(w * side, None))
                            cell = changed[place][:side, :side]
                            if cell.mean() < config.least_changed:
                                continue
                            if not differs[place][:side, :side].any():
                                continue
                            left = true[b, p, :, h, w].double()
                            right = features[k, q, :, h, w].double()
                            dot = config.scale * float(left @ right)
                            denominator += config.weight * math.exp(dot)
                    total += math.log(denominator) - positive
    return total / (samples * steps * height * width)


def naive_pooled(config, broken, features, changed, method, batch) -> float:
    """The sum over samples and steps of the softmax in which everything is pooled."""
    predictions, targets = method.dpc(method._blocks(batch["video"]))
    (samples, steps), total = predictions.shape[:2], 0.0
    for b in range(samples):
        for p in range(steps):
            query, key = (maps[b, p].double().mean((1, 2)) for maps in (predictions, targets))
            positive, denominator = float(query @ key), math.exp(float(query @ key))
            for k in range(len(features)):
                if config.share == "own" and k % samples != b:
                    continue
                if config.share == "batch" and broken.partner[k] == b:
                    continue
                for q in range(features.shape[1]):
                    if config.where == "context" and q != p:
                        continue
                    if changed[k, q].mean() < config.least_changed:
                        continue
                    meets = key if config.where == "context" else query
                    dot = float(meets @ features[k, q].double().mean((1, 2)))
                    denominator += config.weight * math.exp(config.scale * dot)
            total += math.log(denominator) - positive
    return total


@pytest.mark.parametrize("where", ["future", "all", "context"])
@pytest.mark.parametrize("entry", ["cells", "pooled"])
@pytest.mark.parametrize(
    ("spec", "share", "span", "per_sample", "weight", "scale"),
    [
        ("stitch", "own", "block", 1, 1.0, 1.0),
        ("stitch", "batch", "block", 2, 1.0, 1.0),
        ("cut_mix", "batch", "clip", 1, 0.5, 1.0),
        ("frame_shuffle", "own", "clip", 2, 2.0, 1.5),
        ("cuboid_jigsaw", "own", "clip", 1, 1.0, 1.0),
    ],
)
def test_loss_agrees_with_loops(where, entry, spec, share, span, per_sample, weight, scale) -> None:
    config = NdaConfig(
        spec=spec,
        where=where,
        entry=entry,
        share=share,
        span=span,
        per_sample=per_sample,
        weight=weight,
        scale=scale,
    )
    method, batch = make(config).eval(), clips(3)
    with torch.no_grad():
        result = step(method, batch, seed=3)
        expected = naive_loss(method, batch, seed=3)
    assert result["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert {"nda_accuracy", "nda_outrank", "nda_active", "nda_unchanged"} <= set(result)


@pytest.mark.parametrize("chunk_rows", [0, 5])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weight", [1.0, 16.0])
def test_pooled_negatives_stand_beside_a_pooled_positive(
    chunk_rows: int, normalize: bool, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of broken blocks that equal the true target's mean: nothing tells them apart."""
    options = {"chunk_rows": chunk_rows, "normalize": normalize, "temperature": 0.5}
    config = NdaConfig(spec="stitch", entry="pooled", weight=weight)
    method, batch = make(config, **options).eval(), clips(3)
    _, targets = method.dpc(method._blocks(batch["video"]))
    # Of each sample's steps the one target, so that every column is the row's own positive.
    targets = targets[:, :1].expand_as(targets)
    monkeypatch.setattr(method, "_encode_broken", lambda blocks: targets.flip((-2, -1)))
    monkeypatch.setattr(method.dpc, "forward", lambda blocks: (targets + 1, targets))
    results: list[InfoNce] = []
    contrast = method._contrast_pooled
    monkeypatch.setattr(
        method, "_contrast_pooled", lambda *maps: results.append(contrast(*maps)) or results[-1]
    )
    made = step(method, batch)
    assert results[0].nda.shape == (6, 2)
    torch.testing.assert_close(results[0].nda, results[0].positive[:, None].expand(6, 2))
    monkeypatch.setattr(method, "operation", None)
    without = step(method, batch)["loss"]
    gap = float((made["loss"] - without).detach())
    assert gap == pytest.approx(math.log(1 + 2 * weight), rel=1e-4)  # chance, one of 1 + 2 w


def test_weight_zero_and_pooled_is_plain_dpc_to_the_bit() -> None:
    pooled = NdaConfig(spec="stitch", weight=0.0, entry="pooled", share="batch")
    pairs = zip(gradients(make(), clips(2)), gradients(make(pooled), clips(2)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


CHUNKED = [
    {},
    {"spec": "stitch"},
    {"spec": "stitch", "align": "all", "where": "all", "per_sample": 2, "weight": 0.5},
    {"spec": "stitch", "share": "batch", "scale": 1.5},
    {"spec": "stitch", "share": "batch", "align": "all", "stop_grad": True},
    {"spec": "cut_mix", "where": "context", "share": "batch", "entry": "pooled"},
    {"spec": "frame_shuffle", "where": "context", "weight": 0.0},
]


@pytest.mark.parametrize("options", CHUNKED, ids=str)
def test_scores_in_chunks_make_no_difference(options: dict) -> None:
    config, batch = NdaConfig(**options), clips(2)
    similar = {"normalize": True, "temperature": 0.1}
    whole, chunked = (make(config, chunk_rows=rows, **similar).eval() for rows in (0, 5))
    expected, made = step(whole, batch), step(chunked, batch)
    assert set(made) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(whole, batch), gradients(chunked, batch), strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


def test_rows_at_a_time_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match="chunk_rows"):
        make(chunk_rows=-1)


def test_every_parameter_learns_from_broken_clips() -> None:
    plain = gradients(make().eval(), clips(2))
    with_nda = gradients(make(NdaConfig(spec="stitch")).eval(), clips(2))
    for without, with_term in zip(plain, with_nda, strict=True):
        assert with_term.isfinite().all()
        assert not torch.equal(without, with_term)


@pytest.mark.parametrize("share", ["own", "batch"])
def test_stop_grad_changes_gradients_but_not_the_loss(share: str) -> None:
    batch = clips(3)
    moving = make(NdaConfig(spec="stitch", share=share))
    still = make(NdaConfig(spec="stitch", share=share, stop_grad=True))
    assert torch.equal(step(moving, batch)["loss"], step(still, batch)["loss"])
    pairs = zip(gradients(moving, batch), gradients(still, batch), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


# --- traps of dense negatives --------------------------------------------------------------------


def test_untouched_cells_are_masked() -> None:
    """A stitched clip keeps one half: on 2x2 cells, two of the four are negatives, no more."""
    result = step(make(NdaConfig(spec="stitch")), clips(4))
    assert result["nda_active"].item() == pytest.approx(0.5)


def test_the_naive_form_takes_untouched_cells_too() -> None:
    config = NdaConfig(spec="stitch", min_changed=0)
    assert step(make(config), clips(4))["nda_active"] == 1


@pytest.mark.parametrize("spec", ["stitch", "jigsaw", "cutout", "cut_mix", "frame_shuffle"])
def test_pooled_counts_every_operation_by_default(spec: str) -> None:
    assert step(make(NdaConfig(spec=spec, entry="pooled")), clips(4))["nda_active"] == 1


@pytest.mark.parametrize(("least", "active"), [(0.5, 1.0), (0.6, 0.0)])
def test_pooled_asks_for_a_share_of_the_whole_block(least: float, active: float) -> None:
    """A stitch replaces half of it."""
    config = NdaConfig(spec="stitch", entry="pooled", min_changed=least)
    assert step(make(config), clips(4))["nda_active"] == active


@pytest.mark.parametrize("where", ["future", "all"])
def test_whole_block_reordering_across_blocks_is_refused(where: str) -> None:
    chunks = SMALL.pred_steps if where == "future" else SMALL.num_blocks
    spec = f"temporal_jigsaw:segments={chunks}"
    with pytest.raises(ConfigError, match=r"whole blocks.*span=block"):
        make(NdaConfig(spec=spec, span="clip", where=where))
    make(NdaConfig(spec=spec, span="block", where=where))


def test_whole_block_reordering_of_the_past_is_welcome() -> None:
    config = NdaConfig(spec="temporal_jigsaw:segments=2", span="clip", where="context")
    result = step(make(config), clips(2))
    assert result["loss"].isfinite() and result["nda_active"] == 1


@pytest.mark.parametrize("where", ["future", "all"])
def test_cells_moved_whole_between_blocks_are_masked(where: str) -> None:
    """Two cuboids in time: what changes its block and not its cell is some row's positive."""
    config = NdaConfig(spec="cuboid_jigsaw", span="clip", where=where)
    method, batch = make(config), clips(4)
    broken = break_blocks(
        method.operation,
        method._blocks_to_break(method._blocks(batch["video"])),
        span="clip",
        draws=1,
        generator=torch.Generator().manual_seed(0),
    )
    moved = (broken.changed[:, :, ::32, ::32] == 1).float().mean()
    active = step(method, batch)["nda_active"]
    assert 0 < active < moved - 0.05


def test_static_clips_give_no_negative() -> None:
    frozen = clips(3)
    frozen["video"][1] = frozen["video"][1, :, :1]
    config = NdaConfig(spec="frame_shuffle:min_motion=0.001", min_changed=0.1)
    assert step(make(config), clips(3))["nda_active"] == 1
    assert step(make(config), frozen)["nda_active"].item() == pytest.approx(2 / 3)
    frozen["video"][:] = frozen["video"][:, :, :1]
    plain, masked = step(make().eval(), frozen), step(make(config).eval(), frozen)
    torch.testing.assert_close(masked["loss"], plain["loss"])
    assert masked["nda_active"] == 0


@pytest.mark.parametrize("entry", ["cells", "pooled"])
def test_a_static_block_in_a_moving_clip_gives_no_negative(entry: str) -> None:
    batch = clips(3)
    last = batch["video"][1, :, -SMALL.block_len :]
    noise = torch.randint(0, 2, last.shape, generator=torch.Generator().manual_seed(0))
    last[:] = last[:, :1] // 2 + noise  # nearly still: no two frames are equal
    spec, options = "frame_shuffle", {"entry": entry, "min_changed": 0.1}
    assert step(make(NdaConfig(spec=spec, **options)), batch)["nda_active"] == 1
    flagged = step(make(NdaConfig(spec=f"{spec}:min_motion=0.05", **options)), batch)
    assert flagged["nda_active"].item() == pytest.approx(5 / 6)  # of 3 x 2 blocks


STILL = {
    "frame_shuffle": {"spec": "frame_shuffle", "min_changed": 0.1},
    "reverse": {"spec": "reverse"},
    "across_blocks": {"spec": "frame_shuffle", "span": "clip", "min_changed": 0.1},
    "context": {"spec": "frame_shuffle", "where": "context", "min_changed": 0.1},
    "pooled": {"spec": "frame_shuffle", "entry": "pooled"},
    "either": {"spec": "frame_shuffle | reverse", "min_changed": 0.1},
}


@pytest.mark.parametrize("name", STILL)
def test_a_still_among_moving_clips_gives_no_negative_without_a_key(name: str) -> None:
    config, batch = NdaConfig(**STILL[name]), clips(3)
    before = step(make(config), batch)
    batch["video"][1] = batch["video"][1, :, :1]
    after = step(make(config), batch)
    assert before["nda_unchanged"] == 0
    assert after["nda_unchanged"].item() == pytest.approx(1 / 3)
    assert after["nda_active"].item() == pytest.approx(before["nda_active"].item() * 2 / 3, abs=0.1)
    batch["video"][:] = batch["video"][:, :, :1]
    plain, masked = step(make().eval(), batch), step(make(config).eval(), batch)
    torch.testing.assert_close(masked["loss"], plain["loss"])
    assert masked["nda_active"] == 0 and masked["nda_unchanged"] == 1


def test_the_still_cells_of_a_moving_clip_give_no_negative() -> None:
    """The left half stands still: in whatever order, its cells show what they showed."""
    batch = clips(3)
    batch["video"][..., : SIZE // 2] = batch["video"][:, :, :1, :, : SIZE // 2]
    config = NdaConfig(spec="frame_shuffle", min_changed=0.1)
    result = step(make(config), batch)
    assert result["nda_active"] == 0.5 and result["nda_unchanged"] == 0


def test_byte_copies_in_a_batch_lend_nothing() -> None:
    batch = clips(2)
    batch["video"][1] = batch["video"][0]
    result = step(make(NdaConfig(spec="stitch")), batch)
    assert result["nda_active"] == 0 and result["nda_unchanged"] == 1


def test_broken_clips_move_no_running_statistics() -> None:
    plain, with_nda = make(), make(NdaConfig(spec="stitch", per_sample=2, where="all"))
    batch = clips(2)
    before = {name: buffer.clone() for name, buffer in plain.named_buffers()}
    step(plain, batch), step(with_nda, batch)
    after = dict(plain.named_buffers())
    assert any(not torch.equal(after[name], before[name]) for name in before)
    for name, buffer in with_nda.named_buffers():
        assert torch.equal(buffer, after[name]), name


def test_broken_clips_are_normalised_by_their_own_statistics() -> None:
    """The true features, hence the plain part of the metrics, do not feel the broken batch."""
    batch = clips(3)
    plain, with_nda = step(make(), batch), step(make(NdaConfig(spec="stitch", weight=0)), batch)
    for name in plain:
        assert torch.equal(plain[name], with_nda[name])


@pytest.mark.parametrize("share", ["own", "batch"])
def test_weight_zero_gives_the_gradients_of_plain_dpc_to_the_bit(share: str) -> None:
    dropping = DpcConfig(**{**vars(SMALL), "dropout": 0.1})
    results = []
    for config in (None, NdaConfig(spec="stitch", weight=0.0, share=share)):
        with torch.random.fork_rng():
            method = make(config, dropping)
            torch.manual_seed(7)
            results.append(gradients(method, clips(2)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_warm_up_starts_from_plain_dpc() -> None:
    batch = clips(2)
    method = make(NdaConfig(spec="stitch", weight=2.0, warmup_steps=10)).eval()
    plain = step(make().eval(), batch)["loss"]
    losses = [step(method, batch, step=s)["loss"] for s in (0, 5, 10, 11)]
    assert torch.equal(losses[0], plain)
    assert losses[0] < losses[1] < losses[2] == losses[3]


def test_a_batch_of_one_has_no_partner() -> None:
    with pytest.raises(ConfigError, match="batch of at least 2"):
        step(make(NdaConfig(spec="stitch")), clips(1))
    assert step(make(NdaConfig(spec="jigsaw")).eval(), clips(1))["loss"].isfinite()


def test_share_batch_spares_the_sample_that_lent_its_content() -> None:
    """In a batch of two the partner is the only other sample: each row meets its own clip alone."""
    own = step(make(NdaConfig(spec="stitch")).eval(), clips(2))["loss"]
    shared = step(make(NdaConfig(spec="stitch", share="batch")).eval(), clips(2))["loss"]
    torch.testing.assert_close(own, shared)


# --- randomness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["stitch", "mixup", "frame_shuffle", "jigsaw | reverse"])
def test_draws_come_from_the_generator_alone(spec: str) -> None:
    method, batch = make(NdaConfig(spec=spec)).eval(), clips(4)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = step(method, batch, seed=5)["loss"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(step(method, batch, seed=5)["loss"], first)
    others = [step(method, batch, seed=seed)["loss"] for seed in (6, 7, 8)]
    assert any(not torch.equal(other, first) for other in others)


# --- precision, shapes, state --------------------------------------------------------------------


def test_similarities_are_float32_under_autocast() -> None:
    """Same features in, same loss out: what bfloat16 may change is the features alone."""
    method, batch = make(NdaConfig(spec="stitch")).eval(), clips(2)
    kept: list[Tensor] = []
    method.dpc.predictor.register_forward_hook(lambda *_: kept.append(_[-1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = step(method, batch)
    assert kept[0].dtype == torch.bfloat16
    assert result["loss"].dtype == torch.float32
    full = step(method, batch)["loss"]
    assert result["loss"].item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.parametrize("shape", [(2, 3, 15, 64, 64), (2, 3, 64, 64)])
def test_clips_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"4 \* 4"):
        step(make(), {"video": torch.zeros(shape, dtype=torch.uint8)})


def test_a_lone_prediction_is_refused() -> None:
    config = DpcConfig(encoder="resnet2d3d10_half", num_blocks=2, block_len=4, pred_steps=1)
    method, batch = make(dpc=config).eval(), clips(1, size=32)
    batch["video"] = batch["video"][:, :, :8]
    with pytest.raises(ValueError, match="no negatives"):
        step(method, batch)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        make(temperature=0.0)


def test_state_is_the_dpc_model_alone() -> None:
    method = make(NdaConfig(spec="stitch"))
    assert set(method.state_dict()) == {f"dpc.{name}" for name in method.dpc.state_dict()}


def test_compiled_encoder_gives_the_same_loss_and_statistics() -> None:
    """Tracing alone: the graph of the broken forward must not move running statistics either."""
    batch, results = clips(2), []
    for compiled in (False, True):
        method = make(NdaConfig(spec="stitch"))
        if compiled:
            for target in method.compile_targets():
                target.compile(backend="eager")
        losses = [step(method, batch, seed=seed)["loss"] for seed in (0, 1)]
        results.append((losses, dict(method.named_buffers())))
    torch.testing.assert_close(results[0], results[1])


def test_training_separates_broken_clips_from_true_ones() -> None:
    """A few steps on one batch: the positive comes to beat its NDA negatives."""
    method, batch = make(NdaConfig(spec="stitch")), clips(3)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    first = step(method, batch)
    for index in range(12):
        optimizer.zero_grad()
        result = step(method, batch, seed=index)
        result["loss"].backward()
        optimizer.step()
    assert result["loss"] < first["loss"]
    assert result["nda_accuracy"] > 0.9 and result["nda_outrank"] < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ["", "stitch", "frame_shuffle | cutout"])
def test_cuda_draws_and_scores_like_cpu(spec: str) -> None:
    batch = clips(4)
    on_cuda = {name: value.cuda() for name, value in batch.items()}
    config = NdaConfig(spec=spec, share="batch")
    cpu, method = step(make(config).eval(), batch), make(config).eval().cuda()
    torch.testing.assert_close(step(method, on_cuda)["loss"].cpu(), cpu["loss"], rtol=1e-2, atol=0)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = step(method, on_cuda)
    assert result["loss"].dtype == torch.float32
    torch.testing.assert_close(result["loss"].cpu(), cpu["loss"], rtol=5e-2, atol=0)
