"""Mutated and odd images end as pictures or as one line: no crash, no hang, no program, no bomb."""

from __future__ import annotations

import io
import random
import resource
import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import photo
from PIL import Image, features
from watched import watching

from ndavid.data.decode import open_reader
from ndavid.data.image_folders import open_flat, open_tree
from ndavid.data.image_packing import pack
from ndavid.data.image_sources import decode_image
from ndavid.data.shard_writing import ImageFiles, write_shards
from ndavid.errors import DataError, DecodeError

PICTURE = Image.fromarray(photo(3, 37, 41).permute(1, 2, 0).contiguous().numpy())
DEEP = Image.fromarray((np.arange(37 * 41, dtype=np.uint16) * 43).reshape(37, 41))
SLOWEST_SECONDS = 20.0
# Beyond what the test itself and one picture of the most pixels that are trusted take.
MOST_MEMORY = 3 << 30


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    target = io.BytesIO()
    image.save(target, format=kind, **options)
    return target.getvalue()


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def whole_files() -> dict[str, bytes]:
    """Sound files by suffix and kind: every format that is read, in several of its forms."""
    frames = [PICTURE.rotate(90 * k).convert("P") for k in range(3)]
    found = {
        "plain.jpg": file_of(PICTURE, "JPEG"),
        "turned.jpg": file_of(PICTURE, "JPEG", exif=with_exif(6)),
        "progressive.jpg": file_of(PICTURE, "JPEG", progressive=True, optimize=True),
        "cmyk.jpg": file_of(PICTURE.convert("CMYK"), "JPEG"),
        "gray.jpg": file_of(PICTURE.convert("L"), "JPEG"),
        "plain.png": file_of(PICTURE, "PNG"),
        "alpha.png": file_of(PICTURE.convert("RGBA"), "PNG", exif=with_exif(3)),
        "palette.png": file_of(PICTURE.convert("P"), "PNG", transparency=0),
        "deep.png": file_of(DEEP, "PNG"),
        "bits.png": file_of(PICTURE.convert("1"), "PNG"),
        "frames.png": file_of(PICTURE, "PNG", save_all=True, append_images=[DEEP.convert("RGB")]),
        "plain.bmp": file_of(PICTURE, "BMP"),
        "plain.ppm": file_of(PICTURE, "PPM"),
        "deep.pgm": file_of(DEEP, "PPM"),
        "text.ppm": b"P3 3 2 255\n" + b"1 2 3 " * 6,
        "plain.tif": file_of(PICTURE, "TIFF", exif=with_exif(8)),
        "lzw.tif": file_of(PICTURE, "TIFF", compression="tiff_lzw"),
        "deflate.tif": file_of(PICTURE, "TIFF", compression="tiff_deflate"),
        "jpeg.tif": file_of(PICTURE, "TIFF", compression="jpeg"),
        "deep.tif": file_of(DEEP, "TIFF"),
        "lossy.webp": file_of(PICTURE, "WEBP"),
        "lossless.webp": file_of(PICTURE, "WEBP", lossless=True, exif=with_exif(2)),
        "plain.gif": file_of(PICTURE, "GIF"),
        "frames.gif": file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }
    if features.check("avif"):
        found["plain.avif"] = file_of(PICTURE, "AVIF", speed=10)
    return found


def png(width: int, height: int, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of one's own header and chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    return content


def bombs() -> dict[str, bytes]:
    """Small files that promise to be large."""
    zeros = zlib.compress(bytes(100_000_000), 9)
    gif = bytearray(file_of(PICTURE, "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(file_of(PICTURE, "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    tiff = bytearray(file_of(PICTURE, "TIFF", compression="tiff_deflate"))
    for tag, value in ((256, 60_000), (257, 60_000)):
        place = tiff.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in tiff else 0
        place = place or tiff.index(struct.pack("<HH", tag, 3))
        tiff[place + 2 : place + 12] = struct.pack("<HII", 4, 1, value)
    webp = bytearray(file_of(PICTURE, "WEBP"))
    webp[26:30] = b"\xff\x3f\xff\x3f"
    small = zlib.compress(bytes(1000))
    return {
        "huge.png": png(60_000, 60_000, [(b"IDAT", small)]),
        "wide.png": png(2**31 - 1, 1, [(b"IDAT", small)]),
        "text.png": png(8, 8, [(b"zTXt", b"a\0\0" + zeros), (b"IDAT", small)]),
        "profile.png": png(8, 8, [(b"iCCP", b"a\0\0" + zeros), (b"IDAT", small)]),
        "pixels.png": png(8, 8, [(b"IDAT", zeros)]),
        "huge.gif": bytes(gif),
        "huge.bmp": bytes(bmp),
        "huge.tif": bytes(tiff),
        "huge.webp": bytes(webp),
        "huge.ppm": b"P6 99999 99999 255\n" + bytes(100),
        "digits.ppm": b"P6 " + b"9" * 5000 + b" 1 255\n",
    }


def odd_files() -> dict[str, bytes]:
    """What lies in folders of images under an image's name."""
    return {
        "empty.jpg": b"",
        "page.jpg": b"<html><body>404 not found</body></html>",
        "drawing.jpg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n",
        "paper.png": b"%PDF-1.4\n1 0 obj<<>>endobj\n%%EOF",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "icon.png": file_of(PICTURE, "ICO"),
        "apple.png": file_of(PICTURE.resize((32, 32)), "ICNS"),
        "targa.jpg": file_of(PICTURE, "TGA"),
        "pcx.jpg": file_of(PICTURE, "PCX"),
        "jpeg2000.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "metafile.jpg": b"\xd7\xcd\xc6\x9a" + bytes(100),
        "fits.jpg": b"SIMPLE  =                    T" + b" " * 2850,
        "bitmap.jpg": b"#define x_width 8\n#define x_height 1\nstatic char x[] = {0x01};\n",
        "float.tif": file_of(Image.fromarray(np.full((9, 9), 0.5, "f4")), "TIFF"),
        "labels.tif": file_of(Image.fromarray(np.full((9, 9), 70_000, "i4")), "TIFF"),
        "portable.pgm": b"Pf\n4 4\n-1.0\n" + bytes(64),
        "zeros.png": bytes(5000),
        "ones.gif": b"\xff" * 5000,
    }


def mutated(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One file with some of its bytes changed, moved, cut or taken from another."""
    data = bytearray(content)
    kind = draw.randrange(8)
    near = draw.randrange(min(len(data), 64))
    place = draw.choice((near, draw.randrange(len(data))))
    if kind < 3:
        for _ in range((1, 6, 40)[kind]):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        data[place : place + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    elif kind == 5:
        del data[place : place + draw.randrange(1, 40)]
    elif kind == 6:
        data[place:place] = data[: draw.randrange(1, 200)]
    else:
        other = draw.choice(others)
        data[place:] = other[min(place, len(other)) :]
    return bytes(data)


def in_time(read: Callable[[], torch.Tensor], name: str) -> torch.Tensor | DataError:
    """The picture or the error, both checked, and not for ever."""
    started = time.monotonic()
    try:
        found: torch.Tensor | DataError = read()
    except (DataError, DecodeError) as error:
        found = error
    assert time.monotonic() - started < SLOWEST_SECONDS, name
    if isinstance(found, DataError):
        line = str(found)
        assert line.isprintable() and len(line) < 600 and "<_io." not in line, (name, line)
    else:
        assert found.dtype == torch.uint8 and found.shape[0] == 3 and found.numel(), name
    return found


def through_all_readers(folder: Path, files: dict[str, bytes]) -> Counter[str]:
    """Reads each file in every way in which images are read; how many were pictures, and bad."""
    counts: Counter[str] = Counter()
    tree = folder / "tree" / "a"
    tree.mkdir(parents=True)
    for number, (name, content) in enumerate(files.items()):
        data = torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
        found = in_time(lambda data=data, name=name: decode_image(data, name), name)
        counts["bad" if isinstance(found, DataError) else "pictures"] += 1
        place = folder / "frames" / str(number)
        place.mkdir(parents=True)
        (place / f"1{Path(name).suffix}").write_bytes(content)

        def as_frame(place: Path = place) -> torch.Tensor:
            with open_reader(place, "frames") as reader:
                return reader.read([0])[0]

        frame = in_time(as_frame, name)
        # One reader must not take what another refuses.
        assert isinstance(frame, DataError) == isinstance(found, DataError), name
        if isinstance(found, torch.Tensor) and isinstance(frame, torch.Tensor):
            assert torch.equal(found, frame), name
        (tree / f"{number:04d}_{name}").write_bytes(content)
    packed = pack(open_tree(folder / "tree", ""), quality=90)
    assert (len(packed.split.files), len(packed.bad)) == (counts["pictures"], counts["bad"])
    flat = open_flat(folder / "tree", "")
    written = write_shards(
        ImageFiles(flat, quality=None), folder / "out", num_shards=3, classes=[], split=""
    )
    assert len(written.bad) == counts["bad"]
    return counts


@pytest.fixture(autouse=True)
def _limited():
    """Memory has an end, so that a bomb is an error here and no dead machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, hard))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damage that it reads over
        yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.slow
def test_odd_files_and_bombs(tmp_path: Path) -> None:
    files = {**odd_files(), **bombs()}
    with watching() as seen:
        counts = through_all_readers(tmp_path, {**files, "good.jpg": whole_files()["plain.jpg"]})
    assert not seen.started
    # One PNG with too many pixels behind its picture is read: what it shows is there.
    assert counts["bad"] >= len(files) - 2 and counts["pictures"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_mutated_images(tmp_path: Path, seed: int) -> None:
    draw = random.Random(f"images {seed}")
    whole = whole_files()
    others = list(whole.values())
    files = {
        f"{k}{name}": mutated(content, draw, others)
        for name, content in whole.items()
        for k in range(4)
    }
    with watching() as seen:
        counts = through_all_readers(tmp_path, files | whole)
    assert not seen.started
    assert counts["bad"] >= 20 and counts["pictures"] >= len(whole)
