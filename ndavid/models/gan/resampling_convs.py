"""3x3 convolutions fused with the 2x upsampling before them, or with the 2x2 mean after them.

Nearest upsampling hands a 3x3 kernel each pixel several times, and the mean of 2x2 outputs applies
it four times to almost the same pixels. Either pair is one 4x4 kernel with stride 2, the sum of
four shifts of the 3x3 one: 16 multiplications in place of 36, no map at the size in between, and
the same result but for rounding, at the borders too. On one CPU core such a layer takes half the
time. (Karras et al. 2018, "Progressive Growing of GANs", released code, fuses alike.)

Parameters are those of the plain convolution.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """(B, in, H, W) -> (B, out, 2H, 2W): nearest upsampling, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        # A transposed convolution spreads its kernel instead of gathering by it: hence mirrored.
        kernel = sum_of_shifts(self.weight).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class PooledConv2d(nn.Conv2d):
    """(B, in, H, W) -> (B, out, H/2, W/2): a 3x3 convolution, then the mean of 2x2; H, W even."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        kernel = sum_of_shifts(self.weight) / 4
        return F.conv2d(input, kernel, self.bias, stride=2, padding=1)


def sum_of_shifts(kernel: Tensor) -> Tensor:
    """(out, in, k, k) -> (out, in, k + 1, k + 1): the kernel at all four corners, added up."""
    padded = F.pad(kernel, (1, 1, 1, 1))
    lower, upper = padded[:, :, 1:], padded[:, :, :-1]
    both = lower + upper
    return both[..., 1:] + both[..., :-1]
