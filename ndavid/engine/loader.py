"""The DataLoader of a run: keys from an EpochSampler, errors that keep their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ndavid.engine.sampler import EpochSampler, Key
from ndavid.engine.shard_sampler import ShardSampler
from ndavid.engine.shared_memory import InSharedMemory
from ndavid.engine.signals import ignore_in_worker
from ndavid.engine.waiting import LIMIT_SECONDS, wait_for_batches
from ndavid.errors import NdavidError

Collate = Callable[[list[Any]], dict[str, Any]]


class KeyedDataset(Protocol):
    """A map-style dataset read by (index, seed): a sample is a pure function of its key."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key, /) -> Any: ...


class _Guarded:
    """Returns an NdavidError instead of raising it.

    A DataLoader rebuilds a worker's exception from its message alone, which loses the kind and the
    fields of ours; as a value it crosses whole.
    """

    def __init__(self, dataset: KeyedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        try:
            return self.dataset[key]
        except NdavidError as error:
            return error

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        """A batch at once, where the dataset knows a quicker way than one by one."""
        together = getattr(self.dataset, "__getitems__", None)
        if together is None:
            return [self[key] for key in keys]
        try:
            return list(together(keys))
        except NdavidError as error:
            return [error]


class _GuardedCollate:
    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> dict[str, Any] | NdavidError:
        errors = [sample for sample in samples if isinstance(sample, NdavidError)]
        return errors[0] if errors else self.collate(samples)


def build_sampler(
    dataset: KeyedDataset,
    batch_size: int,
    *,
    seed: int,
    rank: int,
    world_size: int,
    num_workers: int,
) -> EpochSampler:
    """The sampler that suits a dataset: by shards where it has ``shard_sizes``.

    Args:
        dataset: its ``shard_sizes``, if not None, are the samples in each shard, in order.
        batch_size: samples a batch on each rank.
        seed: the run's seed.
        rank: this process's index.
        world_size: number of processes.
        num_workers: data loading processes a rank; 0 where this one loads.

    Raises:
        ConfigError: too few samples or shards.
    """
    sizes = getattr(dataset, "shard_sizes", None)
    if sizes is None:
        return EpochSampler(len(dataset), batch_size, seed=seed, rank=rank, world_size=world_size)
    return ShardSampler(
        sizes,
        batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        readers=max(1, num_workers),
    )


def build_loader(
    dataset: KeyedDataset,
    sampler: EpochSampler,
    collate: Collate | None = None,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A DataLoader over ``sampler``'s batches, with workers that live as long as it does.

    Args:
        dataset: read by the sampler's (index, seed) keys.
        sampler: yields lists of keys.
        collate: samples to a dict of tensors; torch's default when None.
        num_workers: processes that read ahead; 0 reads in this one.
        pin_memory: page-locked batches, for copies to a GPU beside the computation.
    """
    return DataLoader(
        _Guarded(dataset),  # type: ignore[arg-type]
        batch_sampler=sampler,
        collate_fn=InSharedMemory(_GuardedCollate(collate or default_collate)),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
        # Worker base seeds come from here instead of the default generator.
        generator=torch.Generator(),
    )


def batches(
    loader: DataLoader[Any],
    *,
    limit: float = LIMIT_SECONDS,
    key: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Any]]:
    """One pass over the sampler's position; raises what a dataset raised, as it raised it.

    Args:
        loader: of `build_loader`, or any whose collate function is an `InSharedMemory`.
        limit: seconds that one batch of worker processes may take; 0 for no limit.
        key: of the config, that sets the limit, for the message; empty where none does.
        stopped: asked about once a second during a wait; where it says so the pass ends early.

    Raises:
        TrainingError: a worker process died, found no room for a batch, or took too long.
    """
    for batch in wait_for_batches(loader, limit=limit, key=key, stopped=stopped):
        if isinstance(batch, NdavidError):
            raise batch
        yield batch


def close(loader: DataLoader[Any]) -> None:
    """Ends the worker processes now; one that hangs in a decoder is killed.

    Left to the garbage collector, a loader that an exception's traceback still holds would live
    until Python exits, and Python would wait for workers that ignore its SIGTERM.
    """
    iterator: Any = loader._iterator
    if iterator is None or not loader.num_workers:
        return
    iterator._shutdown_workers()
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
    loader._iterator = None


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on ``device``, copied beside the computation where possible."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def _init_worker(worker: int) -> None:
    ignore_in_worker()
    torch.set_num_threads(1)
