"""What is random in augmentation, drawn for a batch of clips at once, apart from its application.

Workers draw for one clip, the device's augmentation for a batch: the same recipe, one code. All
comes from the given generator, on the CPU, so that the device has no say in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ndavid.data.augment_config import AugmentConfig, value
from ndavid.data.colour import LUMA, ColourParams

# Random boxes tried for each clip before the largest square is taken, as RandomResizedCrop does.
_TRIES = 10

# A Gaussian is cut off this many standard deviations from its centre.
_CUT_OFF = 3


class Boxes(NamedTuple):
    """Crops in pixels of the input; all long, (B,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


@dataclass(frozen=True)
class Draws:
    """What happens to B clips of T frames.

    Attributes:
        boxes: the crops.
        mirrored: bool, (B,).
        colours: colour parameters of B * T frames, a clip's frames together; None for no change.
        sigma: float, (B,): standard deviations of the blur in pixels of the output, 0 for none;
            None where no clip is blurred.
        blur_radius: pixels from the centre where the blur ends, whatever its sigma.
    """

    boxes: Boxes
    mirrored: Tensor
    colours: ColourParams | None
    sigma: Tensor | None
    blur_radius: int


def draw(
    config: AugmentConfig, shape: tuple[int, int, int, int], generator: torch.Generator
) -> Draws:
    """Draws for a batch of shape (B, T, H, W); `config` must be resolved."""
    batch, frames, height, width = shape
    mirrored = torch.rand(batch, generator=generator) < value(config.flip)
    boxes = _draw_boxes(config, batch, height, width, generator)
    colours = _draw_colours(config, batch, frames, generator)
    return Draws(
        boxes=boxes,
        mirrored=mirrored,
        colours=colours,
        sigma=_draw_sigma(config, batch, generator),
        blur_radius=math.ceil(_CUT_OFF * _ends(config.blur_sigma)[1]),
    )


def _draw_boxes(
    config: AugmentConfig, batch: int, height: int, width: int, generator: torch.Generator
) -> Boxes:
    short = min(height, width)
    if config.crop == "area":
        h, w = _area_sides(config, batch, height, width, generator)
    elif config.crop == "square":
        scale = _uniform(batch, _ends(config.crop_scale), generator)
        h = w = (short * scale).round().long().clamp(min=1)
    else:
        h = w = torch.full((batch,), short)
        return Boxes(_halved(height - h), _halved(width - w), h, w)
    top = _at_most(height - h, generator)
    return Boxes(top, _at_most(width - w, generator), h, w)


def _area_sides(
    config: AugmentConfig, batch: int, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Heights and widths of boxes with a random share of the area, as RandomResizedCrop draws."""
    short = min(height, width)
    h, w = torch.full((batch,), short), torch.full((batch,), short)
    left = torch.ones(batch, dtype=torch.bool)
    low, high = (math.log(ratio) for ratio in _ends(config.crop_ratio))
    for _ in range(_TRIES):
        area = height * width * _uniform(batch, _ends(config.crop_scale), generator)
        ratio = _uniform(batch, (low, high), generator).exp()
        tall, wide = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
        fits = left & (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
        h, w = torch.where(fits, tall, h), torch.where(fits, wide, w)
        left &= ~fits
        if not left.any():
            break
    return h, w


def _draw_colours(
    config: AugmentConfig, batch: int, frames: int, generator: torch.Generator
) -> ColourParams | None:
    """Colour parameters of B * T frames, or None where nothing would change."""
    draws = batch * frames if config.per_frame_jitter else batch

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(draws, generator=generator)

    channel = torch.randint(3, (draws,), generator=generator)
    kind = channel if config.gray_mode == "channel" else torch.full_like(channel, LUMA)
    gray = torch.where(uniform() < value(config.gray), kind, -1)
    jittered = uniform() < value(config.jitter)

    def factor(strength: float | None) -> Tensor:
        drawn = uniform(max(0.0, 1 - value(strength)), 1 + value(strength))
        return torch.where(jittered, drawn, 1.0)

    brightness = factor(config.brightness)
    contrast = factor(config.contrast)
    saturation = factor(config.saturation)
    hue = torch.where(jittered, uniform(-value(config.hue), value(config.hue)), 0.0)
    if not (jittered.any() or (gray >= 0).any()):
        return None
    values = (brightness, contrast, saturation, hue, gray)
    times = 1 if config.per_frame_jitter else frames
    return ColourParams(*(drawn.repeat_interleave(times) for drawn in values))


def _draw_sigma(config: AugmentConfig, batch: int, generator: torch.Generator) -> Tensor | None:
    soft = torch.rand(batch, generator=generator) < value(config.blur)
    sigma = _uniform(batch, _ends(config.blur_sigma), generator).float()
    return torch.where(soft, sigma, 0.0) if soft.any() else None


def _uniform(count: int, ends: Sequence[float], generator: torch.Generator) -> Tensor:
    low, high = ends
    return low + (high - low) * torch.rand(count, generator=generator).double()


def _at_most(highest: Tensor, generator: torch.Generator) -> Tensor:
    """Long, 0 to `highest` (B,), all alike probable."""
    share = torch.rand(len(highest), generator=generator).double()
    return (share * (highest + 1)).long()


def _halved(length: Tensor) -> Tensor:
    """Half of it, ties to the even number: where the centre crop of evaluation begins."""
    return (length / 2).round().long()


def _ends(ends: list[float] | None) -> list[float]:
    """A range of a resolved config, in which none is open."""
    assert ends is not None
    return ends
