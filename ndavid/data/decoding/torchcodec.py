"""torchcodec: PyTorch's decoder, an extra. It brings no FFmpeg; the system must have one.

Its exact mode orders frames by timestamp, which is not decoding order in AVI files with B-frames,
so that it too must only see files for which verification.py found it to agree with the reference.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from ndavid.data.decoding.base import check_file, checked_indices, scatter_rows
from ndavid.data.decoding.pyav import first_video_stream
from ndavid.errors import DecodeError

BACKEND = "torchcodec"


class TorchCodecReader:
    """Reads frames with torchcodec; nothing here checks that they are the right ones."""

    backend = BACKEND

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_file(path, BACKEND)
        stream = first_video_stream(path)
        decoder = _decoder_class(self.path)
        try:
            self._decoder = decoder(
                self.path,
                stream_index=stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise self._failed(error) from error
        first = self._get([0])[0]
        self._size = (first.shape[0], first.shape[1])

    def __len__(self) -> int:
        return len(self._decoder)

    @property
    def fps(self) -> float:
        return float(self._decoder.metadata.average_fps or 0.0)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted = checked_indices(indices)
        unique = sorted(set(wanted))
        if unique[-1] >= len(self):
            reason = f"ends after {len(self)} frames; frame {unique[-1]} was asked for"
            raise DecodeError(self.path, BACKEND, reason)
        return scatter_rows(self._get(unique), unique, wanted).permute(0, 3, 1, 2)

    def close(self) -> None:
        self._decoder = None

    def __enter__(self) -> TorchCodecReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _get(self, indices: list[int]) -> Tensor:
        """Frames: uint8, (n, H, W, 3)."""
        try:
            return self._decoder.get_frames_at(indices).data
        except (RuntimeError, IndexError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> DecodeError:
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return DecodeError(self.path, BACKEND, words or type(error).__name__)


def _decoder_class(path: str):
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise DecodeError(
            path,
            BACKEND,
            "torchcodec cannot be loaded: it needs `pip install ndavid[torchcodec]` and a system "
            "FFmpeg with its shared libraries (`apt-get install ffmpeg`)",
        ) from error
    return VideoDecoder
