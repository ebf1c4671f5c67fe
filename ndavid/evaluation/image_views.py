"""How evaluations look at images: one centre crop each, named in the Protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ndavid.data.config import DataConfig
from ndavid.data.image_sources import ImageSource, listing_notes
from ndavid.data.images import image_eval_transform, open_images
from ndavid.data.worker_errors import data_errors_leave_workers
from ndavid.errors import DataError
from ndavid.evaluation.protocol import Protocol
from ndavid.ranges import AT_LEAST_1, check_ranges, check_workers

# Sources that are whatever their root holds.
_OWN = ("folder", "flat", "packed")


@dataclass(kw_only=True)
class ImageViewsConfig:
    """What is seen of each image."""

    size: int = 32
    """side of the square input, pixels"""
    resize: int | None = None
    """short side before the centre crop; null: size * 256 / 224, or size itself below 64 pixels"""
    on_bad: Literal["raise", "skip"] = "raise"
    """an unreadable image: an error, or left out and counted in the result"""
    views_per_batch: int = 256
    """images a forward pass"""
    num_workers: int = 2
    """loader processes; 0 is fastest for small images, which lie in memory"""

    def __post_init__(self) -> None:
        check_ranges(self, size=AT_LEAST_1, resize=AT_LEAST_1, views_per_batch=AT_LEAST_1)
        check_workers(self)
        image_eval_transform(self.size, resize=self.resize)


class ImageViews:
    """The views of a source's images; an unreadable one is told in ``bad``, for ``per_item``."""

    def __init__(self, source: ImageSource, views: ImageViewsConfig) -> None:
        self.source = source
        self.views = views
        self.transform = image_eval_transform(views.size, resize=views.resize)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {
            "label": int(self.source.labels[index]),
            "index": index,
            "bad": [],
        }
        with data_errors_leave_workers():
            try:
                sample["image"] = self.transform(self.source.read(index))
            except DataError as error:
                sample["bad"].append((error.path, error.reason))
        return sample

    def digest(self) -> str:
        """Returns what features of these images depend on beside the weights, as a SHA-256."""
        seen = [self.source.digest, self.transform.size, self.transform.resize]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def open_labelled(data: DataConfig, test_split: str) -> tuple[ImageSource, ImageSource]:
    """Opens the training and the test images of an evaluation.

    Raises:
        ConfigError, DataError: As ``open_images``.
        DataError: If an image of either has no label, or they have other classes.
    """
    train, test = open_all_labelled(data), open_all_labelled(data, split=test_split)
    if train.classes != test.classes:
        raise DataError(test.origin, f"other classes in {test_split} than in {data.split}")
    return train, test


def open_all_labelled(data: DataConfig, *, split: str | None = None) -> ImageSource:
    """Opens images all of which must have a label.

    Raises:
        ConfigError, DataError: As ``open_images``.
        DataError: If an image has no label, or there is none.
    """
    source = open_images(data, split=split)
    if (unlabelled := int((source.labels < 0).sum())) or not len(source):
        reason = f"{unlabelled} of {len(source)} images have no label to evaluate with"
        raise DataError(source.origin, reason)
    return source


def dataset_name(data: DataConfig) -> str:
    """Returns what a reader calls the set: ``cifar10``, or the name of a folder or archive."""
    if data.shards:
        return f"shards {data.shards}"
    source = data.resolve_source()
    return Path(data.root).absolute().stem if source in _OWN else source


def describe_images(
    views: ImageViewsConfig, data: DataConfig, source: ImageSource, *, split: str
) -> Protocol:
    """Returns the Protocol fields that follow from data and views; the evaluator adds the rest."""
    transform = image_eval_transform(views.size, resize=views.resize)
    shown = f"short side to {transform.resize} px, centre crop"
    return Protocol(
        dataset=dataset_name(data),
        split=split,
        folds=[],
        num_classes=len(source.classes),
        sampling=shown,
        size=views.size,
        notes=[
            *([f"Classes: {chosen_classes(data)}."] if chosen_classes(data) else []),
            *(f"{split or 'all'}: {note}." for note in listing_notes(source)),
        ],
    )


_DATA_KEYS = {field.name for field in dataclasses.fields(DataConfig)}

# Splits that are made of others.
_PARTS = {
    ("stl10", "train+unlabeled"): {"train", "unlabeled"},
    ("celeba", "all"): {"train", "valid", "test"},
}


def chosen_classes(data: DataConfig) -> str:
    """Returns which classes were chosen, in words; empty for all."""
    if data.class_list:
        return f"those listed in {Path(data.class_list).name}"
    return ", ".join(data.classes)


def share_images(one: DataConfig, other: Mapping[str, Any]) -> bool:
    """Whether another run's ``data`` keys name some of the same images.

    Where that cannot be told (lists of classes, shards), it is taken to be so.
    """
    if one.shards:
        return True
    theirs = DataConfig(**{key: value for key, value in other.items() if key in _DATA_KEYS})
    if _source(one) != _source(theirs):
        return False
    if one.classes and theirs.classes and not set(one.classes) & set(theirs.classes):
        return False
    if one.source in ("flat", "folder"):
        mine, folder = _folder(one), _folder(theirs)
        return mine.is_relative_to(folder) or folder.is_relative_to(mine)
    if one.source in _OWN and Path(one.root).resolve() != Path(theirs.root).resolve():
        return False  # Of torchvision's sets there is one each, wherever it lies.
    return bool(_splits(one) & _splits(theirs))


def _source(data: DataConfig) -> str:
    return data.resolve_source() if data.root else data.source


def _folder(data: DataConfig) -> Path:
    """Where the images of a tree lie."""
    root = Path(data.root).resolve()
    whole = data.source == "flat" and data.split == "train" and not (root / "train").exists()
    return root if whole else (root / data.split).resolve()


def _splits(data: DataConfig) -> set[str]:
    """The official parts that a split is made of."""
    return _PARTS.get((data.source, data.split), {data.split})
