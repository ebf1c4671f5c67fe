"""Opening videos, whatever decodes them: `open_reader(path, backend)` and `probe(path)`.

The reference is PyAV's decoding from the start. Every other backend gives the reference's frames or
raises DecodeError; it never gives other frames. On real files decord and torchcodec would: an AVI
whose header counts a frame too many, an MPEG-1 program stream, an mp4 with two video streams. So
they are only let at files for which they were seen to agree: `prepare` finds out once and writes it
into the manifest; without that, the first opening in a process reads the whole file to find out.
"""

from __future__ import annotations

import os
from pathlib import Path

from ndavid.data.decoding import frames, pyav
from ndavid.data.decoding.base import FrameReader, VideoInfo
from ndavid.data.decoding.decord import DecordReader
from ndavid.data.decoding.frames import FrameFolderReader
from ndavid.data.decoding.pyav import PyAvReader
from ndavid.data.decoding.torchcodec import TorchCodecReader
from ndavid.data.decoding.verification import OpenReader, disagreement
from ndavid.errors import ConfigError, DecodeError

__all__ = ["BACKENDS", "FrameReader", "VideoInfo", "open_reader", "probe", "verify_backend"]

_TO_VERIFY: dict[str, OpenReader] = {"decord": DecordReader, "torchcodec": TorchCodecReader}

BACKENDS = ("pyav", *_TO_VERIFY, "frames")


def open_reader(
    path: str | os.PathLike[str],
    backend: str = "pyav",
    *,
    num_frames: int | None = None,
    verified: bool | None = None,
    content: bytes | None = None,
) -> FrameReader:
    """A reader of the frames of `path`; close it, or use it in a `with`.

    Args:
        path: a video, or for "frames" a folder of images.
        backend: "pyav", "decord", "torchcodec" or "frames".
        num_frames: how many frames `probe` counted, where known: PyAV can then jump to keyframes.
        verified: what `verify_backend` said of this file, where known; None to find out.
        content: the file's bytes, where they are in memory, with its `num_frames`; for "pyav".

    Raises:
        DecodeError: the file is missing, empty, no video, or this backend would misread it.
        ConfigError: there is no backend of that name, or it only reads files.
    """
    if backend == "pyav":
        return PyAvReader(path, num_frames, content=content)
    if content is not None:
        raise ConfigError(f"backend {backend} reads files only; shards are decoded by pyav")
    if backend == "frames":
        return FrameFolderReader(path)
    if backend not in _TO_VERIFY:
        raise ConfigError(f"no decoding backend {backend!r}: choose from {', '.join(BACKENDS)}")
    open_backend = _TO_VERIFY[backend]
    if verified is None and (reason := disagreement(path, open_backend)):
        raise DecodeError(path, backend, f"{reason}; use pyav")
    if verified is False:
        raise DecodeError(path, backend, "found to misread this file; use pyav")
    return open_backend(path)


def verify_backend(path: str | os.PathLike[str], backend: str) -> bool:
    """Whether a backend gives the reference's frames of a file; decodes it whole, twice.

    Raises:
        DecodeError: the reference cannot read the file.
        ConfigError: there is no backend of that name.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"no decoding backend {backend!r}: choose from {', '.join(BACKENDS)}")
    if backend in _TO_VERIFY:
        return not disagreement(path, _TO_VERIFY[backend])
    return True


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Decodes a whole video, or looks into a folder of images, and tells what is in it.

    Raises:
        DecodeError: it cannot be opened, breaks on the way, or ends long before its header says.
    """
    return frames.probe_folder(path) if Path(path).is_dir() else pyav.probe(path)
