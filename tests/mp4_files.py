"""Making encoded mp4 files, byte by byte, into what cameras and editors write."""

from __future__ import annotations

import struct
from pathlib import Path

# (a, b, c, d) of the eight display matrices: a stored pixel (p, q) is shown at (ap + cq, bp + dq).
DISPLAY_MATRICES = {
    "upright": (1, 0, 0, 1),
    "mirrored left-right": (-1, 0, 0, 1),
    "mirrored top-bottom": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "a quarter turn clockwise": (0, 1, -1, 0),
    "a quarter turn counter-clockwise": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes a display matrix into the first track's header (ISO 14496-12, 8.3.2), in place."""
    a, b, c, d = (value << 16 for value in matrix)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def forget_codec(path: Path) -> Path:
    """Names a codec that nobody knows in the first video track, in place."""
    data = path.read_bytes()
    start = data.index(b"stsd")
    path.write_bytes(data[:start] + data[start:].replace(b"avc1", b"\0\xffz\0", 1))
    return path


def set_edit_list(path: Path, first: float, seconds: float) -> Path:
    """Shows `seconds` of the first track from `first` seconds on (ISO 14496-12, 8.6.6), in place.

    An edit list must be there already, which FFmpeg writes into every mp4.
    """
    data = bytearray(path.read_bytes())
    (movie_scale,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 4 + 12)
    (media_scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 4 + 12)
    start = data.index(b"elst") + 4
    version, count, _, delay = struct.unpack_from(">IIIi", data, start)
    if (version, count) != (0, 1):
        raise AssertionError("FFmpeg wrote another edit list than this function knows")
    place = round(first * media_scale) + delay
    struct.pack_into(">Ii", data, start + 8, round(seconds * movie_scale), place)
    path.write_bytes(data)
    return path
