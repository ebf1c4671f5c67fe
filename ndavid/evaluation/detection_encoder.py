"""From a checkpoint, or a library, to the image encoder that a detector is built on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ndavid.collectives import rank
from ndavid.errors import ConfigError
from ndavid.evaluation.pretrained import EncoderConfig, load_pooled, open_weights
from ndavid.evaluation.provenance import training_run
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.checkpoint import LoadedCheckpoint, Weights


@dataclass(kw_only=True)
class BackboneConfig:
    """The encoder of a detector, and which weights it starts from."""

    encoder: str = ""
    """name as build_encoder takes it; empty: as the checkpoint says"""
    weights: Weights = "model"
    """of a run: model, those that were trained, or ema, their average (run.ema_decay above 0)"""
    library_weights: bool = False
    """without a checkpoint: the library's own weights, downloaded; else random ones"""


@dataclass(frozen=True)
class Backbone:
    """An encoder and where it comes from.

    Attributes:
        encoder: What the detector is built on.
        source: Path and SHA-256 of the weights; empty without a checkpoint.
        key_report: Which tensors are those of the file; empty without a checkpoint.
        pretraining: The run behind the weights, where it is one of ours.
        notes: What a reader of the numbers must know about the weights.
    """

    encoder: Encoder
    source: dict[str, str] = field(default_factory=dict)
    key_report: dict[str, Any] = field(default_factory=dict)
    pretraining: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_backbone(checkpoint: str, config: BackboneConfig, *, seed: int) -> Backbone:
    """Returns the encoder of ``checkpoint``; where that is empty, the library's or a random one.

    Args:
        checkpoint: As ``pretrained.open_weights`` takes it.
        config: The encoder's name and weights.
        seed: Draws random weights.

    Raises:
        CheckpointError: If it is not a checkpoint, holds another encoder than asked for, or under
            95% of the encoder's tensors are those of the file.
        ConfigError: If neither a checkpoint nor an encoder is named, both a checkpoint and the
            library's weights are asked for, or the library has none.
    """
    if not config.library_weights:
        # Its linear layer is not used: the detector has a head of its own.
        wanted = EncoderConfig(encoder=config.encoder, weights=config.weights)
        opened = open_weights(checkpoint, wanted)
        loaded = load_pooled(opened, wanted, num_classes=1, seed=seed)
        return Backbone(
            loaded.classifier.encoder,
            loaded.source,
            loaded.key_report,
            _pretraining(opened),
            notes=() if checkpoint else ("The encoder's weights are random.",),
        )
    if checkpoint or not config.encoder:
        raise ConfigError("model.library_weights: needs model.encoder, and no checkpoint beside it")
    if rank() == 0:
        print(f"no checkpoint: {config.encoder} starts from its library's weights")
    note = f"The encoder's weights are those that its library has for {config.encoder}."
    return Backbone(build_encoder(config.encoder, pretrained=True), notes=(note,))


def _pretraining(opened: LoadedCheckpoint | None) -> dict[str, Any]:
    """The run behind a checkpoint and its data, in the form that reports show."""
    run = training_run(opened)
    if run is None:
        return {}
    return {
        "run": str(run.folder),
        "trained_on": run.describe(),
        "nda": run.nda,
        "test_images_seen": None,  # Which images are in both sets is not looked up.
    }
