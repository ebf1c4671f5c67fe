"""Gathering across ranks, with gradient. On one process every function is the identity.

Knows torch.distributed and nothing of ours, so that models, methods and the engine can share it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 when torch.distributed is not running."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process among the ranks; 0 when torch.distributed is not running."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherWithGrad(torch.autograd.Function):
    """all_gather along dim 0 whose backward sums every rank's gradient for this rank's slice.

    With DDP's averaging of parameter gradients this gives the gradient of the mean of the ranks'
    losses, which is that of one process with the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to other branches, and all_reduce is in place.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather_with_grad(x: Tensor) -> Tensor:
    """Concatenates ``x`` (B, ...) of every rank along dim 0, in rank order, with gradient.

    Every rank must hold the same shape. Returns (world_size * B, ...); ``x`` itself on one rank.
    """
    return x if world_size() == 1 else _GatherWithGrad.apply(x)


def gather_without_grad(x: Tensor) -> Tensor:
    """Concatenates ``x`` (B, ...) of every rank along dim 0, in rank order, detached."""
    return x.detach() if world_size() == 1 else _all_gather(x.detach())


def broadcast_from_first(x: Tensor) -> Tensor:
    """Rank 0's ``x`` on every rank, detached; all ranks must hold the same shape."""
    if world_size() > 1:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(x, src=0)
    return x


def _all_gather(x: Tensor) -> Tensor:
    # Contiguous first: empty_like keeps the strides of a permuted tensor, which gloo refuses.
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)
