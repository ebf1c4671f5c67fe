"""What an exception means to the person who started the command, in one line.

What a user can cause (a full disk, a folder that is not there, too little memory, a number out of
range, another process that died) needs a line that says what and where. A fault of the program
(a TypeError, a KeyError) needs its traceback, and `in_one_line` has nothing to say about it.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import tarfile
import traceback
import zipfile
from pathlib import Path

import yaml

from ndavid.errors import NdavidError, printable

DEBUG_OPTION = "--debug"
DEBUG_VARIABLE = "NDAVID_DEBUG"
DEBUG_HELP = f"print the traceback of an error too (as {DEBUG_VARIABLE}=1 in the environment)"

_PACKAGE = Path(__file__).resolve().parent
_LONGEST = 400
_CURES = {
    errno.ENOSPC: "free some space, then give the command again",
    errno.EDQUOT: "free some of your quota, then give the command again",
    errno.EFBIG: "the file may not grow so large here (see ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower num_workers",
    errno.ENFILE: "close other programs, or lower num_workers",
    errno.EAGAIN: "the system starts no more processes: lower num_workers (see ulimit -u)",
    errno.ENOMEM: "lower the batch size or num_workers",
}
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out of memory|Cannot allocate memory"
    r"|Storage size calculation overflow|integer multiplication overflow|Invalid size .* bytes",
    re.I,
)
_LOST_RANK = re.compile(
    r"gloo.*(closed by peer|reset by peer|timed out|timeout|refused|read error|broken pipe)"
    r"|Connection (closed|reset) by (remote )?peer|NCCL.*(remote process exited|abort|timeout)"
    r"|Application timeout caused pair closure|failed to recv, got 0 bytes",
    re.I | re.S,
)
_NO_FILES_LEFT = re.compile(r"Too many open files|received \d+ items of ancdata", re.I)
# Of data that a user gave: files that are not what they should be, values out of range.
_OF_THE_DATA = (
    *(ValueError, OverflowError, EOFError, csv.Error),
    *(yaml.YAMLError, zipfile.BadZipFile, tarfile.TarError),
)


def debugging(words: list[str]) -> bool:
    """Whether tracebacks are asked for; takes ``--debug`` out of the command line's words."""
    if DEBUG_OPTION in words:
        words[:] = [word for word in words if word != DEBUG_OPTION]
        # For the processes that are started too.
        os.environ[DEBUG_VARIABLE] = "1"
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def in_one_line(error: BaseException) -> str | None:
    """What happened, where, and what to do; None for a fault of the program.

    Args:
        error: as it was raised, with its traceback.
    """
    if isinstance(error, NdavidError):
        return _flat(str(error))
    text = _message(error)
    if isinstance(error, MemoryError) or _is_runtime(error, _OUT_OF_MEMORY):
        return (
            f"out of memory ({_short(text) or 'no more is to be had'}): lower the batch size or "
            f"num_workers{_place(error)}"
        )
    if isinstance(error, RuntimeError | ConnectionError) and _is_lost_rank(error, text):
        return (
            "lost contact with another rank, which has ended or cannot be reached; if it said why, "
            f"that stands above; give the command again to go on ({_short(text, 160)})"
        )
    if _is_runtime(error, _NO_FILES_LEFT):
        return f"{_short(text)}: {_CURES[errno.EMFILE]}"
    if isinstance(error, OSError):
        return _system_error(error, text) + _place(error)
    if isinstance(error, _OF_THE_DATA):
        return f"{_short(text) or type(error).__name__}{_place(error)}"
    return None


def _system_error(error: OSError, text: str) -> str:
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or _short(text) or type(error).__name__
    if error.filename is None and error.strerror is None:
        return reason
    said = f"{' -> '.join(_flat(name) for name in files)}: {_flat(reason)}" if files else reason
    cure = _CURES.get(error.errno or 0)
    return f"{said}: {cure}" if cure else said


def _is_runtime(error: BaseException, pattern: re.Pattern[str]) -> bool:
    return isinstance(error, RuntimeError) and bool(pattern.search(str(error)))


def _is_lost_rank(error: BaseException, text: str) -> bool:
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and bool(_LOST_RANK.search(text))


def _message(error: BaseException) -> str:
    """The text; of an exception that crossed from a data loading process its last line."""
    text = str(error)
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        return text.strip().splitlines()[-1]
    return text


def _place(error: BaseException) -> str:
    """The line of ours that met it, for a report, and how to see more."""
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().is_relative_to(_PACKAGE)
    ]
    met = ""
    if ours:
        file = Path(ours[-1].filename).resolve().relative_to(_PACKAGE.parent)
        met = f"{type(error).__name__} at {file}:{ours[-1].lineno}; "
    return f" ({met}{DEBUG_OPTION} shows more)"


def _short(text: str, longest: int = _LONGEST) -> str:
    flat = _flat(text)
    return flat if len(flat) <= longest else f"{flat[:longest]}..."


def _flat(text: str) -> str:
    return printable(" ".join(text.split()))
