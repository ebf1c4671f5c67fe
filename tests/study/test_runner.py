"""Scheduling: what runs when, what a failure leaves out, and how a killed study goes on.

Studies to be killed are processes of their own; the others run here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from scripts import ROOT

from ndavid.config import to_yaml
from ndavid.errors import ConfigError
from ndavid.study import runner
from ndavid.study.config import (
    ArmConfig,
    MeasurementConfig,
    MethodConfig,
    PreparationConfig,
    StudyConfig,
)
from ndavid.study.runner import list_steps, run_steps, visible_gpus

Make = Callable[..., StudyConfig]

# The recipe itself, with steps that need none of what it would import for them.
DRIVER = """
import runpy, sys
if __name__ == "__main__":
    from ndavid.study import steps
    steps.PRELOADED = ("ndavid.study.runner",)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(config: StudyConfig, folder: Path) -> subprocess.Popen[str]:
    """A study in a process, and a process group, of its own."""
    (folder / "driver.py").write_text(DRIVER)
    (folder / "study.yaml").write_text(to_yaml(config))
    return subprocess.Popen(
        [
            sys.executable,
            str(folder / "driver.py"),
            str(ROOT / "recipes" / "study.py"),
            f"--config={folder / 'study.yaml'}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def nothing_left(process: subprocess.Popen[str]) -> Iterator[None]:
    """All that a study started is gone soon after the block."""
    started = psutil.Process(process.pid).children(recursive=True)
    yield
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()  # what still runs would say nothing until it ends
            raise AssertionError(process.communicate()[0])
        time.sleep(0.01)


def trace(config: StudyConfig, arm: str, seed: int = 0) -> list[str]:
    """The steps that a training executed."""
    file = Path(config.output) / "walk" / arm / f"seed{seed}" / "training" / "trace.txt"
    return file.read_text().splitlines() if file.exists() else []


def executed(config: StudyConfig, arm: str, seed: int = 0) -> list[int]:
    return [int(line.split()[0]) for line in trace(config, arm, seed)]


def results(config: StudyConfig) -> dict[str, str]:
    """What was measured, by place: the values and each item's."""
    found = {}
    for file in sorted(Path(config.output).rglob("result.json")):
        name = str(file.parent.relative_to(config.output))
        metrics = json.loads(file.read_text())["metrics"]
        found[name] = json.dumps(metrics) + (file.parent / "outcomes.csv").read_text()
    return found


def records(config: StudyConfig) -> dict[Path, int]:
    """When each step's record was written."""
    return {p: p.stat().st_mtime_ns for p in Path(config.output).rglob("step.json")}


def paused(config: StudyConfig, seconds: float, steps: int) -> StudyConfig:
    config.methods[0].overrides = {"steps": steps, "pause": seconds}
    return config


def test_all_steps_run_once_and_a_second_start_repeats_none(
    tiny_study: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_study(seeds=[0, 1])
    progress = run_steps(config)
    assert (progress.done, progress.total, progress.failures) == (8, 8, [])
    before = records(config)
    assert len(before) == 8 and len(results(config)) == 4
    assert len(set(results(config).values())) == 4
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "8 steps, 0 done before; 1 at once"
    # Whole seeds first, and a training before what is measured of it.
    assert [line.split()[1].removeprefix(f"{config.output}/walk/") for line in said[1:]] == [
        f"{arm}/seed{seed}/{step}:"
        for seed in (0, 1)
        for arm in ("none", "more")
        for step in ("training", "toy")
    ]
    again = run_steps(config)
    assert (again.done, again.failures) == (8, []) and records(config) == before
    assert capsys.readouterr().out == "8 steps, 8 done before; 1 at once\n"
    assert executed(config, "none") == [1, 2, 3]


def test_a_failing_training_is_told_and_what_depends_on_it_left_out(
    tiny_study: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ArmConfig(name="broken", overrides={"nda.spec": "broken"})
    config = tiny_study(arms=[broken, ArmConfig(name="none")], jobs=2)
    progress = run_steps(config)
    ((step, reason),) = progress.failures
    assert step.folder.parts[-3:] == ("broken", "seed0", "training")
    assert reason == "exit code 1: error: nothing to learn"
    assert (
        f"{step.folder}: FAILED: {reason} (see {step.folder}/step.log)" in capsys.readouterr().out
    )
    assert [*results(config)] == ["walk/none/seed0/toy"]
    config.arms[0].overrides = {"nda.spec": "mended"}
    assert not run_steps(config).failures
    assert len(results(config)) == 2 and executed(config, "none") == [1, 2, 3]


def test_a_measurement_that_dies_with_half_a_result_is_repeated(tiny_study: Make) -> None:
    script = tiny_study().measurements[0].script
    config = tiny_study(
        measurements=[
            MeasurementConfig(name="first", script=script, overrides={"die_once": "yes"}),
            MeasurementConfig(name="second", script=script),
        ]
    )
    progress = run_steps(config)
    assert [reason for _, reason in progress.failures] == ["killed by SIGKILL"] * 2
    half = Path(config.output) / "walk/none/seed0/first/result.json"
    assert half.read_text() == '{"schema": 1, "metr'
    before = records(config)
    assert sorted(p.parent.name for p in before) == ["second", "second", "training", "training"]
    assert not run_steps(config).failures
    after = records(config)
    assert len(after) == 6 and before.items() <= after.items()
    assert len(results(config)) == 4


def test_a_failing_preparation_ends_the_study(tiny_study: Make, tmp_path: Path) -> None:
    script = tmp_path / "prepare.py"
    script.write_text("raise SystemExit('no videos')")
    config = tiny_study(preparations=[PreparationConfig(name="clips", script=str(script))])
    progress = run_steps(config)
    assert [reason for _, reason in progress.failures] == [
        "exit code 1: no videos"
    ] and progress.done == 1
    script.write_text("")
    assert not run_steps(config).failures and len(results(config)) == 2


def test_another_command_or_a_missing_file_is_refused_before_anything_runs(
    tiny_study: Make, tmp_path: Path
) -> None:
    config = tiny_study()
    run_steps(config)
    before = records(config)
    other = [ArmConfig(name="new"), ArmConfig(name="none", overrides={"nda.spec": "x"})]
    with pytest.raises(ConfigError, match="none/seed0/training was made with another command"):
        run_steps(tiny_study(arms=other))
    with pytest.raises(ConfigError, match=r"no file .*gone\.py here"):
        run_steps(tiny_study(methods=[MethodConfig(name="walk", recipe="gone.py")]))
    config.methods[0].config = "gone.yaml"
    with pytest.raises(ConfigError, match=r"no file gone\.yaml here"):
        run_steps(config)
    with pytest.raises(ConfigError, match="training: no script is given"):
        run_steps(tiny_study(methods=[MethodConfig(name="w")]))
    assert records(config) == before


def test_steps_are_listed_with_what_is_done(tiny_study: Make) -> None:
    config = tiny_study()
    run_steps(config)
    config.arms.append(ArmConfig(name="third"))
    lines = list_steps(config).splitlines()
    assert [line[:5] for line in lines[:-1]] == ["done "] * 4 + ["to do"] * 2
    assert lines[4].startswith(f"to do  python {config.methods[0].recipe} --run.output ")
    assert lines[-1] == "6 steps, 4 done"


def test_cells_run_side_by_side_each_on_the_gpu_of_its_slot(
    tiny_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "visible_gpus", lambda: ["4", "7"])
    config = paused(tiny_study(seeds=[0, 1, 2], jobs=0), 0.1, steps=3)
    assert not run_steps(config).failures
    used = [
        {line.split()[2] for line in trace(config, arm, seed)}
        for seed in (0, 1, 2)
        for arm in ("none", "more")
    ]
    assert all(len(gpus) == 1 for gpus in used)
    assert sorted(gpu for gpus in used for gpu in gpus) == ["4"] * 3 + ["7"] * 3


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        (None, 0, []),
        (None, 2, ["0", "1"]),
        ("", 0, []),
        ("3,1", 2, ["3", "1"]),
        ("GPU-8c6b", 1, ["GPU-8c6b"]),
        ("0,9", 1, ["0"]),  # CUDA takes them up to the first that is not there
    ],
)
def test_gpus_have_the_names_that_cuda_knows(
    given: str | None, count: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == names


def test_threads_decide_how_many_steps_fit_the_cpu(
    tiny_study: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_study(jobs=0)
    run_steps(config)
    monkeypatch.setattr(runner, "_cores", lambda: 8)
    monkeypatch.setattr(runner, "visible_gpus", list)
    capsys.readouterr()
    for threads, jobs in ((1, 8), (3, 2), (16, 1)):
        config.threads = threads
        run_steps(config)
        assert capsys.readouterr().out.endswith(f"; {jobs} at once\n")


def test_a_fault_that_is_no_steps_stops_the_study(
    tiny_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ndavid.study.steps._write_record", full)
    config = tiny_study(seeds=[*range(20)])
    with pytest.raises(OSError, match="No space left"):
        run_steps(config)
    assert sum(bool(executed(config, "none", seed)) for seed in range(20)) < 5


def test_a_killed_study_goes_on_where_it_stopped_and_ends_with_the_same_numbers(
    tiny_study: Make, tmp_path: Path
) -> None:
    arms, waiting = ("none", "more"), "waiting for the process of an earlier start to end"
    config, gate = paused(tiny_study(jobs=2), 0.0, steps=6), tmp_path / "gate"
    config.methods[0].overrides["gate"] = str(gate)
    gate.touch()
    folders = [Path(config.output) / "walk" / arm / "seed0" / "training" for arm in arms]
    killed = start(config, tmp_path)
    wait_for(lambda: min(len(trace(config, arm)) for arm in arms) == 2, killed)
    with nothing_left(killed):
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        again = start(config, tmp_path)
        try:
            # The orphans are still in their step: the new ones wait for them.
            wait_for(lambda: all((folder / "told_to_stop").exists() for folder in folders), again)
            wait_for(lambda: all(waiting in (f / "step.log").read_text() for f in folders), again)
        finally:
            gate.unlink()
        said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    for arm, folder in zip(arms, folders, strict=True):
        assert executed(config, arm) == [*range(1, 7)]
        processes = [line.split()[4] for line in trace(config, arm)]
        assert processes[:3] == processes[:1] * 3 and processes[3:] == processes[-1:] * 3
        assert processes[0] != processes[-1], "the orphan saved its third step and left"
        command, *rest = (folder / "step.log").read_text().splitlines()
        assert rest == [waiting, command]
    whole = paused(tiny_study(output=str(tmp_path / "whole")), 0.0, steps=6)
    run_steps(whole)
    assert results(config) == results(whole)


def test_sigterm_lets_steps_save_and_a_second_study_is_refused(
    tiny_study: Make, tmp_path: Path
) -> None:
    config = paused(tiny_study(jobs=2), 0.1, steps=1000)
    process = start(config, tmp_path)
    wait_for(lambda: min(len(trace(config, a)) for a in ("none", "more")) >= 2, process)
    with pytest.raises(ConfigError, match=rf"in use by process {process.pid} on "):
        run_steps(config)
    with nothing_left(process):
        # To the whole group, as a cluster ends a job.
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "SIGTERM: running steps save, Ctrl-C leaves at once; to go on: python " in said
    assert "FAILED" not in said
    # What there is may be all there will ever be.
    page = Path(config.output) / "tables.md"
    assert said.splitlines()[-1] == str(page) and "**Missing: 4 steps**" in page.read_text()
    assert records(config) == {}
    for arm in ("none", "more"):
        log = Path(config.output) / "walk" / arm / "seed0" / "training"
        step, _ = json.loads((log / "state.json").read_text())
        assert executed(config, arm) == [*range(1, step + 1)]
