"""Official split files to labels and splits: UCF101, HMDB51 and Kinetics.

Every parser gives `Annotations`: class names in label order, and for each fold (official split) a
mapping from a clip's path to its label and side. Labels are 0-based, -1 for none. The paths are
those of the lists; `clip_matching` finds the files they mean, whose suffix or folder may differ.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ndavid.data.file_tree import is_hidden
from ndavid.data.names import check_name, check_text
from ndavid.data.source_groups import kinetics_group, source_group
from ndavid.errors import ConfigError, DataError

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
        notes: what a person should know of them, a line each.
    """

    classes: tuple[str, ...]
    splits: tuple[Mapping[str, Entry], ...]
    group_of: Callable[[str], str]
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths that some fold lists, sorted."""
        return tuple(sorted(set().union(*self.splits)))

    def only(self, names: Iterable[str], *, unlabelled: bool) -> Annotations:
        """The clips of some classes, whose labels count anew from 0 in the same order.

        Args:
            names: the classes to keep.
            unlabelled: whether to keep the clips without a label.

        Raises:
            ConfigError: a name that is no class; it tells the nearest.
        """
        wanted = set(names)
        for name in sorted(wanted - set(self.classes)):
            near = difflib.get_close_matches(name, self.classes, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ", for there are no classes"
            raise ConfigError(f"--classes: there is no class {name!r}{hint}")
        kept = tuple(name for name in self.classes if name in wanted)
        numbers = {self.classes.index(name): label for label, name in enumerate(kept)}
        if unlabelled:
            numbers[-1] = -1
        folds = tuple(
            {
                path: Entry(numbers[entry.label], entry.split)
                for path, entry in fold.items()
                if entry.label in numbers
            }
            for fold in self.splits
        )
        return replace(self, classes=kept, splits=folds)

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
        check_text(path, where, "class name", name.strip())
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
        clip, number = check_name(path, where, match["clip"]), match["number"]
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
    pattern = re.compile(r"(?P<name>.+)_test_split(?P<number>\d+)\.txt", re.DOTALL)
    names = [path.name for path in home.iterdir() if not is_hidden(path.name)]
    found = [match for name in names if (match := pattern.fullmatch(name))]
    classes = sorted({check_text(home, match[0], "class name", match["name"]) for match in found})
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
        key = f"{name}/{check_name(path, where, clip.strip())}"
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
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.glob("*.csv") if not is_hidden(path.name))
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
                label = row.get("label") or ""
                if label:
                    check_text(path, where, "class name", label)
                yield _kinetics_name(path, where, row), label, KINETICS_SPLITS[split]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"cannot read the csv ({error})") from error


def _kinetics_name(path: Path, where: str, row: Mapping[str, str]) -> str:
    try:
        start, end = round(float(row["time_start"])), round(float(row["time_end"]))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(path, f"{where}: time_start and time_end must be numbers") from error
    if not row["youtube_id"]:
        raise DataError(path, f"{where}: youtube_id is empty")
    name = check_name(path, where, f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4")
    if "/" in name or "\\" in name:
        raise DataError(path, f"{where}: youtube_id {row['youtube_id']!r} holds a slash")
    return name


# --- files ----------------------------------------------------------------------------------------


def _find_home(folder: Path, pattern: str) -> Path:
    """The folder that holds a file of that pattern: `folder` itself or one just below it."""
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder of annotations")
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
    for home in (folder, *below):
        if not all(is_hidden(path.name) for path in home.glob(pattern)):
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
