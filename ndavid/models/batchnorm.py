"""Batch statistics, running statistics or neither: batch norm chosen from outside the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Every batch norm layer inside ``module``, synchronised ones included."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]


@contextmanager
def without_stat_updates(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, training-mode forwards use batch statistics but leave the running ones untouched.

    For a forward of broken clips: they are normalised by their own statistics and must not pollute
    those that evaluation will use. Layers in eval mode go on using running statistics.
    """
    # In training mode a layer that does not track is given no running statistics to move, nor does
    # it count the batch; its output is the same to the bit.
    tracking = [layer for layer in batch_norms(module) if layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield module
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def drop_running_stats(module: nn.Module) -> nn.Module:
    """Removes running statistics, in place: batch statistics serve in training and in eval.

    This is how the original DPC was pretrained (its author calls it a mistake). Returns ``module``.
    """
    for layer in batch_norms(module):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module


def track_running_stats(module: nn.Module) -> nn.Module:
    """Gives fresh running statistics to the layers that have none, in place; returns ``module``.

    Wanted before fine-tuning weights that came without them: statistics are then learnt anew.
    """
    for layer in batch_norms(module):
        if layer.running_mean is None:
            device = layer.weight.device if layer.affine else None
            layer.track_running_stats = True
            layer.running_mean = torch.zeros(layer.num_features, device=device)
            layer.running_var = torch.ones(layer.num_features, device=device)
            layer.num_batches_tracked = torch.tensor(0, device=device)
    return module


def has_running_stats(module: nn.Module) -> bool:
    """Whether every batch norm layer of ``module`` keeps running statistics."""
    return all(layer.running_mean is not None for layer in batch_norms(module))


def freeze(module: nn.Module) -> nn.Module:
    """Stops ``module`` from learning, in place: no gradients, and eval mode for good.

    ``parent.train()`` leaves it in eval mode, so that batch norm goes on using (and not moving) its
    running statistics, and dropout stays off. Returns ``module``.
    """
    module.requires_grad_(False)
    module.eval()
    module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
