"""Frozen features of images; what is done with them is the evaluator's."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndavid.data.config import DataConfig
from ndavid.data.image_sources import ImageSource
from ndavid.data.image_subsets import SubsetImages, stratified_indices
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.rng import derive_seed
from ndavid.evaluation.data_warnings import Asked, absent_classes, unreadable
from ndavid.evaluation.features import Extraction, Features
from ndavid.evaluation.frozen import Frozen
from ndavid.evaluation.image_views import (
    ImageViews,
    ImageViewsConfig,
    describe_images,
    open_labelled,
)
from ndavid.evaluation.pretrained import load_pooled, open_weights
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.provenance import gallery, trace_images
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.settings import FrozenSettings, ImageConfig
from ndavid.models.weights.checkpoint import LoadedCheckpoint


@dataclass(kw_only=True)
class FrozenImagesConfig(ImageConfig, FrozenSettings):
    """Which frozen features of which images; the evaluator adds what it does with them."""


@dataclass(frozen=True, kw_only=True)
class FrozenImages(Frozen):
    """The features of an image set; ``extract`` and ``test_source`` serve to compute others."""

    extract: Extraction
    test_source: ImageSource


def load_frozen_images(config: FrozenImagesConfig, asked: Asked = "class") -> FrozenImages:
    """Returns ``load_images`` with the config's own seed, device and cache."""
    return load_images(
        config, seed=config.seed, device=config.device, cache=config.cache_folder(), asked=asked
    )


def load_images(
    config: ImageConfig,
    *,
    seed: int,
    device: Literal["auto", "cpu"],
    cache: Path,
    label_fraction: float = 1.0,
    asked: Asked = "class",
) -> FrozenImages:
    """Returns the features of training and test images, computed or read from the cache.

    Args:
        config: Which images, which encoder.
        seed: Draws random weights and the share of the labels.
        device: Where to compute.
        cache: Folder for features.
        label_fraction: Share of each class's training images that is used.
        asked: What is asked of a test image.

    Raises:
        CheckpointError, ConfigError: As ``load_pooled``.
        DataError: As ``open_labelled`` and ``Extraction``.
    """
    started = time.monotonic()
    at = make_accelerator(device=device).device
    views = config.views
    train_source, test_source = open_labelled(config.data, config.test_split)
    train_source = share_of_labels(train_source, label_fraction, seed)
    tested = measured_images(config)
    opened = open_weights(config.checkpoint, config.model)
    provenance = trace_images(opened, tested, len(test_source))
    loaded = load_pooled(opened, config.model, len(train_source.classes), seed=seed)
    extract = Extraction(
        loaded.classifier,
        at,
        cache,
        on_bad=views.on_bad,
        views_per_batch=views.views_per_batch,
        num_workers=views.num_workers,
    )
    train = image_features(extract, train_source, views, f"{config.data.split} features")
    test = image_features(extract, test_source, views, f"{config.test_split} features")
    looked_at = describe_images(views, config.data, test_source, split=config.test_split)
    looked_at.num_images = len(test.names)
    for side, found in (("training", train), ("test", test)):
        looked_at.warn(*unreadable(found.bad, side, "images"))
        looked_at.warn(*absent_classes(train_source.classes, found.labels, side, "images", asked))
    return FrozenImages(
        classes=train_source.classes,
        loaded=loaded,
        provenance=provenance,
        train=train,
        test=test,
        looked_at=looked_at,
        gallery=f"{len(train.names)} training images ({len(train.bad)} unreadable)",
        seed=seed,
        device=at,
        started=started,
        extract=extract,
        test_source=test_source,
    )


def share_of_labels(source: ImageSource, fraction: float, seed: int) -> ImageSource:
    """Returns the images whose labels are used: the same share of every class, from the seed."""
    if fraction == 1:
        return source
    drawn = stratified_indices(source.labels, fraction, derive_seed(seed, "labels"))
    return SubsetImages(source, drawn)


def measured_images(config: ImageConfig) -> DataConfig:
    """Returns the data config of the images that are measured."""
    return dataclasses.replace(config.data, split=config.test_split)


def image_features(
    extract: Extraction, source: ImageSource, views: ImageViewsConfig, words: str
) -> Features:
    """Returns the features of all images of a source, named by their positions there."""
    dataset = ImageViews(source, views)
    return extract(dataset, dataset.digest(), positions(source), words)


def positions(source: ImageSource) -> list[str]:
    """Returns what outcomes call images: positions, which are the same wherever the data lies."""
    return [str(index) for index in range(len(source))]


def write_image_result(
    result: Result, config: ImageConfig, opened: LoadedCheckpoint | None
) -> Result:
    """Writes result, outcomes and report into the output folder; returns the result."""
    return write_outputs(result, config, config.output, pictures=gallery([opened]))
