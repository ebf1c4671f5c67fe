"""Linear classifiers on cached features, trained side by side, one a learning rate.

All heads see the same batches: their weights stand in one matrix, so that a sweep costs two matrix
products a step, whatever the number of rates. Stochastic gradient descent with momentum and a
cosine schedule on the cross entropy, from the seed; heads don't influence one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.collectives import rank
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError
from ndavid.progress import Progress

Scaling = Literal["standard", "l2", "none"]

# The first weights of MoCo's linear classifier.
_INITIAL_DEVIATION = 0.01


@dataclass(kw_only=True)
class HeadsConfig:
    """How linear heads are trained on cached features."""

    learning_rates: list[float] = field(
        default_factory=lambda: [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0]
    )
    """tried side by side; the best on held-out training items is used. Of a single one nothing is
    chosen, and no item is held out"""
    holdout: float = 0.1
    """share of each class's training items held out to choose it"""
    epochs: int = 100
    """passes over the features"""
    batch_size: int = 256
    """features a step"""
    momentum: float = 0.9
    """of the gradient descent"""
    weight_decay: float = 0.0
    """L2 penalty on the weights"""
    scaling: Scaling = "standard"
    """standard: zero mean and unit variance by training statistics, as a batch norm without
    parameters; l2: unit length; none"""

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ConfigError(f"learning_rates must be above 0, not {self.learning_rates}")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"holdout must be between 0 and 1, not {self.holdout}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError("epochs and batch_size must be at least 1")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ConfigError("momentum must be in [0, 1), weight_decay not negative")

    def describe(self) -> str:
        """Returns the training in words."""
        scaled = {
            "standard": "standardised by training statistics",
            "l2": "of unit length",
            "none": "as they are",
        }[self.scaling]
        return (
            f"linear layer on features {scaled}: {self.epochs} epochs of batches of "
            f"{self.batch_size}, momentum {self.momentum:g}, weight decay {self.weight_decay:g}, "
            "cosine schedule"
        )


@dataclass(frozen=True)
class Scaler:
    """Features to what heads see; ``mean`` and ``scale`` are (D,), or None to leave them."""

    scaling: Scaling
    mean: Tensor | None = None
    scale: Tensor | None = None

    @classmethod
    def fitted(cls, features: Tensor, scaling: Scaling) -> Scaler:
        """Returns the scaler with the statistics of ``features`` (N, D)."""
        if scaling != "standard":
            return cls(scaling)
        deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
        # A constant feature tells nothing: it becomes 0, not a division by 0.
        scale = torch.where(deviation > 0, deviation, torch.inf).reciprocal()
        return cls(scaling, mean.float(), scale.float())

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D) float32."""
        features = features.float()
        if self.scaling == "l2":
            return F.normalize(features, dim=1)
        if self.mean is None or self.scale is None:
            return features
        return (features - self.mean.to(features)) * self.scale.to(features)


@dataclass(frozen=True)
class Heads:
    """Trained heads: one a learning rate.

    Attributes:
        rates: H learning rates.
        weight: (H, C, D).
        bias: (H, C).
        scaler: What comes before.
    """

    rates: tuple[float, ...]
    weight: Tensor
    bias: Tensor
    scaler: Scaler

    def diverged(self) -> bool:
        """Whether no head has finite weights: there is nothing to choose from."""
        sound = self.weight.flatten(1).isfinite().all(1) & self.bias.isfinite().all(1)
        return not bool(sound.any())

    def probabilities(self, features: Tensor, chunk: int = 8192) -> Tensor:
        """Features (N, D) -> (H, N, C) on the CPU; of a head that diverged, all equal."""
        parts = []
        for part in features.split(chunk):
            inputs = self.scaler(part.to(self.weight.device))
            logits = torch.einsum("nd,hcd->hnc", inputs, self.weight) + self.bias[:, None]
            parts.append(logits.softmax(-1).nan_to_num(1 / logits.shape[-1]).cpu())
        return torch.cat(parts, dim=1)


@torch.no_grad()
def train_heads(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    rates: Sequence[float],
    config: HeadsConfig,
    *,
    seed: int,
    device: torch.device,
) -> Heads:
    """Trains one head for each rate on the same batches.

    Args:
        features: (N, D).
        labels: (N,) class indices.
        num_classes: Outputs of a head.
        rates: Learning rates at the start.
        config: All but the rates.
        seed: Draws first weights and the order of the features.
        device: Where to train.

    Returns:
        Heads in the order of ``rates``, on ``device``.
    """
    scaler = Scaler.fitted(features, config.scaling)
    inputs, targets = scaler(features).to(device), labels.to(device)
    first = torch.randn(num_classes, inputs.shape[1], generator=generator(seed, "heads"))
    weight = (_INITIAL_DEVIATION * first).repeat(len(rates), 1, 1).to(device)
    bias = torch.zeros(len(rates), num_classes, device=device)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    rate = torch.tensor(list(rates), device=device)[:, None]
    steps = config.epochs * math.ceil(len(inputs) / config.batch_size)
    step = 0
    with Progress(config.epochs, "heads", unit="epoch", silent=rank() != 0) as progress:
        for epoch in range(config.epochs):
            order = torch.randperm(len(inputs), generator=generator(seed, "heads order", epoch))
            for rows in order.to(device).split(config.batch_size):
                gradients = _gradients(inputs[rows], targets[rows], weight, bias)
                gradients[0].add_(weight, alpha=config.weight_decay)
                now = rate * (0.5 * (1 + math.cos(math.pi * step / steps)))
                pairs = zip(velocity, gradients, (weight, bias), strict=True)
                for moved, gradient, parameter in pairs:
                    moved.mul_(config.momentum).add_(gradient)
                    parameter.sub_(now.view(-1, *[1] * (moved.ndim - 1)) * moved)
                step += 1
            progress.advance()
    return Heads(tuple(rates), weight, bias, scaler)


def _gradients(inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Of each head's mean cross entropy by its weight and bias: softmax minus the one-hot label."""
    heads, classes, _ = weight.shape
    logits = F.linear(inputs, weight.flatten(0, 1), bias.flatten())
    error = logits.view(-1, heads, classes).softmax(-1)
    error[torch.arange(len(targets), device=targets.device), :, targets] -= 1
    error = error.flatten(1).div_(len(targets))
    return [(error.T @ inputs).view_as(weight), error.sum(0).view_as(bias)]


def choose_rate(scores: dict[float, float]) -> float:
    """Returns the rate with the best score; of equals, the lowest."""
    return max(scores, key=lambda rate: (scores[rate], -rate))
