"""Tensors in, scalar out: the objectives, stateless and without a model attached."""

from ndavid.losses.contrastive import (
    InfoNce,
    contrastive_metrics,
    info_nce,
    info_nce_from_similarities,
    paired_similarity,
    similarity,
)

__all__ = [
    "InfoNce",
    "contrastive_metrics",
    "info_nce",
    "info_nce_from_similarities",
    "paired_similarity",
    "similarity",
]
