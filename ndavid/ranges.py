"""Bounds on numbers: of a config, checked where it is made, with the key's name; of commands."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ndavid.errors import ConfigError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; without ``low`` itself where it is ``above``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        # Written so that NaN is in no range.
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return bool(low and high and math.isfinite(value))

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.above else 'at least'} {self.low:g}"
        left, right = "(" if self.above else "[", ")" if self.below else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
AT_LEAST_1 = Range(1)
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, below=True)


def _number_in(kind: Callable[[str], Number], allowed: Range) -> Callable[[str], Number]:
    """What argparse takes as the `type` of an option: reads a number and holds it to a range."""

    def parse(text: str) -> Number:
        value = kind(text)
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # argparse shows it
    return parse


def at_least(low: int) -> Callable[[str], int]:
    """The `type` of an option for whole numbers from `low`."""
    return _number_in(int, Range(low))


percent = _number_in(int, Range(1, 100))
fraction = _number_in(float, SHARE_BELOW_1)


def most_workers() -> int:
    """The most processes that may be asked for: far more than helps, far fewer than harm."""
    return max(64, 4 * (os.cpu_count() or 1))


def check_ranges(config: object, group: str = "", **ranges: Range) -> None:
    """Raises ConfigError on a field out of its range; None passes, of a list each number counts.

    Args:
        config: has the fields.
        group: goes before their names in messages, such as "run".
        ranges: by field.
    """
    for name, allowed in ranges.items():
        value: Any = getattr(config, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number not in allowed:
                key = f"{group}.{name}" if group else name
                raise ConfigError(f"{key} must be {allowed}, not {number}")


def check_workers(config: object, group: str = "", *, name: str = "num_workers") -> None:
    """Raises ConfigError on a number of processes that is negative, or more than is sane here."""
    count, most = getattr(config, name), most_workers()
    key = f"{group}.{name}" if group else name
    if count < 0:
        raise ConfigError(f"{key} must be at least 0, not {count}")
    if count > most:
        raise ConfigError(
            f"{key} must be at most {most} on this machine of {os.cpu_count()} cores, not {count}"
        )
