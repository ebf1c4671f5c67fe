"""The generated shapes: files that read back, boxes that fit, classes that only shape tells."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from ndavid.data import shapes
from ndavid.data.detection import read_image
from ndavid.data.shapes import draw_image, shape_classes, write_shapes
from ndavid.data.voc import read_voc
from ndavid.errors import DataError


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    first = digests(write_shapes(tmp_path / "a", num_images=8, size=48, seed=3))
    assert first == digests(write_shapes(tmp_path / "b", num_images=8, size=48, seed=3))
    other = digests(write_shapes(tmp_path / "c", num_images=8, size=48, seed=4))
    assert all(other[name] != first[name] for name in first if name.endswith(".jpg"))


def test_it_reads_back_as_voc(tmp_path: Path) -> None:
    root = write_shapes(tmp_path, num_images=40, size=64)
    train, test = read_voc(root, "trainval"), read_voc(root, "test")
    assert (len(train.images), len(test.images)) == (30, 10)
    assert train.classes == shape_classes()
    assert not {i.path for i in train.images} & {i.path for i in test.images}
    for image in (*train.images, *test.images):
        assert read_image(root, image).shape == (3, 64, 64)
        assert 1 <= len(image.boxes) <= shapes.MAX_OBJECTS


def test_a_box_holds_all_that_differs_from_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shapes, "MAX_OBJECTS", 1)
    for seed in range(40):
        picture, (drawn,) = draw_image(torch.Generator().manual_seed(seed), 96)
        background = shapes._background(torch.Generator().manual_seed(seed), 96)
        inside = (picture / 255 - background).abs().amax(0) > 0.15
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        found = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        # Half-covered pixels at the edge may count on one side and not on the other.
        assert list(drawn.box) == pytest.approx(found, abs=1), seed
        assert not drawn.difficult


def test_a_shape_under_another_one_is_difficult_and_keeps_its_box() -> None:
    drawn = [draw_image(torch.Generator().manual_seed(seed), 64)[1] for seed in range(400)]
    hidden = [one for objects in drawn for one in objects if one.difficult]
    assert 5 < len(hidden) < 100
    for objects in drawn:
        # What is on top hides nothing of itself.
        assert not objects[-1].difficult
    for one in hidden:
        x1, y1, x2, y2 = one.box
        assert min(x2 - x1, y2 - y1) >= shapes.MIN_SIDE


def test_classes_differ_in_nothing_but_shape() -> None:
    sizes: dict[str, list[float]] = {name: [] for name in shape_classes()}
    for seed in range(600):
        for one in draw_image(torch.Generator().manual_seed(seed), 48)[1]:
            x1, y1, x2, y2 = one.box
            sizes[one.name].append(((x2 - x1) * (y2 - y1)) ** 0.5 / 48)
    counts = [len(of_class) for of_class in sizes.values()]
    assert min(counts) > 0.8 * max(counts)
    means = [sum(of_class) / len(of_class) for of_class in sizes.values()]
    assert max(means) - min(means) < 0.08


def test_a_whole_set_stays_and_a_cut_one_is_finished(tmp_path: Path) -> None:
    root = write_shapes(tmp_path, num_images=4, size=32)
    before = digests(root)
    image = root / "JPEGImages" / "000001.jpg"
    stamp = image.stat().st_mtime_ns
    write_shapes(tmp_path, num_images=4, size=32)
    assert image.stat().st_mtime_ns == stamp
    marker = root / shapes.MARKER
    marker.write_text(marker.read_text().replace("true", "false"))
    image.unlink()
    write_shapes(tmp_path, num_images=4, size=32)
    assert digests(root) == before
    with pytest.raises(DataError, match="holds shapes made with"):
        write_shapes(tmp_path, num_images=4, size=64)


@pytest.mark.parametrize(("num_images", "size"), [(3, 64), (8, 31)])
def test_too_small_is_an_error(tmp_path: Path, num_images: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 4 images"):
        write_shapes(tmp_path, num_images=num_images, size=size)
