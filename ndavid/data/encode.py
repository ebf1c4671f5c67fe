"""Frames to small H.264 files through PyAV.

One setting serves every writer here: constant frame rate with timestamps 0, 1, 2, ..., yuv420p,
a short group of pictures so that a seek decodes few frames, and no B-frames, so that the order of
the packets is the order of the frames for every reader. One encoder thread makes the bytes a
function of the frames and the library version alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from ndavid.errors import DataError, DecodeError


@dataclass(frozen=True)
class EncodeSettings:
    """How to write H.264: at most `gop` frames a keyframe; `crf` as in x264 (less is better)."""

    gop: int = 12
    crf: int = 20
    preset: str = "veryfast"


@dataclass(frozen=True)
class EncodedVideo:
    """What a finished file holds: frames, frames a second, and height and width in pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def write_video(
    path: str | os.PathLike[str],
    frames: Tensor,
    *,
    fps: float = 25.0,
    settings: EncodeSettings | None = None,
) -> EncodedVideo:
    """Write uint8 RGB frames (T, 3, H, W), H and W even, as an H.264 mp4; the file appears whole.

    Raises:
        ValueError: frames of another shape or dtype, an odd size, or no frames.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or str(frames.dtype) != "torch.uint8":
        raise ValueError(
            f"frames must be uint8 (T, 3, H, W), got {frames.dtype} {tuple(frames.shape)}"
        )
    num_frames, _, height, width = frames.shape
    if num_frames == 0:
        raise ValueError("there are no frames to write")
    if height % 2 or width % 2:
        raise ValueError(f"yuv420p needs an even size, got {height}x{width}")
    rate = Fraction(fps).limit_denominator(100_000)
    pictures = frames.permute(0, 2, 3, 1).contiguous().numpy()
    images = (av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures)
    with _whole_file(Path(path)) as partial:
        written = _encode(partial, images, rate, (height, width), settings or EncodeSettings())
    return EncodedVideo(written, float(rate), height, width)


def reencode(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    short_side: int,
    settings: EncodeSettings | None = None,
) -> EncodedVideo:
    """Write every frame of `source` to the H.264 mp4 `target`, scaled to `short_side` pixels.

    Frames keep the decoder's output order and get fresh timestamps, since those of AVIs with
    B-frames are not in display order. The picture is turned as the file's rotation asks, scaled by
    area, never enlarged, and cut to even sizes. Audio and metadata are dropped.

    Raises:
        DecodeError: the source does not decode to its end.
        DataError: the finished file does not hold as many frames as the source.
    """
    source, target = Path(source), Path(target)
    with _whole_file(target) as partial:
        try:
            with _open(source) as container:
                stream = _video_stream(container, source)
                rate = _frame_rate(stream)
                upright = _upright_frames(container, stream)
                first = next(upright, None)
                if first is None:
                    raise DecodeError(source, "pyav", "no frame decodes")
                size = scaled_size(first.height, first.width, short_side)
                scaled = _scaled(first, upright, size)
                written = _encode(partial, scaled, rate, size, settings or EncodeSettings())
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DecodeError(source, "pyav", _reason(error)) from error
        kept = count_frames(partial)
        if kept != written:
            raise DataError(target, f"holds {kept} frames after encoding {written}")
    return EncodedVideo(written, float(rate), *size)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Frames of the first video stream that decode, counted by decoding all of them."""
    with _open(Path(path)) as container:
        return sum(1 for _ in container.decode(_video_stream(container, Path(path))))


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even (height, width) with the short side at most `short_side` and the aspect ratio kept."""
    if short_side < 2:
        raise ValueError(f"short_side must be at least 2, got {short_side}")
    scale = min(1.0, short_side / min(height, width))
    return _even(height * scale), _even(width * scale)


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


def _encode(
    path: Path,
    images: Iterable[av.VideoFrame],
    rate: Fraction,
    size: tuple[int, int],
    settings: EncodeSettings,
) -> int:
    written = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = settings.gop
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(settings.crf), "preset": settings.preset, "bf": "0"}
        for image in images:
            image.pts = written
            image.time_base = 1 / rate
            container.mux(stream.encode(image))
            written += 1
        container.mux(stream.encode())
    return written


def _open(path: Path) -> av.container.InputContainer:
    # Some HMDB51 files carry metadata that is not UTF-8, which PyAV refuses unless told otherwise.
    return av.open(str(path), metadata_errors="replace")


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    if not container.streams.video:
        raise DecodeError(path, "pyav", "there is no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _frame_rate(stream: av.VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or 25
    # mp4 keeps time in 32-bit ticks; a rate like 1000000/33333 is brought to a near small fraction.
    return Fraction(rate.numerator, rate.denominator).limit_denominator(1001)


def _upright_frames(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    for frame in container.decode(stream):
        quarter_turns = round(frame.rotation / 90) % 4
        if quarter_turns:
            picture = np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns).astype(np.uint8)
            yield av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        else:
            yield frame


def _scaled(
    first: av.VideoFrame, rest: Iterator[av.VideoFrame], size: tuple[int, int]
) -> Iterator[av.VideoFrame]:
    height, width = size
    frame: av.VideoFrame | None = first
    while frame is not None:
        # A fresh frame: the encoder must not see the source's picture types.
        yield frame.reformat(width=width, height=height, format="yuv420p", interpolation="AREA")
        frame = next(rest, None)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
