"""Cosine nearest neighbours: the weighted vote of the kNN classifier, and distances.

The vote is that of Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination" (CVPR 2018): each of the k nearest training features votes for its class
with weight exp(cosine / temperature).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07


def vote(
    queries: Tensor,
    gallery: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """Returns for each k the share of the votes that each class gets: (Q, num_classes) on the CPU.

    Args:
        queries: (Q, D) features.
        gallery: (G, D) features.
        labels: (G,) class indices of the gallery.
        num_classes: Classes to vote for.
        ks: Numbers of neighbours, each at most G.
        temperature: Of the weights exp(cosine / temperature).
        device: Where to compute; that of ``queries`` by default.

    Raises:
        ValueError: If a k is below 1 or above G.
    """
    if not ks or min(ks) < 1 or max(ks) > len(gallery):
        raise ValueError(f"need 1 <= k <= {len(gallery)} (the gallery), got {list(ks)}")
    shares: dict[int, list[Tensor]] = {k: [] for k in ks}
    for similarity, places in nearest_chunks(queries, gallery, max(ks), device=device):
        # Beside its nearest one, so that no weight overflows; shares stay the same.
        weights = ((similarity - similarity[:, :1]) / temperature).exp().cpu()
        votes_for = labels.cpu()[places.cpu()]
        for k, rows in shares.items():
            votes = torch.zeros(len(weights), num_classes)
            votes.scatter_add_(1, votes_for[:, :k], weights[:, :k])
            rows.append(votes / votes.sum(1, keepdim=True))
    return {k: torch.cat(rows) for k, rows in shares.items()}


def too_many_neighbours(prefix: str, ks: Sequence[int], size: int, unit: str) -> list[str]:
    """Returns which numbers ask for more neighbours than the gallery has, in a sentence."""
    beyond = [f"{prefix}{k}" for k in sorted(set(ks)) if k > size]
    if not beyond:
        return []
    return [f"{', '.join(beyond)} cannot be computed: the gallery has only {size} {unit}."]


def nearest_chunks(
    queries: Tensor,
    gallery: Tensor,
    count: int,
    *,
    chunk: int = 1024,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields cosine similarities and positions of the ``count`` nearest, some queries at a time.

    Computed in float32: of neighbours whose similarities agree to 7 digits, which one is in the
    last place is left open.

    Args:
        queries: (Q, D) features.
        gallery: (G, D) features.
        count: At most G.
        chunk: Queries compared at a time.
        device: Where to compute; that of ``queries`` by default.

    Yields:
        (chunk, count) similarities, highest first, and (chunk, count) positions in the gallery.
    """
    device = device or queries.device
    keys = F.normalize(gallery.to(device).float(), dim=1).T
    for part in queries.split(chunk):
        similarity = F.normalize(part.to(device).float(), dim=1) @ keys
        values, places = similarity.topk(count, dim=1)
        yield values, places
