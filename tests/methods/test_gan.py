"""GanMethod: each turn against a loop written out, and the gradients of one big batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from toys import SwapLeftHalves

from ndavid.errors import ConfigError
from ndavid.losses.adversarial import Objective
from ndavid.methods import gan as gan_module
from ndavid.methods.gan import DISCRIMINATOR, GENERATOR, GanMethod
from ndavid.methods.gan_config import AdversarialConfig, GanAugmentConfig, GanNdaConfig
from ndavid.models.gan.model import GanConfig
from ndavid.models.gan.spectral_norm import frozen_power_iteration, spectral_norms
from ndavid.nda.base import ShapeError

SIZE = 32


def make(
    nda: dict[str, Any] | None = None,
    adversarial: dict[str, Any] | None = None,
    augment: dict[str, Any] | None = None,
    **model: Any,
) -> GanMethod:
    settings = {"architecture": "sngan", "generator_channels": 2, "discriminator_channels": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = GanMethod(
            GanConfig(**{**settings, "latent_dim": 8, **model}),
            GanNdaConfig(**(nda or {})),
            adversarial=AdversarialConfig(**{"discriminator_steps": 2, **(adversarial or {})}),
            augment=GanAugmentConfig(**(augment or {})),
        )
    return method.train()


def batches(number: int = 2, size: int = 4, seed: int = 0, classes: int = 0) -> list[dict]:
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(256, (size, 3, SIZE, SIZE), generator=g).to(torch.uint8),
            "label": torch.randint(max(classes, 1), (size,), generator=g),
        }
        for _ in range(number)
    ]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan(method: GanMethod, given: Sequence[dict], seed: int = 0) -> list[tuple[str, list[dict]]]:
    with torch.no_grad():
        return method.plan_updates(given, generator=seeded(seed), step=0)


def gradients(part: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in part.named_parameters() if p.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same gradients but for rounding; that of a bias before batch norm is 0."""
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        assert (found[name] - exact).norm() < 1e-4 * exact.norm() + 1e-5, name


def backward(method: GanMethod, own: Sequence[dict], step: int = 0) -> list[dict[str, Tensor]]:
    """What the engine does in one turn, without the optimizer's step."""
    method.zero_grad()
    outputs = [method(batch, generator=seeded(i), step=step) for i, batch in enumerate(own)]
    for output in outputs:
        (output["loss"] / len(own)).backward()
    return outputs


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that breaks a sample the same way in every batch that holds its neighbour."""
    monkeypatch.setattr("ndavid.methods.gan_config.nda.from_spec", lambda spec: SwapLeftHalves())


def test_a_step_is_the_discriminators_turns_and_then_the_generators() -> None:
    method = make()
    assert method.batches_per_step == 2
    given = batches(4)
    updates = plan(method, given)
    assert [player for player, _ in updates] == [DISCRIMINATOR, DISCRIMINATOR, GENERATOR]
    assert [len(own) for _, own in updates] == [2, 2, 1]
    shown = [batch["image"] for _, own in updates[:2] for batch in own]
    assert all(a is b["image"] for a, b in zip(shown, given, strict=True))
    latents = updates[-1][1][0]["latents"]
    assert latents.shape == (8, 8) and updates[-1][1][0]["parts"] == [4, 4]
    fakes = torch.cat([batch["fake"] for _, own in updates[:2] for batch in own])
    assert fakes.shape == (16, 3, SIZE, SIZE) and not fakes.requires_grad
    assert len(fakes.flatten(1).unique(dim=0)) == 16


def test_players_share_no_parameter_and_leave_none_out() -> None:
    method = make(adversarial={"discriminator_lr_scale": 2.0})
    groups_of = method.optimizer_groups()
    owned = [p for groups in groups_of.values() for group in groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in method.parameters()}
    assert len({id(p) for p in owned}) == len(owned)
    assert groups_of[DISCRIMINATOR][0]["lr_scale"] == 2.0


def test_the_discriminators_turn_is_the_loss_written_out(swap: None) -> None:
    method, by_hand = make({"spec": "swap"}), make()
    (own, *_) = [own for _, own in plan(method, batches())]
    output = backward(method, own)[0]
    real = own[0]["image"].float() / 127.5 - 1
    broken = SwapLeftHalves()(real)
    # One sigma for all three: the power iteration moves once, in the first pass.
    discriminator = by_hand.gan.discriminator
    fake_logits = discriminator(own[0]["fake"])
    with frozen_power_iteration(discriminator):
        real_logits, broken_logits = discriminator(real), discriminator(broken)
    loss = (
        torch.relu(1 - real_logits).mean()
        + 0.25 * torch.relu(1 + fake_logits).mean()
        + 0.75 * torch.relu(1 + broken_logits).mean()
    )
    loss.backward()
    torch.testing.assert_close(output["loss"], loss)
    assert_near(gradients(method.gan.discriminator), gradients(discriminator))
    torch.testing.assert_close(output["nda_logit"], broken_logits.mean())
    pairs = (broken_logits[:, None] < real_logits[None, :]).float().mean()
    torch.testing.assert_close(output["nda_below_real"], pairs)


@pytest.mark.parametrize("objective", ["hinge", "wasserstein"])
def test_an_image_that_did_not_change_is_no_negative(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain area cut into a jigsaw is that plain area: real, and not to be called broken."""
    given = batches()
    given[0]["image"][1] = 77
    method = make({"spec": "jigsaw"}, {"objective": objective})
    shown: list[Tensor] = []
    monkeypatch.setattr(
        gan_module,
        "gradient_penalty",
        lambda critic, real, other, mix: shown.append(other) or torch.zeros(()),
    )
    masks: list[Tensor] = []
    loss_of = gan_module.discriminator_loss
    monkeypatch.setattr(
        gan_module,
        "discriminator_loss",
        lambda *logits, **settings: (
            masks.append(settings["nda_mask"]) or loss_of(*logits, **settings)
        ),
    )
    own = plan(method, given)[0][1][0]
    output = method(own, generator=seeded(), step=0)
    assert masks[0].tolist() == [True, False, True, True]
    assert output["nda_unchanged"] == 0.25
    # The penalty lies between real images and what the critic faces: there a generated one.
    assert all(torch.equal(other[1], own["fake"][1]) for other in shown)
    assert len(shown) == (objective == "wasserstein")
    given[0]["image"][:] = 77
    still = method(plan(method, given)[0][1][0], generator=seeded(), step=0)
    assert still["loss"].isfinite() and still["nda_unchanged"] == 1
    assert still["nda_logit"].isnan() and still["nda_below_real"].isnan()


def test_all_three_kinds_pass_the_discriminator_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make({"spec": "jigsaw"})
    sizes: list[int] = []
    method.gan.discriminator.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    updates = plan(method, batches())
    backward(method, updates[0][1])
    assert sizes == [12]


def test_the_generators_turn_is_the_loss_written_out() -> None:
    method, by_hand = make(), make()
    own = plan(method, batches())[-1][1]
    plan(by_hand, batches())  # moves the running statistics of batch norm alike
    output = backward(method, own)[0]
    with frozen_power_iteration(by_hand.gan.discriminator):
        loss = -by_hand.gan.discriminator(by_hand.gan.generator(own[0]["latents"])).mean()
    loss.backward()
    torch.testing.assert_close(output["loss"], loss)
    assert_near(gradients(method.gan.generator), gradients(by_hand.gan.generator))


@pytest.mark.parametrize("classes", [0, 3])
def test_accumulated_updates_give_the_gradients_of_one_big_batch(swap: None, classes: int) -> None:
    small = batches(2, size=4, classes=classes)
    big = [{k: torch.cat([b[k] for b in small]) for k in ("image", "label")}]
    options: dict[str, Any] = {
        "nda": {"spec": "swap"},
        "adversarial": {"discriminator_steps": 1},
        "num_classes": classes,
    }
    two, one = make(**options), make(**options)
    updates, whole = plan(two, small), plan(one, big)
    for (_, own), (_, all_at_once) in zip(updates, whole, strict=True):
        backward(two, own)
        backward(one, all_at_once)
        for part in ("discriminator", "generator"):
            networks = two.gan.get_submodule(part), one.gan.get_submodule(part)
            assert_near(*map(gradients, networks))
    # Nor do the estimates of the spectral norm differ, or batch norm's statistics.
    for (name, a), (_, b) in zip(two.named_buffers(), one.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_the_generator_stands_still_while_the_discriminator_learns() -> None:
    method = make(spectral_norm_generator=True)
    norm = spectral_norms(method.gan.generator)[0]
    before = norm._u.clone()
    updates = plan(method, batches(4))
    moved = norm._u.clone()
    assert not torch.equal(before, moved)
    fresh = make(spectral_norm_generator=True)
    plan(fresh, batches(2))
    # However many updates: its weights were normalised once.
    assert torch.equal(spectral_norms(fresh.gan.generator)[0]._u, moved)
    backward(method, updates[0][1])
    assert all(p.grad is None for p in method.gan.generator.parameters())


def test_nothing_broken_is_the_plain_gan_to_the_bit() -> None:
    plain, off = make(), make({"spec": "jigsaw", "beta": 0.0})
    early = make({"spec": "jigsaw", "curriculum_steps": 5})
    losses = [backward(m, plan(m, batches())[0][1], step=4)[0]["loss"] for m in (plain, off, early)]
    assert losses[0] == losses[1] == losses[2]
    late = backward(early, plan(early, batches())[0][1], step=5)[0]
    assert "nda_logit" in late and late["loss"] != losses[0]


@pytest.mark.parametrize(
    ("augment", "objective"),
    [
        ({"flip": True}, "hinge"),
        ({"flip": True, "diffaugment": ["translation", "color"]}, "hinge"),
        ({"every": "jigsaw"}, "hinge"),
        ({"flip": True}, "wasserstein"),
    ],
)
def test_runs_with_and_without_nda_see_the_same_latents_and_draws(
    monkeypatch: pytest.MonkeyPatch, augment: dict[str, Any], objective: str
) -> None:
    seen: list[list[Tensor]] = []

    def keep(real: Tensor, fake: Tensor, *rest: Tensor, **options: Any) -> Any:
        seen.append([real.detach(), fake.detach()])
        return original(real, fake, *rest, **options)

    original = gan_module.discriminator_loss
    monkeypatch.setattr(gan_module, "discriminator_loss", keep)
    for spec in ("", "jigsaw"):
        method = make({"spec": spec}, {"objective": objective}, augment)
        backward(method, plan(method, batches(size=8))[0][1])
    for plain, with_nda in zip(*seen, strict=True):
        torch.testing.assert_close(plain, with_nda)


def test_flips_mirror_some_and_nda_breaks_what_was_flipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = make({"spec": "jigsaw"}, augment={"flip": True})
    assert method.operation is not None
    given: list[Tensor] = []
    operate = type(method.operation).broken

    def watch(self: Any, x: Tensor, **options: Any) -> Tensor:
        given.append(x)
        return operate(self, x, **options)

    monkeypatch.setattr(type(method.operation), "broken", watch)
    own = plan(method, batches(size=16))[0][1]
    backward(method, own)
    real = own[0]["image"].float() / 127.5 - 1
    for name, image in (("kept", real), ("mirrored", real.flip(-1))):
        same = (given[0] - image).abs().flatten(1).amax(1) < 1e-5
        assert 2 <= int(same.sum()) <= 14, name
    nearest = torch.minimum((given[0] - real).abs(), (given[0] - real.flip(-1)).abs())
    assert nearest.amax() < 1e-5


def shown_to(method: GanMethod, own: Sequence[dict]) -> Tensor:
    """What the discriminator got, (N, 3, S, S)."""
    shown: list[Tensor] = []
    handle = method.gan.discriminator.register_forward_hook(
        lambda module, inputs, output: shown.append(inputs[0].detach())
    )
    backward(method, own)
    handle.remove()
    return torch.cat(shown)


def test_an_operation_on_real_images_breaks_their_share_and_calls_them_real() -> None:
    for share, least, most in ((1.0, 16, 16), (0.5, 3, 13), (0.0, 0, 0)):
        method = make(augment={"real": "jigsaw", "real_probability": share})
        own = plan(method, batches(size=16))[0][1]
        fake, real = shown_to(method, own).chunk(2)
        torch.testing.assert_close(fake, own[0]["fake"])
        pixels = own[0]["image"].float() / 127.5 - 1
        changed = (real - pixels).abs().flatten(1).amax(1) > 0.1
        assert least <= int(changed.sum()) <= most


@pytest.mark.parametrize("augment", [{"every": "jigsaw"}, {"diffaugment": ["translation"]}])
def test_what_all_images_pass_through_reaches_every_stream_and_lets_gradients_by(
    augment: dict[str, Any],
) -> None:
    method = make({"spec": "stitch"}, augment=augment)
    plain = make({"spec": "stitch"})
    updates, same = plan(method, batches(size=8)), plan(plain, batches(size=8))
    changed, as_it_is = shown_to(method, updates[0][1]), shown_to(plain, same[0][1])
    assert changed.shape == (24, 3, SIZE, SIZE)
    moved = (changed - as_it_is).abs().flatten(1).amax(1) > 0
    assert all(int(stream.sum()) >= 4 for stream in moved.chunk(3))
    backward(method, updates[-1][1])
    assert all(p.grad is not None for p in method.gan.generator.parameters())
    assert gradients(method.gan.generator)["linear.weight"].abs().sum() > 0


@pytest.mark.parametrize("objective", get_args(Objective))
@pytest.mark.parametrize("spec", ["", "jigsaw"])
def test_every_objective_teaches_the_discriminator(objective: str, spec: str) -> None:
    method = make({"spec": spec}, {"objective": objective, "discriminator_steps": 1})
    own = plan(method, batches(1, size=8))[0][1]
    optimizer = torch.optim.Adam(method.gan.discriminator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    outputs = []
    for _ in range(25):
        outputs += backward(method, own)
        optimizer.step()
    assert outputs[-1]["loss"] < outputs[0]["loss"] - 0.1
    assert outputs[-1]["fake_below_real"] == 1.0
    assert ("gradient_penalty" in outputs[0]) == (objective == "wasserstein")


def test_the_gradient_penalty_pulls_the_slope_towards_one() -> None:
    method = make(
        {"spec": "jigsaw"}, {"objective": "wasserstein", "discriminator_steps": 1,
                             "gradient_penalty": 100.0},
    )  # fmt: skip
    own = plan(method, batches(1, size=8))[0][1]
    optimizer = torch.optim.Adam(method.gan.discriminator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    penalties = []
    for _ in range(25):
        penalties += [output["gradient_penalty"] for output in backward(method, own)]
        optimizer.step()
    assert penalties[-1] < 0.5 * penalties[0]


def test_the_gradient_penalty_passes_a_compiled_discriminator_by() -> None:
    options: dict[str, Any] = {
        "nda": {"spec": "jigsaw"},
        "adversarial": {"objective": "wasserstein", "discriminator_steps": 1},
    }
    plain, compiled = make(**options), make(**options)
    compiled.gan.discriminator.compile(backend="aot_eager")
    losses = [backward(m, plan(m, batches(1))[0][1])[0]["loss"] for m in (plain, compiled)]
    torch.testing.assert_close(losses[1], losses[0])
    assert_near(gradients(compiled.gan.discriminator), gradients(plain.gan.discriminator))


def test_labels_go_with_the_image_they_belong_to(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make({"spec": "jigsaw"}, num_classes=3)
    labels: list[Tensor] = []
    method.gan.discriminator.register_forward_hook(
        lambda module, inputs, output: labels.append(inputs[1])
    )
    own = plan(method, batches(classes=3))[0][1]
    backward(method, own)
    real = own[0]["label"]
    assert torch.equal(labels[0], torch.cat([own[0]["fake_label"], real, real]))


def test_all_images_are_of_the_one_class_whatever_their_labels() -> None:
    method = make({"spec": "jigsaw"}, num_classes=1)
    labels: list[Tensor] = []
    method.gan.discriminator.register_forward_hook(
        lambda module, inputs, output: labels.append(inputs[1])
    )
    for given in (batches(classes=7), [{"image": b["image"]} for b in batches()]):
        backward(method, plan(method, given)[0][1])
    assert len(labels) == 2 and all(torch.equal(y, torch.zeros(12).long()) for y in labels)
    assert method.gan.discriminator.embed.parametrizations.weight.original.grad.abs().sum() > 0


def test_labels_of_no_class_and_images_of_another_size_are_named() -> None:
    method = make(num_classes=3)
    unlabelled = [{**b, "label": torch.full((4,), -1)} for b in batches()]
    with pytest.raises(ValueError, match="label"):
        backward(method, plan(method, unlabelled)[0][1])
    large = [{**b, "image": torch.zeros(4, 3, 40, 40, dtype=torch.uint8)} for b in batches()]
    with pytest.raises(ValueError, match=r"a GAN of 32 x 32 px got images of \(4, 3, 40, 40\)"):
        plan(make(), large)


def test_one_image_has_no_partner() -> None:
    method = make({"spec": "stitch"})
    with pytest.raises(ShapeError, match="needs a batch of at least 2"):
        backward(method, plan(method, batches(size=1))[0][1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GanNdaConfig(alpha=0.0),
        lambda: GanNdaConfig(beta=-1.0),
        lambda: GanNdaConfig(curriculum_steps=-1),
        lambda: GanAugmentConfig(real_probability=1.5),
        lambda: AdversarialConfig(discriminator_steps=0),
        lambda: AdversarialConfig(discriminator_lr_scale=0.0),
        lambda: AdversarialConfig(gradient_penalty=-1.0),
        lambda: make({"spec": "jigsow"}),
        lambda: make(augment={"real": "jigsow"}),
        lambda: make(augment={"every": "jigsow"}),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_bfloat16_gradients_are_near_those_of_float32() -> None:
    single, half = make({"spec": "jigsaw"}), make({"spec": "jigsaw"})
    own, same = plan(single, batches(size=16))[0][1], plan(half, batches(size=16))[0][1]
    backward(single, own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = half(same[0], generator=seeded(), step=0)
    half.zero_grad()
    output["loss"].backward()
    assert output["loss"].dtype == torch.float32
    for name, exact in gradients(single.gan.discriminator).items():
        error = (gradients(half.gan.discriminator)[name] - exact).norm() / exact.norm()
        assert error < 0.1, name


@pytest.mark.gpu
def test_a_gpu_gives_the_losses_and_gradients_of_the_cpu() -> None:
    options: dict[str, Any] = {"nda": {"spec": "stitch"}, "augment": {"flip": True}}
    on_cpu, on_gpu = make(**options), make(**options).cuda()
    given = batches(2, size=8)
    moved = [{key: value.cuda() for key, value in batch.items()} for batch in given]
    for (_, own), (_, same) in zip(plan(on_cpu, given), plan(on_gpu, moved), strict=True):
        expected, found = backward(on_cpu, own)[0]["loss"], backward(on_gpu, same)[0]["loss"]
        torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
    for name, exact in gradients(on_cpu.gan.generator).items():
        error = (gradients(on_gpu.gan.generator)[name].cpu() - exact).norm()
        assert error < 0.02 * exact.norm() + 1e-4, name


@pytest.mark.parametrize("spec", ["jigsaw", "jigsaw:derangement=true | stitch"])
def test_images_that_did_not_change_are_not_shown_as_used(spec: str) -> None:
    """Plain images, which a jigsaw leaves as they were; of two, each may be the other's partner."""
    (batch,) = batches(1, size=8)
    batch["image"][2:5] = 90
    method = make({"spec": spec})
    for seed in range(5):
        found = method.broken_samples(batch, generator=seeded(seed))
        assert found is not None
        same = (found.before == found.after).flatten(1).all(1)
        assert found.used.tolist() == (~same).tolist()
        assert "stitch" in spec or found.used.tolist() == [True] * 2 + [False] * 3 + [True] * 3
