"""The adversarial losses against a loop that writes them down, and their promises."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ndavid.losses import (
    Objective,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
DIVERGENCES: tuple[Objective, ...] = ("js", "kl", "chi2")
DISTANCES: tuple[Objective, ...] = ("wasserstein", *DIVERGENCES)

finite_logits = st.lists(st.floats(-8, 8), min_size=1, max_size=6)


def naive_terms(objective: Objective, logit: float) -> tuple[float, float, float]:
    """What one logit costs: as a real image, as a fake one, and for the generator (alpha 1)."""
    probability = 1 / (1 + math.exp(-logit))
    if objective == "hinge":
        return max(0.0, 1 - logit), max(0.0, 1 + logit), -logit
    if objective == "non_saturating":
        return -math.log(probability), -math.log(1 - probability), -math.log(probability)
    if objective == "wasserstein":
        return -logit, logit, -logit
    if objective == "js":
        fake = -math.log(2 * (1 - probability)) / 2
        return -math.log(2 * probability) / 2, fake, -fake
    if objective == "kl":
        return -logit, math.exp(logit) - 1, 1 - math.exp(logit)
    ratio = math.log(1 + math.exp(logit)) / math.log(2)
    return -2 * (ratio - 1), ratio**2 - 1, 1 - ratio**2


def logits(batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_agrees_with_a_loop(objective: Objective) -> None:
    real, fake, nda = logits(5, 0), logits(7, 1), logits(3, 2)
    result = discriminator_loss(real, fake, nda, objective=objective, alpha=0.25, beta=0.75)
    terms = [[naive_terms(objective, float(d)) for d in part] for part in (real, fake, nda)]
    real_part = sum(t[0] for t in terms[0]) / 5
    fake_part = sum(t[1] for t in terms[1]) / 7
    nda_part = sum(t[1] for t in terms[2]) / 3
    assert float(result.real) == pytest.approx(real_part)
    assert float(result.fake) == pytest.approx(fake_part)
    assert float(result.nda) == pytest.approx(nda_part)
    assert float(result.loss) == pytest.approx(real_part + 0.25 * fake_part + 0.75 * nda_part)
    weight = 0.25 if objective in DISTANCES else 1.0
    expected = weight * sum(t[2] for t in terms[1]) / 7
    assert float(generator_loss(fake, objective=objective, alpha=0.25)) == pytest.approx(expected)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weight_0_is_to_the_bit_the_loss_without_nda(objective: Objective) -> None:
    outcomes = []
    for nda in (None, torch.full((4,), math.inf)):
        real = logits(6, 3).float().requires_grad_()
        fake = logits(6, 4).float().requires_grad_()
        result = discriminator_loss(real, fake, nda, objective=objective, beta=0.0)
        result.loss.backward()
        outcomes.append((result.loss.detach(), real.grad, fake.grad))
        assert math.isnan(result.nda) == (nda is None)
    for plain, weightless in zip(*outcomes, strict=True):
        assert plain is not None and weightless is not None
        assert torch.equal(plain, weightless) and plain.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_beta_is_not_looked_at_without_nda(objective: Objective) -> None:
    real, fake = logits(4, 0), logits(4, 1)
    plain = discriminator_loss(real, fake, objective=objective)
    weighted = discriminator_loss(real, fake, objective=objective, beta=0.75)
    assert torch.equal(plain.loss, weighted.loss)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nda_as_more_fakes_is_one_mixture(objective: Objective) -> None:
    """1 generated image and 3 broken ones at 1/4 and 3/4 are 4 fakes of a plain GAN."""
    real, fake, nda = logits(4, 0), logits(1, 1), logits(3, 2)
    parts = discriminator_loss(real, fake, nda, objective=objective, alpha=0.25, beta=0.75)
    mixture = discriminator_loss(real, torch.cat([fake, nda]), objective=objective)
    assert float(parts.loss) == pytest.approx(float(mixture.loss))


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(values=finite_logits)
@settings(max_examples=40, deadline=None)
def test_generator_wants_higher_logits_and_discriminator_lower(
    objective: Objective, values: list[float]
) -> None:
    """Also where the discriminator is sure: no logit has a gradient the wrong way."""
    fake = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (wish,) = torch.autograd.grad(generator_loss(fake, objective=objective), fake)
    assert (wish < 0).all()
    loss = discriminator_loss(fake.detach(), fake, objective=objective).loss
    (push,) = torch.autograd.grad(loss, fake)
    assert (push >= 0).all()


@pytest.mark.parametrize("objective", DISTANCES)
def test_generator_minimises_its_part_of_the_distance(objective: Objective) -> None:
    fake = logits(5, 1).requires_grad_()
    played = discriminator_loss(
        logits(5, 0), fake, logits(5, 2), objective=objective, alpha=0.25, beta=0.75
    )
    (of_game,) = torch.autograd.grad(-played.loss, fake)
    (own,) = torch.autograd.grad(generator_loss(fake, objective=objective, alpha=0.25), fake)
    torch.testing.assert_close(own, of_game)


@pytest.mark.parametrize("objective", ["wasserstein", *DIVERGENCES])
def test_undecided_discriminator_loses_nothing(objective: Objective) -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    result = discriminator_loss(zeros, zeros, zeros, objective=objective, alpha=0.5, beta=0.5)
    assert abs(float(result.loss)) < 1e-12


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(objective: Objective, dtype: torch.dtype) -> None:
    real, fake, nda = (logits(64, seed).to(dtype) for seed in range(3))
    half = discriminator_loss(real, fake, nda, objective=objective, alpha=0.5, beta=0.5)
    full = discriminator_loss(
        real.float(), fake.float(), nda.float(), objective=objective, alpha=0.5, beta=0.5
    )
    assert half.loss.dtype == torch.float32 and torch.equal(half.loss, full.loss)
    assert generator_loss(fake, objective=objective).dtype == torch.float32


@pytest.mark.parametrize("objective", ["hinge", "non_saturating", "wasserstein", "js", "chi2"])
def test_sure_logits_stay_finite(objective: Objective) -> None:
    """All but kl, whose exponential is the objective itself."""
    sure = torch.tensor([-1e4, 1e4], requires_grad=True)
    result = discriminator_loss(sure, sure, sure, objective=objective, alpha=0.5, beta=0.5)
    total = result.loss + generator_loss(sure, objective=objective)
    total.backward()
    assert total.isfinite() and sure.grad is not None and sure.grad.isfinite().all()


def test_parts_are_metrics_without_gradient() -> None:
    real = logits(3, 0).requires_grad_()
    result = discriminator_loss(real, real, real, beta=1.0)
    assert result.loss.requires_grad
    assert not any(part.requires_grad for part in (result.real, result.fake, result.nda))


class Quadratic(nn.Module):
    """d(x) = scale |x|^2 / 2, whose gradient is scale * x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1).square().sum(dim=1) / 2


def test_gradient_penalty_and_its_second_derivative_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = torch.randn(2, 4, 3, 2, 2, generator=generator)
    mix = torch.tensor([0.0, 0.3, 0.9, 1.0])
    critic = Quadratic(0.7)
    penalty = gradient_penalty(critic, real, other, mix)
    penalty.backward()
    between = [m * r + (1 - m) * o for m, r, o in zip(mix, real, other, strict=True)]
    lengths = torch.stack([image.norm() for image in between])
    torch.testing.assert_close(penalty.detach(), (0.7 * lengths - 1).square().mean())
    expected = (2 * (0.7 * lengths - 1) * lengths).mean()
    torch.testing.assert_close(critic.scale.grad, expected)


def test_gradient_penalty_leaves_the_images_alone_and_needs_no_outer_grad_mode() -> None:
    other = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    critic = Quadratic(1.0)
    with torch.no_grad():
        penalty = gradient_penalty(critic, torch.zeros(3, 5), other, torch.rand(3))
    penalty.backward()
    assert other.grad is None and critic.scale.grad is not None


def test_gradient_penalty_of_a_flat_critic_is_1_and_not_nan() -> None:
    critic = Quadratic(0.0)
    penalty = gradient_penalty(critic, torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0.0, 1]))
    penalty.backward()
    assert float(penalty.detach()) == 1.0 and critic.scale.grad is not None
    assert critic.scale.grad.isfinite()


def test_wasserstein_critic_with_penalty_finds_the_distance_to_the_mixture() -> None:
    """On a line, between points 0 (data), and 1 (generated) and 3 (broken) in equal shares: 2."""
    torch.manual_seed(0)  # the initial weights
    critic = nn.Sequential(nn.Linear(1, 32), nn.Softplus(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    real, fake, nda = torch.zeros(16, 1), torch.ones(16, 1), torch.full((16, 1), 3.0)
    other = torch.cat([fake[:8], nda[:8]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        loss = discriminator_loss(
            critic(real), critic(fake), critic(nda), objective="wasserstein", alpha=0.5, beta=0.5
        ).loss
        mix = torch.rand(16, generator=generator)
        optimizer.zero_grad()
        (loss + 10 * gradient_penalty(critic, real, other, mix)).backward()
        optimizer.step()
    # The penalty is soft: the slope ends a little above 1.
    assert 1.9 < -float(loss.detach()) < 2.3


@pytest.mark.parametrize("objective", DISTANCES)
def test_distances_need_a_mixture(objective: Objective) -> None:
    d = torch.zeros(2)
    with pytest.raises(ValueError, match=rf"{objective} is the distance .* sum to 1: got alpha 1"):
        discriminator_loss(d, d, d, objective=objective, alpha=1.0, beta=1.0)


def test_unusable_input_is_named() -> None:
    d = torch.zeros(2)
    with pytest.raises(ValueError, match="no NDA logits"):
        discriminator_loss(d, d, objective="wasserstein", alpha=0.25)
    with pytest.raises(ValueError, match="'lsgan': one of hinge, non_saturating"):
        discriminator_loss(d, d, objective="lsgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'lsgan'"):
        generator_loss(d, objective="lsgan")  # type: ignore[arg-type]
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"alpha, .* must be > 0"):
            discriminator_loss(d, d, alpha=alpha)
        with pytest.raises(ValueError, match=r"alpha, .* must be > 0"):
            generator_loss(d, alpha=alpha)
    with pytest.raises(ValueError, match=r"beta, .* must be >= 0"):
        discriminator_loss(d, d, d, beta=-0.5)
    for shape in ((2, 1), (0,), ()):
        with pytest.raises(ValueError, match=r"fake logits of shape \(B,\)"):
            discriminator_loss(d, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"critic logits of shape \(B,\)"):
        gradient_penalty(nn.Linear(3, 1), torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))
    for shapes in (((2, 3), (2, 4), (2,)), ((2, 3), (2, 3), (2, 1))):
        with pytest.raises(ValueError, match=r"one shape \(B, \.\.\.\) and mix \(B,\)"):
            gradient_penalty(nn.Linear(3, 1), *(torch.ones(shape) for shape in shapes))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_masked_broken_images_do_not_count(objective: Objective) -> None:
    real, fake, nda = logits(7, 0), logits(5, 1), logits(6, 2).requires_grad_()
    mask = torch.tensor([True, False, True, True, False, True])
    weights = {"objective": objective, "alpha": 0.25, "beta": 0.75}
    masked = discriminator_loss(real, fake, nda, **weights, nda_mask=mask)
    torch.testing.assert_close(
        masked.loss, discriminator_loss(real, fake, nda[mask], **weights).loss
    )
    (grad,) = torch.autograd.grad(masked.loss, nda)
    assert (grad[~mask] == 0).all() and grad[mask].any()
    # A masked logit may be anything, and where all are masked nothing is left of the term.
    wild = nda.detach().masked_fill(~mask, math.inf)
    torch.testing.assert_close(
        discriminator_loss(real, fake, wild, **weights, nda_mask=mask).loss, masked.loss
    )
    none = discriminator_loss(real, fake, nda, **weights, nda_mask=torch.zeros_like(mask))
    torch.testing.assert_close(none.loss, none.real + 0.25 * none.fake)
    assert none.nda == 0


def test_a_mask_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nda_mask must be bool \(6,\)"):
        discriminator_loss(
            logits(7, 0), logits(5, 1), logits(6, 2), beta=1.0, nda_mask=torch.ones(6)
        )
