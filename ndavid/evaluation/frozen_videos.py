"""Frozen features of videos, fold by fold; what is done with them is the evaluator's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ndavid.data.manifest import Manifest
from ndavid.engine.distributed import make_accelerator
from ndavid.evaluation.broken_clips import BrokenCopies, BrokenViews
from ndavid.evaluation.classify import TestDataset, pool_confusions
from ndavid.evaluation.data_warnings import (
    Asked,
    absent_classes,
    dropped,
    shared_videos,
    unreadable,
    used_though_damaged,
)
from ndavid.evaluation.features import Extraction, video_digest
from ndavid.evaluation.frozen import Frozen
from ndavid.evaluation.prepared_files import PreparedFiles
from ndavid.evaluation.pretrained import load_classifier, open_folds
from ndavid.evaluation.protocol import Result, mean_over_folds
from ndavid.evaluation.provenance import gallery, trace
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.settings import FrozenSettings, VideoConfig
from ndavid.evaluation.views import (
    ViewsConfig,
    describe,
    open_manifest,
    select_labelled,
    views_dataset,
)
from ndavid.models.weights.checkpoint import LoadedCheckpoint


@dataclass(kw_only=True)
class FrozenVideosConfig(VideoConfig, FrozenSettings):
    """Which frozen features of which videos; the evaluator adds what it does with them."""

    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(crops=1))
    """what is read from each video, training and test alike"""


@dataclass(frozen=True, kw_only=True)
class FrozenFold(Frozen):
    """One official fold's features; ``fold`` is its number, 1-based."""

    fold: int
    manifest: Manifest


ConfigT = TypeVar("ConfigT", bound=FrozenVideosConfig)


def measure_folds(
    config: ConfigT,
    measure: Callable[[ConfigT, FrozenFold], Result],
    *,
    asked: Asked = "class",
    broken: BrokenCopies | None = None,
) -> Result:
    """Measures each fold, writes the mean over them into the output folder, and returns it.

    Args:
        config: What is measured on what.
        measure: Finds the Result of one fold.
        asked: What it asks of a video.
        broken: Broken copies that stand beside the views, if any.

    Raises:
        CheckpointError: If a fold's checkpoint is missing or damaged, before the first is measured.
    """
    device = make_accelerator(device=config.device).device
    opened = open_folds(config.checkpoint, config.model, config.folds)
    results = [
        measure(config, load_fold(config, fold, device, weights, asked=asked, broken=broken))
        for fold, weights in opened.items()
    ]
    return write_outputs(
        pool_confusions(mean_over_folds(results)),
        config,
        config.output,
        config.data.root,
        backend=config.views.backend,
        pictures=gallery(opened.values()),
    )


def load_fold(
    config: FrozenVideosConfig,
    fold: int,
    device: torch.device,
    opened: LoadedCheckpoint | None,
    *,
    asked: Asked = "class",
    broken: BrokenCopies | None = None,
) -> FrozenFold:
    """Returns one fold's features by the opened weights, computed or read from the cache.

    Of each video they are those of its views, (M, V, D); with ``broken`` those of its views and
    then of each kind of copy, (M, looks * V, D).

    Raises:
        CheckpointError, ConfigError: As ``load_classifier``.
        DataError, DecodeError: As ``open_manifest`` and ``Extraction``.
    """
    started = time.monotonic()
    views, manifest = config.views, open_manifest(config.data)
    splits = (config.data.split, config.test_split)
    chosen = [select_labelled(manifest, split, fold) for split in splits]
    provenance = trace(opened, manifest.select(config.test_split, fold), manifest.root, fold)
    loaded = load_classifier(opened, config.model, views, len(manifest.classes), seed=config.seed)
    extract = Extraction(
        loaded.classifier,
        device,
        config.cache_folder(),
        on_bad=views.on_bad,
        views_per_batch=views.views_per_batch,
        views_per_item=views.clips * views.crops * (broken.looks if broken else 1),
        num_workers=views.num_workers,
    )
    features, reports = [], []
    files = PreparedFiles([*chosen[0], *chosen[1]], manifest, views.on_changed)
    for split, records in zip(splits, chosen, strict=True):
        dataset, report = views_dataset(records, manifest, views)
        names = [record.path for record in dataset.records]
        digest = video_digest(dataset.records, manifest, views, files.changed)
        shown: TestDataset = dataset
        if broken is not None:
            shown, digest = BrokenViews(dataset, broken), broken.digest(digest)
        features.append(extract(shown, digest, names, f"{split} features"))
        reports.append(report)
    train, test = features
    looked_at = describe(
        views, config.data, manifest, reports[1], split=config.test_split, fold=fold
    )
    looked_at.num_videos = len(test.names)
    for side, part, report, found in zip(
        ("training", "test"), chosen, reports, features, strict=True
    ):
        looked_at.warn(*dropped(report, len(part), side), *unreadable(found.bad, side, "videos"))
        looked_at.warn(*absent_classes(manifest.classes, found.labels, side, "videos", asked))
        looked_at.warn(*used_though_damaged(found.damaged, part, side))
    looked_at.warn(*shared_videos(chosen[0], chosen[1], manifest))
    files.tell(looked_at)
    return FrozenFold(
        classes=manifest.classes,
        loaded=loaded,
        provenance=provenance,
        train=train,
        test=test,
        looked_at=looked_at,
        gallery=(
            f"{len(train.names)} training videos ({reports[0].num_dropped} short ones dropped, "
            f"{len(train.bad)} undecodable)"
        ),
        seed=config.seed,
        device=device,
        started=started,
        fold=fold,
        manifest=manifest,
    )
