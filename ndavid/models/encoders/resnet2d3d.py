"""The 2D3D-ResNet of DPC: early layers look at frames, late ones at space and time.

Han, Xie and Zisserman, "Video Representation Learning by Dense Predictive Coding", ICCVW 2019
(arXiv 1909.04656); residual blocks of He et al., CVPR 2016 (arXiv 1512.03385).

Layers 1 and 2 use 1x3x3 kernels, layers 3 and 4 use 3x3x3 ones and halve time as well as space.
Layer 4 is as narrow as layer 3 and its last block has no ReLU, so that features can be negative.

Differences from the paper: batch norm keeps running statistics (the authors' pretraining did not),
and for small machines there are a 10-layer net, one block a layer, and nets of half the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.recomputation import run_recomputed

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Depth:
    """How many residual blocks each of the four layers has, and of which kind."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool = False


DEPTHS = {
    10: Depth((1, 1, 1, 1)),
    18: Depth((2, 2, 2, 2)),
    34: Depth((3, 4, 6, 3)),
    50: Depth((3, 4, 6, 3), bottleneck=True),
}
HALF = "_half"
"""What ends the name of a net of half the width."""

_PLANES = (64, 128, 256, 256)


class ResNet2d3d(Encoder):
    """A 2D3D-ResNet of depth 10, 18, 34 or 50; ``half`` makes every layer half as wide.

    Clips (B, 3, T, H, W) become maps (B, feature_dim, ceil(T/4), ceil(H/32), ceil(W/32)), *before*
    the last ReLU. ``feature_dim`` is 256, or 1024 at depth 50, and half of that with ``half``.
    """

    def __init__(self, depth: int = 18, *, half: bool = False) -> None:
        super().__init__(f"resnet2d3d{depth}{HALF if half else ''}")
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}, got {depth}")
        layout = DEPTHS[depth]
        block = Bottleneck if layout.bottleneck else BasicBlock
        self.depth = depth
        planes = [width // 2 if half else width for width in _PLANES]
        self.feature_dim = planes[-1] * block.expansion

        stem = planes[0]
        self.conv1 = nn.Conv3d(3, stem, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = FrameMaxPool()
        widths = [stem, *(width * block.expansion for width in planes)]
        self.layer1 = _layer(block, widths[0], planes[0], layout.blocks[0], 1, (1, 1, 1))
        self.layer2 = _layer(block, widths[1], planes[1], layout.blocks[1], 1, (1, 2, 2))
        self.layer3 = _layer(block, widths[2], planes[2], layout.blocks[2], 3, (2, 2, 2))
        self.layer4 = _layer(block, widths[3], planes[3], layout.blocks[3], 3, (2, 2, 2))
        last: Any = self.layer4[-1]
        last.final_relu = False
        _initialise(self)

    def forward(self, clips: Tensor) -> Tensor:
        self.require_clips(clips)
        if self.recomputes:
            return run_recomputed(self.sequential(), clips)
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def sequential(self) -> tuple[nn.Module, ...]:
        return tuple(self.children())


class FrameMaxPool(nn.Module):
    """Max pooling over 3x3 pixels with stride 2, frame by frame: what a 1x3x3 window does.

    As a pooling of images: clearing the gradient of the 3D one takes an eighth of a training step
    on the CPU.
    """

    def forward(self, clips: Tensor) -> Tensor:
        images = rearrange(clips, "b c t h w -> (b t) c h w")
        pooled = F.max_pool2d(images, 3, stride=2, padding=1)
        return rearrange(pooled, "(b t) c h w -> b c t h w", b=clips.shape[0])


class BasicBlock(nn.Module):
    """Two convolutions over ``kernel_t`` time steps and 3x3 pixels, and a shortcut."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, kernel_t: int, stride: Triple) -> None:
        super().__init__()
        self.conv1 = _conv(inplanes, planes, kernel_t, stride)
        self.bn1 = nn.BatchNorm3d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(planes, planes, kernel_t, (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(planes)
        self.downsample = _shortcut(inplanes, planes, stride)
        self.final_relu = True

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + shortcut
        return self.relu(out) if self.final_relu else out


class Bottleneck(nn.Module):
    """1x1x1, ``kernel_t`` x3x3 and 1x1x1 convolutions, four times as wide at the end."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, kernel_t: int, stride: Triple) -> None:
        super().__init__()
        width = planes * self.expansion
        self.conv1 = nn.Conv3d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = _conv(planes, planes, kernel_t, stride)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inplanes, width, stride)
        self.final_relu = True

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + shortcut
        return self.relu(out) if self.final_relu else out


def _conv(inplanes: int, planes: int, kernel_t: int, stride: Sequence[int]) -> nn.Conv3d:
    return nn.Conv3d(
        inplanes,
        planes,
        (kernel_t, 3, 3),
        stride=(stride[0], stride[1], stride[2]),
        padding=(kernel_t // 2, 1, 1),
        bias=False,
    )


def _shortcut(inplanes: int, width: int, stride: Triple) -> nn.Sequential | None:
    """A strided 1x1x1 projection where the block changes shape, else None (the identity)."""
    if stride == (1, 1, 1) and inplanes == width:
        return None
    return nn.Sequential(
        nn.Conv3d(inplanes, width, 1, stride=stride, bias=False), nn.BatchNorm3d(width)
    )


def _layer(
    block: type[BasicBlock] | type[Bottleneck],
    inplanes: int,
    planes: int,
    count: int,
    kernel_t: int,
    stride: Triple,
) -> nn.Sequential:
    """``count`` blocks, of which the first strides."""
    width = planes * block.expansion
    first = block(inplanes, planes, kernel_t, stride)
    rest = [block(width, planes, kernel_t, (1, 1, 1)) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


def _initialise(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.Conv3d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out")
