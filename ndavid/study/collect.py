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
from ndavid.evaluation.protocol import Result, load_result
from ndavid.evaluation.report import RESULT_FILE
from ndavid.evaluation.sources import root_of, sources
from ndavid.files import whole_text
from ndavid.study.caveats import caveats_of
from ndavid.study.config import TRAINING, StudyConfig
from ndavid.study.plan import Cell, Measured, Step
from ndavid.study.steps import record_of

# What of a result's environment may change its numbers; the rest is of the single step.
_ENVIRONMENT = ("device", "python", "platform", "cuda", "cudnn", "packages")
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
        sources: What the items were cut from; 0 where that is unknown, or they are images.
        chance: Of guessing; nan where it has no meaning.
        percent: Whether readers are shown it in per cent.
        training_seconds, seconds: Wall time of the training, and of this measurement; where one
            was stopped and went on, of its last process.
        commit: Of the code that measured, ``-changed`` if files were; where another one trained,
            that one, ``/``, and this one.
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
    sources: int = 0
    chance: float = math.nan
    percent: bool = False
    training_seconds: float
    seconds: float
    commit: str = ""


Key = tuple[str, str, int, str, str]
"""method, arm, seed, measurement, metric"""

Outcomes = Mapping[str, float]
"""An item, after the official folds tested -> what became of it in a metric, as 1.0 for right."""


@dataclass(frozen=True)
class Collected:
    """All that a study has measured so far.

    Attributes:
        rows: In the order of the grid.
        outcomes: Of the metrics that are means over items.
        full_names: (Measurement, metric as the study calls it) -> as results do.
        sources: Measurement -> item -> what it was cut from, where that is known.
        seconds: Wall time of the steps that are done, by name: the cell's, ``/``, and ``training``
            or the measurement's.
        missing: Names of those that are not.
        caveats: What results warn of -> the names of the steps that do.
        unsourced: Names of steps that tested videos of unknown sources.
        commits: Of all code that trained or measured.
        environments: Distinct devices and versions that results were measured with.
    """

    rows: list[Row] = field(default_factory=list)
    outcomes: dict[Key, Outcomes] = field(default_factory=dict)
    full_names: dict[tuple[str, str], str] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    caveats: dict[str, list[str]] = field(default_factory=dict)
    unsourced: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """What is known of a cell's training: its seconds, nan without one, and the code's commit."""

    seconds: float = math.nan
    commit: str = ""


def collect(config: StudyConfig, grid: Sequence[Cell]) -> Collected:
    """Reads every finished step.

    Raises:
        ConfigError: A measurement without one of the metrics that it should show.
        DataError: A result that cannot be read.
    """
    found = Collected()
    known: dict[str, dict[str, str]] = {}
    for cell in grid:
        trained = Trained()
        if cell.training is not None:
            record = _record(found, f"{cell.name}/{TRAINING}", cell.training)
            if record is not None:
                trained = Trained(float(record["seconds"]), _commit_of_training(cell, record))
                _note(found.commits, trained.commit)
                found.rows.extend(_diagnostics(cell, config.diagnostics, trained))
        for measured in cell.measurements:
            name = f"{cell.name}/{measured.config.name}"
            if _record(found, name, measured.step) is not None:
                result = load_result(measured.step.folder / RESULT_FILE)
                root = root_of(result)
                if root not in known:  # read once, whatever the number of results
                    known[root] = sources(result)
                _add(found, cell, measured, trained, result, known[root])
    return found


def _add(
    found: Collected,
    cell: Cell,
    measured: Measured,
    trained: Trained,
    result: Result,
    known: Mapping[str, str],
) -> None:
    """Takes in one result.

    Args:
        found: What there is already.
        cell, measured: What was measured.
        trained: Of the cell.
        result: What was written.
        known: The sources of its items, by path.
    """
    name = f"{cell.name}/{measured.config.name}"
    commit = _commit(result.environment.get("git"))
    _note(found.commits, commit)
    _note(found.environments, {k: v for k, v in result.environment.items() if k in _ENVIRONMENT})
    for text in caveats_of(result.protocol):
        found.caveats.setdefault(text, []).append(name)
    if result.protocol.num_videos and not known:
        found.unsourced.append(name)
    outcomes, paths = _outcomes(measured.step)
    own = {item: known[path] for item, path in paths.items() if path in known}
    found.sources.setdefault(measured.config.name, {}).update(own)
    for metric in measured.config.metrics or result.metrics:
        full = _full_name(found, measured.config.name, metric, result)
        value, chance = result.metrics[full], result.chance_of(full)
        items = outcomes.get(full, {})
        row = Row(
            method=cell.method,
            arm=cell.arm,
            seed=cell.seed,
            measurement=measured.config.name,
            metric=metric,
            value=value.value,
            low=value.low,
            high=value.high,
            n=value.n,
            sources=len({own.get(item, item) for item in items}) if own else 0,
            chance=math.nan if chance is None else chance,
            percent=value.percent,
            training_seconds=trained.seconds,
            seconds=found.seconds[name],
            commit=" / ".join(dict.fromkeys(one for one in (trained.commit, commit) if one)),
        )
        found.rows.append(row)
        if items:
            found.outcomes[key_of(row)] = items


def _full_name(found: Collected, measurement: str, metric: str, result: Result) -> str:
    """What a result calls a metric: "fcd", say, is "fcd" and the digest of whose features it is in.

    Raises:
        ConfigError: There is none, or several, or it was another one in the study's other results.
    """
    names = [name for name in result.metrics if metric in (name, name.partition(" ")[0])]
    if metric in names:
        names = [metric]
    if not names:
        hint = nearest(metric, list(result.metrics))
        raise ConfigError(f"measurement {measurement}: no metric {metric!r}{hint}")
    known = found.full_names.setdefault((measurement, metric), names[0])
    if names != [known]:
        raise ConfigError(
            f"measurement {measurement}: {metric} is several metrics, which cannot be compared: "
            f"{', '.join(dict.fromkeys([known, *names]))}"
        )
    return known


def key_of(row: Row) -> Key:
    """Which value of the grid a row holds."""
    return row.method, row.arm, row.seed, row.measurement, row.metric


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Writes one row a value, under the names of `Row`'s fields."""
    with whole_text(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows([_shown(value) for value in astuple(row)] for row in rows)
    return path


def _shown(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _record(found: Collected, name: str, step: Step) -> dict[str, Any] | None:
    """What a step that has finished left, which is noted."""
    record = record_of(step)
    if record is None:
        found.missing.append(name)
    else:
        found.seconds[name] = float(record["seconds"])
    return record


def _note(known: list[Any], one: Any) -> None:
    if one and one not in known:
        known.append(one)


def _commit_of_training(cell: Cell, record: Mapping[str, Any]) -> str:
    """By the step's record; of a study before those held it, by what the training wrote."""
    if "git" in record or cell.training is None:
        return _commit(record.get("git"))
    try:
        path = cell.training.folder / "environment.json"
        return _commit(json.loads(path.read_text(encoding="utf-8-sig")).get("git"))
    except (OSError, ValueError, AttributeError):
        return ""


def _commit(git: Mapping[str, Any] | None) -> str:
    return f"{git.get('commit', '')}{'-changed' if git.get('changed') else ''}" if git else ""


def _diagnostics(cell: Cell, names: Sequence[str], trained: Trained) -> Iterator[Row]:
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
                    training_seconds=trained.seconds,
                    seconds=trained.seconds,
                    commit=trained.commit,
                )


def _records(path: Path) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot read the metrics of a training: {error}") from error


def _outcomes(step: Step) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """(metric -> its outcomes, of the metrics that have them; item -> its path in the manifest).

    An item that is tested in several folds is one item, with the mean over them. Its name begins
    with all folds that were tested, so that only seeds that were tested on the same ones share it.
    """
    path = step.folder / OUTCOMES_FILE
    if not path.is_file():
        return {}, {}
    rows = read_outcomes(path)
    folds = "+".join(map(str, sorted({row.fold for row in rows})))
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault(row.metric, {}).setdefault(f"{folds}:{row.item}", []).append(row.value)
    means = {
        metric: {item: sum(several) / len(several) for item, several in items.items()}
        for metric, items in values.items()
    }
    return means, {f"{folds}:{row.item}": row.item for row in rows}
