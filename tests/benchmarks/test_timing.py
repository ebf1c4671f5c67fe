"""Turns, medians and the verdict on a limit."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timing import Run, in_turns, limited, middle, processor_seconds, ratio_row, stopwatch

seconds = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9)


def test_everything_takes_turns_and_warming_up_is_not_timed() -> None:
    order: list[str] = []
    clock = itertools.count(1)

    def time_of(run: Run) -> float:
        run()
        return float(next(clock))

    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = in_turns(runs, 2, time_of, warmup=1)
    assert order == ["a", "b"] * 3
    assert times == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_processor_time_counts_work() -> None:
    values = list(range(200_000))
    assert 0 < processor_seconds(lambda: sorted(values, key=lambda v: -v)) < 10


def test_several_threads_are_timed_by_the_wall() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert stopwatch(torch.device("cpu")) is processor_seconds
        torch.set_num_threads(2)
        assert stopwatch(torch.device("cpu")) is not processor_seconds
    finally:
        torch.set_num_threads(before)


def test_few_values_are_summed_up_by_their_extremes() -> None:
    assert middle([3.0, 1.0, 2.0]) == (2.0, [1.0, 3.0])
    assert middle([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, [1.5, 4.5])


@given(seconds, st.floats(0.1, 10))
def test_a_ratio_is_taken_turn_by_turn(bottom: list[float], factor: float) -> None:
    row = ratio_row("a / b", [factor * value for value in bottom], bottom)
    assert row["ratio"] == pytest.approx(factor)
    assert row["spread"] == pytest.approx([factor, factor])


def test_a_slow_turn_of_both_does_not_move_the_ratio() -> None:
    assert ratio_row("a / b", [2.0, 20.0, 2.0], [1.0, 10.0, 1.0])["ratio"] == 2.0


@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_limits_are_greatest_or_least_values(ratio: float, limit: float) -> None:
    assert limited("x", ratio, limit=limit)["ok"] == (ratio <= limit)
    assert limited("x", ratio, limit=limit, at_least=True)["ok"] == (ratio >= limit)
    assert "ok" not in limited("x", ratio)


def test_what_was_not_measured_is_not_judged() -> None:
    assert "ok" not in limited("x", None, limit=1.0)
