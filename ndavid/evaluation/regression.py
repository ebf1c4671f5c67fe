"""A logistic regression on frozen features, its weight decay chosen on held-out training items.

The regression is scikit-learn's, solved to convergence: there is no learning rate to tune. The
decay is chosen by held-out log loss, then the regression is fitted again on all training items.
Accuracy on some hundred items is a lottery: in a study of 28 encoders it took decays from 1e-4 to
10, and the log loss of the same features 1 for 26 of them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from ndavid.collectives import rank
from ndavid.errors import ConfigError
from ndavid.evaluation.classify import PerItem
from ndavid.evaluation.features import Features
from ndavid.progress import Progress

ONE_WEIGHT_DECAY = "or give a single weight decay (--weight_decays '[0.01]'): none is held out then"


@dataclass(kw_only=True)
class RegressionConfig:
    """How a logistic regression is fitted on cached features."""

    scaling: Literal["standard", "l2", "none"] = "standard"
    """standard: zero mean and unit variance by training statistics; l2: unit length"""
    weight_decays: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    )
    """L2 penalties tried (on the mean loss); the best on held-out training videos is used. Of a
    single one nothing is chosen, and no video is held out"""
    holdout: float = 0.2
    """share of the training videos (of each class's, where classes are told apart) held out, by
    whole groups, to choose it"""
    max_iterations: int = 2000
    """solver iterations"""

    def __post_init__(self) -> None:
        decays = self.weight_decays
        if not decays or not all(math.isfinite(decay) and decay > 0 for decay in decays):
            raise ConfigError(f"weight_decays must be numbers above 0, not {decays}")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"holdout must lie between 0 and 1, not {self.holdout}")
        if self.max_iterations < 1:
            raise ConfigError(f"max_iterations must be at least 1, not {self.max_iterations}")

    @property
    def decays(self) -> list[float]:
        """The weight decays to try, each once, the smallest first."""
        return sorted(set(self.weight_decays))


@dataclass(frozen=True)
class Fitted:
    """A regression at the weight decay that was chosen for it.

    Attributes:
        probe: Fitted on all training items.
        weight_decay: The one chosen.
        sweep: Held-out log loss of each weight decay tried; empty if there was a single one.
        converged: Whether the solver converged on all training items.
        max_iterations: How many the solver was given.
    """

    probe: Pipeline
    weight_decay: float
    sweep: dict[float, float]
    converged: bool
    max_iterations: int

    def losses(self) -> dict[str, float]:
        """Returns the sweep as a Result keeps it, each weight decay as text."""
        return {f"{decay:g}": loss for decay, loss in self.sweep.items()}

    def caveats(self) -> list[str]:
        """Returns what a reader must know: a sweep too narrow, a solver stopped early."""
        notes = []
        if len(self.sweep) > 2 and self.weight_decay in (min(self.sweep), max(self.sweep)):
            notes.append(
                f"the chosen weight decay {self.weight_decay:g} is at the edge of those tried"
            )
        if not self.converged:
            notes.append(f"the regression had not converged after {self.max_iterations} iterations")
        return notes


def selection_of(chosen: str, config: RegressionConfig, held_out: str) -> str:
    """Returns, for a protocol, how the weight decay in ``chosen`` came about."""
    if len(config.decays) == 1:
        return f"weight decay {chosen}, as given"
    return f"weight decay {chosen} of {len(config.decays)}, by log loss on {held_out}"


def fit_chosen(
    train: Features,
    held_out: set[str],
    num_classes: int,
    config: RegressionConfig,
    *,
    per_view: bool = False,
) -> Fitted:
    """Chooses the weight decay on the items named in ``held_out``, then fits on all of ``train``.

    Args:
        train: Values (M, V, D).
        held_out: Names of some of its items; not looked at if a single decay is given.
        num_classes: Labels are below it.
        config: How the regression is fitted, and which decays are tried.
        per_view: Fit on each view of an item instead of on their mean.

    Raises:
        ConfigError: If fewer than two classes have items to fit on, or no item is held out.
    """
    sweep: dict[float, float] = {}
    if len(config.decays) > 1:
        sweep = sweep_weight_decay(train, held_out, num_classes, config, per_view=per_view)
    best = choose(sweep) if sweep else config.decays[0]
    probe, converged = fit_probe(train, best, config, per_view=per_view)
    return Fitted(probe, best, sweep, converged, config.max_iterations)


def sweep_weight_decay(
    train: Features,
    held_out: set[str],
    num_classes: int,
    config: RegressionConfig,
    *,
    per_view: bool = False,
) -> dict[float, float]:
    """Returns the held-out log loss of each weight decay, fitted without the held-out items.

    Raises:
        ConfigError: As ``fit_chosen``.
    """
    held = torch.tensor([name in held_out for name in train.names])
    if not held.any():
        raise ConfigError(
            f"none of the {len(held_out)} training videos held out to choose the weight decay has "
            "features (dropped as short, or undecodable); hold out more (holdout), or another draw "
            "(seed)"
        )
    fitting, validation = train.subset(~held), train.subset(held)
    losses = {}
    fits = len(config.decays)
    with Progress(fits, "weight decays", unit="fit", silent=rank() != 0) as progress:
        for decay in config.decays:
            probe, _ = fit_probe(fitting, decay, config, per_view=per_view)
            losses[decay] = log_loss(predict(probe, validation, num_classes, per_view=per_view))
            progress.advance()
    return losses


def log_loss(predictions: PerItem) -> float:
    """The mean of -log of the probability given to the true class, at least 1e-12."""
    chances = predictions.values.double().gather(1, predictions.labels[:, None])
    return float(-chances.clamp(min=1e-12).log().mean())


def choose(sweep: dict[float, float]) -> float:
    """Returns the weight decay with the least loss; of equals, the strongest."""
    return min(sweep, key=lambda decay: (sweep[decay], -decay))


def fit_probe(
    train: Features, weight_decay: float, config: RegressionConfig, *, per_view: bool = False
) -> tuple[Pipeline, bool]:
    """Returns a probe fitted on ``train``, and whether the solver converged.

    Raises:
        ConfigError: If fewer than two classes have training items.
    """
    inputs, labels = _rows(train, per_view)
    if len(np.unique(labels)) < 2:
        raise ConfigError("a regression needs training videos of at least two classes")
    scaler = {
        "standard": StandardScaler(),
        "l2": Normalizer(),
        "none": FunctionTransformer(),
    }[config.scaling]
    # scikit-learn weighs the summed loss by C against |w|^2 / 2; we penalise the mean loss.
    regression = LogisticRegression(
        C=1 / (weight_decay * len(labels)), max_iter=config.max_iterations
    )
    probe = make_pipeline(scaler, regression)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        probe.fit(inputs, labels)
    return probe, not any(issubclass(w.category, ConvergenceWarning) for w in caught)


def predict(
    probe: Pipeline, features: Features, num_classes: int, *, per_view: bool = False
) -> PerItem:
    """Returns class probabilities an item; a class without training items gets 0.

    With ``per_view`` they are the mean of those of its views.
    """
    inputs, _ = _rows(features, per_view)
    known = torch.from_numpy(probe.predict_proba(inputs)).float()
    values = torch.zeros(len(known), num_classes)
    values[:, torch.from_numpy(probe.classes_)] = known
    if per_view:
        values = values.view(len(features.names), -1, num_classes).mean(1)
    return PerItem(values, features.labels, torch.arange(len(features.names)), features.bad)


def _rows(features: Features, per_view: bool) -> tuple[np.ndarray, np.ndarray]:
    """Regression inputs (R, D) in float64 and their labels (R,)."""
    if not per_view:
        return features.pooled().double().numpy(), features.labels.numpy()
    views = features.values.shape[1]
    inputs = features.values.flatten(0, 1).double().numpy()
    return inputs, features.labels.repeat_interleave(views).numpy()
