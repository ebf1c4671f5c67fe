"""A share of an image set's labels, as a `Task` that a classifier is trained and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ndavid.data.image_sources import ImageSource
from ndavid.data.image_subsets import SubsetImages, stratified_indices
from ndavid.data.images import ImageDataset
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import collate as collate_samples
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.rng import derive_seed
from ndavid.errors import ConfigError
from ndavid.evaluation.classify import PerItem, classify
from ndavid.evaluation.data_warnings import absent_classes
from ndavid.evaluation.frozen_images import (
    measured_images,
    positions,
    share_of_labels,
    write_image_result,
)
from ndavid.evaluation.image_views import ImageViews, describe_images, open_labelled
from ndavid.evaluation.pretrained import Pretrained, load_pooled, open_weights
from ndavid.evaluation.protocol import Protocol, Result
from ndavid.evaluation.provenance import trace_images
from ndavid.evaluation.settings import ImageConfig, TrainingConfig
from ndavid.evaluation.training import Trial, build_method, what_decides
from ndavid.methods.classification import ClassificationMethod

RUN_FOLDER = "training"

# Keys that only matter after training.
_TEST_KEYS = (
    *("test_split", "views.on_bad", "views.views_per_batch", "views.num_workers"),
    *("views.resize", "data.download"),
)


@dataclass(kw_only=True)
class ImageTrainingConfig(ImageConfig, TrainingConfig):
    """Training on a share of an image set's labels."""

    label_fraction: float = 1.0
    """share of each class's training images that is used, drawn from the seed: 0.01, 0.1, 1"""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(preset="linear", size=32))
    """augmentation of training images; its size must be that of the views"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_training(self.views.size)
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction must be in (0, 1], not {self.label_fraction}")


class ImageTask:
    """The images of a config: those trained on, those that choose the epoch, those tested."""

    def __init__(self, config: ImageTrainingConfig) -> None:
        self.config = config
        train, self.tested = open_labelled(config.data, config.test_split)
        self.train = share_of_labels(train, config.label_fraction, config.run.seed)
        self.validation: ImageSource | None = None
        if config.validation:
            seed = derive_seed(config.run.seed, "holdout")
            self.train, self.validation = split_off(self.train, config.validation, seed)

    @property
    def classes(self) -> Sequence[str]:
        return self.train.classes

    @property
    def num_training(self) -> int:
        return len(self.train)

    @property
    def selected_on(self) -> str:
        return f"{len(self.validation)} held-out training images" if self.validation else ""

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_samples(samples)
        # Where the method looks for pixels, be they clips or images.
        batch["video"] = batch.pop("image")
        return batch

    def training_data(self) -> ImageDataset:
        return ImageDataset(self.train, train_transform(self.config.augment), on_error="next")

    def validate(self, method: ClassificationMethod, device: torch.device, epoch: int) -> PerItem:
        assert self.validation is not None
        return self._classify(method, self.validation, device, "validating")

    def test(
        self, method: ClassificationMethod, device: torch.device, epoch: int
    ) -> tuple[PerItem, Sequence[str], Protocol]:
        config = self.config
        predictions = self._classify(method, self.tested, device, "testing")
        protocol = describe_images(config.views, config.data, self.tested, split=config.test_split)
        protocol.num_images = len(predictions.labels)
        protocol.averaging = "one view an image"
        protocol.warn(*absent_classes(self.classes, self.train.labels, "training", "images"))
        protocol.notes += label_notes(config.label_fraction, len(self.train))
        return predictions, positions(self.tested), protocol

    def _classify(
        self,
        method: ClassificationMethod,
        source: ImageSource,
        device: torch.device,
        description: str,
    ) -> PerItem:
        views = self.config.views
        return classify(
            method,
            ImageViews(source, views),
            device=device,
            on_bad=views.on_bad,
            views_per_batch=views.views_per_batch,
            num_workers=views.num_workers,
            description=description,
        )


def split_off(source: ImageSource, fraction: float, seed: int) -> tuple[SubsetImages, SubsetImages]:
    """Returns (the rest, a share of every class) of labelled images."""
    held = stratified_indices(source.labels, fraction, seed)
    rest = torch.ones(len(source), dtype=torch.bool)
    rest[held] = False
    return SubsetImages(source, rest.nonzero().flatten()), SubsetImages(source, held)


def label_notes(fraction: float, count: int) -> list[str]:
    """Returns what a reader must know of the training images, where not all of them were used."""
    if fraction == 1:
        return []
    return [f"Trained on {fraction:.3g} of the labels: {count} images, every class alike."]


def load_for_task(config: ImageTrainingConfig, task: ImageTask) -> Pretrained:
    """Returns the classifier for a task, with the weights that the config names."""
    opened = open_weights(config.checkpoint, config.model)
    return load_pooled(opened, config.model, len(task.classes), seed=config.run.seed)


def run_trial(
    name: str, config: ImageTrainingConfig, task: ImageTask, loaded: Pretrained, *, frozen: bool
) -> Result:
    """Trains and tests, writes ``result.json`` and ``report.html``, and returns the result.

    A training that was interrupted goes on where it was; one that is finished is only tested again.
    """
    trial = Trial(
        name=name,
        config=config,
        task=task,
        method=build_method(loaded, frozen=frozen, label_smoothing=config.label_smoothing),
        loaded=loaded,
        provenance=trace_images(loaded.opened, measured_images(config), len(task.tested)),
        folder=Path(config.output) / RUN_FOLDER,
        decides=what_decides(config, loaded, without=_TEST_KEYS, extra={}),
    )
    return write_image_result(trial.run(), config, loaded.opened)


def meet_ranks(config: ImageTrainingConfig) -> None:
    """Makes ranks know each other, which they must before they print or load."""
    make_accelerator(device=config.run.device, data_timeout=config.run.data_timeout)
