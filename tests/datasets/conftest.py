"""The scripts of datasets/, called in this process (a new one takes seconds to import torch)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


class Outcome(NamedTuple):
    code: int | str | None
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs a script with some words and tells how it ended and what it printed."""

    def run_script(script: str, *words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(DATASETS / f"{script}.py"), run_name="__main__")
        return Outcome(ended.value.code, *capfd.readouterr())

    return run_script
