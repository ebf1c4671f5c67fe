"""What a GAN's discriminator is shown, and what it is told about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from ndavid import nda
from ndavid.errors import ConfigError
from ndavid.losses.adversarial import Objective
from ndavid.methods.diff_augment import Policy
from ndavid.nda.base import NegativeAugmentation


class Weights(NamedTuple):
    """Of the discriminator's two kinds of negatives, beside the real images' weight of 1."""

    alpha: float
    """generated images"""
    beta: float
    """broken ones"""


@dataclass(kw_only=True)
class GanNdaConfig:
    """Broken real images as a third kind of sample for the discriminator; "" means none."""

    spec: str = ""
    """The operation, as ``nda.from_spec`` reads it: "jigsaw:grid=2", "stitch | cut_mix"."""
    alpha: float = 0.25
    """Weight of generated images while broken ones are used (1 while they are not)."""
    beta: float = 0.75
    """Weight of broken images; at 0 the GAN is the plain one."""
    curriculum_steps: int = 0
    """Steps at the start that train the plain GAN."""

    def __post_init__(self) -> None:
        _check(math.isfinite(self.alpha) and self.alpha > 0, "nda.alpha", "> 0", self.alpha)
        _check(math.isfinite(self.beta) and self.beta >= 0, "nda.beta", ">= 0", self.beta)
        fits = self.curriculum_steps >= 0
        _check(fits, "nda.curriculum_steps", ">= 0", self.curriculum_steps)

    def operation(self) -> NegativeAugmentation | None:
        """The operation that ``spec`` names, None when it names none; ConfigError if unreadable."""
        return _operation(self.spec)

    def weights_at(self, step: int) -> Weights:
        """The weights at a step, counted from 0."""
        on = bool(self.spec.strip()) and self.beta > 0 and step >= self.curriculum_steps
        return Weights(self.alpha, self.beta) if on else Weights(1.0, 0.0)


@dataclass(kw_only=True)
class GanAugmentConfig:
    """Augmentation of what the discriminator sees, before anything is broken as a negative."""

    flip: bool = False
    """Mirror half of the real images."""
    real: str = ""
    """An NDA operation that real images pass through *as real ones*: what the paper compares with.
    The generator is then taught to make broken images."""
    real_probability: float = 0.5
    """Share of the real images that ``real`` is applied to."""
    every: str = ""
    """An NDA operation that all the discriminator's images pass through, generated ones with
    gradient (the way of Zhao et al. 2020)."""
    diffaugment: list[Policy] = field(default_factory=list)
    """Policies of Zhao et al. 2020 for all the discriminator's images: color, translation,
    cutout."""

    def __post_init__(self) -> None:
        fits = 0 <= self.real_probability <= 1
        _check(fits, "augment.real_probability", "in [0, 1]", self.real_probability)

    def of_real(self) -> NegativeAugmentation | None:
        """The operation for real images; ConfigError if unreadable."""
        return _operation(self.real)

    def of_all(self) -> NegativeAugmentation | None:
        """The operation for all the discriminator's images; ConfigError if unreadable."""
        return _operation(self.every)


@dataclass(kw_only=True)
class AdversarialConfig:
    """How the two networks play."""

    objective: Objective = "hinge"
    """hinge, non_saturating, wasserstein, or the f-divergences js, kl and chi2."""
    discriminator_steps: int = 4
    """Steps of the discriminator before each of the generator."""
    discriminator_lr_scale: float = 1.0
    """Factor on the learning rate for the discriminator."""
    gradient_penalty: float = 10.0
    """Weight of the penalty on the critic's gradient; for wasserstein, else unused."""

    def __post_init__(self) -> None:
        least = self.discriminator_steps >= 1
        _check(least, "adversarial.discriminator_steps", ">= 1", self.discriminator_steps)
        scale = self.discriminator_lr_scale
        _check(scale > 0, "adversarial.discriminator_lr_scale", "> 0", scale)
        penalty = self.gradient_penalty
        _check(penalty >= 0, "adversarial.gradient_penalty", ">= 0", penalty)


def _operation(spec: str) -> NegativeAugmentation | None:
    return nda.from_spec(spec) if spec.strip() else None


def _check(fits: bool, key: str, bounds: str, value: float) -> None:
    if not fits:
        raise ConfigError(f"{key} must be {bounds}, got {value}")
