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
    well; `pooled` gives vectors. ``name`` is what ``build_encoder`` is asked for, so that a saved
    encoder can be rebuilt.
    """

    takes_images: ClassVar[bool] = False
    feature_dim: int
    recomputes: bool = False
    """Whether backward computes inner maps again: see `checkpoint_activations`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def pooled(self, pixels: Tensor) -> Tensor:
        """Clips or images -> vectors (B, feature_dim): the mean of the map."""
        return self(pixels).flatten(2).mean(2)

    def sequential(self) -> tuple[nn.Module, ...]:
        """The submodules that, one after the other, are the encoder; empty where it is none."""
        return ()

    def checkpoint_activations(self) -> None:
        """From now on, forwards with gradient keep only what enters each block of layers.

        Backward computes the rest again, block by block: about a third more time a step, for
        half the memory or less (benchmarks/memory.py). Output, gradients and running statistics
        stay the same, on the CPU to the bit. Not together with ``torch.compile``.

        Raises ConfigError for an encoder that is not a sequence of blocks.
        """
        if not self.sequential():
            raise ConfigError(
                f"{self.name} cannot checkpoint its activations: it is not built as a "
                "sequence of blocks; take a ResNet, or leave checkpoint_activations false"
            )
        self.recomputes = True

    def compilable(self) -> Encoder:
        """The encoder itself, for ``torch.compile``; ConfigError if it recomputes activations."""
        if self.recomputes:
            raise ConfigError(
                "model.checkpoint_activations and run.compile do not go together: a compiled "
                "graph decides by itself what to keep; set one of them to false"
            )
        return self

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
