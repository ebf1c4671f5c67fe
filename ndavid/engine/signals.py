"""SIGTERM and SIGINT as a wish to stop at the end of the step, not in the middle of it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

# A launcher passes Ctrl-C on to processes that the terminal has already told.
IMPATIENT_AFTER_SECONDS = 3.0


class StopSignal:
    """Context in which the first SIGTERM or SIGINT is noted instead of ending the process.

    A SIGINT that comes at least three seconds after another raises KeyboardInterrupt at once.
    Outside the main thread, where Python forbids handlers, it does nothing.
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
        late = self.number and now - self._since > IMPATIENT_AFTER_SECONDS
        if late and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self._since = number, now


def leave(number: int) -> NoReturn:
    """Ends as the signal would have: KeyboardInterrupt for SIGINT, else exit code 128 + number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def ignore_in_worker() -> None:
    """Leaves stopping to the parent: a signal to the whole group must not kill the loaders."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
