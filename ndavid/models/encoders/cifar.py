"""ResNets for images of about 32 px, which an ImageNet network would shrink to a single pixel.

Two kinds, both of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv
1512.03385):

- 18, 34, 50: the ImageNet networks with a 3x3 first convolution of stride 1 and no max-pool, as the
  CIFAR experiments of MoCo and SimCLR use them (arXiv 2002.05709, appendix B.9).
- 20, 32, 56: the paper's own CIFAR networks (section 4.2), 16, 32 and 64 channels wide, with
  parameter-free shortcuts (option A): small enough to train on a CPU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from ndavid.models.encoders.chain import ImageChain

WIDE = (18, 34, 50)
NARROW = (20, 32, 56)
DEPTHS = (*WIDE, *NARROW)


def cifar_resnet(depth: int) -> ImageChain:
    """The ResNet of that depth for small images: (B, 3, H, W) -> (B, D, H/8, W/8), H/4 if narrow.

    D is 512 (2048 at depth 50), or 64 for the narrow ones. Parameters are named as in torchvision.

    Raises ValueError for a depth that is none of ``DEPTHS``.
    """
    if depth in WIDE:
        return ImageChain(f"cifar:resnet{depth}", _wide_parts(depth))
    if depth in NARROW:
        return ImageChain(f"cifar:resnet{depth}", _narrow_parts(depth))
    raise ValueError(f"depth must be one of {DEPTHS}, got {depth}")


def _wide_parts(depth: int) -> dict[str, nn.Module]:
    net = models.get_model(f"resnet{depth}", weights=None)
    layers = {f"layer{i}": getattr(net, f"layer{i}") for i in (1, 2, 3, 4)}
    return {**_stem(64), **layers}


def _narrow_parts(depth: int) -> dict[str, nn.Module]:
    count = (depth - 2) // 6
    parts = _stem(16)
    for layer, (inplanes, planes) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
        first = _block(inplanes, planes)
        rest = [_block(planes, planes) for _ in range(count - 1)]
        parts[f"layer{layer}"] = nn.Sequential(first, *rest)
    return parts


def _stem(planes: int) -> dict[str, nn.Module]:
    conv = nn.Conv2d(3, planes, 3, padding=1, bias=False)
    _initialise(conv)
    return {"conv1": conv, "bn1": nn.BatchNorm2d(planes), "relu": nn.ReLU(inplace=True)}


def _block(inplanes: int, planes: int) -> BasicBlock:
    """Two 3x3 convolutions; one that widens the map also halves it."""
    if inplanes == planes:
        block = BasicBlock(inplanes, planes)
    else:
        block = BasicBlock(inplanes, planes, stride=2, downsample=PaddedShortcut(planes - inplanes))
    for child in block.modules():
        if isinstance(child, nn.Conv2d):
            _initialise(child)
    return block


def _initialise(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


class PaddedShortcut(nn.Module):
    """Every second pixel, with channels of zeros appended: no parameters (He et al., option A)."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra_channels))
