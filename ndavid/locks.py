"""One folder, one process: a lock that ends with its process, however that ends.

Two processes that write into one folder replace each other's files, and both end well: the work of
one is lost and nobody is told. `hold` keeps a folder, `hold_file` a single file to be written.

The lock is the system's (flock) on a small hidden file that names who holds it. A process that is
killed loses it at once; on a disk without locks (some network disks) a warning is printed instead.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndavid.errors import ConfigError, DataError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".ndavid.lock"

# What a file system without locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# Between taking the lock and writing its name into the file a holder is nameless.
_NAMELESS_SECONDS = 0.5


@dataclass
class _Held:
    descriptor: int
    uses: int


# By the file's real path: a process that holds a folder may ask for it again, as an evaluation does
# that trains into its own output.
_held: dict[str, _Held] = {}
_guard = threading.RLock()


@contextlib.contextmanager
def hold(
    folder: str | os.PathLike[str], *, way_out: str = "choose another output"
) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made where it is missing.

    A folder that was made for this, and into which nothing was written, is gone afterwards.

    Inside one process it may be nested; only the outermost counts.

    Args:
        folder: where this process is going to write.
        way_out: for the message, what else to do than wait.

    Raises:
        ConfigError: another process holds it (its id, host and since when).
        DataError: the folder cannot be made or written.
    """
    folder = Path(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(folder, f"cannot write there: {error.strerror}") from error
    try:
        with _hold(folder, folder / LOCK_FILE, way_out):
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # refuses a folder that holds anything


@contextlib.contextmanager
def hold_file(
    file: str | os.PathLike[str], *, way_out: str = "choose another output"
) -> Iterator[None]:
    """Keeps other processes from writing one file; its folder is made where it is missing.

    Raises:
        ConfigError, DataError: as `hold`.
    """
    file = Path(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(file.parent, f"cannot write there: {error.strerror}") from error
    with _hold(file, file.with_name(f".{file.name}.lock"), way_out):
        yield


@contextlib.contextmanager
def _hold(target: Path, lock: Path, way_out: str) -> Iterator[None]:
    name = os.path.realpath(lock)
    with _guard:
        held = _held.get(name)
        if held is None:
            held = _held[name] = _Held(_take(target, lock, way_out), 0)
        held.uses += 1
    try:
        yield
    finally:
        with _guard:
            held.uses -= 1
            # A forked child has forgotten what it was copied with, which is its parent's to end.
            if not held.uses and _held.get(name) is held:
                del _held[name]
                _give_back(lock, held.descriptor)


def _take(target: Path, lock: Path, way_out: str) -> int:
    """A descriptor that holds the lock; -1 where the disk has no locks."""
    while True:
        try:
            # Not through a link that somebody planted: the file is written to.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(lock, flags, 0o666)
        except OSError as error:
            raise DataError(target, f"cannot write there: {error.strerror}") from error
        try:
            taken = _try(descriptor, target, lock, way_out)
        except BaseException:
            os.close(descriptor)
            raise
        if taken is not None:
            return descriptor if taken else _closed(descriptor)
        os.close(descriptor)


def _try(descriptor: int, target: Path, lock: Path, way_out: str) -> bool | None:
    """True: the lock is held; False: there are no locks here; None: the file was just removed."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{target} is in use by {_holder(lock)}: wait for it, or {way_out}"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise DataError(target, f"cannot lock it: {error.strerror}") from error
        print(
            f"warning: {printable(str(target))}: this disk has no locks ({error.strerror}); "
            "make sure that no other process writes there",
            file=sys.stderr,
            flush=True,
        )
        return False
    if not _is_still(descriptor, lock):
        return None
    facts = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    # The name is for messages only: a full disk takes nothing from the lock.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(facts).encode(), 0)
    return True


def _is_still(descriptor: int, lock: Path) -> bool:
    """Whether the file that is open is the one that others will find under its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False


def _holder(lock: Path) -> str:
    """Who holds it, as the file says."""
    until = time.monotonic() + _NAMELESS_SECONDS
    while True:
        try:
            facts: dict[str, Any] = json.loads(
                lock.read_text(encoding="utf-8-sig", errors="replace")
            )
            pid, host, since = int(facts["pid"]), str(facts["host"]), str(facts["since"])
            return printable(f"process {pid} on {host} since {since[:40]}")
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() > until:
                return "another process"
            time.sleep(0.02)


def _closed(descriptor: int) -> int:
    os.close(descriptor)
    return -1


def _give_back(lock: Path, descriptor: int) -> None:
    if descriptor < 0:
        return
    # While it is held: whoever opened the file before sees that it is gone, and opens another.
    with contextlib.suppress(OSError):
        if _is_still(descriptor, lock):
            lock.unlink()
    os.close(descriptor)


def _forget_in_child() -> None:
    """A forked child, such as a data loading process, must not hold what its parent held."""
    global _guard
    _guard = threading.RLock()
    for held in _held.values():
        if held.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
