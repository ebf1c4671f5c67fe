"""Takes an encoder elsewhere: a folder, a torch.export program, an ONNX file, each of them proved.

An artefact is written, read back from disk by what will read it elsewhere (``load_encoder``,
``torch.export.load``, onnxruntime), and run on batches of other sizes and contents than the one it
was traced with. Only if its features are those of the eager encoder does it go to its place.

A program takes any number of clips or images of one length and size. It is for inference in
float32: the guards of ``models.cpu_convolutions`` are settled while it is traced.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.errors import CheckpointError
from ndavid.models.encoders.base import Encoder
from ndavid.models.normalize import Normalize
from ndavid.models.weights.checkpoint import CONFIG_FILE
from ndavid.models.weights.release import load_encoder, save_pretrained

Kind = Literal["folder", "program", "onnx"]
"""``folder``: save_pretrained's; ``program``: torch.export's .pt2; ``onnx``: an .onnx file."""

NAMES: dict[Kind, str] = {"folder": "encoder", "program": "encoder.pt2", "onnx": "encoder.onnx"}

TOLERANCE = 1e-4
"""How far features may lie off the eager ones, as a share of the largest. Rounding in float32 adds
up to some 1e-6 in every network tried; anything wrong is off by far more."""

_TRACED_WITH = 2
_CHECKED_WITH = (1, 2, 3)

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Export:
    """What became of one kind."""

    kind: Kind
    path: Path
    error: float | None
    """Largest difference from the eager features, as a share of the largest; None: no artefact."""
    reason: str = ""
    """Why there is no artefact."""

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.kind}: not exported: {self.reason}"
        return (
            f"{self.kind}: {self.path}, read back: largest error {self.error:.1e} of the largest "
            f"feature (tolerance {TOLERANCE:.0e})"
        )


class ExportedEncoder(nn.Module):
    """What is exported: pixels -> the encoder's map, or its mean.

    With ``uint8``, pixels are RGB in [0, 255] and normalised inside; else they come normalised.
    """

    def __init__(self, encoder: Encoder, *, pool: bool = False, uint8: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.pixels = Normalize() if uint8 else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pixels(pixels)
        return self.encoder.pooled(x) if self.pool else self.encoder(x)


def export_encoder(
    encoder: Encoder,
    shape: Sequence[int],
    directory: str | Path,
    kinds: Sequence[Kind] = ("folder", "program", "onnx"),
    *,
    pool: bool = False,
    uint8: bool = False,
) -> list[Export]:
    """Writes ``encoder`` to ``directory`` in every kind that it can be written in.

    Args:
        encoder: on the CPU, in float32; it is put into eval mode.
        shape: of one sample, (3, T, H, W) or (3, H, W).
        directory: is made; older artefacts in it of the same kinds go.
        kinds: what to write.
        pool: programs give vectors (B, D) instead of maps.
        uint8: programs take pixels in [0, 255] and normalise them.

    Returns:
        One a kind, with its largest error, or the reason why there is none.

    Raises:
        ClipSizeError: the encoder does not take samples of that shape.
    """
    model = ExportedEncoder(encoder, pool=pool, uint8=uint8).eval()
    batches = [_batch(count, shape, uint8) for count in _CHECKED_WITH]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    example = _batch(_TRACED_WITH, shape, uint8)
    program = cache(lambda: _traced(model, example))
    writers: dict[Kind, Callable[[Path], Run]] = {
        "folder": lambda path: _folder(model, path),
        "program": lambda path: _program(program(), path),
        "onnx": lambda path: _onnx(program(), path),
    }
    Path(directory).mkdir(parents=True, exist_ok=True)
    return [_proved(k, writers[k], batches, expected, Path(directory)) for k in kinds]


def _batch(count: int, shape: Sequence[int], uint8: bool) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    if uint8:
        return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return torch.randn(count, *shape, generator=generator)


def _proved(
    kind: Kind,
    write: Callable[[Path], Run],
    batches: Sequence[Tensor],
    expected: Sequence[Tensor],
    directory: Path,
) -> Export:
    """Writes where nobody looks, and moves what was proved to its place."""
    target = directory / NAMES[kind]
    _discard(target)
    with tempfile.TemporaryDirectory(prefix="unproved-", dir=directory) as unproved:
        path = Path(unproved) / target.name
        try:
            run = write(path)
            with torch.no_grad():
                error = max(_error(run(x), y) for x, y in zip(batches, expected, strict=True))
        except Exception as failure:  # exporters raise whatever they meet in the network
            return Export(kind, target, None, _reason(failure))
        if error > TOLERANCE:
            reason = f"read back, its features are {error:.1e} off, more than {TOLERANCE:.0e}"
            return Export(kind, target, None, reason)
        _move(path, target)
    return Export(kind, target, error)


def _error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        raise CheckpointError(f"gives {tuple(found.shape)} instead of {tuple(expected.shape)}")
    error = float((found - expected).abs().max() / expected.abs().max())
    return error if error == error else float("inf")


def _reason(failure: Exception) -> str:
    if isinstance(failure, ModuleNotFoundError):
        return f"{failure}; ONNX needs the extra: in the clone, pip install -e '.[export]'"
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else 'without a message'}"


def _discard(target: Path) -> None:
    """Removes an artefact of before, so that one that is there is of this export."""
    for stale in (target, target / CONFIG_FILE, target / MODEL_FILE):
        if stale.is_file():
            stale.unlink()


def _move(path: Path, target: Path) -> None:
    if path.is_file():
        os.replace(path, target)
        return
    target.mkdir(exist_ok=True)
    for file in path.iterdir():
        os.replace(file, target / file.name)


# --------------------------------------------------------------------- write, and read back


def _folder(model: ExportedEncoder, path: Path) -> Run:
    save_pretrained(model.encoder, path)
    uint8 = isinstance(model.pixels, Normalize)
    return ExportedEncoder(load_encoder(path), pool=model.pool, uint8=uint8).eval()


def _traced(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))


def _program(program: torch.export.ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(program: torch.export.ExportedProgram, path: Path) -> Run:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            f=path,
            input_names=["pixels"],
            output_names=["features"],
            dynamo=True,
            external_data=False,  # one file; none of these networks comes near 2 GB
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
