"""CIFAR-10-C and CIFAR-100-C: the test images under common corruptions, from their .npy files.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019). A folder holds one CORRUPTION.npy each, uint8 (5 n, 32, 32, 3), and
labels.npy, (5 n,): severity 1 of all n test images in their order, then severity 2, and so on.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ndavid.data.corruptions import SEVERITIES
from ndavid.data.file_tree import is_hidden
from ndavid.data.image_sources import MemoryImages
from ndavid.errors import ConfigError, DataError

_LABELS = "labels"


def corruption_files(root: str | os.PathLike[str]) -> list[str]:
    """Names of the corruptions that a folder holds, sorted.

    Raises:
        DataError: no such folder, or no .npy file in it.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(folder, "no such folder; it should hold CIFAR-10-C's .npy files")
    files = (path for path in folder.glob("*.npy") if not is_hidden(path.name))
    names = sorted(path.stem for path in files if path.stem != _LABELS)
    if not names:
        raise DataError(folder, "holds no corruptions, which are .npy files; unpack the archive")
    return names


def open_cifar_c(
    root: str | os.PathLike[str], corruption: str, severity: int, classes: Sequence[str]
) -> MemoryImages:
    """The test images under one corruption; image `i` is test image `i`, corrupted.

    Args:
        root: the folder of .npy files.
        corruption: one that it holds.
        severity: 1 to 5.
        classes: the clean set's, in label order.

    Raises:
        ConfigError: a corruption that the folder does not hold (names the nearest), or a severity.
        DataError: files that are missing, damaged or contradict each other.
    """
    known = corruption_files(root)
    if corruption not in known:
        near = difflib.get_close_matches(corruption, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{root} has no {corruption}.npy; did you mean {near!r}?")
    if severity not in SEVERITIES:
        raise ConfigError(f"a corruption's severity is 1, 2, 3, 4 or 5, not {severity}")
    path = Path(root) / f"{corruption}.npy"
    pixels, labels = _load(path), _load(Path(root) / f"{_LABELS}.npy")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(path, f"must be uint8 (N, H, W, 3), is {pixels.dtype} {pixels.shape}")
    if len(pixels) % len(SEVERITIES) or labels.shape != (len(pixels),):
        reason = f"{len(pixels)} images and labels {labels.shape} are not five severities of one"
        raise DataError(path, f"{reason} test set")
    count = len(pixels) // len(SEVERITIES)
    rows = slice((severity - 1) * count, severity * count)
    # Only these rows leave the disk.
    images = torch.from_numpy(pixels[rows].transpose(0, 3, 1, 2).copy())
    return MemoryImages(images, torch.from_numpy(labels[rows].astype(int)), classes, origin=path)


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(path, "no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, f"is no .npy file, or a damaged one: {error}") from error
