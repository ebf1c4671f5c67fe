"""Whatever a decoding library raises on a file is one DecodeError: file, backend, reason."""

from __future__ import annotations

import csv
import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from mp4_files import forget_codec

from ndavid.data.decode import open_reader, probe, verify_backend
from ndavid.data.encode import reencode
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.manifest import ClipRecord
from ndavid.data.preparation import PrepareSettings, prepare
from ndavid.data.sampling import DenseClip
from ndavid.data.transforms import AugmentConfig, eval_transform, train_transform
from ndavid.data.verification import verify
from ndavid.data.video import ClipDataset, ViewsDataset
from ndavid.errors import DataError, DecodeError
from ndavid.evaluation.classify import per_item


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clip) -> Path:
    """train/ and test/ with one class each side; one file of three has an unknown codec."""
    root = tmp_path_factory.mktemp("videos")
    for side in ("train", "test"):
        for k in range(3):
            write_clip(root / side / "a" / f"{side}{k}.mp4", num_frames=12)
        forget_codec(root / side / "a" / f"{side}1.mp4")
    return root


def test_a_stream_without_a_codec_is_named(folder) -> None:
    path = folder / "train" / "a" / "train1.mp4"
    for read in (probe, open_reader, lambda p: reencode(p, folder / "out.mp4", short_side=32)):
        with pytest.raises(DecodeError, match="no codec that FFmpeg knows") as caught:
            read(path)
        assert (caught.value.path, caught.value.backend) == (str(path), "pyav")
    for backend in ("decord", "torchcodec"):
        with pytest.raises(DecodeError):
            verify_backend(path, backend)
    assert not (folder / "out.mp4").exists()


@pytest.mark.parametrize("settings", [PrepareSettings(), PrepareSettings(short_side=32)])
def test_prepare_calls_it_one_bad_file_among_many(folder, tmp_path, settings) -> None:
    done = prepare(
        parse_folder(folder), folder, tmp_path, settings=settings, num_workers=0, progress=False
    )
    assert len(done.manifest.records) == 4
    assert sorted(bad.path for bad in done.bad) == ["test/a/test1.mp4", "train/a/train1.mp4"]
    with (tmp_path / "bad_files.csv").open(newline="") as stream:
        assert all("codec" in row["reason"] for row in csv.DictReader(stream))


def records(folder: Path, side: str) -> list[ClipRecord]:
    return [
        ClipRecord(f"{side}/a/{side}{k}.mp4", 0, "", 12, 25.0, 80, 64, (side,)) for k in range(3)
    ]


def test_training_takes_the_next_clip_in_its_place(folder) -> None:
    transform = train_transform(AugmentConfig(preset="none", size=32))
    clips = ClipDataset(records(folder, "train"), folder, DenseClip(4), transform, on_error="next")
    sample = clips[1, 5]
    assert sample["index"] == 2 and "codec" in sample["bad"][0][1]


def test_evaluation_skips_it_or_says_so(folder) -> None:
    views = ViewsDataset(
        records(folder, "test"), folder, DenseClip(4), 1, eval_transform(32), on_error="skip"
    )

    def score(on_bad: str):
        return per_item(
            lambda clips: clips.float().mean((1, 2, 3, 4)).unsqueeze(1),
            views,
            device=torch.device("cpu"),
            on_bad=on_bad,
        )

    found = score("skip")
    assert found.indices.tolist() == [0, 2] and "codec" in found.bad[0][1]
    with pytest.raises(DataError, match=r"test1\.mp4.*codec"):
        score("raise")


# --- anything at all ------------------------------------------------------------------------------

RAISED = (AttributeError, ValueError, OverflowError, ZeroDivisionError, KeyError, TypeError)


@pytest.fixture
def clip(tmp_path, write_clip) -> Path:
    return write_clip(tmp_path / "clip.mp4", num_frames=12)


def raising(error: BaseException) -> Callable[..., object]:
    def function(*_: object, **__: object) -> object:
        raise error

    return function


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_pyav_raises_on_the_way(clip, monkeypatch, kind) -> None:
    with open_reader(clip) as reader:
        monkeypatch.setattr(reader, "_frames", map(raising(kind("odd")), [1]))
        with pytest.raises(DecodeError, match=r"clip\.mp4: cannot decode with pyav: breaks .*odd"):
            reader.read([3])
        assert reader.read([2]).shape[0] == 1  # it starts over


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_whatever_another_library_raises(clip, monkeypatch, backend, kind) -> None:
    fails = raising(kind("odd" if kind is KeyError else "odd\nand more"))
    opening = types.SimpleNamespace(VideoDecoder=fails, VideoReader=fails)
    opening.DECORDError = RuntimeError
    opening.cpu = lambda _: None
    opening.logging = types.SimpleNamespace(set_level=lambda _: None, QUIET=0)
    monkeypatch.setitem(sys.modules, "decord", opening)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", opening)
    with pytest.raises(DecodeError, match="odd") as caught:
        open_reader(clip, backend, verified=True)
    assert (caught.value.path, caught.value.backend) == (str(clip), backend)
    assert "more" not in caught.value.reason
    assert not verify_backend(clip, backend)


def test_whatever_pillow_raises(tmp_path, monkeypatch) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    monkeypatch.setattr(Image, "open", raising(Image.DecompressionBombError("too large")))
    with pytest.raises(DecodeError, match=r"1\.png.*too large"):
        open_reader(tmp_path, "frames")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_what_is_no_fault_of_the_file_passes(clip, monkeypatch, error) -> None:
    with open_reader(clip) as reader:
        monkeypatch.setattr(reader, "_frames", map(raising(error), [1]))
        with pytest.raises(type(error)):
            reader.read([3])


def test_memory_that_only_the_file_asks_for_is_its_fault(clip, monkeypatch) -> None:
    with open_reader(clip) as reader:
        error = av.error.MemoryError(12, "Cannot allocate memory")
        monkeypatch.setattr(reader, "_frames", map(raising(error), [1]))
        with pytest.raises(DecodeError, match="allocate"):
            reader.read([3])


def test_what_the_encoder_refuses_is_a_bad_file(clip, tmp_path, monkeypatch) -> None:
    error = av.error.ExternalError(542398533, "Generic error in an external library")
    monkeypatch.setattr("ndavid.data.encode._encode", raising(error))
    with pytest.raises(DataError, match=r"clip\.mp4: its frames cannot be encoded.*external"):
        reencode(clip, tmp_path / "small.mp4", short_side=32)
    # A full disk is no fault of the file's: `prepare` stops at it.
    full = av.error.OSError(28, "No space left on device")
    monkeypatch.setattr("ndavid.data.encode._encode", raising(full))
    with pytest.raises(OSError, match="No space"):
        reencode(clip, tmp_path / "small.mp4", short_side=32)


@pytest.mark.parametrize("rate", [90_000, 0])
def test_an_absurd_frame_rate_is_replaced(clip, tmp_path, monkeypatch, rate) -> None:
    monkeypatch.setattr("ndavid.data.decoding.pyav._fps", lambda _: float(rate))
    assert reencode(clip, tmp_path / "small.mp4", short_side=32).fps == 25


# --- frames of several sizes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def changing(tmp_path_factory, write_clip) -> Path:
    """A set of one sound clip and one whose frames grow from 48 x 64 to 64 x 96 after the tenth."""
    root = tmp_path_factory.mktemp("changing")
    parts = [
        write_clip(root / "parts" / f"{k}.ts", num_frames=10, size=size).read_bytes()
        for k, size in enumerate([(48, 64), (64, 96)])
    ]
    (root / "set" / "train" / "a").mkdir(parents=True)
    (root / "set" / "train" / "a" / "grows.ts").write_bytes(b"".join(parts))
    write_clip(root / "set" / "train" / "a" / "sound.mp4", num_frames=12)
    return root / "set"


GROWS = "the frame size changes from 64x48 to 96x64 at frame 10"


def test_a_changing_size_is_bad_for_prepare_and_verify(changing, tmp_path) -> None:
    annotations = parse_folder(changing)
    done = prepare(annotations, changing, tmp_path, num_workers=0, progress=False)
    assert [(bad.path, bad.reason) for bad in done.bad] == [("train/a/grows.ts", GROWS)]

    # A manifest of before, which took it for sound.
    (sound,) = done.manifest.records
    old = dataclasses.replace(sound, path="train/a/grows.ts", num_frames=20, width=64, height=48)
    dataclasses.replace(done.manifest, records=(sound, old)).write(tmp_path)
    found = verify(tmp_path, num_workers=0, progress=False).errors
    assert any(GROWS in error for error in found)


def test_a_changing_size_is_a_decode_error_where_it_is_read(changing, tmp_path) -> None:
    path = changing / "train" / "a" / "grows.ts"
    with open_reader(path, num_frames=20) as reader:
        assert reader.read([0, 9]).shape == (2, 3, 48, 64)
        with pytest.raises(DecodeError, match=GROWS):
            reader.read([9, 10])
    for read in (probe, lambda p: reencode(p, tmp_path / "x.mp4", short_side=32)):
        with pytest.raises(DecodeError, match=GROWS):
            read(path)
    for backend in ("decord", "torchcodec"):
        with pytest.raises(DecodeError, match=GROWS):
            open_reader(path, backend)
