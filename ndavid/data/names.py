"""Names that come out of data files: lists, manifests, annotations, indices and archives.

Whoever wrote such a file may not choose what is read, overwritten or started outside the folder it
speaks of. So each name is checked once, where it is read, by `check_name`.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

from ndavid.errors import DataError

# Control characters, line and paragraph separators, and bytes that are no text in the system's
# encoding: a CSV or a text file cannot carry them, and a terminal obeys some of them.
_REFUSED = frozenset({"Cc", "Zl", "Zp", "Cs"})


def fault_of_name(name: str) -> str | None:
    """Why a relative path out of a data file cannot be used; None where it can.

    A name is refused that is empty, absolute (on Unix or on Windows), climbs with `..`, or holds a
    control character or a byte that is no text.
    """
    if not name.strip():
        return "a name is empty"
    if any(unicodedata.category(letter) in _REFUSED for letter in name):
        return f"the name {name!r} holds a control character"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive:
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
