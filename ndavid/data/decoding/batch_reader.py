"""What decord and torchcodec have in common: a library that hands out whole batches of frames.

Nothing here checks that the frames are the right ones; verification.py does.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from ndavid.data.decoding.base import (
    check_file,
    checked_indices,
    decode_errors,
    scatter_rows,
)
from ndavid.errors import DecodeError


class BatchReader(abc.ABC):
    """A FrameReader on top of a library's batches.

    What the library raises, in whatever method below, reaches the caller as a DecodeError.
    """

    backend: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_file(path, self.backend)
        with self._decode_errors():
            self._open()
            first = self._get([0])[0]
            self._size = (int(first.shape[0]), int(first.shape[1]))

    @abc.abstractmethod
    def _open(self) -> None:
        """Loads the library and opens ``self.path``."""

    @abc.abstractmethod
    def _get(self, indices: list[int]) -> Tensor:
        """Frames by ascending index, none twice: uint8, (n, H, W, 3)."""

    @abc.abstractmethod
    def _count(self) -> int:
        """How many frames there are, as the library says."""

    @abc.abstractmethod
    def _rate(self) -> float:
        """Average frames per second, as the library says."""

    def __len__(self) -> int:
        with self._decode_errors():
            return self._count()

    @property
    def fps(self) -> float:
        with self._decode_errors():
            return self._rate()

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of the file."""

    @property
    def damaged(self) -> int:
        return 0

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted = checked_indices(indices)
        # Ascending and without repeats is the only pattern that verification tries out.
        unique = sorted(set(wanted))
        if unique[-1] >= len(self):
            reason = f"ends after {len(self)} frames; frame {unique[-1]} was asked for"
            raise DecodeError(self.path, self.backend, reason)
        with self._decode_errors():
            return scatter_rows(self._get(unique), unique, wanted).permute(0, 3, 1, 2)

    def _decode_errors(self) -> AbstractContextManager[None]:
        return decode_errors(self.path, self.backend, "")

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
