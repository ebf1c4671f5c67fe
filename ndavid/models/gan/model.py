"""A generator and a discriminator, as a config names them.

Images are float in [-1, 1], (B, 3, S, S). Labels are (B,), or None where there are no classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ndavid.errors import ConfigError
from ndavid.models.gan import biggan, sngan
from ndavid.models.gan.networks import Discriminator, Generator, Init

_SIZES = {"biggan": biggan.SIZES, "sngan": sngan.SIZES}


@dataclass(kw_only=True)
class GanConfig:
    """Both networks of a GAN; the defaults are those of NDA's CIFAR-10 runs, but for two.

    The original starts its networks otherwise (``init: original``), and its unconditional runs are
    class-conditional ones of a single class (``num_classes: 1``).

    Raises ConfigError on numbers out of range and on what the architecture does not have.
    """

    architecture: Literal["biggan", "sngan"] = "biggan"
    """biggan: 32, 48, 64 or 128 px; sngan: 32 or 48 px, half the discriminator's width at 32"""
    image_size: int = 32
    """height and width in pixels"""
    num_classes: int = 0
    """0: unconditional; else class-conditional batch norm and a projection discriminator. 1:
    unconditional as in the original's code: with both, for one class, that of all images"""
    latent_dim: int = 128
    """size of what the generator makes an image of"""
    generator_channels: int = 64
    """unit of the generator's widths; at 32 px all its blocks have 4 units"""
    discriminator_channels: int = 64
    """unit of the discriminator's widths; at 32 px all its blocks have 4 (biggan) or 2 (sngan)"""
    attention: int = 0
    """biggan only: size of the map that self-attention is put on, in both networks; 0: none"""
    shared_embedding_dim: int = 0
    """biggan only: size of a class's one vector for all batch norms; 0: each has its own"""
    hierarchical: bool = False
    """biggan only: whether each block of the generator gets a part of the latent"""
    spectral_norm_generator: bool | None = None
    """whether the generator is spectrally normalised too; null: as in the architecture's paper
    (biggan is, sngan is not)"""
    init: Init = "normal"
    """of weights: normal (deviation 0.02), orthogonal or xavier, with biases at zero; original:
    normal, class gains and biases too, and other biases as torch draws them"""

    def __post_init__(self) -> None:
        self._check_architecture()
        for name in ("latent_dim", "generator_channels", "discriminator_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("num_classes", "attention", "shared_embedding_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name} must not be negative, got {getattr(self, name)}")
        if self.shared_embedding_dim and not self.num_classes:
            raise ConfigError("model.shared_embedding_dim wants classes: set model.num_classes")

    def _check_architecture(self) -> None:
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
        for name in ("attention", "shared_embedding_dim", "hierarchical"):
            if getattr(self, name) and self.architecture != "biggan":
                raise ConfigError(f"model.{name} is for biggan; {self.architecture} has none")


class Gan(nn.Module):
    """``generator(latents, labels) -> images`` and ``discriminator(images, labels) -> logits``.

    Weights are drawn from the default generator.

    Raises ConfigError where no block of a network makes maps of the size that attention is for.
    """

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        try:
            self.generator = _generator(config)
            self.discriminator = _discriminator(config)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


def _generator(config: GanConfig) -> Generator:
    spectral = config.spectral_norm_generator
    if config.architecture == "sngan":
        return sngan.sngan_generator(
            config.image_size,
            channels=config.generator_channels,
            latent_dim=config.latent_dim,
            num_classes=config.num_classes,
            spectral=bool(spectral),
            init=config.init,
        )
    return biggan.biggan_generator(
        config.image_size,
        channels=config.generator_channels,
        latent_dim=config.latent_dim,
        num_classes=config.num_classes,
        attention=config.attention,
        shared_embedding_dim=config.shared_embedding_dim,
        hierarchical=config.hierarchical,
        spectral=spectral is not False,
        init=config.init,
    )


def _discriminator(config: GanConfig) -> Discriminator:
    if config.architecture == "sngan":
        return sngan.sngan_discriminator(
            config.image_size,
            channels=config.discriminator_channels,
            num_classes=config.num_classes,
            init=config.init,
        )
    return biggan.biggan_discriminator(
        config.image_size,
        channels=config.discriminator_channels,
        num_classes=config.num_classes,
        attention=config.attention,
        init=config.init,
    )
