"""What every evaluation on frozen features shares: its keys, its features and its Result.

The encoder is loaded once a fold, the features of the training videos and of the measured ones are
computed with it (or read from the cache), and where the weights come from is traced. What is done
with the features is the evaluator's own: ``linear`` fits a regression, ``retrieval`` nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from ndavid.collectives import world_size
from ndavid.data.manifest import Manifest
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.errors import ConfigError
from ndavid.evaluation.features import Features, extract
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.pretrained import ClassifierConfig, Pretrained, load_classifier, locate_each
from ndavid.evaluation.protocol import Protocol, Result, mean_over_folds
from ndavid.evaluation.provenance import Provenance, checkpoint_of, gallery, trace
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.views import ViewsConfig, describe, open_manifest


@dataclass(kw_only=True)
class FrozenConfig:
    """Which frozen features of which videos; the evaluator adds what it does with them."""

    output: str = ""
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
    seed: int = 0
    """draws random weights, where asked for"""
    device: Literal["auto", "cpu"] = "auto"
    """where features are computed: a GPU where there is one, or always the CPU"""
    cache: str = ""
    """folder for features, reusable between evaluations; empty keeps them in output/features"""

    def __post_init__(self) -> None:
        if not self.folds:
            raise ConfigError("folds must name at least one official fold")

    def cache_folder(self) -> Path:
        """Returns the folder for cached features."""
        return Path(self.cache) if self.cache else Path(self.output) / "features"


@dataclass(frozen=True)
class FrozenFold:
    """One official fold: the features of its videos, and where they come from.

    Attributes:
        config: What was asked for.
        fold: The fold's number, 1-based.
        manifest: All videos and classes.
        loaded: The encoder.
        provenance: What the encoder has seen before.
        train: Features of the training videos.
        test: Features of the videos that are measured.
        device: Where features are computed.
        started: ``time.monotonic`` when work on the fold began.
    """

    config: FrozenConfig
    fold: int
    manifest: Manifest
    loaded: Pretrained
    provenance: Provenance
    train: Features
    test: Features
    device: torch.device
    started: float

    def protocol(self, *, averaging: str, selection: str, notes: Sequence[str]) -> Protocol:
        """Returns how the fold was measured; ``notes`` follow those on the weights."""
        config = self.config
        protocol = describe(
            config.views,
            config.manifest,
            self.manifest,
            self.test.report,
            split=config.split,
            fold=self.fold,
        )
        protocol.num_videos = len(self.test.paths)
        protocol.num_bad = len(self.test.bad)
        protocol.averaging = averaging
        protocol.selection = selection
        protocol.notes = [*self.loaded.notes, *self.provenance.notes, *notes]
        return protocol

    def result(
        self,
        task: str,
        metrics: dict[str, Metric],
        protocol: Protocol,
        *,
        chance: float,
        details: dict[str, Any],
    ) -> Result:
        """Returns the fold's Result; ``details`` come before those on weights and bad videos."""
        seed = self.config.seed
        return Result(
            task=task,
            metrics=metrics,
            protocol=protocol,
            chance=chance,
            checkpoint=self.loaded.source,
            seed=seed,
            seconds=time.monotonic() - self.started,
            environment=describe_environment(
                seed=seed, device=self.device, world_size=world_size(), precision="no"
            ),
            details={
                **details,
                "key_report": self.loaded.key_report,
                "pretraining": self.provenance.details,
                "bad": [list(entry) for entry in (*self.train.bad, *self.test.bad)],
            },
        )


ConfigT = TypeVar("ConfigT", bound=FrozenConfig)


def measure_folds(config: ConfigT, measure: Callable[[ConfigT, FrozenFold], Result]) -> Result:
    """Returns the mean over the folds of what ``measure`` finds on each.

    Raises:
        CheckpointError: If a fold's checkpoint is missing or damaged, before the first is measured.
    """
    device = make_accelerator(device=config.device).device
    locate_each(config.checkpoint, config.folds)
    return mean_over_folds(
        [measure(config, load_fold(config, fold, device)) for fold in config.folds]
    )


def load_fold(config: FrozenConfig, fold: int, device: torch.device) -> FrozenFold:
    """Returns the features of one fold, computed on ``device`` or read from the cache.

    Raises:
        CheckpointError, ConfigError: As ``load_classifier``.
        DataError, DecodeError: As ``open_manifest`` and ``extract``.
    """
    started = time.monotonic()
    manifest = open_manifest(config.manifest)
    weights = checkpoint_of(config.checkpoint, fold)
    provenance = trace(weights, manifest.select(config.split, fold), fold)
    loaded = load_classifier(
        weights, config.model, config.views, len(manifest.classes), seed=config.seed
    )
    train, test = (
        extract(
            loaded.classifier,
            manifest.select(split, fold),
            manifest,
            config.views,
            cache=config.cache_folder(),
            device=device,
            description=f"{split} features",
        )
        for split in ("train", config.split)
    )
    return FrozenFold(
        config, fold, manifest, loaded, provenance, train, test, device=device, started=started
    )


def write_result(result: Result, config: FrozenConfig) -> Result:
    """Writes ``result.json`` and ``report.html`` into the output folder; returns the result."""
    return write_outputs(
        result,
        config,
        config.output,
        config.manifest,
        backend=config.views.backend,
        pictures=gallery(config.checkpoint, config.folds),
    )
