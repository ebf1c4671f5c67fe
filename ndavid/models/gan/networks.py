"""A residual generator and a residual discriminator of any widths; SNGAN and BigGAN are two sets.

Papers: Miyato et al. 2018 (arXiv 1802.05957); Miyato and Koyama 2018, "cGANs with Projection
Discriminator" (arXiv 1802.05637); Brock, Donahue and Simonyan 2019 (arXiv 1809.11096).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.models.gan.attention import SelfAttention
from ndavid.models.gan.blocks import DiscriminatorBlock, GeneratorBlock
from ndavid.models.gan.conditional_batchnorm import ClassBatchNorm, SyncedBatchNorm
from ndavid.models.gan.spectral_norm import spectral_norm

Init = Literal["normal", "orthogonal", "xavier", "original"]
"""How weights start. The first three: biases at zero, and all classes of batch norm alike.
``original``: as in the code of BigGAN-PyTorch and NDA, where only weights are drawn anew: normal,
deviation 0.02, also around a gain of 1 and a bias of 0 for each class; other biases as torch has
them."""


class Generator(nn.Module):
    """Latents (B, latent_dim) and labels (B,) or None -> images (B, 3, S, S), float32 in [-1, 1].

    Args:
        latent_dim: size of a latent.
        image_size: S, a multiple of 2 ** (number of blocks).
        widths: channels of the first map, then of each block's output; a block doubles the size.
        num_classes: 0 for an unconditional one.
        attention: the map's size after which self-attention is put; 0: none.
        shared_embedding_dim: above 0, a class has one vector of that size, of which all batch norms
            take linear functions; 0: a gain and a bias of its own in each.
        hierarchical: whether each block gets a part of the latent besides, through batch norm.
        spectral: whether convolutions and linear layers are spectrally normalised.
        init: how their weights start, from the default generator.

    Raises ValueError where no block makes maps of the size asked for, where a latent is too short
    to be divided, and in forward on latents or labels of a wrong shape.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_size: int,
        widths: Sequence[int],
        num_classes: int = 0,
        attention: int = 0,
        shared_embedding_dim: int = 0,
        hierarchical: bool = False,
        spectral: bool = True,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        count = len(widths) - 1
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.bottom = image_size >> count
        if hierarchical and latent_dim <= count:
            raise ValueError(
                f"a hierarchical latent wants at least {count + 1} numbers: latent_dim"
            )
        # The first part of a hierarchical latent goes into the first map, then one into each block.
        self.part = latent_dim // (count + 1) if hierarchical else 0
        self.shared: nn.Embedding | None = None
        if shared_embedding_dim:
            self.shared = nn.Embedding(num_classes, shared_embedding_dim)
        vector = self.part + shared_embedding_dim
        first = latent_dim - count * self.part
        self.linear = nn.Linear(first, widths[0] * self.bottom**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(i, o, num_classes, vector) for i, o in pairwise(widths)
        )
        sizes = [self.bottom << (index + 1) for index in range(count)]
        self.attended, self.attention = _attention(attention, sizes, widths[1:])
        self.bn = SyncedBatchNorm(widths[-1])
        self.conv = nn.Conv2d(widths[-1], 3, 3, padding=1)
        initialise(self, init)
        if spectral:
            normalise_spectrally(self)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim:
            raise ValueError(
                f"the generator wants latents of shape (B, {self.latent_dim}), "
                f"got {tuple(latents.shape)}"
            )
        check_labels(labels, len(latents), self.num_classes, "generator")
        first, conditions = self._split(latents, labels)
        h = self.linear(first).view(len(latents), -1, self.bottom, self.bottom)
        for index, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            h = block(h, condition)
            if index == self.attended:
                h = self.attention(h)
        h = self.conv(F.relu(self.bn(h), inplace=True))
        return torch.tanh(_at_least_float32(h))

    def _split(
        self, latents: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """What the first map is made of, and the condition of each block."""
        count = len(self.blocks)
        conditions: list[list[Tensor]] = [[] for _ in range(count)]
        if self.shared is not None:
            conditions = [[self.shared(labels)]] * count
        if self.part:
            sizes = [self.latent_dim - count * self.part, *[self.part] * count]
            first, *parts = latents.split(sizes, dim=1)
            conditions = [[*c, part] for c, part in zip(conditions, parts, strict=True)]
            latents = first
        if not conditions[0]:
            return latents, [labels] * count
        return latents, [torch.cat(c, dim=1) for c in conditions]


class Discriminator(nn.Module):
    """Images (B, 3, S, S) in [-1, 1] and labels (B,) or None -> logits (B,) in float32.

    With classes, a logit is that of the image alone plus the product of its features with the
    label's vector (projection).

    Args:
        image_size: S.
        widths: channels of each block's output.
        down: for each block, whether it halves the size.
        num_classes: 0 for an unconditional one.
        attention: the map's size after which self-attention is put; 0: none.
        wide: whether a block's hidden width is that of its output, or of its input.
        spectral: whether all weights are spectrally normalised.
        init: how weights start, from the default generator.

    Raises ValueError where no block makes maps of the size asked for, and in forward on images or
    labels of a wrong shape.
    """

    def __init__(
        self,
        *,
        image_size: int,
        widths: Sequence[int],
        down: Sequence[bool],
        num_classes: int = 0,
        attention: int = 0,
        wide: bool = True,
        spectral: bool = True,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        self.image_size, self.num_classes, self.feature_dim = image_size, num_classes, widths[-1]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(i, o, down=halves, first=index == 0, wide=wide)
            for index, (i, o, halves) in enumerate(
                zip([3, *widths[:-1]], widths, down, strict=True)
            )
        )
        sizes = [image_size >> halvings for halvings in accumulate(down)]
        self.attended, self.attention = _attention(attention, sizes, widths)
        self.linear = nn.Linear(widths[-1], 1)
        self.embed = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        initialise(self, init)
        if spectral:
            normalise_spectrally(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(labels, len(images), self.num_classes, "discriminator")
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            logits = self.linear(features)[:, 0]
            if self.embed is not None:
                logits = logits + (self.embed(labels) * features).sum(dim=1)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees: (B, feature_dim) in float32, all pixels summed."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"the discriminator wants images of shape (B, 3, {size}, {size}), got "
                f"{tuple(images.shape)}: resize them, or set model.image_size"
            )
        h = images
        for index, block in enumerate(self.blocks):
            h = block(h)
            if index == self.attended:
                h = self.attention(h)
        return _at_least_float32(F.relu(h)).sum(dim=(2, 3))


def check_labels(labels: Tensor | None, batch: int, num_classes: int, who: str) -> None:
    """Raises ValueError where labels are not what a network of ``num_classes`` (0: none) wants.

    Values are looked at on the CPU alone: elsewhere that would make the device wait.
    """
    if num_classes == 0:
        if labels is not None:
            raise ValueError(f"the {who} is unconditional: pass no labels, or set num_classes")
        return
    if labels is None or labels.shape != (batch,):
        shape = None if labels is None else tuple(labels.shape)
        raise ValueError(
            f"the {who} is conditional: it wants one label a sample, ({batch},), got {shape}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"the {who} has {num_classes} classes: labels run from 0 to {num_classes - 1}, "
                f"got {low if low < 0 else high}"
            )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attention(
    size: int, sizes: Sequence[int], widths: Sequence[int]
) -> tuple[int, SelfAttention | nn.Identity]:
    """After which block attention to maps of ``size`` comes (-1: none), and the layer."""
    if not size:
        return -1, nn.Identity()
    if size not in sizes:
        raise ValueError(
            f"no block makes maps of {size} px: attention can be at {sorted(set(sizes))}"
        )
    return sizes.index(size), SelfAttention(widths[sizes.index(size)])


def initialise(network: nn.Module, init: Init) -> None:
    """Draws all weights anew, from the default generator; see ``Init`` for biases and classes."""
    original = init == "original"
    norms = [child for child in network.modules() if isinstance(child, ClassBatchNorm)]
    own = {id(layer) for norm in norms for layer in (norm.gain, norm.bias)}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _draw(layer.weight, init)
            if layer.bias is not None and not original:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding) and (original or id(layer) not in own):
            _draw(layer.weight, init)


def _draw(weight: Tensor, init: Init) -> None:
    if init in ("normal", "original"):
        nn.init.normal_(weight, std=0.02)
    elif init == "orthogonal":
        nn.init.orthogonal_(weight)
    elif init == "xavier":
        nn.init.xavier_uniform_(weight)
    else:
        raise ValueError(f"init is normal, orthogonal, xavier or original, not {init!r}")


def normalise_spectrally(network: nn.Module) -> None:
    """Puts a spectral norm on all convolutions, linear layers and the projection's embedding."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    embed = getattr(network, "embed", None)
    for layer in layers if embed is None else [*layers, embed]:
        spectral_norm(layer)
