"""Data loading processes that cannot deliver: too little shared memory, or a read that hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate, get_worker_info

from ndavid.engine import checkpoint, shared_memory, waiting
from ndavid.engine.loader import batches, build_loader, close
from ndavid.engine.sampler import EpochSampler
from ndavid.engine.shared_memory import check_room
from ndavid.errors import ConfigError, TrainingError
from ndavid.evaluation import detection_inference
from ndavid.evaluation.classify import per_item

Make = Callable[..., Any]
HERE = Path(__file__).parent
# A clip of the toy run's fifth step.
FIFTH = list(EpochSampler(43, 4, seed=0))[4][0][0]
MOUNT = "mount -t tmpfs -o size=8m tmpfs /dev/shm"


def in_small_shm(*words: str) -> list[str]:
    """A command in a mount namespace of its own, with 8 MB of shared memory; needs root."""
    return ["unshare", "-m", "sh", "-c", f'{MOUNT} && exec "$@"', "sh", *words]


def small_shm_is_allowed() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(in_small_shm("true"), capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How runs ended with 8 MB of shared memory and batches of 4."""
    if not small_shm_is_allowed():
        pytest.skip("mounting a small /dev/shm is not permitted here")
    words = [sys.executable, str(HERE / "small_shm.py"), str(tmp_path_factory.mktemp("shm"))]
    done = subprocess.run(in_small_shm(*words), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_too_little_shared_memory_is_refused_before_the_run(ended: dict[str, str]) -> None:
    assert ended["estimated"].startswith("ConfigError: 4 batches of 4 MB are prepared ahead")
    assert ended["without"] == "well"
    # Of 32 images there are two batches.
    assert ended["evaluation_estimated"].startswith("ConfigError: 2 batches of 17 MB are prepared")


@pytest.mark.parametrize("name", ["met", "evaluation"])
def test_a_batch_that_finds_no_room_ends_the_run_with_the_cure(
    ended: dict[str, str], name: str
) -> None:
    said = ended[name]
    assert said.startswith("TrainingError: no room for a batch in shared memory: /dev/shm has ")
    assert "free of 8 MB" in said and "\n" not in said
    for cure in ("--shm-size", "--ipc=host", "--run.num_workers 0"):
        assert cure in said


def test_the_room_is_estimated_only_where_it_is_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample() -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1, 1000, dtype=torch.uint8)}

    def forbidden() -> dict[str, torch.Tensor]:
        raise AssertionError("nothing need be read")

    monkeypatch.setattr(shared_memory, "room", lambda: (64_000, 64_000))
    check_room(forbidden, batch_size=8, num_workers=0, ranks=1)
    check_room(sample, batch_size=8, num_workers=4, ranks=1)
    check_room(sample, batch_size=8, num_workers=4, num_batches=4, ranks=2)
    with pytest.raises(ConfigError, match=r"16 batches of 0.01 MB are prepared ahead"):
        check_room(sample, batch_size=8, num_workers=4, ranks=2)
    monkeypatch.setattr(shared_memory, "room", lambda: (4 << 30, 4 << 30))
    check_room(forbidden, batch_size=8, num_workers=4, ranks=1)
    monkeypatch.setattr(shared_memory, "room", lambda: None)
    check_room(forbidden, batch_size=8, num_workers=4, ranks=1)


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch waits this long for a process to end by itself, which one that hangs never does."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)


@pytest.fixture
def hanging(toy: ModuleType) -> Callable[[Any], Any]:
    """A dataset of a config that hangs on one clip, in a data loading process."""

    class Hanging(toy.ToyDataset):  # type: ignore[name-defined, misc]
        def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
            if key[0] == FIFTH:
                time.sleep(600)
            return super().__getitem__(key)

    return Hanging


def test_a_signal_is_obeyed_while_data_is_waited_for(
    toy: ModuleType, toy_config: Make, hanging: Callable[[Any], Any], tmp_path: Path
) -> None:
    config, steps = toy_config(run={"num_workers": 1, "save_every_steps": 100}), 4
    begun = time.monotonic()

    def stop() -> None:
        file = tmp_path / "run" / "metrics.jsonl"
        while not (file.exists() and len(file.read_text().splitlines()) >= steps):
            if time.monotonic() - begun > 60:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as leaving:
        toy.train(config, hanging(config))
    thread.join()
    assert leaving.value.code == 143 and time.monotonic() - begun < 60
    assert checkpoint.load(config.run.output).step == steps
    # It goes on from there, to the bit.
    resumed, method = toy.train(config)
    config.run.output = str(tmp_path / "whole")
    _, whole = toy.train(config)
    assert resumed.steps == 30
    assert torch.equal(method.head.weight, whole.head.weight)


@pytest.mark.parametrize("done", [0, 4])
def test_ctrl_c_while_data_is_waited_for_says_what_there_is(
    toy: ModuleType,
    toy_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    done: int,
) -> None:
    at = list(EpochSampler(43, 4, seed=0))[done][0][0]
    main = os.getpid()

    class Interrupted(toy.ToyDataset):  # type: ignore[name-defined, misc]
        def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
            if key[0] == at and os.getpid() != main:
                time.sleep(2)  # the steps before it are done
                os.kill(main, signal.SIGINT)
                time.sleep(600)
            return super().__getitem__(key)

    monkeypatch.setattr(sys, "argv", ["recipes/x.py", "--run.seed=0"])
    # A shell that starts tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = toy_config(run={"num_workers": 1, "save_every_steps": 100})
    with pytest.raises(KeyboardInterrupt) as stopped:
        toy.train(config, Interrupted(config))
    there = checkpoint.latest_complete(Path(config.run.output))
    assert (there is not None) == bool(done)
    kept = f"saved {there}" if there else "no checkpoint"
    said = capfd.readouterr().err
    assert f"stopped by SIGINT; {kept}; to go on: python recipes/x.py --run.seed=0\n" in said
    assert "saving" not in said and "None" not in said
    assert str(stopped.value) == f"{'a' if there else 'no'} checkpoint was saved"


def test_a_wait_has_a_limit_and_says_so_before(
    toy: ModuleType,
    toy_config: Make,
    hanging: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(waiting, "PATIENT_SECONDS", 0.5)
    config = toy_config(run={"num_workers": 1, "data_timeout": 2.0})
    with pytest.raises(TrainingError) as error:
        toy.train(config, hanging(config))
    said = str(error.value)
    assert said.startswith("no batch came from the data loading processes in 2 s")
    assert "--run.data_timeout" in said and "\n" not in said
    assert "waiting for data for" in capsys.readouterr().err


def test_an_evaluation_names_no_key_of_training(
    toy: ModuleType, toy_config: Make, hanging: Callable[[Any], Any]
) -> None:
    sampler = EpochSampler(43, 4, seed=0)
    loader = build_loader(hanging(toy_config()), sampler, toy.collate, num_workers=1)
    with pytest.raises(TrainingError, match="no batch came") as error:
        list(batches(loader, limit=1.0))
    close(loader)
    assert "--" not in str(error.value)


def test_evaluations_look_at_the_room_before_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Images:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, object]:
            assert get_worker_info() is None, "nothing need be begun"
            image = torch.zeros(3, 100, 100, dtype=torch.uint8)
            return {"image": image, "label": 0, "index": index, "bad": [], "size": (100, 100)}

    monkeypatch.setattr(shared_memory, "room", lambda: (100_000, 100_000))
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"4 batches of 0.06 MB are prepared ahead"):
        per_item(
            lambda views: views.flatten(1).float(),
            Images(),
            device=cpu,
            views_per_batch=2,
            num_workers=2,
        )
    method: Any = torch.nn.Identity()
    images: Any = Images()
    monkeypatch.setattr(detection_inference, "collate_detection", default_collate)
    with pytest.raises(ConfigError, match=r"2 batches of 0.12 MB are prepared ahead"):
        detection_inference.detect_all(method, images, device=cpu, batch_size=4, num_workers=2)


def test_a_slow_batch_is_waited_for_and_none_is_lost(toy: ModuleType, toy_config: Make) -> None:
    class Slow(toy.ToyDataset):  # type: ignore[name-defined, misc]
        def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
            time.sleep(0.6 if key[0] in (2, 9) else 0)
            return super().__getitem__(key)

    config = toy_config()
    sampler = EpochSampler(12, 2, seed=0, shuffle=False)
    loader = build_loader(Slow(config), sampler, toy.collate, num_workers=2)
    loader_batches = batches(loader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "POLL_SECONDS", 0.2)
        seen = [batch["index"].tolist() for batch in loader_batches]
        sampler.set_position(1, 2)
        again = [batch["index"].tolist() for batch in batches(loader)]
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert again == seen[2:]
