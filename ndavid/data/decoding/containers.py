"""Whether a file ends where its container says, read from the container's own framing.

Each walker steps over the outermost pieces of one format by the lengths they state, and answers how
many bytes the file lacks; 0 where it lacks none, or where its framing is not understood (a decoder
may still read it). No picture is decoded here.

* Matroska, WebM: the Segment's size (Matroska specification, section 5).
* mp4, mov: the boxes' sizes (ISO 14496-12, 4.2).
* AVI: the RIFF lists' sizes; an OpenDML file has several.
* ASF (wmv): the size of the Data Object (ASF specification, 5.1).
* MPEG transport stream: whole packets of 188, 192 or 204 bytes (ISO 13818-1, 2.4.3).
* MPEG program stream (mpg, vob): the packets' lengths (ISO 13818-1, 2.5.3; ISO 11172-1).
* FLV: the tags' sizes. Ogg: the pages' (RFC 3533).
* GIF: the blocks up to the trailer (GIF89a specification, 17 to 27).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

_EBML_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067
_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
# (bytes a packet, where its sync byte is): plain, with a timestamp in front (Blu-ray), with parity.
_TRANSPORT_PACKETS = ((188, 0), (192, 4), (204, 0))
_SYNC = 0x47
_PACK_HEADER, _END_OF_PROGRAM = 0xBA, 0xB9
_GIF = b"GIF8"
_GIF_EXTENSION, _GIF_IMAGE, _GIF_TRAILER = 0x21, 0x2C, 0x3B


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """How many bytes a file lacks at least; 0 if none, or if nothing tells.

    Raises:
        OSError: it cannot be read.
    """
    with _mapped(path) as data:
        walk = _walker(data)
        try:
            end = walk(data) if walk else 0
        except IndexError:  # the file ends inside the lengths that were to be read
            return 0
        return max(0, end - len(data))


def is_gif(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a GIF. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return file.read(len(_GIF)) == _GIF


def avi_chunks(path: str | os.PathLike[str], stream: int) -> tuple[int, int]:
    """(chunks of a stream, those of them with something in it); (0, 0) of what is no AVI.

    An empty chunk repeats the picture before it: that is how AVI holds a changing frame rate.

    Raises:
        OSError: it cannot be read.
    """
    mark = b"%02d" % stream
    count = filled = 0
    with _mapped(path) as data:
        if data[:4] != b"RIFF":
            return 0, 0
        for name, size in _avi_data_chunks(data):
            if name[:2] == mark and name[2:3] == b"d":
                count += 1
                filled += size > 0
    return count, filled


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _walker(data: mmap.mmap) -> Callable[[mmap.mmap], int] | None:
    """What finds the end that the container states, for each format known here."""
    start = data[:16]
    if start[:4] == _EBML_HEADER.to_bytes(4, "big"):
        return _end_of_segment
    if start[4:8] in _FIRST_BOXES:
        return _end_of_boxes
    if start[:4] == b"RIFF":
        return _end_of_riff
    if start == _ASF_HEADER:
        return _end_of_asf_data
    if start[:4] == _GIF:
        return _end_of_gif
    if start[:3] == b"FLV":
        return _end_of_flv_tags
    if start[:4] == b"OggS":
        return _end_of_ogg_pages
    if start[:4] == bytes((0, 0, 1, _PACK_HEADER)):
        return _end_of_program_stream
    return _end_of_transport_stream


def _end_of_segment(data: mmap.mmap) -> int:
    _, place = _number(data, 0, keep_marker=True)
    size, place = _number(data, place)
    identifier, place = _number(data, place + size, keep_marker=True)
    size, body = _number(data, place)
    unknown = size == (1 << 7 * (body - place)) - 1  # all ones: a live recording, of any length
    return 0 if identifier != _SEGMENT or unknown else body + size


def _number(data: mmap.mmap, place: int, keep_marker: bool = False) -> tuple[int, int]:
    """(a number of variable length as EBML writes them, the place after it)."""
    length = 9 - data[place].bit_length()
    if length > 8 or place + length > len(data):
        raise IndexError(place)
    value = int.from_bytes(data[place : place + length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), place + length


def _end_of_boxes(data: mmap.mmap) -> int:
    place = 0
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if not kind.isalnum() or 0 < size < 8:
            return 0  # no box: bytes that somebody appended
        if size == 0:  # to the end of the file, wherever that is
            return 0
        place += size
    return place


def _end_of_riff(data: mmap.mmap) -> int:
    place = 0
    while data[place : place + 4] == b"RIFF":
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if size in (0, 0xFFFFFFFF):  # a recording that nobody finished
            return 0
        place += 8 + size + size % 2
    # The pad byte of the last list is often left out.
    return place - 1


def _avi_data_chunks(data: mmap.mmap) -> Iterator[tuple[bytes, int]]:
    """(name, size) of the chunks inside the movi lists, in file order."""
    place, in_movi = 0, False
    while place + 8 <= len(data):
        name = data[place : place + 4]
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        kind = data[place + 8 : place + 12]
        if name == b"RIFF" or (name == b"LIST" and kind in (b"movi", b"rec ")):
            in_movi = name == b"LIST"
            place += 12  # into the list
            continue
        if in_movi:
            yield name, size
        place += 8 + size + size % 2


def _end_of_asf_data(data: mmap.mmap) -> int:
    place = int.from_bytes(data[16:24], "little")
    if data[place : place + 16] != _ASF_DATA:
        return 0
    size = int.from_bytes(data[place + 16 : place + 24], "little")
    return place + size if size else 0


def _end_of_gif(data: mmap.mmap) -> int:
    place = 13 + _colour_table(data[10])
    while place < len(data):
        kind = data[place]
        if kind == _GIF_TRAILER:
            return place + 1
        if kind == _GIF_EXTENSION:
            place += 2
        elif kind != _GIF_IMAGE:
            return 0  # damage: nothing tells where the next block is
        elif place + 10 <= len(data):
            place += 10 + _colour_table(data[place + 9]) + 1
        else:
            return place + 10
        # Blocks of up to 255 bytes, up to an empty one.
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return place + 1


def _colour_table(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_flv_tags(data: mmap.mmap) -> int:
    place = int.from_bytes(data[5:9], "big") + 4
    while place < len(data):
        # Audio, video or script, each maybe filtered; of stream 0.
        if data[place] & ~0x20 not in (8, 9, 18) or any(data[place + 8 : place + 11]):
            return 0
        place += 11 + int.from_bytes(data[place + 1 : place + 4], "big") + 4
    return place


def _end_of_ogg_pages(data: mmap.mmap) -> int:
    place = 0
    while place < len(data):
        if data[place : place + 4] != b"OggS"[: len(data) - place]:
            return 0
        if place + 27 > len(data):
            return place + 27
        sizes = data[place + 27 : place + 27 + data[place + 26]]
        place += 27 + data[place + 26] + sum(sizes)
    return place


def _end_of_program_stream(data: mmap.mmap) -> int:
    place = 0
    while place < len(data):
        head = data[place : place + 14]
        if head[:3] != b"\0\0\1"[: len(head)] or (len(head) > 3 and head[3] < _END_OF_PROGRAM):
            return 0  # padding, or damage: nothing tells where the next packet is
        if not any(head):
            return 0  # padding too, or a start code that is cut
        if len(head) < 4:
            return place + 4
        if head[3] == _END_OF_PROGRAM:
            place += 4
        elif len(head) < 6:
            return place + 6
        elif head[3] == _PACK_HEADER:
            if head[4] >> 6 == 1:  # MPEG-2
                place += 14 + (head[13] & 7 if len(head) == 14 else 0)
            else:
                place += 12
        elif length := int.from_bytes(head[4:6], "big"):
            place += 6 + length
        else:
            return 0
    return place


def _end_of_transport_stream(data: mmap.mmap) -> int:
    for size, sync in _TRANSPORT_PACKETS:
        last, rest = divmod(len(data), size)
        if last >= 5 and all(data[k * size + sync] == _SYNC for k in range(5)):
            torn = rest > sync and data[last * size + sync] == _SYNC
            return (last + 1) * size if torn else 0
    return 0
