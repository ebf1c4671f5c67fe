"""Clips are augmented alike in all frames, by the generator alone, and within the bounds asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ndavid.data.transforms import AugmentConfig, eval_transform, resolve, train_transform
from ndavid.errors import ConfigError

PRESETS = ["dpc", "dpc_k400", "finetune", "moco_v2", "moco_v2_small", "linear", "none"]


def still_clip(frames: int = 6, height: int = 60, width: int = 80, seed: int = 0) -> Tensor:
    """One random picture, repeated: whatever differs between frames came from the transform."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return picture.expand(frames, 3, height, width).clone()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def geometry(preset: str, **keys) -> AugmentConfig:
    """A preset without its colour work."""
    return AugmentConfig(preset=preset, gray=0.0, jitter=0.0, **keys)


@settings(deadline=None, max_examples=40)
@given(
    preset=st.sampled_from(PRESETS),
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    size=st.integers(4, 48),
    seed=st.integers(0, 2**40),
)
def test_any_clip_becomes_a_square_of_bytes(preset, height, width, size, seed) -> None:
    transform = train_transform(AugmentConfig(preset=preset, size=size))
    for generator in (seeded(seed), None):
        result = transform(still_clip(3, height, width), generator)
        assert result.shape == (3, 3, size, size) and result.dtype == torch.uint8


@pytest.mark.parametrize("preset", PRESETS)
def test_the_generator_decides_everything(preset) -> None:
    clip = still_clip()
    transform = train_transform(AugmentConfig(preset=preset, size=32))
    state = torch.get_rng_state()
    first, again = transform(clip, seeded(5)), transform(clip, seeded(5))
    assert torch.equal(first, again)
    others = [transform(clip, seeded(seed)) for seed in range(6)]
    assert any(not torch.equal(first, other) for other in others) == (preset != "none")
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(clip, still_clip())  # and so is the input


@pytest.mark.parametrize("preset", ["dpc", "dpc_k400", "finetune", "moco_v2"])
@pytest.mark.parametrize("seed", range(5))
def test_geometry_is_the_same_in_all_frames(preset, seed) -> None:
    result = train_transform(geometry(preset, size=32))(still_clip(), seeded(seed))
    assert torch.equal(result, result[:1].expand_as(result))


@pytest.mark.parametrize("seed", range(5))
def test_colour_is_drawn_per_clip_or_per_frame(seed) -> None:
    always = AugmentConfig(preset="finetune", jitter=1.0, size=32)
    alike = train_transform(always)(still_clip(), seeded(seed))
    assert torch.equal(alike, alike[:1].expand_as(alike))
    dpc = train_transform(AugmentConfig(preset="dpc", size=32))(still_clip(), seeded(seed))
    assert all(not torch.equal(dpc[0], frame) for frame in dpc[1:])


def test_gray_frames_occur_as_often_as_asked() -> None:
    config = AugmentConfig(preset="dpc", gray=0.3, size=8)
    result = train_transform(config)(still_clip(frames=400), seeded(0))
    gray = ((result[:, 0] == result[:, 1]) & (result[:, 1] == result[:, 2])).flatten(1).all(1)
    assert 0.22 < gray.float().mean() < 0.38


def test_luma_gray_is_all_frames_or_none() -> None:
    config = AugmentConfig(preset="none", gray=0.4, gray_mode="luma", size=60)
    transform, clip = train_transform(config), still_clip(3)
    expected = F.rgb_to_grayscale(clip[..., 10:70], num_output_channels=3)
    count = 0
    for seed in range(100):
        result = transform(clip, seeded(seed))
        gray = (result[:, 0] == result[:, 1]).all()
        assert gray == (result[0, 0] == result[0, 1]).all()  # alike in all frames
        if gray:
            assert (result.short() - expected.short()).abs().max() <= 1
        count += int(gray)
    assert 25 < count < 55


def test_blur_is_torchvisions_and_a_probability() -> None:
    config = AugmentConfig(
        preset="none", blur=0.5, blur_sigma=[1.5, 1.5], size=60
    )  # cut off at 3 sigma, rounded up: 5 pixels
    clip = still_clip(2)
    sharp, soft = clip[..., 10:70], F.gaussian_blur(clip[..., 10:70], [11, 11], [1.5, 1.5])
    blurs = 0
    for seed in range(60):
        result = train_transform(config)(clip, seeded(seed))
        is_soft = not torch.equal(result, sharp)
        if is_soft:
            assert (result.short() - soft.short()).abs().max() <= 1
        blurs += is_soft
    assert 18 < blurs < 42


def test_flip_is_a_probability() -> None:
    clip = still_clip()
    centre = {"crop": "centre", "size": 60}
    upright = train_transform(geometry("dpc", flip=0.0, **centre))
    mirrored = train_transform(geometry("dpc", flip=1.0, **centre))
    sometimes = train_transform(geometry("dpc", flip=0.5, **centre))
    expected = clip[..., 10:70]
    flips = 0
    for seed in range(60):
        assert torch.equal(upright(clip, seeded(seed)), expected)
        assert torch.equal(mirrored(clip, seeded(seed)), expected.flip(-1))
        flips += torch.equal(sometimes(clip, seeded(seed)), expected.flip(-1))
    assert 18 < flips < 42


def crop_of(result: Tensor) -> tuple[float, float, float, float]:
    """(top, bottom, left, right) that a crop of a picture of coordinates shows."""
    rows, columns = result[0, 0].float(), result[0, 1].float()
    return rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()


def coordinates(height: int = 120, width: int = 160) -> Tensor:
    """A clip whose first channel is the row and whose second is the column."""
    picture = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    picture[:, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    picture[:, 1] = torch.arange(width, dtype=torch.uint8)
    return picture


def test_dpc_crops_a_square_of_its_share_anywhere() -> None:
    transform = train_transform(geometry("dpc", flip=0.0, size=112))
    boxes = [crop_of(transform(coordinates(), seeded(seed))) for seed in range(80)]
    # 224/240 of 120 is 112, the output's size: pixels come through as they are.
    assert all(bottom - top == 111 and right - left == 111 for top, bottom, left, right in boxes)
    assert {top for top, *_ in boxes} == set(range(9))
    lefts = [left for _, _, left, _ in boxes]
    assert min(lefts) < 5 and max(lefts) > 43


def test_area_crops_keep_their_bounds() -> None:
    transform = train_transform(geometry("dpc_k400", flip=0.0, size=64))
    for seed in range(80):
        top, bottom, left, right = crop_of(transform(coordinates(), seeded(seed)))
        height, width = bottom - top + 1, right - left + 1
        assert 0.44 < height * width / (120 * 160) <= 1.0
        assert 0.7 < width / height < 1.42


def test_no_generator_means_the_centre_unchanged() -> None:
    transform = train_transform(AugmentConfig(preset="dpc", size=60))
    assert torch.equal(transform(still_clip()), still_clip()[..., 10:70])
    assert torch.equal(transform(still_clip())[None], eval_transform(60)(still_clip()))


def test_resizing_is_antialiased() -> None:
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255  # nearest neighbour would give all of one kind
    result = train_transform(AugmentConfig(preset="none", size=16))(stripes)
    assert result[..., 2:-2].float().sub(127.5).abs().max() < 20


def test_eval_crops_are_the_ends_and_the_centre() -> None:
    clip = coordinates(120, 200)
    one = eval_transform(120)(clip)
    three = eval_transform(120, crops=3)(clip)
    assert one.shape == (1, 1, 3, 120, 120) and three.shape == (3, 1, 3, 120, 120)
    assert [crop_of(crop)[2] for crop in three] == [0, 40, 80]
    assert torch.equal(one[0], three[1])
    tall = eval_transform(120, crops=3)(coordinates(200, 120))
    assert [crop_of(crop)[0] for crop in tall] == [0, 40, 80]
    assert eval_transform(30, crops=3)(clip).shape == (3, 1, 3, 30, 30)


def test_mocos_recipes_are_the_papers() -> None:
    moco = resolve(AugmentConfig(preset="moco_v2"))
    assert (moco.crop, moco.crop_scale, moco.crop_ratio) == ("area", [0.2, 1.0], [3 / 4, 4 / 3])
    strengths = (moco.brightness, moco.contrast, moco.saturation, moco.hue)
    assert strengths == (0.4, 0.4, 0.4, 0.1)
    assert (moco.jitter, moco.gray, moco.blur, moco.flip) == (0.8, 0.2, 0.5, 0.5)
    assert (moco.gray_mode, moco.blur_sigma) == ("luma", [0.1, 2.0])
    small = resolve(AugmentConfig(preset="moco_v2_small"))
    assert replace(small, preset="moco_v2", blur=0.5) == moco
    linear = resolve(AugmentConfig(preset="linear"))
    assert linear.crop_scale == [0.08, 1.0] and linear.flip == 0.5
    assert (linear.jitter, linear.gray, linear.blur) == (0.0, 0.0, 0.0)


def test_every_key_overrides_its_preset() -> None:
    plain = resolve(AugmentConfig(preset="dpc"))
    assert (plain.crop, plain.gray, plain.hue, plain.per_frame_jitter) == (
        "square",
        0.5,
        0.25,
        True,
    )
    changed = resolve(AugmentConfig(preset="dpc", gray=0.1, per_frame_jitter=False, size=64))
    assert (changed.gray, changed.per_frame_jitter, changed.size) == (0.1, False, 64)
    assert (changed.brightness, changed.flip) == (plain.brightness, plain.flip)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preset": "dcp"}, "choose from dpc"),
        ({"flip": 1.5}, r"flip must be in \[0, 1\]"),
        ({"hue": 0.7}, r"hue must be in \[0, 0.5\]"),
        ({"brightness": -0.1}, "brightness must be at least 0"),
        ({"size": 0}, "size must be at least 1"),
        ({"crop_scale": [0.9, 0.5]}, "crop_scale must be"),
        ({"crop_scale": [0.5, 1.5]}, "crop_scale must be"),
        ({"crop_ratio": [1.0]}, "crop_ratio must be"),
        ({"crop": "circle"}, "no crop 'circle'"),
        ({"blur": -0.5}, r"blur must be in \[0, 1\]"),
        ({"blur_sigma": [0.0, 2.0]}, "blur_sigma must be"),
        ({"gray_mode": "mean"}, "choose channel or luma"),
    ],
)
def test_impossible_settings(keys, message) -> None:
    with pytest.raises(ConfigError, match=message):
        train_transform(AugmentConfig(**keys))


def test_impossible_crops() -> None:
    with pytest.raises(ConfigError, match="crops must be 1"):
        eval_transform(64, crops=2)
    with pytest.raises(ConfigError, match="size must be at least 1"):
        eval_transform(0)
