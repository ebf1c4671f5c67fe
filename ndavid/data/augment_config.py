"""How clips and images are augmented: presets that name a recipe, and keys that override them.

    dpc       pretraining on UCF101 (Han, Xie, Zisserman 2019): flip, a square crop of 224/240 of
              the short side, resize, gray frames, colour jitter in every frame anew.
    dpc_k400  the same with a random resized crop of half to all of the area.
    finetune  random resized crop, flip, colour jitter in 30% of the clips, alike in all frames.
    moco_v2   MoCo v2 (Chen, Fan, Girshick, He 2020): random resized crop of a fifth to all of the
              area, colour jitter in 80%, gray in 20%, blur in half, flip; alike in all frames.
    moco_v2_small  the same without blur, as is usual for images of 32 pixels.
    linear    random resized crop of 8% to all of the area and flip: what MoCo's linear classifier
              is trained with.
    none      short side to `size`, centre crop: what evaluation sees.

Differences from the papers' code: resizing is bilinear with antialiasing, not nearest; a square
crop is relative to the short side, so that any stored size will do; a crop's shape is drawn evenly
in the logarithm of its ratio (torchvision's way); of the jitter, colour.py tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from ndavid.errors import ConfigError
from ndavid.ranges import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, Range, check_ranges

Preset = Literal["dpc", "dpc_k400", "finetune", "moco_v2", "moco_v2_small", "linear", "none"]


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
        gray: probability that a frame becomes gray.
        gray_mode: "channel": one of its colour channels, drawn anew; "luma": the weighted mean of
            the three that video and JPEG use.
        jitter: probability of colour jitter.
        brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x].
        hue: the shift is drawn from [-x, x], in turns of the colour circle; at most 0.5.
        per_frame_jitter: draw gray and jitter for every frame anew (DPC) or once a clip.
        blur: probability of Gaussian blur.
        blur_sigma: [lowest, highest] standard deviation of the blur, in pixels of the output.
    """

    preset: Preset = "dpc"
    size: int = 128
    crop: Literal["square", "area", "centre"] | None = None
    crop_scale: list[float] | None = None
    crop_ratio: list[float] | None = None
    flip: float | None = None
    gray: float | None = None
    gray_mode: Literal["channel", "luma"] | None = None
    jitter: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    per_frame_jitter: bool | None = None
    blur: float | None = None
    blur_sigma: list[float] | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            size=AT_LEAST_1,
            crop_scale=POSITIVE,
            crop_ratio=POSITIVE,
            flip=SHARE,
            gray=SHARE,
            jitter=SHARE,
            brightness=NOT_NEGATIVE,
            contrast=NOT_NEGATIVE,
            saturation=NOT_NEGATIVE,
            hue=Range(0, 0.5),
            blur=SHARE,
            blur_sigma=NOT_NEGATIVE,
        )


_DPC = AugmentConfig(
    crop="square",
    crop_scale=[224 / 240, 224 / 240],
    crop_ratio=[1.0, 1.0],
    flip=0.5,
    gray=0.5,
    gray_mode="channel",
    jitter=1.0,
    brightness=0.5,
    contrast=0.5,
    saturation=0.5,
    hue=0.25,
    per_frame_jitter=True,
    blur=0.0,
    blur_sigma=[0.1, 2.0],
)
_DPC_K400 = replace(_DPC, crop="area", crop_scale=[0.5, 1.0], crop_ratio=[3 / 4, 4 / 3])
_FINETUNE = replace(_DPC_K400, gray=0.0, jitter=0.3, per_frame_jitter=False)
_NONE = replace(_FINETUNE, crop="centre", flip=0.0, jitter=0.0)
_MOCO_V2 = AugmentConfig(
    crop="area",
    crop_scale=[0.2, 1.0],
    crop_ratio=[3 / 4, 4 / 3],
    flip=0.5,
    gray=0.2,
    gray_mode="luma",
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    per_frame_jitter=False,
    blur=0.5,
    blur_sigma=[0.1, 2.0],
)
_LINEAR = replace(_MOCO_V2, crop_scale=[0.08, 1.0], gray=0.0, jitter=0.0, blur=0.0)
_PRESETS: dict[str, AugmentConfig] = {
    "dpc": _DPC,
    "dpc_k400": _DPC_K400,
    "finetune": _FINETUNE,
    "moco_v2": _MOCO_V2,
    "moco_v2_small": replace(_MOCO_V2, blur=0.0),
    "linear": _LINEAR,
    "none": _NONE,
}


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


def value(number: float | None) -> float:
    """A key of a resolved config, in which none is open."""
    assert number is not None
    return number


def _check(config: AugmentConfig) -> None:
    """Raises ConfigError for a value out of its range; no key may be open."""
    if config.size < 1:
        raise ConfigError(f"size must be at least 1, got {config.size}")
    if config.crop not in ("square", "area", "centre"):
        raise ConfigError(f"no crop {config.crop!r}: choose square, area or centre")
    if config.gray_mode not in ("channel", "luma"):
        raise ConfigError(f"no gray_mode {config.gray_mode!r}: choose channel or luma")
    for name in ("flip", "gray", "jitter", "blur"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} is a probability, got {getattr(config, name)}")
    for name in ("brightness", "contrast", "saturation"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} must not be negative, got {getattr(config, name)}")
    if not 0 <= value(config.hue) <= 0.5:
        raise ConfigError(f"hue must lie between 0 and 0.5 turns, got {config.hue}")
    ranges = (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf))
    for name, highest in ranges:
        ends = getattr(config, name)
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= highest:
            raise ConfigError(f"{name} must be [lowest, highest] inside (0, {highest}], got {ends}")
