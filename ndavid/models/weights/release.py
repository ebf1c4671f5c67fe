"""Saving a model or an encoder for others to use, and getting it back by its path alone.

    save_pretrained(model, "folder")
    encoder = load_encoder("folder")    # or a run, one of its checkpoints, an original's file
    maps = encoder(pixels)              # (B, D, t, h, w) of clips, (B, D, h, w) of images
    vectors = encoder.pooled(pixels)    # (B, D), the mean of the map

``pixels`` are RGB, normalised by ``models.normalize.Normalize()``. Features are the map, because
that is what dense losses, GRUs and detectors need; its mean is one call away.

A saved folder holds ``config.json`` (under ``encoder`` the name that ``build_encoder`` takes, for a
DPC its whole config) and ``model.safetensors``; the Hub takes it as it is, and gives it back by
``Encoder.from_pretrained("owner/name")``. A run of ours is read
too: its folder (the newest whole checkpoint), or one checkpoint's folder, after verifying digests.
Of a GAN's run both networks are read (:func:`load_gan`). Files of the original DPC, MoCo and
NDA-GAN codes are read by ``original_dpc``, ``original_moco`` and ``original_biggan``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor, nn

from ndavid.checkpoint_files import (
    COMPLETE_FILE,
    EMA_FILE,
    FOLDER,
    MODEL_FILE,
    newest_whole,
    verify,
)
from ndavid.errors import CheckpointError, ConfigError
from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import CONFIG_FILE, Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.gan.model import Gan, GanConfig
from ndavid.models.gan.spectral_norm import refresh_spectral_norms
from ndavid.models.weights.matching import KeyReport, find_prefix, load_matching
from ndavid.models.weights.original_biggan import load_biggan_release
from ndavid.models.weights.original_dpc import (
    is_dpc_release,
    load_dpc_classifier_release,
    load_dpc_release,
)
from ndavid.models.weights.original_moco import is_moco_release, load_moco_release
from ndavid.models.weights.state_files import read_state_dict, write_state_dict

__all__ = [
    "KeyReport",
    "LoadedGan",
    "Weights",
    "load_biggan_release",
    "load_dpc",
    "load_dpc_classifier_release",
    "load_dpc_release",
    "load_encoder",
    "load_gan",
    "load_matching",
    "load_moco_release",
    "read_config",
    "save_pretrained",
]

Weights = Literal["model", "ema"]
"""Which weights of a run: those that were trained, or their moving average."""

_FILES: dict[Weights, str] = {"model": MODEL_FILE, "ema": EMA_FILE}


def save_pretrained(model: nn.Module, directory: str | Path) -> None:
    """Writes an encoder, a :class:`DPC` or a classifier with an encoder to ``directory``.

    Raises ValueError where there is no encoder of ours in ``model``.
    """
    directory = Path(directory)
    if isinstance(model, DPC | Encoder):
        model.save_pretrained(directory)
        return
    encoder = next((m for m in model.modules() if isinstance(m, Encoder)), None)
    if encoder is None:
        raise ValueError(f"a {type(model).__name__} holds no encoder made by build_encoder")
    directory.mkdir(parents=True, exist_ok=True)
    config = json.dumps(encoder.hub_config(), indent=2)
    (directory / CONFIG_FILE).write_text(config + "\n")
    write_state_dict(model.state_dict(), directory / MODEL_FILE)


def load_encoder(path: str | Path, *, weights: Weights = "model") -> Encoder:
    """The pretrained encoder at ``path``, in eval mode.

    Args:
        path: a folder that :func:`save_pretrained` wrote, a run's folder or one of its
            checkpoints, or a file of the original DPC or MoCo. Of a MoCo, the query encoder.
        weights: ``ema`` for a run's averaged weights.

    Raises:
        CheckpointError: none of these, incomplete, damaged, without averaged weights where they are
            asked for, or under 95% of the encoder's keys are in it.
    """
    saved = _read(Path(path), weights)
    if saved is None:
        return _original_encoder(path)
    encoder = build_encoder(saved.encoder_name())
    if not any(key.endswith("running_mean") for key in saved.weights):
        drop_running_stats(encoder)
    load_matching(encoder, saved.weights, prefix=find_prefix(encoder, saved.weights))
    return encoder.eval()


def _original_encoder(path: str | Path) -> Encoder:
    """The encoder of a file that the original DPC or MoCo code wrote."""
    state = read_state_dict(path)
    if is_moco_release(state):
        return load_moco_release(path)
    if is_dpc_release(state):
        return load_dpc_release(path).encoder
    raise CheckpointError(
        f"{path}: neither a checkpoint of the original DPC (backbone.*) nor one of the original "
        f"MoCo (encoder_q.*): its keys begin with {next(iter(state))!r}"
    )


def load_dpc(path: str | Path, *, weights: Weights = "model") -> DPC:
    """The pretrained :class:`DPC` at ``path``, in eval mode; arguments as `load_encoder`'s."""
    saved = _read(Path(path), weights)
    if saved is None:
        return load_dpc_release(path)
    dpc = DPC(saved.dpc_config())
    prefix = find_prefix(dpc, saved.weights)
    load_matching(dpc, saved.weights, prefix=prefix, min_fraction=1.0)
    return dpc.eval()


@dataclass(frozen=True)
class LoadedGan:
    """Both networks of a GAN's run, and which of its weights they are."""

    gan: Gan
    """in eval mode"""
    step: int
    digest: str
    """SHA-256 of the file that the generator's weights are from"""
    discriminator_digest: str
    """SHA-256 of the file that the discriminator's are from"""
    config: Mapping[str, Any]
    """of the run"""
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
    saved = _read(Path(path), "model")
    if saved is None or not (saved.path / COMPLETE_FILE).is_file():
        raise CheckpointError(f"{path}: neither a run nor one of its checkpoints")
    gan = Gan(saved.gan_config())
    load_matching(gan, saved.weights, prefix="gan.", min_fraction=1.0)
    if ema:
        averaged = _read(saved.path, "ema")
        assert averaged is not None
        load_matching(gan.generator, averaged.weights, prefix="", min_fraction=1.0)
        refresh_spectral_norms(gan.generator)
    complete = json.loads((saved.path / COMPLETE_FILE).read_text(encoding="utf-8-sig"))
    digests = {name: file["sha256"] for name, file in complete["files"].items()}
    return LoadedGan(
        gan=gan.eval(),
        step=complete["step"],
        digest=digests[EMA_FILE if ema else MODEL_FILE],
        discriminator_digest=digests[MODEL_FILE],
        config=saved.config,
        ema=ema,
    )


def read_config(path: str | Path) -> Mapping[str, Any]:
    """The configuration beside the weights at ``path``; empty for a file of an original code.

    Raises CheckpointError as :func:`load_encoder`.
    """
    saved = _read(Path(path), "model")
    return {} if saved is None else saved.config


@dataclass(frozen=True)
class _Saved:
    """Weights, and the configuration that was beside them."""

    path: Path
    weights: dict[str, Tensor]
    config: Mapping[str, Any]

    def encoder_name(self) -> str:
        names = {
            section["encoder"]
            for section in _sections(_without_nda(self.config))
            if isinstance(section.get("encoder"), str)
        }
        if len(names) != 1:
            raise CheckpointError(
                f"{self.path}: its config names {sorted(names) or 'no encoder'}, need one"
            )
        return names.pop()

    def dpc_config(self) -> DpcConfig:
        known = {field.name for field in fields(DpcConfig)} - {
            "pretrained",
            "checkpoint_activations",
        }
        for section in _sections(self.config):
            if {"encoder", "pred_steps"} <= section.keys():
                try:
                    return DpcConfig(**{k: v for k, v in section.items() if k in known})
                except ConfigError as error:
                    raise CheckpointError(f"{self.path}: {error}") from error
        raise CheckpointError(f"{self.path}: its config describes no DPC")

    def gan_config(self) -> GanConfig:
        section = self.config.get("model")
        if not isinstance(section, dict) or "architecture" not in section:
            raise CheckpointError(f"{self.path}: its config describes no GAN")
        known = {field.name for field in fields(GanConfig)}
        try:
            return GanConfig(**{k: v for k, v in section.items() if k in known})
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: {error}") from error


def _read(path: Path, weights: Weights) -> _Saved | None:
    """What a folder of ours holds; None for a file of another kind, which may be the original's."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_file() and path.name not in _FILES.values():
        if weights == "ema":
            raise CheckpointError(f"{path}: a single file has no averaged weights beside its own")
        return None
    folder = _whole(path.parent if path.is_file() else path)
    file = folder / (path.name if path.is_file() else _FILES[weights])
    if weights == "ema" and not (folder / EMA_FILE).is_file():
        raise CheckpointError(f"{folder}: no averaged weights (the run had run.ema_decay: 0)")
    if not file.is_file():
        raise CheckpointError(f"{path}: not a saved model, a run or a checkpoint of one")
    return _Saved(folder, read_state_dict(file), _config_beside(folder))


def _whole(folder: Path) -> Path:
    """The folder, or a run's newest checkpoint that is whole; what is damaged is never returned."""
    if (folder / FOLDER).is_dir():
        found = newest_whole(folder, say=warnings.warn)
        if found is None:
            raise CheckpointError(f"{folder}: a run without a complete checkpoint")
        return found
    if (folder / COMPLETE_FILE).exists():
        verify(folder)
    elif folder.parent.name == FOLDER:
        raise CheckpointError(f"{folder}: a checkpoint that was not written to the end")
    return folder


def _config_beside(folder: Path) -> Mapping[str, Any]:
    """config.json of a saved model, or config.yaml of the run that the checkpoint belongs to."""
    for path in (folder / CONFIG_FILE, folder / "config.yaml", folder.parents[1] / "config.yaml"):
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))  # JSON is YAML
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            if isinstance(config, dict):
                return config
            raise CheckpointError(f"{path}: not a mapping of keys to values")
    raise CheckpointError(f"{folder}: no config.json or config.yaml tells which encoder this is")


def _without_nda(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config without the section whose ``encoder`` says who encodes what is broken."""
    return {key: value for key, value in config.items() if key != "nda"}


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and every mapping nested in it, outer ones first."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _sections(value)
