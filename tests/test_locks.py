"""One folder, one process: who holds it is named, and a killed process holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndavid import locks
from ndavid.errors import ConfigError, DataError

HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from ndavid.locks import hold, hold_file
how, target, ready = sys.argv[1:]
with (hold if how == "folder" else hold_file)(target):
    # A data loading process is a fork that may outlive its killed parent by seconds.
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    Path(ready).write_text(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture(params=["folder", "file"])
def held(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Another process that holds a folder or a file, and has forked."""
    target, ready = tmp_path / "target", tmp_path / "ready"
    words = [sys.executable, "-c", HOLDER, request.param, str(target), str(ready)]
    process = subprocess.Popen(words)
    until = time.monotonic() + 30
    while not (ready.exists() and ready.read_text()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    yield process, request.param, target
    process.kill()
    process.wait()
    os.kill(int(ready.read_text()), signal.SIGKILL)


def holding(how: str, target: Path):
    return locks.hold(target) if how == "folder" else locks.hold_file(target)


def test_a_second_process_is_told_who_holds_it_and_a_kill_frees_it(
    held: tuple[subprocess.Popen[bytes], str, Path],
) -> None:
    process, how, target = held
    with pytest.raises(ConfigError) as error, holding(how, target):
        pass
    assert re.fullmatch(
        rf"{target} is in use by process {process.pid} on \S+ since 20\S+: "
        "wait for it, or choose another output",
        str(error.value),
    )
    process.kill()
    process.wait()
    # Its fork lives on, and holds nothing.
    with holding(how, target):
        assert len(locks._held) == 1


def test_it_nests_in_one_process_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with locks.hold(folder):
        lock = folder / locks.LOCK_FILE
        with locks.hold(tmp_path / "a" / "." / "b"):
            pass
        with lock.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not folder.exists() and not locks._held


def test_a_lock_file_that_is_removed_while_another_waits_for_it_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = os.open, []

    def open_then_remove(path: object, *rest: int) -> int:
        descriptor = real(path, *rest)  # type: ignore[call-overload]
        if str(path).endswith(locks.LOCK_FILE):
            opened.append(descriptor)
            if len(opened) == 1:
                os.unlink(str(path))
        return descriptor

    monkeypatch.setattr(os, "open", open_then_remove)
    with locks.hold(tmp_path), (tmp_path / locks.LOCK_FILE).open() as other:
        assert len(opened) == 2
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_disk_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.hold(tmp_path):
        pass
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}: this disk has no locks") and said.count("\n") == 1


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / locks.LOCK_FILE).symlink_to(precious)
    with pytest.raises(DataError, match="cannot write there"), locks.hold(folder):
        pass
    assert precious.read_text() == "kept"


def test_what_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for taken in (locks.hold(tmp_path / "file"), locks.hold_file(tmp_path / "file" / "x.npz")):
        with pytest.raises(DataError, match=r"cannot write there: (File exists|Not a dir)"):
            taken.__enter__()


def test_a_folder_into_which_nothing_was_written_is_gone_afterwards(tmp_path: Path) -> None:
    with pytest.raises(ValueError), locks.hold(tmp_path / "new"):
        raise ValueError
    assert not (tmp_path / "new").exists()
    with locks.hold(tmp_path / "used"):
        (tmp_path / "used" / "result.json").touch()
    assert (tmp_path / "used" / "result.json").exists()
    (tmp_path / "old").mkdir()
    with locks.hold(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()
