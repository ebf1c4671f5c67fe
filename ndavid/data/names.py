"""Names that come out of data files: lists, manifests, annotations, indices and archives.

Whoever wrote such a file may not choose what is read, overwritten or started outside the folder it
speaks of. So each name is checked once, where it is read: of a file by `check_name`, of a class or
a source by `check_text`.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

from ndavid.errors import DataError

# Control characters, line and paragraph separators, and bytes that are no text in the system's
# encoding: a CSV or a text file cannot carry them, and a terminal obeys some of them.
_REFUSED = frozenset({"Cc", "Zl", "Zp", "Cs"})
# These turn letters around, so that a name shows as another one ("gpj.exe" as "exe.jpg"). Others of
# their category, such as joiners, stand in names of many languages and in emoji.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def fault_of_name(name: str) -> str | None:
    """Why a relative path out of a data file cannot be used; None where it can.

    A name is refused that is empty, absolute (on Unix or on Windows), climbs with `..`, or holds a
    control character or a byte that is no text.
    """
    if not name.strip():
        return "a name is empty"
    if _is_unprintable(name):
        return f"the name {name!r} holds a control character"
    path = PurePosixPath(name.replace("\\", "/"))
    windows = PureWindowsPath(name)
    # "1:23.mp4" is a plain name but on Windows, where it means a file of the drive "1:".
    if path.is_absolute() or windows.is_absolute() or (windows.drive and os.name == "nt"):
        return f"the name {name!r} is absolute: only names inside the folder are read"
    if ".." in path.parts:
        return f"the name {name!r} leaves its folder"
    return None


def check_name(origin: str | os.PathLike[str], where: str, name: str) -> str:
    """Return `name`, a relative path that `origin` gives at `where` ("line 3"), once it is safe.

    Raises:
        DataError: it names `origin`, `where` and what is wrong (see `fault_of_name`).
    """
    fault = fault_of_name(name)
    if fault is not None:
        raise DataError(origin, f"{where}: {fault}" if where else fault)
    return name


def check_text(origin: str | os.PathLike[str], where: str, what: str, text: str) -> str:
    """Return `text`, a name that is never part of a path (`what`: "class name"), once it is safe.

    Raises:
        DataError: it is empty, or holds a control character or a byte that is no text.
    """
    place = f"{where}: " if where else ""
    fault = fault_of_text(what, text)
    if fault is not None:
        raise DataError(origin, f"{place}{fault}")
    return text


def fault_of_text(what: str, text: str) -> str | None:
    """Why `text`, a name that is never part of a path, cannot be used; None where it can."""
    if not text.strip():
        return f"a {what} is empty"
    if _is_unprintable(text):
        return f"the {what} {text!r} holds a control character"
    return None


def _is_unprintable(name: str) -> bool:
    # The quick answer for nearly all: there may be a million names.
    return not name.isprintable() and any(
        letter in _DIRECTIONS or unicodedata.category(letter) in _REFUSED for letter in name
    )
