"""Folders of images, one a frame, as older pipelines extract them (`img_00001.jpg`, ...)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ndavid.data.decoding.base import VideoInfo, checked_indices
from ndavid.errors import DecodeError

BACKEND = "frames"

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}


class FrameFolderReader:
    """Reads a folder of images as a video, ordered by the numbers in the file names.

    Args:
        path: the folder. Other files in it are left alone.
        fps: frames per second, which a folder cannot tell; 0 for unknown.
    """

    backend = BACKEND

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
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises all of them on bad files
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
    files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES]
    if not files:
        raise DecodeError(path, BACKEND, "there is no image in the folder")
    return sorted(files, key=_natural_order)


def _natural_order(file: Path) -> tuple[list[tuple[int, str]], str]:
    """Orders frame_2 before frame_10; the plain name settles ties such as 01 and 1."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], file.name
