"""Good files of which players show less than is stored, and cut files, are told apart."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import pytest
from conftest import frame_pattern
from mp4_files import set_edit_list
from PIL import Image

from ndavid.data.decode import open_reader, probe, verify_backend
from ndavid.data.decoding.containers import avi_chunks, missing_bytes
from ndavid.data.decoding.seeking import plan_seeks
from ndavid.data.encode import reencode
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.preparation import prepare
from ndavid.data.preparation_report import summary
from ndavid.errors import DecodeError

NUM_FRAMES = 90


def shown_numbers(path: Path, read_number) -> list[int]:
    with open_reader(path) as reader:
        frames = reader.read(range(len(reader)))
    return [read_number(frame.permute(1, 2, 0).numpy()) for frame in frames]


CODECS = {
    "libx264": {"x264-params": "bframes=3"},
    "libx265": {"x265-params": "log-level=none:bframes=3"},
}


@pytest.fixture(scope="module", params=sorted(CODECS))
def long_clip(request, tmp_path_factory, write_clip) -> Path:
    """90 frames at 25 a second with two keyframes."""
    path = tmp_path_factory.mktemp(request.param) / "long.mp4"
    options = CODECS[request.param]
    return write_clip(path, num_frames=NUM_FRAMES, codec=request.param, gop=60, options=options)


def cut_losslessly(source: Path, target: Path, first: int, last: int) -> Path:
    """Frames `first` to `last - 1`, without encoding anew: what stands before them is hidden.

    As `ffmpeg -ss ... -c copy` does: packets from the keyframe on, those before `first` at negative
    times, for which FFmpeg's muxer writes an edit list.
    """
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        step = 1 / (stream.average_rate * stream.time_base)
        for packet in container.demux(stream):
            if packet.dts is None or packet.pts >= last * step:
                continue
            packet.pts -= int(first * step)
            packet.dts -= int(first * step)
            packet.stream = copied
            output.mux(packet)
    return target


def expect_shown(path: Path, numbers: range, read_number, tmp_path: Path) -> None:
    """The file is good, holds frames that are not shown, and all ways of reading agree."""
    info = probe(path)
    assert info.num_frames == len(numbers) < info.header_frames
    assert shown_numbers(path, read_number) == list(numbers)
    with open_reader(path, num_frames=info.num_frames) as reader:  # may seek, where it is proven
        indices = [len(numbers) - 1, 0, len(numbers) // 2]
        frames = reader.read(indices)
    given = [read_number(frame.permute(1, 2, 0).numpy()) for frame in frames]
    assert given == [numbers[index] for index in indices]
    if verify_backend(path, "decord"):
        with open_reader(path, "decord") as reader:
            frames = reader.read(range(len(reader)))
        assert [read_number(f.permute(1, 2, 0).numpy()) for f in frames] == list(numbers)
    assert reencode(path, tmp_path / "again.mp4", short_side=64).num_frames == len(numbers)
    assert shown_numbers(tmp_path / "again.mp4", read_number) == list(numbers)


@pytest.mark.parametrize(("first", "last"), [(50, 80), (75, 90)])
def test_a_lossless_cut_is_a_good_file(long_clip, tmp_path, read_number, first, last) -> None:
    path = cut_losslessly(long_clip, tmp_path / "cut.mp4", first, last)
    with av.open(str(path)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    expect_shown(path, range(first, last), read_number, tmp_path)
    assert not plan_seeks(str(path), 0, last - first).keyframes


@pytest.mark.parametrize(("first", "last"), [(40, 60), (0, 30), (12, 90)])
def test_an_edit_list_hides_the_start_and_the_end(
    long_clip, tmp_path, read_number, first, last
) -> None:
    path = tmp_path / "edited.mp4"
    path.write_bytes(long_clip.read_bytes())
    set_edit_list(path, first / 25, (last - first) / 25)
    expect_shown(path, range(first, last), read_number, tmp_path)


def test_an_edited_file_that_is_cut_is_found(long_clip, tmp_path) -> None:
    """Index in front, so that what is left can be opened; an edit list that hides the start."""
    fast, edited = tmp_path / "fast.mp4", tmp_path / "edited.mp4"
    with (
        av.open(str(long_clip)) as source,
        av.open(str(fast), "w", options={"movflags": "faststart"}) as output,
    ):
        copied = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                output.mux(packet)
    edited.write_bytes(fast.read_bytes())
    set_edit_list(edited, 40 / 25, 50 / 25)
    for path, count in ((fast, 90), (edited, 50)):
        whole = path.read_bytes()
        start = whole.index(b"mdat")
        assert probe(path).num_frames == count
        for share, reason in ((0.5, r"."), (0.7, r"."), (0.85, r"truncated|breaks")):
            path.write_bytes(whole[: int(start + share * (len(whole) - start))])
            with pytest.raises(DecodeError, match=reason):
                probe(path)
            assert missing_bytes(path) == len(whole) - path.stat().st_size


def write_still_moments(path: Path, times: list[int]) -> Path:
    """An AVI whose frame k is shown at tick `times[k]`; FFmpeg fills up with empty chunks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "yuv420p"
        stream.codec_context.gop_size = 12
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(frame_pattern(index, (64, 80)), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "times",
    [
        [k + 40 * (k >= 20) for k in range(40)],  # one still moment
        [4 * k for k in range(40)],  # a low rate in a container of a high one
    ],
)
def test_an_avi_with_empty_chunks_is_a_good_file(tmp_path, read_number, times) -> None:
    path = write_still_moments(tmp_path / "still.avi", times)
    chunks, filled = avi_chunks(path, 0)
    assert (chunks, filled) == (times[-1] + 1, 40)
    info = probe(path)
    assert (info.num_frames, info.header_frames) == (40, times[-1] + 1)
    assert shown_numbers(path, read_number) == list(range(40))
    if verify_backend(path, "decord"):
        with open_reader(path, "decord") as reader:
            assert len(reader) == 40

    whole = path.read_bytes()
    start, end = whole.index(b"movi"), whole.rindex(b"idx1")
    for share in (0.4, 0.6, 0.8):
        path.write_bytes(whole[: int(start + share * (end - start))])
        with pytest.raises(DecodeError, match=r"truncated|breaks"):
            probe(path)


def test_a_header_that_promises_what_was_never_stored_is_not_believed(tmp_path) -> None:
    path = write_still_moments(tmp_path / "liar.avi", list(range(40)))
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32  # dwLength of the stream's header
    assert int.from_bytes(data[place : place + 4], "little") == 40
    data[place : place + 4] = (80).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="truncated: the header promises 80 frames; 40"):
        probe(path)


PACKETS = {
    "h264.ts": "libx264",
    "mpeg2.ts": "mpeg2video",
    "h264.m2ts": "libx264",
    "mpeg1.mpg": "mpeg1video",
    "mpeg2.mpg": "mpeg2video",
    "mpeg2.vob": "mpeg2video",
    "wmv2.wmv": "wmv2",
    "flv1.flv": "flv",
    "vp8.ogv": "libvpx",
    "vp9.webm": "libvpx-vp9",
}


@pytest.mark.parametrize("name", PACKETS)
def test_formats_without_a_promised_count(tmp_path, write_clip, read_number, name) -> None:
    path = write_clip(tmp_path / name, num_frames=60, codec=PACKETS[name])
    assert missing_bytes(path) == 0
    assert shown_numbers(path, read_number) == list(range(60))
    whole = path.read_bytes()
    cuts = [len(whole) * k // 17 + 3 for k in range(8, 17)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(DecodeError):
            probe(path)


def write_gif(path: Path, num_frames: int = 30) -> Path:
    """As FFmpeg writes it: each frame with colours of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 80, "rgb8"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frame_pattern(index, (64, 80)), format="rgb24")
            frame = frame.reformat(format="rgb8")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_gif_that_is_cut_is_found(tmp_path) -> None:
    path = write_gif(tmp_path / "a.gif")
    whole = path.read_bytes()
    assert whole[-1:] == b";" and probe(path).num_frames == 30
    for cut in (1, 2, 10, 100, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:-cut])
        assert missing_bytes(path) > 0
        with pytest.raises(DecodeError, match=r"truncated: at least \d+ bytes|breaks after"):
            probe(path)
    # Every place where a block can be torn.
    for size in range(len(whole) - 1500, len(whole)):
        path.write_bytes(whole[:size])
        assert missing_bytes(path) > 0, size


def test_gifs_of_another_writer_are_whole(tmp_path) -> None:
    """Pillow's: one table of colours for all frames, comments, parts of frames."""
    pictures = [Image.fromarray(frame_pattern(k, (64, 80))).quantize(32) for k in range(12)]
    path = tmp_path / "a.gif"
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], comment=b"x" * 700, duration=40, loop=0
    )
    whole = path.read_bytes()
    assert missing_bytes(path) == 0 and probe(path).num_frames == 12
    for appended in (b"\0", b";", bytes(5000), b"text"):
        path.write_bytes(whole + appended)
        assert missing_bytes(path) == 0 and probe(path).num_frames == 12
    path.write_bytes(whole[:-1])
    assert missing_bytes(path) == 1


@pytest.mark.parametrize("name", ["flv1.flv", "h264.flv", "mpeg1.mpg", "mpeg2.mpg", "mpeg2.vob"])
def test_padding_at_the_end_is_no_cut(tmp_path, write_clip, name) -> None:
    codec = {**PACKETS, "h264.flv": "libx264"}[name]
    path = write_clip(tmp_path / name, num_frames=20, codec=codec)
    whole = path.read_bytes()
    # 'h' and 'I' share their lower bits with what FLV calls audio and video.
    for filling in (b"\0", b"\xff", b"h", b"I"):
        for count in (1, 2, 3, 4, 5, 13, 14, 100, 2048):
            path.write_bytes(whole + filling * count)
            assert missing_bytes(path) == 0, (filling, count)
    path.write_bytes(whole + bytes(2))
    assert probe(path).num_frames == 20


def test_bytes_that_somebody_appended_are_no_cut(tmp_path, write_clip) -> None:
    for name, codec in (PACKETS | {"h264.mp4": "libx264", "mpeg4.avi": "mpeg4"}).items():
        path = write_clip(tmp_path / name, num_frames=20, codec=codec)
        path.write_bytes(path.read_bytes() + bytes(77))
        assert missing_bytes(path) == 0, name


def test_framing_that_is_damaged_tells_nothing_and_ends(tmp_path, write_clip) -> None:
    """Whatever stands where a length should, an answer comes, and it is not below 0."""
    names = PACKETS | {"h264.mp4": "libx264", "mpeg4.avi": "mpeg4"}
    for name, codec in names.items():
        path = write_clip(tmp_path / name, num_frames=5, codec=codec)
        whole = path.read_bytes()
        places = range(0, min(200, len(whole)), 13)
        for place, value in itertools.product(places, (0, 1, 0x47, 0xFF)):
            path.write_bytes(whole[:place] + bytes([value]) * 4 + whole[place + 4 :])
            assert missing_bytes(path) >= 0
            assert min(avi_chunks(path, 0)) >= 0


def test_the_trimmed_case(shared_data) -> None:
    path = shared_data.parent / "cases" / "trim_copy.mp4"
    if not path.exists():
        pytest.skip("no shared/cases beside the checkout")
    assert (probe(path).num_frames, probe(path).header_frames) == (62, 182)


def test_prepare_says_of_which_files_nothing_tells_the_length(tmp_path, write_clip) -> None:
    write_clip(tmp_path / "set" / "train" / "a" / "1.ts", num_frames=8)
    write_clip(tmp_path / "set" / "train" / "a" / "2.mp4", num_frames=8)
    done = prepare(
        parse_folder(tmp_path / "set"),
        tmp_path / "set",
        tmp_path / "out",
        num_workers=0,
        progress=False,
    )
    assert "1 file of a kind that does not say how long it is (.ts)" in summary(done)
