"""PASCAL VOC's layout: ImageSets/Main/LIST.txt, Annotations/NAME.xml, JPEGImages/NAME.jpg.

Everingham et al. (2010), "The PASCAL Visual Object Classes (VOC) Challenge". Corners in the XML
count pixels from 1 and belong to the box; here edges are continuous and start at 0, hence 1 is
taken off the upper left corner and nothing off the lower right one. `difficult` objects are marked,
not dropped: what becomes of them is the business of training and of evaluation.

Annotations come from anywhere, so a document type declaration, the vehicle of XML's entity attacks,
is refused.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from ndavid.data.detection import BoxedImage, DetectionSet, boxed_image
from ndavid.data.names import check_name, check_text
from ndavid.errors import DataError

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CLASSES_FILE = "classes.txt"

Object = tuple[tuple[float, float, float, float], int, bool, bool]


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
    images = tuple(
        _read_annotation(root, PurePosixPath(folder), stem, labels)
        for stem in _stems(root / folder / "ImageSets" / "Main" / f"{name}.txt")
    )
    return DetectionSet(root, part, classes, images)


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
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(path, f"cannot read: {reason}") from error


def _read_annotation(
    root: Path, folder: PurePosixPath, stem: str, labels: dict[str, int]
) -> BoxedImage:
    path = root / folder / "Annotations" / f"{stem}.xml"
    try:
        tree = _parse(path)
        size = _require(tree, "size", "the image")
        width, height = (int(_number(size, side, "the image")) for side in ("width", "height"))
        objects = [
            _object(entry, number, labels, (width, height))
            for number, entry in enumerate(tree.findall("object"), start=1)
        ]
    except _Refused as error:
        raise DataError(path, str(error)) from error
    return boxed_image(str(folder / "JPEGImages" / f"{stem}.jpg"), (width, height), objects)


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoDoctype()))
    except OSError as error:
        raise _Refused(f"cannot read: {error.strerror}") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise _Refused(f"not XML: {error}") from error


def _object(
    entry: ElementTree.Element, number: int, labels: dict[str, int], size: tuple[int, int]
) -> Object:
    which = f"object {number}"
    name = (_require(entry, "name", which).text or "").strip()
    if name not in labels:
        raise _Refused(f"{which} is a {name!r}, which is not among the set's classes")
    box = _require(entry, "bndbox", which)
    x1, y1, x2, y2 = (_number(box, corner, which) for corner in ("xmin", "ymin", "xmax", "ymax"))
    corners = (x1 - 1, y1 - 1, x2, y2)
    inside = 0 <= corners[0] < x2 <= size[0] and 0 <= corners[1] < y2 <= size[1]
    if not inside:
        raise _Refused(
            f"{which} has the corners ({x1:g}, {y1:g}) and ({x2:g}, {y2:g}), which make no box in "
            f"an image of {size[0]}x{size[1]}"
        )
    difficult = entry.find("difficult") is not None and bool(_number(entry, "difficult", which))
    return corners, labels[name], difficult, False


def _require(parent: ElementTree.Element, tag: str, which: str) -> ElementTree.Element:
    found = parent.find(tag)
    if found is None:
        raise _Refused(f"{which} has no <{tag}>")
    return found


def _number(parent: ElementTree.Element, tag: str, which: str) -> float:
    """The number in a tag; some of VOC 2012's corners are decimal."""
    text = _require(parent, tag, which).text or ""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1e6:
        raise _Refused(f"{which} has {text.strip()[:40]!r} for <{tag}>, which is no pixel number")
    return value
