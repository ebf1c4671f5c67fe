"""Any image source into a packed archive: JPEG files as they are, pixels as new JPEGs or PNGs."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ndavid.data.image_archive import PackedSplit
from ndavid.data.image_sources import EncodedImages, FileImages, ImageSource, decode_image
from ndavid.errors import DataError

# How every JPEG file begins.
_JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Packed:
    """A split ready for `write_archive`.

    Attributes:
        split: the images that can be read.
        kept: how many of them are JPEG files taken byte for byte.
        bad: (path, reason) of those that cannot be read, which are left out.
    """

    split: PackedSplit
    kept: int
    bad: tuple[tuple[str, str], ...]


def pack(source: ImageSource, *, quality: int | None) -> Packed:
    """Encodes a source's images, in order; every one is decoded once to see that it can be.

    Args:
        source: the images.
        quality: of the JPEGs written for what is no JPEG file, 1 to 100, with full colour
            resolution; None for PNG, which loses nothing. JPEG files stay as they are.

    Raises:
        DataError: none of the images can be read.
    """
    files: list[bytes] = []
    labels: list[int] = []
    bad: list[tuple[str, str]] = []
    kept = 0
    for index in range(len(source)):
        try:
            content, is_kept = image_file(source, index, quality)
        except DataError as error:
            bad.append((error.path, error.reason))
            continue
        files.append(content)
        labels.append(int(source.labels[index]))
        kept += is_kept
    if not files:
        path, reason = bad[0] if bad else (source.origin, "there are no images")
        raise DataError(source.origin, f"none of its images can be read; {path}: {reason}")
    return Packed(PackedSplit(files, labels), kept, tuple(bad))


def image_file(source: ImageSource, index: int, quality: int | None) -> tuple[bytes, bool]:
    """The bytes to store for an image, and whether they are a JPEG file's own.

    Raises:
        DataError: it cannot be decoded.
    """
    if not isinstance(source, (FileImages, EncodedImages)):
        return _encode(source.read(index), quality), False
    stored = source.content(index)
    pixels = decode_image(stored, source.name(index))
    content = stored.numpy().tobytes()
    if content.startswith(_JPEG_START):
        return content, True
    return _encode(pixels, quality), False


def _encode(pixels: Tensor, quality: int | None) -> bytes:
    """A JPEG or PNG file of uint8 (3, H, W)."""
    target = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if quality is None:
        image.save(target, format="PNG")
    else:
        # Colours at full resolution: halved ones would be 16x16 for an image of 32 pixels.
        image.save(target, format="JPEG", quality=quality, subsampling=0)
    return target.getvalue()
