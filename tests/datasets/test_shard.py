"""datasets/shard.py as a user calls it: clips, images, a check, and what it says of bad input."""

from __future__ import annotations

import csv
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from image_files import write_tree

from ndavid.data.clip_sets import open_clips
from ndavid.data.config import DataConfig, TrainingDataConfig
from ndavid.data.image_archive import write_archive
from ndavid.data.image_packing import pack
from ndavid.data.images import open_images
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import DenseClip

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "shard.py"


class Outcome(NamedTuple):
    code: int | str | None
    stdout: str
    stderr: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the script in this process."""

    def run_script(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["shard.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return Outcome(ended.value.code, *capfd.readouterr())

    return run_script


@pytest.fixture
def prepared(tmp_path: Path, write_clip: Callable[..., Path]) -> Path:
    """Six clips to train on and one to test on, one file of which is gone."""
    root = tmp_path / "prepared"
    records = []
    for k in range(7):
        write_clip(root / "A" / f"{k}.mp4", num_frames=12, size=(32, 32))
        splits = ("test" if k == 6 else "train",)
        records.append(ClipRecord(f"A/{k}.mp4", 0, f"g{k}", 12, 25.0, 32, 32, splits, None))
    Manifest(root, ("A",), tuple(records)).write(root)
    (root / "A" / "2.mp4").unlink()
    return root


def test_clips_and_the_check(call: Call, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("clips", "--root", prepared, "--output", out, "--shards", "3", "--quiet")
    assert done.code == 0 and done.stderr == ""
    assert f"{out}: 5 clips in 3 shards" in done.stdout
    assert f"data.shards: {out}/{{000000..000002}}.tar" in done.stdout
    with (out / "bad_files.csv").open() as handle:
        assert list(csv.reader(handle)) == [
            ["path", "reason"],
            [str(prepared / "A" / "2.mp4"), "no such file"],
        ]
    config = TrainingDataConfig(shards=f"{out}/{{000000..000002}}.tar")
    clips = open_clips(config, DenseClip(4))
    assert sorted(record.path for record in clips.records) == [
        f"A/{k}.mp4" for k in (0, 1, 3, 4, 5)
    ]
    assert call("check", out).code == 0
    (out / "000001.tar").write_bytes(b"")
    checked = call("check", out)
    assert checked.code == 1
    assert "000001.tar: not as written, 0 bytes instead of" in checked.stdout
    assert "0 of 2 samples are there" in checked.stdout
    (out / "000001.tar").unlink()
    assert "000001.tar: no such file" in call("check", out).stdout


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_images_of_a_tree_and_of_an_archive(call: Call, tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path / "tree" / "train", {"cat": 3, "dog": 4})
    (tmp_path / "tree" / "train" / "cat" / "bad.jpg").write_bytes(b"no image")
    root, bad = tmp_path / "tree", 1
    tree = open_images(DataConfig(source="folder", root=str(root)))
    if kind == "packed":
        root, bad = tmp_path / "set.npz", 0
        write_archive(root, tree.classes, {"train": pack(tree, quality=95).split})
    original = open_images(DataConfig(source=kind, root=str(root)))  # type: ignore[arg-type]
    out = tmp_path / "out"
    words = ("images", kind, "--root", root, "--per-shard", "3", "--output", out, "--quiet")
    done = call(*words)
    assert done.code == 0 and "7 images in 3 shards" in done.stdout
    assert (out / "bad_files.csv").exists() == bool(bad)
    source = open_images(DataConfig(shards=str(out)))
    assert source.classes == ("cat", "dog")

    def facts(images: object, count: int) -> list[tuple[int, int]]:
        """Label and sum of pixels of each image that can be read."""
        found = []
        for k in range(count):
            if not original.name(k).endswith("bad.jpg") or images is source:
                found.append((int(images.labels[k]), int(images.read(k).sum())))  # type: ignore[attr-defined]
        return sorted(found)

    assert facts(source, 7) == facts(original, len(original))
    assert len(original) == 7 + bad
    assert torch.bincount(source.labels).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["clips", "--root", "{prepared}", "--split", "val"],
            "val split of fold 1 has no clips",
        ),
        (["clips", "--root", "{prepared}", "--fold", "2"], "no fold 2"),
        (["clips", "--root", "{prepared}", "--shards", "9"], "6 clips fit into 1 to 6 shards"),
        (["clips", "--root", "nowhere"], "nowhere: no readable manifest"),
        (["images", "packed", "--root", "no.npz"], "no.npz: no such file"),
    ],
)
def test_bad_input_is_one_line(
    call: Call, prepared: Path, tmp_path: Path, words: list[str], reason: str
) -> None:
    given = [word.format(prepared=prepared) for word in words]
    done = call(*given, "--output", tmp_path / "out", "--quiet")
    assert done.code == 2
    assert done.stderr.startswith("error: ") and reason in done.stderr
    assert not (tmp_path / "out" / "index.json").exists()


def test_shards_are_not_written_over(call: Call, prepared: Path, tmp_path: Path) -> None:
    words = ("clips", "--root", prepared, "--output", tmp_path / "out", "--quiet")
    assert call(*words).code == 0
    again = call(*words)
    assert again.code == 2 and "already holds shards" in again.stderr
    assert call("check", tmp_path / "out").code == 0


ODD = ["red\x1b[31m.jpg", "two\nlines.jpg", os.fsdecode(b"latin\xf6.jpg")]


def test_odd_names_are_shown_and_listed_escaped(call: Call, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write_tree(root / "train", {"cat": 2})
    for name in ODD:
        (root / "train" / "cat" / name).write_bytes(b"no image")
    done = call(
        "images", "folder", "--root", root, "--output", tmp_path / "out", "--shards", "1", "--quiet"
    )
    assert done.code == 0, done.stderr
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    assert done.stdout.count("left out: ") == 3
    report = (tmp_path / "out" / "bad_files.csv").read_text(encoding="utf-8")
    assert len(report.splitlines()) == 4 and report.replace("\n", "").isprintable()
    assert r"red\x1b[31m.jpg" in report and r"latin\udcf6.jpg" in report
