"""Self-attention between the places of a map, as GANs use it.

Paper: Zhang, Goodfellow, Metaxas and Odena 2019, "Self-Attention Generative Adversarial Networks"
(arXiv 1805.08318), with BigGAN's economies (arXiv 1809.11096): keys and values are max-pooled 2x2,
and values have half the channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """(B, C, H, W) -> the same shape: ``x + gain * attended``; H and W even, at least 8 channels.

    The gain starts at 0, where the layer is the identity. Scores are not scaled, as in the paper.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 8:
            raise ValueError(f"self-attention wants at least 8 channels, not {channels}")
        self.query = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.key = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.out = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        # Two plain products: the fused kernels have no second derivative, which a gradient penalty
        # needs, and few places are compared here.
        query = rearrange(self.query(x), "b c h w -> b (h w) c")
        key = rearrange(F.max_pool2d(self.key(x), 2), "b c h w -> b c (h w)")
        value = rearrange(F.max_pool2d(self.value(x), 2), "b c h w -> b (h w) c")
        # Autocast takes the softmax in float32.
        attended = torch.softmax(query @ key, dim=-1).to(value.dtype) @ value
        attended = rearrange(attended, "b (h w) c -> b c h w", h=height)
        return x + self.gain.to(x.dtype) * self.out(attended)
