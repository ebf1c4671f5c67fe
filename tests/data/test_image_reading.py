"""Image files of every format and mode come out as a viewer shows them, or with a reason."""

from __future__ import annotations

import ast
import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import photo
from PIL import Image, ImageOps, features

from ndavid.data.decode import open_reader
from ndavid.data.detection import boxed_image, read_image
from ndavid.data.image_reading import IMAGE_SUFFIXES, BadImage, read_image_bytes
from ndavid.data.image_sources import decode_image, read_bytes
from ndavid.errors import DataError, DecodeError

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Image.fromarray(photo(0, 20, 30).permute(1, 2, 0).contiguous().numpy())
# 0 to 59900, so that the upper byte takes many values and the lower one all.
DEEP = (np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    target = io.BytesIO()
    image.save(target, format=kind, **options)
    return target.getvalue()


def oriented(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(PICTURE, kind, exif=exif)


def as_frame(tmp_path: Path, content: bytes, suffix: str) -> np.ndarray:
    """The picture as the frames backend gives it, (H, W, 3)."""
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / f"img_1{suffix}").write_bytes(content)
    with open_reader(folder, "frames") as reader:
        return reader.read([0])[0].permute(1, 2, 0).numpy()


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (30, 20), DEEP.byteswap().tobytes())


SIXTEEN = {
    "pgm": (lambda: file_of(Image.fromarray(DEEP), "PPM"), {"I"}),
    "png": (lambda: file_of(Image.fromarray(DEEP), "PNG"), {"I", "I;16"}),
    "tiff": (lambda: file_of(Image.fromarray(DEEP), "TIFF"), {"I;16"}),
    "big endian": (lambda: file_of(big_endian(), "TIFF"), {"I;16B"}),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path: Path, kind: str) -> None:
    make, modes = SIXTEEN[kind]
    content = make()
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode in modes  # the test means what it says
    expected = np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(read_image_bytes(content), expected)
    suffix = ".pgm" if kind == "pgm" else ".png" if kind == "png" else ".tiff"
    assert np.array_equal(as_frame(tmp_path, content, suffix), expected)


def test_a_turned_picture_of_sixteen_bits() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read_image_bytes(file_of(Image.fromarray(DEEP), "PNG", exif=exif))
    assert np.array_equal(found[..., 0], np.rot90(DEEP >> 8, -1))


@pytest.mark.parametrize("values", [[70_000], [-1], [65_000], [0, 3, 200]])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_of_32_bits_has_no_known_range(values: list[int], orientation: int) -> None:
    """Masks and counts among them: small numbers, of which the upper bits are black."""
    picture = Image.fromarray(np.resize(np.array(values, "i4"), (4, 6)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(picture, "TIFF", exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "I"
    with pytest.raises(BadImage, match=r"32 bits.* no known range; convert them to 8 bits"):
        read_image_bytes(content)


def test_signed_and_floating_point_tiffs_have_no_known_range() -> None:
    content = bytearray(file_of(Image.fromarray(DEEP), "TIFF", tiffinfo={339: 2}))
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "I"
    with pytest.raises(BadImage, match="with a sign, of no known range"):
        read_image_bytes(bytes(content))
    with pytest.raises(BadImage, match="floating-point"):
        read_image_bytes(file_of(Image.fromarray(np.full((4, 4), 0.5, "f4")), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright_once(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    content = oriented(orientation, kind)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = read_image_bytes(content)
    assert np.array_equal(found, expected)
    assert found.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))


def test_upright_in_folders_of_frames_and_in_sources(tmp_path: Path) -> None:
    content = oriented(6)
    expected = np.rot90(read_image_bytes(content, upright=False), -1)
    assert np.array_equal(as_frame(tmp_path, content, ".jpg"), expected)
    (tmp_path / "x.jpg").write_bytes(content)
    found = decode_image(read_bytes(tmp_path / "x.jpg"), "x.jpg")
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_damage_in_the_exif_leaves_the_picture_as_stored() -> None:
    exif = b"Exif\0\0II*\0" + b"\xff" * 40
    plain = read_image_bytes(file_of(PICTURE, "JPEG"))
    assert np.array_equal(read_image_bytes(file_of(PICTURE, "JPEG", exif=exif)), plain)


def test_boxes_tell_which_picture_they_were_drawn_on(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(oriented(6))
    box = [((0, 0, 5, 5), 0, False, False)]
    stored = torch.from_numpy(read_image_bytes(oriented(6), upright=False)).permute(2, 0, 1)
    upright = torch.from_numpy(read_image_bytes(oriented(6))).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path, boxed_image("x.jpg", (20, 30), box)), upright)
    assert torch.equal(read_image(tmp_path, boxed_image("x.jpg", (30, 20), box)), stored)
    with pytest.raises(DataError, match="is 20x30 pixels, but its annotation says 40x30"):
        read_image(tmp_path, boxed_image("x.jpg", (40, 30), box))
    # A plain image of the other proportions is still an error.
    (tmp_path / "y.jpg").write_bytes(file_of(PICTURE, "JPEG"))
    with pytest.raises(DataError, match="is 30x20 pixels, but its annotation says 20x30"):
        read_image(tmp_path, boxed_image("y.jpg", (20, 30), box))


def test_postscript_named_jpg_starts_no_program(tmp_path: Path, monkeypatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "EPS"  # Pillow left to itself would run Ghostscript on it
    with pytest.raises(BadImage, match="cannot identify image file, which is no JPEG, PNG"):
        read_image_bytes(content)
    (tmp_path / "1.jpg").write_bytes(content)
    with pytest.raises(DecodeError, match=r"1\.jpg: cannot be read as an image"):
        open_reader(tmp_path, "frames")
    assert not started


def test_images_are_opened_in_one_place() -> None:
    folders = ("ndavid", "datasets", "eval", "recipes")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in {"Image.open", "PIL.Image.open", "datasets.ImageFolder"}
    }
    assert found == {"ndavid/data/image_reading.py"}


def test_a_bomb_is_one_line(tmp_path: Path) -> None:
    # A header that promises 40,000 x 40,000 pixels.
    content = bytearray(file_of(PICTURE.convert("1"), "BMP"))
    content[18:26] = (40_000).to_bytes(4, "little") * 2
    with pytest.raises(BadImage) as caught:
        read_image_bytes(bytes(content))
    assert "decompression bomb" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "1.bmp").write_bytes(content)
    with pytest.raises(DecodeError, match="decompression bomb"):
        open_reader(tmp_path, "frames")


SAVED_AS = {".jfif": "JPEG", ".gif": "GIF", ".avif": "AVIF", ".pgm": "PPM", ".tif": "TIFF"}


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_that_is_listed_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    kind = SAVED_AS.get(suffix) or Image.registered_extensions()[suffix]
    found = as_frame(tmp_path, file_of(PICTURE, kind), suffix)
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - np.asarray(PICTURE).astype(int)).mean() < 12


def write_frames(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(file_of(PICTURE, "PNG"))
    return folder


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["img_1.png", "img_2.png", "flow_x_1.png"], r"2 kinds.*1 like flow_x_1.png, 2 like img_1"),
        (["img_1.png", "img_1.jpg"], "2 kinds of names"),
        (["a.png", "b.png"], "2 kinds of names"),
        (
            ["cam1_1.png", "cam1_2.png", "cam2_1.png", "cam2_2.png"],
            r"2 kinds of names \(2 like cam1_1\.png, 2 like cam2_1\.png\).*folder of its own",
        ),
        (["s1e1-1.png", "s1e1-2.png", "s1e2-1.png"], "2 kinds of names"),
        (["1.png", "01.png"], r"01\.png and 1\.png\) do not tell them apart"),
        (["1.png", "01.png", "2.png"], "do not tell them apart"),
    ],
)
def test_a_folder_of_several_sequences_is_refused(tmp_path: Path, names, reason) -> None:
    with pytest.raises(DecodeError, match=reason):
        open_reader(write_frames(tmp_path / "frames", names), "frames")


@pytest.mark.parametrize(
    "names",
    [
        ["still.png"],
        ["clip7_0001.png", "clip7_0002.png", "clip7_0010.png"],
        ["frame_1_at_33ms.png", "frame_2_at_33ms.png"],
        ["frame1_at_33ms.png", "frame2_at_66ms.png", "frame3_at_66ms.png"],
        ["t_1.0.png", "t_1.5.png", "t_2.0.png", "t_2.5.png", "t_10.0.png"],
        ["t1.0.png", "t1.5.png", "t2.0.png", "t2.5.png"],
        ["00-00.png", "00-01.png", "01-00.png", "01-01.png"],
        ["00_00_00.png", "00_00_01.png", "00_01_00.png", "00_01_01.png"],
        ["img_1.png", "IMG_2.PNG", "._img_1.png", ".hidden.jpg", "notes.txt"],
    ],
)
def test_one_sequence_is_read_in_order(tmp_path: Path, names) -> None:
    folder, frames = tmp_path / "frames", [name for name in names if name[0] != "."]
    frames = [name for name in frames if not name.endswith("txt")]
    write_frames(folder, names)
    for k, name in enumerate(frames):
        Image.new("RGB", (30, 20), (20 * k, 0, 0)).save(folder / name, format="PNG")
    with open_reader(folder, "frames") as reader:
        assert len(reader) == len(frames)
        shown = reader.read(range(len(frames)))[:, 0, 0, 0].tolist()
    assert shown == [20 * k for k in range(len(frames))]
