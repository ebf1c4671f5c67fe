"""Shared memory, through which data loading processes hand over their batches.

Containers often have little of it (Docker gives 64 MB). A batch that finds no room is lost in the
queue of the process that made it, with no word to the one that waits for it: so the room is looked
at before a run begins, and each batch is put there where a failure can still be told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from ndavid.errors import ConfigError, NdavidError, TrainingError

PLACE = Path("/dev/shm")
# Batches that a DataLoader lets each of its processes prepare ahead: torch's default.
AHEAD = 2
# With this much for each process nothing is estimated, which costs the reading of a sample.
PLENTY = 1 << 30
_CURE = (
    "give the container more (docker run --shm-size 8g, or --ipc=host), or load in the training "
    "process itself with num_workers 0 (--run.num_workers 0 in training)"
)


def room() -> tuple[int, int] | None:
    """Free and total bytes of shared memory; None where the system does not say."""
    try:
        status = os.statvfs(PLACE)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def check_room(
    sample: Callable[[], Mapping[str, Any]],
    *,
    batch_size: int,
    num_workers: int,
    num_batches: int | None = None,
    ranks: int | None = None,
) -> None:
    """Refuses to begin where the batches that are prepared ahead cannot fit.

    Args:
        sample: reads a batch of one sample; called only where room is scarce. What it raises is
            left for the run to meet.
        batch_size: samples a batch.
        num_workers: data loading processes of each rank.
        num_batches: how many there are for each rank; None for as many as are wanted.
        ranks: how many ranks of this machine share the memory; None for as many as the launcher
            started here.

    Raises:
        ConfigError: not enough room.
    """
    ranks = ranks or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    found = room()
    if found is None or not num_workers or found[0] >= PLENTY * num_workers * ranks:
        return
    try:
        size = _bytes_of(sample()) * batch_size
    except Exception:
        return
    ahead = AHEAD * num_workers
    ahead = ranks * (ahead if num_batches is None else min(ahead, num_batches))
    if size * ahead > found[0]:
        raise ConfigError(
            f"{ahead} batches of {_megabytes(size)} are prepared ahead, and "
            f"{_state(found)}: {_CURE}"
        )


class InSharedMemory:
    """A collate function whose batches lie in shared memory, where a worker process calls it.

    Returns a TrainingError instead of the batch where there is no room: an error is small.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        if get_worker_info() is None:
            return self.collate(samples)
        try:
            batch = self.collate(samples)
            if not isinstance(batch, NdavidError):
                _share(batch)
        except (RuntimeError, OSError) as error:
            if "shared memory" not in str(error) and "No space left" not in str(error):
                raise
            return TrainingError(no_room())
        return batch


def no_room() -> str:
    """For messages: that a batch found no room, and what to do."""
    found = room()
    state = "/dev/shm is full" if found is None else _state(found)
    return f"no room for a batch in shared memory: {state}: {_CURE}"


def _share(value: Any) -> None:
    """Moves the tensors in a batch, as sending it would do later."""
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and value.numel():
            value.share_memory_()
    elif isinstance(value, Mapping):
        for part in value.values():
            _share(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _share(part)


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_bytes_of(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes_of(part) for part in value)
    return 0


def _state(found: tuple[int, int]) -> str:
    return f"{PLACE} has {_megabytes(found[0])} free of {_megabytes(found[1])}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e6:.2f} MB"
