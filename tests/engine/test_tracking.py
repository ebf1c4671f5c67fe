"""metrics.jsonl across interruptions, and the line of progress."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ndavid.engine.distributed import make_accelerator
from ndavid.engine.tracking import Tracker, other_trackers, truncate
from ndavid.errors import ConfigError


def write(file: Path, steps: list[int], end: str = "") -> None:
    rows = [
        json.dumps({"step": step, "epoch": 0, "loss": step / 10, "time": 1.0}) for step in steps
    ]
    file.write_text("\n".join(rows) + "\n" + end)


def test_records_after_the_step_and_half_lines_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 5, 10, 15], end='{"step": 20, "lo')
    assert truncate(file, 10) == {"loss": 1.0}
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 5, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_the_last_training_record_is_found_behind_validation(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, [1, 2], end='{"step": 2, "epoch": 0, "val/top1": 0.5}\n')
    assert truncate(file, 2) == {"loss": 0.2}
    assert "val/top1" in file.read_text()


def test_null_comes_back_as_not_a_number(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "epoch": 0, "loss": 1.0, "empty": null}\n')
    assert math.isnan(truncate(file, 1)["empty"])


def test_a_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert truncate(file, 0) == {} and file.read_text() == ""
    write(file, [1, 2])
    assert truncate(file, 0) == {} and file.read_text() == ""


def test_trackers_that_are_always_on_need_no_accelerate_one() -> None:
    assert other_trackers(["tensorboard", "jsonl"]) == []
    with pytest.raises(ConfigError, match="unknown tracker 'mlflw'; did you mean 'mlflow'"):
        other_trackers(["mlflw"])


def test_the_line_of_progress_shows_the_newest_knn_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndavid.engine.tracking.SECONDS_BETWEEN_LINES", 0.0)
    accelerator = make_accelerator(device="cpu")
    tracker = Tracker(tmp_path, start=0, total=3, is_main=True, accelerator=accelerator, config={})
    timings = {"samples_per_s": 8.0, "seconds_data": 0.1, "seconds_compute": 0.9}
    for step, validation in enumerate([{}, {"val/knn_top1": 0.25}, {"val/knn_top1": 0.5}], 1):
        if validation:
            tracker.log(step, 0, validation)
        tracker.log(step, 0, {"loss": 1.0})
        tracker.advance(step, {"loss": 1.0} | timings)
    tracker.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert ["knn_top1" in line for line in lines] == [False, True, True]
    assert "val/knn_top1 0.2500" in lines[1] and "val/knn_top1 0.5000" in lines[2]
    assert "val/knn_top1" in (tmp_path / "metrics.jsonl").read_text()
