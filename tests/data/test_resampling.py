"""Crops, flips and blurs as matrices, against torchvision's functions one image at a time."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ndavid.data.resampling import blur_weights, blurred, crop_weights, resampled


def pixels(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=generator)


@st.composite
def crops(draw) -> tuple[int, int, int, int]:
    """(length, size, start, extent) of one side; torch misreads those one pixel wide."""
    length = draw(st.integers(2, 60))
    extent = draw(st.integers(2, length))
    return length, draw(st.integers(2, 40)), draw(st.integers(0, length - extent)), extent


@settings(deadline=None, max_examples=150)
@given(rows=crops(), columns=crops(), mirrored=st.booleans())
def test_crops_are_torchvisions(rows, columns, mirrored) -> None:
    (height, tall, top, h), (width, wide, left, w) = rows, columns
    image = pixels(1, height, width)
    ours = resampled(
        image,
        crop_weights(torch.tensor([top]), torch.tensor([h]), height, tall),
        crop_weights(
            torch.tensor([left]), torch.tensor([w]), width, wide, torch.tensor([mirrored])
        ),
    )
    expected = F.resized_crop(image, top, left, h, w, [tall, wide], antialias=True)
    expected = F.horizontal_flip(expected) if mirrored else expected
    assert ours.shape == (1, 3, tall, wide)
    assert (ours - expected).abs().max() < 1e-4


def test_every_sample_has_its_own_crop() -> None:
    images = pixels(5, 20, 24)
    top, h = torch.tensor([0, 3, 5, 19, 0]), torch.tensor([20, 10, 15, 1, 7])
    left, w = torch.tensor([0, 4, 20, 0, 23]), torch.tensor([24, 12, 3, 24, 1])
    ours = resampled(images, crop_weights(top, h, 20, 16), crop_weights(left, w, 24, 16))
    for k in range(5):
        box = [int(side[k]) for side in (top, left, h, w)]
        expected = F.resized_crop(images[k], *box, [16, 16], antialias=True)
        assert (ours[k] - expected).abs().max() < 1e-5


def test_one_pixel_fills_the_crop() -> None:
    image = pixels(1, 5, 7)
    rows = crop_weights(torch.tensor([3]), torch.tensor([1]), 5, 4)
    columns = crop_weights(torch.tensor([6]), torch.tensor([1]), 7, 4)
    expected = image[..., 3:4, 6:7].expand(1, 3, 4, 4)
    assert torch.allclose(resampled(image, rows, columns), expected)


def test_a_crop_does_not_see_beyond_itself() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 4:12, 4:12] = 1
    weights = crop_weights(torch.tensor([4]), torch.tensor([8]), 16, 32)
    assert (resampled(image, weights, weights) - 1).abs().max() < 1e-6


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    radius=st.integers(1, 8),
    sigma=st.floats(0.1, 3.0),
)
def test_blur_is_torchvisions(height, width, radius, sigma) -> None:
    image = pixels(1, height, width)
    ours = blurred(image, torch.tensor([sigma]), radius)
    sides = [2 * min(radius, side - 1) + 1 for side in (width, height)]
    expected = F.gaussian_blur(image, sides, [sigma, sigma])
    assert (ours - expected).abs().max() < 1e-5


def test_every_sample_has_its_own_blur() -> None:
    clips = pixels(3, 20, 20).unsqueeze(1).repeat(1, 2, 1, 1, 1)  # two frames each
    sigma = torch.tensor([0.3, 1.0, 2.0])
    ours = blurred(clips, sigma, 6)
    for k in range(3):
        expected = F.gaussian_blur(clips[k], [13, 13], [float(sigma[k])] * 2)
        assert (ours[k] - expected).abs().max() < 1e-5
        assert not torch.allclose(ours[k], clips[k], atol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_blur_keeps_flat_images(size) -> None:
    weights = blur_weights(torch.tensor([0.1, 0.5, 2.0]), size, 6)
    assert weights.shape == (3, size, size) and (weights >= 0).all()
    assert (weights.sum(dim=2) - 1).abs().max() < 1e-5
