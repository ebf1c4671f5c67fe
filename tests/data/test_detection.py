"""Images with boxes as they reach a detector: boxes stay on their objects, whatever is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ndavid.data.detection import (
    BoxedImage,
    DetectionDataset,
    DetectionSet,
    boxed_image,
    collate_detection,
    join,
)
from ndavid.data.detection_sets import DetectionDataConfig, open_detection
from ndavid.data.detection_transforms import DetectionTransform, resized
from ndavid.data.shapes import write_shapes
from ndavid.errors import ConfigError, DataError

PLAIN = DetectionTransform([48, 64, 80], 64, 120)


def bright(image: Tensor) -> list[float]:
    """Corners of the bright rectangle in an image (3, H, W)."""
    inside = image[0] > 127
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    return image


def save(image: Tensor, path: Path) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def rectangles(tmp_path: Path) -> DetectionSet:
    """Three images of different sizes with one bright rectangle each, and a difficult box."""
    images = []
    for index, (height, width) in enumerate([(40, 60), (60, 40), (50, 50)]):
        box = (4 + index, 6, 24 + index, 20)
        save(rectangle(height, width, box), tmp_path / f"{index}.png")
        rows = [(box, index, False, False), ((1.0, 1.0, 2.0, 2.0), 0, True, False)]
        images.append(boxed_image(f"{index}.png", (width, height), rows))
    return DetectionSet(tmp_path, "rectangles", ("a", "b", "c"), tuple(images))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(40, 120),
    width=st.integers(40, 120),
    left=st.integers(0, 19),
    top=st.integers(0, 19),
    seed=st.integers(0, 2**40),
)
def test_boxes_stay_on_their_objects(
    height: int, width: int, left: int, top: int, seed: int
) -> None:
    box = (left, top, left + 20, top + 18)
    image, boxes = PLAIN(
        rectangle(height, width, box),
        torch.tensor([box], dtype=torch.float32),
        torch.Generator().manual_seed(seed),
    )
    # Resampling moves an edge by less than a pixel.
    assert boxes[0].tolist() == pytest.approx(bright(image), abs=1.01)
    assert max(image.shape[1:]) <= 120


def test_sizes_and_flips_are_drawn_from_the_seed_alone() -> None:
    image, box = rectangle(50, 70, (2, 2, 20, 20)), torch.tensor([[2.0, 2, 20, 20]])

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        return PLAIN(image, box, torch.Generator().manual_seed(seed))

    drawn = [draw(seed) for seed in range(60)]
    for seed, (pixels, boxes) in enumerate(drawn):
        again = draw(seed)
        assert torch.equal(pixels, again[0]) and torch.equal(boxes, again[1])
    assert {min(pixels.shape[1:]) for pixels, _ in drawn} == {48, 64, 80}
    flipped = [bool(boxes[0, 0] > pixels.shape[2] / 2) for pixels, boxes in drawn]
    assert 15 < sum(flipped) < 45
    plain = DetectionTransform([48, 64, 80], 64, 120, flip=False)
    for seed, (pixels, _) in enumerate(drawn):
        unflipped, boxes = plain(image, box, torch.Generator().manual_seed(seed))
        assert unflipped.shape == pixels.shape and boxes[0, 0] < 10


def test_evaluation_neither_draws_nor_flips() -> None:
    image, box = rectangle(50, 70, (2, 2, 20, 20)), torch.tensor([[2.0, 2, 20, 20]])
    pixels, boxes = PLAIN(image, box, None)
    assert tuple(pixels.shape) == (3, 64, 90)
    assert boxes[0].tolist() == pytest.approx([2 * 90 / 70, 2.56, 20 * 90 / 70, 25.6])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (800, 1067)), ((500, 375), (1067, 800)), ((200, 1000), (267, 1333))],
)
def test_the_long_side_has_the_last_word(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(*size, 800, 1333) == expected


def test_a_sample_and_its_batch(rectangles: DetectionSet) -> None:
    dataset = DetectionDataset(rectangles, PLAIN)
    samples = [dataset[index, 11 * index] for index in range(3)]
    batch = collate_detection(samples)
    sizes = [tuple(sample["image"].shape[1:]) for sample in samples]
    assert [tuple(size) for size in batch["size"].tolist()] == sizes
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    assert batch["image"].shape == (3, 3, height, width) and batch["image"].dtype == torch.uint8
    parts = batch["boxes"].split(batch["num_boxes"].tolist())
    for place, (sample, (h, w), boxes) in enumerate(zip(samples, sizes, parts, strict=True)):
        padded = batch["image"][place]
        assert torch.equal(padded[:, :h, :w], sample["image"])
        assert padded.sum() == sample["image"].sum()
        assert boxes[0].tolist() == pytest.approx(bright(padded), abs=1.01)
    assert batch["box_labels"].tolist() == [0, 0, 1, 0, 2, 0]
    assert batch["index"].tolist() == [0, 1, 2] and batch["bad"] == []
    assert {k for k, v in batch.items() if not isinstance(v, Tensor)} == {"bad"}


def test_an_image_without_boxes_has_its_place_in_a_batch(rectangles: DetectionSet) -> None:
    bare = dataclasses.replace(rectangles.images[0], **_no_objects())
    images = dataclasses.replace(rectangles, images=(bare, rectangles.images[1]))
    dataset = DetectionDataset(images, PLAIN)
    batch = collate_detection([dataset[0], dataset[1]])
    assert batch["num_boxes"].tolist() == [0, 2] and batch["boxes"].shape == (2, 4)


def _no_objects() -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "difficult": torch.zeros(0, dtype=torch.bool),
        "crowd": torch.zeros(0, dtype=torch.bool),
    }


def test_difficult_boxes_are_for_training_only_on_request(rectangles: DetectionSet) -> None:
    assert [len(image.boxes) for image in rectangles.with_objects().images] == [1, 1, 1]
    kept = rectangles.with_objects(keep_difficult=True)
    assert [len(image.boxes) for image in kept.images] == [2, 2, 2]
    only_difficult = [_without_first(image) for image in rectangles.images]
    with pytest.raises(DataError, match="no image has an object to learn from"):
        dataclasses.replace(rectangles, images=tuple(only_difficult)).with_objects()


def _without_first(image: BoxedImage) -> BoxedImage:
    return dataclasses.replace(
        image,
        boxes=image.boxes[1:],
        labels=image.labels[1:],
        difficult=image.difficult[1:],
        crowd=image.crowd[1:],
    )


def test_an_image_of_another_size_than_annotated_is_an_error(rectangles: DetectionSet) -> None:
    save(rectangle(41, 60, (4, 6, 24, 20)), rectangles.root / "0.png")
    with pytest.raises(DataError, match="is 60x41 pixels, but its annotation says 60x40") as caught:
        DetectionDataset(rectangles, PLAIN)[0]
    assert caught.value.path == str(rectangles.root / "0.png")


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "empty"])
def test_an_unreadable_image_is_named_and_another_stands_in(
    rectangles: DetectionSet, damage: str
) -> None:
    path = rectangles.root / "1.png"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        contents = {"cut": data[: len(data) // 2], "text": b"not an image", "empty": b""}
        path.write_bytes(contents[damage])
    with pytest.raises(
        DataError, match=r"no such file|file is empty|cannot be read as an image"
    ) as caught:
        DetectionDataset(rectangles, PLAIN)[1]
    assert caught.value.path == str(path)
    training = DetectionDataset(rectangles, PLAIN, on_error="next")
    sample = training[1, 5]
    assert sample["index"] == 2 and sample["box_labels"].tolist() == [2, 0]
    assert [entry[0] for entry in sample["bad"]] == [str(path)]
    for name in ("0.png", "2.png"):
        (rectangles.root / name).unlink()
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        training[1, 5]


def test_a_data_error_leaves_a_worker_as_it_is(rectangles: DetectionSet) -> None:
    (rectangles.root / "1.png").unlink()
    loader = DataLoader(
        DetectionDataset(rectangles, PLAIN), num_workers=1, collate_fn=collate_detection
    )
    with pytest.raises(DataError, match="no such file") as caught:
        list(loader)
    assert caught.value.path == str(rectangles.root / "1.png")


def test_the_digest_follows_what_an_index_means(rectangles: DetectionSet) -> None:
    digest = rectangles.digest
    moved = dataclasses.replace(rectangles, root=Path("/elsewhere"), name="other")
    assert moved.digest == digest
    first = rectangles.images[0]
    changed = [
        dataclasses.replace(first, boxes=first.boxes + 0.5),
        dataclasses.replace(first, labels=first.labels + 1),
        dataclasses.replace(first, difficult=~first.difficult),
        dataclasses.replace(first, crowd=~first.crowd),
        dataclasses.replace(first, path="9.png"),
    ]
    others = {
        dataclasses.replace(rectangles, images=(image, *rectangles.images[1:])).digest
        for image in changed
    }
    others.add(dataclasses.replace(rectangles, images=rectangles.images[::-1]).digest)
    assert len(others) == 6 and digest not in others


def test_parts_are_joined(tmp_path: Path, rectangles: DetectionSet) -> None:
    root = write_shapes(tmp_path / "shapes", num_images=8, size=32)
    config = DetectionDataConfig(root=str(root), train=["trainval", "test"], test=["test"])
    whole = open_detection(config, config.train)
    assert whole.name == "trainval + test" and len(whole.images) == 8
    assert len(open_detection(config, config.test).images) == 2
    with pytest.raises(DataError, match="has other classes"):
        join([whole, rectangles])
    with pytest.raises(ConfigError, match=r"data\.root must name"):
        open_detection(DetectionDataConfig(), ["test"])
    with pytest.raises(ConfigError, match="at least one part"):
        DetectionDataConfig(root="x", test=[])
