"""Nearest-neighbour retrieval: query each test video, look it up among the training videos.

The protocol of the video self-supervision literature (Xu et al. 2019, "Self-supervised
Spatiotemporal Learning via Video Clip Order Prediction"): features of evenly spaced clips are
averaged per video, compared by cosine similarity, and R@k is the share of queries with at least one
video of their class among the k nearest. Nothing is trained.

``centre_by_set`` is what CoCLR's code does (Han, Xie and Zisserman 2020): features averaged per
video, then minus the mean of all test or of all training videos, then normalised. Published numbers
are with and without it, and not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.engine.rng import generator
from ndavid.errors import ConfigError
from ndavid.evaluation.chance import recall_chances
from ndavid.evaluation.frozen_videos import (
    FrozenFold,
    FrozenVideosConfig,
    measure_folds,
)
from ndavid.evaluation.intervals import Metric, top_k_accuracy
from ndavid.evaluation.neighbours import too_many_neighbours
from ndavid.evaluation.outcomes import outcomes_of
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result
from ndavid.ranges import NOT_NEGATIVE, check_ranges


@dataclass(kw_only=True)
class RetrievalConfig(FrozenVideosConfig):
    """Nearest-neighbour retrieval with frozen features."""

    output: str = ""
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -retrieval (evaluation/output_folder.py)"""
    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50])
    """R@k for these k"""
    centre_by_set: bool = False
    """subtract from training and from test features the mean of their own set before comparing, as
    CoCLR's code does; a test feature then depends on the other test videos"""
    num_examples: int = 12
    """random queries whose neighbours are kept for the report"""
    num_neighbours: int = 5
    """neighbours kept for each"""
    seed: int = 0
    """draws random weights, where asked for, and the examples"""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks must be at least 1, not {self.ks}")
        check_ranges(self, num_examples=NOT_NEGATIVE, num_neighbours=NOT_NEGATIVE)
        super().__post_init__()


@alone_in_output
def run(config: RetrievalConfig) -> Result:
    """Measures R@k on every fold, writes ``result.json`` and returns it."""
    return measure_folds(config, _query_fold, asked="neighbours")


def _query_fold(config: RetrievalConfig, fold: FrozenFold) -> Result:
    gallery, queries = fold.train, fold.test
    size = len(gallery.names)
    ks = [k for k in sorted(set(config.ks)) if k <= size]
    if not ks:
        raise ConfigError(f"ks {config.ks}: the gallery has only {size} videos")
    asked, known = (
        centred(features.pooled()) if config.centre_by_set else features.pooled()
        for features in (queries, gallery)
    )
    order = nearest(asked, known, count=size)
    centring = ", minus the mean of its own set (training or test)" if config.centre_by_set else ""
    protocol = fold.protocol(
        averaging=f"features averaged over views{centring}, cosine similarity",
        selection="nothing is trained",
        notes=[f"Gallery: {fold.gallery}."],
    )
    protocol.warn(*too_many_neighbours("R@", config.ks, size, "videos"))
    found = found_within(order, queries.labels, gallery.labels, ks)
    return fold.result(
        "retrieval",
        recalls(found),
        protocol,
        chances=recall_chances(queries.labels, gallery.labels, ks),
        details={"neighbours": _examples(config, order, asked, known, fold)},
        outcomes=[
            outcome
            for name, hits in found.items()
            for outcome in outcomes_of(name, queries.names, hits.tolist())
        ],
    )


def centred(features: Tensor) -> Tensor:
    """Returns features (N, D) minus their mean, in float64."""
    return features.double() - features.double().mean(0)


def nearest(queries: Tensor, gallery: Tensor, count: int, chunk: int = 1024) -> Tensor:
    """Returns the ``count`` nearest gallery positions of each query, nearest first.

    Args:
        queries: (Q, D) features.
        gallery: (G, D) features.
        count: At most G.
        chunk: Queries compared at a time.

    Returns:
        (Q, count) positions; equal similarities come in gallery order.
    """
    keys = F.normalize(gallery.double(), dim=1)
    rows = []
    for part in F.normalize(queries.double(), dim=1).split(chunk):
        similarity = part @ keys.T
        rows.append(similarity.argsort(dim=1, descending=True, stable=True)[:, :count])
    return torch.cat(rows)


def found_within(
    order: Tensor, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int]
) -> dict[str, Tensor]:
    """Returns ``R@k`` for each k: bool (Q,), whether a query's class is among the k nearest.

    A k beyond the size of the gallery is left out.
    """
    hits = gallery_labels[order] == query_labels[:, None]
    return {f"R@{k}": hits[:, :k].any(1) for k in sorted(set(ks)) if k <= order.shape[1]}


def recalls(found: Mapping[str, Tensor]) -> dict[str, Metric]:
    """Returns the share of queries of which each is true."""
    return {name: top_k_accuracy(hits.tolist()) for name, hits in found.items()}


def _examples(
    config: RetrievalConfig,
    order: Tensor,
    asked: Tensor,
    known: Tensor,
    fold: FrozenFold,
) -> list[dict[str, Any]]:
    """Random queries with their neighbours: drawn blindly, so that they show the typical case."""
    queries, gallery, classes = fold.test, fold.train, fold.classes
    draw = torch.randperm(len(queries.names), generator=generator(config.seed, "examples"))
    asked, known = asked.double(), known.double()
    examples = []
    for query in draw[: config.num_examples].tolist():
        label = int(queries.labels[query])
        examples.append(
            {
                "query": {"path": queries.names[query], "class": classes[label]},
                "neighbours": [
                    {
                        "path": gallery.names[found],
                        "class": classes[int(gallery.labels[found])],
                        "similarity": float(F.cosine_similarity(asked[query], known[found], dim=0)),
                        "correct": int(gallery.labels[found]) == label,
                    }
                    for found in order[query, : config.num_neighbours].tolist()
                ],
            }
        )
    return examples
