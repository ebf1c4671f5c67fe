"""Results as JSON: what goes in comes out, and what is no result is refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.intervals import wilson
from ndavid.evaluation.outcomes import Outcome, write_outcomes
from ndavid.evaluation.protocol import Protocol, Result, load_result, mean_over_folds
from ndavid.evaluation.report import Report, write_report


def result(fold: int, correct: int, total: int) -> Result:
    return Result(
        task="finetune",
        metrics={"top1": wilson(correct, total)},
        protocol=Protocol(folds=[fold], num_videos=total, num_short=fold, notes=["a note"]),
        chance=0.1,
        seconds=2.0,
        details={"classes": ["a", "b"], "value": fold},
    )


@pytest.mark.parametrize("name", ["result.json", "outcomes.csv", "report.html"])
def test_a_link_that_was_planted_is_not_written_through(tmp_path: Path, name: str) -> None:
    write = {
        "result.json": result(1, 3, 4).save,
        "outcomes.csv": lambda path: write_outcomes([Outcome("a", "top1", 1.0)], path),
        "report.html": lambda path: write_report(Report(title="t"), path),
    }[name]
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f"{name}.{os.getpid()}.partial").symlink_to(tmp_path / "precious")
    assert write(tmp_path / name).stat().st_size > 0
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    written = result(1, 30, 40)
    path = written.save(tmp_path / "new" / "result.json")
    assert load_result(path) == written
    assert os.listdir(path.parent) == ["result.json"]
    stored = json.loads(path.read_text())["metrics"]["top1"]
    assert set(stored) == {"value", "n", "low", "high", "percent"}


def test_the_mean_over_folds_keeps_each_fold() -> None:
    folds = [result(1, 30, 40), result(2, 20, 50), result(3, 45, 60)]
    mean = mean_over_folds(folds)
    assert mean.metrics["top1"].value == pytest.approx((30 / 40 + 20 / 50 + 45 / 60) / 3)
    assert mean.metrics["top1"].n == mean.protocol.num_videos == 150
    assert mean.protocol.folds == [1, 2, 3]
    assert mean.protocol.num_short == 6
    assert [entry["fold"] for entry in mean.details["folds"]] == [1, 2, 3]
    assert mean.details["folds"][1]["metrics"]["top1"]["value"] == 0.4
    # Three independent measurements together are surer than any alone.
    width = mean.metrics["top1"].high - mean.metrics["top1"].low
    assert all(width < fold.metrics["top1"].high - fold.metrics["top1"].low for fold in folds)


def test_a_metric_of_some_folds_only_is_named_and_not_averaged() -> None:
    folds = [result(number, 1, 4) for number in (1, 2, 3)]
    for fold in folds:
        fold.metrics = {"R@1": wilson(1, 4), "R@5": wilson(2, 4)}
        fold.chances = {"R@1": 0.1, "R@5": 0.4}
    for fold in folds[1:]:
        fold.metrics["R@50"], fold.chances["R@50"] = wilson(3, 4), 0.9
    for order in (folds, folds[::-1]):
        mean = mean_over_folds(order)
        assert list(mean.metrics) == list(mean.chances) == ["R@1", "R@5"]
        assert mean.chance == pytest.approx(0.1)
        numbers = ", ".join(str(fold.protocol.folds[0]) for fold in order if fold is not folds[0])
        (warning,) = mean.protocol.warnings
        assert warning.startswith(f"R@50 is measured on folds {numbers} of 3 only")
        assert warning in mean.protocol.notes
        kept = [entry["metrics"].get("R@50") for entry in mean.details["folds"]]
        assert sum(entry is not None for entry in kept) == 2
    folds[0].metrics = {"top1": wilson(1, 4)}
    with pytest.raises(ConfigError, match="no metric in common"):
        mean_over_folds(folds)


def test_one_fold_is_its_own_mean() -> None:
    alone = result(2, 3, 4)
    assert mean_over_folds([alone]) == alone


@pytest.mark.parametrize("numbers", [[3], [1, 3]])
def test_outcomes_get_the_number_of_their_fold(numbers: list[int], tmp_path: Path) -> None:
    folds = [result(number, 1, 2) for number in numbers]
    for fold in folds:
        fold.outcomes = [Outcome("a.mp4", "top1", 1.0), Outcome("b.mp4", "top1", 0.0)]
    mean = mean_over_folds(folds)
    assert [(outcome.fold, outcome.item) for outcome in mean.outcomes] == [
        (number, item) for number in numbers for item in ("a.mp4", "b.mp4")
    ]
    # They stay out of the JSON, which then says the same as the Result that has them.
    path = mean.save(tmp_path / "result.json")
    assert "outcomes" not in json.loads(path.read_text())
    assert load_result(path) == mean and load_result(path).outcomes == []


def test_no_fold_has_no_mean() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        mean_over_folds([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a result"),
        ("[1]", "not a result"),
        ('{"schema": 1}', "not a result"),
        ('{"schema": 99}', "schema 99"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_result(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_result_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_result(tmp_path / "result.json")
