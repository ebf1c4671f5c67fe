"""One command for all parts: what fails is reported, the rest goes on, one table at the end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import machine
import part
import psutil
import pytest
import run
from timing import limited

GOOD = """
import json, sys
path = sys.argv[sys.argv.index("--output") + 1]
rows = [
    {"name": "a / b", "ratio": 1.25, "spread": [1.0, 1.5], "limit": 1.3, "ok": True},
    {"name": "c | d", "ratio": 1.5, "limit": 2, "at_least": True, "ok": False, "note": "slow"},
    {"name": "nothing", "ratio": None, "note": "not here"},
]
json.dump({"ratios": rows}, open(path, "w"))
"""
BAD = "print('so far so good')\nraise SystemExit('the disk is full')"
SILENT = "print('done')"
HANGING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
alone = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
)
deaf = subprocess.Popen(
    [sys.executable, "-c", "import signal as s, time; s.signal(15, s.SIG_IGN); time.sleep(60)"],
    start_new_session=True,
)
starter = "import subprocess as s, sys; print(s.Popen(['sleep', '60'], stdout=2).pid)"
orphan = subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True).stdout
print(child.pid, alone.pid, deaf.pid, orphan, flush=True)
time.sleep(60)
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of parts that stand in for the real ones; returns where their reports go."""
    scripts = {"good": GOOD, "bad": BAD, "silent": SILENT, "hanging": HANGING}
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "PARTS", {name: run.Part((), f"about {name}") for name in scripts})
    output = tmp_path / "out"
    output.mkdir()
    return output


def test_every_part_is_a_script_beside_it() -> None:
    for name in run.PARTS:
        text = (run.HERE / f"{name}.py").read_text()
        assert "def main() ->" in text and text.startswith('"""'), name


def test_a_parts_report_comes_back(parts: Path) -> None:
    outcome = run.run_part("good", parts)
    assert "problem" not in outcome
    assert outcome["report"]["ratios"][0]["ratio"] == 1.25
    assert outcome["seconds"] > 0


def test_a_failing_part_says_why(parts: Path) -> None:
    assert "exit code 1: the disk is full" in run.run_part("bad", parts)["problem"]


def test_a_part_without_a_report_failed(parts: Path) -> None:
    (parts / "silent.json").write_text('{"ratios": []}')  # an older run's
    assert "no report" in run.run_part("silent", parts)["problem"]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_hanging_part_is_ended_with_all_it_started(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SECONDS_TO_LEAVE", 1.0)
    outcome = run.run_part("hanging", parts, timeout=2.5)
    assert "not done after 2 s" in outcome["problem"]
    started = [int(pid) for pid in (parts / "hanging.log").read_text().split()]
    assert len(started) == 4
    until = time.monotonic() + 10
    while not all(map(gone, started)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert outcome["seconds"] < 10


def test_the_rest_goes_on_and_one_table_ends_it(
    parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(parts), "--parts", "bad", "good"])
    assert run.main() == 1
    shown = capsys.readouterr().out
    assert "FAILED: exit code 1" in shown
    assert "1 of 2 limits hold" in shown and "parts that failed: bad" in shown
    report = json.loads((parts / "bench.json").read_text())
    assert [row["part"] for row in report["ratios"]] == ["good"] * 3
    assert report["machine"]["cores"] == machine.facts()["cores"]
    page = (parts / "bench.md").read_text()
    assert "| good | a / b | 1.25 | 1 to 1.5 | <= 1.3 | yes |  |" in page
    assert "| good | c / d | 1.5 |  | >= 2 | NO | slow |" in page
    assert "| good | nothing | - |  |  |  | not here |" in page


def test_all_well_is_exit_code_zero(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(parts), "--parts", "good"])
    assert run.main() == 0


def test_a_part_writes_the_machine_and_the_ratios(tmp_path: Path) -> None:
    output = tmp_path / "new" / "part.json"
    rows = [limited("a / b", 2.0, [1.0, 3.0], 1.5)]
    part.write(output, rows, batch=3)
    found = json.loads(output.read_text())
    assert found["batch"] == 3 and found["ratios"] == rows
    assert found["machine"]["versions"]["torch"]
    part.write(None, rows)  # nobody asked


def test_missed_limits_show() -> None:
    assert part.verdict(limited("x", 2.0, limit=1.5)) == "<= 1.5  MISSED"
    assert part.verdict(limited("x", 2.0, limit=1.5, at_least=True)) == ">= 1.5"
    assert part.verdict(limited("x", 2.0)) == ""


def test_flags_are_those_that_matter(tmp_path: Path) -> None:
    assert set(machine.cpu_flags()) <= set(machine.FLAGS)
    memory = machine.memory_gib()
    assert memory is None or abs(memory - psutil.virtual_memory().total / 2**30) < 1
