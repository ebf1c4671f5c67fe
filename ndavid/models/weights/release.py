"""Saving a model or an encoder for others to use, and getting it back by its path alone.

    save_pretrained(model, "folder")
    encoder = load_encoder("folder")    # or a run, one of its checkpoints, an original's file
    maps = encoder(pixels)              # (B, D, t, h, w) of clips, (B, D, h, w) of images
    vectors = encoder.pooled(pixels)    # (B, D), the mean of the map

``pixels`` are RGB, normalised by ``models.normalize.Normalize()``. Features are the map, because
that is what dense losses, GRUs and detectors need; its mean is one call away.

A saved folder holds ``config.json`` (under ``encoder`` the name that ``build_encoder`` takes, for a
DPC its whole config) and ``model.safetensors``. `hub.py` takes such a folder to the Hugging Face
Hub and back. Everything that `checkpoint.py` opens is read; of a GAN's run both networks
(`load_gan`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import nn

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.errors import CheckpointError, ConfigError
from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.gan.model import Gan, GanConfig
from ndavid.models.gan.spectral_norm import refresh_spectral_norms
from ndavid.models.normalize import IMAGENET_MEAN, IMAGENET_STD
from ndavid.models.weights.checkpoint import (
    CONFIG_FILE,
    LoadedCheckpoint,
    Weights,
    open_checkpoint,
    open_each,
)
from ndavid.models.weights.matching import find_prefix, load_matching
from ndavid.models.weights.original_dpc import is_dpc_release, load_dpc_release
from ndavid.models.weights.original_moco import is_moco_release, load_moco_release
from ndavid.models.weights.state_files import write_state_dict

# Keys of a DPC's config that say how it is trained, not what it is.
_NOT_SAVED = ("pretrained", "checkpoint_activations")


def save_pretrained(model: nn.Module, directory: str | Path) -> None:
    """Writes an encoder, a `DPC` or a module with an encoder in it to ``directory``.

    Raises ValueError where there is no encoder of ours in ``model``.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_description(model), indent=2)
    (directory / CONFIG_FILE).write_text(config + "\n")
    write_state_dict(model.state_dict(), directory / MODEL_FILE)


def _description(model: nn.Module) -> dict[str, object]:
    """What ``config.json`` says: how to rebuild the model, and how to feed it."""
    if isinstance(model, DPC):
        return {k: v for k, v in asdict(model.config).items() if k not in _NOT_SAVED}
    encoder = next((m for m in model.modules() if isinstance(m, Encoder)), None)
    if encoder is None:
        raise ValueError(f"a {type(model).__name__} holds no encoder made by build_encoder")
    return {
        "encoder": encoder.name,
        "feature_dim": encoder.feature_dim,
        "takes_images": encoder.takes_images,
        "pixels": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    }


def load_encoder(source: str | Path | LoadedCheckpoint, *, weights: Weights = "model") -> Encoder:
    """The pretrained encoder at ``source``, in eval mode.

    Args:
        source: a folder that `save_pretrained` wrote, a run's folder or one of its checkpoints, a
            file of the original DPC or MoCo, or any of them opened. Of a MoCo, the query encoder.
        weights: ``ema`` for a run's averaged weights.

    Raises:
        CheckpointError: none of these, incomplete, damaged, without averaged weights where they are
            asked for, or under 95% of the encoder's keys are in it.
    """
    opened = _opened(source, weights)
    if opened.original:
        return _original_encoder(opened)
    encoder = build_encoder(opened.encoder_name())
    if not any(key.endswith("running_mean") for key in opened.weights):
        drop_running_stats(encoder)
    load_matching(encoder, opened.weights, prefix=find_prefix(encoder, opened.weights))
    return encoder.eval()


def _opened(source: str | Path | LoadedCheckpoint, weights: Weights) -> LoadedCheckpoint:
    return source if isinstance(source, LoadedCheckpoint) else open_checkpoint(source, weights)


def _original_encoder(opened: LoadedCheckpoint) -> Encoder:
    """The encoder of a file that the original DPC or MoCo code wrote."""
    if is_moco_release(opened.weights):
        return load_moco_release(opened)
    if is_dpc_release(opened.weights):
        return load_dpc_release(opened).encoder
    raise CheckpointError(
        f"{opened.path}: neither a checkpoint of the original DPC (backbone.*) nor one of the "
        f"original MoCo (encoder_q.*): its keys begin with {next(iter(opened.weights))!r}"
    )


def load_dpc(source: str | Path | LoadedCheckpoint, *, weights: Weights = "model") -> DPC:
    """The pretrained `DPC` at ``source``, in eval mode; arguments as `load_encoder`'s."""
    opened = _opened(source, weights)
    if opened.original:
        return load_dpc_release(opened)
    dpc = DPC(_dpc_config(opened))
    prefix = find_prefix(dpc, opened.weights)
    load_matching(dpc, opened.weights, prefix=prefix, min_fraction=1.0)
    return dpc.eval()


def _dpc_config(opened: LoadedCheckpoint) -> DpcConfig:
    section = opened.config if "pred_steps" in opened.config else opened.config.get("model")
    if not isinstance(section, Mapping) or not {"encoder", "pred_steps"} <= section.keys():
        raise CheckpointError(f"{opened.path.parent}: its config describes no DPC")
    known = {field.name for field in fields(DpcConfig)} - set(_NOT_SAVED)
    try:
        return DpcConfig(**{k: v for k, v in section.items() if k in known})
    except ConfigError as error:
        raise CheckpointError(f"{opened.path.parent}: {error}") from error


@dataclass(frozen=True)
class LoadedGan:
    """Both networks of a GAN's run, and which of its weights they are."""

    gan: Gan
    """in eval mode"""
    step: int
    opened: LoadedCheckpoint
    """the discriminator's weights, and the run"""
    generator: LoadedCheckpoint
    """the generator's weights"""
    ema: bool
    """whether the generator's weights are averages"""


def load_gan(path: str | Path, *, ema: bool = True) -> LoadedGan:
    """The networks that ``recipes/train_gan.py`` trained.

    Args:
        path: a run's folder (its newest whole checkpoint is taken) or one checkpoint's.
        ema: take the generator's averaged weights, its spectral norms estimated anew (the average
            of singular vectors is none). The discriminator has no average.

    Raises:
        CheckpointError: not a GAN's checkpoint, damaged, or without averaged weights where they are
            asked for.
    """
    if Path(path).is_file():
        raise CheckpointError(f"{path}: neither a run nor one of its checkpoints")
    opened = open_each(path, ("model", "ema") if ema else ("model",))
    model, generator = opened["model"], opened["ema" if ema else "model"]
    if model.step is None:
        raise CheckpointError(f"{path}: neither a run nor one of its checkpoints")
    gan = Gan(_gan_config(model))
    load_matching(gan, model.weights, prefix="gan.", min_fraction=1.0)
    if ema:
        load_matching(gan.generator, generator.weights, prefix="", min_fraction=1.0)
        refresh_spectral_norms(gan.generator)
    return LoadedGan(gan.eval(), model.step, model, generator, ema)


def _gan_config(opened: LoadedCheckpoint) -> GanConfig:
    section = opened.config.get("model")
    if not isinstance(section, dict) or "architecture" not in section:
        raise CheckpointError(f"{opened.path.parent}: its config describes no GAN")
    known = {field.name for field in fields(GanConfig)}
    try:
        return GanConfig(**{k: v for k, v in section.items() if k in known})
    except ConfigError as error:
        raise CheckpointError(f"{opened.path.parent}: {error}") from error
