"""The packed image archive: a whole image set as one .npz of encoded files.

    classes           names in label order
    {split}_jpeg      uint8: all files one after another (JPEG, or any format PIL reads)
    {split}_offsets   int64, n + 1 long: file i is bytes offsets[i]:offsets[i + 1]
    {split}_labels    int64, 0-based, -1 for none

One file is copied, opened and cached at once, where ten thousand small ones are not.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ndavid.data.image_sources import EncodedImages, MemoryImages
from ndavid.errors import DataError
from ndavid.files import whole_file

# Sets whose images are no larger than this are decoded once, into memory (STL-10 is 96 pixels).
LARGEST_IN_MEMORY = 96

# Files smaller than this on average are mostly JPEG headers, all alike: those are worth deflating.
_DEFLATED_BELOW = 4096


@dataclass(frozen=True)
class PackedSplit:
    """One part of an archive: encoded files, and their labels (-1 for none)."""

    files: Sequence[bytes]
    labels: Sequence[int]


def open_archive(path: str | os.PathLike[str], split: str) -> MemoryImages | EncodedImages:
    """The images of one split; decoded at once if all have one size of at most 96 pixels.

    A file that cannot be decoded is known by its index, and an error only when it is read.

    Raises:
        DataError: no such archive or split, or arrays that contradict each other.
    """
    source = read_archive(path, split)
    return _decoded(source) or source


def read_archive(path: str | os.PathLike[str], split: str) -> EncodedImages:
    """The files of one split as they are stored. Raises DataError as `open_archive` does."""
    arrays = _load(Path(path), split)
    return EncodedImages(
        torch.from_numpy(arrays["jpeg"]),
        torch.from_numpy(arrays["offsets"]),
        torch.from_numpy(arrays["labels"]),
        arrays["classes"].tolist(),
        origin=path,
    )


def write_archive(
    path: str | os.PathLike[str], classes: Sequence[str], splits: Mapping[str, PackedSplit]
) -> None:
    """Writes an archive; it appears whole or not at all.

    Raises:
        ValueError: a split with more labels than files, or the other way round.
    """
    arrays: dict[str, np.ndarray] = {"classes": np.array(list(classes), dtype=np.str_)}
    for name, split in splits.items():
        if len(split.files) != len(split.labels):
            raise ValueError(f"{name}: {len(split.files)} files, {len(split.labels)} labels")
        sizes = [len(content) for content in split.files]
        arrays[f"{name}_jpeg"] = np.frombuffer(b"".join(split.files), dtype=np.uint8)
        arrays[f"{name}_offsets"] = np.cumsum([0, *sizes], dtype=np.int64)
        arrays[f"{name}_labels"] = np.array(split.labels, dtype=np.int64)
    count = sum(len(split.files) for split in splits.values())
    total = sum(array.size for name, array in arrays.items() if name.endswith("_jpeg"))
    save = np.savez_compressed if total < _DEFLATED_BELOW * count else np.savez
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as stream:
        save(stream, **arrays)  # type: ignore[arg-type]


def _load(path: Path, split: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "no such file"
        raise DataError(path, f"{reason}; root must be the .npz of datasets/pack_images.py")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            known = sorted(n.removesuffix("_offsets") for n in names if n.endswith("_offsets"))
            _check_names(path, split, names, known)
            arrays = {key: archive[f"{split}_{key}"] for key in ("jpeg", "offsets", "labels")}
            arrays["classes"] = archive["classes"]
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(path, f"is no .npz archive, or a damaged one: {error}") from error
    _check_arrays(path, split, arrays)
    return arrays


def _check_names(path: Path, split: str, names: Iterable[str], known: Sequence[str]) -> None:
    needed = ["classes", *(f"{split}_{key}" for key in ("jpeg", "offsets", "labels"))]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(
            path,
            f"has no array {missing[0]!r}; a packed image archive was expected, whose splits are "
            f"here: {', '.join(known) or 'none'}",
        )


def _check_arrays(path: Path, split: str, arrays: Mapping[str, np.ndarray]) -> None:
    data, offsets, labels = (arrays[key] for key in ("jpeg", "offsets", "labels"))
    if data.dtype != np.uint8 or offsets.dtype != np.int64 or labels.dtype != np.int64:
        kinds = f"{data.dtype}, {offsets.dtype} and {labels.dtype}"
        reason = f"jpeg, offsets and labels of {split} must be uint8, int64, int64; are {kinds}"
        raise DataError(path, reason)
    whole = (
        offsets.ndim == 1 and len(offsets) > 0 and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
    )
    if not whole or offsets[-1] != data.size:
        raise DataError(path, f"{split}_offsets do not divide the {data.size} bytes of its files")


def _decoded(source: EncodedImages) -> MemoryImages | None:
    """All images in memory, or None where they are large or of several sizes.

    One thread: of the 50 microseconds that a small image takes, most hold Python's lock, and two
    threads were no faster.
    """
    images: Tensor | None = None
    bad: dict[int, str] = {}
    for index in range(len(source)):
        try:
            image = source.read(index)
        except DataError as error:
            bad[index] = error.reason
            continue
        if images is None and max(image.shape[1:]) <= LARGEST_IN_MEMORY:
            images = torch.zeros(len(source), *image.shape, dtype=torch.uint8)
        if images is None or image.shape != images.shape[1:]:
            return None
        images[index] = image
    if images is None:
        return None
    return MemoryImages(
        images,
        source.labels,
        source.classes,
        origin=source.origin,
        digest=source.digest,
        bad=bad,
    )
