"""A study's tables, in markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ndavid.study.collect import Collected, Row
from ndavid.study.config import TRAINING, StudyConfig
from ndavid.study.groups import Design
from ndavid.study.intervals import Interval
from ndavid.study.paired import Difference

_DESIGNS: dict[Design, str] = {
    "crossed": "",
    "nested": "each seed has items of its own (nested)",
    "mixed": "seeds of one split share their items, others do not (mixed)",
    "": "not paired by item",
}


@dataclass(frozen=True)
class Table:
    """A table and what stands above it."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Under a heading of the third level; the first column is text, the others numbers."""
        lines = [f"| {' | '.join(self.header)} |"]
        lines += [f"| --- |{' ---: |' * (len(self.header) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        note = f"{self.note}\n\n" if self.note else ""
        return f"### {self.title}\n\n{note}" + "\n".join(lines) + "\n"


def overview(
    config: StudyConfig, method: str, collected: Collected, found: Sequence[Difference]
) -> Table:
    """All that was measured of a method: arms down, measurements across, means over seeds."""
    rows = _measured(collected, method)
    columns = list(dict.fromkeys((row.measurement, row.metric) for row in rows))
    against = {(d.arm, d.measurement, d.metric): d for d in found if d.method == method}
    seeds = len(config.seeds)
    most = max(Counter((row.arm, row.measurement, row.metric) for row in rows).values(), default=0)

    def shown(cell: Sequence[Row], difference: Difference | None) -> str:
        few = f"{len(cell)} of {seeds} seeds" if len(cell) < most else ""
        return _mean_and_difference(cell, difference, few)

    body = []
    for arm in _arms(config, rows):
        keys = [(arm, *column) for column in columns]
        cells = [[r for r in rows if (r.arm, r.measurement, r.metric) == key] for key in keys]
        body.append((arm, *(shown(c, against.get(k)) for c, k in zip(cells, keys, strict=True))))
    percent = {(row.measurement, row.metric): row.percent for row in rows}
    header = [f"{name}: {metric}{_unit(percent[name, metric])}" for name, metric in columns]
    note = (
        f"Means over seeds and, in brackets, differences to `{config.baseline}`; bold where the "
        "interval over seeds and items (over seeds where there are no items) excludes 0."
    )
    if most < seeds:
        note += f" So far {most} of {seeds} seeds."
    return Table(f"{method}: overview", note, ("arm", *header), tuple(body))


def measurement_tables(
    config: StudyConfig, method: str, collected: Collected, found: Sequence[Difference]
) -> list[Table]:
    """One table a measurement and metric: every arm, and its difference to the baseline."""
    rows = _measured(collected, method)
    tables = []
    for name, metric in dict.fromkeys((row.measurement, row.metric) for row in rows):
        of_table = [row for row in rows if (row.measurement, row.metric) == (name, metric)]
        against = {
            d.arm: d for d in found if (d.method, d.measurement, d.metric) == (method, name, metric)
        }
        tables.append(_table(config, of_table, against, f"{method}, {name}: {metric}"))
    return tables


def training_table(config: StudyConfig, collected: Collected) -> Table | None:
    """The diagnostics of the trainings, first -> last, means over seeds; None without any."""
    rows = [row for row in collected.rows if row.measurement == TRAINING]
    if not rows:
        return None
    names = [n for n in config.diagnostics if any(row.metric == f"{n}_last" for row in rows)]
    body = []
    for method, arm in dict.fromkeys((row.method, row.arm) for row in rows):
        of_arm = [row for row in rows if (row.method, row.arm) == (method, arm)]
        body.append((f"{method}, {arm}", *(_first_to_last(of_arm, name) for name in names)))
    note = "Means over the first and over the last twentieth of the records, and over seeds."
    unknown = [name for name in config.diagnostics if name not in names]
    if unknown:
        note += f" No training recorded {', '.join(unknown)}."
    return Table("Diagnostics", note, ("training", *names), tuple(body))


def _measured(collected: Collected, method: str) -> list[Row]:
    return [row for row in collected.rows if row.method == method and row.measurement != TRAINING]


def _arms(config: StudyConfig, rows: Sequence[Row]) -> list[str]:
    """The arms that have rows, in the config's order."""
    there = {row.arm for row in rows}
    return [arm.name for arm in config.arms if arm.name in there]


def _first_to_last(rows: Sequence[Row], name: str) -> str:
    means = []
    for when in ("first", "last"):
        values = [row.value for row in rows if row.metric == f"{name}_{when}"]
        if not values:
            return "-"
        means.append(f"{sum(values) / len(values):.3g}")
    return " → ".join(means)


def _table(
    config: StudyConfig, rows: Sequence[Row], against: dict[str, Difference], title: str
) -> Table:
    percent = rows[0].percent
    header = (
        "arm",
        f"mean{_unit(percent)}",
        f"seeds {', '.join(map(str, config.seeds))}",
        f"minus {config.baseline}",
        "95% by item",
        "95% by seed",
        "95% both",
    )
    body = []
    for arm in _arms(config, rows):
        values = {row.seed: row.value for row in rows if row.arm == arm}
        mean = _number(sum(values.values()) / len(values), percent)
        singles = [_number(values[s], percent) if s in values else "-" for s in config.seeds]
        body.append((arm, mean, ", ".join(singles), *_against(against.get(arm), percent)))
    return Table(title, _note(config, rows, [*against.values()]), header, tuple(body))


def _note(config: StudyConfig, rows: Sequence[Row], against: Sequence[Difference]) -> str:
    """Items, chance, and what a reader must know of the intervals."""
    ordered = sorted(rows, key=lambda row: config.seeds.index(row.seed))
    parts = [f"n = {', '.join(dict.fromkeys(_size(row) for row in ordered))}"]
    percent = rows[0].percent
    chances = sorted({_number(row.chance, percent) for row in rows if not math.isnan(row.chance)})
    if chances:
        parts.append(f"chance {', '.join(chances)}{_unit(percent)}")
    measured, metric = rows[0].measurement, rows[0].metric
    if any(m.name == measured and metric in m.lower_is_better for m in config.measurements):
        parts.append("lower is better")
    parts += [text for text in dict.fromkeys(_DESIGNS[d.design] for d in against) if text]
    return "; ".join(parts) + "."


def _size(row: Row) -> str:
    return f"{row.n} ({row.sources} sources)" if row.sources else str(row.n)


def _mean_and_difference(rows: Sequence[Row], difference: Difference | None, few: str) -> str:
    """A mean, its difference to the baseline, and that there are few seeds; "-" without any."""
    if not rows:
        return "-"
    percent = rows[0].percent
    mean = _number(sum(row.value for row in rows) / len(rows), percent)
    notes = []
    if difference is not None:
        # The baseline may lack a seed that the arm has.
        on = f" on {len(difference.seeds)}" if len(difference.seeds) < len(rows) else ""
        notes.append(f"{_signed(difference.value, percent)}{on}")
    if few:
        notes.append(few)
    text = f"{mean} ({'; '.join(notes)})" if notes else mean
    return f"**{text}**" if difference is not None and difference.is_told() else text


def _against(difference: Difference | None, percent: bool) -> tuple[str, str, str, str]:
    if difference is None:
        return "", "", "", ""
    return (
        _signed(difference.value, percent),
        _interval(difference.by_item, percent),
        _interval(difference.by_seed, percent),
        _interval(difference.both, percent),
    )


def _interval(interval: Interval | None, percent: bool) -> str:
    if interval is None:
        return "-"
    text = f"[{_signed(interval.low, percent)}, {_signed(interval.high, percent)}]"
    return f"**{text}**" if interval.excludes_zero() else text


def _unit(percent: bool) -> str:
    return " %" if percent else ""


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.3g}"


def _signed(value: float, percent: bool) -> str:
    """With its sign; a zero has none, whichever side it was rounded from."""
    text = f"{100 * value:+.1f}" if percent else f"{value:+.3g}"
    return text[1:] if float(text) == 0 else text
