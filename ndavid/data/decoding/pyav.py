"""PyAV: the reference. Decoding of the first video stream, frame after frame, on one core.

What real files taught (tests/data/test_decode.py holds each of these):

* Headers lie about frame counts (HMDB51's AVIs claim one too many): frames are counted.
* UCF101's AVIs with B-frames hand out frames in display order under unsorted timestamps.
* Some HMDB51 files carry metadata that is not UTF-8 (`open_video`).
* FFmpeg's "best" stream is the largest one; here it is the first, whatever its size. A cover
  picture is no video.
* `VideoFrame.to_ndarray` sets up a converter for every frame and threads for every converter;
  one single-threaded converter for all frames is five times as fast.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from ndavid.data.decoding.base import (
    VideoInfo,
    check_content,
    check_file,
    checked_indices,
    decode_errors,
)
from ndavid.data.decoding.orientation import Orientation, from_matrix
from ndavid.data.decoding.pyav_versions import CONVERT_ON_ONE_THREAD, open_video
from ndavid.data.decoding.seeking import SeekPlan, plan_seeks
from ndavid.data.decoding.truncation import what_is_missing
from ndavid.errors import DecodeError

BACKEND = "pyav"

# Jumps over fewer frames than this are decoded through: planning a seek costs about as much.
_WORTH_SEEKING = 24


class PyAvReader:
    """Reads frames in decoding order; only the frames asked for are turned into RGB.

    Reading on from where the last `read` ended is free; going back starts over. Opening decodes
    the first frame, so that what is no video fails here.

    Args:
        path: the video.
        num_frames: how many frames decode, where that is known from an earlier `probe`. With it,
            a file in which jumping to a keyframe provably lands on the right frame is not decoded
            from the start (seeking.py has the proof's terms).
        content: the file's bytes, where they are in memory; `path` then only names them, and
            `num_frames` must be given.
    """

    backend = BACKEND

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_frames: int | None = None,
        *,
        content: bytes | None = None,
    ) -> None:
        if content is None:
            self.path = check_file(path, BACKEND)
        else:
            self.path = check_content(path, content, BACKEND)
            if num_frames is None:
                raise ValueError("num_frames must be given with content")
        self._content = content
        self._num_frames = num_frames
        self._seeks: SeekPlan | None = None
        self._may_seek = num_frames is not None
        self._converter = VideoReformatter()
        self._damaged: set[int] = set()
        self._container, self._stream = _open(self.path, self._video())
        self._start_over()
        first = self._current
        with self._decode_errors("cannot tell which way up it is"):
            self._orientation = _orientation(first)
            self._size = self._orientation.size(first.height, first.width)

    def __len__(self) -> int:
        if self._num_frames is None:
            self._num_frames = probe(self.path).num_frames
        return self._num_frames

    @property
    def fps(self) -> float:
        with self._decode_errors("cannot tell its frame rate"):
            return _fps(self._stream)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def damaged(self) -> int:
        return len(self._damaged)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted = checked_indices(indices)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(wanted):
            places.setdefault(index, []).append(place)
        # Channels last, as the decoder gives them: crops stay views and resizing is at its fastest.
        clip = np.empty((len(wanted), *self._size, 3), dtype=np.uint8)
        for index in sorted(places):
            self._advance_to(index)
            if self._suspect:
                self._damaged.add(index)
            first, *others = places[index]
            clip[first] = self._current_picture()
            for other in others:
                clip[other] = clip[first]
        return torch.from_numpy(clip).permute(0, 3, 1, 2)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> PyAvReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _decode_errors(self, what: str) -> AbstractContextManager[None]:
        return decode_errors(self.path, BACKEND, what)

    def _video(self) -> str | BinaryIO:
        """What FFmpeg opens. Bytes keep the file's name: its suffix helps to guess the format."""
        return self.path if self._content is None else _NamedBytes(self._content, self.path)

    def _start_over(self) -> None:
        """Makes frame 0 the current one, decoding from the file's start."""
        if hasattr(self, "_frames"):
            self.close()
            self._container, self._stream = _open(self.path, self._video())
        with self._decode_errors("cannot be decoded"):
            self._frames = self._container.decode(self._stream)
        self._position, self._suspect = -1, False
        self._step()

    def _step(self) -> None:
        """Makes the next frame the current one.

        Raises:
            DecodeError: it cannot be decoded, or there is none.
        """
        following = self._position + 1
        with self._decode_errors(f"breaks after {following} frames"):
            frame = next(self._frames, None)
        if frame is None:
            reason = f"ends after {following} frames" if following else "no frame decodes"
            raise DecodeError(self.path, BACKEND, reason)
        self._make_current(frame, following)

    def _make_current(self, frame: VideoFrame, index: int) -> None:
        """Notes a frame's place, and whether it or one it may build on was flagged as damaged."""
        kept = self._suspect and not frame.key_frame
        self._suspect = kept or frame.is_corrupt
        self._current, self._position = frame, index

    def _advance_to(self, index: int) -> None:
        """Makes frame `index` the current one."""
        if index < self._position:
            self._start_over()
        if self._may_seek and index - self._position >= _WORTH_SEEKING:
            self._jump_towards(index)
        try:
            while self._position < index:
                self._step()
        except DecodeError as error:
            self._start_over()  # the decoder is spent; earlier frames can still be read
            raise DecodeError(
                self.path, BACKEND, f"{error.reason}; frame {index} was asked for"
            ) from error

    def _jump_towards(self, index: int) -> None:
        """Moves on to the last keyframe at or before `index`, if that is provably frame-exact."""
        if self._seeks is None:
            self._seeks = plan_seeks(self._video(), self._stream.index, self._num_frames or 0)
        target = self._seeks.keyframe_before(index)
        if target is None or target.index <= self._position:
            return
        try:
            self._container.seek(target.pts, stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
            frame = next(self._frames, None)
        except Exception:  # whatever it is: decoding from the start will tell, or do without
            frame = None
        if frame is not None and frame.pts == target.pts:
            self._make_current(frame, target.index)
        else:
            # The container did not land where its index says: trust nothing but the start.
            self._may_seek = False
            self._start_over()

    def _current_picture(self) -> np.ndarray:
        """The current frame in RGB, turned upright: uint8, (H, W, 3)."""
        with self._decode_errors(f"frame {self._position} cannot be converted to RGB"):
            frame = self._current
            shown = self._orientation.size(frame.height, frame.width)
            if shown != self._size:
                raise _other_size(self.path, self._size, shown, self._position)
            rgb = self._converter.reformat(frame, format="rgb24", **CONVERT_ON_ONE_THREAD)
            return self._orientation.apply(rgb.to_ndarray())


class _NamedBytes(io.BytesIO):
    """Bytes under a name, which PyAV hands on to FFmpeg."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Decodes the whole video and tells what is in it.

    Raises:
        DecodeError: it cannot be opened, breaks on the way, changes its frame size, or ends long
            before its header says.
    """
    source = check_file(path, BACKEND)
    container, stream = _open(source)
    with container, decode_errors(source, BACKEND, "cannot be examined"):
        frames = container.decode(stream)
        first = _next_frame(source, frames, 0)
        if first is None:
            raise DecodeError(source, BACKEND, "no frame decodes")
        orientation = _orientation(first)
        size = orientation.size(first.height, first.width)
        count, damaged = 1, int(first.is_corrupt)
        while (frame := _next_frame(source, frames, count)) is not None:
            shown = orientation.size(frame.height, frame.width)
            if shown != size:
                raise _other_size(source, size, shown, count)
            count, damaged = count + 1, damaged + frame.is_corrupt
        if lack := what_is_missing(source, stream.index, stream.frames, count):
            raise DecodeError(source, BACKEND, lack)
        codec = stream.codec_context.codec
        return VideoInfo(
            num_frames=count,
            header_frames=stream.frames,
            fps=_fps(stream),
            height=size[0],
            width=size[1],
            rotation=90 * orientation.turns,
            codec=getattr(codec, "canonical_name", codec.name),
            pixel_format=first.format.name,
            num_video_streams=len(_video_streams(container)),
            mirrored=orientation.mirrored,
            damaged=damaged,
        )


def _next_frame(path: str, frames: Iterator[VideoFrame], count: int) -> VideoFrame | None:
    """The frame after `count` others, or None at the end."""
    with decode_errors(path, BACKEND, f"breaks after {count} frames"):
        return next(frames, None)


def _other_size(
    path: str, size: tuple[int, int], other: tuple[int, int], index: int
) -> DecodeError:
    (height, width), (new_height, new_width) = size, other
    reason = (
        f"the frame size changes from {width}x{height} to {new_width}x{new_height} at frame {index}"
    )
    return DecodeError(path, BACKEND, reason)


def first_video_stream(path: str | os.PathLike[str]) -> int:
    """The index, among all streams of the file, of the video stream that is read."""
    container, stream = _open(check_file(path, BACKEND))
    with container, decode_errors(path, BACKEND, "cannot be examined"):
        return stream.index


def _open(path: str, video: str | BinaryIO | None = None) -> tuple[InputContainer, VideoStream]:
    """(container, its first video stream), set to decode on the calling thread alone.

    Opens `video` if given; errors name `path`.
    """
    with decode_errors(path, BACKEND, "not a video that FFmpeg can open"):
        container = open_video(video or path)
    try:
        with decode_errors(path, BACKEND, "its streams cannot be read"):
            streams = _video_streams(container)
            if not streams:
                raise DecodeError(path, BACKEND, "there is no video stream in it")
            stream = streams[0]
            if stream.codec_context is None:
                raise DecodeError(path, BACKEND, "its video is in no codec that FFmpeg knows")
            stream.thread_type = "SLICE"
            stream.codec_context.thread_count = 1
            return container, stream
    except BaseException:
        container.close()
        raise


def _video_streams(container: InputContainer) -> list[VideoStream]:
    covers = Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & covers]


def _fps(stream: VideoStream) -> float:
    return float(stream.average_rate) if stream.average_rate else 0.0


def _orientation(frame: VideoFrame) -> Orientation:
    """How the file asks a player to turn and mirror the frame."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it lies data of a kind that this PyAV has no name for
        return Orientation(turns=round((frame.rotation or 0) / 90) % 4)
    return Orientation() if matrix is None else from_matrix(bytes(matrix))
