"""The best epoch: kept across interruptions, and never one of a run that is being repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ndavid.engine.hooks import HookContext
from ndavid.errors import CheckpointError
from ndavid.evaluation.selection import FILE, BestEpoch


class Constant(nn.Module):
    """Its one weight is the epoch it was trained to."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))


def end(folder: Path, epoch: int, ema: nn.Module | None = None) -> HookContext:
    return HookContext(
        epoch=epoch,
        step=10 * epoch,
        method=Constant(epoch),
        ema=ema,
        device=torch.device("cpu"),
        output=folder,
    )


def best_of(folder: Path, scores: dict[int, float], every: int = 1) -> BestEpoch:
    return BestEpoch(folder, lambda method, device, epoch: scores[epoch], every)


def test_the_best_epochs_weights_come_back(tmp_path: Path) -> None:
    best = best_of(tmp_path, {1: 0.2, 2: 0.6, 3: 0.5, 4: 0.6})
    logged = [best(end(tmp_path, epoch)) for epoch in (1, 2, 3, 4)]
    assert logged == [{"top1": 0.2}, {"top1": 0.6}, {"top1": 0.5}, {"top1": 0.6}]
    method = Constant()
    assert best.load_into(method) == (2, 0.6), "of equals the earliest"
    assert method.weight.item() == 2


def test_without_a_scored_epoch_there_is_no_best(tmp_path: Path) -> None:
    best = best_of(tmp_path, {}, every=5)
    assert best(end(tmp_path, 1)) == {}
    assert best.load_into(Constant()) is None


def test_another_process_goes_on_with_the_best_so_far(tmp_path: Path) -> None:
    scores = {1: 0.7, 2: 0.3, 3: 0.5}
    best_of(tmp_path, scores)(end(tmp_path, 1))
    after = best_of(tmp_path, scores)
    after(end(tmp_path, 2))
    after(end(tmp_path, 3))
    assert after.load_into(Constant()) == (1, 0.7)


def test_a_repeated_run_forgets_what_an_earlier_one_left(tmp_path: Path) -> None:
    best_of(tmp_path, {9: 0.99})(end(tmp_path, 9))
    again = best_of(tmp_path, {1: 0.1, 2: 0.2})
    again(end(tmp_path, 1))
    again(end(tmp_path, 2))
    assert again.load_into(Constant()) == (2, 0.2)


def test_averaged_weights_are_scored_and_kept_where_there_are_some(tmp_path: Path) -> None:
    seen: list[float] = []

    def score(method: nn.Module, device: torch.device, epoch: int) -> float:
        seen.append(method.weight.item())
        return 0.5

    best = BestEpoch(tmp_path, score)
    best(end(tmp_path, 1, ema=Constant(42.0)))
    method = Constant()
    best.load_into(method)
    assert seen == [42.0] and method.weight.item() == 42.0


def test_a_damaged_best_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match="cannot be read"):
        best_of(tmp_path, {}).load_into(Constant())
