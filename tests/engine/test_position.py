"""Where a run is in its data, also after it went on with another number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest

from ndavid.engine import checkpoint
from ndavid.engine.position import Position, describe_move
from ndavid.engine.settings import Settings
from ndavid.errors import CheckpointError, ConfigError
from ndavid.evaluation.provenance import training_run
from ndavid.models.weights.checkpoint import open_checkpoint

TOY = Path(__file__).with_name("toy.py")
# 43 samples in batches of 4: ten steps an epoch on one rank, five on two.
LENGTH = {1: 10, 2: 5}


def test_a_run_that_never_moved_counts_epochs_as_always() -> None:
    position = Position(7)
    assert [position.of(step) for step in (0, 6, 7, 20)] == [(0, 0), (0, 6), (1, 0), (2, 6)]
    assert position.total(3, None) == 21 and position.total(3, 5) == 5


def test_a_moved_run_begins_its_epoch_again_and_counts_its_steps_on() -> None:
    now = {"world_size": 2, "num_samples": 40}
    saved = {"world_size": 1, "num_samples": 40, "steps_per_epoch": 10}
    moved = Position(5).moved("c", 17, saved, now)
    assert moved.of(17) == (1, 0) and moved.of(22) == (2, 0)
    assert moved.total(3, None) == 27 and moved.in_epochs(27) == 15
    # And back, in the middle of its last epoch.
    again = Position(10).moved("c", 24, saved | moved.state(), now)
    assert again.of(24) == (2, 0) and again.total(3, None) == 34
    assert [move["epoch"] for move in again.moves] == [1, 2]
    assert Position(10).resumed(again.state()) == again
    assert "steps_per_epoch 10 to 5" in describe_move(moved.moves[0])
    with pytest.raises(CheckpointError, match="older than run"):
        Position(5).moved("c", 17, {"world_size": 1}, now)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_ranks(
    tmp_path: Path, before: int, after: int
) -> None:
    output = tmp_path / "run"
    stop = LENGTH[before] + 3  # in the second of three epochs
    schedule = ["--optim.schedule=cosine", "--optim.milestones=[]", "--pause=0.05"]
    cut = [*schedule, f"--run.save_every_steps={stop}"]
    processes.kill_at(processes.start(TOY, cut, output, ranks=before), stop + 1)
    assert checkpoint.load(output).step == stop

    refused, errors = processes.start(TOY, schedule, output, ranks=after).finish()
    assert refused == 2 and "run.resume_elsewhere" in errors and "Traceback" not in errors

    options = [*schedule, "--run.resume_elsewhere=true"]
    code, errors = processes.start(TOY, options, output, ranks=after).finish()
    assert code == 0, errors
    assert f"went on elsewhere at step {stop} (world_size {before} to {after}" in errors
    end = stop + 2 * LENGTH[after]  # the second epoch from its start, and the third
    records = [record for record in processes.records(output) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, end + 1))
    assert [record["epoch"] for record in records[stop:]] == sorted([1, 2] * LENGTH[after])
    # The rate is that of the epoch: at the second's start it is what it was there.
    assert records[stop]["lr"] == pytest.approx(records[LENGTH[before]]["lr"], rel=1e-3)
    assert records[-1]["lr"] < records[stop]["lr"] < records[0]["lr"]
    saved = checkpoint.load(output)
    assert saved.step == end and saved.state["world_size"] == after
    told = json.loads((output / "environment.json").read_text())["moves"]
    assert [(move["step"], move["epoch"]) for move in told] == [(stop, 1)]
    run = training_run(open_checkpoint(output))
    assert run is not None and run.moves[0].startswith(
        f"The pretraining went on elsewhere at step {stop}"
    )

    # Where it is now, it goes on to the bit without the key; other data is other data anywhere.
    again, _ = processes.start(TOY, schedule, output, ranks=after).finish()
    assert again == 0 and checkpoint.load(output).digest == saved.digest
    other, errors = processes.start(TOY, [*options, "--samples=40"], output, ranks=before).finish()
    assert other == 2 and "samples" in errors


def test_the_global_batch_can_be_kept(tmp_path: Path) -> None:
    output = tmp_path / "run"
    cut = ["--run.save_every_steps=3", "--run.max_steps=3"]
    processes.run(TOY, cut, output)
    options = ["--run.resume_elsewhere=true", "--run.batch_size=2", "--run.epochs=1"]
    processes.run(TOY, options, output, ranks=2)
    assert checkpoint.load(output).step == 3 + 10
    assert checkpoint.load(output).state["steps_per_epoch"] == 10


Make = Callable[..., Any]
# Half the batch, twice as often: an epoch of as many steps.
HALVES = {"run": {"batch_size": 2}, "optim": {"accumulate_steps": 2}}


def begin(toy: ModuleType, make: Make, steps: int = 13) -> Path:
    """A run that stopped in its second epoch."""
    return Path(toy.train(make(run={"max_steps": steps}))[0].output)


def go_on(toy: ModuleType, make: Make, changes: dict[str, dict[str, Any]]) -> Any:
    run = {"resume_elsewhere": True} | changes.get("run", {})
    return toy.train(make(run=run, optim=changes.get("optim")))[0]


def told(output: Path) -> str:
    """What an evaluation of these weights would say of their moves."""
    found = training_run(open_checkpoint(output))
    assert found is not None
    return " ".join(found.moves)


@pytest.mark.parametrize("changes", [{"run": {"batch_size": 3}}, HALVES])
def test_another_batch_size_begins_the_epoch_again_and_is_told(
    toy: ModuleType,
    toy_config: Make,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, dict[str, Any]],
) -> None:
    output = begin(toy, toy_config)
    size = changes["run"]["batch_size"]
    with pytest.raises(ConfigError, match=r"run\.batch_size was 4"):
        toy.train(toy_config(run=changes["run"], optim=changes.get("optim")))
    result = go_on(toy, toy_config, changes)
    length = 43 // size // changes.get("optim", {}).get("accumulate_steps", 1)
    assert result.steps == 13 + 2 * length
    for text in (capsys.readouterr().err, told(output)):
        assert "went on elsewhere at step 13" in text and f"run.batch_size 4 to {size}" in text
        assert "epoch 1 (counted from 0) began again" in text
    # As it is now, it goes on without the key, and it moves no second time.
    toy.train(toy_config(run=changes["run"], optim=changes.get("optim")))
    assert told(output).count("went on elsewhere") == 1


def test_another_precision_goes_on_where_it_was_and_is_told(
    toy: ModuleType, toy_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    output = begin(toy, toy_config)
    assert go_on(toy, toy_config, {"run": {"precision": "bf16"}}).steps == 30
    for text in (capsys.readouterr().err, told(output)):
        assert "went on elsewhere at step 13 (run.precision no to bf16), so" in text
    (move,) = json.loads((output / "environment.json").read_text())["moves"]
    assert move["is"]["run.precision"] == "bf16" and not move["again"]


def test_a_move_that_saved_nothing_is_still_one(toy: ModuleType, toy_config: Make) -> None:
    """The folder's config is of the newest start; the checkpoint knows how it was computed."""
    output = begin(toy, toy_config)
    file = output / "config.yaml"
    file.write_text(file.read_text().replace("precision: 'no'", "precision: bf16"))
    with pytest.raises(ConfigError, match=r"run\.precision was 'no', is 'bf16'"):
        toy.train(toy_config(run={"precision": "bf16"}))
    go_on(toy, toy_config, {"run": {"precision": "bf16"}})
    assert "run.precision no to bf16" in told(output)


@pytest.mark.parametrize(
    "changes", [HALVES, {"run": {"batch_size": 3}}, {"run": {"precision": "bf16"}}]
)
def test_a_checkpoint_that_knows_no_epoch_moves_nowhere(
    toy: ModuleType,
    toy_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, dict[str, Any]],
) -> None:
    with monkeypatch.context() as older:
        older.setattr(Position, "state", lambda self: {})
        older.setattr(Settings, "shared_out", lambda self: {})
        begin(toy, toy_config)
    with pytest.raises(CheckpointError, match=r"is older than run\.resume_elsewhere"):
        go_on(toy, toy_config, changes)
    # With nothing changed it goes on as ever.
    assert go_on(toy, toy_config, {}).steps == 30
