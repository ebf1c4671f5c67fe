"""Check that a prepared dataset is still what its manifest says; exit code 1 if it is not.

    python datasets/verify.py out [--decode-all]

Checked: every file is there, not empty, and the one that was prepared (by size and digest), labels
are in range, every class that has clips is on both sides of each split, no source is on two sides
within its class, and frame counts and sizes of decoded files equal the manifest's. Files with equal
bytes and classes without any clip are reported.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ndavid.config import run_main
from ndavid.data.verification import Verification, verify
from ndavid.errors import first_few, printable
from ndavid.interruption import kept_when_interrupted
from ndavid.ranges import at_least

SHOWN = 20


def main() -> None:
    options = parse_options()
    with kept_when_interrupted("the check was not finished, and nothing of it is kept"):
        result = verify(
            options.manifest,
            num_decoded=None if options.decode_all else options.decode,
            num_workers=max(1, options.workers),  # A decoder's crash must not end this process.
            progress=not options.quiet,
        )
    print(report(result))
    sys.exit(1 if result.errors else 0)


def report(result: Verification) -> str:
    lines = [f"{result.num_clips} clips, {result.num_decoded} of them decoded to the end"]
    lines += [f"  {note}" for note in result.notes]
    lines += [f"  equal files: {' = '.join(paths)}" for paths in result.duplicates]
    across = len(result.duplicates_across)
    if across:
        lines.append(f"  warning: {across} of these sets lie on both sides of a split")
    lines += [f"  warning: {warning}" for warning in result.warnings]
    if result.absent:
        lines.append(
            f"  warning: {len(result.absent)} of {result.num_classes} classes have no clip "
            f"({first_few(result.absent)}); prepare.py --present-only leaves such classes out"
        )
    if result.num_unknown:
        lines.append(
            f"  not known whether {result.num_unknown} files changed: the manifest has no digest "
            "of them (prepare.py adds it when it runs again)"
        )
    lines += [f"  error: {error}" for error in result.errors[:SHOWN]]
    if len(result.errors) > SHOWN:
        lines.append(f"  ... and {len(result.errors) - SHOWN} more")
    lines.append(f"{len(result.errors)} errors" if result.errors else "sound")
    return "\n".join(map(printable, lines))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("manifest", type=Path, help="manifest.csv, or the folder that holds it")
    parser.add_argument("--decode", type=at_least(0), default=32, help="how many to decode (32)")
    parser.add_argument("--decode-all", action="store_true", help="decode every clip")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
