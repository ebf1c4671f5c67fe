"""Download UCF101 or HMDB51 from the official addresses and unpack them.

    python datasets/download.py ucf101 --output data/ucf101
    python datasets/download.py hmdb51 --output data/hmdb51

Leaves `videos/`, `annotations/` and the archives in the output folder. An interrupted download goes
on where it was. Rar archives need unrar, bsdtar (apt-get install libarchive-tools) or 7z. If the
official server is down, `--mirror URL` takes the same file names from another one; every file is
checked against a known SHA-256, wherever it comes from.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ndavid.config import run_main
from ndavid.data.archives import MAX_UNPACKED, unpack, unpack_nested
from ndavid.data.download import RESOURCES, fetch
from ndavid.interruption import kept_when_interrupted
from ndavid.locks import hold


def main() -> None:
    options = parse_options()
    kept = kept_when_interrupted(f"what was fetched is kept in {options.output}")
    with hold(options.output, way_out="choose another folder"), kept:
        fetch_all(options)


def fetch_all(options: argparse.Namespace) -> None:
    for resource in RESOURCES[options.dataset]:
        url = f"{options.mirror.rstrip('/')}/{resource.name}" if options.mirror else resource.url
        archive = fetch(
            url,
            options.output / resource.name,
            size=resource.size,
            sha256=resource.sha256,
            insecure=options.insecure,
            progress=not options.quiet,
        )
        print(f"{archive}: {archive.stat().st_size} bytes, SHA-256 as expected")
        if not options.keep_packed:
            extract = unpack_nested if resource.nested else unpack
            most = int(options.max_unpacked * 1e9)
            files = extract(archive, options.output / resource.folder, max_bytes=most)
            print(f"  {len(files)} files in {options.output / resource.folder}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", choices=sorted(RESOURCES))
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--mirror", metavar="URL", help="address of a folder with the same files")
    parser.add_argument(
        "--insecure", action="store_true",
        help="don't check the server's certificate (the SHA-256 is checked in any case)",
    )  # fmt: skip
    parser.add_argument("--keep-packed", action="store_true", help="download only")
    parser.add_argument(
        "--max-unpacked", metavar="GB", type=gigabytes, default=MAX_UNPACKED / 1e9,
        help="refuse an archive that unfolds to more (%(default)g)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args()


def gigabytes(text: str) -> float:
    if not 0 < float(text) <= 1e6 or math.isnan(float(text)):
        raise argparse.ArgumentTypeError(f"must be gigabytes above 0, got {text}")
    return float(text)


if __name__ == "__main__":
    run_main(main)
