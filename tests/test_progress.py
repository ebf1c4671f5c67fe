"""Progress where there is no terminal, and where there is one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ndavid import progress
from ndavid.evaluation.classify import per_item
from ndavid.progress import Progress

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_without_a_terminal_a_line_every_ten_seconds_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(240, "test features", unit="item") as shown:
        for _ in range(240):
            clock.now += 0.125
            shown.advance()
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    assert err.splitlines() == [
        "test features  item 80/240  8 item/s  left 00:00:20",
        "test features  item 160/240  8 item/s  left 00:00:10",
        "test features  item 240/240  8 item/s  took 00:00:30",
    ]


def test_a_slow_first_step_is_told_at_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(10, "decoding", unit="file") as shown:
        clock.now += 3600
        shown.advance()
    assert capsys.readouterr().err == "decoding  file 1/10  0.000278 file/s  left 09:00:00\n"


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, "test features", silent=True) as shown:
        clock.now += 60
        shown.advance()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(4, "test features", unit="item") as shown:
        shown.advance(4)
    err = capsys.readouterr().err
    assert "\rtest features: 100%" in err and "4/4" in err and "left" not in err


class Views:
    """Ten items of one view; the last cannot be read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 9:
            return {"index": index, "bad": [("x.mp4", "broken")]}
        image = torch.zeros(3, 2, 2, dtype=torch.uint8)
        return {"index": index, "label": 0, "image": image, "bad": []}


def test_an_evaluation_tells_how_far_it_is_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    per_item(
        lambda views: views.float().flatten(1),
        Views(),
        device=torch.device("cpu"),
        on_bad="skip",
        views_per_batch=4,
        description="test features",
    )
    lines = capsys.readouterr().err.splitlines()
    counts = [re.findall(r"^test features  item (\d+)/10  ", line) for line in lines]
    assert counts == [["4"], ["8"], ["10"]]


def test_evaluations_show_progress_in_this_one_way() -> None:
    files = sorted((ROOT / "ndavid" / "evaluation").glob("*.py"))
    assert [file.name for file in files if "tqdm" in file.read_text()] == []
