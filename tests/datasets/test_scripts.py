"""The scripts as a user runs them: exit codes, one-line errors, and a real kill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ndavid.data.manifest import read_manifest
from ndavid.data.synthetic import write_motion_clips

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_motion_clips(tmp_path_factory.mktemp("videos"), num_clips=60, size=64)


def test_datasets_is_no_package():
    # With an __init__.py it would hide the `datasets` library from whoever runs at the root.
    assert not list(DATASETS.rglob("__init__.py"))


def test_prepare_and_verify_agree_and_a_lost_file_fails(call, videos: Path, tmp_path: Path):
    copy, output = Path(shutil.copytree(videos, tmp_path / "videos")), tmp_path / "out"
    one_process = ("--quiet", "--workers", "0")
    prepared = call("prepare", "ucf101", "--videos", copy, "--output", output, *one_process)
    assert prepared.code == 0 and prepared.stderr == ""
    assert "60 clips of 10 classes" in prepared.stdout
    sound = call("verify", output, *one_process)
    assert sound.code == 0 and sound.stdout.rstrip().endswith("sound")
    lost = next(copy.glob("*/*.mp4"))
    lost.unlink()
    for words in (("--decode", "-1"), ("--decode", "some")):
        refused = call("verify", output, *words)
        assert refused.code == 2 and "argument --decode" in refused.stderr
    broken = call("verify", output, *one_process)
    assert broken.code == 1 and f"{lost.name}: no such file" in broken.stdout


def test_classes_that_are_called_like_splits_are_sound_with_a_warning(
    call, videos: Path, tmp_path: Path
):
    for number, name in enumerate(("train", "test", "bus")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        shutil.copy(sorted(videos.glob("*/*.mp4"))[number], tmp_path / "mine" / name)
    output = tmp_path / "out"
    words = ("--layout", "classes", "--quiet", "--workers", "0")
    prepared = call("prepare", "folder", "--videos", tmp_path / "mine", "--output", output, *words)
    assert prepared.code == 0
    sound = call("verify", output, "--quiet", "--workers", "0")
    assert sound.code == 0 and sound.stdout.rstrip().endswith("sound")
    assert "warning: classes are called test, train" in sound.stdout


def test_a_killed_run_leaves_no_workers_and_goes_on_where_it_was(
    call, videos: Path, tmp_path: Path
):
    output = tmp_path / "out"
    words = ["ucf101", "--videos", videos, "--output", output, "--short-side", "48", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, DATASETS / "prepare.py", *map(str, words), "--workers", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    journal = output / "journal.jsonl"
    _wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 5, process)
    children = _children(process.pid)
    process.kill()
    process.wait()
    _wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert not (output / "manifest.csv").exists()
    done = journal.read_bytes().count(b"\n")
    assert 5 <= done < 60
    times = {path: path.stat().st_mtime_ns for path in (output / "clips").glob("*/v_*.mp4")}
    again = call("prepare", *words, "--workers", "0")
    assert again.code == 0, again.stderr
    assert f"{done} were done before" in again.stdout
    kept = [path for path, time_ns in times.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) >= done
    assert len(read_manifest(output).records) == 60
    assert not list(output.rglob("*.partial*"))
    assert len(list((output / "clips").glob("*/*"))) == 60


def _children(pid: int) -> list[int]:
    """The process's children where /proc tells, else none."""
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listing.read_text().split()] if listing.exists() else []


def _wait_until(condition, process: subprocess.Popen | None = None, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ucf101", "--videos", "gone", "--output", "out"], "gone: there is no such folder"),
        (["folder", "--videos", "empty", "--output", "out"], "empty: holds no videos"),
        (["hmdb51", "--videos", "empty", "--output", "out"], "*_test_split1.txt"),
        (["kinetics", "--videos", "empty", "--output", "out"], "no Kinetics csv"),
    ],
)
def test_a_fatal_problem_is_one_line_and_exit_code_2(
    call, tmp_path: Path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = call("prepare", *words)
    assert done.code == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_class_missing_from_the_annotations_is_named(call, videos: Path, tmp_path: Path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for path in videos.glob("*.txt"):
        shutil.copy(path, lists)
    lines = (lists / "classInd.txt").read_text().splitlines()
    (lists / "classInd.txt").write_text("\n".join(lines[:-1]) + "\n")
    done = call(
        "prepare", "ucf101", "--videos", videos, "--annotations", lists, "--output", tmp_path / "o"
    )
    assert done.code == 2
    name = lines[-1].split()[1]
    assert "trainlist01.txt: line" in done.stderr and f"class '{name}'" in done.stderr


@pytest.mark.parametrize("script", ["prepare", "verify", "download"])
def test_help_is_there(call, script: str):
    done = call(script, "--help")
    assert done.code == 0 and "usage:" in done.stdout


def test_download_from_a_mirror_checks_the_digest(call, tmp_path: Path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / "UCF101TrainTestSplits-RecognitionTask.zip", "w") as archive:
        archive.writestr("x.txt", "not the official lists")
    done = call(
        "download", "ucf101", "--output", tmp_path / "o", "--mirror", mirror.as_uri(), "--quiet"
    )
    assert done.code == 2 and done.stderr.startswith("error: ")
    assert "expected" in done.stderr and not list((tmp_path / "o").glob("*.zip"))
