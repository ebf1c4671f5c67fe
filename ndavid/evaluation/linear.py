"""Linear probe: a logistic regression on frozen, cached features.

Features of evenly spaced clips are computed once; the weight decay of the
:mod:`~ndavid.evaluation.regression` is chosen on held-out *train groups*, then it is fitted again
on all training videos. Test videos are looked at once, by the final model. (A probe with
augmentation, trained end to end, is ``finetune`` with ``mode: linear``.)
"""

from __future__ import annotations

from dataclasses import dataclass

from ndavid.engine.rng import derive_seed
from ndavid.evaluation.chance import classification_chances
from ndavid.evaluation.classify import (
    accuracies,
    classification_details,
    top_outcomes,
)
from ndavid.evaluation.frozen_videos import (
    FrozenFold,
    FrozenVideosConfig,
    measure_folds,
)
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.regression import (
    ONE_WEIGHT_DECAY,
    RegressionConfig,
    fit_chosen,
    predict,
    selection_of,
)


@dataclass(kw_only=True)
class LinearConfig(FrozenVideosConfig, RegressionConfig):
    """Linear probe on cached features."""

    output: str = ""
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -linear (evaluation/output_folder.py)"""
    per_view: bool = False
    """false: one mean feature a video; true: train on every view, average probabilities at test"""
    seed: int = 0
    """draws random weights, where asked for, and the held-out groups"""

    def __post_init__(self) -> None:
        FrozenVideosConfig.__post_init__(self)
        RegressionConfig.__post_init__(self)


@alone_in_output
def run(config: LinearConfig) -> Result:
    """Probes every fold, writes ``result.json`` and returns it."""
    return measure_folds(config, _probe_fold)


def _probe_fold(config: LinearConfig, fold: FrozenFold) -> Result:
    classes = fold.classes
    held_out = _held_out(config, fold)
    fitted = fit_chosen(fold.train, held_out, len(classes), config, per_view=config.per_view)
    predictions = predict(fitted.probe, fold.test, len(classes), per_view=config.per_view)
    averaged = "probabilities" if config.per_view else "features"
    protocol = fold.protocol(
        averaging=f"{averaged} averaged over views",
        selection=selection_of(
            f"{fitted.weight_decay:g}", config, f"{len(held_out)} videos of held-out train groups"
        ),
        notes=[f"Of the fit: {note}." for note in fitted.caveats()],
    )
    metrics = accuracies(predictions)
    return fold.result(
        "linear_probe",
        metrics,
        protocol,
        chances=classification_chances(predictions.labels, metrics),
        details={**classification_details(predictions, classes), "sweep": fitted.losses()},
        outcomes=top_outcomes(predictions, fold.test.names),
    )


def _held_out(config: LinearConfig, fold: FrozenFold) -> set[str]:
    """Paths of the training videos, of those with features, that the weight decay is chosen on."""
    if len(config.decays) == 1:
        return set()
    seed = derive_seed(config.seed, "holdout", fold.fold)
    _, records = fold.manifest.holdout(config.holdout, seed, fold.fold, otherwise=ONE_WEIGHT_DECAY)
    return {record.path for record in records} & set(fold.train.names)
