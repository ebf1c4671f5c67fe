"""Images with boxes: what every detection set is read into, and the dataset that trains on it.

Boxes are (x1, y1, x2, y2) in pixels with continuous edges: a box that covers the first pixel alone
is (0, 0, 1, 1). Labels are 0-based. Two kinds of boxes are kept out of training and of the count of
objects in evaluation: VOC's `difficult` ones, and COCO's crowds, which stand for many objects.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ndavid.data.detection_transforms import DetectionTransform
from ndavid.data.image_sources import decode_image, read_bytes
from ndavid.data.worker_errors import data_errors_leave_workers
from ndavid.errors import DataError

SampleKey = int | tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class BoxedImage:
    """One image of a detection set and its objects.

    Attributes:
        path: relative to the set's root, with forward slashes.
        width: pixels, as annotated.
        height: pixels, as annotated.
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels, inside the image and not empty.
        labels: (N,) long, 0-based.
        difficult: (N,) bool; detections of these count neither for nor against.
        crowd: (N,) bool; the same for any detection inside such a box.
    """

    path: str
    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor

    @property
    def counted(self) -> Tensor:
        """(N,) bool: the objects that a detector has to find."""
        return ~(self.difficult | self.crowd)


@dataclass(frozen=True)
class DetectionSet:
    """Annotated images under one root.

    Attributes:
        root: the folder that paths are relative to.
        name: how protocols call it, such as "VOC2007/test".
        classes: names by label.
        images: in the order of the set's own list.
        num_empty_boxes: annotated boxes without area in the image, which were left out.
        num_cut_boxes: annotated boxes that reached beyond the image, which were cut at its edge.
    """

    root: Path
    name: str
    classes: tuple[str, ...]
    images: tuple[BoxedImage, ...]
    num_empty_boxes: int = 0
    num_cut_boxes: int = 0

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of what an index means: paths, sizes and boxes, in order."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for image in self.images:
            objects = [
                [*box, label, difficult, crowd]
                for box, label, difficult, crowd in zip(
                    image.boxes.tolist(),
                    image.labels.tolist(),
                    image.difficult.tolist(),
                    image.crowd.tolist(),
                    strict=True,
                )
            ]
            line = json.dumps([image.path, image.width, image.height, objects])
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()

    def with_objects(self, *, keep_difficult: bool = False) -> DetectionSet:
        """The images for training: crowds and difficult boxes gone, images without objects too.

        Raises DataError if no image is left.
        """
        images = []
        for image in self.images:
            keep = ~image.crowd if keep_difficult else image.counted
            if keep.any():
                images.append(_only(image, keep))
        if not images:
            raise DataError(self.root, f"{self.name}: no image has an object to learn from")
        return replace(self, images=tuple(images))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to annotated boxes, a line each; none for a set that is sound."""
        return tuple(
            f"{self.name}: annotated boxes {what}: {count}"
            for count, what in (
                (self.num_cut_boxes, "cut at the edge of their image"),
                (self.num_empty_boxes, "left out, which have no area in their image"),
            )
            if count
        )

    @property
    def num_objects(self) -> int:
        """Objects that a detector has to find."""
        return sum(int(image.counted.sum()) for image in self.images)


def join(sets: Sequence[DetectionSet]) -> DetectionSet:
    """Several sets as one, such as VOC 2007 and 2012; raises DataError if their classes differ."""
    first = sets[0]
    for other in sets[1:]:
        if other.classes != first.classes or other.root != first.root:
            raise DataError(
                other.root, f"{other.name} has other classes or roots than {first.name}"
            )
    return DetectionSet(
        first.root,
        " + ".join(one.name for one in sets),
        first.classes,
        tuple(image for one in sets for image in one.images),
        sum(one.num_empty_boxes for one in sets),
        sum(one.num_cut_boxes for one in sets),
    )


def cut_box(box: Box, size: tuple[int, int]) -> tuple[Box | None, bool]:
    """A box inside the image, None where no area is left, and whether it was cut at the edge.

    `size` is (width, height). Less than a tenth of a pixel over the edge is rounding.
    """
    x1, y1, x2, y2 = box
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, size[0]), min(y2, size[1]))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, False
    return inside, any(abs(a - b) > 0.1 for a, b in zip(inside, box, strict=True))


def boxed_image(
    path: str,
    size: tuple[int, int],
    objects: Sequence[tuple[Sequence[float], int, bool, bool]],
) -> BoxedImage:
    """A :class:`BoxedImage` of (box, label, difficult, crowd) rows; ``size`` is (width, height)."""
    return BoxedImage(
        path,
        *size,
        boxes=torch.tensor([row[0] for row in objects], dtype=torch.float32).view(-1, 4),
        labels=torch.tensor([row[1] for row in objects], dtype=torch.long),
        difficult=torch.tensor([row[2] for row in objects], dtype=torch.bool),
        crowd=torch.tensor([row[3] for row in objects], dtype=torch.bool),
    )


class DetectionDataset(Dataset[dict[str, Any]]):
    """Images and boxes for a detector.

    A key is `(index, seed)`, or an int for the deterministic view of evaluation. A sample holds
    `image` (uint8, (3, h, w)), `boxes` ((N, 4), in pixels of `image`), `box_labels` ((N,) long),
    `index` (of the image that was read) and `bad`, `(path, reason)` of images that could not be.

    Args:
        images: what to read; crowds and difficult boxes are handed out like any other, so that a
            training set comes from :meth:`DetectionSet.with_objects`.
        transform: resizes, and flips where a seed is given.
        on_error: "raise"; or "next": the image that follows stands in for one that cannot be read,
            so that batches keep their size on every rank.
    """

    def __init__(
        self,
        images: DetectionSet,
        transform: DetectionTransform,
        *,
        on_error: Literal["raise", "next"] = "raise",
    ) -> None:
        if not images.images:
            raise DataError(images.root, f"{images.name} holds no image")
        self.images = images
        self.transform = transform
        self.on_error = on_error

    @property
    def digest(self) -> str:
        """That of the set: a run that goes on after another one would go on with other data."""
        return self.images.digest

    def __len__(self) -> int:
        return len(self.images.images)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        with data_errors_leave_workers():
            return self._sample(index, seed)

    def _sample(self, index: int, seed: int | None) -> dict[str, Any]:
        count = len(self)
        bad: list[tuple[str, str]] = []
        for current in ((index + k) % count for k in range(count)):
            annotated = self.images.images[current]
            try:
                pixels = read_image(self.images.root, annotated)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                bad.append((error.path, error.reason))
                continue
            draw = None if seed is None else torch.Generator().manual_seed(seed)
            image, boxes = self.transform(pixels, annotated.boxes, draw)
            return {
                "image": image,
                "boxes": boxes,
                "box_labels": annotated.labels,
                "index": current,
                "bad": bad,
            }
        path, reason = bad[0]
        raise DataError(
            self.images.root, f"none of the {count} images can be read; {path}: {reason}"
        )


def read_image(root: str | os.PathLike[str], annotated: BoxedImage) -> Tensor:
    """The pixels, uint8 RGB (3, H, W); raises DataError for what is no image of the annotated size.

    An image of another size than its annotation says would have its boxes in wrong places. Where
    EXIF turns an image on its side, the annotated size tells which picture the boxes were drawn on:
    the upright one, as annotation tools show it, or the one that is stored. Where the size fits
    both (square images, half turns, mirrors) it is the upright one.
    """
    path = Path(root) / annotated.path
    content, size = read_bytes(path), (annotated.height, annotated.width)
    pixels = decode_image(content, str(path))
    if tuple(pixels.shape[1:]) == size[::-1]:
        stored = decode_image(content, str(path), upright=False)
        pixels = stored if tuple(stored.shape[1:]) == size else pixels
    if tuple(pixels.shape[1:]) != size:
        raise DataError(
            path,
            f"is {pixels.shape[2]}x{pixels.shape[1]} pixels, but its annotation says "
            f"{annotated.width}x{annotated.height}",
        )
    return pixels


def collate_detection(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks images of different sizes, padded with zeros at the right and at the bottom.

    Returns `image` uint8 (B, 3, H, W); `size` (B, 2), each image's own height and width; `boxes`
    (M, 4) and `box_labels` (M,) of all images in a row, `num_boxes` (B,) of them each; `index`
    (B,); `bad`, one list. All but `bad` are tensors, which the engine moves to the device.
    """
    height = max(sample["image"].shape[1] for sample in samples)
    width = max(sample["image"].shape[2] for sample in samples)
    return {
        "image": torch.stack([_pad(sample["image"], height, width) for sample in samples]),
        "size": torch.tensor([sample["image"].shape[1:] for sample in samples]),
        "boxes": torch.cat([sample["boxes"] for sample in samples]),
        "box_labels": torch.cat([sample["box_labels"] for sample in samples]),
        "num_boxes": torch.tensor([len(sample["boxes"]) for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "bad": [entry for sample in samples for entry in sample["bad"]],
    }


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))


def _only(image: BoxedImage, keep: Tensor) -> BoxedImage:
    return BoxedImage(
        image.path,
        image.width,
        image.height,
        image.boxes[keep],
        image.labels[keep],
        image.difficult[keep],
        image.crowd[keep],
    )
