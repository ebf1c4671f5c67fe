"""COCO's layout: annotations/instances_PART.json and the images in the folder PART.

Lin et al. (2014), "Microsoft COCO: Common Objects in Context". Category ids have gaps; labels here
are their order. `iscrowd` regions stand for several objects and are marked as crowds.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ndavid.data.detection import Box, BoxedImage, DetectionSet, boxed_image, cut_box
from ndavid.data.names import check_name, check_text
from ndavid.errors import DataError


def read_coco(root: str | os.PathLike[str], part: str) -> DetectionSet:
    """One part of a set in COCO's layout, such as "train2017".

    Boxes are cut at the image's edge and counted; boxes without area, of which COCO has a few, are
    left out and counted.

    Raises:
        DataError: a JSON that is missing or broken, naming the entry that is wrong.
    """
    root = Path(root)
    path = root / "annotations" / f"instances_{part}.json"
    content = _load(path)
    categories = sorted(_entries(path, content, "categories"), key=lambda entry: entry["id"])
    labels = {entry["id"]: label for label, entry in enumerate(categories)}
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in _entries(path, content, "annotations"):
        by_image[entry["image_id"]].append(entry)
    images, num_empty, num_cut = [], 0, 0
    for entry in _entries(path, content, "images"):
        image, empty, cut = _image(path, part, entry, by_image.pop(entry["id"], []), labels)
        images.append(image)
        num_empty += empty
        num_cut += cut
    if by_image:
        raise DataError(path, f"annotates the image {next(iter(by_image))}, which it does not list")
    if not images or not labels:
        raise DataError(path, "lists no image or no category")
    names = tuple(
        check_text(path, f"category {entry['id']}", "class name", str(entry["name"]))
        for entry in categories
    )
    return DetectionSet(root, part, names, tuple(images), num_empty, num_cut)


# What each kind of entry must hold for any of it to be read.
_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_INTEGERS = ("id", "width", "height", "image_id", "category_id")


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(path, f"cannot read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(path, "not an object with images, annotations and categories")
    return content


def _entries(path: Path, content: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """The entries of a kind, each with the keys that are read later, and no id twice."""
    entries = content.get(kind)
    if not isinstance(entries, list):
        raise DataError(path, f"has no list of {kind}")
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(path, f"{kind}[{place}] is no object")
        missing = [key for key in _KEYS[kind] if key not in entry]
        if missing:
            raise DataError(path, f"{kind}[{place}] has no {missing[0]!r}")
        wrong = [k for k in _INTEGERS if k in _KEYS[kind] and not isinstance(entry[k], int)]
        if wrong:
            raise DataError(path, f"{kind}[{place}] has {entry[wrong[0]]!r} for {wrong[0]!r}")
    if len({entry["id"] for entry in entries}) != len(entries):
        raise DataError(path, f"an id is there twice among the {kind}")
    return entries


def _image(
    path: Path,
    part: str,
    entry: Mapping[str, Any],
    annotations: list[Mapping[str, Any]],
    labels: Mapping[int, int],
) -> tuple[BoxedImage, int, int]:
    """The image with its objects, and the numbers of its boxes without area and of those cut."""
    size = (entry["width"], entry["height"])
    if min(size) < 1:
        raise DataError(path, f"image {entry['id']} is {size[0]}x{size[1]} pixels")
    objects, num_cut = [], 0
    for annotation in annotations:
        if annotation["category_id"] not in labels:
            raise DataError(
                path,
                f"annotation {annotation['id']} is of category {annotation['category_id']}, "
                "which is not listed",
            )
        box, is_cut = cut_box(_box(path, annotation), size)
        num_cut += is_cut
        if box is not None:
            crowd = bool(annotation.get("iscrowd", 0))
            objects.append((box, labels[annotation["category_id"]], False, crowd))
    name = check_name(path, f"image {entry['id']}", str(entry["file_name"]))
    image = boxed_image(f"{part}/{name}", size, objects)
    return image, len(annotations) - len(objects), num_cut


def _box(path: Path, annotation: Mapping[str, Any]) -> Box:
    """Corners, maybe beyond the image."""
    numbers = annotation["bbox"]
    plain = isinstance(numbers, list) and all(isinstance(n, int | float) for n in numbers)
    if not plain or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise DataError(path, f"annotation {annotation['id']} has the box {numbers!r}")
    x, y, width, height = numbers
    return x, y, x + width, y + height
