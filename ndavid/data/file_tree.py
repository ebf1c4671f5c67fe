"""Files below a folder, each once, with an account of what was left out.

Folders of data hold more than data: hidden files, the `._x.jpg` that macOS lays beside `x.jpg`,
links to what is there already, links that lead back up. A file that is listed twice is trained on
twice, or lies on both sides of a split.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ndavid.errors import DataError, printable

# What archivers, network drives and file systems leave beside data; not hidden by its name.
_LEFT_BY_SYSTEMS = frozenset(
    {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)

# Stands for that of a link to nothing.
_NO_INODE = 0

_SHOWN = 8
_LONGEST_SUFFIX = 8


@dataclass(frozen=True)
class FileTree:
    """The files of some kind below a folder.

    Attributes:
        files: posix paths relative to the folder, sorted. Hidden ones are left out.
        repeats: links, and further names of one file, whose target is among the files already; a
            folder's name ends in "/".
        passed_over: how many files of other suffixes there are, by suffix in lower case, "" for
            none.
    """

    files: tuple[str, ...]
    repeats: tuple[str, ...]
    passed_over: Mapping[str, int]

    def notes(self, kind: str) -> tuple[str, ...]:
        """What was left out, in a line each; `kind` is what was looked for, such as "videos"."""
        lines = []
        if total := sum(self.passed_over.values()):
            kinds = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
            shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in kinds[:_SHOWN]]
            if rest := sum(count for _, count in kinds[_SHOWN:]):
                shown.append(f"{rest} others")
            lines.append(
                f"files passed over, which are no {kind} by their suffix: {total} "
                f"({', '.join(shown)})"
            )
        if self.repeats:
            lines.append(
                f"links and second names left out, whose {kind} are there already: "
                f"{len(self.repeats)} (such as {self.repeats[0]})"
            )
        return tuple(printable(line) for line in lines)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out for its name."""
    return name.startswith(".") or name in _LEFT_BY_SYSTEMS


def find_files(
    folder: str | os.PathLike[str],
    suffixes: Collection[str],
    *,
    tops: Collection[str] | None = None,
) -> FileTree:
    """Find the files below a folder that have one of the suffixes, through links, each once.

    Of a file that can be reached in several ways the way without links counts. A link that leads to
    nothing is listed, so that it is missed and not passed over.

    Args:
        folder: where to look.
        suffixes: in lower case, with their dot.
        tops: look in these folders just below only, "" for the files in the folder itself; None
            for everywhere.

    Raises:
        DataError: there is no such folder, or one cannot be read.
    """
    if not os.path.isdir(folder):
        raise DataError(folder, "there is no such folder")
    walk = _Walk(os.fspath(folder), frozenset(suffixes), tops)
    try:
        return walk.run()
    except OSError as error:
        raise DataError(error.filename or folder, f"cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class _Place:
    """A folder to look into: its path below the root, where it really is, and whence links led."""

    below: str
    real: str
    origins: tuple[str, ...]


class _Walk:
    """One walk over a tree: first what is there without links, then what links add."""

    def __init__(self, root: str, suffixes: frozenset[str], tops: Collection[str] | None) -> None:
        self.root = root
        self.suffixes = suffixes
        self.tops = None if tops is None else frozenset(tops)
        self.files: list[str] = []
        self.inodes = array("Q")
        self.repeats: list[str] = []
        self.passed_over: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.linked_folders: deque[_Place] = deque()
        self.linked_files: list[str] = []

    def run(self) -> FileTree:
        self._walk(_Place("", os.path.realpath(self.root), ()))
        while self.linked_folders:
            # Those that are found on the way come after, so that loops end.
            place = self.linked_folders.popleft()
            if place.real in self.seen or any(_contains(place.real, o) for o in place.origins):
                self.repeats.append(f"{place.below}/")
            else:
                self._walk(place)
        self._keep_first_names(self._new_links())
        return FileTree(
            tuple(sorted(self.files)), tuple(sorted(self.repeats)), dict(self.passed_over)
        )

    def _walk(self, start: _Place) -> None:
        left = [start]
        while left:
            place = left.pop()
            if place.real in self.seen:  # a link led here before
                self.repeats.append(f"{place.below}/")
                continue
            self.seen.add(place.real)
            with os.scandir(os.path.join(self.root, place.below)) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    below = f"{place.below}/{entry.name}" if place.below else entry.name
                    if not is_hidden(entry.name):
                        self._sort_in(entry, below, place, left)

    def _sort_in(
        self, entry: os.DirEntry[str], below: str, place: _Place, left: list[_Place]
    ) -> None:
        top = bool(place.below) or self.tops is None
        if _is_folder(entry):
            if not top and entry.name not in (self.tops or ()):
                return
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                origins = (*place.origins, place.real)
                self.linked_folders.append(_Place(below, real, origins))
            else:
                left.append(_Place(below, os.path.join(place.real, entry.name), place.origins))
            return
        if not top and "" not in (self.tops or ()):
            return
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in self.suffixes or not _may_be_file(entry):
            known = suffix if len(suffix) <= _LONGEST_SUFFIX else ""
            self.passed_over[known] += 1
        elif entry.is_symlink():
            self.linked_files.append(below)
        else:
            self.files.append(below)
            self.inodes.append(entry.inode() & (2**64 - 1))

    def _new_links(self) -> list[tuple[str, int]]:
        """(link, number of its file's inode) of links to files that no other path led to."""
        found: list[tuple[str, int]] = []
        taken: set[str] = set()
        for file in sorted(self.linked_files):
            real = os.path.realpath(os.path.join(self.root, file))
            parent, name = os.path.split(real)
            is_file = parent in self.seen and not is_hidden(name)
            if real in taken or (is_file and os.path.splitext(name)[1].lower() in self.suffixes):
                self.repeats.append(file)
            else:
                taken.add(real)
                found.append((file, _inode(real)))
        return found

    def _keep_first_names(self, links: Sequence[tuple[str, int]]) -> None:
        """Leaves out further names of one file; numbers of inodes only say where to look."""
        linked = np.array([number for _, number in links], dtype=np.uint64)
        every = np.concatenate([np.array(self.inodes, dtype=np.uint64), linked])
        numbers, counts = np.unique(every, return_counts=True)
        shared = set(numbers[counts > 1].tolist()) - {_NO_INODE}
        several = [f for f, n in zip(self.files, self.inodes, strict=True) if n in shared]
        known: set[tuple[int, int]] = set()
        further: set[str] = set()
        for file in (*sorted(several), *(file for file, number in links if number in shared)):
            status = os.stat(os.path.join(self.root, file))
            if (status.st_dev, status.st_ino) in known:
                further.add(file)
            known.add((status.st_dev, status.st_ino))
        self.repeats += sorted(further)
        self.files += [file for file, _ in links]
        if further:
            self.files = [file for file in self.files if file not in further]


def _inode(path: str) -> int:
    """The number of a file's inode."""
    try:
        return os.stat(path).st_ino & (2**64 - 1)
    except OSError:
        return _NO_INODE


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """A file, or a link to one or to nothing; opening a pipe or a device would wait for ever."""
    try:
        return stat.S_ISREG(entry.stat().st_mode) if entry.is_symlink() else entry.is_file()
    except OSError:
        return True


def _contains(folder: str, other: str) -> bool:
    """Whether one real path is that of a folder around the other, or the same."""
    return other == folder or other.startswith(folder.rstrip(os.sep) + os.sep)
