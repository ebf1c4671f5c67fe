"""What a contrastive method trains on: several augmented views of each image, or of each video.

One config for both; what follows sees views and need not know which. Views are made in the loader's
workers, or, of image sets that live in memory, in whole batches on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ndavid.data.batch_augment import BatchAugment
from ndavid.data.clip_sets import open_clips
from ndavid.data.image_sources import MemoryImages, listing_notes
from ndavid.data.images import (
    ImageDataConfig,
    ImageDataset,
    MultiViewImages,
    image_eval_transform,
    open_images,
)
from ndavid.data.sampling import DenseClip
from ndavid.data.seeded_dataset import SeededDataset
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, MultiViewClips, VideoDataConfig
from ndavid.errors import ConfigError
from ndavid.ranges import AT_LEAST_1, check_ranges


@dataclass(kw_only=True)
class ViewsDataConfig:
    """Images or videos, of which exactly one must be named, and where their views are made."""

    images: ImageDataConfig = field(default_factory=ImageDataConfig)
    """the image set (root), or its shards"""
    video: VideoDataConfig = field(default_factory=VideoDataConfig)
    """the prepared videos (manifest), or their shards"""
    num_frames: int = 16
    """frames a clip"""
    same_frames: bool = False
    """all views of a video show the same frames; else each draws its own start"""
    augment_on: Literal["workers", "device"] = "workers"
    """workers, sample by sample; device, in batches: for image sets of one small size"""

    def __post_init__(self) -> None:
        check_ranges(self, num_frames=AT_LEAST_1)


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
        ConfigError: not exactly one of images and videos is named, or views are wanted on the
            device of what does not live in memory.
        DataError: nothing to read, or damaged files.
    """
    images = bool(config.images.root or config.images.shards)
    if images == bool(config.video.manifest or config.video.shards):
        raise ConfigError(
            "name what to train on: data.images.root (a folder or archive of images) or "
            "data.video.manifest (the folder datasets/prepare.py wrote), or the shards of either, "
            "and only one of them"
        )
    if images:
        return _of_images(config, augment, num_views)
    return _of_videos(config, augment, num_views)


def _of_images(config: ViewsDataConfig, augment: AugmentConfig, num_views: int) -> TrainingViews:
    source = open_images(config.images)
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
    video = config.video
    sampler = DenseClip(config.num_frames, video.frame_stride, video.short)
    clips = open_clips(video, sampler)
    transform = train_transform(augment)
    dataset = MultiViewClips(
        clips.records,
        clips.root,
        sampler,
        transform,
        num_views,
        same_frames=config.same_frames,
        backend=video.backend,
        on_error="next",
        damaged=video.damaged,
        store=clips.store,
    )
    plain = ClipDataset(
        clips.records,
        clips.root,
        sampler,
        transform,
        backend=video.backend,
        on_error="next",
        damaged=video.damaged,
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
