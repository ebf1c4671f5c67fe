"""Nearest-neighbour retrieval: query each test video, look it up among the training videos.

The protocol of the video self-supervision literature (Xu et al. 2019, "Self-supervised
Spatiotemporal Learning via Video Clip Order Prediction"): features of evenly spaced clips are
averaged per video, compared by cosine similarity, and R@k is the share of queries with at least one
video of their class among the k nearest. Nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.collectives import world_size
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError
from ndavid.evaluation.features import Features, extract
from ndavid.evaluation.intervals import Metric, top_k_accuracy
from ndavid.evaluation.pretrained import ClassifierConfig, load_classifier, locate_each
from ndavid.evaluation.protocol import Result, mean_over_folds
from ndavid.evaluation.provenance import checkpoint_of, gallery, trace
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.views import ViewsConfig, describe, open_manifest


@dataclass(kw_only=True)
class RetrievalConfig:
    """Nearest-neighbour retrieval with frozen features."""

    output: str = "runs/retrieval"
    """folder for result.json and report.html"""
    manifest: str = ""
    """manifest.csv of the prepared dataset, or its folder"""
    checkpoint: str = ""
    """run, checkpoint, saved model or file of the original DPC; empty: random weights. {fold} in it
    stands for the fold's number: one pretraining a fold, which never saw that fold's test videos"""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """the encoder, and where its features are taken (head: before the linear layer)"""
    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(crops=1))
    """what is read from each video"""
    folds: list[int] = field(default_factory=lambda: [1])
    """official folds; several are averaged"""
    split: Literal["test", "val"] = "test"
    """the split that is measured; Kinetics is measured on val"""
    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50])
    """R@k for these k"""
    num_examples: int = 12
    """random queries whose neighbours are kept for the report"""
    num_neighbours: int = 5
    """neighbours kept for each"""
    seed: int = 0
    """draws random weights, where asked for, and the examples"""
    device: Literal["auto", "cpu"] = "auto"
    """where features are computed: a GPU where there is one, or always the CPU"""
    cache: str = ""
    """folder for features, reusable between evaluations; empty keeps them in output/features"""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks must be at least 1, not {self.ks}")
        if not self.folds:
            raise ConfigError("folds must name at least one official fold")


def run(config: RetrievalConfig) -> Result:
    """Measures R@k on every fold, writes ``result.json`` and returns it."""
    device = make_accelerator(device=config.device).device
    locate_each(config.checkpoint, config.folds)
    results = [_run_fold(config, fold, device) for fold in config.folds]
    return write_outputs(
        mean_over_folds(results),
        config,
        config.output,
        config.manifest,
        backend=config.views.backend,
        pictures=gallery(config.checkpoint, config.folds),
    )


def _run_fold(config: RetrievalConfig, fold: int, device: torch.device) -> Result:
    started = time.monotonic()
    manifest = open_manifest(config.manifest)
    weights = checkpoint_of(config.checkpoint, fold)
    provenance = trace(weights, manifest.select(config.split, fold), fold)
    loaded = load_classifier(
        weights, config.model, config.views, len(manifest.classes), seed=config.seed
    )
    cache = Path(config.cache) if config.cache else Path(config.output) / "features"
    gallery, queries = (
        extract(
            loaded.classifier,
            manifest.select(split, fold),
            manifest,
            config.views,
            cache=cache,
            device=device,
            description=f"{split} features",
        )
        for split in ("train", config.split)
    )
    order = nearest(queries.pooled(), gallery.pooled(), count=len(gallery.paths))
    protocol = describe(
        config.views, config.manifest, manifest, queries.report, split=config.split, fold=fold
    )
    protocol.num_videos = len(queries.paths)
    protocol.num_bad = len(queries.bad)
    protocol.averaging = "features averaged over views, cosine similarity"
    protocol.selection = "nothing is trained"
    protocol.notes = [
        *loaded.notes,
        *provenance.notes,
        f"Gallery: {len(gallery.paths)} training videos ({gallery.report.num_dropped} short ones "
        f"dropped, {len(gallery.bad)} undecodable).",
    ]
    return Result(
        task="retrieval",
        metrics=recalls(order, queries.labels, gallery.labels, config.ks),
        protocol=protocol,
        chance=_chance(queries.labels, gallery.labels),
        checkpoint=loaded.source,
        seed=config.seed,
        seconds=time.monotonic() - started,
        environment=describe_environment(
            seed=config.seed, device=device, world_size=world_size(), precision="no"
        ),
        details={
            "neighbours": _examples(config, order, queries, gallery, manifest.classes),
            "key_report": loaded.key_report,
            "pretraining": provenance.details,
            "bad": [list(entry) for entry in (*gallery.bad, *queries.bad)],
        },
    )


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


def recalls(
    order: Tensor, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int]
) -> dict[str, Metric]:
    """Returns R@k for each k: the share of queries with their class among the k nearest.

    A k beyond the size of the gallery is left out.
    """
    hits = gallery_labels[order] == query_labels[:, None]
    return {
        f"R@{k}": top_k_accuracy(hits[:, :k].any(1).tolist())
        for k in sorted(set(ks))
        if k <= order.shape[1]
    }


def _chance(query_labels: Tensor, gallery_labels: Tensor) -> float:
    """R@1 of a neighbour drawn at random from the gallery."""
    share = torch.bincount(gallery_labels, minlength=int(query_labels.max()) + 1).double()
    return float((share / share.sum())[query_labels].mean())


def _examples(
    config: RetrievalConfig,
    order: Tensor,
    queries: Features,
    gallery: Features,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Random queries with their neighbours: drawn blindly, so that they show the typical case."""
    draw = torch.randperm(len(queries.paths), generator=generator(config.seed, "examples"))
    asked, known = queries.pooled().double(), gallery.pooled().double()
    examples = []
    for query in draw[: config.num_examples].tolist():
        label = int(queries.labels[query])
        examples.append(
            {
                "query": {"path": queries.paths[query], "class": classes[label]},
                "neighbours": [
                    {
                        "path": gallery.paths[found],
                        "class": classes[int(gallery.labels[found])],
                        "similarity": float(F.cosine_similarity(asked[query], known[found], dim=0)),
                        "correct": int(gallery.labels[found]) == label,
                    }
                    for found in order[query, : config.num_neighbours].tolist()
                ],
            }
        )
    return examples
