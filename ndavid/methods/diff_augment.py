"""Augmentation of all that a discriminator sees, generated images with gradient.

Paper: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training". Where only
real images are augmented, the generator learns the augmentation. Here real, generated and broken
images pass through the same distribution of changes, and the gradient flows through it. The NDA
paper compares broken images as a third kind with the same op used in this way.

Differences from the paper: the policies act in one order (color, translation, cutout) however they
are listed; brightness, saturation and contrast are one linear map of the pixels; translation and
cutout are one gather and one mask. Each image has its own draw, made on the CPU, and the draws of
one policy don't depend on which others are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ndavid.errors import ConfigError

Policy = Literal["color", "translation", "cutout"]

# The paper's strengths: shares of the image's sides.
_LARGEST_SHIFT = 0.125
_CUTOUT_SIDE = 0.5


@dataclass(frozen=True)
class DiffAugmentDraws:
    """What happens to B images.

    Attributes:
        brightness: float (B,), added to all pixels; -0.5 to 0.5.
        saturation: float (B,), scales a pixel's distance from its own gray; 0 to 2.
        contrast: float (B,), scales a pixel's distance from the image's mean; 0.5 to 1.5.
        shift: long (B, 2): pixels that the content moves down and right.
        centre: long (B, 2): row and column of the square that is cut out.
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor
    centre: Tensor

    def to(self, device: torch.device) -> DiffAugmentDraws:
        """The draws on a device, without waiting for the copy."""
        factors = torch.stack([self.brightness, self.saturation, self.contrast])
        places = torch.stack([self.shift, self.centre])
        brightness, saturation, contrast = factors.to(device, non_blocking=True)
        shift, centre = places.to(device, non_blocking=True)
        return DiffAugmentDraws(brightness, saturation, contrast, shift, centre)


class DiffAugment:
    """Changes images (B, 3, S, S) in [-1, 1], differentiably with respect to them.

    ``color`` may leave that range, as published; what moves in from outside, and what is cut out,
    is 0, the middle gray.

    Args:
        policies: which of "color", "translation" and "cutout"; none leaves images as they are.

    Raises:
        ConfigError: on an unknown policy, or one that is named twice.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        known = get_args(Policy)
        for policy in policies:
            if policy not in known:
                raise ConfigError(
                    f"unknown policy {policy!r} of DiffAugment: any of {', '.join(known)}"
                )
        if len(set(policies)) != len(policies):
            raise ConfigError(f"DiffAugment has a policy twice: {', '.join(policies)}")
        self.policies = frozenset(policies)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws and applies in one go; shape, dtype and device stay.

        Args:
            images: float (B, 3, S, S).
            generator: a CPU generator; None makes a fresh one, seeded by the operating system.

        Raises:
            ValueError: on another shape, or a generator that is not on the CPU.
        """
        if not self.policies:
            return images
        return self.apply(images, self.sample(images.shape, generator))

    def sample(
        self, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> DiffAugmentDraws:
        """Draws for a batch of this shape: a function of the shape and the generator alone."""
        batch, size = _batch_and_size(shape)
        generator = _cpu_generator(generator)
        brightness, saturation, contrast = torch.rand(3, batch, generator=generator)
        reach = _rounded(size * _LARGEST_SHIFT)
        shift = torch.randint(-reach, reach + 1, (batch, 2), generator=generator)
        # An even square has its centre between pixels: one place more, so that it meets both edges.
        places = size + 1 - _rounded(size * _CUTOUT_SIDE) % 2
        centre = torch.randint(places, (batch, 2), generator=generator)
        return DiffAugmentDraws(brightness - 0.5, 2 * saturation, contrast + 0.5, shift, centre)

    def apply(self, images: Tensor, draws: DiffAugmentDraws) -> Tensor:
        """Changes images (B, 3, S, S) as drawn: pure, and the same on every device."""
        batch, size = _batch_and_size(images.shape)
        if draws.shift.shape[0] != batch:
            raise ValueError(f"drawn for {draws.shift.shape[0]} images, got {batch}")
        draws = draws.to(images.device)
        if "color" in self.policies:
            images = _change_colours(images, draws)
        if "translation" in self.policies:
            images = _translate(images, draws.shift)
        if "cutout" in self.policies:
            images = images.masked_fill(_square(draws.centre, size).unsqueeze(1), 0.0)
        return images


def _rounded(number: float) -> int:
    """The nearest whole number to a positive one; Python's own rounds halves to even."""
    return int(number + 0.5)


def _change_colours(images: Tensor, draws: DiffAugmentDraws) -> Tensor:
    """Brightness, then saturation, then contrast, in float32 and in one go.

    Neither brightness nor saturation moves the image's mean relative to its pixels' grays, so that
    both means can be taken of the image as it came.
    """
    brightness, saturation, contrast = (
        rearrange(factor, "b -> b 1 1 1")
        for factor in (draws.brightness, draws.saturation, draws.contrast)
    )
    pixels = images.float()
    gray = pixels.mean(dim=1, keepdim=True)
    mean = gray.mean(dim=(2, 3), keepdim=True)
    offset = contrast * (1 - saturation) * gray + (1 - contrast) * mean + brightness
    return (contrast * saturation * pixels + offset).to(images.dtype)


def _translate(images: Tensor, shift: Tensor) -> Tensor:
    """Content moved by whole pixels, (B, 2) down and right; what moves in is 0."""
    size = images.shape[-1]
    source = torch.arange(size, device=images.device) - shift.unsqueeze(-1)  # (B, 2, S)
    outside = (source < 0) | (source >= size)
    rows, columns = source.clamp(0, size - 1).unbind(1)
    pixel = rearrange(rows, "b h -> b h 1") * size + rearrange(columns, "b w -> b 1 w")
    moved = rearrange(images, "b c h w -> b c (h w)").gather(
        2, rearrange(pixel, "b h w -> b 1 (h w)").expand(-1, images.shape[1], -1)
    )
    beyond = rearrange(outside[:, 0], "b h -> b 1 h 1") | rearrange(outside[:, 1], "b w -> b 1 1 w")
    return moved.view(images.shape).masked_fill(beyond, 0.0)


def _square(centre: Tensor, size: int) -> Tensor:
    """Which pixels lie in the squares about the centres (B, 2), clipped at the edges: (B, S, S)."""
    side = _rounded(size * _CUTOUT_SIDE)
    first = (centre - side // 2).unsqueeze(-1)
    place = torch.arange(size, device=centre.device)
    within = (place >= first) & (place < first + side)  # (B, 2, S)
    return within[:, 0].unsqueeze(2) & within[:, 1].unsqueeze(1)


def _batch_and_size(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[0] == 0:
        raise ValueError(f"DiffAugment takes images (B, 3, S, S) with B > 0, got {tuple(shape)}")
    return shape[0], shape[2]


def _cpu_generator(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    elif generator.device.type != "cpu":
        raise ValueError(f"DiffAugment draws on the CPU, got a generator on {generator.device}")
    return generator
