"""PASCAL VOC's layout: ImageSets/Main/LIST.txt, Annotations/NAME.xml, JPEGImages/NAME.jpg.

Everingham et al. (2010), "The PASCAL Visual Object Classes (VOC) Challenge". Corners in the XML
count pixels from 1 and belong to the box; here edges are continuous and start at 0, hence 1 is
taken off the upper left corner and nothing off the lower right one. A box that reaches beyond its
image, as those of tools that count from 0 do, is cut at the edge and counted. `difficult` objects
are marked, not dropped: what becomes of them is the business of training and of evaluation. An
image may have another suffix than .jpg, which counts where both are there.

Annotations come from anywhere, so a document type declaration, the vehicle of XML's entity attacks,
is refused.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from ndavid.data.detection import Box, DetectionSet, boxed_image, cut_box
from ndavid.data.file_tree import is_hidden
from ndavid.data.image_reading import IMAGE_SUFFIXES
from ndavid.data.names import check_name, check_text
from ndavid.errors import DataError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CLASSES_FILE = "classes.txt"

_MOST = 1e6

Object = tuple[Box, int, bool, bool]


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds a tree of a document that declares no document type."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _Refused("declares a document type, which no VOC annotation does")


class _Refused(Exception):
    """Why an annotation cannot be used."""


def read_voc(root: str | os.PathLike[str], part: str) -> DetectionSet:
    """One list of a set in VOC's layout.

    Args:
        root: VOCdevkit, or any folder like one of its years. Where ``classes.txt`` lies in it, it
            names the classes, one a line; else they are VOC's twenty.
        part: "VOC2007/trainval": a folder under ``root`` and a list in its ImageSets/Main; or
            "trainval", where ``root`` itself holds ImageSets.

    Raises:
        DataError: a file that is missing or broken, naming it and what is wrong with it.
    """
    root = Path(root)
    folder, _, name = part.rpartition("/")
    classes = _classes(root)
    labels = {name: label for label, name in enumerate(classes)}
    files = _Files(root / folder / "JPEGImages")
    images, num_empty, num_cut = [], 0, 0
    for stem in _stems(root / folder / "ImageSets" / "Main" / f"{name}.txt"):
        size, objects, empty, cut = _read_annotation(
            root / folder / "Annotations" / f"{stem}.xml", labels
        )
        path = PurePosixPath(folder) / "JPEGImages" / files.of(stem)
        images.append(boxed_image(str(path), size, objects))
        num_empty += empty
        num_cut += cut
    return DetectionSet(root, part, classes, tuple(images), num_empty, num_cut)


class _Files:
    """The image file of each name: NAME.jpg, or else that with another suffix of an image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[PurePosixPath, dict[str, list[str]]] = {}

    def of(self, stem: str) -> str:
        """The path of an image below the folder; NAME.jpg where there is none."""
        place = PurePosixPath(stem)
        if place.parent not in self._names:
            self._names[place.parent] = self._list(self.folder / place.parent)
        names = self._names[place.parent].get(place.name, [])
        # By suffix in the order of the list, which .jpg leads.
        order = {suffix: rank for rank, suffix in enumerate(IMAGE_SUFFIXES)}
        names = sorted(
            names,
            key=lambda name: (order[Path(name).suffix.lower()], name != f"{place.name}.jpg", name),
        )
        return str(place.parent / (names[0] if names else f"{place.name}.jpg"))

    @staticmethod
    def _list(folder: Path) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        try:
            names = os.listdir(folder)
        except OSError:
            return found  # each image is then an error of its own, when it is read
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and not is_hidden(name):
                found[stem].append(name)
        return found


def _classes(root: Path) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    if not path.is_file():
        return VOC_CLASSES
    names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise DataError(path, "must name each class once, one a line")
    for name in names:
        check_text(path, "", "class name", name)
    return names


def _stems(path: Path) -> list[str]:
    """Image names of a list; a per-class list ("000012 -1") is not one of images to use."""
    stems = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split()
        if len(fields) > 1:
            raise DataError(path, f"line {number} holds more than an image's name")
        stems += [check_name(path, f"line {number}", field) for field in fields]
    if not stems:
        raise DataError(path, "names no image")
    if len(set(stems)) != len(stems):
        raise DataError(path, "names an image twice")
    return stems


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(path, f"cannot read: {reason}") from error


def _read_annotation(
    path: Path, labels: dict[str, int]
) -> tuple[tuple[int, int], list[Object], int, int]:
    """Width and height, the objects, and how many boxes were left out and cut."""
    objects, num_empty, num_cut = [], 0, 0
    try:
        tree = _parse(path)
        size = _require(tree, "size", "the image")
        width, height = (int(_number(size, side, "the image")) for side in ("width", "height"))
        for number, entry in enumerate(tree.findall("object"), start=1):
            corners, label, difficult, crowd = _object(entry, number, labels)
            box, is_cut = cut_box(corners, (width, height))
            num_empty += box is None
            num_cut += is_cut
            if box is not None:
                objects.append((box, label, difficult, crowd))
    except _Refused as error:
        raise DataError(path, str(error)) from error
    return (width, height), objects, num_empty, num_cut


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except OSError as error:
        raise _Refused(f"cannot read: {error.strerror}") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise _Refused(f"not XML: {error}") from error


def _object(entry: ElementTree.Element, number: int, labels: dict[str, int]) -> Object:
    """An object with its corners as annotated, maybe beyond the image."""
    which = f"object {number}"
    name = (_require(entry, "name", which).text or "").strip()
    if name not in labels:
        raise _Refused(f"{which} is a {name!r}, which is not among the set's classes")
    box = _require(entry, "bndbox", which)
    x1, y1, x2, y2 = (
        _number(box, corner, which, low=-_MOST) for corner in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = entry.find("difficult") is not None and bool(_number(entry, "difficult", which))
    return (x1 - 1, y1 - 1, x2, y2), labels[name], difficult, False


def _require(parent: ElementTree.Element, tag: str, which: str) -> ElementTree.Element:
    found = parent.find(tag)
    if found is None:
        raise _Refused(f"{which} has no <{tag}>")
    return found


def _number(parent: ElementTree.Element, tag: str, which: str, *, low: float = 0) -> float:
    """The number in a tag, not below `low`; some of VOC 2012's corners are decimal."""
    text = _require(parent, tag, which).text or ""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value < _MOST:
        raise _Refused(f"{which} has {text.strip()[:40]!r} for <{tag}>, which is no pixel number")
    return value
