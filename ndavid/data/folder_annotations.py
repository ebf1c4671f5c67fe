"""One's own folder of videos to labels and splits, by where each file lies."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ndavid.data.annotations import Annotations, Entry, list_videos
from ndavid.data.source_groups import source_group
from ndavid.errors import DataError

FOLDER_SPLITS = {"train": "train", "test": "test", "val": "val", "validation": "val"}


def parse_folder(
    folder: str | os.PathLike[str], *, test_fraction: float = 0.0, seed: int = 0
) -> Annotations:
    """Read classes and sides off a folder tree; one fold.

    `train/<class>/*` beside `test/<class>/*` (and `val/<class>/*`) give sides and labels;
    `<class>/*` gives labels, all in train, with `test_fraction` of each class's groups moved to
    test; videos that lie in `folder` itself are unlabelled train clips, enough for pretraining.
    Hidden files and files that are not videos by their suffix are passed over.

    Raises:
        DataError: no videos, or a class that only test or val has.
        ValueError: `test_fraction` is not in [0, 1).
    """
    if not 0.0 <= test_fraction < 1.0:
        raise ValueError(f"test_fraction must lie in [0, 1), got {test_fraction}")
    folder = Path(folder)
    clips = list_videos(folder)
    if not clips:
        raise DataError(folder, "holds no videos")
    sides = _folder_sides(clips)
    names = sorted({name for _, name in sides.values() if name})
    labels = {name: label for label, name in enumerate(names)}
    fold = {clip: Entry(labels.get(name, -1), side) for clip, (side, name) in sides.items()}
    _check_every_class_is_trained(folder, names, fold)
    if test_fraction:
        fold = _hold_out_groups(fold, test_fraction, seed)
    return Annotations(tuple(names), (fold,), source_group)


def _folder_sides(clips: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Clip -> (side, class name). Split folders count only if nothing else lies beside them."""
    tops = {PurePosixPath(clip).parts[0] for clip in clips if "/" in clip}
    split_layout = "train" in tops and tops <= set(FOLDER_SPLITS)
    sides = {}
    for clip in clips:
        folders = PurePosixPath(clip).parts[:-1]
        side = FOLDER_SPLITS[folders[0]] if split_layout and folders else "train"
        below = folders[1:] if split_layout else folders
        sides[clip] = (side, below[0] if below else "")
    return sides


def _check_every_class_is_trained(
    folder: Path, names: Sequence[str], fold: Mapping[str, Entry]
) -> None:
    trained = {entry.label for entry in fold.values() if entry.split == "train"}
    for label, name in enumerate(names):
        if label not in trained:
            raise DataError(folder, f"class {name!r} has no clip in train")


def _hold_out_groups(fold: Mapping[str, Entry], fraction: float, seed: int) -> dict[str, Entry]:
    """Moves whole groups of each class to test, at least one and never all; stable under growth."""
    groups: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip, entry in fold.items():
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
