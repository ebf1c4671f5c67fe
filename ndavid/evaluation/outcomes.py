"""What became of each tested item, in a table beside a Result: two encoders can be paired by it.

What makes an item hard is common to both encoders, so that differences item by item say more than
two accuracies side by side.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ndavid.errors import DataError
from ndavid.files import write_whole_text

OUTCOMES_FILE = "outcomes.csv"

_COLUMNS = ("fold", "item", "metric", "value")


@dataclass(frozen=True)
class Outcome:
    """One item's part in one metric.

    Attributes:
        item: A video's path relative to the manifest's root, or an image's position as text; of
            images held out of a training set, that in the whole set.
        metric: Name in ``Result.metrics``, e.g. ``top1``, ``R@1`` or ``top1_k20``.
        value: 1.0 right, 0.0 wrong; or a mean over an item's clips.
        fold: Official fold, 1-based; 0 where the dataset has none.
    """

    item: str
    metric: str
    value: float
    fold: int = 0


def outcomes_of(metric: str, items: Sequence[str], values: Iterable[float]) -> list[Outcome]:
    """Returns one Outcome an item, in order.

    Raises:
        ValueError: If there are not as many values as items.
    """
    return [Outcome(item, metric, float(v)) for item, v in zip(items, values, strict=True)]


def write_outcomes(outcomes: Iterable[Outcome], path: str | os.PathLike[str]) -> Path:
    """Writes a row an outcome as CSV, in one step, so that no reader sees half of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((o.fold, o.item, o.metric, o.value) for o in outcomes)
    write_whole_text(target, table.getvalue())
    return target


def read_outcomes(path: str | os.PathLike[str]) -> list[Outcome]:
    """Reads what ``write_outcomes`` wrote, in its order.

    Raises:
        DataError: If the file is missing, no such table, or has a row that is no outcome.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream, strict=True))
    except OSError as error:
        raise DataError(path, f"cannot read the outcomes: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"not a table of outcomes: {error}") from error
    if not rows or tuple(rows[0]) != _COLUMNS:
        raise DataError(path, f"not a table of outcomes: its columns must be {','.join(_COLUMNS)}")
    return [_parsed(row, number, path) for number, row in enumerate(rows[1:], start=1)]


def _parsed(row: list[str], number: int, path: str | os.PathLike[str]) -> Outcome:
    try:
        fold, item, metric, value = row
        outcome = Outcome(item, metric, float(value), int(fold))
    except ValueError as error:
        raise DataError(path, f"row {number} is no outcome: {row}") from error
    if outcome.fold < 0 or not math.isfinite(outcome.value):
        raise DataError(path, f"row {number} needs a fold from 0 and a finite value: {row}")
    return outcome
