"""Write a dataset into WebDataset tar shards, which `data.shards` trains from.

    shard.py clips --root data/ucf101_128 --split train --fold 1 --output data/shards/ucf101_1
    shard.py images packed --root imagenet100.npz --split train --output data/shards/imagenet100
    shard.py check data/shards/ucf101_1

Clips are taken byte for byte, and so are JPEG files; what cannot be read is left out, counted, and
listed in bad_files.csv. Samples are mixed by `--seed`. Beside the shards comes index.json: training
needs it, wherever the shards are moved to. For P training processes of W loading processes each,
write at least P x W shards, best a multiple of it.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import get_args, get_type_hints

from ndavid.config import run_main
from ndavid.data.config import DataConfig
from ndavid.data.image_archive import read_archive
from ndavid.data.image_sources import ImageSource, listing_notes
from ndavid.data.images import open_images
from ndavid.data.manifest import read_manifest
from ndavid.data.shard_writing import (
    ClipFiles,
    ImageFiles,
    ShardInput,
    WrittenShards,
    check_shards,
    write_shards,
)
from ndavid.errors import DataError, printable
from ndavid.files import file_sha256
from ndavid.interruption import kept_when_interrupted
from ndavid.ranges import at_least, percent

SOURCES = get_args(get_type_hints(DataConfig)["source"])
# About 50 MB of clips of 128 pixels, or of ImageNet's images.
PER_SHARD = {"clips": 512, "images": 512}


def main() -> None:
    options = parse_options()
    if options.what == "check":
        with kept_when_interrupted("the check was not finished, and nothing of it is kept"):
            check(options.folder)
        return
    # Without an index they are no shards yet.
    with kept_when_interrupted(f"the shards in {options.output} would be written anew"):
        written = write_clips(options) if options.what == "clips" else write_images(options)
    list_bad(options.output, written)
    shards = written.index.shards
    count = sum(len(shard.samples) for shard in shards)
    size = sum(shard.num_bytes for shard in shards) / 1e6
    print(f"{options.output}: {count} {options.what} in {len(shards)} shards, {size:.1f} MB")
    last = shards[-1].file.removesuffix(".tar")
    print(f"data.shards: {options.output}/{{000000..{last}}}.tar")


def write_clips(options: argparse.Namespace) -> WrittenShards:
    manifest = read_manifest(options.root)
    records = manifest.select(options.split, options.fold)
    if not records:
        reason = f"the {options.split} split of fold {options.fold} has no clips"
        raise DataError(options.root, reason)
    file = options.root / "manifest.csv" if options.root.is_dir() else options.root
    source = {
        "manifest": file.resolve().parent.name,
        "sha256": file_sha256(file),
    }
    samples = ClipFiles(records, manifest.root)
    return write(samples, options, classes=manifest.classes, fold=options.fold, source=source)


def write_images(options: argparse.Namespace) -> WrittenShards:
    images = open_source(options)
    source = {"images": options.source, "digest": images.digest}
    print(*listing_notes(images), sep="\n", end="\n" if listing_notes(images) else "")
    samples = ImageFiles(images, quality=None if options.png else options.quality)
    return write(samples, options, classes=images.classes, fold=0, source=source)


def write(
    samples: ShardInput,
    options: argparse.Namespace,
    *,
    classes: tuple[str, ...],
    fold: int,
    source: dict[str, str],
) -> WrittenShards:
    num_shards = options.shards or math.ceil(len(samples) / options.per_shard)
    return write_shards(
        samples,
        options.output,
        num_shards=num_shards,
        classes=classes,
        split=options.split,
        fold=fold,
        source=source,
        seed=options.seed,
        progress=not options.quiet,
    )


def open_source(options: argparse.Namespace) -> ImageSource:
    if options.source == "packed":  # its files, not their pixels
        return read_archive(options.root, options.split)
    config = DataConfig(
        source=options.source,
        root=str(options.root),
        split=options.split,
        class_list=str(options.class_list or ""),
        download=options.download,
    )
    return open_images(config)


def check(folder: Path) -> None:
    """Prints what is wrong, and leaves with 1 if anything is."""
    wrong = check_shards(folder)
    for file, problem in wrong:
        print(printable(f"{folder / file}: {problem}"))
    if wrong:
        sys.exit(1)
    print(f"{folder}: all shards are as they were written")


def list_bad(output: Path, written: WrittenShards) -> None:
    """Writes bad_files.csv and names the first few; no file where there is nothing to list."""
    target = output / "bad_files.csv"
    target.unlink(missing_ok=True)
    if not written.bad:
        return
    bad = [(printable(path), printable(reason)) for path, reason in written.bad]
    with target.open("x", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("path", "reason"), *bad])
    for path, reason in bad[:5]:
        print(f"left out: {path}: {reason}")
    print(f"all {len(written.bad)} samples left out are in {target}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="what", required=True)
    clips = commands.add_parser("clips", help="write a prepared set of videos")
    clips.add_argument("--root", type=Path, required=True, help="what prepare.py wrote")
    clips.add_argument("--split", default="train", choices=["train", "test", "val"])
    clips.add_argument("--fold", type=at_least(1), default=1, help="official split (1)")
    images = commands.add_parser("images", help="write an image set")
    images.add_argument("source", choices=SOURCES, help="what --root holds")
    images.add_argument("--root", type=Path, required=True, help="folder, tree or archive")
    images.add_argument("--split", default="train", help='part to write ("" for a whole tree)')
    images.add_argument("--class-list", type=Path, help="text file with the classes, for folder")
    images.add_argument("--quality", type=percent, default=95, help="of JPEGs written (95)")
    images.add_argument("--png", action="store_true", help="write PNGs, which lose nothing")
    images.add_argument("--download", action="store_true", help="fetch what is missing")
    for kind, command in {"clips": clips, "images": images}.items():
        add_common(command, PER_SHARD[kind])
    checked = commands.add_parser("check", help="compare shards with their index")
    checked.add_argument("folder", type=Path)
    return parser.parse_args()


def add_common(command: argparse.ArgumentParser, per_shard: int) -> None:
    command.add_argument("--output", type=Path, required=True, help="folder for the shards")
    size = command.add_mutually_exclusive_group()
    size.add_argument("--shards", type=at_least(1), help="how many")
    size.add_argument(
        "--per-shard", type=at_least(1), default=per_shard, help=f"at most so many ({per_shard})"
    )
    command.add_argument("--seed", type=int, default=0, help="of the order (0)")
    command.add_argument("--quiet", action="store_true", help="no progress")


if __name__ == "__main__":
    run_main(main)
