"""decord: quicker than PyAV on sparse frames of plain files, wrong on others.

Opened for every read, single-threaded, one batch, dropped: readers that live on decode ahead and
keep memory. It must only see files for which verification.py found it to agree with the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndavid.data.decoding.batch_reader import BatchReader
from ndavid.errors import DecodeError

BACKEND = "decord"


class DecordReader(BatchReader):
    """Reads frames with decord; nothing here checks that they are the right ones."""

    backend = BACKEND

    def _open(self) -> None:
        try:
            import decord
        except ImportError as error:
            raise DecodeError(self.path, BACKEND, f"decord cannot be imported ({error})") from error
        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord
        self._reader: Any = None

    def _count(self) -> int:
        return len(self._reader)

    def _rate(self) -> float:
        return float(self._reader.get_avg_fps())

    def close(self) -> None:
        self._reader = None

    def _get(self, indices: list[int]) -> Tensor:
        """Frames from a fresh reader: uint8, (n, H, W, 3)."""
        decord = self._decord
        try:
            self._reader = decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=1)
            return torch.from_numpy(self._reader.get_batch(indices).asnumpy())
        except decord.DECORDError as error:
            # The message is a C++ stack trace whose first line ends with what went wrong.
            words = str(error).partition("\n")[0].split("] ", 1)[-1].strip()
            raise DecodeError(self.path, BACKEND, words or type(error).__name__) from error
