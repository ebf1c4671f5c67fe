"""Folders of images, one a frame, as older pipelines extract them (`img_00001.jpg`, ...)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ndavid.data.decoding.base import VideoInfo, checked_indices, decode_errors
from ndavid.data.image_reading import IMAGE_SUFFIXES, BadImage, read_image_bytes
from ndavid.errors import DecodeError

BACKEND = "frames"


class FrameFolderReader:
    """Reads a folder of images as a video, ordered by the numbers in the file names.

    Args:
        path: the folder. Other files and hidden ones in it are left alone; images that are not
            one sequence by their names (`img_*` beside `flow_x_*`) are refused.
        fps: frames per second, which a folder cannot tell; 0 for unknown.
    """

    backend = BACKEND
    damaged = 0

    def __init__(self, path: str | os.PathLike[str], fps: float = 0.0) -> None:
        self.path = os.fspath(path)
        self.fps = fps
        self._files = _image_files(self.path)
        self._size = self._picture(0).shape[:2]

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted = checked_indices(indices)
        if max(wanted) >= len(self):
            reason = f"ends after {len(self)} frames; frame {max(wanted)} was asked for"
            raise DecodeError(self.path, BACKEND, reason)
        pictures = {index: self._picture(index) for index in set(wanted)}
        odd = next((i for i in sorted(pictures) if pictures[i].shape[:2] != self._size), None)
        if odd is not None:
            name = self._files[odd].name
            raise DecodeError(self.path, BACKEND, f"{name} differs in size from the first image")
        clip = np.stack([pictures[index] for index in wanted])
        return torch.from_numpy(clip).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> FrameFolderReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _picture(self, index: int) -> np.ndarray:
        file = self._files[index]
        try:
            return read_image_bytes(file.read_bytes())
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise DecodeError(self.path, BACKEND, f"{file.name}: {reason}") from error
        except BadImage as error:
            raise DecodeError(self.path, BACKEND, f"{file.name}: {error}") from error


def probe_folder(path: str | os.PathLike[str], fps: float = 0.0) -> VideoInfo:
    """What is in a folder of images; only the first image is opened.

    Raises:
        DecodeError: there is no such folder, or no image in it that can be read.
    """
    reader = FrameFolderReader(path, fps)
    height, width = reader.size
    return VideoInfo(
        num_frames=len(reader),
        header_frames=len(reader),
        fps=fps,
        height=height,
        width=width,
        rotation=0,
        codec="images",
        pixel_format="rgb24",
        num_video_streams=1,
    )


def _image_files(path: str) -> list[Path]:
    folder = Path(path)
    if not folder.is_dir():
        reason = "is no folder of images" if folder.exists() else "no such folder"
        raise DecodeError(path, BACKEND, reason)
    with decode_errors(path, BACKEND, "the folder cannot be listed"):
        files = [
            file
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
    if not files:
        raise DecodeError(path, BACKEND, "there is no image in the folder")
    _check_one_sequence(path, files)
    return sorted(files, key=_natural_order)


# A thing and its number, before another number: the camera of `cam1_0007`. Not before the fraction
# of a time, as in `t1.5`.
_NUMBERED_THING = re.compile(r"[^\W\d_]+\d+(?:\.\d+)*(?=[^\d.].*\d)")


def _check_one_sequence(path: str, files: Sequence[Path]) -> None:
    """Refuses a folder of several kinds of names: as one video they would be shown mixed."""
    _check_one_kind(path, files, lambda file: re.sub(r"\d+", "#", file.name.lower()))
    numbers = [tuple(map(int, re.findall(r"\d+", file.name))) for file in files]
    if any(len(set(column)) == len(files) for column in zip(*numbers, strict=True)):
        return  # one number counts the frames, whatever the others say
    _check_one_kind(path, files, lambda file: " ".join(_NUMBERED_THING.findall(file.stem.lower())))
    # Several numbers together may: seconds and their fraction, minutes and seconds.
    if len(set(numbers)) < len(files):
        first, second = sorted(files, key=_natural_order)[:2]
        raise DecodeError(
            path,
            BACKEND,
            f"the numbers in the names of its {len(files)} images (such as {first.name} and "
            f"{second.name}) do not tell them apart: number the frames of each video, in a folder "
            "of its own",
        )


def _check_one_kind(path: str, files: Sequence[Path], kind_of: Callable[[Path], str]) -> None:
    kinds: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        kinds[kind_of(file)].append(file)
    if len(kinds) > 1:
        shown = sorted(
            (min(found, key=_natural_order).name, len(found)) for found in kinds.values()
        )
        names = ", ".join(f"{count} like {name}" for name, count in shown[:4])
        more = f" and {len(shown) - 4} more kinds" if len(shown) > 4 else ""
        raise DecodeError(
            path,
            BACKEND,
            f"holds images of {len(kinds)} kinds of names ({names}{more}), which are not one "
            "video: move each kind into a folder of its own",
        )


def _natural_order(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Orders frame_2 before frame_10 and FRAME_10; the plain name settles ties such as 01 and 1."""
    parts = re.split(r"(\d+)", file.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], file.name
