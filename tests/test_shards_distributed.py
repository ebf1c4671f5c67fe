"""Two ranks with two loading processes each on real shards: who reads what, kills, bad shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

from ndavid.data.manifest import ClipRecord
from ndavid.data.shard_index import locate
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.engine.rng import derive_seed

SCRIPT = Path(__file__).with_name("engine") / "shard_run.py"
CLIPS, EPOCHS, STEPS = 48, 2, 8
# 48 clips in 8 shards: two of 6 samples for each of 4 readers, in 4 batches of 3; 8 steps an epoch.
OPTIONS = [
    "--pause=0.05",
    f"--run.epochs={EPOCHS}",
    "--run.batch_size=3",
    "--run.num_workers=2",
    "--run.save_every_steps=1",
]
Reads = dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """Forty-eight clips in eight shards."""
    root = tmp_path_factory.mktemp("clips")
    records = []
    for k in range(CLIPS):
        write_clip(root / f"{k}.mp4", num_frames=10, size=(32, 32))
        records.append(ClipRecord(f"{k}.mp4", k % 4, "", 10, 25.0, 32, 32, ("train",), None))
    write_shards(
        ClipFiles(records, root),
        root / "shards",
        num_shards=8,
        classes=["a", "b", "c", "d"],
        split="train",
        fold=1,
    )
    return root / "shards"


def options_of(shards: Path, reads: Path) -> list[str]:
    return [*OPTIONS, f"--data.shards={shards}", f"--output={reads}"]


def read_by(folder: Path) -> Reads:
    """What each process opened and read, in order."""
    return {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in folder.iterdir()
    }


def keys_of(reads: Reads) -> dict[str, list[tuple[int, int]]]:
    """The (epoch, index) pairs that each process read."""
    epochs = {derive_seed(0, "sample", e, i): e for e in range(EPOCHS) for i in range(CLIPS)}
    return {
        process: [(epochs[e["key"][1]], e["key"][0]) for e in entries if "key" in e]  # type: ignore[index]
        for process, entries in reads.items()
    }


def shards_of(reads: Reads) -> list[str]:
    return [str(e["shard"]) for entries in reads.values() for e in entries if "shard" in e]


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, what was read) of a run without a stop."""
    root = tmp_path_factory.mktemp("reference")
    processes.run(SCRIPT, options_of(shards, root / "reads"), root / "run", ranks=2)
    return root / "run", root / "reads"


def test_in_an_epoch_no_clip_comes_twice_and_none_is_lost(
    reference: tuple[Path, Path], shards: Path
) -> None:
    reads = read_by(reference[1])
    keys = keys_of(reads)
    everything = [key for process in keys.values() for key in process]
    assert sorted(everything) == [(e, i) for e in range(EPOCHS) for i in range(CLIPS)]
    # Four processes, each with as many samples and shards of its own.
    workers = {process: own for process, own in keys.items() if own}
    assert [len(own) for own in workers.values()] == [EPOCHS * CLIPS // 4] * 4
    index = locate(str(shards), "clips").index
    shard_at = [k for k, entry in enumerate(index.shards) for _ in entry.samples]
    owners: dict[tuple[int, int], set[str]] = {}
    for process, own in workers.items():
        for epoch, clip in own:
            owners.setdefault((epoch, shard_at[clip]), set()).add(process)
    assert len(owners) == EPOCHS * 8 and all(len(found) == 1 for found in owners.values())
    assert sorted(shards_of(reads)) == sorted([e.file for e in index.shards] * EPOCHS)
    orders = [[clip for e, clip in workers[p] if e == epoch] for p in workers for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert processes.last_step(reference[0]) == EPOCHS * STEPS


@pytest.mark.parametrize("step", [6, pytest.param(13, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_the_same_to_the_bit_and_reads_no_used_up_shard(
    reference: tuple[Path, Path], shards: Path, tmp_path: Path, step: int
) -> None:
    output = tmp_path / "run"
    job = processes.start(SCRIPT, options_of(shards, tmp_path / "first"), output, ranks=2)
    processes.kill_at(job, step)
    saved = processes.checkpoint.latest_complete(output)
    assert saved is not None
    done = processes.checkpoint.load(saved).step
    processes.run(SCRIPT, options_of(shards, tmp_path / "second"), output, ranks=2)
    processes.assert_same_run(output, reference[0])
    again = read_by(tmp_path / "second")
    keys = [key for own in keys_of(again).values() for key in own]
    # Samples of the steps done are not read again, and of shards only those that were not used up.
    assert len(keys) == len(set(keys)) == 2 * 3 * (EPOCHS * STEPS - done)
    epoch, steps_in = divmod(done, STEPS)
    # A rank's steps alternate its readers, which use up a shard every two turns.
    used_up = 2 * sum((steps_in + 1 - reader) // 2 // 2 for reader in range(2))
    assert used_up > 0
    assert len(shards_of(again)) == 8 * (EPOCHS - epoch) - used_up


@pytest.mark.slow
def test_another_number_of_loading_processes_does_not_resume(
    reference: tuple[Path, Path], shards: Path, tmp_path: Path
) -> None:
    options = [*options_of(shards, tmp_path / "reads"), "--run.num_workers=1", "--run.epochs=3"]
    code, errors = processes.start(SCRIPT, options, reference[0], ranks=2).finish()
    assert code != 0
    assert "was written with num_workers 2, this run has 1" in errors
