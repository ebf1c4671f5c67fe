"""What a contrastive method trains on: several augmented views of each image, or of each video.

One config for both; what follows sees views and need not know which. Views are made in the loader's
workers, or, of image sets that live in memory, in whole batches on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ndavid.data.batch_augment import BatchAugment
from ndavid.data.clip_sets import open_clips
from ndavid.data.config import ViewsDataConfig
from ndavid.data.image_sources import MemoryImages, listing_notes
from ndavid.data.images import (
    ImageDataset,
    MultiViewImages,
    image_eval_transform,
    open_images,
)
from ndavid.data.sampling import DenseClip
from ndavid.data.seeded_dataset import SeededDataset
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, MultiViewClips
from ndavid.errors import ConfigError


@dataclass(frozen=True)
class TrainingViews:
    """What to train on, and what a monitor may look at.

    Attributes:
        dataset: samples with ``views``, or with ``image`` where ``augment`` makes the views.
        augment: makes a batch of views on the device; None where workers made them.
        plain: the same samples by int keys, without randomness, with ``image`` or ``video``; of one
            that cannot be read, ``bad`` tells.
        labels: (N,), -1 for none.
        groups: source of each video, which no split may divide; None for images.
        summary: what was found, in a line.
    """

    dataset: SeededDataset
    augment: BatchAugment | None
    plain: SeededDataset
    labels: Tensor
    groups: tuple[str, ...] | None
    summary: str


def open_views(config: ViewsDataConfig, augment: AugmentConfig, num_views: int) -> TrainingViews:
    """The training set that ``config`` names, in ``num_views`` views a sample.

    Raises:
        ConfigError: nothing is named, or views are wanted on the device of what does not live in
            memory.
        DataError: nothing to read, or damaged files.
    """
    of = _of_videos if config.kind() == "clips" else _of_images
    return of(config, augment, num_views)


def _of_images(config: ViewsDataConfig, augment: AugmentConfig, num_views: int) -> TrainingViews:
    source = open_images(config)
    on_device = config.augment_on == "device"
    if on_device and not isinstance(source, MemoryImages):
        raise ConfigError(
            "data.augment_on: device needs images of one small size that live in memory; "
            "set data.augment_on: workers"
        )
    transform = train_transform(augment)
    return TrainingViews(
        dataset=ImageDataset(source, on_error="next")
        if on_device
        else MultiViewImages(source, transform, num_views, on_error="next"),
        augment=BatchAugment(augment) if on_device else None,
        plain=ImageDataset(source, image_eval_transform(augment.size), on_error="next"),
        labels=source.labels,
        groups=None,
        summary="\n  ".join([f"{len(source)} images to train on", *listing_notes(source)]),
    )


def _of_videos(config: ViewsDataConfig, augment: AugmentConfig, num_views: int) -> TrainingViews:
    if config.augment_on == "device":
        raise ConfigError("data.augment_on: device is for images; videos differ in size")
    sampler = DenseClip(config.num_frames, config.frame_stride, config.short)
    clips = open_clips(config, sampler)
    transform = train_transform(augment)
    dataset = MultiViewClips(
        clips.records,
        clips.root,
        sampler,
        transform,
        num_views,
        same_frames=config.same_frames,
        backend=config.backend,
        on_error="next",
        damaged=config.damaged,
        store=clips.store,
    )
    plain = ClipDataset(
        clips.records,
        clips.root,
        sampler,
        transform,
        backend=config.backend,
        on_error="next",
        damaged=config.damaged,
        store=clips.store,
    )
    return TrainingViews(
        dataset=dataset,
        augment=None,
        plain=plain,
        labels=torch.tensor([record.label for record in clips.records]),
        groups=tuple(record.group for record in clips.records),
        summary=clips.summary,
    )
