"""Our one-pass colour work against torchvision's operations, frame by frame."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ndavid.data.colour import LUMA, ColourParams, jitter_colours, jitter_planes


def params(frames: int, **given_values: float | Tensor) -> ColourParams:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gray": -1}
    values = {
        name: torch.as_tensor(value, dtype=torch.long if name == "gray" else torch.float32)
        for name, value in (neutral | given_values).items()
    }
    return ColourParams(**{name: value.expand(frames) for name, value in values.items()})


def frames(seed: int, low: int = 0, high: int = 255, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, 12, 20)
    return torch.randint(low, high + 1, shape, dtype=torch.uint8, generator=generator)


def difference(left: Tensor, right: Tensor) -> int:
    return int((left.short() - right.short()).abs().max())


def test_neutral_parameters_change_nothing() -> None:
    clip = frames(0)
    assert torch.equal(jitter_colours(clip, params(3)), clip)


def test_layout_does_not_matter() -> None:
    clip = frames(0, count=19)
    how = params(19, brightness=1.2, contrast=0.7, saturation=0.4, hue=0.2)
    channels_last = clip.contiguous(memory_format=torch.channels_last)
    assert torch.equal(jitter_colours(channels_last, how), jitter_colours(clip, how))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), hue=st.floats(-0.5, 0.5))
def test_hue_is_torchvisions(seed, hue) -> None:
    clip = frames(seed)
    ours = jitter_colours(clip, params(3, hue=hue))
    assert difference(ours, F.adjust_hue(clip, hue)) <= 1


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    name=st.sampled_from(["brightness", "contrast", "saturation"]),
    factor=st.floats(0.0, 2.0),
)
def test_each_factor_is_torchvisions(seed, name, factor) -> None:
    clip = frames(seed)
    expected = getattr(F, f"adjust_{name}")(clip, factor)
    # torchvision rounds down where we round to nearest, and its gray values once more.
    assert difference(jitter_colours(clip, params(3, **{name: factor})), expected) <= 2


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    brightness=st.floats(0.8, 1.2),
    contrast=st.floats(0.8, 1.2),
    saturation=st.floats(0.8, 1.2),
    hue=st.floats(-0.25, 0.25),
)
def test_all_together_in_the_stated_order(seed, brightness, contrast, saturation, hue) -> None:
    clip = frames(seed, low=70, high=170)  # nothing leaves [0, 255] between the steps
    # In floats, where torchvision does not round down at every step.
    expected = F.adjust_brightness(clip / 255, brightness)
    expected = F.adjust_contrast(expected, contrast)
    expected = F.adjust_hue(F.adjust_saturation(expected, saturation), hue)
    how = params(3, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    assert (jitter_colours(clip, how) - 255 * expected).abs().max() < 1


def test_every_frame_has_its_own_parameters() -> None:
    clip = frames(1, count=21)  # more than one portion
    steps = torch.linspace(0.5, 1.5, 21)
    how = ColourParams(steps, 2 - steps, steps, (steps - 1) / 2, torch.arange(21) % 4 - 1)
    together = jitter_colours(clip, how)
    for k in range(21):
        alone = jitter_colours(clip[k : k + 1], how[k : k + 1])
        assert torch.equal(together[k : k + 1], alone)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_gray_is_one_channel_for_all(channel) -> None:
    clip = frames(2)
    gray = jitter_colours(clip, params(3, gray=channel))
    assert torch.equal(gray, clip[:, channel : channel + 1].expand_as(clip))


def test_luma_gray_is_torchvisions() -> None:
    clip = frames(4)
    gray = jitter_colours(clip, params(3, gray=LUMA))
    assert difference(gray, F.rgb_to_grayscale(clip, num_output_channels=3)) <= 1


def test_luma_gray_before_jitter_is_gray_after_it() -> None:
    """All but hue keep the order of the two from mattering."""
    clip = frames(5, low=70, high=170)
    how = {"brightness": 1.2, "contrast": 0.8, "saturation": 1.3}
    first = jitter_colours(clip, params(3, gray=LUMA, **how))
    last = F.rgb_to_grayscale(jitter_colours(clip, params(3, **how)), num_output_channels=3)
    assert difference(first, last) <= 2


@pytest.mark.parametrize("count", [1, 5])
def test_planes_are_frames_without_rounding(count) -> None:
    clip = frames(6, count=count)
    how = params(count, brightness=1.1, contrast=0.7, saturation=1.5, hue=0.2)
    planes = jitter_planes(clip.flatten(2).float(), how)
    assert planes.dtype == torch.float32 and planes.min() >= 0 and planes.max() <= 255
    assert difference((planes + 0.5).byte().view(clip.shape), jitter_colours(clip, how)) == 0


def test_gray_frames_stay_gray_under_jitter() -> None:
    clip = frames(3, low=20, high=200)
    how = params(3, gray=1, brightness=1.1, contrast=0.6, saturation=1.5, hue=0.2)
    result = jitter_colours(clip, how)
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 0], result[:, 2])
    picked = clip[:, 1:2].expand_as(clip)
    expected = F.adjust_contrast(F.adjust_brightness(picked, 1.1), 0.6)
    assert difference(result, expected) <= 2
