"""CIFAR-10-C is read by corruption and severity, from files of its own layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ndavid.data.cifar_c import corruption_files, open_cifar_c
from ndavid.data.image_subsets import class_subset
from ndavid.errors import ConfigError, DataError

CLASSES = ["a", "b", "c"]
COUNT = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two corruptions of six images: pixel values tell corruption, severity and image."""
    for place, name in enumerate(("fog", "snow")):
        values = np.arange(5 * COUNT, dtype=np.uint8) + 100 * place
        pixels = np.broadcast_to(values[:, None, None, None], (5 * COUNT, 32, 32, 3)).copy()
        pixels[:, 0, 1, 2] = 255  # row 0, column 1, blue
        np.save(tmp_path / f"{name}.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(COUNT) % 3, 5))
    (tmp_path / "README.txt").write_text("about")
    return tmp_path


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_severities_lie_one_after_another(folder: Path, severity: int) -> None:
    assert corruption_files(folder) == ["fog", "snow"]
    source = open_cifar_c(folder, "snow", severity, CLASSES)
    first = 100 + (severity - 1) * COUNT
    assert source.images[:, 0, 5, 5].tolist() == list(range(first, first + COUNT))
    assert source.images.shape == (COUNT, 3, 32, 32)
    assert source.images[0, 2, 0, 1] == 255 and source.images[0, 0, 0, 1] == first
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_its_classes_can_be_chosen(folder: Path) -> None:
    chosen = class_subset(open_cifar_c(folder, "fog", 2, CLASSES), ["c"])
    assert [int(chosen.read(k)[0, 5, 5]) for k in range(len(chosen))] == [8, 11]


def test_what_the_folder_does_not_hold(folder: Path, tmp_path_factory) -> None:
    with pytest.raises(ConfigError, match=r"has no snw\.npy; did you mean 'snow'"):
        open_cifar_c(folder, "snw", 1, CLASSES)
    with pytest.raises(ConfigError, match="not 6"):
        open_cifar_c(folder, "snow", 6, CLASSES)
    with pytest.raises(DataError, match="no such folder"):
        corruption_files(folder / "gone")
    with pytest.raises(DataError, match="holds no corruptions"):
        corruption_files(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog", b"\x93NUMPY and no more", "is no .npy file, or a damaged one"),
        ("fog", b"", "is no .npy file, or a damaged one"),
        ("fog", np.zeros((30, 32, 32, 3)), "must be uint8"),
        ("fog", np.zeros((30, 32, 32), dtype=np.uint8), "must be uint8"),
        ("fog", np.zeros((28, 32, 32, 3), dtype=np.uint8), "not five severities of one test set"),
        ("labels", np.zeros(6, dtype=int), "not five severities of one test set"),
        ("labels", np.full(30, 3), "labels run from 3 to 3, but there are 3 classes"),
        ("labels", np.array([None] * 30), "is no .npy file, or a damaged one"),
        ("labels", None, "no such file"),
    ],
)
def test_damaged_files(folder: Path, name: str, content, message: str) -> None:
    path = folder / f"{name}.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=message):
        open_cifar_c(folder, "fog", 1, CLASSES)
