"""Heads trained side by side against the same heads trained one by one by torch itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ndavid.engine.rng import generator
from ndavid.errors import ConfigError
from ndavid.evaluation.linear_heads import HeadsConfig, Scaler, choose_rate, train_heads

CPU = torch.device("cpu")


def features(
    count: int = 90, noise: float = 0.3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around three corners, on very different scales."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    values = torch.eye(3, 5)[labels] + noise * torch.randn(count, 5, generator=draw)
    return values * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 7, labels


@pytest.mark.parametrize("scaling", ["standard", "l2", "none"])
def test_each_head_is_what_torch_trains_alone(scaling: str) -> None:
    values, labels = features()
    values = values if scaling == "standard" else values / 50
    rates = [0.01, 0.3]
    config = HeadsConfig(epochs=3, batch_size=32, weight_decay=0.01, scaling=scaling)  # type: ignore[arg-type]
    found = train_heads(values, labels, 3, rates, config, seed=5, device=CPU)

    inputs = values
    if scaling == "standard":
        inputs = (values - values.mean(0)) / values.std(0, correction=0)
    elif scaling == "l2":
        inputs = values / values.norm(dim=1, keepdim=True)
    for place, rate in enumerate(rates):
        layer = nn.Linear(5, 3)
        with torch.no_grad():
            layer.weight.copy_(0.01 * torch.randn(3, 5, generator=generator(5, "heads")))
            layer.bias.zero_()
        groups = [
            {"params": [layer.weight], "weight_decay": 0.01},
            {"params": [layer.bias], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        step, steps = 0, 3 * 3
        for epoch in range(3):
            order = torch.randperm(90, generator=generator(5, "heads order", epoch))
            for rows in order.split(32):
                for group in optimizer.param_groups:
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                F.cross_entropy(layer(inputs[rows]), labels[rows]).backward()
                optimizer.step()
                step += 1
        torch.testing.assert_close(found.weight[place], layer.weight.detach(), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(found.bias[place], layer.bias.detach(), atol=1e-5, rtol=1e-3)
        expected = layer(inputs).detach().softmax(-1)
        torch.testing.assert_close(found.probabilities(values)[place], expected, atol=1e-4, rtol=0)


def test_separable_features_are_separated_whatever_their_scales() -> None:
    train, test = features(seed=0), features(seed=1)
    heads = train_heads(*train, 3, [0.1], HeadsConfig(epochs=40), seed=0, device=CPU)
    assert (heads.probabilities(test[0])[0].argmax(1) == test[1]).float().mean() > 0.9


def test_a_head_that_diverges_leaves_the_others_alone() -> None:
    values, labels = features()
    config = HeadsConfig(epochs=5, scaling="none")
    alone = train_heads(values, labels, 3, [1e-4], config, seed=0, device=CPU)
    both = train_heads(1.0 * values, labels, 3, [1e-4, 1e38], config, seed=0, device=CPU)
    torch.testing.assert_close(both.weight[0], alone.weight[0])
    assert not both.weight[1].isfinite().all()
    shares = both.probabilities(values)
    assert shares.isfinite().all() and shares[0].argmax(1).unique().numel() > 1


def test_the_seed_decides_everything() -> None:
    values, labels = features()
    first, again, other = (
        train_heads(values, labels, 3, [0.1], HeadsConfig(epochs=2), seed=seed, device=CPU)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_a_constant_feature_counts_for_nothing() -> None:
    values, _ = features()
    values[:, 2] = 4.0
    scaled = Scaler.fitted(values, "standard")(values)
    assert scaled[:, 2].abs().max() == 0 and scaled.isfinite().all()
    torch.testing.assert_close(scaled[:, 1].std(correction=0), torch.ones(()))


def test_test_features_do_not_move_the_statistics() -> None:
    train, _ = features(seed=0)
    scaler = Scaler.fitted(train, "standard")
    assert torch.equal(scaler(train[:10]), scaler(train)[:10])


def test_of_equal_scores_the_lowest_rate_is_chosen() -> None:
    assert choose_rate({0.1: 0.5, 0.3: 0.7, 1.0: 0.7, 3.0: 0.6}) == 0.3


@pytest.mark.parametrize(
    "changes",
    [{"learning_rates": []}, {"learning_rates": [0.0]}, {"holdout": 0.0}, {"epochs": 0},
     {"momentum": 1.0}, {"weight_decay": -1.0}],
)  # fmt: skip
def test_values_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        HeadsConfig(**changes)  # type: ignore[arg-type]


def test_heads_that_all_diverged_say_so() -> None:
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 6, generator=draw) * 1e3, torch.arange(40) % 2
    config = HeadsConfig(epochs=30, batch_size=8, scaling="none", weight_decay=10.0)
    train = [features, labels, 2]
    keys = {"seed": 0, "device": torch.device("cpu")}
    assert train_heads(*train, [1e30], config, **keys).diverged()
    assert not train_heads(*train, [1e30, 1e-6], config, **keys).diverged()
