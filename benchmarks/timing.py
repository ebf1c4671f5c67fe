"""Timing what is compared: everything takes turns in one run, and a ratio is taken turn by turn.

Whatever else the machine does then falls on both sides of a ratio alike. Three clocks:

* processor time of this process, to which other programs cannot add; right on one core only;
* wall time, for several threads or processes;
* on a GPU wall time of work that is waited for.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Run = Callable[[], object]
Stopwatch = Callable[[Run], float]
"""Runs something and tells how many seconds it took."""

K = TypeVar("K", bound=Hashable)


def processor_seconds(run: Run) -> float:
    """Processor time of this process, all its threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def wall_seconds(run: Run) -> float:
    """Time on the clock on the wall."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def stopwatch(device: torch.device) -> Stopwatch:
    """The clock that suits a device and the number of threads that torch was given."""
    if device.type == "cuda":
        return lambda run: wall_seconds(lambda: _wait_for(run, device))
    return processor_seconds if torch.get_num_threads() == 1 else wall_seconds


def _wait_for(run: Run, device: torch.device) -> None:
    run()
    torch.cuda.synchronize(device)


def in_turns(
    runs: Mapping[K, Run], rounds: int, seconds: Stopwatch, *, warmup: int = 2
) -> dict[K, list[float]]:
    """Seconds of every run, ``rounds`` of each, taken in turns.

    Args:
        runs: what is timed, by name.
        rounds: how often each runs and is timed.
        seconds: the clock.
        warmup: how often each runs before, untimed.
    """
    times: dict[K, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            taken = seconds(run)
            if turn >= warmup:
                times[name].append(taken)
    return times


def middle(values: Sequence[float]) -> tuple[float, list[float]]:
    """The median and the quartiles around it; of fewer than five values the extremes instead."""
    if len(values) < 5:
        return statistics.median(values), [min(values), max(values)]
    low, median, high = statistics.quantiles(values, n=4)
    return median, [low, high]


def ratio_row(
    name: str,
    top: Sequence[float],
    bottom: Sequence[float],
    limit: float | None = None,
    *,
    at_least: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """A row of the final table: the median of the ratios taken turn by turn, and their spread.

    Args:
        name: "this / that", with what else identifies it.
        top: seconds of this.
        bottom: seconds of that, of the same turns.
        limit: what was asked for, if anything was.
        at_least: the limit is a least value, not a greatest one.
        note: a few words for the table.
    """
    ratio, spread = middle([a / b for a, b in zip(top, bottom, strict=True)])
    return limited(name, ratio, spread, limit, at_least=at_least, note=note)


def limited(
    name: str,
    ratio: float | None,
    spread: Sequence[float] | None = None,
    limit: float | None = None,
    *,
    at_least: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """A row of the final table, of a ratio that is known already; None where none was measured."""
    row: dict[str, Any] = {"name": name, "ratio": ratio, "note": note}
    row["spread"] = None if spread is None else list(spread)
    if limit is not None and ratio is not None:
        row |= {"limit": limit, "at_least": at_least}
        row["ok"] = ratio >= limit if at_least else ratio <= limit
    return row


def keep_to_one_core() -> set[int]:
    """Pins this process and torch to one core; returns the cores it had."""
    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return set()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    return cores
