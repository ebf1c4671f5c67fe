"""Channels-last convolutions for 2-D and 3-D networks alike."""

from __future__ import annotations

import torch
from torch import nn


def to_channels_last(module: nn.Module) -> nn.Module:
    """Lays out convolution weights channels-last, in place; activations follow the weights.

    ``module.to(memory_format=...)`` takes one format and fails on a network that has both 4-D and
    5-D weights; here each convolution gets the format of its own rank.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            layer.to(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return module
