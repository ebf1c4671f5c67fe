"""MoCo through the engine: the queue on two ranks, in the checkpoint, and after SIGKILL."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from torch import Tensor

from ndavid.engine import checkpoint

SCRIPT = Path(__file__).with_name("moco_run.py")
SLOW = ["--pause=0.01"]
RANKS = pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nobody stopped, by number of ranks; each is made when it is asked for."""

    class Runs(dict[int, Path]):
        def __missing__(self, ranks: int) -> Path:
            self[ranks] = tmp_path_factory.mktemp(f"moco{ranks}") / "run"
            processes.run(SCRIPT, SLOW, self[ranks], ranks=ranks)
            return self[ranks]

    return Runs()


def ended_with(output: Path, rank: int) -> dict[str, Tensor]:
    return torch.load(output / f"rank{rank}.pt", weights_only=True)


@RANKS
def test_every_rank_ends_with_the_queue_of_the_checkpoint(
    unstopped: dict[int, Path], ranks: int
) -> None:
    saved = checkpoint.load(unstopped[ranks])
    queue, pointer = saved.model["moco.queue"], saved.model["moco.queue_pointer"]
    for rank in range(ranks):
        assert torch.equal(ended_with(unstopped[ranks], rank)["queue"], queue)
        assert torch.equal(ended_with(unstopped[ranks], rank)["pointer"], pointer)
    # Symmetric: two keys a sample. A step writes 8 a rank.
    assert pointer.item() == saved.step * 8 * ranks % 17
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(17))


@RANKS
def test_killed_and_resumed_has_the_same_queue_to_the_bit(
    unstopped: dict[int, Path], tmp_path: Path, ranks: int
) -> None:
    output = tmp_path / "run"
    # Between two checkpoints: some steps are done twice.
    processes.kill_at(processes.start(SCRIPT, SLOW, output, ranks=ranks), 8)
    assert checkpoint.load(output).step < checkpoint.load(unstopped[ranks]).step
    processes.run(SCRIPT, SLOW, output, ranks=ranks)
    processes.assert_same_run(output, unstopped[ranks])
    for rank in range(ranks):
        processes.assert_equal(ended_with(output, rank), ended_with(unstopped[ranks], rank))
