"""Which file each listed clip is: lists and folders seldom agree on suffixes and places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Matches:
    """Which file each listed clip is: `files` by path in the lists, and what is left over."""

    files: Mapping[str, str]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]


def match_files(listed: Iterable[str], on_disk: Iterable[str]) -> Matches:
    """Find each listed clip's file, by its path or else by name.

    By name means the class folder and the stem, or else a stem that occurs in one folder only.
    So `Archery/x.avi` finds `UCF-101/Archery/x.mp4`, and a Kinetics name finds its file in
    whichever folder. Of two files for one clip the first in sorted order counts.
    """
    by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    files = sorted(on_disk)
    exact = set(files)
    for file in files:
        path = PurePosixPath(file)
        by_place[path.parent.name, path.stem].append(file)
        by_stem[path.stem].append(file)
    matched, missing = {}, []
    for clip in sorted(listed):
        path = PurePosixPath(clip)
        found = by_place.get((path.parent.name, path.stem)) or _unique(by_stem.get(path.stem, []))
        if clip in exact:
            matched[clip] = clip
        elif found:
            matched[clip] = found[0]
        else:
            missing.append(clip)
    used = set(matched.values())
    return Matches(matched, tuple(missing), tuple(file for file in files if file not in used))


def _unique(files: list[str]) -> list[str]:
    """The files if they are one clip in one folder (in several formats, say), else none."""
    return files if len({PurePosixPath(file).parent for file in files}) == 1 else []
