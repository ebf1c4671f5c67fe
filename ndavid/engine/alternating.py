"""Methods whose networks take optimizer steps in alternation, such as a GAN's.

A plain method has one optimizer, which takes one step per training step. A method whose networks
want opposite things has more to say:

- ``optimizer_groups()``: name -> parameter groups (dicts with ``params`` and, optionally,
  ``lr_scale``), one optimizer for each name;
- ``batches_per_step``: how many batches a training step reads, before accumulation;
- ``plan_updates(batches, *, generator, step)``: the updates of a training step in order, each a
  pair of an optimizer's name and the batches that ``forward`` is called with before that optimizer
  steps. It is called once per training step, in train mode and without gradient: what several
  updates share is made here.

During an update only the parameters of its optimizer take gradients. The "loss" that ``forward``
returns is logged as ``<name>_loss``; that of the first update stands as "loss" too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = dict[str, Any]

ONLY = ""
"""The name of a plain method's one optimizer."""


@runtime_checkable
class AlternatingMethod(Protocol):
    """A method with several optimizers; see the module's docstring."""

    batches_per_step: int

    def optimizer_groups(self) -> dict[str, list[dict[str, Any]]]: ...

    def plan_updates(
        self, batches: Sequence[Batch], *, generator: torch.Generator | None, step: int
    ) -> Sequence[tuple[str, list[Batch]]]: ...


@dataclass(frozen=True)
class Update:
    """One step of one optimizer, done: an output per batch, and the norm of their mean gradient."""

    optimizer: str
    outputs: list[dict[str, Tensor]]
    grad_norm: Tensor


def train_only(name: str, parameters: dict[str, list[nn.Parameter]]) -> None:
    """Lets only the parameters of one optimizer take gradients."""
    for other, owned in parameters.items():
        for parameter in owned:
            parameter.requires_grad_(other == name)


def train_all(parameters: dict[str, list[nn.Parameter]]) -> None:
    """Lets the parameters of all optimizers take gradients, as before the first update."""
    for owned in parameters.values():
        for parameter in owned:
            parameter.requires_grad_(True)


def outputs_of_step(updates: Sequence[Update]) -> list[dict[str, Tensor]]:
    """The outputs to record of a training step; of several optimizers, one dict of their means."""
    if [update.optimizer for update in updates] == [ONLY]:
        return updates[0].outputs
    numbers: dict[str, Tensor] = {}
    for name in dict.fromkeys(update.optimizer for update in updates):
        own = [update for update in updates if update.optimizer == name]
        mean = _mean([output for update in own for output in update.outputs])
        loss = mean.pop("loss")
        numbers.setdefault("loss", loss)
        numbers |= {f"{name}_loss": loss, **mean, f"{name}_grad_norm": own[-1].grad_norm}
    return [numbers]


def total_norm(updates: Sequence[Update]) -> Tensor:
    """The norm of the gradients of all updates: not finite where one of them is not."""
    norms = torch.stack([update.grad_norm for update in updates])
    return norms[0] if len(norms) == 1 else norms.square().sum().sqrt()


def _mean(outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([torch.as_tensor(output[name]).float() for output in outputs]).mean()
        for name in outputs[0]
    }
