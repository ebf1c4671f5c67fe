"""Turned and mirrored videos are read, described and re-encoded as players show them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from mp4_files import DISPLAY_MATRICES, set_display_matrix

from ndavid.data.decode import open_reader, probe, verify_backend
from ndavid.data.decoding.orientation import Orientation, from_matrix
from ndavid.data.encode import reencode, write_video

SHOWN = sorted(DISPLAY_MATRICES)


def stored_frames() -> np.ndarray:
    """Two frames (2, 32, 48, 3), each corner of which has a brightness of its own."""
    frames = np.full((2, 32, 48, 3), 30, np.uint8)
    frames[:, :16, :24], frames[:, :16, 24:], frames[:, 16:, :24] = 90, 150, 210
    return frames


def naively_shown(frames: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Puts every stored pixel (p, q) where the matrix says, one after another."""
    a, b, c, d = matrix
    _, height, width, _ = frames.shape
    places = {(p, q): (a * p + c * q, b * p + d * q) for p in range(width) for q in range(height)}
    left = min(x for x, _ in places.values())
    top = min(y for _, y in places.values())
    shape = (height, width) if a else (width, height)
    shown = np.zeros((len(frames), *shape, 3), np.uint8)
    for (p, q), (x, y) in places.items():
        shown[:, y - top, x - left] = frames[:, q, p]
    return shown


@pytest.fixture(scope="module")
def upright(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("upright") / "clip.mp4"
    frames = np.ascontiguousarray(stored_frames().transpose(0, 3, 1, 2))
    write_video(path, torch.from_numpy(frames))
    return path


def read_all(path: Path) -> np.ndarray:
    with open_reader(path) as reader:
        frames = reader.read(range(len(reader))).permute(0, 2, 3, 1).numpy()
        assert reader.size == frames.shape[1:3]
    return frames


@pytest.mark.parametrize("name", SHOWN)
def test_all_eight_orientations(upright, tmp_path, name) -> None:
    matrix = DISPLAY_MATRICES[name]
    path = set_display_matrix(Path(shutil.copy(upright, tmp_path / "turned.mp4")), matrix)
    expected = naively_shown(read_all(upright), matrix)
    assert np.array_equal(read_all(path), expected)

    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]
    assert info.mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)
    mirrored = read_all(upright)[:, :, ::-1] if info.mirrored else read_all(upright)
    assert np.array_equal(np.rot90(mirrored, info.rotation // 90, axes=(1, 2)), expected)

    reencode(path, tmp_path / "small.mp4", short_side=32)
    again = probe(tmp_path / "small.mp4")
    assert (again.rotation, again.mirrored) == (0, False)
    assert np.abs(read_all(tmp_path / "small.mp4").astype(int) - expected).mean() < 3

    if verify_backend(path, "decord"):
        with open_reader(path, "decord") as reader:
            given = reader.read([0, 1]).permute(0, 2, 3, 1).numpy()
        assert np.abs(given.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("name", SHOWN)
def test_ffmpeg_shows_the_same(upright, tmp_path, name) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg program here")
    path = Path(shutil.copy(upright, tmp_path / "turned.mp4"))
    ours = read_all(set_display_matrix(path, DISPLAY_MATRICES[name])).astype(int)
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert np.abs(ours - np.frombuffer(raw, np.uint8).reshape(ours.shape)).mean() < 2


@pytest.mark.parametrize("matrix", [b"", bytes(36), struct.pack("=9i", *([1 << 16] * 9))])
def test_a_matrix_that_shows_nothing_changes_nothing(matrix) -> None:
    assert from_matrix(matrix) == Orientation(mirrored=False, turns=0)


def test_a_front_cameras_video_is_mirrored(shared_data) -> None:
    cases = shared_data.parent / "cases"
    if not cases.is_dir():
        pytest.skip("no shared/cases beside the checkout")
    mirrored = read_all(cases / "front_camera_hflip.mp4")
    assert np.array_equal(mirrored, read_all(cases / "upright.mp4")[:, :, ::-1])
