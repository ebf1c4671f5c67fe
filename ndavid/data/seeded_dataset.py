"""What every training dataset here has in common: samples by key, and stand-ins for bad files.

A sample is a pure function of its key, so that workers, ranks and restarts cannot change it: the
loader's sampler hands out `(index, seed)`, and all that is random comes from a generator seeded by
it. An int alone asks for the deterministic sample: centred, and with its colours as they are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ndavid.data.shard_store import ShardStore
from ndavid.data.worker_errors import data_errors_leave_workers
from ndavid.errors import DataError

SampleKey = int | tuple[int, int]
OnError = Literal["raise", "next"]


class SeededDataset(Dataset[dict[str, Any]], abc.ABC):
    """A dataset read by `(index, seed)`, or by an int for the sample without randomness.

    A sample holds its pixels under `pixel_key`, `label`, `index` (of what was read) and `bad`, the
    `(path, reason)` of files that could not be read. With `on_error="next"` the sample that follows
    stands in for one that cannot be read, so that batches keep their size on every rank; with
    "raise" its DataError is raised. `damaged`, likewise `(path, what)`, is there only if what was
    read is usable and yet damaged. Of samples in shards (`store`), the shard decides which follow.
    """

    pixel_key: ClassVar[str]
    unit: ClassVar[str]
    root: Path
    on_error: OnError
    store: ShardStore | None = None

    @property
    def shard_sizes(self) -> tuple[int, ...] | None:
        """Samples in each shard, which the run's sampler keeps together; None for other data."""
        return None if self.store is None else self.store.sizes

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def _label(self, index: int) -> int: ...

    @abc.abstractmethod
    def _pixels(self, index: int, generator: torch.Generator | None) -> Tensor | dict[str, Tensor]:
        """Reads one sample; everything random comes from the generator. Raises DataError.

        The pixels alone, or what else a batch shall have of them, too, by key.
        """

    def _take_damage(self) -> list[tuple[str, str]]:
        """(path, what is damaged) of what was read since the last call and used all the same."""
        return []

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        with data_errors_leave_workers():
            return self._sample(index, seed)

    def _sample(self, index: int, seed: int | None) -> dict[str, Any]:
        count = len(self)
        bad: list[tuple[str, str]] = []
        for current in self._candidates(index):
            # Each stand-in draws what it would have drawn itself.
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            try:
                found = self._pixels(current, generator)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                bad.append((error.path, error.reason))
            else:
                label = self._label(current)
                pixels = found if isinstance(found, dict) else {self.pixel_key: found}
                sample = pixels | {"label": label, "index": current, "bad": bad}
                damage = self._take_damage()
                return sample | {"damaged": damage} if damage else sample
        path, reason = bad[0]
        reason = f"none of the {count} {self.unit} can be read; {path}: {reason}"
        raise DataError(self.root, reason)

    def _candidates(self, index: int) -> Iterator[int]:
        """The index asked for, then those that stand in for it."""
        if self.store is not None:
            self.store.turn_to(index)
        yield index
        if self.store is not None:
            yield from self.store.stand_ins(index)
        else:
            yield from ((index + k) % len(self) for k in range(1, len(self)))
