"""From a checkpoint to a classifier whose encoder provably holds it.

A "pretrained" model whose keys did not match trains from random weights without a word; released
weights that end 20 points low have been just that (SlowFast issue 554). Here the loaded tensors are
compared with those in the file, the comparison is printed and stored in the Result, and under 95%
is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ndavid.collectives import rank
from ndavid.engine.rng import seeded
from ndavid.errors import CheckpointError, ConfigError, printable_lines
from ndavid.evaluation.provenance import checkpoint_of
from ndavid.evaluation.views import ViewsConfig
from ndavid.models.batchnorm import has_running_stats
from ndavid.models.classifier import DpcClassifier, EncoderClassifier, HeadInit
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.checkpoint import LoadedCheckpoint, Weights, open_checkpoint
from ndavid.models.weights.matching import compare, find_prefix
from ndavid.models.weights.release import load_dpc, load_encoder

MIN_FRACTION = 0.95

Classifier = DpcClassifier | EncoderClassifier


@dataclass(kw_only=True)
class EncoderConfig:
    """An encoder, whose features are the mean of its last map, and a linear layer on them."""

    encoder: str = ""
    """name as build_encoder takes it; empty: as the checkpoint says"""
    norm: Literal["none", "bn"] = "none"
    """batch norm before the linear layer of a pool head; a dpc head always has one"""
    weights: Weights = "model"
    """of a run: model, those that were trained, or ema, their average (run.ema_decay above 0)"""
    dropout: float = 0.0
    """before the linear layer"""
    head_init: HeadInit | None = None
    """of the linear layer: torch (as torch draws it) or orthogonal (with zero biases); null: as the
    head's own code has it, which is orthogonal for a dpc head and torch for a pool head"""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must be in [0, 1), not {self.dropout}")


@dataclass(kw_only=True)
class ClassifierConfig(EncoderConfig):
    """Encoder and head of a model for videos."""

    head: Literal["dpc", "pool"] = "dpc"
    """dpc: blocks -> encoder -> GRU (both from the checkpoint); pool: encoder -> global mean"""
    dropout: float = 0.5
    """before the linear layer; DPC's 0.5, though 0.9 does better on UCF101 (MemDPC issue 5)"""


@dataclass(frozen=True)
class Pretrained:
    """A classifier with a fresh head, and where the rest of it comes from.

    Attributes:
        classifier: DpcClassifier or EncoderClassifier.
        encoder: The encoder's name.
        opened: The checkpoint; None for random weights.
        key_report: Which tensors of the encoder are those of the file; empty for random ones.
        notes: What a reader of the numbers must know about the weights.
    """

    classifier: Classifier
    encoder: str
    opened: LoadedCheckpoint | None = None
    key_report: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> dict[str, str]:
        """Path and SHA-256 of the weights; empty for random ones."""
        return {} if self.opened is None else source_of(self.opened)


def source_of(opened: LoadedCheckpoint) -> dict[str, str]:
    """Returns path and SHA-256 of weights, as a Result names them."""
    return {"path": str(opened.path), "sha256": opened.digest}


def open_weights(checkpoint: str, config: EncoderConfig) -> LoadedCheckpoint | None:
    """Returns the checkpoint, read once and verified; None where random weights are asked for.

    Args:
        checkpoint: A run's folder, one of its ``checkpoints/step_N``, a folder of
            ``save_pretrained``, or a file of the original DPC or MoCo; empty for random weights.
        config: Says which of a run's weights.

    Raises:
        CheckpointError: If it is none of these, damaged, or lacks the averaged weights.
    """
    return open_checkpoint(checkpoint, config.weights) if checkpoint else None


def open_folds(
    checkpoint: str, config: EncoderConfig, folds: Sequence[int]
) -> dict[int, LoadedCheckpoint | None]:
    """Returns each fold's checkpoint, all of them before the first fold costs hours.

    Args:
        checkpoint: As ``open_weights`` takes it; ``{fold}`` in it stands for the fold's number.
        config: As there.
        folds: Numbers of the folds.
    """
    paths = {fold: checkpoint_of(checkpoint, fold) for fold in folds}
    opened = {path: open_weights(path, config) for path in dict.fromkeys(paths.values())}
    return {fold: opened[path] for fold, path in paths.items()}


def load_classifier(
    opened: LoadedCheckpoint | None,
    config: ClassifierConfig,
    views: ViewsConfig,
    num_classes: int,
    *,
    seed: int,
) -> Pretrained:
    """Returns a classifier of videos: encoder of a checkpoint, or random where there is none.

    Args:
        opened: The checkpoint.
        config: Encoder and head.
        views: Their blocks are what a dpc head is run on.
        num_classes: Outputs of the head.
        seed: Draws what is not in the checkpoint.

    Raises:
        CheckpointError: If it holds another encoder than asked for, or under 95% of the encoder's
            tensors are those of the file.
        ConfigError: If a random encoder is asked for without a name, or a dpc head without blocks.
    """
    if config.head == "pool":
        return load_pooled(opened, config, num_classes, seed=seed)
    if views.sampling != "blocks":
        raise ConfigError("model.head: dpc reads blocks; set views.sampling: blocks, or head: pool")
    with seeded(seed, "init"):
        if opened is None:
            dpc = _random_dpc(_name_of_random(config), views)
            classifier = DpcClassifier(
                dpc, num_classes, dropout=config.dropout, head_init=config.head_init or "orthogonal"
            )
            return _random(classifier, config)
        pretrained = _stored_dpc(opened, views)
        classifier = DpcClassifier.from_dpc(
            pretrained,
            num_classes,
            dropout=config.dropout,
            head_init=config.head_init or "orthogonal",
        )
        return _verified(opened, config, classifier, pretrained.config.encoder)


def load_pooled(
    opened: LoadedCheckpoint | None, config: EncoderConfig, num_classes: int, *, seed: int
) -> Pretrained:
    """Returns a classifier of images or clips on the mean of an encoder's last map.

    Arguments and errors are those of ``load_classifier``, without a dpc head's.
    """
    with seeded(seed, "init"):
        if opened is None:
            encoder = build_encoder(_name_of_random(config))
            return _random(_pool_classifier(encoder, config, num_classes), config)
        encoder = load_encoder(opened)
        return _verified(
            opened, config, _pool_classifier(encoder, config, num_classes), encoder.name
        )


def _name_of_random(config: EncoderConfig) -> str:
    if not config.encoder:
        raise ConfigError(
            "no checkpoint and no model.encoder: name the encoder to start from random weights, "
            "e.g. model.encoder: resnet2d3d18"
        )
    if rank() == 0:
        print(f"no checkpoint: {config.encoder} starts from random weights")
    return config.encoder


def _random(classifier: Classifier, config: EncoderConfig) -> Pretrained:
    return Pretrained(classifier, config.encoder, notes=("The encoder's weights are random.",))


def _random_dpc(encoder: str, views: ViewsConfig) -> DpcConfig:
    return DpcConfig(
        encoder=encoder,
        num_blocks=views.num_blocks,
        block_len=views.block_len,
        pred_steps=min(DpcConfig.pred_steps, views.num_blocks - 1),
    )


def _stored_dpc(opened: LoadedCheckpoint, views: ViewsConfig) -> DPC:
    dpc = load_dpc(opened)
    dpc.config = dataclasses.replace(
        dpc.config,
        num_blocks=views.num_blocks,
        block_len=views.block_len,
        pred_steps=min(dpc.config.pred_steps, views.num_blocks - 1),
    )
    return dpc


def _verified(
    opened: LoadedCheckpoint, config: EncoderConfig, classifier: Classifier, name: str
) -> Pretrained:
    """The classifier with its report, after comparing its encoder with the file's, by values."""
    if config.encoder and config.encoder != name:
        raise CheckpointError(
            f"{opened.path}: holds the encoder {name}, but model.encoder asks for {config.encoder}"
        )
    prefix = find_prefix(classifier.encoder, opened.weights)
    report = compare(classifier.encoder, opened.weights, prefix=prefix, values=True)
    if rank() == 0:
        print(printable_lines(f"{opened.path}: encoder: {report}"))
    if report.fraction < MIN_FRACTION:
        raise CheckpointError(f"{opened.path}: the encoder does not hold this checkpoint: {report}")
    return Pretrained(
        classifier,
        name,
        opened,
        # Lists, as they come back out of a Result's JSON.
        key_report={
            "fraction": report.fraction,
            **{kind: list(keys) for kind, keys in dataclasses.asdict(report).items()},
        },
        notes=_notes(classifier),
    )


def _pool_classifier(
    encoder: Encoder, config: EncoderConfig, num_classes: int
) -> EncoderClassifier:
    return EncoderClassifier(
        encoder,
        num_classes,
        dropout=config.dropout,
        head_norm=config.norm,
        head_init=config.head_init or "torch",
    )


def _notes(classifier: Classifier) -> tuple[str, ...]:
    if has_running_stats(classifier.encoder):
        return ()
    return (
        "The checkpoint has no batch-norm running statistics: frozen features use those of the "
        "batch, and depend on which clips share it.",
    )
