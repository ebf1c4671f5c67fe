"""Linear probe: a logistic regression on frozen, cached features.

Features of evenly spaced clips are computed once; the weight decay of the regression is chosen on
held-out *train groups*, then the regression is fitted again on all training videos. Test videos are
looked at once, by the final model. (A probe with augmentation, trained end to end, is
``finetune`` with ``mode: linear``.)

The regression is scikit-learn's, solved to convergence: there is no learning rate to tune.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from torch import Tensor

from ndavid.collectives import world_size
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.rng import derive_seed
from ndavid.errors import ConfigError
from ndavid.evaluation.classify import (
    PerVideo,
    accuracies,
    classification_details,
    pool_confusions,
)
from ndavid.evaluation.features import Features, extract
from ndavid.evaluation.pretrained import ClassifierConfig, load_classifier, locate_each
from ndavid.evaluation.protocol import Result, mean_over_folds
from ndavid.evaluation.provenance import checkpoint_of, gallery, trace
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.views import ViewsConfig, describe, open_manifest

Scaling = Literal["standard", "l2", "none"]


@dataclass(kw_only=True)
class LinearConfig:
    """Linear probe on cached features."""

    output: str = "runs/linear"
    """folder for result.json and report.html"""
    manifest: str = ""
    """manifest.csv of the prepared dataset, or its folder"""
    checkpoint: str = ""
    """run, checkpoint, saved model or file of the original DPC; empty: random weights. {fold} in it
    stands for the fold's number: one pretraining a fold, which never saw that fold's test videos"""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """the encoder, and where its features are taken (head: before the linear layer)"""
    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(crops=1))
    """what is read from each video, training and test alike"""
    folds: list[int] = field(default_factory=lambda: [1])
    """official folds; several are averaged"""
    split: Literal["test", "val"] = "test"
    """the split that is measured; Kinetics is measured on val"""
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
    device: Literal["auto", "cpu"] = "auto"
    """where features are computed: a GPU where there is one, or always the CPU"""
    cache: str = ""
    """folder for features, reusable between evaluations; empty keeps them in output/features"""

    def __post_init__(self) -> None:
        if not self.weight_decays or min(self.weight_decays) <= 0:
            raise ConfigError(f"weight_decays must be above 0, not {self.weight_decays}")
        if not self.folds:
            raise ConfigError("folds must name at least one official fold")


def run(config: LinearConfig) -> Result:
    """Probes every fold, writes ``result.json`` and returns it."""
    device = make_accelerator(device=config.device).device
    locate_each(config.checkpoint, config.folds)
    results = [_run_fold(config, fold, device) for fold in config.folds]
    result = pool_confusions(mean_over_folds(results))
    return write_outputs(
        result,
        config,
        config.output,
        config.manifest,
        backend=config.views.backend,
        pictures=gallery(config.checkpoint, config.folds),
    )


def _run_fold(config: LinearConfig, fold: int, device: torch.device) -> Result:
    started = time.monotonic()
    manifest = open_manifest(config.manifest)
    num_classes = len(manifest.classes)
    weights = checkpoint_of(config.checkpoint, fold)
    provenance = trace(weights, manifest.select(config.split, fold), fold)
    loaded = load_classifier(weights, config.model, config.views, num_classes, seed=config.seed)
    cache = Path(config.cache) if config.cache else Path(config.output) / "features"
    train, test = (
        extract(
            loaded.classifier,
            manifest.select(split, fold),
            manifest,
            config.views,
            cache=cache,
            device=device,
            description=f"{split} features",
        )
        for split in ("train", config.split)
    )
    notes = [*loaded.notes, *provenance.notes]
    held_out = {
        record.path
        for record in manifest.holdout(
            config.holdout, derive_seed(config.seed, "holdout", fold), fold
        )[1]
    }
    sweep = sweep_weight_decay(train, held_out, num_classes, config)
    best = choose(sweep)
    if len(sweep) > 2 and best in (min(sweep), max(sweep)):
        notes.append(f"The chosen weight decay {best:g} is at the edge of those tried.")
    probe, converged = fit_probe(train, num_classes, best, config)
    if not converged:
        notes.append(f"The regression had not converged after {config.max_iterations} iterations.")
    predictions = predict(probe, test, num_classes, config)
    protocol = describe(
        config.views, config.manifest, manifest, test.report, split=config.split, fold=fold
    )
    protocol.num_videos = len(test.paths)
    protocol.num_bad = len(test.bad)
    protocol.averaging = (
        "probabilities averaged over views" if config.per_view else "features averaged over views"
    )
    protocol.selection = (
        f"weight decay {best:g} of {len(sweep)}, by accuracy on {len(held_out)} videos of "
        "held-out train groups"
    )
    protocol.notes = notes
    return Result(
        task="linear_probe",
        metrics=accuracies(predictions),
        protocol=protocol,
        chance=1 / num_classes,
        checkpoint=loaded.source,
        seed=config.seed,
        seconds=time.monotonic() - started,
        environment=describe_environment(
            seed=config.seed, device=device, world_size=world_size(), precision="no"
        ),
        details={
            **classification_details(predictions, manifest.classes),
            "sweep": {f"{decay:g}": accuracy for decay, accuracy in sweep.items()},
            "key_report": loaded.key_report,
            "pretraining": provenance.details,
            "bad": [list(entry) for entry in (*train.bad, *test.bad)],
        },
    )


def sweep_weight_decay(
    train: Features, held_out: set[str], num_classes: int, config: LinearConfig
) -> dict[float, float]:
    """Returns the held-out top-1 of each weight decay, fitted without the held-out videos."""
    held = torch.tensor([path in held_out for path in train.paths])
    fitting, validation = _subset(train, ~held), _subset(train, held)
    scores = {}
    for decay in sorted(config.weight_decays):
        probe, _ = fit_probe(fitting, num_classes, decay, config)
        predictions = predict(probe, validation, num_classes, config)
        scores[decay] = accuracies(predictions)["top1"].value
    return scores


def choose(sweep: dict[float, float]) -> float:
    """Returns the weight decay with the best score; of equals, the strongest."""
    return max(sweep, key=lambda decay: (sweep[decay], decay))


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


def predict(
    probe: Pipeline, features: Features, num_classes: int, config: LinearConfig
) -> PerVideo:
    """Returns class probabilities a video; a class without training videos gets 0."""
    inputs, _ = _rows(features, config.per_view)
    known = torch.from_numpy(probe.predict_proba(inputs)).float()
    values = torch.zeros(len(known), num_classes)
    values[:, torch.from_numpy(probe.classes_)] = known
    if config.per_view:
        values = values.view(len(features.paths), -1, num_classes).mean(1)
    return PerVideo(values, features.labels, torch.arange(len(features.paths)), features.bad)


def _rows(features: Features, per_view: bool) -> tuple[np.ndarray, np.ndarray]:
    """Regression inputs (R, D) in float64 and their labels (R,)."""
    if not per_view:
        return features.pooled().double().numpy(), features.labels.numpy()
    views = features.values.shape[1]
    inputs = features.values.flatten(0, 1).double().numpy()
    return inputs, features.labels.repeat_interleave(views).numpy()


def _subset(features: Features, keep: Tensor) -> Features:
    rows: Sequence[int] = keep.nonzero().flatten().tolist()
    return Features(
        features.values[keep],
        features.labels[keep],
        tuple(features.paths[row] for row in rows),
        features.bad,
        features.report,
    )
