"""Classifiers on top of an encoder: DPC's own, and the plain one for any encoder.

Han, Xie and Zisserman, "Video Representation Learning by Dense Predictive Coding", ICCVW 2019
(arXiv 1909.04656), for :class:`DpcClassifier`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Literal

import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import Parameter

from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.convgru import ConvGRU
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder

HeadInit = Literal["torch", "orthogonal"]
"""How a head's linear layer starts: as torch draws it, or orthogonal with zero biases."""


class DpcClassifier(nn.Module):
    """Encoder -> ReLU -> mean over time -> GRU over all blocks -> mean over space -> head.

    The head is batch norm, dropout and a linear layer, whose weights start orthogonal and biases
    at zero, as in the original code. Takes normalised clips (B, C, num_blocks * block_len, H, W),
    which it cuts into blocks.
    """

    def __init__(
        self,
        config: DpcConfig,
        num_classes: int,
        *,
        dropout: float = 0.5,
        head_init: HeadInit = "orthogonal",
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, pretrained=config.pretrained)
        if not config.running_stats:
            drop_running_stats(self.encoder)
        self.feature_dim = self.encoder.feature_dim
        self.agg = ConvGRU(self.feature_dim, self.feature_dim, dropout=config.dropout)
        self.head = _head(self.feature_dim, num_classes, dropout, "bn", head_init)

    @classmethod
    def from_dpc(
        cls,
        dpc: DPC,
        num_classes: int,
        *,
        dropout: float = 0.5,
        head_init: HeadInit = "orthogonal",
    ) -> DpcClassifier:
        """A classifier that starts from (and shares) the encoder and the GRU of ``dpc``."""
        classifier = cls.__new__(cls)
        nn.Module.__init__(classifier)
        classifier.config = dpc.config
        classifier.encoder, classifier.agg = dpc.encoder, dpc.agg
        classifier.feature_dim = dpc.feature_dim
        classifier.head = _head(dpc.feature_dim, num_classes, dropout, "bn", head_init)
        return classifier

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) -> logits (B, num_classes)."""
        return self.head(self.features(video))

    def features(self, video: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) -> what the head sees, (B, feature_dim).

        Raises ValueError where T is no multiple of ``block_len``.
        """
        length = self.config.block_len
        if video.ndim != 5 or video.shape[2] % length:
            raise ValueError(
                f"expected clips (B, C, num_blocks * {length}, H, W), got {tuple(video.shape)}"
            )
        blocks = rearrange(video, "b c (n t) h w -> (b n) c t h w", t=length)
        maps = F.relu(self.encoder(blocks))
        pooled = reduce(maps, "(b n) d t h w -> b n d h w", "mean", b=len(video))
        return reduce(self.agg(pooled), "b d h w -> b d", "mean")

    def encoder_parameters(self) -> Iterator[Parameter]:
        """Parameters that pretraining made: the encoder's and the GRU's."""
        return chain(self.encoder.parameters(), self.agg.parameters())

    def head_parameters(self) -> Iterator[Parameter]:
        """Parameters that only the labels train."""
        return self.head.parameters()


class EncoderClassifier(nn.Module):
    """Encoder -> mean over time and space -> optional batch norm -> dropout -> linear layer.

    Takes what its encoder takes: normalised clips (B, C, T, H, W) or images (B, C, H, W).
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        dropout: float = 0.5,
        head_norm: Literal["none", "bn"] = "none",
        head_init: HeadInit = "torch",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature_dim = encoder.feature_dim
        self.head = _head(self.feature_dim, num_classes, dropout, head_norm, head_init)

    def forward(self, pixels: Tensor) -> Tensor:
        """Clips or images -> logits (B, num_classes)."""
        return self.head(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Clips or images -> what the head sees, (B, feature_dim)."""
        return self.encoder.pooled(pixels)

    def encoder_parameters(self) -> Iterator[Parameter]:
        """Parameters that pretraining made."""
        return self.encoder.parameters()

    def head_parameters(self) -> Iterator[Parameter]:
        """Parameters that only the labels train."""
        return self.head.parameters()


def _head(
    dim: int,
    num_classes: int,
    dropout: float,
    norm: Literal["none", "bn"],
    init: HeadInit,
) -> nn.Sequential:
    if num_classes < 1 or not 0 <= dropout < 1 or norm not in ("none", "bn"):
        raise ValueError(
            f"need num_classes >= 1, 0 <= dropout < 1 and a norm of none or bn, "
            f"got {num_classes}, {dropout} and {norm!r}"
        )
    if init not in ("torch", "orthogonal"):
        raise ValueError(f"a head's init is torch or orthogonal, not {init!r}")
    head = nn.Sequential()
    if norm == "bn":
        head.add_module("norm", nn.BatchNorm1d(dim))
    head.add_module("dropout", nn.Dropout(dropout))
    linear = nn.Linear(dim, num_classes)
    if init == "orthogonal":
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
    head.add_module("fc", linear)
    return head
