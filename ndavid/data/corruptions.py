"""Common corruptions of images, made here: noise, blur, colours, compression, in five severities.

The idea is Hendrycks and Dietterich's, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019). Their CIFAR-10-C comes as files (cifar_c.py); this is
for when those are not at hand, and for any other set.

Differences from the paper: the 11 corruptions that torch and torchvision can make, of its 19; no
weather, and no defocus, glass, motion or zoom blur. Strengths are of the same order, but not the
same: numbers on these and on the files must not be put side by side as one measurement.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from ndavid.data.image_reading import read_image_bytes
from ndavid.errors import ConfigError

SEVERITIES = (1, 2, 3, 4, 5)

# The side that strengths given in pixels are for; larger images get proportionally more.
_REFERENCE_SIDE = 32

Change = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class _Corruption:
    """What is done to an image, uint8 (3, H, W), and how strongly at each severity."""

    change: Change
    strengths: tuple[float, float, float, float, float]


def corrupt(image: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """One corruption of one image.

    Args:
        image: uint8 (3, H, W).
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: for the corruptions that draw.

    Returns:
        uint8 (3, H, W), a new tensor.

    Raises:
        ConfigError: see `check_corruption`.
    """
    check_corruption(name, severity)
    corruption = CORRUPTIONS[name]
    return corruption.change(image, corruption.strengths[severity - 1], generator)


def check_corruption(name: str, severity: int) -> None:
    """Raises ConfigError for a severity, or a corruption, that is not made here."""
    if name not in CORRUPTIONS:
        near = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0.0)[0]
        known = ", ".join(CORRUPTIONS)
        raise ConfigError(f"no corruption {name!r}; did you mean {near!r}? Made here: {known}")
    if severity not in SEVERITIES:
        raise ConfigError(f"a corruption's severity is 1, 2, 3, 4 or 5, not {severity}")


def _gaussian_noise(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return _pixels(_shares(image) + deviation * torch.randn(image.shape, generator=generator))


def _shot_noise(image: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return _pixels(torch.poisson(_shares(image) * photons, generator=generator) / photons)


def _impulse_noise(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper, in each channel by itself."""
    draw = torch.rand(image.shape, generator=generator)
    salted = torch.where(draw < share / 2, 255, image)
    return torch.where(draw > 1 - share / 2, 0, salted).to(torch.uint8)


def _speckle_noise(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    noise = 1 + deviation * torch.randn(image.shape, generator=generator)
    return _pixels(_shares(image) * noise)


def _gaussian_blur(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    sigma = sigma * _relative_side(image)
    return F.gaussian_blur(image, _kernel_size(sigma), [sigma])


def _brightness(image: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return F.adjust_brightness(image, factor)


def _contrast(image: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return F.adjust_contrast(image, factor)


def _saturate(image: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return F.adjust_saturation(image, factor)


def _jpeg(image: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    # Through PIL: torchvision's encoder has been announced to go (deprecated in 0.29).
    stream = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.save(stream, format="JPEG", quality=int(quality))
    return torch.from_numpy(read_image_bytes(stream.getvalue())).permute(2, 0, 1).contiguous()


def _pixelate(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    size = list(image.shape[-2:])
    small = [max(1, round(share * side)) for side in size]
    return F.resize(F.resize(image, small, antialias=True), size, InterpolationMode.NEAREST_EXACT)


def _elastic(image: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Moves pixels along a smooth random field, by `reach` pixels where it is strongest."""
    reach = reach * _relative_side(image)
    sigma = 2.0 * _relative_side(image)
    field = torch.randn(2, *image.shape[-2:], generator=generator)
    field = F.gaussian_blur(field, _kernel_size(sigma), [sigma])
    field = field / field.abs().max()
    # torchvision counts displacements in half image sides: x by the width, y by the height.
    height, width = image.shape[-2:]
    sides = torch.tensor([width, height])
    return F.elastic(image, (field.movedim(0, -1) * 2 * reach / sides).unsqueeze(0))


def _shares(image: Tensor) -> Tensor:
    return image.float() / 255


def _pixels(shares: Tensor) -> Tensor:
    return (shares * 255).round().clamp(0, 255).to(torch.uint8)


def _relative_side(image: Tensor) -> float:
    return min(image.shape[-2:]) / _REFERENCE_SIDE


def _kernel_size(sigma: float) -> list[int]:
    """An odd width that holds three deviations on either side."""
    return [2 * max(1, round(3 * sigma)) + 1] * 2


CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": _Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": _Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": _Corruption(_speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": _Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": _Corruption(_brightness, (1.1, 1.2, 1.3, 1.45, 1.7)),
    "contrast": _Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": _Corruption(_saturate, (1.5, 2.0, 2.5, 3.5, 5.0)),
    "jpeg_compression": _Corruption(_jpeg, (80, 65, 58, 50, 40)),
    "pixelate": _Corruption(_pixelate, (0.75, 0.6, 0.5, 0.4, 0.3)),
    "elastic_transform": _Corruption(_elastic, (0.4, 0.7, 1.0, 1.5, 2.0)),
}
"""By CIFAR-10-C's names; a severity's strength is its place."""
