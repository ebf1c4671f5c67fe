"""Positive augmentation of clips: one draw for all frames, on uint8, before batching.

A preset names a recipe; any of its numbers can be overridden in the config:

    dpc       pretraining on UCF101 (Han, Xie, Zisserman 2019): flip, a square crop of 224/240 of
              the short side, resize, gray frames, colour jitter in every frame anew.
    dpc_k400  the same with a random resized crop of half to all of the area.
    finetune  random resized crop, flip, colour jitter in 30% of the clips, alike in all frames.
    none      short side to `size`, centre crop: what evaluation sees.

Differences from the paper's code: resizing is bilinear with antialiasing, not nearest; colour is
done after resizing, on a fraction of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

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


_DPC_JITTER = {"jitter": 1.0, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
_PRESETS: dict[str, AugmentConfig] = {
    "dpc": AugmentConfig(
        crop="square",
        crop_scale=[224 / 240, 224 / 240],
        crop_ratio=[1.0, 1.0],
        flip=0.5,
        gray=0.5,
        per_frame_jitter=True,
        **_DPC_JITTER,  # type: ignore[arg-type]
    ),
    "dpc_k400": AugmentConfig(
        crop="area",
        crop_scale=[0.5, 1.0],
        crop_ratio=[3 / 4, 4 / 3],
        flip=0.5,
        gray=0.5,
        per_frame_jitter=True,
        **_DPC_JITTER,  # type: ignore[arg-type]
    ),
    "finetune": AugmentConfig(
        crop="area",
        crop_scale=[0.5, 1.0],
        crop_ratio=[3 / 4, 4 / 3],
        flip=0.5,
        gray=0.0,
        per_frame_jitter=False,
        **(_DPC_JITTER | {"jitter": 0.3}),  # type: ignore[arg-type]
    ),
    "none": AugmentConfig(
        crop="centre",
        crop_scale=[1.0, 1.0],
        crop_ratio=[1.0, 1.0],
        flip=0.0,
        gray=0.0,
        jitter=0.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        per_frame_jitter=False,
    ),
}


def resolve(config: AugmentConfig) -> AugmentConfig:
    """The config with every key that was left open filled in from its preset.

    Raises:
        ConfigError: an unknown preset, or a value out of its range.
    """
    if config.preset not in _PRESETS:
        raise ConfigError(f"no augmentation preset {config.preset!r}: {', '.join(_PRESETS)}")
    preset = _PRESETS[config.preset]
    open_keys = [f.name for f in fields(config) if getattr(config, f.name) is None]
    return replace(config, **{name: getattr(preset, name) for name in open_keys})


def train_transform(config: AugmentConfig) -> ClipTransform:
    """The augmentation that `config` describes, as a callable on (clip, generator)."""
    return _TrainTransform(resolve(config))


class _TrainTransform:
    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        size = self.config.size
        if generator is None:
            return _centre(clip, size)
        if _uniform(generator) < (self.config.flip or 0.0):
            clip = F.horizontal_flip(clip)
        clip = _random_crop(clip, self.config, generator)
        clip = F.resize(clip, [size, size], antialias=True)
        return clip


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


def _centre(clip: Tensor, size: int) -> Tensor:
    return _square_at(_short_side_to(clip, size), size, 0.5)


def _random_crop(clip: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    height, width = clip.shape[-2:]
    low, high = config.crop_scale or [1.0, 1.0]
    if config.crop == "square":
        side = round(min(height, width) * _uniform(generator, low, high))
        h, w = side, side
    elif config.crop == "area":
        h, w = _area_box(height, width, config, generator)
    else:
        h = w = min(height, width)
        top, left = (height - h) // 2, (width - w) // 2
        return clip[..., top : top + h, left : left + w]
    top = int(torch.randint(height - h + 1, (), generator=generator))
    left = int(torch.randint(width - w + 1, (), generator=generator))
    return clip[..., top : top + h, left : left + w]


def _area_box(
    height: int, width: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[int, int]:
    low, high = config.crop_scale or [1.0, 1.0]
    narrow, wide = config.crop_ratio or [1.0, 1.0]
    for _ in range(10):
        area = height * width * _uniform(generator, low, high)
        ratio = _uniform(generator, narrow, wide)
        h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            return h, w
    side = min(height, width)
    return side, side


def _uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
