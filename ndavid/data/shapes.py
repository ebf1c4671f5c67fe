"""Coloured shapes with boxes on textured backgrounds: a small detection set in VOC's layout.

For trying detection out, and for tests, where no real set is at hand. Shape alone tells the class:
size, colour, texture, place and number of objects have one distribution for all classes. Shapes may
overlap, later ones on top; one that is mostly hidden is marked `difficult`. Boxes are tight around
the whole shape, a hidden part included, and are cut at the image's edge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ndavid.data.voc import CLASSES_FILE
from ndavid.errors import DataError
from ndavid.locks import hold

MARKER = "shapes.json"
VERSION = 1
MAX_OBJECTS = 4
MIN_RADIUS, MAX_RADIUS = 0.10, 0.28  # of the image's size
HIDDEN = 0.5  # a shape with more than this share of its pixels covered is `difficult`
MAX_TURN = 1 / 12  # of a full turn, either way: shapes stand more or less upright
MIN_CONTRAST = 0.3  # in at least one channel, of colours in [0, 1]
MIN_SIDE = 4  # pixels inside the image, below which a shape is not drawn
TEST_SHARE = 0.25
JPEG_QUALITY = 92


def shape_classes() -> tuple[str, ...]:
    """The class names in label order."""
    return tuple(_OUTLINES)


def write_shapes(
    output: str | Path, *, num_images: int = 400, size: int = 96, seed: int = 0
) -> Path:
    """Writes ``num_images`` JPEGs of ``size`` pixels with VOC annotations; returns the folder.

    A quarter of them is the list `test`, the rest `trainval`. The same arguments give the same
    files. A folder that already holds this very set is left as it is; one that was cut short is
    written again.

    Raises:
        ValueError: under 4 images, or a size under 32.
        DataError: the folder holds a set with other settings.
    """
    if num_images < 4 or size < 32:
        raise ValueError(f"need at least 4 images of 32 pixels, got {num_images} of {size}")
    output = Path(output)
    wanted = {"version": VERSION, "num_images": num_images, "size": size, "seed": seed}
    with hold(output):
        if _already_written(output, wanted):
            return output
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        _write_marker(output, wanted, complete=False)
        names = [f"{index:06d}" for index in range(num_images)]
        for index, name in enumerate(names):
            pixels, objects = draw_image(_generator(seed, index), size)
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            picture.save(output / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY)
            _write_annotation(output / "Annotations" / f"{name}.xml", name, size, objects)
        num_test = max(1, round(num_images * TEST_SHARE))
        for part, members in (("test", names[:num_test]), ("trainval", names[num_test:])):
            path = output / "ImageSets" / "Main" / f"{part}.txt"
            path.write_text("".join(f"{name}\n" for name in members))
        (output / CLASSES_FILE).write_text("".join(f"{name}\n" for name in shape_classes()))
        _write_marker(output, wanted, complete=True)
    return output


@dataclass(frozen=True)
class DrawnShape:
    """One object of a picture; corners in whole pixels, the lower right ones exclusive."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool


def draw_image(generator: torch.Generator, size: int) -> tuple[Tensor, list[DrawnShape]]:
    """One picture, uint8 (3, size, size), and its objects, of which there is at least one."""
    background = _background(generator, size)
    canvas = background
    covers: list[Tensor] = []
    names: list[str] = []
    wanted = int(torch.randint(1, MAX_OBJECTS + 1, (), generator=generator))
    while len(covers) < wanted:
        name, cover = _draw_cover(generator, size)
        colour = _texture(generator, size, contrast=0.25)
        if _extent(cover) is None or not _stands_out(colour, background):
            continue
        canvas = torch.lerp(canvas, colour, cover)
        names.append(name)
        covers.append(cover)
    objects = []
    for place, (name, cover) in enumerate(zip(names, covers, strict=True)):
        box = _extent(cover)
        assert box is not None
        above = torch.stack([torch.zeros(size, size), *covers[place + 1 :]]).amax(0)
        hidden = float((cover * above).sum() / cover.sum())
        objects.append(DrawnShape(name, box, hidden > HIDDEN))
    return (canvas * 255).round().clamp(0, 255).to(torch.uint8), objects


# --- appearance -------------------------------------------------------------------------------


def _draw_cover(generator: torch.Generator, size: int) -> tuple[str, Tensor]:
    """A shape's name and how much it covers each pixel, (size, size) in [0, 1]."""
    names = shape_classes()
    name = names[int(torch.randint(len(names), (), generator=generator))]
    x, y, scale, turn = torch.rand(4, generator=generator).tolist()
    radius = MIN_RADIUS * (MAX_RADIUS / MIN_RADIUS) ** scale
    line = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid((line - y) / radius, (line - x) / radius, indexing="ij")
    angle = 2 * math.pi * MAX_TURN * (2 * turn - 1)
    cos, sin = math.cos(angle), math.sin(angle)
    distance = _OUTLINES[name](cos * u + sin * v, cos * v - sin * u)
    # The distance to the outline in pixels gives an anti-aliased edge.
    return name, (0.5 - distance * radius * size).clamp(0, 1)


def _extent(cover: Tensor) -> tuple[int, int, int, int] | None:
    """Corners of the pixels that are at least half covered; None for next to nothing."""
    rows, columns = (cover >= 0.5).any(1).nonzero(), (cover >= 0.5).any(0).nonzero()
    if len(rows) < MIN_SIDE or len(columns) < MIN_SIDE:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _stands_out(colour: Tensor, background: Tensor) -> bool:
    """Whether two textures (3, S, S) differ enough in some channel of their mean colours."""
    return bool((colour.mean((1, 2)) - background.mean((1, 2))).abs().max() >= MIN_CONTRAST)


def _background(generator: torch.Generator, size: int) -> Tensor:
    """(3, size, size): two muted colours in patches, with grain."""
    grain = torch.rand(1, size, size, generator=generator) - 0.5
    return (0.25 + 0.5 * _texture(generator, size, contrast=0.6) + 0.1 * grain).clamp(0, 1)


def _texture(generator: torch.Generator, size: int, *, contrast: float) -> Tensor:
    """(3, size, size) in [0, 1]: a random colour, and another one in smooth patches over it."""
    first, second = torch.rand(2, 3, 1, 1, generator=generator)
    cells = int(torch.randint(3, 9, (), generator=generator))
    grid = torch.rand(1, 1, cells, cells, generator=generator)
    patches = F.interpolate(grid, (size, size), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return torch.lerp(first, second, contrast * patches)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.75


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2
    return torch.maximum(v - 0.5, torch.maximum(slope * u - v / 2, -slope * u - v / 2) - 0.5)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    upright = torch.maximum(u.abs() - 0.3, v.abs() - 0.95)
    return torch.minimum(upright, torch.maximum(v.abs() - 0.3, u.abs() - 0.95))


# Signed distances to the outline in units of the radius, negative inside.
_OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}


# --- files ------------------------------------------------------------------------------------


def _write_annotation(path: Path, name: str, size: int, objects: list[DrawnShape]) -> None:
    root = ElementTree.Element("annotation")
    _leaf(root, "folder", "shapes")
    _leaf(root, "filename", f"{name}.jpg")
    dimensions = ElementTree.SubElement(root, "size")
    for tag, value in (("width", size), ("height", size), ("depth", 3)):
        _leaf(dimensions, tag, value)
    for drawn in objects:
        entry = ElementTree.SubElement(root, "object")
        _leaf(entry, "name", drawn.name)
        _leaf(entry, "difficult", int(drawn.difficult))
        box = ElementTree.SubElement(entry, "bndbox")
        x1, y1, x2, y2 = drawn.box
        # VOC counts pixels from 1, and its lower right corner belongs to the box.
        for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            _leaf(box, tag, value)
    ElementTree.indent(root)
    path.write_bytes(ElementTree.tostring(root))


def _leaf(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)


def _generator(seed: int, index: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/shapes/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _already_written(output: Path, wanted: dict[str, int]) -> bool:
    marker = output / MARKER
    if not marker.exists():
        return False
    found = json.loads(marker.read_text(encoding="utf-8-sig"))
    complete = found.pop("complete", False)
    if found != wanted:
        raise DataError(output, f"holds shapes made with {found}, not {wanted}")
    return bool(complete)


def _write_marker(output: Path, wanted: dict[str, int], *, complete: bool) -> None:
    (output / MARKER).write_text(json.dumps({**wanted, "complete": complete}) + "\n")
