"""BigGAN's residual networks for 32, 48, 64 and 128 px.

Paper: Brock, Donahue and Simonyan 2019, "Large Scale GAN Training for High Fidelity Natural Image
Synthesis" (arXiv 1809.11096, appendix B). At 32 px with the defaults these are the networks of
NDA's CIFAR-10 runs (arXiv 2102.05113): 64 channels a unit, no attention, no shared embedding.

Differences from the paper: at 48 px, which it has not, widths are those of SNGAN; without classes
batch norm is plain and the discriminator has no projection (NDA's code has one class instead).
"""

from __future__ import annotations

from ndavid.models.gan.networks import Discriminator, Generator, Init

# Widths in units of the configured channels: the generator's first map and its blocks; the
# discriminator's blocks. All but the last of those halve the size, at 32 px the first two.
_GENERATOR = {
    32: (4, 4, 4, 4),
    48: (8, 4, 2, 1),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
}
_DISCRIMINATOR = {
    32: (4, 4, 4, 4),
    48: (1, 2, 4, 8, 16),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
}
_DOWN = {
    32: (True, True, False, False),
    48: (True, True, True, True, False),
    64: (True, True, True, True, False),
    128: (True, True, True, True, True, False),
}
SIZES = tuple(_GENERATOR)


def biggan_generator(
    image_size: int,
    *,
    channels: int = 64,
    latent_dim: int = 128,
    num_classes: int = 0,
    attention: int = 0,
    shared_embedding_dim: int = 0,
    hierarchical: bool = False,
    spectral: bool = True,
    init: Init = "normal",
) -> Generator:
    """The generator for one of ``SIZES``; arguments as in :class:`~.gan_networks.Generator`."""
    return Generator(
        latent_dim=latent_dim,
        image_size=image_size,
        widths=[channels * unit for unit in _GENERATOR[image_size]],
        num_classes=num_classes,
        attention=attention,
        shared_embedding_dim=shared_embedding_dim,
        hierarchical=hierarchical,
        spectral=spectral,
        init=init,
    )


def biggan_discriminator(
    image_size: int,
    *,
    channels: int = 64,
    num_classes: int = 0,
    attention: int = 0,
    init: Init = "normal",
) -> Discriminator:
    """The discriminator for one of ``SIZES``."""
    return Discriminator(
        image_size=image_size,
        widths=[channels * unit for unit in _DISCRIMINATOR[image_size]],
        down=_DOWN[image_size],
        num_classes=num_classes,
        attention=attention,
        wide=True,
        init=init,
    )
