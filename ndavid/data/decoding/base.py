"""What every decoding backend gives: the same frames, or a DecodeError that says why not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ndavid.errors import DecodeError


class FrameReader(Protocol):
    """An open video whose frames are addressed by their place in decoding order.

    Frame `i` is the i-th frame that a decoder hands out when it reads the file from the start:
    never sorted by timestamp (in AVI files with B-frames the timestamps are not in order). Frames
    that an edit list hides are decoded by players but not shown, and are not counted.
    """

    backend: str
    path: str

    @property
    def fps(self) -> float:
        """Average frames per second; 0.0 where the file does not say."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames that `read` gives, turned as players show them."""

    @property
    def damaged(self) -> int:
        """Frames given so far that the decoder flagged, or that build on one flagged before them.

        0 from backends whose library does not tell.
        """

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
        height, width: pixels as seen, mirroring and rotation applied.
        rotation: counter-clockwise quarter turns applied to the stored frames, in degrees.
        codec, pixel_format: FFmpeg's names ("h264", "yuv420p").
        num_video_streams: the first one is read; cover pictures don't count.
        mirrored: whether left and right changed places before that rotation.
        damaged: frames that the decoder flagged: it made up what it could not decode.
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
    mirrored: bool = False
    damaged: int = 0


@contextlib.contextmanager
def decode_errors(path: str | os.PathLike[str], backend: str, what: str) -> Iterator[None]:
    """Turns whatever a decoding library raises inside into one DecodeError that says why.

    On damaged files, libraries raise of everything that Python has (FFmpeg's errors, AttributeError
    on a stream without a codec, ValueError, OverflowError), and none of it may end a run over a
    thousand files. Only a MemoryError is let through, where it is this process that has none left.

    Args:
        path, backend: of the error.
        what: what went wrong, in front of the library's own words; may be empty.
    """
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        if type(error) is MemoryError:  # FFmpeg's is a class of its own: an absurd size in a file
            raise
        words = _first_line(getattr(error, "strerror", None) or str(error))
        reason = f"{what} ({words})" if what and words else what or words
        raise DecodeError(path, backend, reason or type(error).__name__) from error


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


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
    with decode_errors(path, backend, "cannot be looked at"):
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
