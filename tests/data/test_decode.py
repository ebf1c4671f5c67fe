"""Every backend gives the reference's frames or says why not: written, broken and real files.

The reference here is written out naively: PyAV, from the start, every frame to RGB by itself.
"""

from __future__ import annotations

import csv
import itertools
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ndavid.data.decode import BACKENDS, open_reader, probe, verify_backend
from ndavid.data.decoding import pyav as pyav_backend
from ndavid.data.decoding.containers import missing_bytes
from ndavid.data.decoding.decord import DecordReader
from ndavid.data.decoding.pyav import PyAvReader
from ndavid.data.decoding.pyav_versions import open_video
from ndavid.data.decoding.seeking import plan_seeks
from ndavid.errors import ConfigError, DecodeError


def naive_frames(path: Path) -> np.ndarray:
    """All frames (T, H, W, 3), with nothing of ours."""
    with open_video(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def torchcodec_loads() -> bool:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        return False
    return VideoDecoder is not None


def numbers(frames: torch.Tensor, read_number) -> list[int]:
    return [read_number(frame.permute(1, 2, 0).numpy()) for frame in frames]


CODECS = {
    "h264.mp4": {"codec": "libx264"},
    "h264-b-frames.mp4": {"codec": "libx264", "options": {"x264-params": "bframes=3"}},
    "h264-open-gop.mp4": {
        "codec": "libx264",
        "options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0"},
    },
    "h264.mkv": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "ten-bit.mp4": {"codec": "libx264", "pixel_format": "yuv420p10le"},
    "odd-rate.mp4": {"codec": "libx264", "fps": 17},
}
NUM_FRAMES = 75


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_clip) -> dict[str, Path]:
    """One clip a codec, and the naive decoding of each must count up from 0."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        name: write_clip(folder / name, num_frames=NUM_FRAMES, **how)
        for name, how in CODECS.items()
    }


# --- the reference backend ----------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_pyav_equals_naive_decoding(clips, name, read_number) -> None:
    expected = naive_frames(clips[name])
    with open_reader(clips[name]) as reader:
        assert len(reader) == len(expected) == NUM_FRAMES
        assert reader.size == expected.shape[1:3] == (64, 80)
        frames = reader.read(range(NUM_FRAMES))
    assert frames.dtype == torch.uint8 and frames.shape == (NUM_FRAMES, 3, 64, 80)
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected)
    assert numbers(frames, read_number) == list(range(NUM_FRAMES))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(CODECS)),
    reads=st.lists(
        st.lists(st.integers(0, NUM_FRAMES - 1), min_size=1, max_size=6), min_size=1, max_size=3
    ),
    counted=st.booleans(),
)
def test_any_indices_in_any_order_give_those_frames(
    clips, read_number, name, reads, counted
) -> None:
    # With the count known, the reader may seek; several reads in a row move it back and forth.
    with open_reader(clips[name], num_frames=NUM_FRAMES if counted else None) as reader:
        for indices in reads:
            assert numbers(reader.read(indices), read_number) == indices


def test_indices_may_be_a_tensor(clips, read_number) -> None:
    with open_reader(clips["h264.mp4"]) as reader:
        assert numbers(reader.read(torch.tensor([9, 2])), read_number) == [9, 2]


def test_seeking_skips_decoding_and_keeps_count(tmp_path, write_clip, monkeypatch) -> None:
    path = write_clip(tmp_path / "long.mp4", num_frames=240, gop=12)
    plan = plan_seeks(str(path), 0, 240)
    places = [k.index for k in plan.keyframes]
    assert places[0] == 0 and max(b - a for a, b in itertools.pairwise(places)) <= 12
    expected = naive_frames(path)

    steps = 0
    step = PyAvReader._step

    def counting_step(self) -> None:
        nonlocal steps
        steps += 1
        step(self)

    monkeypatch.setattr(PyAvReader, "_step", counting_step)
    with open_reader(path, num_frames=240) as reader:
        frames = reader.read([235, 239])
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[[235, 239]])
    assert steps < 30


def test_no_seeking_where_the_count_is_unproven(clips) -> None:
    # A wrong count, another container, another codec, pictures that reach over the keyframe.
    assert plan_seeks(str(clips["h264.mp4"]), 0, NUM_FRAMES).keyframes
    assert not plan_seeks(str(clips["h264.mp4"]), 0, NUM_FRAMES - 1).keyframes
    for name in ("h264.mkv", "mpeg4.avi", "hevc.mp4", "vp9.webm"):
        assert not plan_seeks(str(clips[name]), 0, NUM_FRAMES).keyframes, name
    open_gop = plan_seeks(str(clips["h264-open-gop.mp4"]), 0, NUM_FRAMES)
    assert [k.index for k in open_gop.keyframes] == [0]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, write_clip, rotation) -> None:
    upright = write_clip(tmp_path / "upright.mp4", num_frames=3)
    rotated = write_clip(tmp_path / "rotated.mp4", num_frames=3, rotation=rotation)
    turns = rotation // 90
    expected = np.rot90(naive_frames(upright), turns, axes=(1, 2))
    info = probe(rotated)
    assert info.rotation == rotation
    assert (info.height, info.width) == expected.shape[1:3]
    with open_reader(rotated) as reader:
        assert reader.size == expected.shape[1:3]
        given_frames = reader.read([0, 1, 2]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(given_frames, expected)


def test_rotation_agrees_with_ffmpeg(tmp_path, write_clip) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg program here")
    path = write_clip(tmp_path / "rotated.mp4", num_frames=1, rotation=90)
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    shown = np.frombuffer(raw, np.uint8).reshape(80, 64, 3).astype(int)
    with open_reader(path) as reader:
        ours = reader.read([0])[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - shown).mean() < 2


def test_the_first_of_two_video_streams_is_read(tmp_path) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        # The second is larger, which is what FFmpeg calls the best one.
        sizes = [(32, 48), (64, 96)]
        streams = [container.add_stream("libx264", rate=25) for _ in sizes]
        for stream, (height, width) in zip(streams, sizes, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for k in range(6):
            for stream, (height, width) in zip(streams, sizes, strict=True):
                picture = np.full((height, width, 3), 30 * k, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    info = probe(path)
    assert (info.height, info.width, info.num_video_streams) == (32, 48, 2)
    with pytest.raises(DecodeError) as refusal:
        open_reader(path, "decord")
    assert refusal.value.backend == "decord"


def test_probe_describes_the_clip(clips) -> None:
    info = probe(clips["odd-rate.mp4"])
    assert info.num_frames == info.header_frames == NUM_FRAMES
    assert info.fps == pytest.approx(17)
    assert (info.codec, info.pixel_format, info.rotation) == ("h264", "yuv420p", 0)
    assert probe(clips["ten-bit.mp4"]).pixel_format == "yuv420p10le"


# --- what cannot be read --------------------------------------------------------------------------


def bad_files(folder: Path, write_clip) -> dict[str, tuple[Path, str]]:
    """name -> (file, a word of the reason)."""
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    # Seeded: now and then FFmpeg takes random bytes for a video.
    noise = torch.randint(256, (50_000,), generator=torch.Generator().manual_seed(0))
    (folder / "noise.avi").write_bytes(bytes(noise.tolist()))
    (folder / "subtitles.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhi\n")
    whole = write_clip(folder / "whole.mp4", num_frames=60).read_bytes()
    (folder / "no-index.mp4").write_bytes(whole[: len(whole) // 2])
    for name, how in {"cut.avi": "mpeg4", "cut.mkv": "libx264", "cut.webm": "libvpx-vp9"}.items():
        whole = write_clip(folder / f"whole-{name}", num_frames=60, codec=how).read_bytes()
        (folder / name).write_bytes(whole[: int(0.6 * len(whole))])
    reasons = {
        "absent.mp4": "no such file",
        "zero.mp4": "0 bytes",
        "text.mp4": "not a video",
        "noise.avi": "not a video",
        "subtitles.srt": "no video stream",
        "no-index.mp4": "not a video",
        "cut.avi": "truncated",
        "cut.mkv": "truncated",
        "cut.webm": "truncated",
    }
    return {name: (folder / name, reason) for name, reason in reasons.items()}


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_bad_files_say_what_is_wrong_with_them(tmp_path, write_clip, backend) -> None:
    for name, (path, reason) in bad_files(tmp_path, write_clip).items():
        with pytest.raises(DecodeError) as caught, open_reader(path, backend) as reader:
            len(reader)
        assert caught.value.path == str(path), name
        assert reason in caught.value.reason, (name, caught.value.reason)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        with pytest.raises(DecodeError):
            probe(path)


def test_reading_past_the_end_names_the_frame(clips) -> None:
    with open_reader(clips["h264.mp4"]) as reader:
        with pytest.raises(DecodeError, match=r"ends after 75 frames; frame 80 was asked for"):
            reader.read([3, 80])
        assert reader.read([5]).shape[0] == 1  # what is there can still be read


def test_negative_and_missing_indices_are_the_callers_mistake(clips) -> None:
    with open_reader(clips["h264.mp4"]) as reader:
        with pytest.raises(IndexError):
            reader.read([-1])
        with pytest.raises(ValueError, match="no frame indices"):
            reader.read([])


def test_frames_before_a_break_can_be_read(shared_data) -> None:
    path = shared_data / "real_clips" / "corrupted.mp4"
    with open_reader(path) as reader:
        assert reader.read([0, 27]).shape[0] == 2
        with pytest.raises(DecodeError, match="breaks after 28 frames"):
            reader.read([28])
        with pytest.raises(DecodeError, match="breaks after 28 frames"):
            len(reader)


def test_unknown_backend(clips) -> None:
    with pytest.raises(ConfigError, match="choose from pyav, decord, torchcodec, frames"):
        open_reader(clips["h264.mp4"], "opencv")


def test_decode_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "pyav", "broken")))
    assert (error.path, error.backend, error.reason) == ("a.mp4", "pyav", "broken")


# --- the other backends ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("name", CODECS)
def test_other_backends_agree_or_refuse(clips, name, backend, read_number) -> None:
    if backend == "torchcodec" and not torchcodec_loads():
        pytest.skip("torchcodec does not load here")
    expected = naive_frames(clips[name]).astype(int)
    if not verify_backend(clips[name], backend):
        with pytest.raises(DecodeError) as refusal:
            open_reader(clips[name], backend)
        assert refusal.value.backend == backend
        return
    reader = open_reader(clips[name], backend)
    indices = [70, 3, 3, 41, 0, 74]
    frames = reader.read(indices).permute(0, 2, 3, 1).numpy()
    assert np.abs(frames - expected[indices]).max() <= 4
    assert len(reader) == NUM_FRAMES


def test_plain_files_are_not_refused(clips) -> None:
    # Refusing everything would pass the test above.
    for name in ("h264.mp4", "h264.mkv"):
        assert verify_backend(clips[name], "decord"), name


def test_a_backend_that_errs_is_caught(tmp_path, write_clip, monkeypatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", num_frames=40)
    read = DecordReader.read
    monkeypatch.setattr(
        DecordReader, "read", lambda self, indices: read(self, [max(0, i - 1) for i in indices])
    )
    assert not verify_backend(path, "decord")


def test_a_backend_that_errs_only_on_jumps_is_caught(tmp_path, write_clip, monkeypatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", num_frames=40)
    read = DecordReader.read

    def slip(self, indices):
        wanted = list(indices)
        jumps = any(b - a > 1 for a, b in itertools.pairwise(wanted))
        return read(self, [max(0, i - 1) for i in wanted] if jumps else wanted)

    monkeypatch.setattr(DecordReader, "read", slip)
    assert not verify_backend(path, "decord")


def test_what_the_manifest_knows_is_believed(clips, monkeypatch) -> None:
    def unexpected(*_: object) -> str:
        raise AssertionError("verified again")

    monkeypatch.setattr("ndavid.data.decode.disagreement", unexpected)
    with open_reader(clips["h264.mp4"], "decord", verified=True) as reader:
        assert len(reader) == NUM_FRAMES
    with pytest.raises(DecodeError, match="misread"):
        open_reader(clips["h264.mp4"], "decord", verified=False)


def test_torchcodec_that_does_not_load_says_what_to_install(clips, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(DecodeError, match=r"\.\[torchcodec\].*FFmpeg.*apt-get"):
        open_reader(clips["h264.mp4"], "torchcodec", verified=True)


def test_folder_of_images(tmp_path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(12):
        Image.new("RGB", (20, 10), (20 * k, 0, 0)).save(folder / f"img_{k}.png")
    (folder / "notes.txt").write_text("not a frame")
    with open_reader(folder, "frames") as reader:
        # Natural order: img_10 comes after img_9, not after img_1.
        frames = reader.read([11, 10, 2, 2])
        assert (len(reader), reader.size) == (12, (10, 20))
        assert frames[:, 0, 0, 0].tolist() == [220, 200, 40, 40]
        with pytest.raises(DecodeError, match="ends after 12 frames"):
            reader.read([12])
    info = probe(folder)
    assert (info.num_frames, info.height, info.width, info.fps) == (12, 10, 20, 0.0)


def test_bad_folders_of_images(tmp_path, clips) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, reason in {
        tmp_path / "absent": "no such folder",
        empty: "no image",
        clips["h264.mp4"]: "is no folder",
    }.items():
        with pytest.raises(DecodeError, match=reason):
            open_reader(path, "frames")
    Image.new("RGB", (20, 10)).save(empty / "1.png")
    Image.new("RGB", (10, 10)).save(empty / "2.png")
    (empty / "3.png").write_bytes(b"no picture")
    with open_reader(empty, "frames") as reader:
        with pytest.raises(DecodeError, match=r"2\.png differs in size"):
            reader.read([0, 1])
        with pytest.raises(DecodeError, match=r"3\.png"):
            reader.read([2])


def test_a_video_is_not_opened_as_a_folder_nor_the_reverse(tmp_path) -> None:
    with pytest.raises(DecodeError, match="is a folder"):
        open_reader(tmp_path, "pyav")


# --- real files -----------------------------------------------------------------------------------


def manifest_rows(shared_data: Path) -> list[dict[str, str]]:
    with open(shared_data / "real_clips" / "manifest.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_real_clips_are_as_their_manifest_says(shared_data) -> None:
    for row in manifest_rows(shared_data):
        path = shared_data / "real_clips" / row["file"]
        if row["decode_error"] or row["opens"].startswith("no"):
            with pytest.raises(DecodeError) as caught:
                probe(path)
            assert caught.value.path == str(path) and caught.value.backend == "pyav"
            continue
        info = probe(path)
        assert info.num_frames == int(row["decoded_frames"]), path.name
        assert (info.width, info.height) == (int(row["width"]), int(row["height"])), path.name
        assert info.header_frames == int(row["header_frames"]), path.name
        assert info.fps == pytest.approx(float(row["fps"]), abs=0.01), path.name
        assert (info.codec, info.pixel_format) == (row["video_codec"], row["pix_fmt"]), path.name
        assert info.num_video_streams == int(row["video_streams"]), path.name


READ_EVERYTHING = """
import sys
from pathlib import Path
import torch
from ndavid.data.decode import open_reader
from ndavid.errors import DecodeError
places, found = torch.load(sys.argv[1]), {}
for path in map(Path, places):
    for backend in ("pyav", "decord", "torchcodec", "frames"):
        try:
            with open_reader(path, backend) as reader:
                len(reader)
                found[str(path), backend] = reader.read(places[str(path)])
        except DecodeError as error:
            found[str(path), backend] = str(error)
torch.save(found, sys.argv[2])
"""


def naive_choice(path: Path, indices: list[int]) -> np.ndarray:
    """The frames at `indices` (n, H, W, 3), with nothing of ours."""
    pictures = {}
    with open_video(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in indices:
                pictures[index] = frame.to_ndarray(format="rgb24")
    return np.stack([pictures[index] for index in indices]).astype(np.int16)


@pytest.mark.slow
def test_real_and_broken_files_through_all_backends(shared_data, tmp_path, write_clip) -> None:
    """Right frames or a DecodeError, no process dies, and nothing is printed, not even by C."""
    generator = torch.Generator().manual_seed(0)
    whole, broken = {}, [path for path, _ in bad_files(tmp_path, write_clip).values()]
    for row in manifest_rows(shared_data):
        path = shared_data / "real_clips" / row["file"]
        if row["decode_error"] or not row["decoded_frames"]:
            broken.append(path)
        else:
            count = int(row["decoded_frames"])
            whole[path] = torch.randint(count, (9,), generator=generator).tolist()
    places = {str(path): indices for path, indices in whole.items()}
    torch.save(places | {str(path): [0, 1] for path in broken}, tmp_path / "places.pt")
    done = subprocess.run(
        [sys.executable, "-c", READ_EVERYTHING, tmp_path / "places.pt", tmp_path / "found.pt"],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = torch.load(tmp_path / "found.pt")

    for path, backend in itertools.product(broken, BACKENDS):
        assert isinstance(found[str(path), backend], str), (path.name, backend)
        assert str(path) in found[str(path), backend]
    agreed = dict.fromkeys(BACKENDS, 0)
    for path, indices in whole.items():
        expected = naive_choice(path, indices)
        for backend in BACKENDS:
            frames = found[str(path), backend]
            if isinstance(frames, str):
                continue
            difference = np.abs(frames.permute(0, 2, 3, 1).numpy() - expected).max()
            assert difference <= (0 if backend == "pyav" else 4), (path.name, backend)
            agreed[backend] += 1
    assert agreed["pyav"] == len(whole) == 18 and agreed["frames"] == 0
    assert agreed["decord"] >= 7  # refusing everything would be no reader


def test_matroska_without_a_stated_length_is_not_called_truncated(shared_data) -> None:
    assert missing_bytes(shared_data / "real_clips" / "no_duration.webm") == 0


def test_backends_are_named_in_one_place() -> None:
    assert set(BACKENDS) == {"pyav", "decord", "torchcodec", "frames"}
    assert pyav_backend.BACKEND == "pyav"
