"""The theory of negative data augmentation in numbers: docs/negatives_theory.md, claim by claim.

On a few outcomes the best discriminator is known exactly, so that the game is played by the
generator alone, with the losses of the library and nothing else.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ndavid.losses import Objective, discriminator_loss, generator_loss

DIVERGENCES: tuple[Objective, ...] = ("js", "kl", "chi2")
# Those whose best logit is a strictly increasing function of the density ratio.
STRICT: tuple[Objective, ...] = (*DIVERGENCES, "non_saturating")

FIGURE = Path(__file__).resolve().parents[2] / "docs" / "figures" / "overgeneralisation.py"


def distribution(*weights: float) -> Tensor:
    values = torch.tensor(weights, dtype=torch.float64)
    return values / values.sum()


def best_logits(data: Tensor, mixture: Tensor, objective: Objective) -> Tensor:
    """What the best discriminator answers at each outcome; mixture may sum to anything."""
    ratio = data / mixture.clamp(min=1e-300)
    if objective == "hinge":
        return torch.sign(ratio - 1)
    if objective == "chi2":  # the inverse of softplus(d) / ln2
        scaled = ratio * math.log(2)
        return scaled + torch.log(-torch.expm1(-scaled))
    return ratio.log()


def discriminator_value(
    logits: Tensor, data: Tensor, generated: Tensor, broken: Tensor, share: float, name: Objective
) -> Tensor:
    """The library's loss in expectation: samples stand for outcomes of rational probability."""

    def samples(shares: Tensor) -> Tensor:
        counts = (shares * 120).round().long()
        assert (counts - shares * 120).abs().max() < 1e-9, "the test needs probabilities in 120ths"
        return logits.repeat_interleave(counts)

    return discriminator_loss(
        samples(data),
        samples(generated),
        samples(broken),
        objective=name,
        alpha=share,
        beta=1 - share,
    ).loss


def costs(logits: Tensor, objective: Objective, share: float) -> Tensor:
    """What each outcome costs the generator, by its own loss."""
    return torch.func.vmap(
        lambda logit: generator_loss(logit.unsqueeze(0), objective=objective, alpha=share)
    )(logits)


def play(
    data: Tensor, broken: Tensor, share: float, objective: Objective, steps: int = 1500
) -> Tensor:
    """Where a generator ends that learns from its own loss, against the best discriminator.

    Mirror descent from the uniform distribution: outcomes that cost more than the average lose
    probability. The step is as long as the objective's slope at the end of the game allows.
    """
    slope = {"js": 0.5, "non_saturating": 1.0, "kl": 1 / share, "chi2": 2 / share**2}[objective]
    scale = 1.0 if objective == "non_saturating" else share
    generated = torch.full_like(data, 1 / len(data))
    for _ in range(steps):
        mixture = share * generated + (1 - share) * broken
        cost = costs(best_logits(data, mixture, objective), objective, share).clamp(max=100)
        step = (generated @ cost - cost) / (scale * slope)
        generated = generated * step.clamp(-0.5, 0.5).exp()
        generated = generated / generated.sum()
    return generated


def divergence(data: Tensor, mixture: Tensor, objective: Objective) -> Tensor:
    """The textbook form of what the losses bound."""
    if objective == "kl":
        return torch.xlogy(data, data / mixture).sum()
    if objective == "chi2":
        return ((data - mixture).square() / mixture).sum()
    middle = (data + mixture) / 2
    return (torch.xlogy(data, data / middle) + torch.xlogy(mixture, mixture / middle)).sum() / 2


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overgeneralisation", FIGURE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


# The best discriminator: minus its loss is the divergence, and no other loses less.

DATA = distribution(2, 3, 1, 6)
GENERATED = distribution(4, 1, 4, 3)
BROKEN = distribution(1, 1, 3, 1)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("objective", DIVERGENCES)
def test_the_best_loss_is_minus_the_divergence(objective: Objective, share: float) -> None:
    mixture = share * GENERATED + (1 - share) * BROKEN
    logits = best_logits(DATA, mixture, objective).requires_grad_()
    loss = discriminator_value(logits, DATA, GENERATED, BROKEN, share, objective)
    (slope,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(-float(divergence(DATA, mixture, objective)))
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("objective", DIVERGENCES)
@given(answers=st.lists(st.floats(-6, 6), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_no_discriminator_finds_more_than_the_divergence(
    objective: Objective, answers: list[float]
) -> None:
    logits = torch.tensor(answers, dtype=torch.float64)
    loss = discriminator_value(logits, DATA, GENERATED, BROKEN, 0.25, objective)
    mixture = 0.25 * GENERATED + 0.75 * BROKEN
    assert -float(loss) <= float(divergence(DATA, mixture, objective)) + 1e-12


def test_the_best_hinge_loss_tells_the_total_variation() -> None:
    mixture = 0.25 * GENERATED + 0.75 * BROKEN
    logits = best_logits(DATA, mixture, "hinge")
    loss = discriminator_value(logits, DATA, GENERATED, BROKEN, 0.25, "hinge")
    variation = float((DATA - mixture).abs().sum() / 2)
    assert float(loss) == pytest.approx(2 * (1 - variation))


# Claim 1: broken images off the data leave the best generator where it was.


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("objective", STRICT)
def test_with_disjoint_supports_the_generator_ends_at_the_data(
    objective: Objective, share: float
) -> None:
    data = distribution(1, 4, 2, 0, 0, 0, 3)
    broken = distribution(0, 0, 0, 5, 1, 0, 0)  # and an outcome that is neither
    generated = play(data, broken, share, objective)
    assert (generated - data).abs().max() < 1e-4


@pytest.mark.parametrize("objective", DIVERGENCES)
def test_no_other_generator_comes_nearer(objective: Objective) -> None:
    """All generators in twentieths on three outcomes of data and one broken, one by one."""
    data, broken = distribution(5, 12, 3, 0), distribution(0, 0, 0, 1)
    found = {}
    for counts in itertools.product(range(21), repeat=3):
        if sum(counts) > 20:
            continue
        generated = distribution(*counts, 20 - sum(counts))
        mixture = 0.25 * generated + 0.75 * broken
        if (mixture[:3] == 0).any() and objective != "js":
            continue  # infinitely far
        found[counts] = float(divergence(data, mixture, objective))
    assert min(found, key=found.__getitem__) == (5, 12, 3)
    assert len(found) > 900


def test_hinge_does_not_tell_generators_apart_that_stay_below_the_data() -> None:
    """At a share of 1/4 a generator of up to four times the data costs what the data cost."""
    data, broken = distribution(1, 1, 1, 0), distribution(0, 0, 0, 1)
    lopsided = distribution(8, 1, 0, 0)
    for generated in (data, lopsided):
        logits = best_logits(data, 0.25 * generated + 0.75 * broken, "hinge")
        assert logits.tolist() == [1, 1, 1, -1]
        assert generated @ costs(logits, "hinge", 0.25) == -1
    # At weight 1 it does: what is generated too often is told, whatever the weight of NDA.
    logits = best_logits(data, lopsided + 0.75 * broken, "hinge")
    assert logits.tolist() == [-1, 1, 1, -1]


# Claim 2: where broken images are data, it moves, by a formula.


def test_the_shift_by_hand() -> None:
    """A tenth of the broken images are data: all of them of the first of two kinds.

    share 1/4, so that data of the first kind are supplied 3/4 * 1/10 of the mixture too much:
    shift = (3/4) / (1/4) * (1/10 * (1/2, 1/2) - (1/10, 0)) = (-0.15, +0.15).
    """
    data, broken = distribution(1, 1, 0), distribution(1, 0, 9)
    for objective in STRICT:
        generated = play(data, broken, 0.25, objective)
        assert generated.tolist() == pytest.approx([0.35, 0.65, 0.0], abs=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("objective", STRICT)
def test_overlap_moves_the_generator_by_the_formula(objective: Objective, share: float) -> None:
    data = distribution(3, 4, 2, 3, 0, 0)
    broken = distribution(1, 0, 1, 0.5, 17, 6)
    overlap = broken[:4].sum()
    shift = (1 - share) / share * (overlap * data - broken * (data > 0))
    assert shift.abs().sum() > 0.001
    generated = play(data, broken, share, objective)
    assert (generated - (data + shift)).abs().max() < 1e-4


@pytest.mark.parametrize("objective", STRICT)
def test_outcomes_that_are_broken_often_enough_are_never_generated(
    figure: ModuleType, objective: Objective
) -> None:
    """Where the formula would be negative the generator is 0, and the level falls."""
    data, broken = distribution(1, 6, 3, 0), distribution(8, 0, 4, 4)
    expected = torch.from_numpy(figure.best_generator(data.numpy(), broken.numpy(), 0.4))
    assert expected[0] == 0 and expected[2] < data[2] and expected[3] == 0
    assert (play(data, broken, 0.4, objective) - expected).abs().max() < 1e-4


@given(
    data=st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any),
    broken=st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any),
    share=st.floats(0.05, 1),
)
@settings(max_examples=200, deadline=None)
def test_the_formula_is_a_generator_that_no_outcome_would_leave(
    figure: ModuleType, data: list[int], broken: list[int], share: float
) -> None:
    """What is generated has one density ratio, and nothing has a higher one: an equilibrium."""
    p, n = distribution(*data), distribution(*broken)
    g = torch.from_numpy(figure.best_generator(p.numpy(), n.numpy(), share))
    assert g.min() >= 0 and float(g.sum()) == pytest.approx(1)
    mixture = share * g + (1 - share) * n
    known = p > 0
    ratio = p[known] / mixture[known]
    used = ratio[g[known] > 1e-9]
    assert torch.allclose(used, used[:1].expand_as(used), rtol=1e-6)
    assert ratio.max() <= used[0] * (1 + 1e-6)
    assert (g[~known] == 0).all()


# Claim 3: a model of a finite sample leaks into the hole; broken images there take the leak away.


def test_broken_images_empty_the_hole(figure: ModuleType) -> None:
    data, hole = figure.two_lobes(), figure.broken_in_the_hole()
    assert figure.mass_in_hole(data) == 0 and (data * hole).sum() == 0
    for seed in range(5):
        known = figure.known_data(figure.draw_sample(60, np.random.default_rng(seed)))
        plain = figure.best_generator(known, np.zeros_like(known), 1.0)
        with_nda = figure.best_generator(known, hole, figure.LAMBDA)
        assert np.allclose(plain, known)
        assert figure.mass_in_hole(plain) > 0.1 and figure.mass_in_hole(with_nda) == 0
        assert figure.distance(with_nda, data) < 0.6 * figure.distance(plain, data)


def coarse(line: np.ndarray) -> Tensor:
    """A distribution on the figure's line, four cells at a time."""
    return distribution(*line[:-1].reshape(-1, 4).sum(axis=1))


def test_the_losses_play_the_figure_to_the_same_end(figure: ModuleType) -> None:
    """The closed form that the figure draws is where js ends, step by step."""
    known = figure.known_data(figure.draw_sample(60, np.random.default_rng(4)))
    data, broken = (coarse(part) for part in (known, figure.broken_in_the_hole()))
    expected = figure.best_generator(data.numpy(), broken.numpy(), figure.LAMBDA)
    generated = play(data, broken, figure.LAMBDA, "js").numpy()
    assert figure.distance(generated, expected) < 0.005
    plain = play(data, broken, 1.0, "js").numpy()
    assert figure.distance(plain, data.numpy()) < 0.005


def test_more_samples_lead_to_the_data_unless_broken_images_are_data(figure: ModuleType) -> None:
    trends = figure.trends(
        {
            "none": (np.zeros_like(figure.LINE), 1.0),
            "hole": (figure.broken_in_the_hole(), figure.LAMBDA),
            "data": (figure.broken_on_data(), figure.LAMBDA),
        }
    )
    for name in ("none", "hole"):
        assert trends[name].limit < 1e-12
        assert (np.diff(trends[name].mean) < 0).all() and trends[name].mean[-1] < 0.05
    assert (trends["hole"].mean < trends["none"].mean).all()
    assert trends["data"].limit > 0.15
    assert trends["data"].mean[-1] == pytest.approx(trends["data"].limit, abs=0.02)


@pytest.mark.slow
def test_the_figure_is_drawn(tmp_path: Path) -> None:
    output = tmp_path / "figure.png"
    subprocess.run([sys.executable, str(FIGURE), "--output", str(output)], check=True, timeout=500)
    with Image.open(output) as drawn, Image.open(FIGURE.with_suffix(".png")) as kept:
        assert drawn.size == kept.size
        assert len(drawn.convert("RGB").getcolors(1 << 20) or []) > 100
