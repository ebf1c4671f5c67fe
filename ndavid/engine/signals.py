"""SIGTERM and SIGINT as a wish to stop at the end of the step, not in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from ndavid.interruption import launched

# A launcher passes Ctrl-C on to processes that the terminal has already told.
SECONDS_OF_ECHO = 3.0


class StopSignal:
    """Context in which the first SIGTERM or SIGINT is noted instead of ending the process.

    The next SIGINT raises KeyboardInterrupt at once. Under a launcher one that comes within three
    seconds is the same Ctrl-C, passed on. Outside the main thread, where Python forbids handlers,
    it does nothing.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            name = signal.Signals(number).name
            # A step may never come, where data is waited for, and none may have been done.
            _tell(f"{name}: stopping after this step, what is done is saved; Ctrl-C leaves at once")
        elif number == signal.SIGINT and not (launched() and now - self._since <= SECONDS_OF_ECHO):
            raise KeyboardInterrupt


def _tell(line: str) -> None:
    """Writes a line on stderr past its buffer, which the signal may have found half written."""
    if os.environ.get("RANK", "0") == "0":
        try:
            os.write(2, f"\n{line}\n".encode())
        except OSError:  # nobody reads it any more
            return


def leave(number: int, kept: str) -> NoReturn:
    """Ends as the signal would have: KeyboardInterrupt for SIGINT, else exit code 128 + number.

    Args:
        number: the signal.
        kept: what there is of the run, for the last line after Ctrl-C.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(kept)
    raise SystemExit(128 + number)


def ignore_in_worker() -> None:
    """Leaves stopping to the parent: a signal to the whole group must not kill the loaders."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
