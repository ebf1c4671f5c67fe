"""Where images come from: pixels in memory, files in a folder, or encoded files in memory.

A source hands out one uint8 RGB image an index and knows the labels of all of them beforehand, so
that subsets can be drawn without reading pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ndavid.data.image_reading import BadImage, read_image_bytes
from ndavid.errors import DataError

# Images hashed at a time: a transposed set (STL-10) is copied only so far.
_HASHED_TOGETHER = 1024


class ImageSource(Protocol):
    """Labelled images, read by index."""

    @property
    def labels(self) -> Tensor:
        """Long (N,): 0-based classes, -1 for none."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""

    @property
    def digest(self) -> str:
        """SHA-256 of what the indices mean, hexadecimal; where the data lies is no part of it."""

    @property
    def origin(self) -> str:
        """The file or folder that errors name."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """uint8 (3, H, W), RGB. Raises DataError for an image that cannot be read."""

    def name(self, index: int) -> str:
        """What errors call the image: its path, or the origin and its place there."""


class MemoryImages:
    """Images of one size, decoded, in memory.

    Args:
        images: uint8 (N, 3, H, W), RGB.
        labels: long (N,), -1 for none.
        classes: names in label order.
        origin: the file or folder they were read from.
        digest: SHA-256 of what they were made from; of the pixels and labels when None.
        bad: reasons of the images that could not be decoded, by index; their pixels mean nothing.

    Raises:
        DataError: another shape or type, or labels that don't fit.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        origin: str | os.PathLike[str],
        digest: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            found = f"{images.dtype} {tuple(images.shape)}"
            raise DataError(origin, f"images must be uint8 (N, 3, H, W), got {found}")
        self.images = images
        self.classes = tuple(classes)
        self.labels = checked_labels(labels, len(images), self.classes, origin)
        self.origin = os.fspath(origin)
        self.bad = dict(bad or {})
        self._digest = digest

    @cached_property
    def digest(self) -> str:
        """SHA-256 of labels and pixels, or of the files that these came from; hexadecimal."""
        if self._digest is not None:
            return self._digest
        digest = hashlib.sha256(json.dumps(list(self.images.shape)).encode())
        digest.update(self.labels.numpy().tobytes())
        for part in self.images.split(_HASHED_TOGETHER):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        if index in self.bad:
            raise DataError(self.name(index), self.bad[index])
        return self.images[index]

    def name(self, index: int) -> str:
        return f"{self.origin}[{index}]"


class FileImages:
    """Image files below a folder, decoded when they are read.

    Args:
        folder: what the paths are relative to.
        paths: one a file, "/" between their parts.
        labels: long (N,), -1 for none.
        classes: names in label order.
        notes: what was left out of the folder when it was listed, a line each.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        paths: Sequence[str],
        labels: Tensor,
        classes: Sequence[str],
        *,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = tuple(notes)
        self.folder = Path(folder)
        self.classes = tuple(classes)
        self.labels = checked_labels(labels, len(paths), self.classes, folder)
        # One array, not a million strings: worker processes would copy each page of these for
        # their reference counts.
        self._paths = np.array([os.fsencode(path) for path in paths])

    @property
    def origin(self) -> str:
        return os.fspath(self.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the paths below the folder and their labels, hexadecimal."""
        digest = hashlib.sha256()
        for path, label in zip(self._paths, self.labels.tolist(), strict=True):
            digest.update(f"{json.dumps([os.fsdecode(path), label])}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Tensor:
        return decode_image(self.content(index), self.name(index))

    def content(self, index: int) -> Tensor:
        """The file's bytes, uint8. Raises DataError for one that cannot be read."""
        return read_bytes(self.name(index))

    def name(self, index: int) -> str:
        return os.fspath(self.folder / os.fsdecode(self._paths[index]))


class EncodedImages:
    """Encoded image files, one after another in memory, decoded when they are read.

    Args:
        data: uint8 (bytes,): all files.
        offsets: long (N + 1,): file `i` is bytes `offsets[i]` to `offsets[i + 1]`.
        labels: long (N,), -1 for none.
        classes: names in label order.
        origin: the archive.
    """

    def __init__(
        self,
        data: Tensor,
        offsets: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        *,
        origin: str | os.PathLike[str],
    ) -> None:
        self.data = data
        self.offsets = offsets
        self.classes = tuple(classes)
        self.labels = checked_labels(labels, len(offsets) - 1, self.classes, origin)
        self.origin = os.fspath(origin)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files' bytes, their bounds and labels, hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.labels, self.offsets, self.data):
            digest.update(part.numpy().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Tensor:
        return decode_image(self.content(index), self.name(index))

    def content(self, index: int) -> Tensor:
        """The file's bytes, uint8."""
        start, stop = self.offsets[index : index + 2].tolist()
        return self.data[start:stop]

    def name(self, index: int) -> str:
        return f"{self.origin}[{index}]"


def listing_notes(source: ImageSource) -> tuple[str, ...]:
    """What was left out when a source, or the one that it is a part of, was listed."""
    while (whole := getattr(source, "source", None)) is not None:
        source = whole
    return source.notes if isinstance(source, FileImages) else ()


def decode_image(content: Tensor, name: str, *, upright: bool = True) -> Tensor:
    """Decodes a file's bytes, uint8 (bytes,), to uint8 RGB (3, H, W), through PIL.

    torchvision's decoder takes a third of the time on images of 32 pixels, but has been announced
    to go (deprecated in 0.29). `upright`: see `read_image_bytes`.

    Raises:
        DataError: not an image, or one that is damaged or cut short; names `name`.
    """
    try:
        pixels = read_image_bytes(content.numpy().tobytes(), upright=upright)
    except BadImage as error:
        raise DataError(name, str(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_bytes(path: str | os.PathLike[str]) -> Tensor:
    """A file's content as uint8 (bytes,). Raises DataError for one that cannot be read."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DataError(path, "no such file") from error
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from error
    return torch.from_numpy(content)


def checked_labels(
    labels: Tensor, count: int, classes: Sequence[str], origin: str | os.PathLike[str]
) -> Tensor:
    """The labels as long (N,). Raises DataError for another number, or one that has no class."""
    labels = torch.as_tensor(labels).long()
    if labels.shape != (count,):
        raise DataError(origin, f"{count} images and labels of shape {tuple(labels.shape)}")
    if count and not (labels.min() >= -1 and labels.max() < len(classes)):
        low, high = int(labels.min()), int(labels.max())
        reason = f"labels run from {low} to {high}, but there are {len(classes)} classes"
        raise DataError(origin, reason)
    return labels
