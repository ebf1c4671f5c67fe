"""Opening a checkpoint: its weights, read once and verified, and what is known about them.

What can be opened: a run of ours (its newest whole checkpoint), one of a run's ``checkpoints/
step_N`` or the weights in it, a folder that ``save_pretrained`` wrote, and a single file of an
original code. Whoever needs weights is handed the `LoadedCheckpoint`; nobody reads the file again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from torch import Tensor

from ndavid.checkpoint_files import (
    COMPLETE_FILE,
    EMA_FILE,
    FOLDER,
    MODEL_FILE,
    read_index,
    read_newest_whole,
    verify,
)
from ndavid.errors import CheckpointError
from ndavid.models.weights.state_files import read_state_dict, state_dict_in, state_dict_of

CONFIG_FILE = "config.json"

Weights = Literal["model", "ema"]
"""Which weights of a run: those that were trained, or their moving average."""

_FILES: dict[Weights, str] = {"model": MODEL_FILE, "ema": EMA_FILE}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Weights on the CPU, and where they come from."""

    path: Path
    """the file of the weights"""
    digest: str
    """SHA-256 of that file"""
    weights: Mapping[str, Tensor]
    """tensors by name"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """of the run, or of the saved model; empty for a file of an original code"""
    encoder: str = ""
    """the encoder's name, as `build_encoder` takes it; empty where none is recorded"""
    step: int | None = None
    """optimizer steps done, where the weights are a run's"""
    original: bool = False
    """whether it is a single file, as the original codes write them"""

    @property
    def run(self) -> Path | None:
        """The folder of the run that the weights belong to; None for a saved model or a file."""
        folder = self.path.parent
        return folder.parents[1] if folder.parent.name == FOLDER else None

    def encoder_name(self) -> str:
        """The encoder's name; raises CheckpointError where none is recorded."""
        if not self.encoder:
            raise CheckpointError(f"{self.path.parent}: its config names no encoder")
        return self.encoder


Source = str | Path | Mapping[str, Any] | LoadedCheckpoint
"""A checkpoint's file, its content, or the file opened."""


class Named(NamedTuple):
    """Tensors by name, and what error messages call the place they are from."""

    weights: Mapping[str, Tensor]
    name: str


def open_checkpoint(path: str | Path, weights: Weights = "model") -> LoadedCheckpoint:
    """Reads the weights at ``path``, digests verified where there are some.

    Args:
        path: see the module's docstring.
        weights: ``ema`` for a run's averaged weights.

    Raises:
        CheckpointError: none of these, incomplete, damaged, or without averaged weights where they
            are asked for.
    """
    return open_each(path, (weights,))[weights]


def open_each(path: str | Path, weights: tuple[Weights, ...]) -> dict[Weights, LoadedCheckpoint]:
    """`open_checkpoint` for several weights of one checkpoint, of which each file is read once."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_file() and path.name not in _FILES.values():
        if "ema" in weights:
            raise CheckpointError(f"{path}: a single file has no averaged weights beside its own")
        content = path.read_bytes()
        return {"model": LoadedCheckpoint(*_decoded(path, content), original=True)}
    names = {which: _FILES[which] for which in weights}
    if path.is_file() and "model" in names:
        names["model"] = path.name
    folder, contents = _read_whole(path.parent if path.is_file() else path, set(names.values()))
    if "ema" in weights and EMA_FILE not in contents:
        raise CheckpointError(f"{folder}: no averaged weights (the run had run.ema_decay: 0)")
    if set(names.values()) - contents.keys():
        raise CheckpointError(f"{path}: not a saved model, a run or a checkpoint of one")
    config = _config_beside(folder)
    index = read_index(folder) if (folder / COMPLETE_FILE).exists() else {}
    encoder = _encoder_of(index, config)
    return {
        which: LoadedCheckpoint(
            *_decoded(folder / name, contents[name]), config, encoder, index.get("step")
        )
        for which, name in names.items()
    }


def weights_in(source: Source) -> Named:
    """The tensors in a file, in its content (bare, or under ``state_dict``), or in it opened."""
    if isinstance(source, LoadedCheckpoint):
        return Named(source.weights, str(source.path))
    if isinstance(source, Mapping):
        name = "the given state dict"
        return Named(state_dict_in(dict(source), name), name)
    return Named(read_state_dict(source), str(source))


def _decoded(file: Path, content: bytes) -> tuple[Path, str, dict[str, Tensor]]:
    return file, hashlib.sha256(content).hexdigest(), state_dict_of(content, file)


def _read_whole(folder: Path, wanted: set[str]) -> tuple[Path, dict[str, bytes]]:
    """The folder, or a run's newest whole checkpoint, and the wanted files in it; none damaged."""
    if (folder / FOLDER).is_dir():
        found = read_newest_whole(folder, keep=wanted, say=warnings.warn)
        if found is None:
            raise CheckpointError(f"{folder}: a run without a complete checkpoint")
        return found
    if (folder / COMPLETE_FILE).exists():
        return folder, verify(folder, keep=wanted)
    if folder.parent.name == FOLDER:
        raise CheckpointError(f"{folder}: a checkpoint that was not written to the end")
    files = (folder / name for name in wanted)
    return folder, {file.name: file.read_bytes() for file in files if file.is_file()}


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


def _encoder_of(index: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The name in a checkpoint's index; in older ones and in saved models, that of the config."""
    model = config.get("model")
    for section in (index, config, model if isinstance(model, Mapping) else {}):
        if isinstance(name := section.get("encoder"), str) and name:
            return name
    return ""
