"""What every video encoder here is: a module that turns clips into a map of features."""

from __future__ import annotations

from torch import nn


class Encoder(nn.Module):
    """Clips (B, C, T, H, W), normalised floats -> feature maps (B, feature_dim, t, h, w).

    ``name`` is what ``build_encoder`` was asked for, so that a saved encoder can be rebuilt.
    """

    feature_dim: int
    name: str
