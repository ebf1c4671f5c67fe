"""The residual blocks that SNGAN and BigGAN are made of.

Papers: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks" (arXiv
1802.05957, appendix B.4); Brock, Donahue and Simonyan 2019, "Large Scale GAN Training for High
Fidelity Natural Image Synthesis" (arXiv 1809.11096, appendix B).

The same functions in fewer operations: the 1x1 convolution of a shortcut commutes with nearest
upsampling and with average pooling, so that it always runs at the lower resolution; the 3x3 one
beside a change of size is fused with it (``resampling_convs``).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.models.gan.conditional_batchnorm import ClassBatchNorm
from ndavid.models.gan.resampling_convs import PooledConv2d, UpsampledConv2d


class GeneratorBlock(nn.Module):
    """(B, in, H, W) -> (B, out, 2H, 2W): norm, ReLU, up, 3x3, norm, ReLU, 3x3, plus shortcut.

    Norms are :class:`ClassBatchNorm`, whose condition is passed on to both.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_classes: int = 0, vector_dim: int = 0
    ) -> None:
        super().__init__()
        self.bn1 = ClassBatchNorm(in_channels, num_classes, vector_dim)
        self.conv1 = UpsampledConv2d(in_channels, out_channels)
        self.bn2 = ClassBatchNorm(out_channels, num_classes, vector_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_sc = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = F.relu(self.bn1(x, condition), inplace=True)
        h = self.conv1(h)
        h = F.relu(self.bn2(h, condition), inplace=True)
        return self.conv2(h) + F.interpolate(self.conv_sc(x), scale_factor=2.0, mode="nearest")


class DiscriminatorBlock(nn.Module):
    """(B, in, H, W) -> (B, out, H, W), H and W halved where ``down``.

    ReLU, 3x3, ReLU, 3x3, mean of 2x2 pixels, plus shortcut. The ``first`` block of a network has no
    ReLU before the pixels. ``wide``: the block has ``out`` channels inside, else ``in``. Blocks
    that change neither width nor size have a bare shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        down: bool,
        first: bool = False,
        wide: bool = True,
    ) -> None:
        super().__init__()
        hidden = out_channels if wide or first else in_channels
        self.down, self.first = down, first
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.conv2: nn.Conv2d
        if down:
            self.conv2 = PooledConv2d(hidden, out_channels)
        else:
            self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1)
        has_shortcut = down or in_channels != out_channels
        self.conv_sc = nn.Conv2d(in_channels, out_channels, 1) if has_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h, inplace=True))
        shortcut = F.avg_pool2d(x, 2) if self.down else x
        return h + (shortcut if self.conv_sc is None else self.conv_sc(shortcut))
