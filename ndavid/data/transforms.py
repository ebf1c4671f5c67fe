"""Augmentation of one clip at a time, in workers: one draw for all frames, uint8 in and out.

augment_config.py has the recipes, augment_draws.py draws. Images are clips of one frame. Cropping
comes before resizing and all else after it, on a fraction of the pixels. batch_augment.py does the
same to whole batches on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from ndavid.data.augment_config import AugmentConfig, resolve, value
from ndavid.data.augment_draws import Boxes, Draws, draw
from ndavid.data.colour import jitter_colours
from ndavid.data.content import ClipContent, content_of
from ndavid.data.resampling import blurred
from ndavid.errors import ConfigError

__all__ = [
    "AugmentConfig",
    "ClipTransform",
    "TellsContent",
    "eval_transform",
    "resolve",
    "train_transform",
]


class ClipTransform(Protocol):
    """Makes a training clip out of decoded frames."""

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 (T, C, H, W) -> uint8 (T, C, size, size); centred and unchanged in colour
        without a generator.
        """


@runtime_checkable
class TellsContent(Protocol):
    """A clip transform that also tells what frames show, where their colours hide it."""

    def with_content(
        self, clip: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ClipContent | None]:
        """What the transform makes of the clip, from the same draws, and its content; None where
        equal frames come out equal, so that the pixels tell.
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
        return self._coloured(self._cropped(clip, draws), draws)

    def with_content(
        self, clip: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ClipContent | None]:
        """As `TellsContent` has it."""
        if generator is None or not self._hides_content():
            return self(clip, generator), None
        draws = draw(self.config, (1, len(clip), *clip.shape[-2:]), generator)
        clip = self._cropped(clip, draws)
        return self._coloured(clip, draws), content_of(_mirrored(clip, draws))

    def _hides_content(self) -> bool:
        """Whether two equal frames may come out different. A batch needs one answer: no draw's."""
        coloured = value(self.config.gray) > 0 or value(self.config.jitter) > 0
        return bool(self.config.per_frame_jitter) and coloured

    def _cropped(self, clip: Tensor, draws: Draws) -> Tensor:
        size = self.config.size
        return F.resize(_cut(clip, draws.boxes), [size, size], antialias=True)

    def _coloured(self, clip: Tensor, draws: Draws) -> Tensor:
        """What happens after the crop, on a fraction of the pixels."""
        if draws.colours is not None:
            clip = jitter_colours(clip, draws.colours)
        if draws.sigma is not None:
            soft = blurred(clip.float().unsqueeze(0), draws.sigma, draws.blur_radius)
            clip = soft[0].add_(0.5).to(torch.uint8)
        return _mirrored(clip, draws)


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


def _mirrored(clip: Tensor, draws: Draws) -> Tensor:
    return F.horizontal_flip(clip) if draws.mirrored.item() else clip


def _cut(clip: Tensor, boxes: Boxes) -> Tensor:
    """The part of the clip inside the only box."""
    top, left, height, width = (int(side) for side in boxes)
    return clip[..., top : top + height, left : left + width]
