"""Keeping the weights of the epoch that did best on held-out videos, across interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ndavid.collectives import rank
from ndavid.engine.distributed import from_main, gather_objects
from ndavid.engine.hooks import HookContext
from ndavid.errors import CheckpointError
from ndavid.evaluation.agreement import together
from ndavid.files import whole_path

FILE = "best.safetensors"

Score = Callable[[nn.Module, torch.device, int], float]


class BestEpoch:
    """An epoch hook for ``engine.fit``: scores the method and keeps the best weights.

    Of equal scores the earliest epoch stays. A stored best of this or a later epoch comes from a
    run that is being repeated from an earlier checkpoint (or from scratch), and is forgotten.

    Args:
        folder: The run's folder; the weights go to ``best.safetensors`` in it.
        score: (method, device, epoch) -> the number to maximise; called on every rank.
        every: Epochs between scores.
    """

    def __init__(self, folder: Path, score: Score, every: int = 1) -> None:
        self.path = folder / FILE
        self.score = score
        self.every = every

    def __call__(self, context: HookContext) -> dict[str, float]:
        """Scores an epoch; returns what the run logs under ``val/``."""
        if context.epoch % self.every:
            return {}
        method = context.method if context.ema is None else context.ema
        value = self.score(method, context.device, context.epoch)
        together(lambda: self._keep_if_better(method, context.epoch, value))
        return {"top1": value}

    def load_into(self, method: nn.Module) -> tuple[int, float] | None:
        """Loads the best weights and returns (epoch, score); None if no epoch was scored.

        Raises:
            CheckpointError: If the stored weights cannot be read; on all ranks or none.
        """
        gather_objects(None)  # Rank 0 may still be writing.
        best = from_main(together(lambda: self._stored() if rank() == 0 else None))
        if best is None:
            return None
        together(lambda: self._load(method))
        return best

    def _load(self, method: nn.Module) -> None:
        try:
            method.load_state_dict(load_file(self.path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: cannot be loaded: {error}") from error

    def _keep_if_better(self, method: nn.Module, epoch: int, value: float) -> None:
        if rank() != 0:
            return
        best = self._stored()
        if best is None or best[0] >= epoch or value > best[1]:
            self._store(method, epoch, value)

    def _stored(self) -> tuple[int, float] | None:
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as stored:
                entry = json.loads(stored.metadata()["best"])
            return int(entry["epoch"]), float(entry["score"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from error

    def _store(self, method: nn.Module, epoch: int, value: float) -> None:
        state = {name: tensor.cpu().contiguous() for name, tensor in method.state_dict().items()}
        metadata = {"best": json.dumps({"epoch": epoch, "score": value})}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_path(self.path) as partial:
                save_file(state, partial, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: could not be saved: {error}") from error
