"""Waiting for a batch of data loading processes: not for ever, and not deaf to a signal."""

from __future__ import annotations

import errno
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from ndavid.engine.shared_memory import no_room, room
from ndavid.errors import TrainingError

# How long at most a signal has to wait for its answer.
POLL_SECONDS = 1.0
# After this a line says what is being waited for.
PATIENT_SECONDS = 60.0
LIMIT_SECONDS = 1800.0
# Less room than this is no room for a batch of anything.
_SCARCE = 16_000_000


def wait_for_batches(
    loader: DataLoader[Any],
    *,
    limit: float = LIMIT_SECONDS,
    key: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """One pass over a loader; ends early where `stopped` says so during a wait.

    Args:
        loader: read in this process or in others; only others are waited for.
        limit: seconds that one batch may take; 0 for no limit.
        key: of the config, that sets the limit, for the message; empty where none does.
        stopped: asked about once a second.

    Raises:
        TrainingError: no batch came in time, a loading process died, or there is no room for any.
    """
    iterator: Any = _begin(loader)
    if not loader.num_workers:
        yield from iterator
        return
    # Only from here on: torch's own setting holds for the start of an epoch too, where a time that
    # runs out leaves the loader between two states. After one in `next` it may be called again.
    iterator._timeout = POLL_SECONDS
    try:
        while True:
            try:
                batch = _next(iterator, limit, key, stopped)
            except StopIteration:
                return
            yield batch
    finally:
        iterator._timeout = 0


def _begin(loader: DataLoader[Any]) -> Any:
    """Starts the loading processes, whose semaphores lie in shared memory too."""
    try:
        return iter(loader)
    except OSError as error:
        if loader.num_workers and error.errno == errno.ENOSPC:
            raise TrainingError(no_room()) from error
        raise


def _next(iterator: Any, limit: float, key: str, stopped: Callable[[], bool]) -> Any:
    began = time.monotonic()
    told = False
    while True:
        try:
            return next(iterator)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out after"):
                died = _died(error)
                if died is None:
                    raise
                raise died from error
        if stopped():
            raise StopIteration
        waited = time.monotonic() - began
        if limit and waited > limit:
            longer = f"; a longer wait: --{key}, in seconds" if key else ""
            raise TrainingError(
                f"no batch came from the data loading processes in {limit:g} s: "
                f"{_suspicion()}{longer}"
            )
        if waited > PATIENT_SECONDS and not told:
            told = True
            print(f"waiting for data for {waited:.0f} s: {_suspicion()}", file=sys.stderr)


def _died(error: RuntimeError) -> TrainingError | None:
    """What the death of a loading process means, None for another error."""
    if not re.match(r"DataLoader worker \(pid.*(killed|exited unexpectedly)", str(error), re.S):
        return None
    if "Bus error" in str(error):
        return TrainingError(f"a data loading process died: {no_room()}")
    reason = "killed from outside, often for want of memory: lower num_workers"
    return TrainingError(f"a data loading process died ({reason})")


def _suspicion() -> str:
    """The likely reason, as far as it can be seen from here."""
    found = room()
    if found is not None and found[0] < _SCARCE:
        return no_room()
    return "the disk or network that they read is slow or gone, or a decoder hangs"
