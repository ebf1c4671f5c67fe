"""torchcodec: PyTorch's decoder, an extra. It brings no FFmpeg; the system must have one.

Its exact mode orders frames by timestamp, which is not decoding order in AVI files with B-frames,
so that it too must only see files for which verification.py found it to agree with the reference.
"""

from __future__ import annotations

from torch import Tensor

from ndavid.data.decoding.batch_reader import BatchReader
from ndavid.data.decoding.pyav import first_video_stream
from ndavid.errors import DecodeError

BACKEND = "torchcodec"


class TorchCodecReader(BatchReader):
    """Reads frames with torchcodec; nothing here checks that they are the right ones."""

    backend = BACKEND

    def _open(self) -> None:
        stream = first_video_stream(self.path)
        decoder = _decoder_class(self.path)
        self._decoder = decoder(
            self.path,
            stream_index=stream,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )

    def _count(self) -> int:
        return len(self._decoder)

    def _rate(self) -> float:
        return float(self._decoder.metadata.average_fps or 0.0)

    def close(self) -> None:
        self._decoder = None

    def _get(self, indices: list[int]) -> Tensor:
        """Frames: uint8, (n, H, W, 3)."""
        return self._decoder.get_frames_at(indices).data


def _decoder_class(path: str):
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise DecodeError(
            path,
            BACKEND,
            "torchcodec cannot be loaded: it needs `pip install -e '.[torchcodec]'` and a "
            "system FFmpeg with its shared libraries (`apt-get install ffmpeg`)",
        ) from error
    return VideoDecoder
