"""Image sets that torchvision.datasets reads, in their official layouts and official splits.

Sets of one small size come into memory; DTD and CelebA stay files. torchvision checks the MD5 of
what it reads, except of DTD's and CelebA's images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets

from ndavid.data.image_sources import FileImages, ImageSource, MemoryImages
from ndavid.errors import ConfigError, DataError

# Partition of DTD's ten that its authors' and most later numbers start from.
_DTD_PARTITION = 1


def open_torchvision(name: str, root: str, split: str, *, download: bool) -> ImageSource:
    """The images of one of torchvision's sets.

    Args:
        name: of the set, as `DataConfig.source` has it.
        root: the folder that torchvision takes.
        split: one that the set has.
        download: fetch what is missing.

    Raises:
        ConfigError: a split that the set does not have.
        DataError: files that are not there or not the official ones; says what to do.
    """
    splits, opener = _SETS[name]
    if split not in splits:
        raise ConfigError(f"{name} has no split {split!r}: choose from {', '.join(splits)}")
    try:
        return opener(root, split, download)
    # What torchvision raises; a URLError is an OSError.
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if download:
            reason = f"{name} could not be fetched or read: {error}"
        else:
            reason = (
                f"{name} is not there, or its files are not the official ones (MD5); set "
                "download: true to let torchvision fetch it, or unpack its archive there"
            )
        raise DataError(root, reason) from error


def _open_cifar10(root: str, split: str, download: bool) -> MemoryImages:
    return _cifar(datasets.CIFAR10(root, train=split == "train", download=download), root)


def _open_cifar100(root: str, split: str, download: bool) -> MemoryImages:
    return _cifar(datasets.CIFAR100(root, train=split == "train", download=download), root)


def _cifar(found: datasets.CIFAR10, root: str) -> MemoryImages:
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return _memory(images, found.targets, found.classes, root)


def _open_stl10(root: str, split: str, download: bool) -> MemoryImages:
    found = datasets.STL10(root, split=split, download=download)
    # Kept transposed as in the file: the unlabelled part alone is 2.7 GB.
    names = getattr(found, "classes", [str(k) for k in range(10)])  # class_names.txt may be absent
    return _memory(torch.from_numpy(found.data), found.labels, names, root)


def _open_svhn(root: str, split: str, download: bool) -> MemoryImages:
    found = datasets.SVHN(root, split=split, download=download)
    images = torch.from_numpy(found.data).contiguous()
    return _memory(images, found.labels, [str(digit) for digit in range(10)], root)


def _memory(images: Tensor, labels: Any, classes: Sequence[str], root: str) -> MemoryImages:
    return MemoryImages(images, torch.as_tensor(labels), classes, origin=root)


def _open_dtd(root: str, split: str, download: bool) -> FileImages:
    found = datasets.DTD(root, split=split, partition=_DTD_PARTITION, download=download)
    folder = Path(root) / "dtd" / "dtd" / "images"
    paths = [path.relative_to(folder).as_posix() for path in found._image_files]
    return FileImages(folder, paths, torch.tensor(found._labels), found.classes)


def _open_celeba(root: str, split: str, download: bool) -> FileImages:
    found = datasets.CelebA(root, split=split, target_type=[], download=download)
    folder = Path(root) / "celeba" / "img_align_celeba"
    # Its attributes are no classes: a face has many of them.
    return FileImages(folder, found.filename, torch.full((len(found.filename),), -1), ())


_SETS: dict[str, tuple[tuple[str, ...], Callable[[str, str, bool], ImageSource]]] = {
    "cifar10": (("train", "test"), _open_cifar10),
    "cifar100": (("train", "test"), _open_cifar100),
    "stl10": (("train", "test", "unlabeled", "train+unlabeled"), _open_stl10),
    "svhn": (("train", "test", "extra"), _open_svhn),
    "dtd": (("train", "val", "test"), _open_dtd),
    "celeba": (("train", "valid", "test", "all"), _open_celeba),
}
