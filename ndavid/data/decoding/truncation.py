"""Telling a cut-off file from a whole one, which decoders don't: they end early and say nothing.

AVI and mp4 promise a number of frames. It is the number of those stored, and players show fewer of
a good file: an edit list hides those outside of a cut (mp4), and an empty chunk repeats the picture
before it (AVI). So a promise that is not kept is held against what is stored, and against how many
bytes the file has. Other formats promise no frames, but their framing says how many bytes there
must be (containers.py).

What nothing tells: MPEG streams (ts, mpg, vob), FLV and Ogg that are cut exactly between two
packets, and raw streams.
"""

from __future__ import annotations

import os

from ndavid.data.decoding.containers import avi_chunks, is_gif, missing_bytes
from ndavid.data.decoding.pyav_versions import open_video

WITHOUT_A_LENGTH = frozenset({".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob"})


def what_is_missing(path: str | os.PathLike[str], stream: int, promised: int, decoded: int) -> str:
    """Why a video that decoded to its end is no whole one; empty if it is, as far as one can tell.

    Args:
        path: the video.
        stream: the index, among all streams of the file, of the one that was decoded.
        promised: how many frames the container claims for it, 0 for no claim.
        decoded: how many there were.

    Raises:
        OSError: the file cannot be read any more.
    """
    if is_gif(path):
        promised = 0  # it is no promise: FFmpeg has counted those that are there
    if promised and not missing_frames(promised, decoded):
        return ""
    cut = missing_bytes(path)
    if not promised:
        missing = f"truncated: at least {cut} bytes are missing at its end"
        return f"{missing}; {decoded} frames decode" if cut else ""
    broken_promise = f"truncated: the header promises {promised} frames; {decoded} frames decode"
    if cut:
        return broken_promise
    stored, shown = _stored(path, stream)
    if missing_frames(promised, stored):
        return broken_promise
    if missing_frames(shown, decoded):
        return f"damaged: of {shown} frames that are stored, {decoded} decode"
    return ""


def missing_frames(promised: int, decoded: int) -> int:
    """How many frames a cut took away; 0 where the header's promise is kept closely enough.

    Headers of intact AVI files promise a frame or two too many; a cut file misses far more.
    """
    missing = promised - decoded
    return missing if missing > max(5, 0.05 * promised) else 0


def _stored(path: str | os.PathLike[str], stream: int) -> tuple[int, int]:
    """(frames that a header may count, those of them to be shown as a picture of their own)."""
    chunks, filled = avi_chunks(path, stream)
    if chunks:
        return chunks, filled
    with open_video(os.fspath(path)) as container:
        video = container.streams[stream]
        packets = [packet for packet in container.demux(video) if packet.size]
        # FFmpeg takes what lies wholly outside of an edit list out of its index of the file, and
        # leaves what is needed to decode the rest. PyAV before 17 does not show that index.
        indexed = len(getattr(video, "index_entries", packets))
        found = video.frames if len(packets) >= indexed else len(packets)
        return found, sum(not packet.is_discard for packet in packets)
