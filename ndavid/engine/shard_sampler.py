"""Batches of keys for data that lies in shards, which are read whole and one after another.

A shard is a run of consecutive indices. Each data loading process of each rank (a reader) is dealt
shards of its own for an epoch and reads nothing else, so that what crosses the disk or the network
is read once. The DataLoader gives batch ``b`` to worker ``b % num_workers``, so that batch is made
of the shards of reader ``b % num_workers``: reader and worker are one. After a resume the workers
begin at another reader's batch, and still each serves one.

Everything is a pure function of (seed, epoch, rank, world size, readers), so that a resumed run
goes on with the very batch: no shard that was used up is opened again, and of those begun what was
used is skipped.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import torch

from ndavid.engine.rng import derive_seed, generator
from ndavid.engine.sampler import EpochSampler, Key
from ndavid.errors import ConfigError


class ShardSampler(EpochSampler):
    """An ``EpochSampler`` whose batches each come from the shards of one reader.

    Each epoch shards are dealt anew, read in another order, and shuffled inside. All readers give
    the same number of batches, in every epoch: what one has beyond that is left out, and is
    something else each time. A sample's seed is that of ``EpochSampler``.

    Args:
        sizes: samples in each shard; its indices follow those of the shard before.
        batch_size: samples a batch on each rank.
        seed: the run's seed.
        rank: this process's index.
        world_size: number of processes.
        readers: data loading processes a rank, at least 1.

    Raises:
        ConfigError: fewer shards than readers in all, or too few samples for a batch of each.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        readers: int = 1,
    ) -> None:
        num_samples = sum(sizes)
        super().__init__(num_samples, batch_size, seed=seed, rank=rank, world_size=world_size)
        self.sizes = tuple(sizes)
        self.readers = readers
        self._starts = list(itertools.accumulate(self.sizes, initial=0))
        self._check_enough_shards()
        # The loads of the readers are the same in every epoch; who has which is not.
        self._rounds = min(self._load(shards) for shards in self._deal(0)) // batch_size
        if not self._rounds:
            raise ConfigError(
                f"one of {self._in_words()} has shards with fewer samples than a batch of "
                f"{batch_size}: lower run.batch_size or run.num_workers"
            )

    def __len__(self) -> int:
        return self._rounds * self.readers

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        mine = self._deal(epoch)[self.rank * self.readers : (self.rank + 1) * self.readers]
        orders = [self._order_of(shards, epoch) for shards in mine]
        for batch in range(self._first_batch, len(self)):
            turn, reader = divmod(batch, self.readers)
            indices = orders[reader][turn * self.batch_size : (turn + 1) * self.batch_size]
            yield [(i, derive_seed(self.seed, "sample", epoch, i)) for i in indices]

    def summary(self, batches: int) -> str:
        """What an epoch of ``batches`` batches a rank reads and leaves out, in a line."""
        left_out = self.num_samples - batches * self.batch_size * self.world_size
        used = sum(size > 0 for size in self.sizes)
        text = f"{used} shards for {self._in_words()}; an epoch leaves out {left_out} of "
        text += f"{self.num_samples} samples, others each time"
        slots = self.world_size * self.readers
        if used % slots:
            text += f" (fewer where the number of shards is a multiple of {slots})"
        return text

    def _check_enough_shards(self) -> None:
        used, slots = sum(size > 0 for size in self.sizes), self.world_size * self.readers
        if used < slots:
            raise ConfigError(
                f"{used} shard(s) cannot feed {self._in_words()}, each of which reads shards of "
                f"its own: at least {slots} are needed; lower run.num_workers or write more shards"
            )

    def _in_words(self) -> str:
        slots = self.world_size * self.readers
        return f"{slots} readers ({self.world_size} rank(s) x {self.readers} loading process(es))"

    def _load(self, shards: Sequence[int]) -> int:
        return sum(self.sizes[shard] for shard in shards)

    def _deal(self, epoch: int) -> list[list[int]]:
        """The shards of every reader of every rank, in the order in which they are read.

        Each shard, the largest first, goes to a reader with the least so far. Chance decides among
        equals, on both sides, so that how much the readers get is the same in every epoch.
        """
        draw = generator(self.seed, "shards", epoch)
        order = torch.randperm(len(self.sizes), generator=draw).tolist()
        slots = self.world_size * self.readers
        lots = torch.randperm(slots, generator=draw).tolist()
        loads = [(0, lot, slot) for slot, lot in enumerate(lots)]
        heapq.heapify(loads)
        place = {shard: k for k, shard in enumerate(order)}
        dealt: list[list[int]] = [[] for _ in range(slots)]
        for shard in sorted(order, key=lambda shard: -self.sizes[shard]):
            if self.sizes[shard]:
                load, lot, slot = loads[0]
                dealt[slot].append(shard)
                heapq.heapreplace(loads, (load + self.sizes[shard], lot, slot))
        return [sorted(shards, key=place.__getitem__) for shards in dealt]

    def _order_of(self, shards: Sequence[int], epoch: int) -> list[int]:
        """The indices of some shards, one shard after another, shuffled inside each."""
        order: list[int] = []
        for shard in shards:
            draw = generator(self.seed, "shard", epoch, shard)
            start = self._starts[shard]
            order += [start + k for k in torch.randperm(self.sizes[shard], generator=draw).tolist()]
        return order
