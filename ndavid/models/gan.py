"""A generator and a discriminator, as a config names them.

Images are float in [-1, 1], (B, 3, S, S). Labels are (B,), or None where there are no classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ndavid.errors import ConfigError
from ndavid.models import sngan
from ndavid.models.gan_networks import Discriminator, Generator, Init

_SIZES = {"sngan": sngan.SIZES}


@dataclass(kw_only=True)
class GanConfig:
    """Both networks of a GAN; the defaults are those of NDA's CIFAR-10 runs, without classes.

    Raises ConfigError on numbers out of range.
    """

    architecture: Literal["sngan"] = "sngan"
    """sngan: 32 or 48 px, small"""
    image_size: int = 32
    """height and width in pixels"""
    num_classes: int = 0
    """0: unconditional; else class-conditional batch norm and a projection discriminator"""
    latent_dim: int = 128
    """size of what the generator makes an image of"""
    generator_channels: int = 64
    """unit of the generator's widths; at 32 px its blocks have 4 units"""
    discriminator_channels: int = 64
    """unit of the discriminator's widths; at 32 px its blocks have 2 units"""
    spectral_norm_generator: bool | None = None
    """whether the generator is spectrally normalised too; null: as in the architecture's paper"""
    init: Init = "normal"
    """of weights: normal (deviation 0.02), orthogonal or xavier"""

    def __post_init__(self) -> None:
        if self.architecture not in _SIZES:
            raise ConfigError(
                f"model.architecture is one of {', '.join(_SIZES)}, not {self.architecture!r}"
            )
        sizes = _SIZES[self.architecture]
        if self.image_size not in sizes:
            raise ConfigError(
                f"model.image_size of {self.architecture} is one of "
                f"{', '.join(map(str, sizes))}, not {self.image_size}"
            )
        for name in ("latent_dim", "generator_channels", "discriminator_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.num_classes < 0:
            raise ConfigError(f"model.num_classes must not be negative, got {self.num_classes}")


class Gan(nn.Module):
    """``generator(latents, labels) -> images`` and ``discriminator(images, labels) -> logits``.

    Weights are drawn from the default generator.
    """

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = _generator(config)
        self.discriminator = _discriminator(config)


def _generator(config: GanConfig) -> Generator:
    return sngan.sngan_generator(
        config.image_size,
        channels=config.generator_channels,
        latent_dim=config.latent_dim,
        num_classes=config.num_classes,
        spectral=bool(config.spectral_norm_generator),
        init=config.init,
    )


def _discriminator(config: GanConfig) -> Discriminator:
    return sngan.sngan_discriminator(
        config.image_size,
        channels=config.discriminator_channels,
        num_classes=config.num_classes,
        init=config.init,
    )
