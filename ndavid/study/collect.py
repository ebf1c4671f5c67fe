"""Reads what a study's steps left: one row a measured value, and per-item outcomes for pairing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from ndavid.config import nearest
from ndavid.engine.tracking import METRICS_FILE
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.outcomes import OUTCOMES_FILE, read_outcomes
from ndavid.evaluation.protocol import load_result
from ndavid.evaluation.report import RESULT_FILE
from ndavid.study.config import TRAINING, StudyConfig
from ndavid.study.plan import Cell, Measured, Step
from ndavid.study.steps import record_of

# Diagnostics are means over the first and over the last twentieth: single steps are noisy.
_PARTS = 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One value of one training.

    Attributes:
        method, arm, seed: Which training.
        measurement: What measured it; ``training`` for diagnostics of the training itself.
        metric: Which of its values.
        value: Fractions, not per cent.
        low, high: 95% interval over the tested items alone; nan where there is none.
        n: Tested items; of diagnostics, the records behind the mean.
        chance: Of guessing; nan where it has no meaning.
        percent: Whether readers are shown it in per cent.
        training_seconds, seconds: Wall time of the training, and of this measurement; where one
            was stopped and went on, of its last process.
        commit: Of the code that measured, ``-changed`` if files were; empty for diagnostics.
    """

    method: str
    arm: str
    seed: int
    measurement: str
    metric: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int
    chance: float = math.nan
    percent: bool = False
    training_seconds: float
    seconds: float
    commit: str = ""


Key = tuple[str, str, int, str, str]
"""method, arm, seed, measurement, metric"""

Outcomes = Mapping[str, float]
"""An item, with its official fold -> what became of it in one metric, such as 1.0 for right."""


@dataclass(frozen=True)
class Collected:
    """All that a study has measured so far.

    Attributes:
        rows: In the order of the grid.
        outcomes: Of the metrics that are means over items.
        seconds: Wall time of the steps that are done, by name: the cell's, ``/``, and ``training``
            or the measurement's.
        missing: Names of those that are not.
    """

    rows: list[Row] = field(default_factory=list)
    outcomes: dict[Key, Outcomes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def collect(config: StudyConfig, grid: Sequence[Cell]) -> Collected:
    """Reads every finished step.

    Raises:
        ConfigError: A measurement without one of the metrics that it should show.
        DataError: A result that cannot be read.
    """
    found = Collected()
    for cell in grid:
        training_seconds = math.nan
        if cell.training is not None and _is_done(found, f"{cell.name}/{TRAINING}", cell.training):
            training_seconds = found.seconds[f"{cell.name}/{TRAINING}"]
            found.rows.extend(_diagnostics(cell, config.diagnostics, training_seconds))
        for measured in cell.measurements:
            name = f"{cell.name}/{measured.config.name}"
            if not _is_done(found, name, measured.step):
                continue
            rows = _measured(cell, measured, training_seconds, found.seconds[name])
            found.rows.extend(rows)
            outcomes = _outcomes(measured.step)
            for row in rows:
                if row.metric in outcomes:
                    found.outcomes[key_of(row)] = outcomes[row.metric]
    return found


def key_of(row: Row) -> Key:
    """Which value of the grid a row holds."""
    return row.method, row.arm, row.seed, row.measurement, row.metric


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Writes one row a value, under the names of `Row`'s fields."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows([_shown(value) for value in astuple(row)] for row in rows)
    return path


def _shown(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _is_done(found: Collected, name: str, step: Step) -> bool:
    """Whether a step has finished, which is noted."""
    record = record_of(step)
    if record is None:
        found.missing.append(name)
        return False
    found.seconds[name] = float(record["seconds"])
    return True


def _measured(cell: Cell, measured: Measured, training_seconds: float, seconds: float) -> list[Row]:
    """The values of one measurement that are to be shown."""
    result = load_result(measured.step.folder / RESULT_FILE)
    for name in measured.config.metrics:
        if name not in result.metrics:
            hint = nearest(name, list(result.metrics))
            raise ConfigError(f"measurement {measured.config.name}: no metric {name!r}{hint}")
    return [
        Row(
            method=cell.method,
            arm=cell.arm,
            seed=cell.seed,
            measurement=measured.config.name,
            metric=name,
            value=result.metrics[name].value,
            low=result.metrics[name].low,
            high=result.metrics[name].high,
            n=result.metrics[name].n,
            chance=math.nan if result.chance is None else result.chance,
            percent=result.metrics[name].percent,
            training_seconds=training_seconds,
            seconds=seconds,
            commit=_commit(result.environment),
        )
        for name in measured.config.metrics or result.metrics
    ]


def _commit(environment: Mapping[str, Any]) -> str:
    git = environment.get("git") or {}
    return f"{git.get('commit', '')}{'-changed' if git.get('changed') else ''}"


def _diagnostics(cell: Cell, names: Sequence[str], seconds: float) -> Iterator[Row]:
    """The means over the first and over the last part of a training's records."""
    if not names or cell.training is None:
        return
    records = _records(cell.training.folder / METRICS_FILE)
    for name in names:
        values = [float(record[name]) for record in records if record.get(name) is not None]
        count = max(len(values) // _PARTS, 1)
        for when, part in (("first", values[:count]), ("last", values[-count:])):
            if part:
                yield Row(
                    method=cell.method,
                    arm=cell.arm,
                    seed=cell.seed,
                    measurement=TRAINING,
                    metric=f"{name}_{when}",
                    value=sum(part) / len(part),
                    n=len(part),
                    training_seconds=seconds,
                    seconds=seconds,
                )


def _records(path: Path) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot read the metrics of a training: {error}") from error


def _outcomes(step: Step) -> dict[str, dict[str, float]]:
    """Metric -> its outcomes, of the metrics that have them."""
    path = step.folder / OUTCOMES_FILE
    found: dict[str, dict[str, float]] = {}
    if path.is_file():
        for outcome in read_outcomes(path):
            item = f"{outcome.fold}:{outcome.item}"
            found.setdefault(outcome.metric, {})[item] = outcome.value
    return found
