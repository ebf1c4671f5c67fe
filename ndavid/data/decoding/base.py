"""What every decoding backend gives: the same frames, or a DecodeError that says why not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ndavid.errors import DecodeError


class FrameReader(Protocol):
    """An open video whose frames are addressed by their place in decoding order.

    Frame `i` is the i-th frame that a decoder hands out when it reads the file from the start:
    never sorted by timestamp (in AVI files with B-frames the timestamps are not in order).
    """

    backend: str
    path: str

    @property
    def fps(self) -> float:
        """Average frames per second; 0.0 where the file does not say."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames that `read` gives, rotation applied."""

    def __len__(self) -> int:
        """The number of frames that decode, counted by decoding where the header cannot be trusted.

        Raises:
            DecodeError: the video breaks on the way.
        """

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Frames at `indices` (any order, repeats allowed): uint8 RGB, (len(indices), 3, H, W).

        Raises:
            IndexError: an index is negative.
            DecodeError: a frame cannot be decoded or lies past the end.
        """

    def close(self) -> None:
        """Frees the file; the reader is of no use afterwards."""

    def __enter__(self) -> FrameReader: ...

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a whole video found out about it.

    Attributes:
        num_frames: frames that decode, in contrast to `header_frames`.
        header_frames: what the container claims; 0 where it claims nothing.
        fps: average frames per second, 0.0 where unknown.
        height, width: pixels as seen, rotation applied.
        rotation: counter-clockwise quarter turns applied to the stored frames, in degrees.
        codec, pixel_format: FFmpeg's names ("h264", "yuv420p").
        num_video_streams: the first one is read; cover pictures don't count.
    """

    num_frames: int
    header_frames: int
    fps: float
    height: int
    width: int
    rotation: int
    codec: str
    pixel_format: str
    num_video_streams: int


def checked_indices(indices: Sequence[int] | Tensor) -> list[int]:
    """`indices` as plain ints; negative ones raise IndexError, an empty list raises ValueError."""
    plain = [int(i) for i in indices]
    if not plain:
        raise ValueError("no frame indices given")
    if min(plain) < 0:
        raise IndexError(f"frame indices count from 0, got {min(plain)}")
    return plain


def check_file(path: str | os.PathLike[str], backend: str) -> str:
    """The path as text, once it is a file with something in it.

    Raises:
        DecodeError: there is no such file, it is a folder, or it is empty.
    """
    file = Path(path)
    if not file.exists():
        raise DecodeError(path, backend, "no such file")
    if file.is_dir():
        raise DecodeError(path, backend, 'is a folder; read folders of images with "frames"')
    if file.stat().st_size == 0:
        raise DecodeError(path, backend, "the file is empty (0 bytes)")
    return os.fspath(path)


def check_content(path: str | os.PathLike[str], content: bytes, backend: str) -> str:
    """The name of a file in memory as text, once there is something in it.

    Raises:
        DecodeError: it is empty.
    """
    if not content:
        raise DecodeError(path, backend, "the file is empty (0 bytes)")
    return os.fspath(path)


def scatter_rows(rows: Tensor, held: list[int], wanted: list[int]) -> Tensor:
    """Row k of `rows` is frame `held[k]`; returns the frames `wanted`, in that order."""
    if held == wanted:
        return rows
    place = {index: k for k, index in enumerate(held)}
    return rows[[place[index] for index in wanted]]
