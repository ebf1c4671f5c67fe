"""Gray frames and colour jitter for many frames at once, each with its own parameters.

torchvision's ColorJitter takes one set of parameters a call and rounds to uint8 four times; DPC
draws anew for each of 40 frames. Brightness, contrast, saturation and "one channel as gray" are
linear in the colour of a pixel, so that here each frame has one 3x3 matrix, and all frames are one
matrix product. Hue is torchvision's, exactly: a turn of HSV's circle; gray frames are spared it.

Differences from torchvision: the order is fixed (gray, brightness, contrast, saturation, hue), and
values are clamped twice (before hue and at the end) and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

# ITU-R BT.601, as torchvision and PIL weigh the channels.
_LUMA = (0.299, 0.587, 0.114)

# Frames whose hue is turned at a time: few enough that the temporaries stay in cache.
_HUE_CHUNK = 8


@dataclass(frozen=True)
class ColourParams:
    """What happens to the colours of T frames; all float32, (T,), except the gray channel.

    Attributes:
        brightness, contrast, saturation: factors, 1 for unchanged.
        hue: shift in turns of the colour circle, 0 for unchanged.
        gray: long, (T,): the channel that stands for all three, or -1.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor


def jitter_colours(clip: Tensor, params: ColourParams) -> Tensor:
    """Frames uint8 (T, 3, H, W) with their colours changed frame by frame; same shape."""
    height = clip.shape[-2]
    pixels = rearrange(clip, "t c h w -> t c (h w)").float()
    matrix, offset = _linear_part(pixels.mean(dim=2), params)
    pixels = torch.baddbmm(offset, matrix, pixels).clamp_(0, 255)
    turned = ((params.hue != 0) & (params.gray < 0)).nonzero().flatten()
    for frames in turned.split(_HUE_CHUNK):
        pixels[frames] = _turn_hue(pixels[frames], params.hue[frames])
    return rearrange(pixels.add_(0.5).to(torch.uint8), "t c (h w) -> t c h w", h=height)


def _linear_part(means: Tensor, params: ColourParams) -> tuple[Tensor, Tensor]:
    """Per frame a matrix (T, 3, 3) and an offset (T, 3, 1), given the channels' means (T, 3)."""
    identity = torch.eye(3).expand(len(means), 3, 3)
    channel = torch.nn.functional.one_hot(params.gray.clamp(min=0), 3).float()
    is_gray = (params.gray >= 0).view(-1, 1, 1)
    # Every row of a gray frame's matrix picks the one channel.
    matrix = torch.where(is_gray, channel.unsqueeze(1), identity)
    luma = torch.tensor(_LUMA) @ matrix  # (T, 3): gray value of a pixel, after picking
    mean_gray = (luma * means).sum(dim=1)
    brightness, contrast, saturation = (
        factor.view(-1, 1, 1) for factor in (params.brightness, params.contrast, params.saturation)
    )
    saturated = saturation * matrix + (1 - saturation) * luma.unsqueeze(1)
    offset = (1 - contrast) * brightness * mean_gray.view(-1, 1, 1)
    return contrast * brightness * saturated, offset.expand(-1, 3, 1)


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of frames (n, 3, P) by `turns` (n,), keeping HSV's saturation and value."""
    red, green, blue = pixels.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    red_leads, green_leads = high == red, high == green
    # Hue in sixths of the circle: 0 is red, 2 green, 4 blue.
    slope = torch.where(red_leads, green - blue, torch.where(green_leads, blue - red, red - green))
    hue = slope.div_(chroma.clamp_min(1e-6))
    hue += torch.where(red_leads, 0.0, torch.where(green_leads, 2.0, 4.0))
    hue = hue.add_(6 * turns.unsqueeze(1)).remainder_(6)
    # A channel is at its height within a sixth of its own hue, and falls off over the next sixth.
    torch.sub(hue, 3, out=red).abs_().sub_(1)
    torch.sub(hue, 2, out=green).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=blue).abs_().neg_().add_(2)
    return pixels.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))
