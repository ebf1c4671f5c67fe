"""A small prepared dataset of real mp4 files whose classes a network learns in a few steps."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ndavid.data.manifest import ClipRecord, Manifest

CLASSES = ("Red", "Green", "Blue")
GROUPS = 6
FRAMES = 14
SIDE = 32


def write_coloured_clip(path: Path, colour: int, seed: int) -> None:
    """An mp4 of a bright, moving square of one colour channel on grey noise."""
    noise = np.random.default_rng(seed).integers(60, 110, (SIDE, SIDE, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            picture = noise.copy()
            left = (index + seed) % (SIDE // 2)
            picture[8:24, left : left + 16] = 20
            picture[8:24, left : left + 16, colour] = 240
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def splits_of(group: int) -> tuple[str, str]:
    """Groups 0 and 1 are test in fold 1, groups 4 and 5 in fold 2."""
    return ("test" if group < 2 else "train", "test" if group >= 4 else "train")


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a prepared set: 3 classes x 6 groups, two folds, one clip a group."""
    root = tmp_path_factory.mktemp("coloured")
    records = []
    for label, name in enumerate(CLASSES):
        for group in range(GROUPS):
            path = f"{name}/v_{name}_g{group:02d}_c01.mp4"
            write_coloured_clip(root / path, label, seed=10 * label + group)
            records.append(
                ClipRecord(path, label, f"g{group:02d}", FRAMES, 25.0, SIDE, SIDE, splits_of(group))
            )
    Manifest(root, CLASSES, tuple(records)).write(root / "manifest.csv")
    return root


IMAGES_PER_CLASS = {"train": 16, "test": 6, "far": 8}


def write_coloured_image(path: Path, colour: int, seed: int, *, broken: bool = False) -> None:
    """A PNG of a bright square of one colour channel on grey noise, or noise alone."""
    draw = np.random.default_rng(seed)
    picture = draw.integers(60, 110, (SIDE, SIDE, 3), dtype=np.uint8)
    if broken:
        picture = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    else:
        top, left = draw.integers(0, SIDE // 2, 2)
        picture[top : top + 16, left : left + 16] = 20
        picture[top : top + 16, left : left + 16, colour] = 240
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture(scope="session")
def coloured_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image tree of the same three classes: train/, test/, and far/, which is white noise."""
    root = tmp_path_factory.mktemp("coloured_images")
    for place, (split, count) in enumerate(IMAGES_PER_CLASS.items()):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                seed = 1000 * place + 100 * label + index
                path = root / split / name / f"{index:03d}.png"
                write_coloured_image(path, label, seed, broken=split == "far")
    return root
