"""Where the time of real code goes: functions of it are wrapped with a clock while it runs.

Time is exclusive: what a wrapped function calls that is wrapped too counts for the inner one only,
so that the spans of a step add up to the step. What is in no span is "rest".
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch

REST = "rest"


class Spans:
    """Wrap functions, then run what calls them inside ``with spans:``; ``steps`` holds the result.

    Args:
        device: on a GPU every span waits for its work, which costs a little and makes it true.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[Counter[str]] = []
        """seconds by label, step by step, in order; the last one may be cut short"""
        self._stack = [REST]
        self._restore = contextlib.ExitStack()
        self._mark = 0.0
        self._now: Counter[str] = Counter()

    def __enter__(self) -> Spans:
        self._mark = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._charge()
        self.steps.append(self._now)
        self._restore.close()

    def wrap(self, owner: Any, name: str, label: str, *, step_begins: bool = False) -> None:
        """Counts the time in ``owner.name``, a function of a module or a method of a class.

        Args:
            owner: module or class, in which the name is looked up when it is called.
            name: of the function.
            label: of its time; several functions may share one.
            step_begins: each call begins a new step.
        """
        # As it lies in the class: a static method must stay one.
        stored = vars(owner)[name]
        static = isinstance(stored, staticmethod)
        function: Callable[..., Any] = stored.__func__ if static else stored

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if step_begins:
                self.begin_step()
            with self.span(label):
                return function(*args, **kwargs)

        self._put(owner, name, staticmethod(timed) if static else timed, stored)

    def wrap_surroundings(self, owner: Any, name: str, label: str) -> None:
        """Counts the time that is spent inside the context that ``owner.name`` makes."""
        stored = vars(owner)[name]

        @contextlib.contextmanager
        def timed(*args: Any) -> Iterator[Any]:
            with stored(*args) as inside, self.span(label):
                yield inside

        self._put(owner, name, timed, stored)

    @contextlib.contextmanager
    def span(self, label: str) -> Iterator[None]:
        """Counts the time inside, less that of spans within."""
        self._charge()
        self._stack.append(label)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def begin_step(self) -> None:
        """What follows belongs to another step."""
        self._charge()
        self.steps.append(self._now)
        self._now = Counter()

    def _put(self, owner: Any, name: str, new: Any, old: Any) -> None:
        setattr(owner, name, new)
        self._restore.callback(setattr, owner, name, old)

    def _charge(self) -> None:
        """Gives the time since the last call to what was running."""
        now = self._clock()
        self._now[self._stack[-1]] += now - self._mark
        self._mark = now

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
