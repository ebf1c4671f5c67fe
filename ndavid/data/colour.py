"""Gray frames and colour jitter for many frames at once, each with its own parameters.

torchvision's ColorJitter takes one set of parameters a call and rounds to uint8 four times; DPC
draws anew for each of 40 frames, and a batch has hundreds of images. Brightness, contrast,
saturation and gray are linear in the colour of a pixel, so that here each frame has one 3x3 matrix,
and all frames are one matrix product. Hue is torchvision's, exactly: a turn of HSV's circle; gray
frames are spared it.

Differences from torchvision: the order is fixed (gray, brightness, contrast, saturation, hue), and
values are clamped twice (before hue and at the end) and rounded once. MoCo turns gray after the
jitter: of luma gray only the hue's turn, which changes luma a little, tells the two orders apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

# ITU-R BT.601, as torchvision and PIL weigh the channels.
_LUMA_WEIGHTS = (0.299, 0.587, 0.114)

# In ColourParams.gray: the luma, where 0 to 2 are channels.
LUMA = 3

# Pixels worked on at a time on a CPU: few enough that the temporaries stay in its cache.
_CHUNK = 8 * 128 * 128


@dataclass(frozen=True)
class ColourParams:
    """What happens to the colours of T frames; all float32, (T,), except the gray channel.

    Attributes:
        brightness, contrast, saturation: factors, 1 for unchanged.
        hue: shift in turns of the colour circle, 0 for unchanged.
        gray: long, (T,): the channel that stands for all three, LUMA, or -1.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor

    def __getitem__(self, frames: slice) -> ColourParams:
        """The parameters of some of the frames."""
        return ColourParams(
            self.brightness[frames],
            self.contrast[frames],
            self.saturation[frames],
            self.hue[frames],
            self.gray[frames],
        )

    def to(self, device: torch.device) -> ColourParams:
        """The parameters on a device."""
        factors = torch.stack([self.brightness, self.contrast, self.saturation, self.hue])
        brightness, contrast, saturation, hue = factors.to(device)  # one transfer
        return ColourParams(brightness, contrast, saturation, hue, self.gray.to(device))


def jitter_colours(clip: Tensor, params: ColourParams) -> Tensor:
    """Frames uint8 (T, 3, H, W) with their colours changed frame by frame; same shape."""
    planes = rearrange(clip, "t c h w -> t c (h w)").contiguous()  # products are slow otherwise
    result = torch.empty_like(planes)
    for frames in _chunks(planes):
        changed = _jitter_chunk(planes[frames].float(), params[frames])
        # Not uint8 at once: torch takes three times as long for that as by way of int16.
        result[frames] = changed.add_(0.5).to(torch.int16)
    return rearrange(result, "t c (h w) -> t c h w", h=clip.shape[-2])


def jitter_planes(planes: Tensor, params: ColourParams) -> Tensor:
    """The same for float frames (T, 3, P) of 0 to 255, on any device; parameters on the CPU."""
    if planes.is_cuda:
        return _jitter_chunk(planes, params)
    return torch.cat([_jitter_chunk(planes[part], params[part]) for part in _chunks(planes)])


def _chunks(planes: Tensor) -> Iterator[slice]:
    """Portions of frames (T, 3, P) that fit the cache."""
    step = max(1, _CHUNK // planes.shape[2])
    return (slice(start, start + step) for start in range(0, len(planes), step))


def _jitter_chunk(pixels: Tensor, params: ColourParams) -> Tensor:
    """Float frames (n, 3, P) with their colours changed, 0 to 255."""
    coloured = ((params.hue != 0) & (params.gray < 0)).nonzero().flatten()
    matrix, offset = _linear_part(pixels.mean(dim=2), params.to(pixels.device))
    pixels = torch.bmm(matrix, pixels).add_(offset).clamp_(0, 255)
    if len(coloured):
        turns = params.hue[coloured].to(pixels.device)
        coloured = coloured.to(pixels.device)
        pixels.index_copy_(0, coloured, _turn_hue(pixels.index_select(0, coloured), turns))
    return pixels


def _linear_part(means: Tensor, params: ColourParams) -> tuple[Tensor, Tensor]:
    """Per frame a matrix (T, 3, 3) and an offset (T, 3, 1), given the channels' means (T, 3)."""
    identity = torch.eye(3, device=means.device)
    weights = torch.tensor(_LUMA_WEIGHTS, device=means.device)
    # Every row of a gray frame's matrix picks the one channel, or the luma.
    picks = torch.cat([identity, weights.unsqueeze(0)])[params.gray.clamp(min=0)]
    matrix = torch.where((params.gray >= 0).view(-1, 1, 1), picks.unsqueeze(1), identity)
    luma = weights @ matrix  # (T, 3): gray value of a pixel, after picking
    mean_gray = (luma * means).sum(dim=1)
    brightness, contrast, saturation = (
        factor.view(-1, 1, 1) for factor in (params.brightness, params.contrast, params.saturation)
    )
    saturated = saturation * matrix + (1 - saturation) * luma.unsqueeze(1)
    offset = (1 - contrast) * brightness * mean_gray.view(-1, 1, 1)
    return contrast * brightness * saturated, offset.expand(-1, 3, 1)


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of frames (n, 3, P) by `turns` (n,), keeping HSV's saturation and value.

    Written without selections, which cost twenty times as much as arithmetic. With the channels
    scaled to [0, 1], red's distance from the hue is 1 - r + g + b sixths of the circle.
    """
    red, green, blue = pixels.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high.sub_(low)
    distance = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-6)).add_(1)
    # Hue in sixths, -3 to 3: red at 0, green at 2, blue at -2; turned, and brought back in.
    hue = distance.copysign_(green - blue).add_(6 * turns.unsqueeze(1))
    hue.sub_((hue / 6).round_().mul_(6))
    for channel, home in ((red, 0), (green, 2), (blue, -2)):
        # Full within a sixth of its own hue, none beyond two; either way around the circle.
        torch.sub(hue, home, out=channel).abs_().sub_(3).abs_().sub_(1)
    return pixels.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))
