"""Telling a cut-off file from a whole one, which decoders don't: they end early and say nothing.

AVI and mp4 promise a number of frames. Matroska and WebM promise none, but their outermost element
(the Segment, Matroska specification section 5) says how many bytes it holds.
"""

from __future__ import annotations

import os

_EBML_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067


def missing_frames(promised: int, decoded: int) -> int:
    """How many frames a cut took away; 0 where the header's promise is kept closely enough.

    Headers of intact AVI files promise a frame or two too many; a cut file misses far more.
    """
    missing = promised - decoded
    return missing if missing > max(5, 0.05 * promised) else 0


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """How many bytes a Matroska or WebM file lacks; 0 if none, or if it is no such file."""
    with open(path, "rb") as file:
        start = file.read(4096)
    try:
        identifier, place = _number(start, 0, keep_marker=True)
        if identifier != _EBML_HEADER:
            return 0
        size, place = _number(start, place)
        identifier, place = _number(start, place + size, keep_marker=True)
        size, body = _number(start, place)
    except IndexError:
        return 0
    unknown = size == (1 << 7 * (body - place)) - 1  # all ones: a live recording, of any length
    if identifier != _SEGMENT or unknown:
        return 0
    return max(0, body + size - os.path.getsize(path))


def _number(data: bytes, place: int, keep_marker: bool = False) -> tuple[int, int]:
    """(a number of variable length as EBML writes them, the place after it)."""
    length = 9 - data[place].bit_length()
    if length > 8 or place + length > len(data):
        raise IndexError(place)
    value = int.from_bytes(data[place : place + length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), place + length
