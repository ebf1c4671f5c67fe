"""Watching for a loss that is not finite, without making the GPU wait for the CPU at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ndavid.engine.distributed import agree, gather_objects
from ndavid.errors import TrainingError


class FiniteWatch:
    """Remembers, on the device, the first step whose loss or gradient norm was not finite."""

    def __init__(self, device: torch.device) -> None:
        # first bad step (0: none), its loss, its gradient norm, its learning rate
        self._first = torch.zeros(4, dtype=torch.float64, device=device)

    def note(
        self, step: int, losses: Sequence[Tensor], grad_norm: Tensor | None, lr: float
    ) -> None:
        """Looks at one step's numbers; nothing is copied to the CPU.

        Args:
            step: optimizer steps done.
            losses: of its batches, scalars.
            grad_norm: None where an infinite one is no fault.
            lr: for the message.
        """
        loss = torch.stack([loss.double() for loss in losses]).sum()
        norm = torch.zeros_like(loss) if grad_norm is None else grad_norm.double()
        position = torch.tensor([step, lr], dtype=torch.float64).to(loss.device, non_blocking=True)
        now = torch.stack([position[0], loss, norm, position[1]])
        bad = ~torch.isfinite(loss + norm)
        self._first = torch.where(bad & (self._first[0] == 0), now, self._first)

    def check(self, last_good: Callable[[], str]) -> None:
        """Raises on every rank if any rank saw one; all must call it at the same step.

        Args:
            last_good: says which checkpoint to go back to.

        Raises:
            TrainingError: names step, loss and learning rate.
        """
        (some,) = agree(int(self._first[0].item()))
        if not some:
            return
        seen = [found for found in gather_objects(self._first.tolist()) if found[0]]
        # Gradients have met since: the rank whose own loss is at fault tells more than the rest.
        step, loss, norm, lr = min(seen, key=lambda row: (row[0], math.isfinite(row[1])))
        what = f"the loss is {loss:g}" if not math.isfinite(loss) else f"the gradient is {norm:g}"
        raise TrainingError(
            f"step {int(step)}: {what} at learning rate {lr:g} (loss {loss:g}); {last_good()}"
        )


def check_parameters(method: nn.Module, step: int, last_good: Callable[[], str]) -> None:
    """Raises TrainingError if a weight is not finite: such a checkpoint would be worth nothing."""
    parameters = [(n, p) for n, p in method.named_parameters() if p.is_floating_point()]
    finite = torch.stack([torch.isfinite(p.detach()).all() for _, p in parameters])
    if not bool(finite.all()):
        name = parameters[finite.tolist().index(False)][0]
        raise TrainingError(f"step {step}: the weight '{name}' is not finite; {last_good()}")
