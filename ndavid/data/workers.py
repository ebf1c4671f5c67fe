"""Many files through many processes, where a file may take its process down.

Native decoders can crash on a damaged file. Then the pool is lost but the run is not: the files
that were under way are tried again one by one, and the one that crashes alone is named.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_handles
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crashed(Generic[Item]):
    """Stands for the result of an item whose worker process died."""

    def __init__(self, item: Item) -> None:
        self.item = item


def run_all(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[tuple[Item, Result | Crashed[Item]]]:
    """Yields (item, result) as results come, in no set order; an exception of `function` is raised.

    Args:
        function: a module-level function, since processes are spawned.
        items: what to call it on, each in some worker.
        num_workers: processes; with 0 the work is done here, and a crash is this process's.
    """
    if num_workers == 0:
        for item in items:
            yield item, function(item)
        return
    left = list(items)
    while left:
        suspects: list[Item] = []
        for item, result in _run_until_broken(function, left, num_workers, suspects):
            yield item, result
        for item in suspects:
            yield item, _run_alone(function, item)


def _run_until_broken(
    function: Callable[[Item], Result],
    left: list[Item],
    num_workers: int,
    suspects: list[Item],
) -> Iterator[tuple[Item, Result]]:
    """Works `left` off from its end; on a crash, moves what was under way to `suspects`."""
    # A few files ahead of each worker keep it busy; more would only lengthen the suspects' list.
    window = 2 * num_workers
    running: dict[Future[Result], Item] = {}
    with _pool(num_workers) as pool:
        try:
            while left or running:
                while left and len(running) < window:
                    # Taken off only then: a broken pool refuses, and the item is still to do.
                    future = pool.submit(function, left[-1])
                    running[future] = left.pop()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            suspects.extend(running.values())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_alone(function: Callable[[Item], Result], item: Item) -> Result | Crashed[Item]:
    with _pool(1) as pool:
        # If not even this comes back, it is not the item's fault: let the error stop the run.
        pool.submit(_do_nothing).result()
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return Crashed(item)


def _do_nothing() -> None:
    """Proves that a worker starts."""


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: FFmpeg and torch may hold threads and locks in this process.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """One thread a worker, and no worker that outlives a parent that was killed."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_handles([parent.sentinel])
        os._exit(1)
