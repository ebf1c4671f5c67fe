"""The ``ndavid`` command. ``ndavid preview`` draws what every op does to a clip or an image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from ndavid.data.decode import open_reader
from ndavid.errors import ConfigError, DataError, NdavidError
from ndavid.nda import from_spec
from ndavid.nda.preview import preview

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def load(path: Path, num_frames: int) -> Tensor:
    """An image as (C, H, W), or ``num_frames`` evenly spaced frames as (C, T, H, W); uint8.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    if not path.exists():
        raise DataError(path, "no such file; pass a video, a folder of frames, or an image")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _load_image(path)
    with open_reader(path, backend="frames" if path.is_dir() else "pyav") as reader:
        positions = torch.linspace(0, len(reader) - 1, num_frames).round().long()
        return reader.read(positions.tolist()).transpose(0, 1)


def _load_image(path: Path) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    try:
        return decode_image(str(path), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DataError(path, f"cannot be read as an image: {error}") from error


def partner_for(x: Tensor, path: Path | None, num_frames: int) -> Tensor:
    """A second sample for the mixing ops: the file asked for, or a mirrored, time-shifted copy."""
    if path is None:
        mirrored = x.flip(-1)
        return mirrored.roll(num_frames // 2, dims=1) if x.ndim == 4 else mirrored
    other = load(path, num_frames)
    if other.ndim != x.ndim:
        raise ConfigError(f"--partner {path}: one of the two inputs is an image, the other a clip")
    return _resize_to(other, x.shape[-2:])


def _resize_to(x: Tensor, size: torch.Size) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.resize(x, list(size), antialias=True)


def _crop_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Crops H and W so that every grid the gallery uses divides them."""
    height, width = (side // multiple * multiple for side in x.shape[-2:])
    if not height or not width:
        raise ConfigError(f"the input is {x.shape[-2]}x{x.shape[-1]} px; preview needs {multiple}")
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def run_preview(arguments: argparse.Namespace) -> None:
    """Reads the input, draws the gallery and writes it to ``--output``."""
    x = _crop_to_multiple(load(arguments.input, arguments.frames), 12)
    other = partner_for(x, arguments.partner, arguments.frames)
    ops = [from_spec(spec) for spec in arguments.ops] if arguments.ops else None
    image = preview(torch.stack([x, other]), ops=ops, seed=arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    image.save(arguments.output)
    print(f"wrote {arguments.output} ({image.width}x{image.height})")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ndavid", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("preview", help="draw every op on a given clip or image")
    draw.add_argument("--input", type=Path, required=True, help="a video, frame folder or image")
    draw.add_argument("--output", type=Path, required=True, help="the picture to write (.png)")
    draw.add_argument("--partner", type=Path, help="second sample for the ops that mix two")
    draw.add_argument("--frames", type=int, default=8, help="frames drawn across (default 8)")
    draw.add_argument("--ops", nargs="*", metavar="SPEC", help="specs such as jigsaw:grid=3")
    draw.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    draw.set_defaults(run=run_preview)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error the user can mend)."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except NdavidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
