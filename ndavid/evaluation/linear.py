"""Linear probe: a logistic regression on frozen, cached features.

Features of evenly spaced clips are computed once; the weight decay of the regression is chosen on
held-out *train groups*, then the regression is fitted again on all training videos. Test videos are
looked at once, by the final model. (A probe with augmentation, trained end to end, is
``finetune`` with ``mode: linear``.)

The regression is scikit-learn's, solved to convergence: there is no learning rate to tune. The
decay is chosen by held-out log loss. Accuracy on some hundred videos is a lottery: in a study of 28
encoders it took decays from 1e-4 to 10, and the log loss of the same features 1 for 26 of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from ndavid.engine.rng import derive_seed
from ndavid.errors import ConfigError
from ndavid.evaluation.classify import (
    PerItem,
    accuracies,
    classification_details,
    pool_confusions,
    top_outcomes,
)
from ndavid.evaluation.features import Features
from ndavid.evaluation.frozen_videos import (
    FrozenFold,
    FrozenVideosConfig,
    measure_folds,
    write_result,
)
from ndavid.evaluation.protocol import Result

Scaling = Literal["standard", "l2", "none"]


@dataclass(kw_only=True)
class LinearConfig(FrozenVideosConfig):
    """Linear probe on cached features."""

    output: str = "runs/linear"
    """folder for result.json and report.html"""
    scaling: Scaling = "standard"
    """standard: zero mean and unit variance by training statistics; l2: unit length"""
    per_view: bool = False
    """false: one mean feature a video; true: train on every view, average probabilities at test"""
    weight_decays: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    )
    """L2 penalties tried (on the mean loss); the best on held-out train groups is used"""
    holdout: float = 0.2
    """share of each class's training videos held out, by whole groups, to choose it"""
    max_iterations: int = 2000
    """solver iterations"""
    seed: int = 0
    """draws random weights, where asked for, and the held-out groups"""

    def __post_init__(self) -> None:
        if not self.weight_decays or min(self.weight_decays) <= 0:
            raise ConfigError(f"weight_decays must be above 0, not {self.weight_decays}")
        super().__post_init__()


def run(config: LinearConfig) -> Result:
    """Probes every fold, writes ``result.json`` and returns it."""
    return write_result(pool_confusions(measure_folds(config, _probe_fold)), config)


def _probe_fold(config: LinearConfig, fold: FrozenFold) -> Result:
    classes = fold.classes
    held_out = _held_out(config, fold)
    sweep = sweep_weight_decay(fold.train, held_out, len(classes), config)
    best = choose(sweep)
    probe, converged = fit_probe(fold.train, len(classes), best, config)
    predictions = predict(probe, fold.test, len(classes), config)
    averaged = "probabilities" if config.per_view else "features"
    protocol = fold.protocol(
        averaging=f"{averaged} averaged over views",
        selection=(
            f"weight decay {best:g} of {len(sweep)}, by log loss on {len(held_out)} videos of "
            "held-out train groups"
        ),
        notes=_warnings(sweep, best, converged, config),
    )
    return fold.result(
        "linear_probe",
        accuracies(predictions),
        protocol,
        chance=1 / len(classes),
        details={
            **classification_details(predictions, classes),
            "sweep": {f"{decay:g}": loss for decay, loss in sweep.items()},
        },
        outcomes=top_outcomes(predictions, fold.test.names),
    )


def _held_out(config: LinearConfig, fold: FrozenFold) -> set[str]:
    """Paths of the training videos that the weight decay is chosen on."""
    seed = derive_seed(config.seed, "holdout", fold.fold)
    _, records = fold.manifest.holdout(config.holdout, seed, fold.fold)
    return {record.path for record in records}


def _warnings(
    sweep: dict[float, float], best: float, converged: bool, config: LinearConfig
) -> list[str]:
    """What a reader must know of the fit: a sweep too narrow, a solver stopped early."""
    notes = []
    if len(sweep) > 2 and best in (min(sweep), max(sweep)):
        notes.append(f"The chosen weight decay {best:g} is at the edge of those tried.")
    if not converged:
        notes.append(f"The regression had not converged after {config.max_iterations} iterations.")
    return notes


def sweep_weight_decay(
    train: Features, held_out: set[str], num_classes: int, config: LinearConfig
) -> dict[float, float]:
    """Returns the held-out log loss of each weight decay, fitted without the held-out videos."""
    held = torch.tensor([name in held_out for name in train.names])
    fitting, validation = train.subset(~held), train.subset(held)
    losses = {}
    for decay in sorted(config.weight_decays):
        probe, _ = fit_probe(fitting, num_classes, decay, config)
        predictions = predict(probe, validation, num_classes, config)
        losses[decay] = log_loss(predictions)
    return losses


def log_loss(predictions: PerItem) -> float:
    """The mean of -log of the probability given to the true class, at least 1e-12."""
    chances = predictions.values.double().gather(1, predictions.labels[:, None])
    return float(-chances.clamp(min=1e-12).log().mean())


def choose(sweep: dict[float, float]) -> float:
    """Returns the weight decay with the least loss; of equals, the strongest."""
    return min(sweep, key=lambda decay: (sweep[decay], -decay))


def fit_probe(
    train: Features, num_classes: int, weight_decay: float, config: LinearConfig
) -> tuple[Pipeline, bool]:
    """Returns a probe fitted on ``train``, and whether the solver converged.

    Raises:
        ConfigError: If fewer than two classes have training videos.
    """
    inputs, labels = _rows(train, config.per_view)
    if len(np.unique(labels)) < 2:
        raise ConfigError("a linear probe needs training videos of at least two classes")
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


def predict(probe: Pipeline, features: Features, num_classes: int, config: LinearConfig) -> PerItem:
    """Returns class probabilities a video; a class without training videos gets 0."""
    inputs, _ = _rows(features, config.per_view)
    known = torch.from_numpy(probe.predict_proba(inputs)).float()
    values = torch.zeros(len(known), num_classes)
    values[:, torch.from_numpy(probe.classes_)] = known
    if config.per_view:
        values = values.view(len(features.names), -1, num_classes).mean(1)
    return PerItem(values, features.labels, torch.arange(len(features.names)), features.bad)


def _rows(features: Features, per_view: bool) -> tuple[np.ndarray, np.ndarray]:
    """Regression inputs (R, D) in float64 and their labels (R,)."""
    if not per_view:
        return features.pooled().double().numpy(), features.labels.numpy()
    views = features.values.shape[1]
    inputs = features.values.flatten(0, 1).double().numpy()
    return inputs, features.labels.repeat_interleave(views).numpy()
