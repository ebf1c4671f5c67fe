"""Batches of (index, seed) keys as a pure function of (seed, epoch, rank, world size)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ndavid.engine.rng import derive_seed, generator
from ndavid.errors import ConfigError

Key = tuple[int, int]


class EpochSampler:
    """A DataLoader ``batch_sampler`` that can start at any batch of any epoch.

    The last incomplete batch of an epoch is dropped, so all ranks see the same number of batches.
    A global batch (``batch_size * world_size`` samples) is cut into consecutive slices, one a rank:
    two ranks with batch B see, in rank order, what one rank with batch 2B sees. A sample's seed
    depends on (seed, epoch, index) alone, so augmentation does not change with the world size.

    Args:
        num_samples: length of the dataset.
        batch_size: samples a batch on each rank.
        seed: the run's seed.
        rank: this process's index.
        world_size: number of processes.
        shuffle: a new order each epoch; dataset order when False.

    Raises:
        ConfigError: the dataset is smaller than one global batch.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        if num_samples < batch_size * world_size:
            raise ConfigError(
                f"one batch needs {batch_size} x {world_size} rank(s) samples "
                f"and the dataset has {num_samples}: lower batch_size"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self._first_batch = 0

    def __len__(self) -> int:
        """Batches in a whole epoch, whatever the position."""
        return self.num_samples // (self.batch_size * self.world_size)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Makes the next iteration begin at ``batch`` of ``epoch``; no batch before it is read."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"batch {batch} is outside an epoch of {len(self)} batches")
        self.epoch = epoch
        self._first_batch = batch

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, self._order()
        for batch in range(self._first_batch, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            indices = order[start : start + self.batch_size]
            yield [(i, derive_seed(self.seed, "sample", epoch, i)) for i in indices]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_samples))
        order = torch.randperm(
            self.num_samples, generator=generator(self.seed, "order", self.epoch)
        )
        return order.tolist()
