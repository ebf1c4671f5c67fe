"""Opening videos, whatever decodes them: `open_reader(path, backend)` and `probe(path)`.

The reference is PyAV's sequential decoding. Every other backend gives the reference's frames or
raises DecodeError; it never gives other frames. decord does on real files (an AVI whose header
counts two frames too many, an MPEG-1 program stream, an mp4 with two video streams), so it is only
let at files for which `verify_backend` has seen it agree.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ndavid.data.decoding.base import FrameReader, VideoInfo
from ndavid.data.decoding.pyav import PyAvReader, probe
from ndavid.errors import ConfigError

__all__ = ["FrameReader", "VideoInfo", "open_reader", "probe"]

_BACKENDS: dict[str, Callable[[str | os.PathLike[str]], FrameReader]] = {"pyav": PyAvReader}


def open_reader(path: str | os.PathLike[str], backend: str = "pyav") -> FrameReader:
    """A reader of the frames of `path`; close it, or use it in a `with`.

    Raises:
        DecodeError: the file is missing, empty, no video, or this backend misreads it.
        ConfigError: there is no backend of that name.
    """
    if backend not in _BACKENDS:
        raise ConfigError(f"no decoding backend {backend!r}: choose from {', '.join(_BACKENDS)}")
    return _BACKENDS[backend](path)
