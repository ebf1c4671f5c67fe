"""Positive augmentation of clips: one draw for all frames, on uint8, before batching.

A preset names a recipe; any of its numbers can be overridden in the config:

    dpc       pretraining on UCF101 (Han, Xie, Zisserman 2019): flip, a square crop of 224/240 of
              the short side, resize, gray frames, colour jitter in every frame anew.
    dpc_k400  the same with a random resized crop of half to all of the area.
    finetune  random resized crop, flip, colour jitter in 30% of the clips, alike in all frames.
    none      short side to `size`, centre crop: what evaluation sees.

Differences from the paper's code: resizing is bilinear with antialiasing, not nearest; the crop is
relative to the short side, so that any stored size will do; a crop's shape is drawn evenly in the
logarithm of its ratio (torchvision's way); of the jitter, colour.py tells.

Cropping comes before resizing and all else after it, on a fraction of the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from ndavid.data.colour import ColourParams, jitter_colours
from ndavid.errors import ConfigError

Preset = Literal["dpc", "dpc_k400", "finetune", "none"]


class ClipTransform(Protocol):
    """Makes a training clip out of decoded frames."""

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 (T, C, H, W) -> uint8 (T, C, size, size); centred and unchanged in colour
        without a generator.
        """


@dataclass(kw_only=True)
class AugmentConfig:
    """How training clips are augmented. `None` means: as the preset has it.

    Attributes:
        preset: the recipe the other keys override.
        size: side of the square output, in pixels.
        crop: "square" cuts a square whose side is a fraction of the short side, "area" a rectangle
            that is a fraction of the area, "centre" the middle square.
        crop_scale: [lowest, highest] fraction, of the side ("square") or of the area ("area").
        crop_ratio: [lowest, highest] width / height of an "area" crop.
        flip: probability of mirroring the clip; 0 where left and right are classes.
        gray: probability that a frame becomes one of its colour channels.
        jitter: probability of colour jitter.
        brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x].
        hue: the shift is drawn from [-x, x], in turns of the colour circle; at most 0.5.
        per_frame_jitter: draw gray and jitter for every frame anew (DPC) or once a clip.
    """

    preset: Preset = "dpc"
    size: int = 128
    crop: Literal["square", "area", "centre"] | None = None
    crop_scale: list[float] | None = None
    crop_ratio: list[float] | None = None
    flip: float | None = None
    gray: float | None = None
    jitter: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    per_frame_jitter: bool | None = None


_DPC = AugmentConfig(
    crop="square",
    crop_scale=[224 / 240, 224 / 240],
    crop_ratio=[1.0, 1.0],
    flip=0.5,
    gray=0.5,
    jitter=1.0,
    brightness=0.5,
    contrast=0.5,
    saturation=0.5,
    hue=0.25,
    per_frame_jitter=True,
)
_DPC_K400 = replace(_DPC, crop="area", crop_scale=[0.5, 1.0], crop_ratio=[3 / 4, 4 / 3])
_FINETUNE = replace(_DPC_K400, gray=0.0, jitter=0.3, per_frame_jitter=False)
_NONE = replace(_FINETUNE, crop="centre", flip=0.0, jitter=0.0)
_PRESETS = {"dpc": _DPC, "dpc_k400": _DPC_K400, "finetune": _FINETUNE, "none": _NONE}


def resolve(config: AugmentConfig) -> AugmentConfig:
    """The config with every key that was left open filled in from its preset, and checked.

    Raises:
        ConfigError: an unknown preset, or a value out of its range.
    """
    if config.preset not in _PRESETS:
        names = ", ".join(_PRESETS)
        raise ConfigError(f"no augmentation preset {config.preset!r}: choose from {names}")
    preset = _PRESETS[config.preset]
    open_keys = [f.name for f in fields(config) if getattr(config, f.name) is None]
    filled = replace(config, **{name: getattr(preset, name) for name in open_keys})
    _check(filled)
    return filled


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
        mirrored = _uniform(generator) < _value(self.config.flip)
        clip = _crop(clip, self.config, generator)
        clip = F.resize(clip, [size, size], antialias=True)
        colours = _draw_colours(len(clip), self.config, generator)
        if colours is not None:
            clip = jitter_colours(clip, colours)
        return F.horizontal_flip(clip) if mirrored else clip


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


def _crop(clip: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """A view of the part of the clip that `config.crop` asks for."""
    height, width = clip.shape[-2:]
    if config.crop == "centre":
        return _square_at(clip, min(height, width), 0.5)
    if config.crop == "square":
        h = w = max(1, round(min(height, width) * _uniform(generator, config.crop_scale)))
    else:
        h, w = _area_box(height, width, config, generator)
    top = _randint(height - h, generator)
    left = _randint(width - w, generator)
    return clip[..., top : top + h, left : left + w]


def _area_box(
    height: int, width: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[int, int]:
    """(height, width) of a box with a random share of the area, as RandomResizedCrop draws it."""
    for _ in range(10):
        area = height * width * _uniform(generator, config.crop_scale)
        ratio = math.exp(_uniform(generator, [math.log(r) for r in config.crop_ratio or [1, 1]]))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return h, w
    side = min(height, width)  # no box of that shape fits: the largest square does
    return side, side


def _draw_colours(
    num_frames: int, config: AugmentConfig, generator: torch.Generator
) -> ColourParams | None:
    """Colour parameters for every frame, or None where nothing would change."""
    draws = num_frames if config.per_frame_jitter else 1

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(draws, generator=generator)

    channel = torch.randint(3, (draws,), generator=generator)
    gray = torch.where(uniform() < _value(config.gray), channel, -1)
    jittered = uniform() < _value(config.jitter)

    def factor(strength: float | None) -> Tensor:
        drawn = uniform(max(0.0, 1 - _value(strength)), 1 + _value(strength))
        return torch.where(jittered, drawn, 1.0)

    brightness = factor(config.brightness)
    contrast = factor(config.contrast)
    saturation = factor(config.saturation)
    hue = torch.where(jittered, uniform(-_value(config.hue), _value(config.hue)), 0.0)
    if not (jittered.any() or (gray >= 0).any()):
        return None
    values = (brightness, contrast, saturation, hue, gray)
    return ColourParams(*(value.expand(num_frames) for value in values))


def _check(config: AugmentConfig) -> None:
    """Raises ConfigError for a value out of its range; no key may be open."""
    if config.size < 1:
        raise ConfigError(f"size must be at least 1, got {config.size}")
    if config.crop not in ("square", "area", "centre"):
        raise ConfigError(f"no crop {config.crop!r}: choose square, area or centre")
    for name in ("flip", "gray", "jitter"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} is a probability, got {getattr(config, name)}")
    for name in ("brightness", "contrast", "saturation"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    if not 0 <= _value(config.hue) <= 0.5:
        raise ConfigError(f"hue must lie between 0 and 0.5 turns, got {config.hue}")
    for name, highest in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
        ends = getattr(config, name)
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= highest:
            raise ConfigError(f"{name} must be [lowest, highest] inside (0, {highest}], got {ends}")


def _value(number: float | None) -> float:
    """A key of a resolved config, in which none is open."""
    assert number is not None
    return number


def _uniform(generator: torch.Generator, ends: list[float] | None = None) -> float:
    low, high = ends or (0.0, 1.0)
    return low + (high - low) * float(torch.rand((), generator=generator))


def _randint(highest: int, generator: torch.Generator) -> int:
    """0 to `highest`, both possible."""
    return int(torch.randint(highest + 1, (), generator=generator))
