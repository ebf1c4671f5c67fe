"""Where a run is in its data, also after it went on with another number of processes."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest

from ndavid.engine import checkpoint
from ndavid.engine.position import Position, describe_move
from ndavid.errors import CheckpointError
from ndavid.evaluation.provenance import training_run

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
    run = training_run(str(output))
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
