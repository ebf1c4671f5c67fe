"""From what steps left to rows: values, outcomes, times, and what is missing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.outcomes import OUTCOMES_FILE, Outcome, write_outcomes
from ndavid.evaluation.protocol import Protocol, Result
from ndavid.study.collect import Collected, collect, write_csv
from ndavid.study.config import StudyConfig
from ndavid.study.plan import Cell, cells

Make = Callable[..., StudyConfig]
MarkDone = Callable[..., None]

RESULT = Result(
    task="toy",
    metrics={
        "top1": Metric(0.5, 4, 0.2, 0.8),
        "top5": Metric(0.75, 4, 0.3, 0.95),
        "fid": Metric(31.5, 4, 30.0, 33.0, percent=False),
    },
    protocol=Protocol(),
    chance=0.1,
    environment={"git": {"commit": "abc", "changed": True}},
)


def finish(cell: Cell, mark_done: MarkDone, outcomes: list[Outcome] | None = None) -> None:
    """Leaves what the steps of a cell would."""
    if cell.training is not None:
        mark_done(cell.training, 30.0)
        (cell.training.folder / "metrics.jsonl").write_text("")
    for measured in cell.measurements:
        mark_done(measured.step, 2.0)
        RESULT.save(measured.step.folder / "result.json")
        if outcomes is not None:
            write_outcomes(outcomes, measured.step.folder / OUTCOMES_FILE)


def gather(config: StudyConfig) -> Collected:
    return collect(config, cells(config))


def test_a_row_a_value_and_the_outcomes_of_its_items(tiny_study: Make, mark_done: MarkDone) -> None:
    config = tiny_study()
    outcomes = [
        Outcome("a.mp4", "top1", 1.0, fold=1),
        Outcome("a.mp4", "top1", 0.3, fold=2),  # a mean over its clips
        Outcome("b.mp4", "top5", 0.0),
    ]
    finish(cells(config)[0], mark_done, outcomes)
    found = gather(config)
    assert [(row.arm, row.measurement, row.metric, row.value) for row in found.rows] == [
        ("none", "toy", "top1", 0.5),
        ("none", "toy", "top5", 0.75),
        ("none", "toy", "fid", 31.5),
    ]
    row = found.rows[0]
    assert (row.method, row.seed, row.n, row.low, row.high) == ("walk", 0, 4, 0.2, 0.8)
    assert (row.chance, row.percent, found.rows[2].percent) == (0.1, True, False)
    assert (row.training_seconds, row.seconds, row.commit) == (30.0, 2.0, "abc-changed")
    assert found.outcomes == {
        ("walk", "none", 0, "toy", "top1"): {"1:a.mp4": 1.0, "2:a.mp4": 0.3},
        ("walk", "none", 0, "toy", "top5"): {"0:b.mp4": 0.0},
    }
    assert found.seconds == {"walk/none/seed0/training": 30.0, "walk/none/seed0/toy": 2.0}
    assert found.missing == ["walk/more/seed0/training", "walk/more/seed0/toy"]


def test_only_the_metrics_that_were_asked_for(tiny_study: Make, mark_done: MarkDone) -> None:
    config = tiny_study()
    finish(cells(config)[0], mark_done, [Outcome("a", "top1", 1.0), Outcome("a", "top5", 1.0)])
    config.measurements[0].metrics = ["top5"]
    found = gather(config)
    assert [row.metric for row in found.rows] == ["top5"]
    assert [key[-1] for key in found.outcomes] == ["top5"]
    config.measurements[0].metrics = ["tpo1"]
    with pytest.raises(ConfigError, match="measurement toy: no metric 'tpo1'; did you mean 'top1'"):
        gather(config)


def test_a_result_without_a_record_is_half_a_result(tiny_study: Make, mark_done: MarkDone) -> None:
    config = tiny_study()
    cell = cells(config)[0]
    finish(cell, mark_done)
    (cell.measurements[0].step.folder / "step.json").unlink()
    found = gather(config)
    assert found.rows == [] and "walk/none/seed0/toy" in found.missing


def test_damaged_files_are_named(tiny_study: Make, mark_done: MarkDone) -> None:
    config = tiny_study(diagnostics=["loss"])
    cell = cells(config)[0]
    finish(cell, mark_done, [])
    assert cell.training is not None
    for folder, name in (
        (cell.measurements[0].step.folder, OUTCOMES_FILE),
        (cell.measurements[0].step.folder, "result.json"),
        (cell.training.folder, "metrics.jsonl"),
    ):
        (folder / name).write_text("{")
        with pytest.raises(DataError) as error:
            gather(config)
        assert error.value.path == str(folder / name)


def test_diagnostics_are_means_of_the_first_and_last_twentieth(
    tiny_study: Make, mark_done: MarkDone
) -> None:
    config = tiny_study(diagnostics=["loss", "nda_outrank", "unheard_of"])
    cell = cells(config)[0]
    finish(cell, mark_done)
    assert cell.training is not None
    records: list[dict[str, float | None]] = [{"step": k, "loss": float(k)} for k in range(1, 61)]
    records[0]["loss"] = None  # was not finite
    records[59]["nda_outrank"] = 0.25
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (cell.training.folder / "metrics.jsonl").write_text(lines)
    rows = [row for row in gather(config).rows if row.measurement == "training"]
    assert [(row.metric, row.value, row.n) for row in rows] == [
        ("loss_first", 2.5, 2),
        ("loss_last", 59.5, 2),
        ("nda_outrank_first", 0.25, 1),
        ("nda_outrank_last", 0.25, 1),
    ]
    assert all(math.isnan(row.chance) and row.training_seconds == 30.0 for row in rows)


def test_the_table_of_rows(tiny_study: Make, mark_done: MarkDone, tmp_path: Path) -> None:
    config = tiny_study(diagnostics=["loss"])
    cell = cells(config)[0]
    finish(cell, mark_done)
    assert cell.training is not None
    (cell.training.folder / "metrics.jsonl").write_text('{"loss": 2}\n')
    file = write_csv(gather(config).rows, tmp_path / "results.csv")
    with file.open(newline="") as stream:
        first, *_, last = csv.DictReader(stream)
    assert first["metric"] == "loss_first" and first["value"] == "2"
    assert first["chance"] == first["low"] == first["commit"] == ""
    assert (last["metric"], last["value"], last["percent"]) == ("fid", "31.5", "False")
