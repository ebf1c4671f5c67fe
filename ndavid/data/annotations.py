"""Official split files to labels and splits: UCF101, HMDB51, Kinetics, and plain folders.

Every parser gives `Annotations`: class names in label order, and for each fold (official split) a
mapping from a clip's path to its label and side. Labels are 0-based, -1 for none. The paths are
those of the lists; `match_files` finds the files they mean, whose suffix or folder may differ.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ndavid.errors import DataError

VIDEO_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        "3gp",
        "avi",
        "flv",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpeg",
        "mpg",
        "ts",
        "webm",
        "wmv",
    )
)
FOLDER_SPLITS = {"train": "train", "test": "test", "val": "val", "validation": "val"}
KINETICS_SPLITS = {"train": "train", "val": "val", "validate": "val", "test": "test"}
HMDB51_CODES = {"0": "", "1": "train", "2": "test"}


class Entry(NamedTuple):
    """A clip's place in one fold: 0-based label (-1: none) and "train", "test", "val" or ""."""

    label: int
    split: str


@dataclass(frozen=True)
class Annotations:
    """What a dataset's split files say.

    Attributes:
        classes: class names in label order.
        splits: one mapping a fold, from a clip's path in the lists (posix) to its entry.
        group_of: a clip's path -> the name of the source that it was cut from. Clips of one source
            must not lie on both sides of a split; the name counts within the clip's class. With ""
            the clip stands alone.
    """

    classes: tuple[str, ...]
    splits: tuple[Mapping[str, Entry], ...]
    group_of: Callable[[str], str]

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths that some fold lists, sorted."""
        return tuple(sorted(set().union(*self.splits)))

    def label_of(self, path: str) -> int:
        """The label of a listed path (the same in every fold)."""
        return next(fold[path].label for fold in self.splits if path in fold)

    def splits_of(self, path: str) -> tuple[str, ...]:
        """The side of a listed path in each fold, "" where it is in none."""
        return tuple(fold[path].split if path in fold else "" for fold in self.splits)


# --- UCF101 ---------------------------------------------------------------------------------------


def parse_ucf101(folder: str | os.PathLike[str]) -> Annotations:
    """Read `classInd.txt` and each `trainlist0k.txt` with its `testlist0k.txt` in UCF101's format.

    The lists may lie in `folder` or in one folder below it (`ucfTrainTestlist`). Labels in the
    files count from 1. Test lines carry no label: a clip's class is the folder in its path.

    Raises:
        DataError: a file that is missing or a line that is not sound, with its number.
    """
    home = _find_home(Path(folder), "classInd.txt")
    classes = _read_class_index(home / "classInd.txt")
    numbers = sorted(_fold_number(path) for path in home.glob("trainlist*.txt"))
    if not numbers:
        raise DataError(home, "there is no trainlist01.txt")
    folds = []
    for number in numbers:
        fold: dict[str, Entry] = {}
        for side in ("train", "test"):
            _read_ucf101_list(home / f"{side}list{number:02d}.txt", side, classes, fold)
        folds.append(fold)
    return Annotations(tuple(classes), tuple(folds), source_group)


def _read_class_index(path: Path) -> dict[str, int]:
    """Class name -> 0-based label, in label order."""
    classes: dict[str, int] = {}
    for where, line in _numbered_lines(path):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name.strip():
            raise DataError(path, f"{where}: expected 'number class', got {line!r}")
        if int(number) != len(classes) + 1:
            raise DataError(path, f"{where}: class number {number}, expected {len(classes) + 1}")
        if name.strip() in classes:
            raise DataError(path, f"{where}: class {name.strip()!r} is listed twice")
        classes[name.strip()] = len(classes)
    if not classes:
        raise DataError(path, "lists no classes")
    return classes


def _read_ucf101_list(path: Path, side: str, classes: dict[str, int], fold: dict[str, Entry]):
    for where, line in _numbered_lines(path):
        # Labels are the last field, and only where it is a number after a video's name.
        match = re.fullmatch(r"(?P<clip>.+?\.\w+)(?:\s+(?P<number>\d+))?", line)
        if match is None or "/" not in match["clip"]:
            raise DataError(path, f"{where}: expected 'Class/clip.avi [number]', got {line!r}")
        clip, number = match["clip"], match["number"]
        name = PurePosixPath(clip).parent.name
        if name not in classes:
            raise DataError(path, f"{where}: class {name!r} of {clip} is not in classInd.txt")
        label = classes[name]
        if side == "train" and number is None:
            raise DataError(path, f"{where}: the class number of {clip} is missing")
        if number is not None and int(number) != label + 1:
            expected = f"class {name!r} is number {label + 1} in classInd.txt"
            raise DataError(path, f"{where}: {clip} has number {number}, but {expected}")
        if clip in fold:
            raise DataError(path, f"{where}: {clip} is already in {fold[clip].split} of this fold")
        fold[clip] = Entry(label, side)


def _fold_number(path: Path) -> int:
    match = re.fullmatch(r"trainlist(\d+)\.txt", path.name)
    if match is None:
        raise DataError(path, "a list must be named like trainlist01.txt")
    return int(match[1])


# --- HMDB51 ---------------------------------------------------------------------------------------


def parse_hmdb51(folder: str | os.PathLike[str]) -> Annotations:
    """Read `<class>_test_split<k>.txt` (codes 1 train, 2 test, 0 unused) in HMDB51's format.

    The files may lie in `folder` or in one folder below it (`testTrainMulti_7030_splits`). Labels
    are the ranks of the sorted class names.

    Raises:
        DataError: a file that is missing or a line that is not sound, with its number.
    """
    home = _find_home(Path(folder), "*_test_split1.txt")
    pattern = re.compile(r"(?P<name>.+)_test_split(?P<number>\d+)\.txt")
    found = [match for path in home.iterdir() if (match := pattern.fullmatch(path.name))]
    classes = sorted({match["name"] for match in found})
    numbers = sorted({int(match["number"]) for match in found})
    folds = []
    for number in numbers:
        fold: dict[str, Entry] = {}
        for label, name in enumerate(classes):
            path = home / f"{name}_test_split{number}.txt"
            _read_hmdb51_list(path, name, label, fold)
        folds.append(fold)
    return Annotations(tuple(classes), tuple(folds), source_group)


def _read_hmdb51_list(path: Path, name: str, label: int, fold: dict[str, Entry]) -> None:
    for where, line in _numbered_lines(path):
        clip, _, code = line.rpartition(" ")
        if not clip or code not in HMDB51_CODES:
            raise DataError(path, f"{where}: expected 'clip.avi 0|1|2', got {line!r}")
        key = f"{name}/{clip.strip()}"
        if key in fold:
            raise DataError(path, f"{where}: {clip.strip()} is listed twice")
        fold[key] = Entry(label, HMDB51_CODES[code])


# --- Kinetics -------------------------------------------------------------------------------------


def parse_kinetics(source: str | os.PathLike[str]) -> Annotations:
    """Read Kinetics CSVs (`label,youtube_id,time_start,time_end,split`), one or a folder of them.

    One fold. Labels are the ranks of the sorted names that occur in the files; rows without one
    (the published test lists of some releases) get -1. A clip's path is the name its file carries
    in the public copies, `<youtube_id>_<start>_<end>.mp4` with six digits each.

    Raises:
        DataError: no CSV, a missing column, or a row that is not sound, with its number.
    """
    source = Path(source)
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source]
    if not files:
        raise DataError(source, "there is no Kinetics csv (train.csv, val.csv)")
    rows = [row for path in files for row in _kinetics_rows(path)]
    names = sorted({name for _, name, _ in rows if name})
    if not names:
        raise DataError(source, "no row has a label: a class list needs train.csv or val.csv")
    labels = {name: label for label, name in enumerate(names)}
    fold: dict[str, Entry] = {}
    for clip, name, split in rows:
        entry = Entry(labels.get(name, -1), split)
        if fold.setdefault(clip, entry) != entry:
            raise DataError(source, f"{clip} is listed as {fold[clip]} and as {entry}")
    return Annotations(tuple(names), (fold,), kinetics_group)


def _kinetics_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """(clip name, class name or "", split) of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = {"youtube_id", "time_start", "time_end"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(path, f"line 1: no column {', '.join(sorted(missing))}")
            for row in reader:
                where = f"line {reader.line_num}"
                split = row.get("split") or path.stem.split("_")[-1]
                if split not in KINETICS_SPLITS:
                    raise DataError(path, f"{where}: split {split!r} is not train, val or test")
                yield (
                    _kinetics_name(path, where, row),
                    row.get("label") or "",
                    KINETICS_SPLITS[split],
                )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot read the csv ({error})") from error


def _kinetics_name(path: Path, where: str, row: Mapping[str, str]) -> str:
    try:
        start, end = round(float(row["time_start"])), round(float(row["time_end"]))
    except (TypeError, ValueError) as error:
        raise DataError(path, f"{where}: time_start and time_end must be numbers") from error
    if not row["youtube_id"]:
        raise DataError(path, f"{where}: youtube_id is empty")
    return f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"


# --- one's own folder -----------------------------------------------------------------------------


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


# --- groups ---------------------------------------------------------------------------------------

_UCF101_NAME = re.compile(r"v_(?P<name>.+)_(?P<group>g\d+)_c\d+")
_HMDB51_TAIL = re.compile(r"_[fhul]_[cn]m_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$")
_KINETICS_NAME = re.compile(r"(?P<id>.+)_\d{6}_\d{6}")


def source_group(path: str) -> str:
    """The source that a clip was cut from, by the pattern of its name.

    `v_Archery_g07_c04` (UCF101) gives `g07`; `TrumanShow_wave_f_nm_np1_fr_med_26` (HMDB51) gives
    `TrumanShow`: what stands before the class and the attributes. Any other name gives "".
    """
    clip = PurePosixPath(path)
    ucf101 = _UCF101_NAME.fullmatch(clip.stem)
    if ucf101:
        # Group numbers start anew in each class. (The folder HandstandPushups holds v_HandStand...)
        in_its_class = ucf101["name"].lower() == clip.parent.name.lower()
        return ucf101["group"] if in_its_class else f"{ucf101['name']}_{ucf101['group']}"
    source, is_hmdb51 = _HMDB51_TAIL.subn("", clip.stem)
    if is_hmdb51:
        return source.removesuffix(f"_{clip.parent.name}")
    return ""


def kinetics_group(path: str) -> str:
    """The YouTube id in `<id>_<start>_<end>.mp4`, "" for another name."""
    match = _KINETICS_NAME.fullmatch(PurePosixPath(path).stem)
    return match["id"] if match else ""


# --- files ----------------------------------------------------------------------------------------


def list_videos(folder: str | os.PathLike[str]) -> list[str]:
    """Posix paths, relative to `folder`, of the files below it with a video's suffix, sorted.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder")
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


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


def _find_home(folder: Path, pattern: str) -> Path:
    """The folder that holds a file of that pattern: `folder` itself or one just below it."""
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder of annotations")
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    for home in (folder, *below):
        if any(home.glob(pattern)):
            return home
    raise DataError(folder, f"there is no {pattern} here or one folder below")


def _numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("line 3", text) of each line that is not blank, ends stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(path, f"cannot read the annotations: {reason}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", line.strip()
