"""Ctrl-C: what it says, and how often it takes."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest

from ndavid.config import run_main
from ndavid.engine.signals import StopSignal
from ndavid.interruption import command_again, kept_when_interrupted


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_the_command_to_give_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/x.py", "--nda.spec", "jigsaw | cutout"])
    assert command_again() == "python recipes/x.py --nda.spec 'jigsaw | cutout'"
    assert command_again("--run.resume", "auto").endswith("cutout' --run.resume auto")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command_again().startswith("the same launcher with recipes/x.py")
    monkeypatch.setattr(sys, "argv", [""])
    assert command_again() == "start it again"


def test_what_is_kept_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eval/knn.py", "--output", "out"])
    # A shell that starts tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def main() -> None:
        with kept_when_interrupted("finished features are kept in out"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 130
    assert capfd.readouterr().err == (
        "interrupted: finished features are kept in out; "
        "to go on: python eval/knn.py --output out\n"
    )


def test_the_second_ctrl_c_leaves_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        assert "Ctrl-C leaves at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_echo_of_the_first_is_not_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a launcher, which passes on what the terminal has already told."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT


@pytest.mark.parametrize("script", ["prepare.py", "download.py"])
def test_preparing_says_what_is_kept(
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ndavid.data.preparation.prepare", interrupted)
    monkeypatch.setattr("ndavid.data.download.fetch", interrupted)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"")
    words = ["folder", "--videos", str(tmp_path)] if script == "prepare.py" else ["ucf101"]
    root = Path(__file__).resolve().parent.parent
    path, output = str(root / "datasets" / script), str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [path, *words, "--output", output])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    errors = capfd.readouterr().err
    assert end.value.code == 130
    assert f"kept in {output}; to go on: python {path} {' '.join(words)}" in errors


@pytest.mark.parametrize(
    ("script", "patched", "words", "kept"),
    [
        ("verify.py", "verification.verify", "out", "the check was not finished, and nothing"),
        ("shard.py", "shard_writing.check_shards", "check out", "the check was not finished, and"),
        (
            "shard.py",
            "manifest.read_manifest",
            "clips --root out --output shards",
            "the shards in shards would be written anew; to go on",
        ),
    ],
)
def test_what_keeps_nothing_says_so(
    script: str,
    patched: str,
    words: str,
    kept: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ndavid.data.{patched}", interrupted)
    path = str(Path(__file__).resolve().parent.parent / "datasets" / script)
    monkeypatch.setattr(sys, "argv", [path, *words.split()])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    errors = capfd.readouterr().err
    assert end.value.code == 130 and errors.startswith(f"interrupted: {kept}")
    assert errors.endswith(f"; to go on: python {path} {words}\n")
