"""Checkpoints: whole or absent, checked when read, never code."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ndavid.engine import checkpoint
from ndavid.errors import CheckpointError
from ndavid.files import file_sha256


def write(run_dir: Path, step: int, *, size: int = 64, **options: Any) -> Path:
    weight = torch.full((size,), float(step))
    state = {"optimizer": {"exp_avg": weight + 1, "betas": (0.9, 0.999)}, "world_size": 1}
    return checkpoint.save(run_dir, step, model={"w": weight}, state=state, **options)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    model = {
        "weight": base,
        "tied": base,
        "view": base[1:],
        "transposed": base.t(),
        "last": torch.randn(2, 3, 2, 4, 4).to(memory_format=torch.channels_last_3d),
        "count": torch.tensor(7),
    }
    path = checkpoint.save(
        tmp_path, 5, model=model, ema={"weight": base / 2}, state={"n": 3, "deep": [{"t": base}]}
    )
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.path) == (5, path)
    assert loaded.model.keys() == model.keys()
    assert all(torch.equal(loaded.model[name], model[name]) for name in model)
    assert loaded.ema is not None and torch.equal(loaded.ema["weight"], base / 2)
    assert loaded.state["n"] == 3 and torch.equal(loaded.state["deep"][0]["t"], base)
    files = json.loads((path / "complete.json").read_text())["files"]
    assert loaded.digest == files["model.safetensors"]["sha256"]


def test_rotation_keeps_the_newest_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 100, 101):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_100", "step_101"]
    write(tmp_path, 102)
    assert len(names(tmp_path)) == 3


def test_rotation_does_not_count_damaged_ones(tmp_path: Path) -> None:
    for step in (30, 40, 50):
        write(tmp_path, step)
    damage_flip(tmp_path / "checkpoints" / "step_50")
    write(tmp_path, 60, keep=2)
    assert names(tmp_path) == ["step_40", "step_60"]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_damaged_later_one_neither_stays_in_the_way_nor_pushes_out_a_good_one(
    tmp_path: Path, keep: int
) -> None:
    write(tmp_path, 50)
    damage_truncate(write(tmp_path, 100))
    write(tmp_path, 60, keep=keep)
    left = ["step_60"] if keep == 1 else ["step_50", "step_60"]
    assert names(tmp_path) == [".damaged-step_100", *left]
    assert checkpoint.load(tmp_path).step == 60
    # The run comes past that step again, and the new one may be damaged in its turn.
    damage_truncate(write(tmp_path, 100, keep=keep))
    write(tmp_path, 70, keep=keep)
    assert checkpoint.load(tmp_path).step == 70


def test_paths_that_mean_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 9)
    newest = write(tmp_path, 10)
    assert checkpoint.resolve(tmp_path) == newest
    assert checkpoint.resolve(str(newest)) == newest
    assert checkpoint.load(tmp_path).step == 10
    assert checkpoint.latest_complete(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("kind", ["absent", "file", "empty folder", "folder without a whole one"])
def test_paths_that_mean_none_say_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "file":
        path.write_bytes(b"not a checkpoint")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "folder without a whole one":
        (path / "checkpoints" / "step_3").mkdir(parents=True)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def damage_truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 40)


def damage_flip(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def damage_missing(folder: Path) -> None:
    (folder / "state.pt").unlink()


def damage_incomplete(folder: Path) -> None:
    (folder / "complete.json").unlink()


def damage_digests(folder: Path) -> None:
    (folder / "complete.json").write_text('{"step": 10, "files"')


def damage_empty_digests(folder: Path) -> None:
    (folder / "complete.json").write_text('{"step": 10, "files": {}}')


DAMAGES = [
    damage_truncate,
    damage_flip,
    damage_missing,
    damage_incomplete,
    damage_digests,
    damage_empty_digests,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_passed_over(tmp_path: Path, damage: Any) -> None:
    older, newer = write(tmp_path, 9), write(tmp_path, 10)
    damage(newer)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(newer)
    assert str(newer) in str(error.value) and "\n" not in str(error.value)
    said: list[str] = []
    assert checkpoint.latest_complete(tmp_path, say=said.append) == older
    assert len(said) == 1 and str(newer) in said[0]


class Exploit:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (f"touch {os.environ['NDAVID_TEST_MARK']}",))


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_pickle: bool
) -> None:
    mark = tmp_path / "was_run"
    monkeypatch.setenv("NDAVID_TEST_MARK", str(mark))
    path = write(tmp_path, 1)
    file = path / "state.pt"
    if plain_pickle:
        file.write_bytes(pickle.dumps({"optimizer": Exploit()}))
    else:
        torch.save({"optimizer": Exploit()}, file)
    # The attacker writes digests that fit.
    complete = json.loads((path / "complete.json").read_text())
    complete["files"]["state.pt"] = {
        "bytes": file.stat().st_size,
        "sha256": file_sha256(file),
    }
    (path / "complete.json").write_text(json.dumps(complete))
    with pytest.raises(CheckpointError, match="could run code"):
        checkpoint.load(path)
    assert not mark.exists()


def test_a_state_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    torch.save([1, 2], path / "state.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        checkpoint._load_state(path / "state.pt")


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow beyond this many bytes, as on a disk that is full."""
    limit = 64 * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("too_large", ["model", "state"])
def test_a_disk_that_fills_leaves_the_previous_one_whole(
    tmp_path: Path, small_files: int, too_large: str
) -> None:
    good = write(tmp_path, 9)
    big = torch.zeros(small_files)
    parts: dict[str, Any] = {"model": {"w": big[:4]}, "state": {}}
    parts[too_large] = {"w": big}
    with pytest.raises(CheckpointError, match=r"step_10: could not be saved: File too large") as e:
        checkpoint.save(tmp_path, 10, **parts, keep=1)
    assert str(good) in str(e.value) and "\n" not in str(e.value)
    assert names(tmp_path) == ["step_9"]
    assert checkpoint.load(tmp_path).step == 9


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_is_said_in_the_systems_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path, 9)

    def save_to_full_disk(tensors: object, file: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    monkeypatch.setattr(checkpoint, "save_file", save_to_full_disk)
    with pytest.raises(CheckpointError, match="No space left on device") as error:
        write(tmp_path, 10)
    assert str(good) in str(error.value)
    assert names(tmp_path) == ["step_9"]


@pytest.mark.parametrize("stage", ["file_sha256", "sync_to_disk", "rename"])
def test_a_kill_at_any_point_of_a_save_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    class Killed(BaseException):
        """Not an Exception: nothing may clean up after a SIGKILL."""

    def kill(*_: object) -> None:
        raise Killed

    good = write(tmp_path, 9)
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "rename") if stage == "rename" else (checkpoint, stage)), kill)
        with pytest.raises(Killed):
            write(tmp_path, 10)
    assert checkpoint.latest_complete(tmp_path) == good
    assert ".partial-step_10" in names(tmp_path)
    write(tmp_path, 11)
    assert names(tmp_path) == ["step_11", "step_9"]


def test_a_kill_in_the_middle_of_a_rotation_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL."""

    write(tmp_path, 9)
    real = shutil.rmtree

    def kill(path: Path, **options: bool) -> None:
        if "step_9" in path.name and path.exists():
            (path / "state.pt").unlink()
            raise Killed
        real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", kill)
        with pytest.raises(Killed):
            write(tmp_path, 10, keep=1)
    said: list[str] = []
    assert checkpoint.load(tmp_path).step == 10
    assert checkpoint.latest_complete(tmp_path, say=said.append) is not None and not said
    write(tmp_path, 11, keep=1)
    assert names(tmp_path) == ["step_11"]
