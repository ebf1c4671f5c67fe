"""PyAV: the reference. Sequential decoding of the first video stream, on one core.

Facts about real files that shaped this (see shared test clips and tests/data/test_decode.py):

* Headers lie about frame counts (HMDB51's AVIs claim one too many), so frames are counted.
* UCF101's AVIs with B-frames hand out frames in display order under unsorted timestamps.
* Some HMDB51 files carry metadata that is not UTF-8: `metadata_errors="replace"`.
* FFmpeg's "best" stream is the largest one; the first one is read here, so that the choice does
  not depend on sizes. Cover pictures are no video.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ndavid.data.decoding.base import VideoInfo, check_file, checked_indices
from ndavid.errors import DecodeError

BACKEND = "pyav"


class PyAvReader:
    """Reads frames by decoding from the start; only the frames asked for are turned into RGB.

    Reading on from where the last `read` ended costs nothing extra; going back starts over.
    Opening decodes the first frame, so that what is no video fails here.
    """

    backend = BACKEND

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_file(path, BACKEND)
        self._to_rgb = VideoReformatter()
        self._num_frames: int | None = None
        self._rewind()
        first = self._current
        self._rotation = _quarter_turns(first)
        turned = self._rotation % 2 == 1
        self._size = (first.width, first.height) if turned else (first.height, first.width)

    def __len__(self) -> int:
        if self._num_frames is None:
            self._num_frames = probe(self.path).num_frames
        return self._num_frames

    @property
    def fps(self) -> float:
        rate = self._stream.average_rate
        return float(rate) if rate else 0.0

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted = checked_indices(indices)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(wanted):
            places.setdefault(index, []).append(place)
        # Channels last, as the decoder gives them: crops stay views and resizing is at its fastest.
        clip = np.empty((len(wanted), *self._size, 3), dtype=np.uint8)
        for index in sorted(places):
            first, *others = places[index]
            self._advance_to(index)
            self._convert_into(clip[first])
            for other in others:
                clip[other] = clip[first]
        return torch.from_numpy(clip).permute(0, 3, 1, 2)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> PyAvReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _rewind(self) -> None:
        if hasattr(self, "_container"):
            self._container.close()
        with _as_decode_error(self.path):
            self._container, self._stream = _open(self.path)
            self._decoder = self._container.decode(self._stream)
            first = next(self._decoder, None)
        if first is None:
            raise DecodeError(self.path, BACKEND, "no frame decodes")
        self._current, self._position = first, 0

    def _advance_to(self, index: int) -> None:
        """Makes frame `index` the current one."""
        if index < self._position:
            self._rewind()
        while self._position < index:
            with _as_decode_error(self.path):
                frame = next(self._decoder, None)
            if frame is None:
                count = self._position + 1
                # The decoder is spent: the next read starts over.
                self._rewind()
                raise DecodeError(
                    self.path, BACKEND, f"frame {index} asked for, but only {count} decode"
                )
            self._current = frame
            self._position += 1

    def _convert_into(self, target: np.ndarray) -> None:
        picture = _to_rgb_array(self._current, self._to_rgb, self._rotation)
        if picture.shape != target.shape:
            raise DecodeError(
                self.path,
                BACKEND,
                f"frame {self._position} is {picture.shape[1]}x{picture.shape[0]}, "
                f"the first one {target.shape[1]}x{target.shape[0]}",
            )
        target[...] = picture


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Decodes the whole video and tells what is in it.

    Raises:
        DecodeError: it cannot be opened, breaks on the way, or ends long before its header says.
    """
    source = check_file(path, BACKEND)
    with _as_decode_error(source):
        container, stream = _open(source)
        with container:
            count = 0
            first: VideoFrame | None = None
            for frame in container.decode(stream):
                first = first or frame
                count += 1
            if first is None:
                raise DecodeError(source, BACKEND, "no frame decodes")
            rotation = _quarter_turns(first)
            height, width = first.height, first.width
            if rotation % 2 == 1:
                height, width = width, height
            info = VideoInfo(
                num_frames=count,
                header_frames=stream.frames,
                fps=float(stream.average_rate) if stream.average_rate else 0.0,
                height=height,
                width=width,
                rotation=90 * rotation,
                codec=stream.codec_context.name,
                pixel_format=first.format.name,
                num_video_streams=len(_video_streams(container)),
            )
    _check_complete(source, info)
    return info


def iterate(path: str | os.PathLike[str]) -> Iterator[Tensor]:
    """All frames of a video from first to last, one at a time: uint8 RGB, (3, H, W).

    Raises:
        DecodeError: it cannot be opened or breaks on the way.
    """
    with PyAvReader(path) as reader:
        index = 0
        while True:
            try:
                reader._advance_to(index)
            except DecodeError as error:
                if "only" in error.reason:
                    return
                raise
            yield reader.read([index])[0]
            index += 1


def _open(path: str):
    """(container, its first video stream), set to decode on the calling thread alone."""
    container = av.open(path, metadata_errors="replace")
    streams = _video_streams(container)
    if not streams:
        container.close()
        raise DecodeError(path, BACKEND, "there is no video stream in it")
    stream = streams[0]
    stream.thread_type = "SLICE"
    stream.codec_context.thread_count = 1
    return container, stream


def _video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    return [s for s in container.streams.video if not _is_cover(s)]


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that the file asks a player to apply, 0 to 3."""
    return round((frame.rotation or 0) / 90) % 4


def _to_rgb_array(frame: VideoFrame, reformatter: VideoReformatter, turns: int) -> np.ndarray:
    picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
    return np.rot90(picture, turns) if turns else picture


def _check_complete(path: str, info: VideoInfo) -> None:
    # AVI headers overstate by a frame or two on intact files; a cut file misses far more.
    missing = info.header_frames - info.num_frames
    if missing > max(5, 0.05 * info.header_frames):
        raise DecodeError(
            path,
            BACKEND,
            f"truncated: the header promises {info.header_frames} frames, {info.num_frames} decode",
        )


@contextlib.contextmanager
def _as_decode_error(path: str) -> Iterator[None]:
    """Turns what FFmpeg and PyAV raise on bad files into one kind of error."""
    try:
        yield
    except DecodeError:
        raise
    except (av.error.FFmpegError, ValueError, OSError, IndexError, RuntimeError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise DecodeError(path, BACKEND, f"{type(error).__name__}: {words}") from error
