"""Pixels to encoder input."""

from __future__ import annotations

import pytest
import torch

from ndavid.models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 3, 5, 6)])
def test_uint8_and_float_pixels_come_out_alike(shape: tuple[int, ...]) -> None:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean = torch.tensor(IMAGENET_MEAN).view(3, *[1] * (len(shape) - 2))
    std = torch.tensor(IMAGENET_STD).view(3, *[1] * (len(shape) - 2))
    expected = (pixels.float() / 255 - mean) / std
    normalize = Normalize()
    torch.testing.assert_close(normalize(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normalize(pixels.float() / 255), expected, atol=1e-5, rtol=1e-5)
    assert normalize(pixels).dtype == torch.float32


def test_constants_are_no_part_of_a_checkpoint() -> None:
    assert not Normalize().state_dict()


def test_what_it_cannot_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        Normalize()(torch.zeros(2, 4, 5, 6, 7))
    with pytest.raises(ValueError, match="expected"):
        Normalize()(torch.zeros(3, 5, 6))
    with pytest.raises(ValueError, match="positive std"):
        Normalize(std=(1.0, 0.0, 1.0))
