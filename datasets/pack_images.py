"""Pack an image set into one .npz archive, which `source: packed` reads.

    pack_images.py folder --root my_images --splits train test --output my_images.npz
    pack_images.py folder --root imagenet --class-list imagenet100.txt --splits train val \\
        --output imagenet100.npz
    pack_images.py cifar10 --root data --download --splits train test --png --output cifar10.npz

Files that are JPEGs are stored byte for byte. Everything else, and pixels that come from
torchvision's sets, is encoded: as JPEG, or without loss with `--png`. Images that cannot be read
are left out, counted, and listed in OUTPUT_bad.csv. The archive is held in memory while it is made.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import get_args, get_type_hints

from ndavid.config import run_main
from ndavid.data.config import DataConfig
from ndavid.data.image_archive import read_archive, write_archive
from ndavid.data.image_packing import Packed, pack
from ndavid.data.image_sources import ImageSource, listing_notes
from ndavid.data.images import open_images
from ndavid.errors import ConfigError, DataError, printable
from ndavid.locks import hold_file
from ndavid.ranges import percent

SOURCES = get_args(get_type_hints(DataConfig)["source"])
# The array prefix of a tree without parts, whose split is "".
WHOLE_TREE = "all"


def main() -> None:
    options = parse_options()
    if options.output.suffix != ".npz":
        raise ConfigError(f"--output must end in .npz, got {options.output}")
    with hold_file(options.output):
        pack_all(options)


def pack_all(options: argparse.Namespace) -> None:
    sources = {split or WHOLE_TREE: open_split(options, split) for split in options.splits}
    classes = common_classes(sources)
    quality = None if options.png else options.quality
    packed = {split: pack(source, quality=quality) for split, source in sources.items()}
    write_archive(options.output, classes, {split: done.split for split, done in packed.items()})
    list_bad(options.output, packed)
    size = options.output.stat().st_size / 1e6
    print(f"{options.output}: {len(classes)} classes, {size:.1f} MB")
    for split, done in packed.items():
        for note in listing_notes(sources[split]):
            print(f"  {split}: {note}")
        count = len(done.split.files)
        print(
            f"  {split}: {count} images, {done.kept} JPEG files as they were, {len(done.bad)} bad"
        )


def open_split(options: argparse.Namespace, split: str) -> ImageSource:
    if options.source == "packed":  # its files, not their pixels
        return read_archive(options.root, split)
    config = DataConfig(
        source=options.source,
        root=str(options.root),
        split=split,
        class_list=str(options.class_list or ""),
        download=options.download,
    )
    return open_images(config)


def common_classes(sources: dict[str, ImageSource]) -> tuple[str, ...]:
    """The classes of all splits; labels would mean different things if they were not the same."""
    (first, source), *others = sources.items()
    for split, other in others:
        if differing := set(source.classes) ^ set(other.classes):
            reason = f"{first} and {split} differ in their classes: {', '.join(sorted(differing))}"
            raise DataError(other.origin, reason)
        if other.classes != source.classes:
            raise DataError(other.origin, f"{first} and {split} have their classes in other orders")
    return source.classes


def list_bad(output: Path, packed: dict[str, Packed]) -> None:
    """Writes OUTPUT_bad.csv and names the first few; no file where there is nothing to list."""
    found = ((split, *entry) for split, done in packed.items() for entry in done.bad)
    rows = [tuple(map(printable, row)) for row in found]
    target = output.with_name(f"{output.stem}_bad.csv")
    target.unlink(missing_ok=True)
    if not rows:
        return
    with target.open("x", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("split", "path", "reason"), *rows])
    for _, path, reason in rows[:5]:
        print(f"left out: {path}: {reason}")
    print(f"all {len(rows)} images left out are in {target}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", choices=SOURCES, help="what --root holds")
    parser.add_argument("--root", type=Path, required=True, help="folder, tree or archive")
    parser.add_argument(
        "--splits", nargs="+", required=True, help='parts to pack ("" for a tree without parts)'
    )
    parser.add_argument("--output", type=Path, required=True, help="the .npz to write")
    parser.add_argument(
        "--class-list", type=Path, help="text file with the classes to take, for folder"
    )
    parser.add_argument("--quality", type=percent, default=95, help="of JPEGs written (95)")
    parser.add_argument("--png", action="store_true", help="write PNGs, which lose nothing")
    parser.add_argument("--download", action="store_true", help="fetch what is missing")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
