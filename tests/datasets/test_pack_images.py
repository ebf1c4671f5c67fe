"""Archives hold the very bytes of JPEG files, and everything else as near as was asked."""

from __future__ import annotations

import csv
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from image_files import encoded, photo, random_images, write_cifar, write_tree

from ndavid.data.image_archive import open_archive, read_archive, write_archive
from ndavid.data.image_packing import pack
from ndavid.data.image_sources import MemoryImages
from ndavid.errors import DataError

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "pack_images.py"


class Outcome(NamedTuple):
    code: int | str | None
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs the script in this process (a new one takes seconds to import torch)."""

    def run_script(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pack_images.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return Outcome(ended.value.code, *capfd.readouterr())

    return run_script


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    write_tree(root / "train", {"cat": 2, "dog": 3})
    write_tree(root / "test", {"cat": 1, "dog": 1})
    return root


def stored(path: Path, split: str) -> list[bytes]:
    source = read_archive(path, split)
    return [source.content(k).numpy().tobytes() for k in range(len(source))]


def test_jpegs_of_a_tree_are_stored_as_they_are(call, tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "set.npz"
    done = call("folder", "--root", tree, "--splits", "train", "test", "--output", output)
    assert done.code == 0 and done.stderr == ""
    assert "2 classes" in done.stdout
    assert "train: 5 images, 5 JPEG files as they were, 0 bad" in done.stdout
    files = sorted((tree / "train").rglob("*.jpg"))
    assert stored(output, "train") == [file.read_bytes() for file in files]
    assert read_archive(output, "test").labels.tolist() == [0, 1]
    assert [path.name for path in output.parent.iterdir()] == ["set.npz"]


def test_other_files_become_jpegs(call, tree: Path, tmp_path: Path) -> None:
    picture = photo(9)
    (tree / "train" / "cat" / "z.png").write_bytes(encoded(picture, "PNG"))
    small, large = tmp_path / "small.npz", tmp_path / "large.npz"
    for output, quality in ((small, 20), (large, 100)):
        words = ("folder", "--root", tree, "--splits", "train", "--quality", quality)
        done = call(*words, "--output", output)
        assert "6 images, 5 JPEG files as they were" in done.stdout
    assert len(stored(small, "train")[2]) < len(stored(large, "train")[2])
    assert stored(large, "train")[2].startswith(b"\xff\xd8\xff")
    shown = open_archive(large, "train").read(2)
    assert (shown.short() - picture.short()).abs().max() <= 3


def test_bad_images_are_left_out_and_listed(call, tree: Path, tmp_path: Path) -> None:
    torn = tree / "train" / "dog" / "1.jpg"
    torn.write_bytes(torn.read_bytes()[:-300])
    (tree / "test" / "cat" / "0.jpg").write_bytes(b"")
    output = tmp_path / "set.npz"
    words = ("folder", "--root", tree, "--splits", "train", "test", "--output", output)
    done = call(*words)
    assert done.code == 0
    assert "train: 4 images" in done.stdout and "test: 1 images" in done.stdout
    with (tmp_path / "set_bad.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["split"] for row in rows] == ["train", "test"]
    assert rows[0]["path"] == str(torn) and "truncated" in rows[0]["reason"]
    assert str(torn) in done.stdout
    assert read_archive(output, "train").labels.tolist() == [0, 0, 1, 1]
    # A list of an earlier run does not outlive its cause.
    torn.write_bytes(encoded(photo(0)))
    (tree / "test" / "cat" / "0.jpg").write_bytes(encoded(photo(1)))
    assert call(*words).code == 0 and not (tmp_path / "set_bad.csv").exists()


def test_torchvisions_sets_keep_every_pixel_as_png(call, tmp_path: Path, monkeypatch) -> None:
    written = write_cifar(tmp_path, monkeypatch)
    output = tmp_path / "cifar.npz"
    words = ("--splits", "train", "test", "--png", "--output", output)
    assert call("cifar10", "--root", tmp_path, *words).code == 0
    for split, (images, labels) in written.items():
        packed = open_archive(output, split)
        assert isinstance(packed, MemoryImages)
        assert np.array_equal(packed.images.numpy(), images)
        assert packed.labels.tolist() == labels and packed.classes[9] == "class 9"


def test_an_archive_packs_into_itself(call, tree: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    call("folder", "--root", tree, "--splits", "train", "--output", first)
    done = call("packed", "--root", first, "--splits", "train", "--output", second)
    assert done.code == 0
    assert read_archive(second, "train").digest == read_archive(first, "train").digest


def test_a_tree_without_parts_and_a_class_list(call, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", {"a": 1, "b": 2, "c": 1})
    (tmp_path / "list.txt").write_text("c\nb\n")
    output = tmp_path / "set.npz"
    words = ("--splits", "", "--class-list", tmp_path / "list.txt", "--output", output)
    assert call("folder", "--root", root, *words).code == 0
    packed = read_archive(output, "all")
    assert packed.classes == ("c", "b") and packed.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--splits", "train", "--output", "set.zip"], "--output must end in .npz"),
        (["--splits", "val", "--output", "set.npz"], "no such folder"),
        (["--splits", "train", "odd", "--output", "set.npz"], "differ in their classes: bird, dog"),
        (["--splits", "broken", "--output", "set.npz"], "none of its images can be read"),
    ],
)
def test_problems_are_one_line_and_leave_nothing(
    call, tree: Path, tmp_path: Path, monkeypatch, words, message
) -> None:
    write_tree(tree / "odd", {"bird": 1, "cat": 1})
    write_tree(tree / "broken", {"cat": 1, "dog": 0})
    (tree / "broken" / "cat" / "0.jpg").write_bytes(b"text")
    monkeypatch.chdir(tmp_path)
    done = call("folder", "--root", tree, *words)
    assert done.code == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_writer_that_fails_leaves_the_old_archive(tmp_path: Path, monkeypatch) -> None:
    source = MemoryImages(
        torch.from_numpy(random_images(2, 8, 0)), torch.zeros(2), ["a"], origin="x"
    )
    packed = pack(source, quality=None)
    path = tmp_path / "set.npz"
    write_archive(path, ["a"], {"train": packed.split})
    before = path.read_bytes()

    def full(*words):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_archive(path, ["a"], {"train": packed.split, "test": packed.split})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["set.npz"]


def test_an_empty_source_cannot_be_packed() -> None:
    empty = MemoryImages(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0), [], origin="x")
    with pytest.raises(DataError, match="there are no images"):
        pack(empty, quality=95)


ODD = ["red\x1b[31m.jpg", "two\nlines.jpg", os.fsdecode(b"latin\xf6.jpg")]


def test_odd_names_are_shown_and_listed_escaped(call, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write_tree(root / "train", {"cat": 2})
    for name in ODD:
        (root / "train" / "cat" / name).write_bytes(b"no image")
    done = call("folder", "--root", root, "--splits", "train", "--output", tmp_path / "set.npz")
    assert done.code == 0, done.stderr
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    assert done.stdout.count("left out: ") == 3
    report = (tmp_path / "set_bad.csv").read_text(encoding="utf-8")
    assert len(report.splitlines()) == 4 and report.replace("\n", "").isprintable()
    assert r"red\x1b[31m.jpg" in report and r"latin\udcf6.jpg" in report
