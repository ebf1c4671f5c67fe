"""The ``ndavid`` command. ``ndavid preview`` draws what every op does to a clip or an image."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from ndavid.data.decode import open_reader
from ndavid.errors import ConfigError, DataError
from ndavid.failures import debugging, in_one_line
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
    try:
        return decode_image(str(path), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DataError(path, f"cannot be read as an image: {error}") from error


def load_partner(path: Path, like: Tensor, num_frames: int) -> Tensor:
    """The second sample for ops that mix two, resized to the first one's height and width.

    Raises:
        ConfigError: one of the two is an image, the other a clip.
    """
    partner = load(path, num_frames)
    if partner.ndim != like.ndim:
        raise ConfigError(f"--partner {path}: one of the two inputs is an image, the other a clip")
    return functional.resize(partner, list(like.shape[-2:]), antialias=True)


def run_preview(arguments: argparse.Namespace) -> None:
    """Reads the input, draws the gallery and writes it to ``--output``."""
    samples = [load(arguments.input, arguments.frames)]
    if arguments.partner is not None:
        samples.append(load_partner(arguments.partner, samples[0], arguments.frames))
    ops = [from_spec(spec) for spec in arguments.ops] if arguments.ops else None
    try:
        image = preview(torch.stack(samples), ops, frames=arguments.frames, seed=arguments.seed)
    except ValueError as error:
        raise ConfigError(f"{arguments.input}: {error}") from error
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    image.save(arguments.output)
    print(f"wrote {arguments.output} ({image.width}x{image.height})")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ndavid", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("preview", help="draw every op on a given clip or image")
    draw.add_argument("--input", type=Path, required=True, help="a video, frame folder or image")
    draw.add_argument("--output", type=Path, required=True, help="the picture to write (.png)")
    draw.add_argument("--partner", type=Path, help="second sample for ops that mix two")
    draw.add_argument("--frames", type=int, default=8, help="frames drawn across (default 8)")
    draw.add_argument("--ops", nargs="*", metavar="SPEC", help="specs such as jigsaw:grid=3")
    draw.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    draw.set_defaults(run=run_preview)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error the user can mend)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = debugging(words)
    arguments = build_parser().parse_args(words)
    try:
        arguments.run(arguments)
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        if debug:
            traceback.print_exception(error)
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
