"""Activation checkpointing: computing a network's inner maps twice instead of keeping them.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv
1604.06174). A network that is a sequence of blocks keeps what enters each block; backward computes
the inside of one block at a time again. It costs one more forward and saves most activations.

The second time must be the first time again, and must leave no trace. Dropout draws the same masks
and autocast the same precision (torch sees to both); layers are put back into the mode of then; and
batch norm reads and moves copies of its running statistics, which would otherwise move twice.
Without copies there is no way: their presence is part of what backward finds saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def run_in_sequence(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The first module's output is the second one's input, and so on."""
    for module in modules:
        x = module(x)
    return x


def run_recomputed(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """`run_in_sequence`, of which backward keeps no more than what enters each block.

    Output, gradients and running statistics are the same, on the CPU to the bit. Without gradient
    it is the same altogether.
    """
    for unit in _units(modules):
        if torch.is_grad_enabled():
            x = _recomputed(unit, x)
        else:
            x = run_in_sequence(unit, x)
    return x


def _recomputed(unit: Sequence[nn.Module], x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _AsItWas(unit)

    return checkpoint(run_in_sequence, unit, x, use_reentrant=False, context_fn=contexts)


def _units(modules: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """What is computed again together: a block and the single layers that follow it.

    Layers follow their block, and none but the first begin a unit, because an activation that works
    in place would destroy the input that its unit is to begin with again.
    """
    unit: list[nn.Module] = []
    for module in _flattened(modules):
        if unit and _is_block(module):
            yield unit
            unit = []
        unit.append(module)
    if unit:
        yield unit


def _is_block(module: nn.Module) -> bool:
    # timm and SplitBatchNorm keep an activation inside of a batch norm, which makes it no block.
    return next(module.children(), None) is not None and not isinstance(module, _BatchNorm)


def _flattened(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules, those inside of plain containers one by one."""
    for module in modules:
        if type(module) is nn.Sequential:
            yield from _flattened(module)
        else:
            yield module


class _AsItWas(AbstractContextManager):
    """Inside, modules are in the mode they were in when this was made; no statistics move."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.layers = [child for module in modules for child in module.modules()]
        self.then = _modes(self.layers)

    def __enter__(self) -> None:
        self.now = _modes(self.layers)
        self.statistics = [
            (layer, name, value)
            for layer in self.layers
            if isinstance(layer, _BatchNorm)
            for name in _STATISTICS
            if (value := getattr(layer, name)) is not None
        ]
        _set_modes(self.layers, self.then)
        for layer, name, value in self.statistics:
            setattr(layer, name, value.clone())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer, name, value in self.statistics:
            setattr(layer, name, value)
        _set_modes(self.layers, self.now)


_Mode = tuple[bool, bool]
"""Whether a layer trains, and whether it tracks running statistics."""


def _modes(layers: Iterable[nn.Module]) -> list[_Mode]:
    return [(layer.training, getattr(layer, "track_running_stats", False)) for layer in layers]


def _set_modes(layers: Iterable[nn.Module], modes: Iterable[_Mode]) -> None:
    for layer, (training, tracks) in zip(layers, modes, strict=True):
        # Not train(): it reaches into children, and frozen modules have one that does nothing.
        layer.training = training
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = tracks
