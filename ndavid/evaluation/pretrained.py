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
from pathlib import Path
from typing import Any, Literal

from ndavid.checkpoint_files import COMPLETE_FILE, EMA_FILE, FOLDER, MODEL_FILE
from ndavid.collectives import rank
from ndavid.engine import checkpoint as engine_checkpoint
from ndavid.engine.rng import seeded
from ndavid.errors import CheckpointError, ConfigError, printable_lines
from ndavid.evaluation.protocol import file_digest
from ndavid.evaluation.provenance import checkpoint_of
from ndavid.evaluation.views import ViewsConfig
from ndavid.models.batchnorm import has_running_stats
from ndavid.models.classifier import DpcClassifier, EncoderClassifier, HeadInit
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.matching import compare, find_prefix
from ndavid.models.weights.release import Weights, load_dpc, load_encoder
from ndavid.models.weights.state_files import read_state_dict

MIN_FRACTION = 0.95
WEIGHTS_FILES: dict[Weights, str] = {"model": MODEL_FILE, "ema": EMA_FILE}

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
        source: Path and SHA-256 of the weights; empty for random ones.
        key_report: Which tensors of the encoder are those of the file; empty for random ones.
        notes: What a reader of the numbers must know about the weights.
    """

    classifier: Classifier
    encoder: str
    source: dict[str, str] = field(default_factory=dict)
    key_report: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_classifier(
    checkpoint: str,
    config: ClassifierConfig,
    views: ViewsConfig,
    num_classes: int,
    *,
    seed: int,
) -> Pretrained:
    """Returns a classifier of videos: encoder of ``checkpoint``, or random where it is empty.

    Args:
        checkpoint: A run's folder, one of its ``checkpoints/step_N``, a folder of
            ``save_pretrained``, or a file of the original DPC.
        config: Encoder and head.
        views: Their blocks are what a dpc head is run on.
        num_classes: Outputs of the head.
        seed: Draws what is not in the checkpoint.

    Raises:
        CheckpointError: If it is not a checkpoint, holds another encoder than asked for, no
            averaged weights where they are asked for, or under 95% of the encoder's tensors are
            those of the file.
        ConfigError: If a random encoder is asked for without a name, or a dpc head without blocks.
    """
    if config.head == "pool":
        return load_pooled(checkpoint, config, num_classes, seed=seed)
    if views.sampling != "blocks":
        raise ConfigError("model.head: dpc reads blocks; set views.sampling: blocks, or head: pool")
    with seeded(seed, "init"):
        if not checkpoint:
            dpc = _random_dpc(_name_of_random(config), views)
            classifier = DpcClassifier(
                dpc, num_classes, dropout=config.dropout, head_init=config.head_init or "orthogonal"
            )
            return _random(classifier, config)
        path = locate(checkpoint)
        pretrained = _stored_dpc(path, config, views)
        classifier = DpcClassifier.from_dpc(
            pretrained,
            num_classes,
            dropout=config.dropout,
            head_init=config.head_init or "orthogonal",
        )
        return _verified(path, config, classifier, pretrained.config.encoder)


def load_pooled(
    checkpoint: str, config: EncoderConfig, num_classes: int, *, seed: int
) -> Pretrained:
    """Returns a classifier of images or clips on the mean of an encoder's last map.

    Arguments and errors are those of ``load_classifier``, without a dpc head's.
    """
    with seeded(seed, "init"):
        if not checkpoint:
            encoder = build_encoder(_name_of_random(config))
            return _random(_pool_classifier(encoder, config, num_classes), config)
        path = locate(checkpoint)
        encoder = load_encoder(path, weights=config.weights)
        return _verified(path, config, _pool_classifier(encoder, config, num_classes), encoder.name)


def locate(checkpoint: str) -> Path:
    """Returns the file or folder to read: of a run, its newest checkpoint, digests verified.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    path = Path(checkpoint)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    of_a_run = (path / FOLDER).is_dir()
    if of_a_run or (path / COMPLETE_FILE).exists():
        return engine_checkpoint.resolve(path)
    return path


def locate_each(checkpoint: str, folds: Sequence[int]) -> None:
    """Checks, before the first fold costs hours, that every fold's checkpoint is there.

    Raises:
        CheckpointError: As `locate`.
    """
    for path in dict.fromkeys(checkpoint_of(checkpoint, fold) for fold in folds):
        if path:
            locate(path)


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


def _stored_dpc(path: Path, config: EncoderConfig, views: ViewsConfig) -> DPC:
    dpc = load_dpc(path, weights=config.weights)
    dpc.config = dataclasses.replace(
        dpc.config,
        num_blocks=views.num_blocks,
        block_len=views.block_len,
        pred_steps=min(dpc.config.pred_steps, views.num_blocks - 1),
    )
    return dpc


def _verified(path: Path, config: EncoderConfig, classifier: Classifier, name: str) -> Pretrained:
    """The classifier with its report, after comparing its encoder with the file's, by values."""
    if config.encoder and config.encoder != name:
        raise CheckpointError(
            f"{path}: holds the encoder {name}, but model.encoder asks for {config.encoder}"
        )
    weights = path / WEIGHTS_FILES[config.weights] if path.is_dir() else path
    stored = read_state_dict(weights)
    prefix = find_prefix(classifier.encoder, stored)
    report = compare(classifier.encoder, stored, prefix=prefix, values=True)
    if rank() == 0:
        print(printable_lines(f"{weights}: encoder: {report}"))
    if report.fraction < MIN_FRACTION:
        raise CheckpointError(f"{path}: the encoder does not hold this checkpoint: {report}")
    return Pretrained(
        classifier,
        name,
        source={"path": str(weights), "sha256": file_digest(weights)},
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
