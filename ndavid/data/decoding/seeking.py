"""Jumping into a video without losing count of the frames.

A reader that must not be wrong may only skip frames whose number it knows. It is known when

* the container is mp4/mov with H.264, whose packets all carry a timestamp, all different, none
  marked to be discarded (edit lists), and
* there are as many packets as frames decode from the start: then every packet gives one frame, and
* the keyframe is an IDR picture that cuts the file in two: all packets stored before it are shown
  before it, all stored after it are shown after it.

Then the keyframe's number is its place in storage order, and decoding from it needs nothing from
before. Any other file is decoded from the start.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import BinaryIO

from av.packet import Packet

from ndavid.data.decoding.pyav_versions import open_video

_IDR_SLICE = 5  # nal_unit_type of a slice of an IDR picture, H.264 table 7-1


@dataclass(frozen=True)
class Keyframe:
    """A frame that decoding can begin at: its number, and its timestamp in stream units."""

    index: int
    pts: int


@dataclass(frozen=True)
class SeekPlan:
    """The keyframes that may be jumped to, in order."""

    keyframes: tuple[Keyframe, ...]

    def keyframe_before(self, index: int) -> Keyframe | None:
        """The last one at or before frame `index`, if there is any."""
        place = bisect.bisect_right([k.index for k in self.keyframes], index)
        return self.keyframes[place - 1] if place else None


NO_SEEKS = SeekPlan(())


def plan_seeks(video: str | BinaryIO, stream_index: int, num_frames: int) -> SeekPlan:
    """Reads the packets of a stream, decoding none, and finds the keyframes to jump to.

    Args:
        video: its path, or its content.
        stream_index: its stream, among all streams of the file.
        num_frames: frames that decode from the start, as `probe` counted them.
    """
    try:
        with open_video(video) as container:
            stream = container.streams[stream_index]
            if "mp4" not in container.format.name or stream.codec_context.name != "h264":
                return NO_SEEKS
            # The demuxer ends with an empty packet that flushes decoders.
            packets = [packet for packet in container.demux(stream) if packet.size]
    except Exception:  # whatever is wrong with the file: reading it from the start will tell
        return NO_SEEKS
    times = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
    if not len(times) == len(set(times)) == len(packets) == num_frames:
        return NO_SEEKS
    return SeekPlan(tuple(_clean_cuts(packets, times)))


def _clean_cuts(packets: list[Packet], times: list[int]) -> list[Keyframe]:
    """IDR packets with only earlier pictures stored before them and only later ones after."""
    latest_before = [*_running_max(times)]
    earliest_after = [*_running_max([-t for t in reversed(times)])][::-1]
    cuts = []
    for i, packet in enumerate(packets):
        after_all_before = i == 0 or latest_before[i - 1] < times[i]
        before_all_after = -earliest_after[i] == times[i]
        if packet.is_keyframe and after_all_before and before_all_after and _is_idr(packet):
            cuts.append(Keyframe(i, times[i]))
    return cuts


def _running_max(values: list[int]) -> list[int]:
    highest: list[int] = []
    for value in values:
        highest.append(max(value, highest[-1]) if highest else value)
    return highest


def _is_idr(packet: Packet) -> bool:
    """Whether an H.264 packet (units behind 4-byte lengths, as in mp4) holds an IDR slice."""
    data = memoryview(bytes(packet))
    place = 0
    while place + 4 < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4] & 0x1F == _IDR_SLICE:
            return True
        place += 4 + length
    return False
