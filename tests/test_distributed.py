"""Two real ranks (torchrun, gloo) against each other and against one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest
import torch

from ndavid.engine import checkpoint, distributed
from ndavid.engine.waiting import LIMIT_SECONDS
from ndavid.errors import CheckpointError

ENGINE = Path(__file__).with_name("engine")


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distributed_toy", ENGINE / "toy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["distributed_toy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two_ranks.py; its scenarios follow each other in one process group."""
    root = tmp_path_factory.mktemp("two_ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(ENGINE / "two_ranks.py"), f"--run.output={root}"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_rank(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One rank with twice the batch."""
    config = toy.ToyConfig(plain=True)
    config.run.output = str(tmp_path_factory.mktemp("one_rank") / "run")
    config.run.batch_size *= 2
    return toy.train(config)


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_two_ranks_are_one_with_twice_the_batch(
    ranks: list[dict[str, Any]], root: Path, one_rank: Any, name: str
) -> None:
    result, method = one_rank
    assert ranks[0][name]["steps"] == result.steps == 15
    head = torch.tensor(ranks[0][name]["head"])
    torch.testing.assert_close(head, method.head.weight.detach(), rtol=1e-4, atol=1e-6)
    for two, one in zip(records(root / name), records(result.output), strict=True):
        compared = {"step", "epoch", "loss", "lr", "grad_norm", "top1", "val/weight"} & one.keys()
        assert {k: two[k] for k in compared} == pytest.approx({k: one[k] for k in compared}, 1e-3)


def test_the_learning_rate_does_not_know_the_number_of_ranks(root: Path, one_rank: Any) -> None:
    rates = [
        [record["lr"] for record in records(output) if "lr" in record]
        for output in (root / "plain", one_rank[0].output)
    ]
    assert rates[0] == rates[1] == pytest.approx([0.01] * 5 + [0.001] * 5 + [0.0001] * 5)


@pytest.mark.parametrize("name", ["plain", "random"])
def test_ranks_end_with_the_same_weights_and_queue(ranks: list[dict[str, Any]], name: str) -> None:
    assert ranks[0][name] == ranks[1][name]


def test_ranks_validate_and_end_with_the_same_running_statistics(
    ranks: list[dict[str, Any]], root: Path
) -> None:
    first, second = (seen["averaged"] for seen in ranks)
    assert [len(seen["at_epoch_ends"]) for seen in (first, second)] == [2, 2]
    assert "encoder.1.running_var" in first["state"]
    assert first["at_epoch_ends"][0][1] is not None
    assert first == second
    saved = checkpoint.load(root / "averaged").model
    assert {name: value.tolist() for name, value in saved.items()} == first["state"]


def test_only_the_first_rank_writes(root: Path) -> None:
    steps = [record["step"] for record in records(root / "random") if "loss" in record]
    assert steps == list(range(1, 16))
    assert len(list((root / "random" / "tensorboard").iterdir())) == 1


def test_nan_on_one_rank_stops_both_with_the_same_words(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["nan_on_one"] == ranks[1]["nan_on_one"]
    assert ranks[0]["nan_on_one"]["error"] == "TrainingError"
    assert "step 8: the loss is nan" in ranks[0]["nan_on_one"]["message"]
    assert "step_6" in ranks[0]["nan_on_one"]["message"]


def test_bad_clips_of_all_ranks_are_counted_on_all(ranks: list[dict[str, Any]], root: Path) -> None:
    assert ranks[0]["bad"]["bad_clips"] == ranks[1]["bad"]["bad_clips"] == 3
    rows = (root / "bad" / "bad_clips.csv").read_text().splitlines()
    assert sorted(row.split(",")[0] for row in rows[1:]) == [f"clip_{i}.mp4" for i in (3, 5, 8)]
    assert ranks[0]["too_bad"] == ranks[1]["too_bad"]
    assert ranks[0]["too_bad"]["error"] == "TrainingError"


def test_a_save_that_fails_on_the_first_rank_is_told_to_all(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["full_disk"] == ranks[1]["full_disk"]
    assert ranks[0]["full_disk"]["error"] == "CheckpointError"


def test_an_error_on_one_rank_stops_both(ranks: list[dict[str, Any]], root: Path) -> None:
    seen = [rank["broken_on_one"] for rank in ranks]
    assert sorted(outcome["error"] for outcome in seen) == ["DataError", "TrainingError"]
    reader = [outcome["error"] for outcome in seen].index("DataError")
    assert seen[1 - reader]["message"] == f"rank {reader}: {seen[reader]['message']}"
    # Its steps until then are on record, though fewer than log_every.
    steps = [record["step"] for record in records(root / "broken_on_one")]
    assert steps == list(range(1, len(steps) + 1))
    first, second = (rank["no_room_for_records"] for rank in ranks)
    # What stands in the place of its records is refused before anything is written.
    assert first["error"] == "ConfigError" and second == first


def test_every_step_is_recorded_and_averaged(root: Path) -> None:
    often = [r for r in records(root / "random") if "loss" in r and r["step"] <= 13]
    seldom = [r for r in records(root / "averaged") if "loss" in r]
    names = ("step", "loss", "top1", "brightness", "grad_norm")
    assert [[r[n] for n in names] for r in seldom] == [[r[n] for n in names] for r in often]


def test_agreements(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        assert seen["agree"] == [1, 5]
        assert seen["from_main"] == {"rank": 0}
        assert seen["gathered"] == ["rank 0", "rank 1"]
        assert seen["mean"] == {"a": 0.5, "b": 2.0}


def test_another_number_of_ranks_does_not_resume(
    toy: ModuleType, ranks: list[dict[str, Any]], root: Path
) -> None:
    config = toy.ToyConfig()
    config.run.output, config.run.epochs = str(root / "random"), 9
    with pytest.raises(CheckpointError, match="world_size 2, this run has 1"):
        toy.train(config)


PATIENCE = """
import os, time
from datetime import timedelta
from ndavid.collectives import rank
from ndavid.engine import distributed

distributed.LIMIT_SECONDS = distributed.SPARE_SECONDS = 1.0
distributed.make_accelerator(device="cpu", data_timeout=2.0)
time.sleep(8 * rank())
try:
    distributed.agree(1)
    print("met", flush=True)
except RuntimeError:
    print("gave up", flush=True)
os._exit(0)
"""


def test_ranks_wait_for_each_other_as_long_as_one_may_wait_for_data(tmp_path: Path) -> None:
    """And longer, so that the one that waits is the one that speaks."""
    assert distributed._patience(5.0).total_seconds() > LIMIT_SECONDS
    assert distributed._patience(9000.0).total_seconds() > 9000
    assert distributed._patience(0).days >= 1
    script = tmp_path / "patience.py"
    script.write_text(PATIENCE)
    job = processes.start(script, [], tmp_path / "run", ranks=2)
    said, _ = job.process.communicate(timeout=60)
    assert "gave up" in said
