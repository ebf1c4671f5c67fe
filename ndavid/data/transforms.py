"""Augmentation of one clip at a time, in workers: one draw for all frames, uint8 in and out.

augment_config.py has the recipes, augment_draws.py draws. Images are clips of one frame. Cropping
comes before resizing and all else after it, on a fraction of the pixels. batch_augment.py does the
same to whole batches on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from ndavid.data.augment_config import AugmentConfig, resolve
from ndavid.data.augment_draws import Boxes, draw
from ndavid.data.colour import jitter_colours
from ndavid.data.resampling import blurred
from ndavid.errors import ConfigError

__all__ = ["AugmentConfig", "ClipTransform", "eval_transform", "resolve", "train_transform"]


class ClipTransform(Protocol):
    """Makes a training clip out of decoded frames."""

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 (T, C, H, W) -> uint8 (T, C, size, size); centred and unchanged in colour
        without a generator.
        """


def train_transform(config: AugmentConfig) -> ClipTransform:
    """The augmentation that `config` describes: uint8 (T, C, H, W) -> (T, C, size, size).

    Everything random is drawn from the generator given at the call; without one, the clip is
    resized and centre-cropped and keeps its colours.

    Raises:
        ConfigError: an unknown preset, or a value out of its range.
    """
    return _TrainTransform(resolve(config))


@dataclass(frozen=True)
class _TrainTransform:
    config: AugmentConfig  # with no key left open

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        size = self.config.size
        if generator is None:
            return _square_at(_short_side_to(clip, size), size, 0.5)
        draws = draw(self.config, (1, len(clip), *clip.shape[-2:]), generator)
        clip = F.resize(_cut(clip, draws.boxes), [size, size], antialias=True)
        if draws.colours is not None:
            clip = jitter_colours(clip, draws.colours)
        if draws.sigma is not None:
            soft = blurred(clip.float().unsqueeze(0), draws.sigma, draws.blur_radius)
            clip = soft[0].add_(0.5).to(torch.uint8)
        return F.horizontal_flip(clip) if draws.mirrored.item() else clip


def eval_transform(size: int, crops: int = 1) -> _EvalTransform:
    """(T, C, H, W) -> (crops, T, C, size, size): short side to `size`, then square crops.

    One crop is the centre; three are the two ends of the long side and the centre.

    Raises:
        ConfigError: `crops` is neither 1 nor 3, or the size is not positive.
    """
    if crops not in (1, 3):
        raise ConfigError(f"crops must be 1 (centre) or 3 (both ends and centre), got {crops}")
    if size < 1:
        raise ConfigError(f"size must be at least 1, got {size}")
    return _EvalTransform(size, crops)


@dataclass(frozen=True)
class _EvalTransform:
    size: int
    crops: int

    def __call__(self, clip: Tensor) -> Tensor:
        clip = _short_side_to(clip, self.size)
        places = (0.5,) if self.crops == 1 else (0.0, 0.5, 1.0)
        return torch.stack([_square_at(clip, self.size, place) for place in places])


def _short_side_to(clip: Tensor, size: int) -> Tensor:
    return F.resize(clip, [size], antialias=True)


def _square_at(clip: Tensor, size: int, place: float) -> Tensor:
    """The square at `place` (0 to 1) along the long side."""
    height, width = clip.shape[-2:]
    top, left = round(place * (height - size)), round(place * (width - size))
    return clip[..., top : top + size, left : left + size]


def _cut(clip: Tensor, boxes: Boxes) -> Tensor:
    """The part of the clip inside the only box."""
    top, left, height, width = (int(side) for side in boxes)
    return clip[..., top : top + height, left : left + width]
