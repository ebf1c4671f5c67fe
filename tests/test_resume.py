"""Runs that are killed, told to stop, or fail, and what is left of them."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ndavid.engine import checkpoint

TOY = Path(__file__).with_name("engine") / "toy.py"
SLOW = ["--pause=0.03"]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


processes = _load("processes")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs without a stop, by number of ranks."""
    outputs = {ranks: tmp_path_factory.mktemp(f"ranks{ranks}") / "run" for ranks in (1, 2)}
    for ranks, output in outputs.items():
        processes.run(TOY, SLOW, output, ranks=ranks)
    return outputs


@pytest.mark.parametrize(
    ("workers", "ranks"),
    [(2, 1), (0, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 1), (2, 2)))],
)
def test_killed_at_random_and_resumed_is_the_same_to_the_bit(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    references: dict[int, Path],
    workers: int,
    ranks: int,
) -> None:
    output = tmp_path / "run"
    options = [*SLOW, f"--run.num_workers={workers}"]
    # The same steps each time, so that a failure can be had again; other ones by the variable.
    draw = random.Random(os.environ.get("NDAVID_KILL_SEED", "") + request.node.name)
    steps = [draw.randint(1, 14), draw.randint(16, 28)][: 3 - ranks]
    print(f"killed at {steps}")
    for step in steps:
        processes.kill_at(processes.start(TOY, options, output, ranks=ranks), step)
    processes.run(TOY, options, output, ranks=ranks)
    # The reference ran without workers: their number changes nothing either.
    processes.assert_same_run(output, references[ranks])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_its_processes_saves_and_leaves(
    tmp_path: Path, references: dict[int, Path], number: int, code: int
) -> None:
    output = tmp_path / "run"
    options = [*SLOW, "--run.num_workers=1"]
    # Saved by the signal alone. A launcher often tells every process of the group.
    job = processes.start(TOY, [*options, "--run.save_every_steps=1000"], output)
    job.wait_for_step(4)
    os.killpg(job.process.pid, number)
    returned, errors = job.finish()
    assert returned == code
    stopped = f"stopped by {signal.Signals(number).name}; saved {output}"
    line = next(line for line in errors.splitlines() if line.startswith(stopped))
    assert f"; to go on: python {TOY} --run.output={output} --pause=0.03" in line
    assert "Traceback" not in errors
    step = checkpoint.load(output).step
    assert step == processes.last_step(output) >= 4
    processes.run(TOY, options, output)
    processes.assert_same_run(output, references[1])


def test_a_signal_to_one_rank_stops_both_at_the_same_step(
    tmp_path: Path, references: dict[int, Path]
) -> None:
    output = tmp_path / "run"
    job = processes.start(TOY, [*SLOW, "--run.save_every_steps=1000"], output, ranks=2)
    job.wait_for_step(4)
    job.ranks()[1].send_signal(signal.SIGTERM)
    code, errors = job.finish()
    assert code != 0 and "stopped by SIGTERM" in errors
    assert checkpoint.load(output).step == processes.last_step(output) < 30
    processes.run(TOY, SLOW, output, ranks=2)
    processes.assert_same_run(output, references[2])


def test_a_failed_run_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    output = tmp_path / "run"
    # With workers: they must not keep the process from ending.
    options = ["--nan_step=7", "--run.num_workers=2"]
    code, errors = processes.start(TOY, options, output).finish()
    assert code == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: step 8: the loss is nan at learning rate 0.01")
    assert "Traceback" not in errors
    assert checkpoint.load(output).step == 6
