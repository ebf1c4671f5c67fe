"""Corruptions grow with their severity, depend on their generator only, and are what they say."""

from __future__ import annotations

import pytest
import torch
from image_files import photo
from torch import Tensor

from ndavid.data.corruptions import CORRUPTIONS, SEVERITIES, check_corruption, corrupt
from ndavid.errors import ConfigError

DRAWN = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "elastic_transform"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textured(seed: int, size: int = 32) -> Tensor:
    """A picture with coarse and fine structure, uint8 (3, size, size)."""
    fine = torch.randint(-10, 11, (3, size, size), generator=seeded(seed))
    return (photo(seed, size, size) * 0.6 + 50 + fine).clamp(0, 255).to(torch.uint8)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).square().mean().sqrt())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity(name: str) -> None:
    images = [textured(k) for k in range(8)]
    originals = [image.clone() for image in images]
    means = []
    for severity in SEVERITIES:
        changed = [corrupt(x, name, severity, seeded(k)) for k, x in enumerate(images)]
        assert {(c.shape, c.dtype) for c in changed} == {(images[0].shape, torch.uint8)}
        distances = list(map(distance, changed, images))
        assert min(distances) > 0
        means.append(sum(distances) / len(distances))
    assert means == sorted(means) and means[-1] > 1.2 * means[0]
    assert all(map(torch.equal, images, originals))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_only_the_generator_decides(name: str) -> None:
    image = textured(0)
    first = corrupt(image, name, 3, seeded(1))
    torch.manual_seed(5)
    assert torch.equal(corrupt(image, name, 3, seeded(1)), first)
    assert torch.equal(corrupt(image, name, 3, seeded(2)), first) == (name not in DRAWN)
    state = torch.random.get_rng_state()
    corrupt(image, name, 5, seeded(1))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gaussian_noise", lambda share: 0.1),
        ("shot_noise", lambda share: (share / 50) ** 0.5),
        ("speckle_noise", lambda share: 0.2 * share),
    ],
)
@pytest.mark.parametrize("level", [90, 128])
def test_noise_has_the_deviation_it_should(name: str, expected, level: int) -> None:
    grey = torch.full((3, 64, 64), level, dtype=torch.uint8)
    noisy = corrupt(grey, name, 5, seeded()).float() / 255
    assert float(noisy.std()) == pytest.approx(expected(level / 255), rel=0.03)
    assert float(noisy.mean()) == pytest.approx(level / 255, abs=0.005)


def test_impulses_are_black_or_white_and_as_many_as_said() -> None:
    grey = torch.full((3, 128, 128), 77, dtype=torch.uint8)
    noisy = corrupt(grey, "impulse_noise", 5, seeded())
    assert set(noisy.unique().tolist()) == {0, 77, 255}
    for value in (0, 255):
        assert float((noisy == value).float().mean()) == pytest.approx(0.035, rel=0.1)


def test_blur_is_the_same_share_of_a_larger_image() -> None:
    large = photo(3, 128, 128)
    small = large.unflatten(2, (32, 4)).unflatten(1, (32, 4)).float().mean(dim=(2, 4))
    blurred = corrupt(large, "gaussian_blur", 5, seeded()).float()
    shrunk = blurred.unflatten(2, (32, 4)).unflatten(1, (32, 4)).mean(dim=(2, 4))
    direct = corrupt(small.round().to(torch.uint8), "gaussian_blur", 5, seeded())
    assert distance(shrunk, direct) < 1 < distance(direct, small)


@pytest.mark.parametrize("shape", [(32, 48), (64, 40)])
def test_elastic_moves_no_pixel_further_than_it_says(shape: tuple[int, int]) -> None:
    # A ramp of one grey level a pixel shows its own displacement, away from the border.
    height, width = shape
    reach = 2.0 * min(shape) / 32
    for axis, size in ((1, height), (2, width)):
        ramp = 50 + torch.arange(size).view([-1 if k == axis else 1 for k in range(3)])
        image = ramp.expand(3, height, width).to(torch.uint8).contiguous()
        moved = corrupt(image, "elastic_transform", 5, seeded()).float() - image.float()
        inner = moved[:, 8:-8, 8:-8].abs()
        assert 0.3 * reach < float(inner.max()) <= reach + 1


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("gausian_noise", 1, "did you mean 'gaussian_noise'"),
        ("fog", 1, "Made here: gaussian_noise, shot_noise"),
        ("contrast", 0, "severity is 1, 2, 3, 4 or 5, not 0"),
        ("contrast", 6, "not 6"),
    ],
)
def test_what_is_not_made_here(name: str, severity: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_corruption(name, severity)
    with pytest.raises(ConfigError, match=message):
        corrupt(textured(0), name, severity, seeded())
