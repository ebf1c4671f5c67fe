"""What every encoder here is: a module that turns clips, or images, into a map of features."""

from __future__ import annotations

import abc
from typing import ClassVar

from einops import rearrange
from torch import Tensor, nn

from ndavid.errors import ConfigError


class ClipSizeError(ConfigError, ValueError):
    """Clips or images of a length, size or number of axes that the encoder does not take."""


class Encoder(nn.Module):
    """Clips (B, C, T, H, W), normalised floats -> feature maps (B, feature_dim, t, h, w).

    A network that ``takes_images`` turns images (B, C, H, W) into maps (B, feature_dim, h, w) as
    well. ``name`` is what ``build_encoder`` was asked for, so that a saved encoder can be rebuilt.
    """

    takes_images: ClassVar[bool] = False
    feature_dim: int
    name: str

    def pooled(self, pixels: Tensor) -> Tensor:
        """Clips or images -> vectors (B, feature_dim): the mean of the map."""
        return self(pixels).flatten(2).mean(2)

    def require_clips(self, pixels: Tensor) -> None:
        """Raises ClipSizeError, with the way out, for anything but (B, C, T, H, W)."""
        if pixels.ndim == 4 and not self.takes_images:
            raise ClipSizeError(
                f"{self.name} is a video network: it takes clips (B, C, T, H, W), got images "
                f"{tuple(pixels.shape)}; choose an image network such as torchvision:resnet50, "
                f"timm:resnet18 or cifar:resnet18"
            )
        if pixels.ndim != 5:
            kinds = "clips (B, C, T, H, W)" + " or images (B, C, H, W)" * self.takes_images
            raise ClipSizeError(f"{self.name} takes {kinds}, got {tuple(pixels.shape)}")


class ImageEncoder(Encoder, abc.ABC):
    """An image network: images -> (B, feature_dim, h, w), and clips frame by frame, t = T."""

    takes_images = True

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.ndim == 4:
            return self.encode_images(pixels)
        self.require_clips(pixels)
        maps = self.encode_images(rearrange(pixels, "b c t h w -> (b t) c h w"))
        return rearrange(maps, "(b t) d h w -> b d t h w", t=pixels.shape[2])

    @abc.abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> maps (B, feature_dim, h, w)."""
