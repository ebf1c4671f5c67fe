"""Projection heads: from an encoder's map to the unit vectors that a contrastive loss compares.

Papers: Chen et al. 2020, "A Simple Framework for Contrastive Learning" (a hidden layer before the
loss); Chen, Fan, Girshick and He 2020, "Improved Baselines with Momentum Contrastive Learning"
(MoCo v2: Linear, ReLU, Linear, no batch norm).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HeadKind = Literal["mlp", "linear"]


class ProjectionHead(nn.Module):
    """Map (B, D, ...) -> unit vectors (B, dim): mean over time and space, then ``mlp`` or linear.

    Args:
        in_dim: D.
        dim: size of the vectors.
        kind: ``mlp`` is MoCo v2's, ``linear`` MoCo v1's.
        hidden_dim: of the ``mlp``; D when 0.

    Raises ValueError on sizes below 1 or a kind that does not exist.
    """

    def __init__(
        self, in_dim: int, dim: int = 128, *, kind: HeadKind = "mlp", hidden_dim: int = 0
    ) -> None:
        super().__init__()
        if in_dim < 1 or dim < 1 or hidden_dim < 0:
            raise ValueError(f"sizes must be positive, got {in_dim}, {dim} and {hidden_dim}")
        if kind not in ("mlp", "linear"):
            raise ValueError(f"a head is mlp or linear, not {kind!r}")
        hidden = hidden_dim or in_dim
        layers: list[nn.Module] = [nn.Linear(in_dim, dim)]
        if kind == "mlp":
            layers = [nn.Linear(in_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        # Unit length in float32: half precision would round the cosine before the temperature.
        return F.normalize(self.layers(pool(maps)).float(), dim=1)


def pool(maps: Tensor) -> Tensor:
    """The mean of a map (B, D, ...) over time and space: (B, D)."""
    return rearrange(maps, "b d ... -> b d (...)").mean(dim=2)
