"""Made-up videos that decode as slowly as real ones: texture that moves, and a sensor's noise."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from ndavid.data.decode import probe
from ndavid.data.encode import EncodeSettings, reencode, write_video
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import ClipSampler

FRAMES = 120
"""One span of DPC."""


def write_scene(path: Path, frames: int = FRAMES, settings: EncodeSettings | None = None) -> None:
    """So many frames of 320x240: a camera panning to and fro over a textured scene, with noise."""
    generator = torch.Generator().manual_seed(0)
    octaves = [torch.rand(1, 3, 2**k, 2**k, generator=generator) for k in (3, 5, 7)]
    scene = torch.cat([F.interpolate(o, size=(360, 560), mode="bicubic") for o in octaves]).mean(0)
    shown = []
    for number in range(frames):
        t = FRAMES - 1 - abs(FRAMES - 1 - number % (2 * FRAMES - 2))
        view = scene[:, t // 2 : t // 2 + 240, 2 * t : 2 * t + 320]
        noise = 0.02 * torch.randn(3, 240, 320, generator=generator)
        shown.append(((view + noise).clamp(0, 1) * 255).to(torch.uint8))
    write_video(path, torch.stack(shown), fps=25.0, settings=settings)


def record_of(path: Path, sampler: ClipSampler) -> ClipRecord:
    """A manifest row that makes the first span of the video the whole of it."""
    info = probe(path)
    if info.num_frames < sampler.span:
        raise SystemExit(f"{path} has {info.num_frames} frames, {sampler.span} are needed")
    return ClipRecord(
        path=path.name,
        label=0,
        group="",
        num_frames=sampler.span,
        fps=info.fps,
        width=info.width,
        height=info.height,
        splits=("train",),
    )


def write_prepared(folder: Path, clips: int, short_side: int, frames: int = FRAMES) -> Path:
    """A folder as ``datasets/prepare.py --short-side N`` leaves it: so many copies of one scene.

    Returns the folder. Every clip is a file of its own.
    """
    original, first = folder / "original.mp4", folder / "clip_000.mp4"
    write_scene(original, frames)
    reencode(original, first, short_side=short_side)
    original.unlink()
    info = probe(first)
    paths = [f"clip_{index:03d}.mp4" for index in range(clips)]
    for path in paths[1:]:
        shutil.copyfile(first, folder / path)
    records = tuple(
        ClipRecord(
            path=path,
            label=0,
            group=path,
            num_frames=info.num_frames,
            fps=info.fps,
            width=info.width,
            height=info.height,
            splits=("train",),
        )
        for path in paths
    )
    Manifest(root=folder, classes=("any",), records=records).write(folder / "manifest.csv")
    return folder
