"""Clocks around functions: exclusive, by step, and gone afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from spans import REST, Spans


class Clock:
    """Time that passes only where the code says so."""

    now = 0.0

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Spans, "_clock", lambda self: clock.now)
    return clock


def code(clock: Clock) -> SimpleNamespace:
    """A step that takes 1 s itself and calls what takes 2 s itself and calls what takes 4 s."""

    def inner() -> str:
        clock.spend(4)
        return "found"

    def outer() -> str:
        clock.spend(2)
        return module.inner()

    def step() -> str:
        clock.spend(1)
        return module.outer()

    module = SimpleNamespace(inner=inner, outer=outer, step=step)
    return module


def test_a_span_does_not_count_what_lies_in_another(clock: Clock) -> None:
    module, spans = code(clock), Spans(torch.device("cpu"))
    for name in ("step", "outer", "inner"):
        spans.wrap(module, name, name)
    with spans:
        clock.spend(8)
        assert module.step() == "found"
    assert spans.steps == [{REST: 8, "step": 1, "outer": 2, "inner": 4}]


def test_functions_may_share_a_label_and_calls_begin_steps(clock: Clock) -> None:
    module, spans = code(clock), Spans(torch.device("cpu"))
    spans.wrap(module, "step", "step", step_begins=True)
    spans.wrap(module, "inner", "step")
    with spans:
        clock.spend(8)
        for _ in range(2):
            module.step()
            clock.spend(16)
    assert [dict(step) for step in spans.steps] == [{REST: 8}, *[{"step": 7, REST: 16}] * 2]


def test_an_error_ends_its_span(clock: Clock) -> None:
    spans = Spans(torch.device("cpu"))

    def fail() -> None:
        clock.spend(1)
        raise ValueError

    module = SimpleNamespace(fail=fail)
    spans.wrap(module, "fail", "fail")
    with spans:
        with pytest.raises(ValueError):
            module.fail()
        clock.spend(2)
    assert spans.steps == [{"fail": 1, REST: 2}]


def test_a_context_counts_what_happens_inside(clock: Clock) -> None:
    @contextlib.contextmanager
    def surroundings(value: int) -> Iterator[int]:
        clock.spend(32)
        yield value

    module, spans = SimpleNamespace(surroundings=surroundings), Spans(torch.device("cpu"))
    spans.wrap_surroundings(module, "surroundings", "inside")
    with spans, module.surroundings(3) as value:
        clock.spend(1)
    assert value == 3
    assert spans.steps == [{REST: 32, "inside": 1}]


def test_everything_is_as_before_afterwards(clock: Clock) -> None:
    class Owner:
        @staticmethod
        def still() -> int:
            clock.spend(1)
            return 5

        def method(self) -> int:
            return self.still()

    stored = dict(vars(Owner))
    spans = Spans(torch.device("cpu"))
    spans.wrap(Owner, "still", "still")
    spans.wrap(Owner, "method", "method")
    with spans:
        assert Owner().method() == Owner.still() == 5
    assert dict(vars(Owner)) == stored
    assert spans.steps[0]["still"] == 2
