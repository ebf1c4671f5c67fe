"""Which file each listed clip is: lists and folders seldom agree on suffixes and places."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ndavid.data.source_groups import source_group


@dataclass(frozen=True)
class Matches:
    """Which file each listed clip is, and what is left over.

    Attributes:
        files: path in the lists -> the file to take.
        missing: listed clips that have no file.
        unlisted: files that are no listed clip's.
        others: path in the lists -> further files of that clip, the next best first.
        unclear: listed clips without a file of their own -> the files that each could be; none of
            them is taken.
    """

    files: Mapping[str, str]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unclear: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def only(self, clips: Iterable[str]) -> Matches:
        """The same for some of the listed clips; files of the others do not become unlisted."""
        kept = set(clips)
        return Matches(
            {clip: file for clip, file in self.files.items() if clip in kept},
            tuple(clip for clip in self.missing if clip in kept),
            self.unlisted,
            {clip: files for clip, files in self.others.items() if clip in kept},
            {clip: files for clip, files in self.unclear.items() if clip in kept},
        )


def match_files(listed: Iterable[str], on_disk: Iterable[str]) -> Matches:
    """Find each listed clip's files, by its path or else by name.

    By name means the class folder and the stem. So `Archery/x.avi` finds `UCF-101/Archery/x.mp4`.
    A name that by itself says which clip it is finds its files in whichever folders: one that is
    listed without a folder, as Kinetics' are, or one in the style of UCF101 or HMDB51. Another stem
    does so only where all its files lie in one folder. A file goes to the clip with which it shares
    most folders. A clip's files are in that order, then sorted.
    """
    clips, files = sorted(set(listed)), sorted(set(on_disk))
    exact = set(clips) & set(files)
    by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file not in exact:
            by_place[_place(file)].append(file)
            by_stem[PurePosixPath(file).stem].append(file)
    near = {clip: by_place.get(_place(clip), []) for clip in clips if "/" in clip}
    claims: dict[str, int] = {}
    for clip, its_files in near.items():
        for file in its_files:
            claims[file] = max(claims.get(file, 0), _shared_folders(clip, file))
    found: dict[str, list[str]] = {}
    guessed: dict[str, list[str]] = {}
    for clip in clips:
        shared = {file: _shared_folders(clip, file) for file in near.get(clip, ())}
        own = sorted((-count, file) for file, count in shared.items() if count == claims[file])
        found[clip] = [clip] if clip in exact else []
        found[clip] += [file for _, file in own]
        elsewhere = [f for f in by_stem.get(PurePosixPath(clip).stem, ()) if f not in claims]
        if "/" not in clip or source_group(clip):
            found[clip] += elsewhere
        elif not found[clip] and elsewhere:
            guessed[clip] = elsewhere
    unclear = _settle(guessed, found)
    used = {file for its_files in (*found.values(), *unclear.values()) for file in its_files}
    return Matches(
        files={clip: its_files[0] for clip, its_files in found.items() if its_files},
        missing=tuple(clip for clip in clips if not found[clip] and clip not in unclear),
        unlisted=tuple(file for file in files if file not in used),
        others={clip: tuple(rest) for clip, (_, *rest) in _filled(found).items() if rest},
        unclear=unclear,
    )


def _settle(
    guessed: Mapping[str, list[str]], found: dict[str, list[str]]
) -> dict[str, tuple[str, ...]]:
    """Takes what a stem alone tells where nothing speaks against it; returns what stays unclear."""
    uses = Counter(file for files in guessed.values() for file in files)
    unclear = {}
    for clip, files in guessed.items():
        one_folder = len({PurePosixPath(file).parent for file in files}) == 1
        if one_folder and all(uses[file] == 1 for file in files):
            found[clip] = files
        else:
            unclear[clip] = tuple(files)
    return unclear


def _filled(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {clip: files for clip, files in found.items() if files}


def _place(path: str) -> tuple[str, str]:
    """(folder's name, stem)."""
    return PurePosixPath(path).parent.name, PurePosixPath(path).stem


def _shared_folders(one: str, other: str) -> int:
    """How many folders two paths have in common, counted from their ends."""
    pairs = zip(
        reversed(PurePosixPath(one).parts[:-1]),
        reversed(PurePosixPath(other).parts[:-1]),
        strict=False,
    )
    count = 0
    for mine, theirs in pairs:
        if mine != theirs:
            break
        count += 1
    return count
