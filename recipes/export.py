"""Take a pretrained encoder elsewhere: a folder, a torch.export program and an ONNX file.

    python recipes/export.py --checkpoint runs/cifar10-jigsaw --output exported

The checkpoint is a run of ours (the newest whole checkpoint; of a MoCo, the query encoder), a saved
folder, or a file of the original DPC or MoCo. Each artefact is read back from disk and compared
with the encoder; one that cannot be made is named with the reason, and the command then fails.

    exported/encoder       encoder = ndavid.models.weights.release.load_encoder("exported/encoder")
    exported/encoder.pt2   encoder = torch.export.load("exported/encoder.pt2").module()
    exported/encoder.onnx  onnxruntime: pixels -> features   (pip install -e ".[export]")
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ndavid.config import parse, run_main
from ndavid.errors import CheckpointError, ConfigError
from ndavid.locks import hold
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.mvit import MvitEncoder
from ndavid.models.weights.checkpoint import Weights, open_checkpoint
from ndavid.models.weights.export import Kind, export_encoder
from ndavid.models.weights.release import load_encoder


@dataclass(kw_only=True)
class ExportConfig:
    """What to export, and for which pixels."""

    checkpoint: str = ""
    """run, checkpoint, saved folder, or file of the original DPC or MoCo"""
    output: str = ""
    """folder for the artefacts"""
    weights: Weights = "model"
    """of a run: model, those that were trained, or ema, their average"""
    kinds: list[Kind] = field(default_factory=lambda: ["folder", "program", "onnx"])
    """what to write"""
    size: int = 0
    """height and width of the input, pixels; 0: those of the run"""
    frames: int | None = None
    """frames a clip, 0 for images; empty: those of the run"""
    pool: bool = False
    """programs give vectors (B, D), the mean of the map, instead of maps"""
    uint8: bool = False
    """programs take RGB in [0, 255] and normalise it; else they take normalised floats"""
    allow_missing: bool = False
    """an artefact that cannot be made is named, and no error"""


def input_shape(config: ExportConfig, encoder: Encoder, run: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one sample: as asked for, else as the network or the run has it."""
    if isinstance(encoder, MvitEncoder):
        return (3, *encoder.clip_size)
    size = config.size or section(run, "augment").get("size")
    frames = trained_frames(run) if config.frames is None else config.frames
    if not size:
        raise ConfigError(f"{config.checkpoint}: no run's config tells the input size; give --size")
    if frames is None and not encoder.takes_images:
        raise ConfigError(f"{config.checkpoint}: no run's config tells the frames; give --frames")
    return (3, frames, size, size) if frames else (3, size, size)


def trained_frames(run: Mapping[str, Any]) -> int | None:
    """Frames of what the encoder saw in a run of any recipe or evaluator; None: images."""
    model, data, views = (section(run, name) for name in ("model", "data", "views"))
    if "block_len" in model:  # DPC: the encoder sees a block
        return model["block_len"]
    if views.get("sampling") == "blocks":
        return views["block_len"] * (1 if model.get("head") == "dpc" else views["num_blocks"])
    if "num_frames" in data and data.get("source") == "clips":
        return data["num_frames"]
    return views.get("num_frames")


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a config under ``name``; empty where there is none."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def main() -> None:
    config = parse(ExportConfig, sys.argv[1:], description=__doc__ or "")
    if not config.checkpoint or not config.output:
        raise ConfigError("give --checkpoint, the weights, and --output, a folder")
    opened = open_checkpoint(config.checkpoint, config.weights)
    encoder = load_encoder(opened)
    shape = input_shape(config, encoder, opened.config)
    print(f"{encoder.name} for samples of {shape}")
    with hold(config.output):
        exports = export_encoder(
            encoder, shape, config.output, config.kinds, pool=config.pool, uint8=config.uint8
        )
    print(*exports, sep="\n")
    missing = [str(export) for export in exports if export.error is None]
    if missing and not config.allow_missing:
        raise CheckpointError(f"{'; '.join(missing)} (--allow_missing true passes over it)")


if __name__ == "__main__":
    run_main(main)
