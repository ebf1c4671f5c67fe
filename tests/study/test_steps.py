"""One step: its process, its log, its record, and what is left of it when it is killed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ndavid.engine.environment import git_commit
from ndavid.errors import ConfigError, DataError
from ndavid.study import steps
from ndavid.study.plan import Step
from ndavid.study.steps import LOG, RECORD, StepRunner, record_of

WriteStep = Callable[..., Step]


@pytest.fixture
def write_step(tmp_path: Path) -> WriteStep:
    """`write_step(source, *overrides, name)`: a step of its own in tmp_path/name."""

    def write(source: str, *overrides: tuple[str, str], name: str = "step") -> Step:
        script = tmp_path / f"{name}.py"
        script.write_text(source)
        return Step(tmp_path / name, str(script), "", overrides)

    return write


def run(step: Step, *, slot: int = 0, gpus: tuple[str, ...] = ()) -> steps.Ended:
    return StepRunner(threads=1, gpus=gpus)(step, slot)


def log_of(step: Step) -> list[str]:
    return (step.folder / LOG).read_text().splitlines()


def test_a_step_is_a_script_in_its_own_process(write_step: WriteStep, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("name = 'beside'")
    step = write_step(
        "import os, sys, torch, beside\n"
        "print(sys.argv[1:], __name__, beside.name, torch.get_num_threads(), os.getpgrp())\n"
        "print('a warning', file=sys.stderr)\n",
        ("a.b", "c d"),
    )
    ended = run(step)
    assert (ended.code, ended.repeated) == (0, False) and ended.seconds > 0
    command, said, warned = log_of(step)
    assert command == f"$ python {step.script} --a.b 'c d'"
    words, group = said.rsplit(" ", 1)
    assert words == "['--a.b', 'c d'] __main__ beside 1"
    assert int(group) != os.getpgrp()  # Ctrl-C is not for it
    assert warned == "a warning"


def test_a_finished_step_is_not_repeated(write_step: WriteStep) -> None:
    step = write_step("print('once')")
    assert record_of(step) is None
    run(step)
    record = record_of(step)
    assert record is not None and record["command"] == step.command
    assert run(step).repeated
    assert log_of(step).count("once") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ([("a", "1")], [("a", "2")], "--a '1', now '2'"),
        ([("a", "1"), ("b", "2")], [("b", "2")], "--a '1', now without"),
        ([("b", "2")], [("a", "1"), ("b", "2")], "without --a '1'"),
        ([("a", "1"), ("b", "2")], [("b", "2"), ("a", "1")], "in another order"),
    ],
)
def test_a_step_of_another_command_is_refused(
    old: list[tuple[str, str]], new: list[tuple[str, str]], said: str, write_step: WriteStep
) -> None:
    run(write_step("", *old))
    with pytest.raises(ConfigError) as error:
        run(write_step("", *new))
    assert said in str(error.value) and "another command" in str(error.value)


def test_a_step_of_another_config_is_refused(write_step: WriteStep, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("lr: 1")
    bare = write_step("")
    step = Step(bare.folder, bare.script, str(config), ())
    run(step)
    assert run(step).repeated
    config.write_text("lr: 2")
    with pytest.raises(ConfigError, match=r"was made with another content of .*a\.yaml"):
        record_of(step)
    # A record of before they held the digest is believed.
    path = step.folder / RECORD
    record = json.loads(path.read_text())
    del record["config_sha256"]
    path.write_text(json.dumps(record))
    assert record_of(step) == record


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"command": 3}', '{"command": []}'])
def test_a_damaged_record_is_named(record: str, write_step: WriteStep) -> None:
    step = write_step("")
    step.folder.mkdir()
    (step.folder / RECORD).write_text(record)
    with pytest.raises(DataError, match="not the record of a step"):
        record_of(step)


@pytest.mark.parametrize(
    ("source", "code", "reason"),
    [
        ("raise ValueError('of 3 blocks')", 1, "exit code 1: ValueError: of 3 blocks"),
        (
            "import sys; print('error: no clips', file=sys.stderr); sys.exit(2)",
            2,
            "exit code 2: error: no clips",
        ),
        ("print('step 1\\rstep 2\\r\\n  \\n'); raise SystemExit(5)", 5, "exit code 5: step 2"),
        ("import os; print('fine'); os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
        ("import os; print('fine'); os.abort()", -6, "killed by SIGABRT"),
    ],
)
def test_a_failed_step_says_why_and_is_run_again(
    source: str, code: int, reason: str, write_step: WriteStep
) -> None:
    step = write_step(source)
    for _ in range(2):
        ended = run(step)
        assert ended.code == code
        assert ended.reason() == reason
        assert record_of(step) is None
    assert sum(line.startswith("$ python") for line in log_of(step)) == 2


def test_slots_share_the_gpus_in_turn(write_step: WriteStep) -> None:
    seen = []
    for slot in range(3):
        step = write_step("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])", name=str(slot))
        run(step, slot=slot, gpus=("2", "GPU-8c6b"))
        seen.append(log_of(step)[-1])
    assert seen == ["2", "GPU-8c6b", "2"]


def test_without_gpus_a_step_sees_what_the_study_sees(write_step: WriteStep) -> None:
    step = write_step("import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    run(step)
    assert log_of(step)[-1] == str(os.environ.get("CUDA_VISIBLE_DEVICES"))


def test_a_stopped_step_may_save_and_a_stubborn_one_is_killed(
    write_step: WriteStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_SECONDS_TO_SAVE", 1.0)
    polite = write_step(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\n"
        "print('ready'); time.sleep(60)\n"
    )
    assert stop_when_ready(polite).code == 143
    assert log_of(polite)[-1] == "saved"
    stubborn = write_step(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('no'))\n"
        "print('ready')\n"
        "while True: time.sleep(1)\n",
        name="stubborn",
    )
    assert stop_when_ready(stubborn).code == -9
    assert log_of(stubborn)[-1] == "no"


def test_a_second_ctrl_c_does_not_wait_for_a_stubborn_step(write_step: WriteStep) -> None:
    step = write_step(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready')\n"
        "while True: time.sleep(1)\n"
    )
    started = time.monotonic()
    assert stop_when_ready(step, impatient=True).code == -9
    assert time.monotonic() - started < steps._SECONDS_TO_SAVE


def stop_when_ready(step: Step, *, impatient: bool = False) -> steps.Ended:
    """Stops a step as soon as it says that it is ready; nothing more is started then."""
    runner = StepRunner(threads=1)
    ended: list[steps.Ended] = []
    thread = threading.Thread(target=lambda: ended.append(runner(step, 0)))
    thread.start()
    until = time.monotonic() + 30
    while not ((step.folder / LOG).exists() and "ready" in log_of(step)):
        assert time.monotonic() < until
        time.sleep(0.01)
    if impatient:
        threading.Timer(0.2, runner.kill).start()
    runner.stop()
    thread.join()
    assert record_of(step) is None
    before = log_of(step)
    assert runner(step, 0).code and log_of(step) == before
    return ended[0]


def test_the_record_holds_command_and_seconds(write_step: WriteStep) -> None:
    step = write_step("import time; time.sleep(0.3)")
    ended = run(step)
    record = json.loads((step.folder / RECORD).read_text())
    assert record["command"] == [step.script] and record["seconds"] >= 0.3
    assert record["config_sha256"] is None and record["git"] == git_commit()
    assert record["seconds"] == pytest.approx(ended.seconds, abs=0.06)
    assert not list(step.folder.glob("*.partial"))
