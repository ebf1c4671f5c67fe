"""Batch statistics, running statistics or neither: batch norm chosen from outside the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


class SplitBatchNorm(_BatchNorm):
    """Batch norm over ``splits`` groups of the batch, as if each were on a device of its own.

    Sample i belongs to group i % splits. The running statistics move by the mean of the groups'.
    In eval mode, and in its state dict, it is the plain layer, whose parameters and buffers it
    takes over. For any number of dimensions. What timm hides in its batch norm, dropout and
    activation, is kept.

    Raises ValueError in training on a batch that the number of groups does not divide.
    """

    def __init__(self, layer: _BatchNorm, splits: int) -> None:
        super().__init__(
            layer.num_features,
            eps=layer.eps,
            momentum=layer.momentum,
            affine=layer.affine,
            track_running_stats=layer.track_running_stats,
        )
        self.splits = splits
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        # Under timm's names: an activation's own parameters keep their place in the state dict.
        self.drop = getattr(layer, "drop", nn.Identity())
        self.act = getattr(layer, "act", nn.Identity())
        self.train(layer.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        normed = self._forward_split(input) if self.training else super().forward(input)
        return self.act(self.drop(normed))

    def _forward_split(self, input: Tensor) -> Tensor:
        batch, channels, *places = input.shape
        if batch % self.splits:
            raise ValueError(
                f"batch norm cannot be split into {self.splits} equal groups of a batch of {batch}"
            )
        # A group's channels become channels of their own: one call normalises all groups.
        grouped = input.reshape(batch // self.splits, self.splits * channels, *places)
        tracked = self.track_running_stats
        mean = self._for_groups(self.running_mean if tracked else None)
        variance = self._for_groups(self.running_var if tracked else None)
        out = F.batch_norm(
            grouped,
            mean,
            variance,
            self._for_groups(self.weight),
            self._for_groups(self.bias),
            training=True,
            momentum=self._momentum(),
            eps=self.eps,
        )
        if mean is not None and variance is not None:
            self._keep(mean, variance)
        return out.reshape(input.shape)

    def _for_groups(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.repeat(self.splits)

    def _momentum(self) -> float:
        """The layer's momentum; None, a plain mean over all batches, depends on their number."""
        if self.momentum is not None:
            return self.momentum
        return 1 / (int(self.num_batches_tracked or 0) + 1)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.copy_(mean.view(self.splits, -1).mean(dim=0))
        self.running_var.copy_(variance.view(self.splits, -1).mean(dim=0))
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


def split_batch_norms(module: nn.Module, splits: int) -> nn.Module:
    """Replaces every batch norm inside ``module`` by a :class:`SplitBatchNorm`; returns ``module``.

    The usual substitute for several devices on one (MoCo issue 47).
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, SplitBatchNorm(child, splits))
    return module


class FlatBatchNorm3d(nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` that lays a clip's frames under each other, as one tall image.

    The same numbers and the same state dict. On a GPU PyTorch normalises images that lie channels-
    last with kernels of their own, and clips that do in a general way, whose sums over places alone
    were the largest cost of a DPC step in bfloat16 (docs/results.md, "On one GPU"). Of clips that
    lie contiguous or channels-last the tall image is a view; of others it is a copy.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape, in the same layout."""
        super()._check_input_dim(input)
        tall = super().forward(input.flatten(2, 3))
        # As a view proper it would cost two copies of the map when a ReLU then works in place:
        # autograd keeps whatever a view's base may still be read for. Nobody else has this base.
        return torch.ops.aten._unsafe_view(tall, list(input.shape))

    def _check_input_dim(self, input: Tensor) -> None:
        """What is left to be checked is the tall image, which `forward` has made."""


def flatten_batch_norms(module: nn.Module) -> nn.Module:
    """Makes every plain `BatchNorm3d` inside ``module`` a :class:`FlatBatchNorm3d`; returns it.

    In place: layers keep parameters, buffers, hooks and mode. Those of other kinds stay: PyTorch's
    synchronised ones have kernels of their own.
    """
    for layer in module.modules():
        if type(layer) is nn.BatchNorm3d:
            # They differ in how they call the kernel and in nothing that they hold.
            layer.__class__ = FlatBatchNorm3d
    return module


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, batch norm uses its running statistics, whatever the mode, and does not move them."""
    training = [layer for layer in batch_norms(module) if layer.training]
    for layer in training:
        layer.eval()
    try:
        yield module
    finally:
        for layer in training:
            layer.train()


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
