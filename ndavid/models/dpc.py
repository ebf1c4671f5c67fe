"""Dense Predictive Coding: predict the features of future blocks, cell by cell.

Han, Xie and Zisserman, "Video Representation Learning by Dense Predictive Coding", ICCVW 2019
(arXiv 1909.04656).

Differences from the paper: batch norm keeps running statistics unless ``running_stats`` is false;
any encoder that gives a map fits in, not only the 2D3D-ResNets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.convgru import ConvGRU, initialise_orthogonal
from ndavid.models.encoders.build import build_encoder


@dataclass(kw_only=True)
class DpcConfig:
    """What a DPC model is made of; the defaults are the paper's small setting."""

    encoder: str = "resnet2d3d18"
    """A name that build_encoder knows."""
    num_blocks: int = 8
    """Blocks a clip is read in (N)."""
    block_len: int = 5
    """Frames a block."""
    pred_steps: int = 3
    """How many of the last blocks are predicted (P)."""
    dropout: float = 0.1
    """Dropout on the GRU's state, at every step in training."""
    pretrained: bool = False
    """Start from the library's own weights, where the encoder's library has them."""
    running_stats: bool = True
    """False: batch norm uses batch statistics in eval too, as the original code did."""
    checkpoint_activations: bool = False
    """Keep only what enters each block of the encoder, and compute the rest again in backward:
    about a third more time a step, half the memory or less, the same gradients."""

    def __post_init__(self) -> None:
        if not 1 <= self.pred_steps < self.num_blocks:
            raise ConfigError(
                f"pred_steps must lie in [1, num_blocks - 1] = [1, {self.num_blocks - 1}], "
                f"got {self.pred_steps}"
            )
        if self.block_len < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"need block_len >= 1 and 0 <= dropout < 1, "
                f"got block_len={self.block_len}, dropout={self.dropout}"
            )


class DPC(nn.Module):
    """Encoder, recurrent aggregator and predictor of dense predictive coding.

    Blocks are (B, N, C, T, H, W), normalised floats; features (B, N, D, s, s') are the encoder's
    maps averaged over time, before the ReLU.
    """

    def __init__(self, config: DpcConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, pretrained=config.pretrained)
        if not config.running_stats:
            drop_running_stats(self.encoder)
        if config.checkpoint_activations:
            self.encoder.checkpoint_activations()
        dim = self.feature_dim = self.encoder.feature_dim
        self.agg = ConvGRU(dim, dim, dropout=config.dropout)
        self.predictor = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.ReLU(inplace=True), nn.Conv2d(dim, dim, 1)
        )
        initialise_orthogonal(self.predictor)

    def forward(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks (B, N, C, T, H, W) -> (predictions, targets), each (B, P, D, s, s').

        Raises ValueError where N does not exceed ``pred_steps``.
        """
        features = self.encode(blocks)
        context, targets = self.split(features)
        return self.predict_from(context), targets

    def encode(self, blocks: Tensor) -> Tensor:
        """Blocks (B, N, C, T, H, W) -> features (B, N, D, s, s'), averaged over time, no ReLU."""
        if blocks.ndim != 6:
            raise ValueError(f"expected blocks (B, N, C, T, H, W), got {tuple(blocks.shape)}")
        maps = self.encoder(rearrange(blocks, "b n c t h w -> (b n) c t h w"))
        return reduce(maps, "(b n) d t h w -> b n d h w", "mean", b=blocks.shape[0])

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, N, ...) -> those of the context, (B, N-P, ...), and of the future."""
        steps = self.config.pred_steps
        if features.shape[1] <= steps:
            raise ValueError(
                f"{features.shape[1]} blocks leave no context before {steps} predicted ones"
            )
        return features[:, :-steps], features[:, -steps:]

    def context(self, features: Tensor) -> Tensor:
        """Features (B, M, D, s, s') of M blocks -> the GRU's last state (B, D, s, s')."""
        return self.agg(F.relu(features))

    def predict_from(self, features: Tensor) -> Tensor:
        """Features of the context (B, N-P, D, s, s'), pre-ReLU -> predictions (B, P, D, s, s')."""
        hidden = self.context(features)
        predictions = [self.predictor(hidden)]
        for _ in range(self.config.pred_steps - 1):
            hidden = self.agg.step(F.relu(predictions[-1]), hidden)
            predictions.append(self.predictor(hidden))
        return torch.stack(predictions, dim=1)

    def scores(self, blocks: Tensor) -> Tensor:
        """Blocks (B, N, C, T, H, W) -> dot products (B, P, S, B, P, S), S = s * s' in row order.

        ``[b, i, c, b', j, c']`` compares the prediction of step i at cell c of sample b with the
        target of step j at cell c' of sample b'; the positive is (b, i, c) itself.
        """
        predictions, targets = self(blocks)
        return dense_scores(predictions, targets)


def dense_scores(predictions: Tensor, targets: Tensor) -> Tensor:
    """Predictions and targets (B, P, D, s, s') -> all their dot products (B, P, S, B, P, S)."""
    queries = rearrange(predictions, "b p d h w -> (b p h w) d")
    keys = rearrange(targets, "b p d h w -> (b p h w) d")
    batch, steps = predictions.shape[:2]
    return rearrange(
        queries @ keys.T,
        "(b p s) (c q r) -> b p s c q r",
        b=batch,
        p=steps,
        q=steps,
        c=len(targets),
    )
