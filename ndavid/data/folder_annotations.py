"""One's own folder of videos to labels and splits, by where each file lies."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from ndavid.data.annotations import Annotations, Entry
from ndavid.data.file_tree import is_hidden
from ndavid.data.names import fault_of_name
from ndavid.data.source_groups import source_group
from ndavid.data.split_names import side_called, sides_hinted
from ndavid.data.video_files import find_videos
from ndavid.errors import DataError, first_few

Layout = Literal["auto", "splits", "classes"]


def parse_folder(
    folder: str | os.PathLike[str],
    *,
    layout: Layout = "auto",
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Annotations:
    """Read classes and sides off a folder tree; one fold.

    `train/<class>/*` beside `test/<class>/*` (and `val/<class>/*`) give sides and labels;
    `<class>/*` gives labels, all in train, with `test_fraction` of each class's groups moved to
    test; videos that lie in `folder` itself are unlabelled train clips, enough for pretraining.
    The split folders may be called as is usual (`training`, `Test`, `valid`). Hidden files, files
    that are not videos by their suffix and names that no manifest can hold are passed over.

    Args:
        folder: the tree.
        layout: "auto" tells by the names which of the two it is, and refuses what is half of each,
            lest test videos are trained on; "splits" and "classes" say what the top folders are.
        test_fraction: in [0, 1).
        seed: of the groups that are moved.

    Raises:
        DataError: no videos, a tree that is half split folders and half something else, a split
            folder of nothing but links to files that are counted elsewhere, a class folder whose
            name cannot be used, or a class that only test or val has.
        ValueError: `test_fraction` is not in [0, 1), or there is no such layout.
    """
    if not 0.0 <= test_fraction < 1.0:
        raise ValueError(f"test_fraction must lie in [0, 1), got {test_fraction}")
    if layout not in get_args(Layout):
        raise ValueError(f"no layout {layout!r}: choose one of {', '.join(get_args(Layout))}")
    folder = Path(folder)
    found = find_videos(folder)
    clips = _usable(folder, found.files)
    if layout != "classes":
        _check_no_split_of_repeats(folder, clips, found.repeats)
    split_folders = _split_folders(folder, clips, layout)
    places = {clip: _place(clip, split_folders) for clip in clips}
    names = sorted({name for _, name in places.values() if name})
    labels = {name: label for label, name in enumerate(names)}
    fold = {clip: Entry(labels.get(name, -1), side) for clip, (side, name) in places.items()}
    _check_every_class_is_trained(folder, names, fold)
    if test_fraction:
        if "test" in split_folders.values():
            raise DataError(folder, "has a test split already: leave --test-fraction out")
        fold = _hold_out_groups(fold, test_fraction, seed)
    notes = _notes_on_empty_folders(folder, clips, split_folders)
    return Annotations(tuple(names), (fold,), source_group, notes)


def _usable(folder: Path, clips: Sequence[str]) -> list[str]:
    """The clips that a manifest can hold; a folder's name that it cannot is an error."""
    if not clips:
        raise DataError(folder, "holds no videos")
    faults = {clip: fault for clip in clips if (fault := fault_of_name(clip)) is not None}
    for clip in faults:
        # One odd file among many is put aside. An odd class folder would take all it holds along.
        for part in PurePosixPath(clip).parts[:-1][:2]:
            if fault := fault_of_name(part):
                raise DataError(folder, f"a folder cannot be used: {fault}; rename it")
    if len(faults) == len(clips):
        reason = f"none of its {len(clips)} videos can be used; {faults[clips[0]]}"
        raise DataError(folder, reason)
    return [clip for clip in clips if clip not in faults]


# --- which layout ---------------------------------------------------------------------------------


def _split_folders(folder: Path, clips: Sequence[str], layout: Layout) -> dict[str, str]:
    """Top folder -> its side; none where the top folders are classes."""
    if layout == "classes":
        return {}
    tops = sorted({PurePosixPath(clip).parts[0] for clip in clips if "/" in clip})
    sides = {top: side for top in tops if (side := side_called(top))}
    if sides or layout == "splits":
        _check_split_folders(folder, clips, tops, sides)
    else:
        _check_class_folders(folder, tops)
    if layout == "auto":
        _check_below(folder, clips)
    return sides


def _check_no_split_of_repeats(folder: Path, clips: Sequence[str], repeats: Sequence[str]) -> None:
    """No split folder all of whose files count elsewhere: they would change sides in silence."""
    filled = {PurePosixPath(clip).parts[0] for clip in clips if "/" in clip}
    for repeat in repeats:
        top, slash, _ = repeat.partition("/")
        if slash and side_called(top) and top not in filled:
            raise DataError(
                folder,
                f"{top}/ holds nothing but links to, or second names of, files that are here "
                f"already (such as {repeat}), and each file counts once: put copies in their "
                f"place, give --videos a folder that holds the split folders alone, or take "
                f"{top}/ away; if the names are those of classes, say --layout classes",
            )


def _check_split_folders(
    folder: Path, clips: Sequence[str], tops: Sequence[str], sides: Mapping[str, str]
) -> None:
    """Nothing but split folders, and one to train on."""
    found = (
        f"holds the split folders {first_few(list(sides))}" if sides else "holds no split folder"
    )
    others = [f"{top}/" for top in tops if top not in sides]
    loose = [clip for clip in clips if "/" not in clip]
    if others or loose:
        raise DataError(
            folder,
            f"{found} and, beside them, {first_few([*others, *loose])}: which of these are to be "
            "trained on? Move what is beside the split folders into them or away, or, if the "
            "names are those of classes, say --layout classes",
        )
    if "train" not in sides.values():
        raise DataError(
            folder,
            f"{found}, none of them to train on: add train/<class>/, or, if the names are those "
            "of classes, say --layout classes",
        )


def _check_class_folders(folder: Path, tops: Sequence[str]) -> None:
    """No folder that looks like a split's under a name that is not known."""
    hints = {top: found for top in tops if (found := sides_hinted(top))}
    sides = set().union(*hints.values())
    if hints and (len(hints) == len(tops) or ("train" in sides and len(sides) > 1)):
        raise DataError(
            folder,
            f"{first_few(list(hints))} may be split folders, under names that are not known: call "
            "them train/, test/ and val/, or, if the names are those of classes, say --layout "
            "classes",
        )


def _check_below(folder: Path, clips: Sequence[str]) -> None:
    """No split folder inside a class folder."""
    below = {
        "/".join(parts[: depth + 1])
        for clip in clips
        for parts in [PurePosixPath(clip).parts[:-1]]
        for depth in range(1, len(parts))
        if side_called(parts[depth])
    }
    if below:
        raise DataError(
            folder,
            f"split folders lie below the top: {first_few(sorted(below))}. Lay the videos out as "
            "train/<class>/ and test/<class>/, or give --videos the folder that holds train/; if "
            "the names are not those of splits, say --layout classes or --layout splits",
        )


def _place(clip: str, split_folders: Mapping[str, str]) -> tuple[str, str]:
    """(side, class name or "") of a clip."""
    folders = PurePosixPath(clip).parts[:-1]
    side = split_folders[folders[0]] if split_folders else "train"
    below = folders[1:] if split_folders else folders
    return side, below[0] if below else ""


def _notes_on_empty_folders(
    folder: Path, clips: Sequence[str], split_folders: Mapping[str, str]
) -> tuple[str, ...]:
    """A line on the folders that should hold a class's videos, or a split's, and hold none."""
    filled = {parent.as_posix() for clip in clips for parent in PurePosixPath(clip).parents}
    places = list(_folders_in(folder))
    if split_folders:
        places = [place for place in places if side_called(place)]
        places += [f"{p}/{name}" for p in places for name in _folders_in(folder / p)]
    empty = [place for place in places if place not in filled]
    if not empty:
        return ()
    count = "1 folder holds" if len(empty) == 1 else f"{len(empty)} folders hold"
    return (f"{count} no videos, and no clip comes of it: {first_few(empty)}",)


def _folders_in(folder: Path) -> Iterator[str]:
    yield from sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


# --- sides ----------------------------------------------------------------------------------------


def _check_every_class_is_trained(
    folder: Path, names: Sequence[str], fold: Mapping[str, Entry]
) -> None:
    trained = {entry.label for entry in fold.values() if entry.split == "train"}
    for label, name in enumerate(names):
        if label not in trained:
            raise DataError(folder, f"class {name!r} has no clip in train")


def _hold_out_groups(fold: Mapping[str, Entry], fraction: float, seed: int) -> dict[str, Entry]:
    """Moves whole groups of each trained class to test: one at least, never all.

    It is stable under growth.
    """
    groups: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip, entry in fold.items():
        if entry.split == "train":
            groups[entry.label][source_group(clip) or clip].append(clip)
    divided = dict(fold)
    for label, members in groups.items():
        # A hash ranks the groups, so that a new clip does not reshuffle the others.
        ranked = sorted(members, key=lambda group: _hash(f"{seed}/{group}"))
        count = min(len(ranked) - 1, max(1, math.floor(fraction * len(ranked) + 0.5)))
        held_out = [clip for group in ranked[:count] for clip in members[group]]
        divided.update((clip, Entry(label, "test")) for clip in held_out)
    return divided


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode()).hexdigest()
