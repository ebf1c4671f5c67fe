"""Numbers of steps done and not yet written down, left on the device until many go at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ndavid.engine.distributed import mean_over_ranks


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step's numbers, on the CPU."""

    step: int
    """optimizer steps done, this one included"""
    values: dict[str, float]
    time: float
    """seconds since 1970 when the step was given to the device"""


@dataclass(frozen=True)
class _Pending:
    step: int
    names: list[str]
    means: Tensor
    known: dict[str, float]
    time: float


class StepRecords:
    """Collects each step's numbers without a wait for the device; `take` waits once for all."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def note(
        self,
        step: int,
        outputs: Sequence[dict[str, Tensor]],
        grad_norm: Tensor,
        known: dict[str, float],
    ) -> None:
        """Keeps one step's numbers.

        Args:
            step: optimizer steps done, this one included.
            outputs: what the method returned for each of its batches: detached scalars.
            grad_norm: scalar on the run's device.
            known: numbers that are on the CPU already and equal on all ranks.
        """
        names = list(outputs[0])
        # A plain number of the method's is on the CPU; a blocking copy would wait for the step.
        device, dtype = grad_norm.device, grad_norm.dtype
        rows = [[o[name].to(device, dtype, non_blocking=True) for name in names] for o in outputs]
        means = [torch.stack(column).mean() for column in zip(*rows, strict=True)]
        stacked = torch.stack([*means, grad_norm])
        self._pending.append(_Pending(step, [*names, "grad_norm"], stacked, known, time.time()))

    def take(self) -> list[StepRecord]:
        """Everything noted since the last time, averaged over batches and ranks, in step order.

        All ranks must call it at the same step.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return []
        keys = [(entry.step, name) for entry in pending for name in entry.names]
        # The one transfer from the device.
        numbers = torch.cat([entry.means for entry in pending]).tolist()
        means = mean_over_ranks(dict(zip(keys, numbers, strict=True)))
        return [
            StepRecord(
                entry.step,
                {name: means[entry.step, name] for name in entry.names} | entry.known,
                entry.time,
            )
            for entry in pending
        ]
