"""Multiscale vision transformers of torchvision and pytorchvideo as encoders.

Fan et al., "Multiscale Vision Transformers", ICCV 2021 (arXiv 2104.11227); Li et al., "MViTv2",
CVPR 2022 (arXiv 2112.01526).
"""

from __future__ import annotations

import abc
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from ndavid.models.encoders.base import ClipSizeError, Encoder

Triple = tuple[int, int, int]


class MvitEncoder(Encoder, abc.ABC):
    """A multiscale vision transformer, whose tokens after the last block are laid out as a map.

    Its position tables fix the clip size (T, H, W): any other raises ClipSizeError.
    """

    def __init__(
        self, name: str, blocks: nn.ModuleList, clip_size: Triple, grid: Triple, width: int
    ) -> None:
        super().__init__(name)
        self.blocks = blocks
        self.clip_size = clip_size
        self.grid = grid
        self.feature_dim = width

    def forward(self, clips: Tensor) -> Tensor:
        self.require_clips(clips)
        if tuple(clips.shape[2:]) != self.clip_size:
            raise ClipSizeError(
                f"{self.name} takes clips of (T, H, W) = {self.clip_size} only, got "
                f"{tuple(clips.shape[2:])}: change the clips, or take a convolutional encoder"
            )
        tokens, grid = self.embed(clips), self.grid
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
        t, h, w = grid
        # The first token is the classifier's, not a place in the clip.
        return rearrange(self.normalise(tokens)[:, 1:], "b (t h w) d -> b d t h w", t=t, h=h, w=w)

    @abc.abstractmethod
    def embed(self, clips: Tensor) -> Tensor:
        """Clips -> tokens (B, 1 + t*h*w, D) with their positions."""

    @abc.abstractmethod
    def normalise(self, tokens: Tensor) -> Tensor:
        """The norm after the last block."""


class TorchvisionMvit(MvitEncoder):
    """torchvision's mvit_v1_b and mvit_v2_s."""

    def __init__(self, name: str, net: Any) -> None:
        positions = net.pos_encoding
        patch = net.conv_proj
        grid = (positions.temporal_size, *positions.spatial_size)
        width = net.norm.normalized_shape[0]
        super().__init__(name, net.blocks, _clip_size(grid, patch.stride), grid, width)
        self.conv_proj, self.pos_encoding, self.norm = patch, positions, net.norm

    def embed(self, clips: Tensor) -> Tensor:
        return self.pos_encoding(rearrange(self.conv_proj(clips), "b d t h w -> b (t h w) d"))

    def normalise(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)


class PytorchvideoMvit(MvitEncoder):
    """pytorchvideo's mvit_base_16x4 and mvit_base_32x3."""

    def __init__(self, name: str, net: Any) -> None:
        positions = net.cls_positional_encoding
        patch = net.patch_embed
        grid = tuple(positions.patch_embed_shape)
        width = net.norm_embed.normalized_shape[0]
        super().__init__(name, net.blocks, _clip_size(grid, patch.patch_model.stride), grid, width)
        self.patch_embed, self.cls_positional_encoding = patch, positions
        self.norm_embed = net.norm_embed

    def embed(self, clips: Tensor) -> Tensor:
        return self.cls_positional_encoding(self.patch_embed(clips))

    def normalise(self, tokens: Tensor) -> Tensor:
        return self.norm_embed(tokens)


def _clip_size(grid: Triple, stride: Triple) -> Triple:
    return (grid[0] * stride[0], grid[1] * stride[1], grid[2] * stride[2])
