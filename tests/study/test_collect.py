"""From what steps left to rows: values, outcomes, times, and what is missing."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from ndavid.data.manifest import ClipRecord, Manifest
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
        Outcome("b.mp4", "top5", 0.0, fold=2),
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
        ("walk", "none", 0, "toy", "top1"): {"1+2:a.mp4": 0.65},
        ("walk", "none", 0, "toy", "top5"): {"1+2:b.mp4": 0.0},
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


def test_a_metric_is_named_without_the_features_that_it_is_in(
    tiny_study: Make, mark_done: MarkDone
) -> None:
    config = tiny_study()
    config.measurements[0].metrics = ["fid", "top1"]
    first, second = cells(config)

    def leave(cell: Cell, *names: str) -> None:
        finish(cell, mark_done)
        metrics = dict.fromkeys(names, RESULT.metrics["fid"]) | {"top1": RESULT.metrics["top1"]}
        result = dataclasses.replace(RESULT, metrics=metrics)
        result.save(cell.measurements[0].step.folder / "result.json")

    for cell in (first, second):
        leave(cell, "fid 12ab")
    assert [row.metric for row in gather(config).rows] == ["fid", "top1"] * 2
    leave(second, "fid 34cd")
    with pytest.raises(ConfigError, match=r"fid is several metrics.*: fid 12ab, fid 34cd"):
        gather(config)
    leave(second, "fid 12ab", "fid 34cd")
    with pytest.raises(ConfigError, match="fid is several metrics"):
        gather(config)
    for cell in (first, second):
        leave(cell, "fid 12ab", "fid")  # a whole name is itself
    assert len(gather(config).rows) == 4


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
    assert {row.commit for row in rows} == {""}
    assert all(math.isnan(row.chance) and row.training_seconds == 30.0 for row in rows)


def test_folds_tested_tell_items_apart(tiny_study: Make, mark_done: MarkDone) -> None:
    """Seeds of different splits share no item, even where a video is in both test sets."""
    config = tiny_study(seeds=[0, 1])
    first, _, second, _ = cells(config)
    finish(first, mark_done, [Outcome("a.mp4", "top1", 1.0, fold=1)])
    finish(second, mark_done, [Outcome("a.mp4", "top1", 1.0, fold=2)])
    assert [[*items] for items in gather(config).outcomes.values()] == [["1:a.mp4"], ["2:a.mp4"]]


def save(cell: Cell, **changes: object) -> None:
    result = dataclasses.replace(RESULT, **changes)  # type: ignore[arg-type]
    result.save(cell.measurements[0].step.folder / "result.json")


def test_videos_have_the_sources_of_their_manifest(
    tiny_study: Make, mark_done: MarkDone, tmp_path: Path
) -> None:
    config = tiny_study()
    known, unknown = cells(config)
    records = [
        ClipRecord(name, label, group, 9, 25.0, 8, 8, ("test",))
        for name, label, group in (("a", 0, "g1"), ("b", 0, "g1"), ("c", 1, "g1"), ("d", 1, ""))
    ]
    file = Manifest(tmp_path, ("jump", "run"), tuple(records)).write(tmp_path)
    outcomes = [Outcome(name, "top1", 1.0, fold=1) for name in "abcd"]
    for cell, manifest in ((known, str(file)), (unknown, str(tmp_path / "gone"))):
        finish(cell, mark_done, outcomes)
        data = {"source": "clips", "root": manifest}
        save(cell, protocol=Protocol(num_videos=4, manifest=manifest), config={"data": data})
    found = gather(config)
    # A group's name counts within its class, and a clip without one stands alone.
    assert found.sources == {"toy": {"1:a": "0/g1", "1:b": "0/g1", "1:c": "1/g1"}}
    assert [row.sources for row in found.rows if row.metric == "top1"] == [3, 0]
    assert found.unsourced == ["walk/more/seed0/toy"]


def test_leaks_and_what_was_left_out_are_taken_along(tiny_study: Make, mark_done: MarkDone) -> None:
    config = tiny_study()
    for cell in cells(config):
        finish(cell, mark_done)
    leaking, sound = cells(config)
    leak, unsure = "LEAK: 3 of the 4 test videos", "The weights come from x: overlap not checked."
    save(leaking, protocol=Protocol(notes=[leak, unsure, "Gallery: 9."], num_bad=2))
    save(sound, protocol=Protocol(notes=[unsure], num_dropped=1))
    both = ["walk/none/seed0/toy", "walk/more/seed0/toy"]
    assert gather(config).caveats == {
        leak: both[:1],
        unsure: both,
        "Left out as unreadable: 2.": both[:1],
        "Left out as shorter than a clip: 1 videos.": both[1:],
    }


def test_the_code_that_trained_is_told_where_another_measured(
    tiny_study: Make, mark_done: MarkDone
) -> None:
    config = tiny_study()
    for cell in cells(config):
        finish(cell, mark_done)
    new, old = (cell.training for cell in cells(config))
    assert new is not None and old is not None
    record = {"command": new.command, "seconds": 1, "git": {"commit": "def", "changed": False}}
    (new.folder / "step.json").write_text(json.dumps(record))
    # The record of an older study lacks it; the training itself wrote it down.
    (old.folder / "environment.json").write_text(
        json.dumps({"git": {"commit": "abc", "changed": True}})
    )
    found = gather(config)
    assert [row.commit for row in found.rows if row.metric == "top1"] == [
        "def / abc-changed",
        "abc-changed",
    ]
    assert found.commits == ["def", "abc-changed"]


def test_devices_and_versions_are_those_of_the_results(
    tiny_study: Make, mark_done: MarkDone
) -> None:
    config = tiny_study(seeds=[0, 1])
    for cell, device in zip(cells(config), ("cpu", "cpu", "gpu", "cpu"), strict=True):
        finish(cell, mark_done)
        save(cell, environment={"device": device, "seed": cell.seed, "argv": [cell.name]})
    assert gather(config).environments == [{"device": "cpu"}, {"device": "gpu"}]


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
