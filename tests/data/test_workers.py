"""Work in processes survives a worker that dies, and errors come through."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_exception_is_raised_here(num_workers):
    with pytest.raises(ZeroDivisionError):
        list(run_all(eval, ["1", "1 / 0"], num_workers))
