"""SNGAN's residual networks: small, for 32 and 48 px, and quick enough for a CPU at few channels.

Paper: Miyato, Kataoka, Koyama and Yoshida 2018, "Spectral Normalization for Generative Adversarial
Networks" (arXiv 1802.05957, appendix B.4, tables 4 and 5), with the projection of Miyato and Koyama
2018 (arXiv 1802.05637) where there are classes.

The paper's widths at 32 px are 256 and 128: 64 channels a unit in both networks.
"""

from __future__ import annotations

from ndavid.models.gan.networks import Discriminator, Generator, Init

# Widths in units of the configured channels: the generator's first map and its blocks; the
# discriminator's blocks, and which of those halve the size.
_GENERATOR = {32: (4, 4, 4, 4), 48: (8, 4, 2, 1)}
_DISCRIMINATOR = {32: (2, 2, 2, 2), 48: (1, 2, 4, 8, 16)}
_DOWN = {32: (True, True, False, False), 48: (True, True, True, True, False)}
SIZES = tuple(_GENERATOR)


def sngan_generator(
    image_size: int,
    *,
    channels: int = 64,
    latent_dim: int = 128,
    num_classes: int = 0,
    spectral: bool = False,
    init: Init = "normal",
) -> Generator:
    """The generator for one of ``SIZES``; the paper's has no spectral norm."""
    return Generator(
        latent_dim=latent_dim,
        image_size=image_size,
        widths=[channels * unit for unit in _GENERATOR[image_size]],
        num_classes=num_classes,
        spectral=spectral,
        init=init,
    )


def sngan_discriminator(
    image_size: int, *, channels: int = 64, num_classes: int = 0, init: Init = "normal"
) -> Discriminator:
    """The discriminator for one of ``SIZES``."""
    return Discriminator(
        image_size=image_size,
        widths=[channels * unit for unit in _DISCRIMINATOR[image_size]],
        down=_DOWN[image_size],
        num_classes=num_classes,
        wide=False,
        init=init,
    )
