"""The regression of the probes: features it must separate, an honest choice of its decay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from sklearn.pipeline import make_pipeline

from ndavid.errors import ConfigError
from ndavid.evaluation.classify import PerItem, accuracies
from ndavid.evaluation.features import Features
from ndavid.evaluation.linear import LinearConfig
from ndavid.evaluation.motion import MotionConfig
from ndavid.evaluation.regression import (
    Fitted,
    RegressionConfig,
    choose,
    fit_chosen,
    fit_probe,
    log_loss,
    predict,
    sweep_weight_decay,
)


def features(videos: int = 90, views: int = 2, noise: float = 0.3, seed: int = 0) -> Features:
    """Three classes around three corners of a 5-dimensional space, on very different scales."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(videos) % 3
    corners = torch.eye(3, 5)[labels].unsqueeze(1)
    values = corners + noise * torch.randn(videos, views, 5, generator=draw)
    values = values * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 7
    return Features(values, labels, tuple(f"{i}.mp4" for i in range(videos)))


@pytest.mark.parametrize("per_view", [False, True])
def test_separable_features_are_separated(per_view: bool) -> None:
    probe, converged = fit_probe(features(seed=0), 1e-3, RegressionConfig(), per_view=per_view)
    found = predict(probe, features(seed=1), 3, per_view=per_view)
    assert converged
    assert accuracies(found)["top1"].value > 0.9
    assert found.values.shape == (90, 3)
    torch.testing.assert_close(found.values.sum(1), torch.ones(90))


def test_labels_without_relation_to_the_features_stay_at_chance() -> None:
    train, test = features(300, noise=1e4, seed=0), features(300, noise=1e4, seed=1)
    probe, _ = fit_probe(train, 1e-1, RegressionConfig())
    metric = accuracies(predict(probe, test, 3))["top1"]
    assert abs(metric.value - 1 / 3) < 0.12


def test_a_class_without_training_videos_is_never_predicted() -> None:
    train = features()
    keep = train.labels != 1
    probe, _ = fit_probe(train.subset(keep), 1e-3, RegressionConfig())
    found = predict(probe, train, 4)
    assert found.values[:, [1, 3]].abs().max() == 0


def test_one_class_cannot_be_probed() -> None:
    train = dataclasses.replace(features(), labels=torch.zeros(90, dtype=torch.long))
    with pytest.raises(ConfigError, match="at least two classes"):
        fit_probe(train, 1.0, RegressionConfig())


def test_stronger_weight_decay_gives_smaller_weights() -> None:
    sizes = [
        abs(fit_probe(features(), decay, RegressionConfig())[0][-1].coef_).sum()
        for decay in (1e-4, 1e-2, 1.0)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_the_sweep_fits_without_the_held_out_videos() -> None:
    train = features(60, noise=0.05)
    held = {f"{i}.mp4" for i in range(45, 60)}
    # The held-out videos carry wrong labels: a fit that saw them would score better on them.
    wrong = train.labels.clone()
    wrong[45:] = (wrong[45:] + 1) % 3
    mislabelled = dataclasses.replace(train, labels=wrong)
    losses = sweep_weight_decay(mislabelled, held, 3, RegressionConfig())
    assert min(losses.values()) > math.log(3), "surer of it than of chance"
    (loss,) = sweep_weight_decay(train, held, 3, RegressionConfig(weight_decays=[1e-4])).values()
    assert loss < 0.1


def test_the_log_loss_is_that_of_a_plain_loop() -> None:
    values = torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])
    predictions = PerItem(values, torch.tensor([0, 0, 1]), torch.arange(3))
    expected = -(math.log(0.5) + math.log(0.1) + math.log(1e-12)) / 3
    assert log_loss(predictions) == pytest.approx(expected, rel=1e-6)


def test_of_equal_losses_the_strongest_decay_is_chosen() -> None:
    assert choose({1e-3: 0.7, 1e-2: 0.5, 1e-1: 0.5, 1.0: 0.6}) == 1e-1


@pytest.mark.parametrize("per_view", [False, True])
def test_the_last_fit_is_on_all_items_at_the_decay_of_the_sweep(per_view: bool) -> None:
    train, config = features(60), RegressionConfig(weight_decays=[1e-3, 1e-1])
    held = {f"{i}.mp4" for i in range(45, 60)}
    fitted = fit_chosen(train, held, 3, config, per_view=per_view)
    assert fitted.sweep == sweep_weight_decay(train, held, 3, config, per_view=per_view)
    assert fitted.weight_decay == choose(fitted.sweep)
    again, _ = fit_probe(train, fitted.weight_decay, config, per_view=per_view)
    assert (fitted.probe[-1].coef_ == again[-1].coef_).all()


def test_an_early_stop_is_told_with_its_number() -> None:
    train, held = features(60, noise=3.0), {f"{i}.mp4" for i in range(45, 60)}
    stopped = fit_chosen(train, held, 3, RegressionConfig(max_iterations=1))
    assert "the regression had not converged after 1 iterations" in stopped.caveats()
    fitted = fit_chosen(train, held, 3, RegressionConfig())
    assert not any("converged" in note for note in fitted.caveats())


@pytest.mark.parametrize(
    ("tried", "chosen", "told"),
    [
        ([1e-2, 1e-1, 1.0], 1e-2, "0.01"),
        ([1e-2, 1e-1, 1.0], 1e-1, ""),
        ([1e-2, 1e-1, 1.0], 1.0, "1"),
        ([1e-2, 1.0], 1.0, ""),  # there is nothing but edges
    ],
)
def test_a_chosen_decay_at_the_edge_is_told(tried: list[float], chosen: float, told: str) -> None:
    sweep = {decay: abs(math.log(decay / chosen)) for decay in tried}
    fitted = Fitted(make_pipeline("passthrough"), choose(sweep), sweep, True, 2000)
    edge = f"the chosen weight decay {told} is at the edge of those tried"
    assert fitted.caveats() == ([edge] if told else [])


def test_without_a_held_out_item_nothing_can_be_chosen() -> None:
    with pytest.raises(ConfigError, match="none of the 2 training videos held out"):
        fit_chosen(features(), {"gone.mp4", "short.mp4"}, 3, RegressionConfig())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight_decays", []),
        ("weight_decays", [0.1, 0.0]),
        ("weight_decays", [-1.0]),
        ("weight_decays", [math.nan]),
        ("weight_decays", [math.inf]),
        ("holdout", 0.0),
        ("holdout", 1.0),
        ("max_iterations", 0),
    ],
)
@pytest.mark.parametrize("config", [RegressionConfig, LinearConfig, MotionConfig])
def test_values_out_of_range_are_refused_before_features_are_made(
    config: Callable[..., RegressionConfig], key: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=f"{key} must"):
        config(**{key: value})
