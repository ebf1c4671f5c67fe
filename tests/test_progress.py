"""Progress where there is no terminal, and where there is one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ndavid import progress
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.manifest import read_manifest
from ndavid.data.preparation import prepare
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.data.verification import verify
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


def test_what_was_done_before_counts_and_a_note_stands_beside_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(10, "probing", unit="file", begun=6) as shown:
        shown.note = "bad 1"
        clock.now += 20
        shown.advance(2)
    line = "probing  file 8/10  0.1 file/s  left 00:00:20  bad 1\n"
    assert capsys.readouterr().err == line
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10, "probing", unit="file", begun=6) as shown:
        shown.note = "bad 1"
        shown.advance(4)
    err = capsys.readouterr().err
    assert "10/10" in err and "bad 1" in err


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


def test_preparing_checking_and_sharding_tell_it_in_a_log(
    tmp_path: Path,
    write_clip: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    videos, output = tmp_path / "videos", tmp_path / "out"
    for name in ("a", "b"):
        write_clip(videos / "walk" / f"{name}.mp4", num_frames=4, size=(32, 32))
    prepare(parse_folder(videos), videos, output, num_workers=0)
    assert verify(output, num_workers=0).errors == ()
    manifest = read_manifest(output)
    clips = ClipFiles(manifest.records, manifest.root)
    write_shards(
        clips,
        tmp_path / "shards",
        num_shards=1,
        classes=manifest.classes,
        split="train",
        progress=True,
    )
    err = capsys.readouterr().err
    assert "\r" not in err
    for line in ("probing  file 2/2 ", "decoding  file 2/2 "):
        assert line in err, line
    assert "writing  clip 2/2 " in err


def test_evaluations_show_progress_in_this_one_way() -> None:
    files = sorted((ROOT / "ndavid" / "evaluation").glob("*.py"))
    assert [file.name for file in files if "tqdm" in file.read_text()] == []
