"""Map-style datasets of images, single or in several augmented views, from the usual image sets.

CIFAR-10/100, STL-10, SVHN, DTD and CelebA are read through torchvision (torchvision_images.py),
ImageNet and its likes from a tree of class folders, a user's own pictures from a folder without
classes (image_folders.py), and any set from one packed archive (image_archive.py).
Small images live in memory; their augmentation may run on the device instead (batch_augment.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from ndavid.data.config import DataConfig
from ndavid.data.image_archive import open_archive
from ndavid.data.image_folders import open_flat, open_tree
from ndavid.data.image_sources import ImageSource, MemoryImages
from ndavid.data.image_subsets import class_subset
from ndavid.data.seeded_dataset import OnError, SampleKey, SeededDataset
from ndavid.data.shard_images import ShardImages, open_shards
from ndavid.data.torchvision_images import open_torchvision
from ndavid.data.transforms import ClipTransform
from ndavid.errors import ConfigError, DataError

# Below this size test images are not enlarged before the centre crop: sets of 32 pixels are shown
# whole everywhere.
_RESIZE_FROM = 64


def open_images(config: DataConfig, *, split: str | None = None) -> ImageSource:
    """The images that a config names; `split` stands in for the config's.

    Raises:
        ConfigError: keys that don't go together, or a split that the set does not have.
        DataError: data that is not there or is damaged; says what to do.
    """
    split = config.split if split is None else split
    if config.shards:
        return _open_shards(config, split)
    found = config.resolve_source()
    if found == "clips":
        raise ConfigError(f"{config.root} holds prepared videos; images are expected here")
    if config.class_list and found != "folder":
        raise ConfigError(f"class_list is for source folder, not {found}")
    if config.class_list and config.classes:
        raise ConfigError("give the classes by name (classes) or in a file (class_list), not both")
    source = _open(config, found, split)
    return class_subset(source, config.classes) if config.classes else source


def _open_shards(config: DataConfig, split: str) -> ImageSource:
    if config.classes or config.class_list:
        raise ConfigError(
            "shards have the classes they were written with: leave out classes and class_list "
            "(datasets/shard.py takes --class-list)"
        )
    return open_shards(config.shards, split)


def _open(config: DataConfig, source: str, split: str) -> ImageSource:
    if source == "folder":
        return open_tree(Path(config.root), split, config.class_list)
    if source == "flat":
        return open_flat(Path(config.root), split)
    if source == "packed":
        return open_archive(config.root, split)
    return open_torchvision(source, config.root, split, download=config.download)


class ImageDataset(SeededDataset):
    """One image a sample: `image`, uint8 (3, H, W).

    A key is `(index, seed)`, or an int for the image without randomness.

    Args:
        source: the images.
        transform: makes the training image, taken as a clip of one frame; None leaves images as
            they are stored, for augmentation on the device.
        on_error: "raise", or "next": the image that follows stands in for one that cannot be read;
            `bad` tells.
    """

    pixel_key = "image"
    unit = "images"

    def __init__(
        self,
        source: ImageSource,
        transform: ClipTransform | None = None,
        *,
        on_error: OnError = "raise",
    ) -> None:
        if not len(source):
            raise DataError(source.origin, "no images to read: the selection is empty")
        self.source = source
        self.root = Path(source.origin)
        self.transform = transform
        self.on_error = on_error
        self.store = source.store if isinstance(source, ShardImages) else None

    @property
    def digest(self) -> str:
        """SHA-256 of what an index means, hexadecimal; transforms are no part of it."""
        return self.source.digest

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[dict[str, Any]]:
        """The samples of many keys; stored images are gathered at once, for a tenth of the time.

        This is the method that torch's DataLoader looks for.
        """
        source = self.source
        if self.transform is not None or not isinstance(source, MemoryImages) or source.bad:
            return [self[key] for key in keys]
        places = [key[0] if isinstance(key, tuple) else key for key in keys]
        index = torch.tensor(places)
        # index_select takes a twentieth of the time of `images[index]`.
        images, labels = source.images.index_select(0, index), source.labels[index].tolist()
        return [
            {"image": image, "label": label, "index": place, "bad": []}
            for image, label, place in zip(images, labels, places, strict=True)
        ]

    def _label(self, index: int) -> int:
        return int(self.source.labels[index])

    def _pixels(self, index: int, generator: torch.Generator | None) -> Tensor:
        return self._view(self.source.read(index), generator)

    def _view(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.transform is None:
            return image
        return self.transform(image.unsqueeze(0), generator)[0]


class MultiViewImages(ImageDataset):
    """Several views of one image, each augmented by itself: `views`, uint8 (V, 3, H, W).

    The image is read and decoded once. By an int key all views are the one without randomness.
    """

    pixel_key = "views"

    def __init__(
        self,
        source: ImageSource,
        transform: ClipTransform,
        num_views: int = 2,
        *,
        on_error: OnError = "raise",
    ) -> None:
        if num_views < 1:
            raise ConfigError(f"num_views must be at least 1, got {num_views}")
        super().__init__(source, transform, on_error=on_error)
        self.num_views = num_views

    def _pixels(self, index: int, generator: torch.Generator | None) -> Tensor:
        image = self.source.read(index)
        return torch.stack([self._view(image, generator) for _ in range(self.num_views)])


def image_eval_transform(size: int, *, resize: int | None = None) -> _ImageEvalTransform:
    """uint8 (..., 3, H, W) -> (..., 3, size, size): short side to `resize`, then the centre crop.

    By default ImageNet's proportion, 256 to 224; no enlargement below 64 pixels.

    Raises:
        ConfigError: a size below 1, or a short side smaller than the crop.
    """
    if resize is None:
        resize = round(size * 256 / 224) if size >= _RESIZE_FROM else size
    if not 1 <= size <= resize:
        raise ConfigError(f"a crop of {size} pixels does not fit a short side of {resize}")
    return _ImageEvalTransform(size, resize)


@dataclass(frozen=True)
class _ImageEvalTransform:
    size: int
    resize: int

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Takes a generator only to fit where training transforms do."""
        if min(clip.shape[-2:]) != self.resize:
            clip = F.resize(clip, [self.resize], antialias=True)
        return F.center_crop(clip, [self.size, self.size])
