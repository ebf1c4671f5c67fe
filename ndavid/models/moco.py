"""Momentum contrast: a query encoder, its slow copy that makes the keys, and a queue of keys.

Papers: He, Fan, Wu, Xie and Girshick 2020, "Momentum Contrast for Unsupervised Visual
Representation Learning" (arXiv 1911.05722); Chen, Fan, Girshick and He 2020, "Improved Baselines
with Momentum Contrastive Learning" (arXiv 2003.04297: the MLP head).

One class for images (B, C, H, W) and clips (B, C, T, H, W). Only parameters are averaged: the key
encoder's batch norm keeps buffers of its own. Batch statistics would tell which key belongs to
which query, so keys are normalised in other company than queries: shuffled across ranks, and on one
device in ``bn_splits`` groups.

Differences from the papers: the queue's length need not be a multiple of the batch (writing wraps
around); on one device batch norm is split, where the paper has eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ndavid.collectives import broadcast_from_first, gather_without_grad, rank, world_size
from ndavid.errors import ConfigError
from ndavid.models.batchnorm import split_batch_norms
from ndavid.models.encoders.build import build_encoder
from ndavid.models.heads import HeadKind, ProjectionHead


@dataclass(kw_only=True)
class MocoConfig:
    """Encoder, head and queue of MoCo; the defaults are MoCo v2's on ImageNet.

    Raises ConfigError on numbers out of range.
    """

    encoder: str = "timm:resnet50"
    """a name that build_encoder takes"""
    pretrained: bool = False
    """start from the library's own weights"""
    dim: int = 128
    """size of the vectors that are compared"""
    head: HeadKind = "mlp"
    """mlp: Linear, ReLU, Linear (v2); linear: one layer (v1)"""
    head_dim: int = 0
    """hidden units of the mlp; 0: as many as the encoder's features"""
    queue_size: int = 65536
    """keys that wait as negatives; well below the number of training samples, whose own keys
    would be among them"""
    momentum: float = 0.999
    """share of the key encoder that each forward keeps"""
    bn_splits: int = 1
    """groups of a batch that batch norm treats as if each were on a device of its own"""
    shuffle: bool = True
    """whether keys meet other samples in batch norm than queries do"""
    checkpoint_activations: bool = False
    """keep only what enters each block of the query encoder, and compute the rest again in
    backward: about a third more time, half the memory or less, the same gradients"""

    def __post_init__(self) -> None:
        for name in ("dim", "queue_size", "bn_splits"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.head_dim < 0:
            raise ConfigError(f"model.head_dim must not be negative, got {self.head_dim}")
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"model.momentum must be between 0 and 1, not {self.momentum}")


class MoCo(nn.Module):
    """``queries``, ``keys``, ``update_key_encoder`` and ``enqueue``: the four moves of a step.

    ``queue`` (queue_size, dim) starts as random directions from the default generator, as do the
    weights. It and ``queue_pointer``, where the next key goes, are buffers: part of the state dict,
    and the same on every rank.
    """

    queue: Tensor
    queue_pointer: Tensor

    def __init__(self, config: MocoConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, pretrained=config.pretrained)
        self.head = self._head()
        self.key_encoder = build_encoder(config.encoder)
        self.key_head = self._head()
        if config.bn_splits > 1:
            split_batch_norms(self.encoder, config.bn_splits)
            split_batch_norms(self.key_encoder, config.bn_splits)
        # Its parameters and, once, its buffers: from then on it keeps statistics of its own.
        self.key_encoder.load_state_dict(self.encoder.state_dict())
        self.key_head.load_state_dict(self.head.state_dict())
        for parameter in self._key_parameters():
            parameter.requires_grad_(False)
        if config.checkpoint_activations:
            self.encoder.checkpoint_activations()
        queue = nn.init.normal_(torch.empty(config.queue_size, config.dim))
        self.register_buffer("queue", nn.functional.normalize(queue, dim=1))
        self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.long))

    def _head(self) -> ProjectionHead:
        config = self.config
        return ProjectionHead(
            self.encoder.feature_dim, config.dim, kind=config.head, hidden_dim=config.head_dim
        )

    def queries(self, pixels: Tensor) -> Tensor:
        """Images or clips, normalised (B, C, [T,] H, W) -> unit vectors (B, dim), with gradient."""
        return self.head(self.encoder(pixels))

    @torch.no_grad()
    def keys(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Unit vectors (B, dim) of the key encoder, without gradient.

        With ``shuffle`` every rank encodes a random share of all ranks' pixels, and gets its own
        keys back: a collective, so that all ranks must call it equally often. ``generator`` (CPU)
        of the first rank draws the order; None makes a fresh one, seeded by the operating system.
        """
        if not self._shuffles:
            return self.key_head(self.key_encoder(pixels))
        batch = len(pixels)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        order = torch.randperm(batch * world_size(), generator=generator).to(pixels.device)
        order = broadcast_from_first(order)
        mine = slice(rank() * batch, (rank() + 1) * batch)
        shuffled = gather_without_grad(pixels)[order[mine]]
        keys = gather_without_grad(self.key_head(self.key_encoder(shuffled)))
        return keys[order.argsort()[mine]]

    @property
    def _shuffles(self) -> bool:
        """Order matters only where batch norm sees a part of the batch."""
        several = world_size() > 1 or self.config.bn_splits > 1
        return self.config.shuffle and several and self.training

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Moves the key encoder's and head's parameters, not their buffers, towards the query's."""
        pairs = zip(self._key_parameters(), self._query_parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - self.config.momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Writes all ranks' ``keys`` (B, dim), in rank order, over the oldest of the queue.

        Raises ValueError where they are more than the queue holds.
        """
        keys = gather_without_grad(keys)
        size = len(self.queue)
        if len(keys) > size:
            raise ValueError(
                f"{len(keys)} keys a step do not fit into a queue of {size}: "
                "raise model.queue_size or lower the batch"
            )
        places = torch.arange(len(keys), device=keys.device) + self.queue_pointer
        self.queue[places % size] = keys.to(self.queue.dtype)
        self.queue_pointer.copy_((self.queue_pointer + len(keys)) % size)

    def _query_parameters(self) -> Iterator[Parameter]:
        return chain(self.encoder.parameters(), self.head.parameters())

    def _key_parameters(self) -> Iterator[Parameter]:
        return chain(self.key_encoder.parameters(), self.key_head.parameters())
