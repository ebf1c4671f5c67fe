"""How far a loop is: a bar on a terminal, and where there is none a line now and then.

A log of a cluster job or of ``nohup`` is read while the job runs: it gets a line at the first
step after ten seconds, one about every ten seconds from then on, and one at the end.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts what is done of ``total``; a context that closes the bar.

    Args:
        total: how many there are.
        description: what is being done, such as "train features".
        unit: what is counted, in the singular.
        silent: shows nothing; for every rank but the first.
        begun: how many were done before, by an earlier attempt.

    ``note`` is a word or two that stand beside the count, such as how many were bad.
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        unit: str = "it",
        silent: bool = False,
        begun: int = 0,
    ) -> None:
        self.total = total
        self.description = description
        self.unit = unit
        self.begun = self.done = begun
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._bar: tqdm[Any] | None = None
        self._lines = not silent and not sys.stderr.isatty()
        if not silent and not self._lines:
            self._bar = tqdm(
                total=total, initial=begun, desc=description, unit=unit, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(count)
        elif self._lines and count and self._due():
            print(self._line(), file=sys.stderr, flush=True)

    def _due(self) -> bool:
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or self.done >= self.total
        if due:
            self._last_line = now
        return due

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self.begun) / seconds
        left = max(self.total - self.done, 0) / rate
        end = f"left {_clock(left)}" if self.done < self.total else f"took {_clock(seconds)}"
        return (
            f"{self.description}  {self.unit} {self.done}/{self.total}  "
            f"{rate:.3g} {self.unit}/s  {end}{self.note and f'  {self.note}'}"
        )


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds; hours may be more than a day's."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
