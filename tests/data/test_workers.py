"""Work in processes survives a worker that dies, and errors come through."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from ndavid.data import workers
from ndavid.data.workers import Crashed, run_all

# `eval` is the function, since a spawned worker must be able to import it.
DIE = "__import__('os')._exit(11)"  # what a segmentation fault in a decoder amounts to


def test_without_workers_the_work_is_done_here():
    assert list(run_all(eval, ["1 + 1", "2 + 2"], 0)) == [("1 + 1", 2), ("2 + 2", 4)]


def test_a_worker_that_dies_costs_its_own_item_only():
    items = ["1", "2", DIE, "3", "4", "5", "6", "7"]
    results = dict(run_all(eval, items, 2))
    assert isinstance(results.pop(DIE), Crashed)
    assert results == {item: int(item) for item in items if item != DIE}


def test_a_pool_that_breaks_while_it_is_given_work_loses_none(monkeypatch):
    """Another worker may have died since the last result: then the next item is refused."""

    class Refusing:
        calls = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def submit(self, function, *arguments):
            Refusing.calls += 1
            if Refusing.calls == 2:
                raise BrokenProcessPool("a worker died")
            future = Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(workers, "_pool", lambda num_workers: Refusing())
    assert dict(run_all(int, ["1", "2", "3", "4"], 2)) == {"1": 1, "2": 2, "3": 3, "4": 4}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_exception_is_raised_here(num_workers):
    with pytest.raises(ZeroDivisionError):
        list(run_all(eval, ["1", "1 / 0"], num_workers))
