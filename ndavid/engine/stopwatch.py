"""Where the wall time of training goes: waiting for data, or the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Wall time since the last reading, split into waiting for data and the rest."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured, after something that is not training."""
        self._since = time.perf_counter()
        self._data = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._data += time.perf_counter() - before

    def step_done(self) -> None:
        """Counts one optimizer step."""
        self._steps += 1

    def read(self, samples_per_step: int) -> dict[str, float]:
        """Mean seconds per step since the last reading, and samples per second; restarts."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        steps, data = max(self._steps, 1), self._data
        self.restart()
        return {
            "samples_per_s": samples_per_step * steps / elapsed,
            "seconds_data": data / steps,
            "seconds_compute": (elapsed - data) / steps,
        }
