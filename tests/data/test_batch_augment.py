"""A batch on the device gets what each of its samples would get from torchvision by itself."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ndavid.data.augment_config import Preset
from ndavid.data.augment_draws import Draws, draw
from ndavid.data.batch_augment import BatchAugment
from ndavid.data.colour import LUMA
from ndavid.data.transforms import AugmentConfig, resolve, train_transform
from ndavid.errors import ConfigError

PRESETS: list[Preset] = [
    "moco_v2",
    "moco_v2_small",
    "linear",
    "dpc",
    "dpc_k400",
    "finetune",
    "none",
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 8, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Smooth images away from black and white: jitter clips nothing, so that orders agree."""
    coarse = torch.rand(batch, 3, 5, 5, generator=seeded(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (90 + 60 * smooth).to(torch.uint8)


def one_by_one(pixels: Tensor, draws: Draws, size: int) -> Tensor:
    """torchvision's functional operations on one image after another, with the same draws."""
    results = []
    for k, image in enumerate(pixels):
        box = [int(side[k]) for side in draws.boxes]
        image = F.resized_crop(image / 255, *box, [size, size], antialias=True)
        colours = draws.colours
        if colours is not None:
            gray = int(colours.gray[k])
            if gray == LUMA:
                image = F.rgb_to_grayscale(image, num_output_channels=3)
            elif gray >= 0:
                image = image[gray].expand(3, -1, -1)
            image = F.adjust_brightness(image, float(colours.brightness[k]))
            image = F.adjust_contrast(image, float(colours.contrast[k]))
            image = F.adjust_saturation(image, float(colours.saturation[k]))
            if gray < 0:
                image = F.adjust_hue(image, float(colours.hue[k]))
        if draws.sigma is not None and draws.sigma[k] > 0:
            width = 2 * min(draws.blur_radius, size - 1) + 1
            image = F.gaussian_blur(image, [width, width], [float(draws.sigma[k])] * 2)
        results.append(F.horizontal_flip(image) if draws.mirrored[k] else image)
    return torch.stack(results)


@settings(deadline=None, max_examples=40)
@given(
    preset=st.sampled_from(PRESETS),
    height=st.integers(16, 50),
    width=st.integers(16, 50),
    size=st.integers(8, 40),
    seed=st.integers(0, 2**40),
)
def test_the_same_pixels_as_torchvision(preset, height, width, size, seed) -> None:
    augment = BatchAugment(AugmentConfig(preset=preset, size=size))
    pixels = images(6, height, width, seed)
    draws = augment.sample(pixels.shape, seeded(seed))
    ours = augment.apply(pixels, draws)
    assert ours.shape == (6, 3, size, size) and ours.dtype == torch.float32
    assert ours.min() >= 0 and ours.max() <= 1
    assert (ours - one_by_one(pixels, draws, size)).abs().max() < 2 / 255


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(4))
def test_the_workers_path_is_the_same_augmentation(preset, seed) -> None:
    config = AugmentConfig(preset=preset, size=24)
    clip = images(5, 40, 44, seed)  # (T, 3, H, W)
    alone = train_transform(config)(clip, seeded(seed)).float() / 255
    batch = clip.transpose(0, 1).unsqueeze(0)
    together = BatchAugment(config)(batch, seeded(seed))[0].transpose(0, 1)
    # Workers round to bytes between the steps; contrast and hue can double that.
    assert (alone - together).abs().max() < 4 / 255


@pytest.mark.parametrize("preset", PRESETS)
def test_the_generator_decides_everything(preset) -> None:
    augment, pixels = BatchAugment(AugmentConfig(preset=preset, size=32)), images(16)
    before, state = pixels.clone(), torch.get_rng_state()
    first = augment(pixels, seeded(3))
    assert torch.equal(augment(pixels, seeded(3)), first)
    assert torch.equal(augment(pixels, seeded(4)), first) == (preset == "none")
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(pixels, before)  # and so is the input


def test_a_sample_depends_on_itself_alone() -> None:
    augment, pixels = BatchAugment(AugmentConfig(preset="moco_v2", size=32)), images(16)
    draws = augment.sample(pixels.shape, seeded(0))
    whole = augment.apply(pixels, draws)
    for k in range(16):
        others = images(16, seed=9)
        others[k] = pixels[k]
        assert torch.allclose(augment.apply(others, draws)[k], whole[k], atol=1e-5)


def test_samples_draw_for_themselves() -> None:
    augment = BatchAugment(AugmentConfig(preset="moco_v2", size=32))
    same = images(1).expand(32, -1, -1, -1)
    result = augment(same, seeded(1))
    for k in range(32):
        others = [j for j in range(32) if j != k]
        assert ((result[others] - result[k]).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_a_clips_frames_share_their_draws() -> None:
    augment = BatchAugment(AugmentConfig(preset="moco_v2", size=32))
    still = images(4, 40, 48).unsqueeze(2).expand(-1, -1, 6, -1, -1)
    result = augment(still, seeded(0))
    assert result.shape == (4, 3, 6, 32, 32) and result.is_contiguous()
    assert (result - result[:, :, :1]).abs().max() < 1e-5
    # An image is a clip of one frame.
    assert torch.allclose(augment(still[:, :, 0], seeded(0)), result[:, :, 0], atol=1e-5)


def test_frames_draw_colours_for_themselves_where_asked() -> None:
    still = images(2, 40, 40).unsqueeze(2).expand(-1, -1, 5, -1, -1)
    result = BatchAugment(AugmentConfig(preset="dpc", size=32))(still, seeded(0))
    for clip in result:
        frames = clip.unbind(1)
        assert all((frames[0] - frame).abs().max() > 1e-3 for frame in frames[1:])


def test_autocast_does_not_touch_pixels() -> None:
    augment, pixels = BatchAugment(AugmentConfig(preset="moco_v2", size=32)), images(8)
    plain = augment(pixels, seeded(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = augment(pixels, seeded(0))
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)


def test_no_gradient_is_kept() -> None:
    assert not BatchAugment(AugmentConfig(preset="moco_v2", size=32))(
        images(), seeded(0)
    ).requires_grad


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_pixels_are_refused(pixels) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        BatchAugment(AugmentConfig(preset="linear", size=8))(pixels, seeded(0))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"blur must be in \[0, 1\]"):
        BatchAugment(AugmentConfig(blur=2.0))


@pytest.mark.gpu
def test_the_device_has_no_say() -> None:
    augment = BatchAugment(AugmentConfig(preset="moco_v2", size=32))
    pixels = images(64)
    here, there = augment(pixels, seeded(0)), augment(pixels.cuda(), seeded(0))
    assert there.is_cuda and (there.cpu() - here).abs().max() < 1e-3


# --- what is drawn --------------------------------------------------------------------------------


def moco(**keys) -> AugmentConfig:
    return resolve(AugmentConfig(preset="moco_v2", **keys))


@settings(deadline=None, max_examples=60)
@given(
    preset=st.sampled_from(PRESETS),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    seed=st.integers(0, 2**40),
)
def test_boxes_lie_inside(preset, height, width, seed) -> None:
    config = resolve(AugmentConfig(preset=preset))
    top, left, tall, wide = draw(config, (32, 1, height, width), seeded(seed)).boxes
    for start, extent, length in ((top, tall, height), (left, wide, width)):
        assert start.shape == extent.shape == (32,) and start.dtype == torch.long
        assert (start >= 0).all() and (extent >= 1).all() and (start + extent <= length).all()


def test_area_and_ratio_are_what_was_asked() -> None:
    config = moco(crop_scale=[0.3, 0.6], crop_ratio=[0.5, 2.0])
    boxes = draw(config, (4000, 1, 400, 400), seeded(0)).boxes
    area = boxes.height * boxes.width / 400**2
    ratio = boxes.width / boxes.height
    assert 0.295 < area.min() < 0.31 and 0.59 < area.max() < 0.605
    assert 0.495 < ratio.min() < 0.52 and 1.92 < ratio.max() < 2.02
    assert 0.44 < area.mean() < 0.46  # evenly
    assert abs(ratio.log().mean()) < 0.03  # evenly in the logarithm
    room = 400 - boxes.height
    assert 0.48 < (boxes.top[room > 0] / room[room > 0]).mean() < 0.52


def test_crops_reach_both_ends() -> None:
    config = resolve(AugmentConfig(preset="dpc", crop_scale=[0.75, 0.75]))
    boxes = draw(config, (400, 1, 4, 4), seeded(0)).boxes
    assert (boxes.height == 3).all()
    assert {*boxes.top.tolist()} == {*boxes.left.tolist()} == {0, 1}


def test_a_shape_that_never_fits_gives_the_largest_square() -> None:
    config = moco(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0])
    boxes = draw(config, (10, 1, 20, 50), seeded(0)).boxes
    assert (boxes.height == 20).all() and (boxes.width == 20).all()
    assert boxes.left.unique().numel() > 3


def test_probabilities_and_ranges() -> None:
    draws = draw(moco(), (8000, 1, 32, 32), seeded(0))
    colours = draws.colours
    assert colours is not None and draws.sigma is not None
    assert 0.48 < draws.mirrored.float().mean() < 0.52
    assert 0.48 < (draws.sigma > 0).float().mean() < 0.52
    strong = draws.sigma[draws.sigma > 0]
    assert 0.1 <= strong.min() < 0.12 and 1.98 < strong.max() <= 2.0
    assert 0.18 < (colours.gray == LUMA).float().mean() < 0.22
    assert set(colours.gray.tolist()) == {-1, LUMA}
    jittered = colours.brightness != 1
    assert 0.78 < jittered.float().mean() < 0.82
    for factor in (colours.brightness, colours.contrast, colours.saturation):
        assert 0.6 <= factor.min() < 0.61 and 1.39 < factor.max() <= 1.4
        assert (factor[~jittered] == 1).all()
    assert -0.1 <= colours.hue.min() < -0.098 and 0.098 < colours.hue.max() <= 0.1


def test_nothing_is_drawn_for_what_is_off() -> None:
    draws = draw(moco(blur=0.0, jitter=0.0, gray=0.0), (4, 1, 32, 32), seeded(0))
    assert draws.colours is None and draws.sigma is None
