"""What a step consists of: one turn, or several by players with optimizers of their own.

A plain method takes one turn a step, and all its parameters move. A method whose parts want
opposite things, such as a GAN's two networks, has more to say:

- ``players()``: name -> parameter groups (dicts with ``params`` and, optionally, ``lr_scale``), an
  optimizer for each;
- ``batches_per_step``: how many batches a step reads, before accumulation;
- ``deal(batches, *, generator, step)``: the turns of a step in order, each a pair of a player's
  name and the batches that its ``forward`` is called with. It is called once a step, in train
  mode and without gradient: what several turns share is made here.

In a player's turn only its parameters take gradients. Its ``forward``'s "loss" is logged as
``<player>_loss``; the first player's stands as "loss".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ndavid.engine.optim import OptimConfig, build_optimizer

Batch = dict[str, Any]
ParamGroups = Callable[[Any], Iterable[dict[str, Any]]]

ONLY = ""
"""The name of the one player of a plain method."""


@runtime_checkable
class Players(Protocol):
    """A method of several players; see the module's docstring."""

    batches_per_step: int

    def players(self) -> dict[str, list[dict[str, Any]]]: ...

    def deal(
        self, batches: Sequence[Batch], *, generator: torch.Generator | None, step: int
    ) -> Sequence[tuple[str, list[Batch]]]: ...


@dataclass(frozen=True)
class TurnTaken:
    """What a turn came to: one output a batch, and the norm of their mean gradient."""

    player: str
    outputs: list[dict[str, Tensor]]
    grad_norm: Tensor


def batches_per_step(method: nn.Module) -> int:
    """How many batches one step reads, before accumulation."""
    return method.batches_per_step if isinstance(method, Players) else 1


def build_optimizers(
    method: nn.Module, config: OptimConfig, param_groups: ParamGroups | None
) -> dict[str, torch.optim.Optimizer]:
    """One optimizer a player, by name."""
    if isinstance(method, Players):
        return {
            name: build_optimizer(method, config, groups)
            for name, groups in method.players().items()
        }
    groups = param_groups(method) if param_groups else None
    return {ONLY: build_optimizer(method, config, groups)}


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimizer moves."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_turn(player: str, parameters: dict[str, list[nn.Parameter]]) -> None:
    """Lets only one player's parameters take gradients."""
    for name, owned in parameters.items():
        for parameter in owned:
            parameter.requires_grad_(name == player)


def give_all_turns(parameters: dict[str, list[nn.Parameter]]) -> None:
    """Lets every player's parameters take gradients, as before the first turn."""
    for owned in parameters.values():
        for parameter in owned:
            parameter.requires_grad_(True)


def outputs_of_step(turns: Sequence[TurnTaken]) -> list[dict[str, Tensor]]:
    """What a step's record is made of: its outputs; of several players, one of all their means."""
    if [turn.player for turn in turns] == [ONLY]:
        return turns[0].outputs
    numbers: dict[str, Tensor] = {}
    for player in dict.fromkeys(turn.player for turn in turns):
        own = [turn for turn in turns if turn.player == player]
        mean = _mean([output for turn in own for output in turn.outputs])
        loss = mean.pop("loss")
        numbers.setdefault("loss", loss)
        numbers |= {f"{player}_loss": loss, **mean, f"{player}_grad_norm": own[-1].grad_norm}
    return [numbers]


def total_norm(turns: Sequence[TurnTaken]) -> Tensor:
    """The norm of all the turns' gradients together: not finite where one of them is not."""
    norms = torch.stack([turn.grad_norm for turn in turns])
    return norms[0] if len(norms) == 1 else norms.square().sum().sqrt()


def _mean(outputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([torch.as_tensor(output[name]).float() for output in outputs]).mean()
        for name in outputs[0]
    }
