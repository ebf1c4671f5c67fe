"""Prepare a dataset: probe every video, parse the official splits, write the manifest.

    prepare.py ucf101 --videos UCF-101 --annotations ucfTrainTestlist --output out
    prepare.py hmdb51 --videos hmdb51 --annotations testTrainMulti_7030_splits --output out
    prepare.py kinetics --videos k400 --annotations k400/annotations --output out
    prepare.py folder --videos my_videos --output out --test-fraction 0.25

Add `--short-side 128 --gop 12` to re-encode to small H.264, which is what makes training load fast.
A run that was stopped goes on where it was: start it again with the same options.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from ndavid.config import run_main
from ndavid.data.annotations import Annotations, parse_hmdb51, parse_kinetics, parse_ucf101
from ndavid.data.folder_annotations import Layout, parse_folder
from ndavid.data.preparation import PrepareSettings, prepare
from ndavid.data.preparation_report import summary
from ndavid.interruption import kept_when_interrupted
from ndavid.ranges import at_least, fraction

PARSERS = {"ucf101": parse_ucf101, "hmdb51": parse_hmdb51, "kinetics": parse_kinetics}


def main() -> None:
    options = parse_options()
    settings = PrepareSettings(
        short_side=options.short_side,
        gop=options.gop,
        crf=options.crf,
        verify_decord=options.verify_decord,
        full_digest=options.full_digest,
    )
    with kept_when_interrupted(f"the files that are done are kept in {options.output}"):
        result = prepare(
            read_annotations(options),
            options.videos,
            options.output,
            settings=settings,
            num_workers=max(1, options.workers),  # A decoder's crash must not end this one.
            progress=not options.quiet,
            classes=options.classes,
            present_only=options.present_only,
        )
    print(summary(result))


def read_annotations(options: argparse.Namespace) -> Annotations:
    if options.dataset == "folder":
        return parse_folder(
            options.videos,
            layout=options.layout,
            test_fraction=options.test_fraction,
            seed=options.seed,
        )
    return PARSERS[options.dataset](options.annotations or options.videos)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", choices=[*PARSERS, "folder"], help="which kind of split files")
    parser.add_argument("--videos", type=Path, required=True, help="folder with the video files")
    parser.add_argument(
        "--annotations", type=Path, help="folder with the split files (default: that of --videos)"
    )
    parser.add_argument("--output", type=Path, required=True, help="where the manifest goes")
    parser.add_argument(
        "--classes", nargs="+", default=(), metavar="NAME", help="take these classes alone (all)"
    )
    parser.add_argument(
        "--present-only", action="store_true", help="leave out classes without a usable clip"
    )
    parser.add_argument(
        "--short-side", type=at_least(16), metavar="PIXELS", help="re-encode to H.264 of this size"
    )
    parser.add_argument("--gop", type=at_least(1), default=12, help="frames a keyframe (12)")
    parser.add_argument(
        "--crf", type=at_least(0), default=20, help="x264 quality, less is better (20)"
    )
    parser.add_argument(
        "--workers", type=at_least(0), default=os.cpu_count() or 1, help="processes (all cores)"
    )
    parser.add_argument(
        "--verify-decord",
        action="store_true",
        help="check for each file whether decord reads it right (decodes each file twice more)",
    )
    parser.add_argument(
        "--full-digest",
        action="store_true",
        help="tell changed files by all of their bytes, not by size and both ends (reads more)",
    )
    parser.add_argument(
        "--test-fraction", type=fraction, default=0.0,
        help="folder without test/: this share of each class becomes test (0)",
    )  # fmt: skip
    parser.add_argument(
        "--layout", choices=get_args(Layout), default="auto",
        help="folder: what the top folders are; auto tells by their names",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of --test-fraction (0)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    if (options.test_fraction or options.layout != "auto") and options.dataset != "folder":
        parser.error("--test-fraction and --layout are for folder: the others have official splits")
    return options


if __name__ == "__main__":
    run_main(main)
