"""A clip is bad once, wherever its shard lies after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndavid.engine.bad_clips import FILE_NAME, BadClips
from ndavid.engine.tracking import say
from ndavid.errors import TrainingError

PLACES = [
    "data/shards/000001.tar",
    "/mnt/other/000001.tar",
    "https://store.example/k400/000001.tar?key=x.y",
    "pipe:aws s3 cp s3://bucket/k400/000001.tar -",
    "/backup.tar.d/000001.tar",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_moved_shard_has_the_same_bad_clips(place: str, tmp_path: Path) -> None:
    before = BadClips(100, 0.01)
    before.add([("shards/000001.tar/A/clip.mp4", "broken")], 3)
    after = BadClips(100, 0.01)
    after.restore(before.state())
    assert after.add([(f"{place}/A/clip.mp4", "broken")], 7) == []
    after.check()
    after.write(tmp_path)
    rows = (tmp_path / FILE_NAME).read_text().splitlines()
    assert rows == ["path,reason,step", "shards/000001.tar/A/clip.mp4,broken,3"]
    # Another sample, and one of another shard, are others.
    for other in (f"{place}/B/clip.mp4", f"{place.replace('000001', '000002')}/A/clip.mp4"):
        assert after.add([(other, "broken")], 8) == [(other, "broken")]
    with pytest.raises(TrainingError, match=r"3 of 100 clips .* shards/000001.tar/A/clip.mp4"):
        after.check()


def test_files_are_told_apart_by_their_whole_path() -> None:
    ledger = BadClips(10, 1.0)
    clips = [("a/x.mp4", "broken"), ("b/x.mp4", "broken"), ("a/x.mp4", "still broken")]
    assert ledger.add(clips, 1) == clips[:2]
    assert len(ledger) == 2
    assert ledger.state() == [["a/x.mp4", "broken", 1], ["b/x.mp4", "broken", 1]]


def test_what_an_older_run_counted_twice_is_counted_once() -> None:
    ledger = BadClips(10, 1.0)
    ledger.restore([["here/0.tar/a.mp4", "broken", 1], ["there/0.tar/a.mp4", "broken", 5]])
    assert ledger.state() == [["here/0.tar/a.mp4", "broken", 1]]


def test_names_reach_neither_the_report_nor_the_terminal_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "two\nlines\x1b[2J\udcff.jpg"
    bad = BadClips(100, 0.5)
    bad.add([(odd, "cut\x07")], 3)
    bad.write(tmp_path)
    written = (tmp_path / FILE_NAME).read_text(encoding="utf-8").splitlines()
    assert written == ["path,reason,step", r"two\nlines\x1b[2J\udcff.jpg,cut\x07,3"]
    assert bad.state() == [[odd, "cut\x07", 3]]
    say(f"skipped {odd}")
    assert capsys.readouterr().err == "skipped two\nlines\\x1b[2J\\udcff.jpg\n"
