"""Saving a model or an encoder for others to use, and getting it back by its path alone.

A saved folder holds ``config.json`` (under ``encoder`` the name that ``build_encoder`` takes, for a
DPC its whole config) and ``model.safetensors``; the Hub takes it as it is. A run of ours is read
too: its folder (the newest complete checkpoint), or one checkpoint's folder. Files of the original
DPC code are read by ``original_dpc``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from ndavid.errors import CheckpointError, ConfigError
from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoder_base import Encoder
from ndavid.models.encoders import build_encoder
from ndavid.models.matching import KeyReport, load_matching
from ndavid.models.original_dpc import load_dpc_classifier_release, load_dpc_release
from ndavid.models.state_files import read_state_dict

__all__ = [
    "KeyReport",
    "load_dpc",
    "load_dpc_classifier_release",
    "load_dpc_release",
    "load_encoder",
    "load_matching",
    "save_pretrained",
]

_WEIGHTS = "model.safetensors"


def save_pretrained(model: nn.Module, directory: str | Path) -> None:
    """Writes an encoder, a :class:`DPC` or a classifier with an encoder to ``directory``.

    Raises ValueError where there is no encoder of ours in ``model``.
    """
    directory = Path(directory)
    if isinstance(model, DPC):
        model.save_pretrained(directory)
        return
    encoder = next((m for m in model.modules() if isinstance(m, Encoder)), None)
    if encoder is None:
        raise ValueError(f"a {type(model).__name__} holds no encoder made by build_encoder")
    directory.mkdir(parents=True, exist_ok=True)
    config = {"encoder": encoder.name}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, directory / _WEIGHTS)


def load_encoder(path: str | Path) -> Encoder:
    """The pretrained encoder at ``path``, in eval mode.

    Args:
        path: a folder that :func:`save_pretrained` wrote, a run's folder or one of its
            checkpoints, or a file of the original DPC.

    Raises:
        CheckpointError: none of these, incomplete, or under 95% of the encoder's keys are in it.
    """
    saved = _read(Path(path))
    if saved is None:
        return load_dpc_release(path).encoder
    encoder = build_encoder(saved.encoder_name())
    if not any(key.endswith("running_mean") for key in saved.weights):
        drop_running_stats(encoder)
    load_matching(encoder, saved.weights, prefix=_prefix_of(encoder, saved.weights))
    return encoder.eval()


def load_dpc(path: str | Path) -> DPC:
    """The pretrained :class:`DPC` at ``path``, in eval mode; paths and errors as `load_encoder`."""
    saved = _read(Path(path))
    if saved is None:
        return load_dpc_release(path)
    dpc = DPC(saved.dpc_config())
    prefix = _prefix_of(dpc, saved.weights)
    load_matching(dpc, saved.weights, prefix=prefix, min_fraction=1.0)
    return dpc.eval()


@dataclass(frozen=True)
class _Saved:
    """Weights, and the configuration that was beside them."""

    path: Path
    weights: dict[str, Tensor]
    config: Mapping[str, Any]

    def encoder_name(self) -> str:
        names = {
            section["encoder"]
            for section in _sections(self.config)
            if isinstance(section.get("encoder"), str)
        }
        if len(names) != 1:
            raise CheckpointError(
                f"{self.path}: its config names {sorted(names) or 'no encoder'}, need one"
            )
        return names.pop()

    def dpc_config(self) -> DpcConfig:
        known = {field.name for field in fields(DpcConfig)} - {"pretrained"}
        for section in _sections(self.config):
            if {"encoder", "pred_steps"} <= section.keys():
                try:
                    return DpcConfig(**{k: v for k, v in section.items() if k in known})
                except ConfigError as error:
                    raise CheckpointError(f"{self.path}: {error}") from error
        raise CheckpointError(f"{self.path}: its config describes no DPC")


def _read(path: Path) -> _Saved | None:
    """What a folder of ours holds; None for a file of another kind, which may be the original's."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_file() and path.name != _WEIGHTS:
        return None
    folder = path.parent if path.is_file() else path
    if (folder / "checkpoints").is_dir():
        folder = _newest_complete(folder)
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(f"{path}: not a saved model, a run or a checkpoint of one")
    return _Saved(folder, read_state_dict(folder / _WEIGHTS), _config_beside(folder))


def _newest_complete(run_dir: Path) -> Path:
    steps = [
        folder
        for folder in (run_dir / "checkpoints").glob("step_*")
        if (folder / "complete.json").is_file() and folder.name.removeprefix("step_").isdigit()
    ]
    if not steps:
        raise CheckpointError(f"{run_dir}: a run without a complete checkpoint")
    return max(steps, key=lambda folder: int(folder.name.removeprefix("step_")))


def _config_beside(folder: Path) -> Mapping[str, Any]:
    """config.json of a saved model, or config.yaml of the run that the checkpoint belongs to."""
    for path in (folder / "config.json", folder / "config.yaml", folder.parents[1] / "config.yaml"):
        if path.is_file():
            try:
                config = yaml.safe_load(path.read_text())  # JSON is YAML
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
            if isinstance(config, dict):
                return config
            raise CheckpointError(f"{path}: not a mapping of keys to values")
    raise CheckpointError(f"{folder}: no config.json or config.yaml tells which encoder this is")


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and every mapping nested in it, outer ones first."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _sections(value)


def _prefix_of(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Under which prefix most of the model's keys are found ("dpc.encoder.", "", ...)."""
    wanted = list(model.state_dict())
    candidates = {
        key.removesuffix(name): None
        for name in (wanted[0], wanted[-1])
        for key in weights
        if key.endswith(name)
    }
    # The first of equals: a method's own network comes before its momentum copy.
    return max(candidates, key=lambda p: sum(p + name in weights for name in wanted), default="")
