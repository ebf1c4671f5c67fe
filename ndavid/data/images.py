"""Map-style datasets of images, single or in several augmented views, from the usual image sets.

CIFAR-10/100, STL-10 and SVHN are read by torchvision.datasets (which checks their MD5), ImageNet
and its likes from a tree of class folders, a user's own pictures from a folder without classes, and
any set from one packed archive (image_archive.py).
Small images live in memory; their augmentation may run on the device instead (batch_augment.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ndavid.data.image_archive import open_archive
from ndavid.data.image_sources import FileImages, ImageSource, MemoryImages
from ndavid.data.image_subsets import class_subset
from ndavid.data.seeded_dataset import OnError, SampleKey, SeededDataset
from ndavid.data.transforms import ClipTransform
from ndavid.errors import ConfigError, DataError

# Below this size test images are not enlarged before the centre crop: sets of 32 pixels are shown
# whole everywhere.
_RESIZE_FROM = 64

_SPLITS = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "stl10": ("train", "test", "unlabeled", "train+unlabeled"),
    "svhn": ("train", "test", "extra"),
}


@dataclass(kw_only=True)
class ImageDataConfig:
    """Which images are read.

    Attributes:
        source: what `root` holds: one of torchvision's sets, a tree of class folders, images
            without classes (flat), or a packed archive.
        root: the set's folder, the tree, or the .npz file.
        split: cifar: train, test; stl10: train, test, unlabeled, train+unlabeled; svhn: train,
            test, extra; folder: the subfolder that holds the class folders, "" for root itself;
            flat: the subfolder that holds the images at any depth, "" for root itself, and so is
            train where there is no such subfolder; packed: the prefix of the arrays.
        classes: names of the classes to take, labelled in this order; empty: all.
        class_list: text file with one class a line, in label order, to take only these (the first
            word counts: ImageNet-100 lists name the synset first); for folder.
        download: let torchvision fetch what is missing, first from one process.
    """

    source: Literal["cifar10", "cifar100", "stl10", "svhn", "folder", "flat", "packed"] = "cifar10"
    root: str = ""
    split: str = "train"
    classes: list[str] = field(default_factory=list)
    class_list: str = ""
    download: bool = False


def open_images(config: ImageDataConfig, *, split: str | None = None) -> ImageSource:
    """The images that a config names; `split` stands in for the config's.

    Raises:
        ConfigError: keys that don't go together, or a split that the set does not have.
        DataError: data that is not there or is damaged; says what to do.
    """
    split = config.split if split is None else split
    if not config.root:
        raise ConfigError("the images' root is empty; give the folder or archive that holds them")
    if config.class_list and config.source != "folder":
        raise ConfigError(f"class_list is for source folder, not {config.source}")
    if config.class_list and config.classes:
        raise ConfigError("give the classes by name (classes) or in a file (class_list), not both")
    source = _open(config, split)
    return class_subset(source, config.classes) if config.classes else source


def _open(config: ImageDataConfig, split: str) -> ImageSource:
    if config.source == "flat":
        return _open_flat(Path(config.root), split)
    if config.source == "folder":
        return _open_folder(Path(config.root), split, config.class_list)
    if config.source == "packed":
        return open_archive(config.root, split)
    if split not in _SPLITS[config.source]:
        known = ", ".join(_SPLITS[config.source])
        raise ConfigError(f"{config.source} has no split {split!r}: choose from {known}")
    return _open_torchvision(config, split)


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


def _open_folder(root: Path, split: str, class_list: str) -> FileImages:
    folder = root / split
    if not folder.is_dir():
        raise DataError(folder, "no such folder; it should hold one folder of images a class")
    present = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    classes = _read_class_list(Path(class_list)) if class_list else present
    if absent := sorted(set(classes) - set(present)):
        reason = f"has no folder for {len(absent)} of the classes in {class_list}: {absent[0]}"
        raise DataError(folder, reason)
    if not classes:
        reason = "split may name the wrong part; source flat takes images without classes"
        raise DataError(folder, f"holds no class folders; {reason}")
    labels = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(folder), labels, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise DataError(folder, "its class folders hold no images")
    # By label: torchvision goes by name, and a class list may have another order.
    found.sort(key=lambda item: item[1])
    paths = [Path(path).relative_to(folder).as_posix() for path, _ in found]
    return FileImages(folder, paths, torch.tensor([label for _, label in found]), classes)


def _open_flat(root: Path, split: str) -> FileImages:
    folder = root / split
    if split == "train" and not folder.exists():
        folder = root  # a user's own pictures lie in no part
    if not folder.is_dir():
        raise DataError(folder, "no such folder; it should hold images")
    paths = [
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    ]
    if not paths:
        raise DataError(folder, f"holds no images, which end in {', '.join(IMG_EXTENSIONS)}")
    return FileImages(folder, sorted(paths), torch.full((len(paths),), -1), ())


def _read_class_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as a list of classes: {error}") from error
    names = [words[0] for line in lines if (words := line.split())]
    if not names:
        raise DataError(path, "names no class")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(path, f"names {twice} twice")
    return names


def _open_torchvision(config: ImageDataConfig, split: str) -> MemoryImages:
    try:
        return _OPENERS[config.source](config, split)
    except (RuntimeError, OSError, EOFError, ValueError) as error:  # URLError is an OSError
        if config.download:
            reason = f"{config.source} could not be fetched or read: {error}"
        else:
            reason = (
                f"{config.source} is not there, or its files are not the official ones (MD5); set "
                "download: true to let torchvision fetch it, or unpack its archive there"
            )
        raise DataError(config.root, reason) from error


def _open_cifar(config: ImageDataConfig, split: str) -> MemoryImages:
    kind = datasets.CIFAR10 if config.source == "cifar10" else datasets.CIFAR100
    found = kind(config.root, train=split == "train", download=config.download)
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return _memory(config, images, found.targets, found.classes)


def _open_stl10(config: ImageDataConfig, split: str) -> MemoryImages:
    found = datasets.STL10(config.root, split=split, download=config.download)
    # Kept transposed as in the file: the unlabelled part alone is 2.7 GB.
    names = getattr(found, "classes", [str(k) for k in range(10)])  # class_names.txt may be absent
    return _memory(config, torch.from_numpy(found.data), found.labels, names)


def _open_svhn(config: ImageDataConfig, split: str) -> MemoryImages:
    found = datasets.SVHN(config.root, split=split, download=config.download)
    images = torch.from_numpy(found.data).contiguous()
    return _memory(config, images, found.labels, [str(digit) for digit in range(10)])


def _memory(
    config: ImageDataConfig, images: Tensor, labels: Any, classes: Sequence[str]
) -> MemoryImages:
    return MemoryImages(images, torch.as_tensor(labels), classes, origin=config.root)


_OPENERS: dict[str, Callable[[ImageDataConfig, str], MemoryImages]] = {
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    "stl10": _open_stl10,
    "svhn": _open_svhn,
}
