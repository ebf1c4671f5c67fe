"""Tensors in, scalar out: the objectives, stateless and without a model attached."""

from ndavid.losses.adversarial import (
    DiscriminatorLoss,
    Objective,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from ndavid.losses.chunked import ChunkedInfoNce, GroupedNegatives, info_nce_in_chunks
from ndavid.losses.contrastive import (
    InfoNce,
    contrastive_metrics,
    info_nce,
    info_nce_from_similarities,
    paired_similarity,
    similarity,
)

__all__ = [
    "ChunkedInfoNce",
    "DiscriminatorLoss",
    "GroupedNegatives",
    "InfoNce",
    "Objective",
    "contrastive_metrics",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
    "info_nce",
    "info_nce_from_similarities",
    "info_nce_in_chunks",
    "paired_similarity",
    "similarity",
]
