"""Whether a backend gives the reference's frames of a file, found out by reading all of them.

"The same frame" allows for rounding: decoders of different FFmpeg versions differ by up to 2 of 255
levels on MPEG-4. A wrong frame, even of a still scene, differs by more somewhere.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable

from torch import Tensor

from ndavid.data.decoding.base import FrameReader, VideoInfo
from ndavid.data.decoding.pyav import BACKEND as REFERENCE
from ndavid.data.decoding.pyav import PyAvReader, probe
from ndavid.errors import DecodeError

OpenReader = Callable[[str | os.PathLike[str]], FrameReader]

ROUNDING = 4

# Frames are compared in portions of so many bytes. Each portion is opened and sought anew, so that
# small ones would cost decoding time, and large ones memory.
_PORTION = 64 * 2**20


def disagreement(path: str | os.PathLike[str], open_candidate: OpenReader) -> str:
    """Why a backend is not to be trusted with a file; empty if it gives the reference's frames.

    Frames are compared one by one from the start; then jumps, which is where seeking backends slip,
    must give what the same backend gave in order. The answer is kept for as long as the process
    lives and the file does not change.

    Raises:
        DecodeError: the reference itself cannot read the file.
    """
    status = os.stat(path) if os.path.exists(path) else None
    version = (status.st_size, status.st_mtime_ns) if status else (0, 0)
    return _disagreement(os.path.abspath(path), open_candidate, version)


@functools.lru_cache(maxsize=65536)
def _disagreement(path: str, open_candidate: OpenReader, _version: tuple[int, int]) -> str:
    # The reference goes first: a file that it refuses never reaches a more fragile library.
    info = probe(path)
    try:
        with open_candidate(path) as candidate:
            if len(candidate) != info.num_frames:
                return f"counts {len(candidate)} frames where {info.num_frames} decode"
            if candidate.size != (info.height, info.width):
                return f"gives frames of {candidate.size}, not {(info.height, info.width)}"
        digests, wrong = _compare_in_order(path, open_candidate, info)
        if wrong is None:
            wrong = _compare_jumps(path, open_candidate, digests)
    except DecodeError as error:
        if error.backend == REFERENCE:
            raise
        return error.reason
    return "" if wrong is None else f"gives another frame than {REFERENCE} at {wrong}"


def _compare_in_order(
    path: str, open_candidate: OpenReader, info: VideoInfo
) -> tuple[list[bytes], int | None]:
    """(a digest of every frame as the candidate gives it, the first wrong frame or None)."""
    digests: list[bytes] = []
    with PyAvReader(path) as reference:
        portion = max(1, _PORTION // (3 * info.height * info.width))
        for start in range(0, info.num_frames, portion):
            chunk = range(start, min(start + portion, info.num_frames))
            expected = reference.read(chunk)
            with open_candidate(path) as candidate:
                given = candidate.read(chunk)
            for index, (left, right) in zip(chunk, zip(expected, given, strict=True), strict=True):
                if (left.short() - right.short()).abs().max() > ROUNDING:
                    return digests, index
            digests += [_digest(frame) for frame in given]
    return digests, None


def _compare_jumps(path: str, open_candidate: OpenReader, digests: list[bytes]) -> int | None:
    """The first frame that a sparse read gives differently, or None."""
    n = len(digests)
    for jumps in (range(0, n, 3), range(n // 2, n, 7), range(n // 5, n, max(1, n // 6)), [n - 1]):
        with open_candidate(path) as candidate:
            for index, frame in zip(jumps, candidate.read(jumps), strict=True):
                if _digest(frame) != digests[index]:
                    return index
    return None


def _digest(frame: Tensor) -> bytes:
    picture = frame.permute(1, 2, 0).contiguous().numpy()
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
