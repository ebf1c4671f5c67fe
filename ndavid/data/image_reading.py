"""Image files to pixels: the one place that opens them, whatever folder or archive they come from.

Only formats that Pillow decodes by itself are opened. Left to guess, it would take PostScript named
`.jpg` for what it is and hand it to Ghostscript, an interpreter of programs.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import ExifTags, Image

from ndavid.errors import printable

# Suffixes of what is read, as lists of files go by them. MPO and JFIF are JPEG inside.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"),
    *(".gif", ".avif"),
)

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "AVIF")

# EXIF's orientation -> what turns the stored picture upright; 1 is upright already.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """Why a file cannot be read as an image, in words that go behind its name."""


def read_image_bytes(content: bytes, *, upright: bool = True) -> np.ndarray:
    """The first picture of an image file as uint8 RGB (H, W, 3).

    Of 16 bits a value the upper 8 are kept. Transparency is dropped.

    Args:
        content: the file.
        upright: turn and mirror the picture as its EXIF orientation says, which is how every viewer
            shows it; False gives it as it is stored.

    Raises:
        BadImage: the file is empty, damaged, cut short, of more pixels than Pillow trusts, of a
            format that is not read here, or its numbers have no known range.
    """
    if not content:
        raise BadImage("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            image.load()
            # What is turned has forgotten its format.
            return _eight_bits(_turned(image) if upright else image, image.format)
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        known = f"{', '.join(_formats()[:-1])} or {_formats()[-1]}"
        reason = f"cannot identify image file, which is no {known}, or a damaged one"
        raise BadImage(f"cannot be read as an image: {reason}") from error
    # Pillow's decoders raise whatever a damaged file leads them to (struct.error, IndexError, ...).
    except Exception as error:
        reason = printable(" ".join(str(error).split(" <_io.")[0].split())) or type(error).__name__
        raise BadImage(f"cannot be read as an image: {reason}") from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _turned(image: Image.Image) -> Image.Image:
    try:
        # After load(): Pillow turns TIFF itself, and then says so here.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Damage there is no damage of the picture, and viewers show that as it is stored.
    except Exception:
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, kind: str | None) -> np.ndarray:
    """RGB of any mode; Pillow alone would clip 16 bits to white. `kind` is the file's format."""
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers of no known range; save 8 or 16 bits")
    if image.mode == "I" and kind == "TIFF":
        # Of 32 bits or signed, often counts far below the largest: the upper bits are black.
        raise BadImage(
            "its pixels are whole numbers of 32 bits or with a sign, of no known range; convert "
            "them to 8 bits, or to 16 without a sign, yourself"
        )
    # PNG and PGM of 16 bits come in the first mode or in the others.
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))
