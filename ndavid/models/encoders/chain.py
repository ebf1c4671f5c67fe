"""Encoders made of the parts of a library's network that come before its pooling and classifier.

The parts keep the names they have in the library, and so do their parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from ndavid.models.encoders.base import Encoder, ImageEncoder
from ndavid.models.encoders.recomputation import run_in_sequence, run_recomputed


class VideoChain(Encoder):
    """Parts of a video network, one after the other."""

    def __init__(self, name: str, parts: Mapping[str, nn.Module]) -> None:
        super().__init__(name)
        self.feature_dim = _adopt(self, parts, probe=(1, 3, 16, 64, 64))

    def forward(self, clips: Tensor) -> Tensor:
        self.require_clips(clips)
        run = run_recomputed if self.recomputes else run_in_sequence
        return run(self.sequential(), clips)

    def sequential(self) -> tuple[nn.Module, ...]:
        return tuple(self.children())


class ImageChain(ImageEncoder):
    """Parts of an image network, one after the other."""

    def __init__(self, name: str, parts: Mapping[str, nn.Module]) -> None:
        super().__init__(name)
        self.feature_dim = _adopt(self, parts, probe=(1, 3, 64, 64))

    def encode_images(self, images: Tensor) -> Tensor:
        run = run_recomputed if self.recomputes else run_in_sequence
        return run(self.sequential(), images)

    def sequential(self) -> tuple[nn.Module, ...]:
        return tuple(self.children())


class ChannelsFirst(nn.Module):
    """(B, t, h, w, D) -> (B, D, t, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t h w d -> b d t h w")


def _adopt(encoder: Encoder, parts: Mapping[str, nn.Module], probe: tuple[int, ...]) -> int:
    """Makes ``parts`` the encoder's children; returns the channels of the map they end in."""
    for name, part in parts.items():
        encoder.add_module(name, part)
    # On the meta device nothing is computed but shapes.
    shadow = copy.deepcopy(encoder).to("meta").eval()
    made = run_in_sequence(shadow.children(), torch.empty(probe, device="meta"))
    return int(made.shape[1])
