"""Written files hold the frames given, in order, whatever the source's container or rotation."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ndavid.data.decode import open_reader, probe
from ndavid.data.encode import EncodeSettings, reencode, scaled_size, write_video
from ndavid.errors import DecodeError


def numbered_frames(num_frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    """Smooth frames that tell their index by brightness and their way up by a gradient."""
    rows = torch.linspace(0, 60, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 30, width)[None, :].expand(height, width)
    levels = torch.arange(num_frames)[:, None, None] * (120 / max(1, num_frames))
    grey = (20 + rows + columns + levels).to(torch.uint8)
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


def read_all(path: Path) -> torch.Tensor:
    with open_reader(path) as reader:
        return reader.read(range(len(reader)))


def write_avi_with_b_frames(path: Path, frames: torch.Tensor) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.codec_context.gop_size = 30
        stream.bit_rate = 4_000_000
        for index, picture in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_written_frames_come_back_in_order(tmp_path: Path):
    frames = numbered_frames(40)
    written = write_video(tmp_path / "clip.mp4", frames, fps=25)
    assert (written.num_frames, written.height, written.width) == (40, 64, 96)
    back = read_all(tmp_path / "clip.mp4")
    assert back.shape == frames.shape
    # One frame's step in brightness is 3 levels: an error under 1.5 names the right frame.
    assert (back.float() - frames.float()).mean(dim=(1, 2, 3)).abs().max() < 1.5


def test_keyframes_are_at_most_a_gop_apart_and_timestamps_rise_by_one_frame(tmp_path: Path):
    write_video(tmp_path / "clip.mp4", numbered_frames(40), settings=EncodeSettings(gop=8))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = [frame.pts * frame.time_base * stream.average_rate for frame in frames]
        keys = [index for index, frame in enumerate(frames) if frame.key_frame]
    assert times == list(range(40))
    assert keys[0] == 0 and np.diff(keys).max() <= 8


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), "no frames"),
        (torch.zeros(4, 3, 33, 32, dtype=torch.uint8), "even size"),
        (torch.zeros(4, 3, 32, 32), "uint8"),
        (torch.zeros(3, 4, 32, 32, dtype=torch.uint8), r"\(T, 3, H, W\)"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path: Path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_reencoding_keeps_every_frame_of_an_avi_with_b_frames_in_order(tmp_path: Path):
    source = tmp_path / "source.avi"
    write_avi_with_b_frames(source, numbered_frames(37, 120, 160))
    result = reencode(source, tmp_path / "small" / "clip.mp4", short_side=48)
    assert (result.num_frames, result.height, result.width) == (37, 48, 64)
    small = read_all(tmp_path / "small" / "clip.mp4")
    brightness = small.float().mean(dim=(1, 2, 3))
    assert (brightness.diff() > 1).all()
    reference = torch.nn.functional.interpolate(read_all(source).float(), (48, 64), mode="area")
    assert (small.float() - reference).abs().mean() < 3
    assert probe(tmp_path / "small" / "clip.mp4").num_frames == 37


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_reencoding_turns_the_picture_as_the_reader_does(tmp_path: Path, degrees: int):
    source = tmp_path / "turned.mp4"
    write_video(source, numbered_frames(6, 64, 96))
    _set_rotation(source, degrees)
    reencode(source, tmp_path / "upright.mp4", short_side=64)
    expected, upright = read_all(source), read_all(tmp_path / "upright.mp4")
    assert upright.shape == expected.shape
    assert (upright.float() - expected.float()).abs().mean() < 3
    # The check can fail: the picture unturned is not the same.
    stored = numbered_frames(6, 64, 96)
    assert stored.shape != upright.shape or (stored.float() - upright.float()).abs().mean() > 10


def _set_rotation(path: Path, degrees: int) -> None:
    """Write the rotation into the mp4's track matrix (ISO 14496-12, 8.3.2), in place."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in matrix)
    path.write_bytes(data)


@pytest.mark.parametrize("content", [b"", b"this is not a video" * 100])
def test_a_source_that_is_no_video_names_the_file_and_leaves_nothing(tmp_path: Path, content):
    source = tmp_path / "broken.avi"
    source.write_bytes(content)
    with pytest.raises(DecodeError, match=r"broken\.avi"):
        reencode(source, tmp_path / "out" / "clip.mp4", short_side=48)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_missing_source_is_a_decode_error(tmp_path: Path):
    with pytest.raises(DecodeError, match=r"gone\.avi"):
        reencode(tmp_path / "gone.avi", tmp_path / "clip.mp4", short_side=48)


def test_a_failed_reencode_leaves_an_earlier_result_whole(tmp_path: Path):
    write_video(tmp_path / "clip.mp4", numbered_frames(12))
    before = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "bad.mp4").write_bytes(before[: len(before) // 2])
    with pytest.raises(DecodeError):
        reencode(tmp_path / "bad.mp4", tmp_path / "clip.mp4", short_side=32)
    assert (tmp_path / "clip.mp4").read_bytes() == before


@given(height=st.integers(16, 2160), width=st.integers(16, 3840), short_side=st.integers(16, 512))
def test_scaled_sizes_are_even_keep_the_aspect_and_never_grow(height, width, short_side):
    new_height, new_width = scaled_size(height, width, short_side)
    assert new_height % 2 == 0 and new_width % 2 == 0
    scale = min(1.0, short_side / min(height, width))
    assert abs(new_height - height * scale) <= 1 and abs(new_width - width * scale) <= 1


def test_real_files_keep_their_decoded_count(shared_data: Path, tmp_path: Path):
    counts = {"v_Archery_g07_c04.avi": 51, "v_HorseRace_g20_c01.avi": 365, "realshort.mp4": 36}
    for name, expected in counts.items():
        source = shared_data / "real_clips" / name
        result = reencode(source, tmp_path / f"{name}.mp4", short_side=64)
        assert result.num_frames == expected, name
        assert probe(tmp_path / f"{name}.mp4").num_frames == expected, name


def test_a_file_that_breaks_halfway_is_not_kept(shared_data: Path, tmp_path: Path):
    with pytest.raises(DecodeError, match=r"corrupted\.mp4"):
        reencode(shared_data / "real_clips" / "corrupted.mp4", tmp_path / "clip.mp4", short_side=64)
    assert list(tmp_path.iterdir()) == []
