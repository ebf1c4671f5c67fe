"""Frames to small H.264 files through PyAV.

One setting serves every writer here: constant frame rate with timestamps 0, 1, 2, ..., yuv420p,
a short group of pictures so that a seek decodes few frames, and no B-frames, so that the order of
the packets is the order of the frames for every reader. One encoder thread a file: callers run
many files at once. (x264's bytes are nearly, not always, the same for the same frames: about one
32-pixel clip in a thousand differed between runs.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ndavid.data.decode import open_reader, probe
from ndavid.data.decoding.pyav_versions import CONVERT_ON_ONE_THREAD
from ndavid.errors import DataError, DecodeError
from ndavid.files import whole_path

# For a file that does not tell its frame rate; UCF101's own.
FALLBACK_FPS = 25.0

# The fastest cameras of consumers; headers that claim more are damaged or count in clock ticks.
_HIGHEST_FPS = 1000.0


@dataclass(frozen=True)
class EncodeSettings:
    """How to write H.264: at most `gop` frames a keyframe; `crf` as in x264 (less is better)."""

    gop: int = 12
    crf: int = 20
    preset: str = "veryfast"


@dataclass(frozen=True)
class EncodedVideo:
    """What a finished file holds: frames, frames a second, and height and width in pixels.

    `damaged` counts frames of its source that the decoder flagged: the copy shows them unflagged.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    damaged: int = 0


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
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames must be uint8 (T, 3, H, W), got {frames.dtype} {tuple(frames.shape)}"
        )
    num_frames, _, height, width = frames.shape
    if num_frames == 0:
        raise ValueError("there are no frames to write")
    if height % 2 or width % 2:
        raise ValueError(f"yuv420p needs an even size, got {height}x{width}")
    with _partial(Path(path)) as partial:
        written = _encode(partial, frames, fps, (height, width), settings or EncodeSettings())
    return EncodedVideo(written, float(_rate(fps)), height, width)


def reencode(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    short_side: int,
    settings: EncodeSettings | None = None,
) -> EncodedVideo:
    """Write every frame of `source` to the H.264 mp4 `target`, scaled to `short_side` pixels.

    Frames keep the decoder's output order and get fresh timestamps, since those of AVIs with
    B-frames are not in display order. The picture is mirrored and turned as players show it, scaled
    by area with its aspect ratio kept to the nearest even size, and never enlarged. Audio and
    metadata are dropped.

    Raises:
        DecodeError: the source does not decode to its end.
        DataError: what it holds cannot be encoded (a picture of absurd size, say), or the finished
            file does not hold as many frames as the source.
        OSError: the target cannot be written.
    """
    info = probe(source)
    size = scaled_size(info.height, info.width, short_side)
    fps = info.fps if 0 < info.fps <= _HIGHEST_FPS else FALLBACK_FPS
    with _partial(Path(target)) as partial:
        with open_reader(source) as reader, _encoding_errors(source):
            frames = (reader.read([index])[0] for index in range(info.num_frames))
            _encode(partial, frames, fps, size, settings or EncodeSettings())
        kept = _count_frames(partial, source)
        if kept != info.num_frames:
            raise DataError(source, f"{kept} frames after re-encoding its {info.num_frames}")
    return EncodedVideo(info.num_frames, float(_rate(fps)), *size, damaged=info.damaged)


@contextmanager
def _encoding_errors(source: str | os.PathLike[str]) -> Iterator[None]:
    """The encoder's refusals are the source's fault; a full disk and the like are not."""
    try:
        yield
    except (DataError, OSError):
        raise
    except Exception as error:
        if type(error) is MemoryError:
            raise
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(source, f"its frames cannot be encoded ({words})") from error


def _count_frames(written: Path, source: str | os.PathLike[str]) -> int:
    try:
        return probe(written).num_frames
    except DecodeError as error:
        raise DataError(source, f"cannot be read after re-encoding: {error.reason}") from error


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even (height, width) with the short side at most `short_side` and the aspect ratio kept.

    Raises:
        ValueError: `short_side` is under 2.
    """
    if short_side < 2:
        raise ValueError(f"short_side must be at least 2, got {short_side}")
    scale = min(1.0, short_side / min(height, width))
    return _even(height * scale), _even(width * scale)


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


def _rate(fps: float) -> Fraction:
    # 29.97 is 30000/1001: a denominator of 1001 reaches every broadcast rate.
    return Fraction(fps).limit_denominator(1001)


def _encode(
    path: Path,
    frames: Iterable[Tensor],
    fps: float,
    size: tuple[int, int],
    settings: EncodeSettings,
) -> int:
    """Encodes frames (3, H, W), scaled to `size` (height, width); returns how many."""
    height, width = size
    rate = _rate(fps)
    written = 0
    # One for the file: a frame's own method would set up the conversion anew for each.
    scaler = VideoReformatter()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = settings.gop
        stream.codec_context.thread_count = 1
        # fastdecode: 5% larger, but quicker to read, which is what these files are for.
        stream.options = {
            "crf": str(settings.crf),
            "preset": settings.preset,
            "tune": "fastdecode",
            "bf": "0",
        }
        for frame in frames:
            pixels = frame.permute(1, 2, 0).contiguous().numpy()
            image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            image = scaler.reformat(
                image, width, height, "yuv420p", interpolation="AREA", **CONVERT_ON_ONE_THREAD
            )
            image.pts = written
            image.time_base = 1 / rate
            container.mux(stream.encode(image))
            written += 1
        container.mux(stream.encode())
    return written


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """`whole_path` in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(path, sync=False) as partial:
        yield partial
