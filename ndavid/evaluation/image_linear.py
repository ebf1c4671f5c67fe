"""Linear probe of an encoder of images, in two forms.

``mode: sgd`` is MoCo's linear classification (He, Fan, Wu, Xie and Girshick 2020, and its code):
the frozen encoder in eval mode sees augmented images, and a linear layer with first weights from
N(0, 0.01) learns at rate 30 without weight decay for 100 epochs, x 0.1 at 60 and 80, in batches of
256. That the encoder has not changed is checked. The epoch that counts is the last one, or the best
on held-out training images; never the best on test.

``mode: features`` computes the features of unaugmented images once and trains linear layers of many
learning rates on them side by side (``linear_heads.py``). The rate is chosen on held-out training
images, the layer trained again on all of them, and the test images looked at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ndavid.config import changeable
from ndavid.data.image_subsets import stratified_indices
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import derive_seed, generator
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError, TrainingError
from ndavid.evaluation.chance import classification_chances
from ndavid.evaluation.classify import PerItem, accuracies, classification_details, top_outcomes
from ndavid.evaluation.features import Features
from ndavid.evaluation.frozen_images import FrozenImages, load_images, write_image_result
from ndavid.evaluation.image_task import (
    ImageTask,
    ImageTrainingConfig,
    label_notes,
    load_for_task,
    meet_ranks,
    run_trial,
)
from ndavid.evaluation.linear_heads import HeadsConfig, choose_rate, train_heads
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.settings import feature_folder


def _moco_optim() -> OptimConfig:
    return OptimConfig(name="sgd", lr=30.0, weight_decay=0.0, milestones=[60, 80], gamma=0.1)


@dataclass(kw_only=True)
class ImageLinearConfig(ImageTrainingConfig):
    """Linear probe on images; run.seed and run.device count in both modes."""

    output: str = changeable("")
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -image_linear (evaluation/output_folder.py)"""
    mode: Literal["features", "sgd"] = "features"
    """features: on cached features, learning rate from a sweep; sgd: MoCo's recipe"""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """mode: features only: the sweep"""
    cache: str = ""
    """mode: features only: folder for features; empty keeps them in output/features"""
    optim: OptimConfig = field(default_factory=_moco_optim)
    """mode: sgd only"""
    run: RunConfig = field(
        default_factory=lambda: RunConfig(output="set by output", epochs=100, batch_size=256)
    )
    """length, seed, precision; run.output follows from output"""


@alone_in_output
def run(config: ImageLinearConfig) -> Result:
    """Probes the encoder, writes ``result.json`` and returns it.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: See ``errors``; each in one line.
    """
    meet_ranks(config)
    return _probe_by_sgd(config) if config.mode == "sgd" else _probe_features(config)


def _probe_by_sgd(config: ImageLinearConfig) -> Result:
    task = ImageTask(config)
    loaded = load_for_task(config, task)
    layer = loaded.classifier.head.get_submodule("fc")
    assert isinstance(layer, nn.Linear)
    start_like_moco(layer, config.run.seed)
    return run_trial("linear", config, task, loaded, frozen=True)


def start_like_moco(layer: nn.Linear, seed: int) -> None:
    """Draws the layer's weights from N(0, 0.01) and sets its bias to zero."""
    nn.init.normal_(layer.weight, std=0.01, generator=generator(seed, "linear"))
    nn.init.zeros_(layer.bias)


def _probe_features(config: ImageLinearConfig) -> Result:
    frozen = load_images(
        config,
        seed=config.run.seed,
        device=config.run.device,
        cache=feature_folder(config.cache, config.output),
        label_fraction=config.label_fraction,
    )
    rates = sorted(set(config.heads.learning_rates))
    best, sweep, selection = rates[0], {}, f"learning rate {rates[0]:g}, as given"
    if len(rates) > 1:
        held = held_out(frozen.train.labels, config.heads.holdout, config.run.seed)
        sweep = sweep_rates(frozen, held, config)
        best = choose_rate(sweep)
        selection = (
            f"learning rate {best:g} of {len(sweep)}, by accuracy on {int(held.sum())} held-out "
            "training images"
        )
    predictions = _predict(frozen, frozen.train, frozen.test, [best], config)[best]
    protocol = frozen.protocol(
        averaging="one view an image",
        selection=selection,
        notes=[
            f"Trained: {config.heads.describe()}.",
            *label_notes(config.label_fraction, len(frozen.train.labels)),
            *_warnings(sweep, best),
        ],
    )
    metrics = accuracies(predictions)
    result = frozen.result(
        "linear_probe",
        metrics,
        protocol,
        chances=classification_chances(predictions.labels, metrics),
        details={
            **classification_details(predictions, frozen.classes),
            "sweep": {f"{rate:g}": accuracy for rate, accuracy in sweep.items()},
        },
        outcomes=top_outcomes(predictions, frozen.test.names),
    )
    return write_image_result(result, config, frozen.loaded.opened)


def held_out(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Returns which training images choose the rate, bool (N,): the same share of every class.

    Raises:
        ConfigError: If a class would be left without an image to learn from.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[stratified_indices(labels, fraction, derive_seed(seed, "holdout"))] = True
    if missing := set(labels.tolist()) - set(labels[~held].tolist()):
        raise ConfigError(
            f"holding out {fraction:g} leaves no training image of {len(missing)} classes; use "
            "more labels (label_fraction), hold out less (heads.holdout), or give a single "
            "learning rate (heads.learning_rates): none is held out then"
        )
    return held


def sweep_rates(
    frozen: FrozenImages, held: Tensor, config: ImageLinearConfig
) -> dict[float, float]:
    """Returns the held-out top-1 of each rate, trained without the held-out images."""
    rates = sorted(set(config.heads.learning_rates))
    fitting, validation = frozen.train.subset(~held), frozen.train.subset(held)
    found = _predict(frozen, fitting, validation, rates, config)
    return {rate: accuracies(found[rate])["top1"].value for rate in rates}


def _predict(
    frozen: FrozenImages,
    train: Features,
    test: Features,
    rates: list[float],
    config: ImageLinearConfig,
) -> dict[float, PerItem]:
    """Class probabilities of ``test`` by a head of each rate."""
    heads = train_heads(
        train.pooled(),
        train.labels,
        len(frozen.classes),
        rates,
        config.heads,
        seed=config.run.seed,
        device=frozen.device,
    )
    if heads.diverged():
        raise TrainingError(
            f"every linear layer diverged, at learning rates {min(rates):g} to {max(rates):g}: "
            "lower heads.learning_rates"
        )
    places = torch.arange(len(test.labels))
    return {
        rate: PerItem(values, test.labels, places, test.bad)
        for rate, values in zip(rates, heads.probabilities(test.pooled()), strict=True)
    }


def _warnings(sweep: dict[float, float], best: float) -> list[str]:
    if len(sweep) > 2 and best in (min(sweep), max(sweep)):
        return [f"The chosen learning rate {best:g} is at the edge of those tried."]
    return []
