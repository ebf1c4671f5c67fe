"""Fixtures that several rooms share: the real clips where they are, and writing small mp4 files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

# These take longest: begun last, one of them would run on alone.
LONGEST = (
    "test_docs",
    "test_dpc",
    "test_finetune",
    "test_cpu_convolutions",
    "test_study",
    "test_loop",
)
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips beside the checkout; the test is skipped where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return SHARED_DATA


def frame_pattern(index: int, size: tuple[int, int]) -> np.ndarray:
    """An RGB picture (H, W, 3) that tells its frame number: 8 bits as bright and dark columns."""
    height, width = size
    bits = [(index >> k) & 1 for k in range(8)]
    columns = np.array(bits)[np.arange(width) * 8 // width]
    picture = np.full((height, width, 3), 40, dtype=np.uint8)
    picture[:, columns == 1] = 215
    return picture


def frame_number(picture: np.ndarray) -> int:
    """The number that `frame_pattern` drew into a picture (H, W, 3)."""
    columns = picture.mean(axis=(0, 2))
    centres = ((np.arange(8) + 0.5) * len(columns) / 8).astype(int)
    return sum(int(columns[c] > 128) << k for k, c in enumerate(centres))


def encode_clip(
    path: Path,
    num_frames: int = 30,
    size: tuple[int, int] = (64, 80),
    fps: int = 25,
    codec: str = "libx264",
    gop: int = 12,
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video whose frame `i` is `frame_pattern(i, size)`, through the real encoder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frame_pattern(index, size), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """`write_clip(path, num_frames, size, fps, codec, gop, pixel_format, rotation, options)`.

    Frame `i` shows the number `i` modulo 256, which `frame_number` reads back.
    """
    return encode_clip


@pytest.fixture(scope="session")
def read_number() -> Callable[[np.ndarray], int]:
    """`read_number(picture)`: the number that `write_clip` drew into a frame (H, W, 3)."""
    return frame_number
