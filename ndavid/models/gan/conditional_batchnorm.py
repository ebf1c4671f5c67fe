"""Batch norm of a GAN's generator: plain or with a gain and a bias a class, over all ranks.

Paper: Dumoulin, Shlens and Kudlur 2017, "A Learned Representation for Artistic Style" (arXiv
1610.07629: a gain and a bias a class); Brock, Donahue and Simonyan 2019 (arXiv 1809.11096: both as
linear functions of a class vector and a part of the latent).

With several ranks statistics are those of the ranks' batches together, with gradient, so that a
step is the step of one big batch. torch's SyncBatchNorm does this on GPUs alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ndavid.collectives import gather_with_grad, world_size


class SyncedBatchNorm(_BatchNorm):
    """Batch norm of (B, C, ...) whose statistics in training are those of all ranks' batches.

    On one rank it is torch's. Its state dict is that of ``nn.BatchNorm2d``.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if self.training and world_size() > 1:
            return self._forward_of_all_ranks(input)
        return super().forward(input)

    def _forward_of_all_ranks(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, variance, count = _statistics_of_all_ranks(x)
        if self.track_running_stats:
            self._keep(mean.detach(), variance.detach() * (count / (count - 1)))
        per_channel = (-1, *[1] * (x.dim() - 2))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return (x * scale.view(per_channel) + shift.view(per_channel)).to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _statistics_of_all_ranks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of all ranks' values of a channel, and how many those are."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x, dim=axes, correction=0)
    count = torch.full_like(mean, x.numel() / x.shape[1])
    # (ranks, C) each. A rank's deviations are from its own mean, which loses no digits.
    of_ranks = gather_with_grad(torch.stack([mean, variance, count])[None])
    means, variances, counts = of_ranks.unbind(dim=1)
    total = counts.sum(dim=0)
    shares = counts / total
    common = (shares * means).sum(dim=0)
    return common, (shares * (variances + (means - common) ** 2)).sum(dim=0), total


class ClassBatchNorm(nn.Module):
    """Batch norm of (B, C, ...) with a gain and a bias for each sample, of its ``condition``.

    Args:
        channels: C.
        num_classes: above 0, the condition is a label, (B,), and each class has its own gain and
            bias. 0: there is one for all, and the condition is not looked at.
        vector_dim: above 0, the condition is a vector, (B, vector_dim) instead, of which gain and
            bias are linear functions.

    Gains are stored as their difference from 1.
    """

    def __init__(self, channels: int, num_classes: int = 0, vector_dim: int = 0) -> None:
        super().__init__()
        self.norm = SyncedBatchNorm(channels, affine=num_classes == 0 and vector_dim == 0)
        self.gain = _per_sample(channels, num_classes, vector_dim)
        self.bias = _per_sample(channels, num_classes, vector_dim)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        normed = self.norm(x)
        if self.gain is None or self.bias is None:
            return normed
        per_sample = (len(x), -1, *[1] * (x.dim() - 2))
        gain = (1 + self.gain(condition)).to(normed.dtype).view(per_sample)
        bias = self.bias(condition).to(normed.dtype).view(per_sample)
        return torch.addcmul(bias, normed, gain)


def _per_sample(channels: int, num_classes: int, vector_dim: int) -> nn.Module | None:
    if vector_dim:
        return nn.Linear(vector_dim, channels, bias=False)
    if not num_classes:
        return None
    embedding = nn.Embedding(num_classes, channels)
    nn.init.zeros_(embedding.weight)  # all classes start alike
    return embedding
