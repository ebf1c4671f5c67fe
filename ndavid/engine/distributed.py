"""Ranks, devices and agreements between ranks: the one file that builds an Accelerator."""

from __future__ import annotations

import atexit
import functools
import gc
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import nn

from ndavid.collectives import world_size
from ndavid.engine.waiting import LIMIT_SECONDS
from ndavid.errors import ConfigError, TrainingError

Precision = Literal["no", "bf16", "fp16"]
K = TypeVar("K")

# Beyond the time that one rank may wait for data, the others wait for so long.
SPARE_SECONDS = 600.0
_cpu_groups: list[Any] = []


def make_accelerator(
    *,
    precision: Precision = "no",
    device: Literal["auto", "cpu"] = "auto",
    trackers: Sequence[str] = (),
    project_dir: Path | None = None,
    find_unused_parameters: bool = False,
    data_timeout: float = LIMIT_SECONDS,
) -> Accelerator:
    """An Accelerator for one run; a second call in the same process may ask for something else.

    Accumulation is the loop's own (one factor, in one place), so that of a launch file is ignored.
    How long ranks wait for each other follows from ``data_timeout``, the seconds that one of them
    may wait for a batch: it is decided by the first call, when they meet.

    Raises:
        ConfigError: a precision that the device cannot do.
    """
    # accelerate keeps its state in class variables and refuses to change them otherwise. The
    # process group outlives a run.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            # Without a GPU accelerate has to be told, or torchrun's ranks train alone, each a main.
            cpu=device == "cpu" or not torch.accelerator.is_available(),
            log_with=list(trackers) or None,
            project_dir=project_dir,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters),
                InitProcessGroupKwargs(timeout=_patience(data_timeout)),
            ],
        )
    except ValueError as error:
        raise ConfigError(f"precision '{precision}' on this device: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("precision 'fp16' needs a GPU: use 'bf16' or 'no' on a CPU")
    _require_the_ranks_that_were_started()
    if dist.is_initialized():
        _leave_group_at_exit()
        _cpu_group(_patience(data_timeout))
    return accelerator


def _patience(data_timeout: float) -> timedelta:
    """How long a rank waits for the others: longer than one of them may wait for data.

    That one knows what it waits for and says so; the others could only tell that it did not come.
    """
    if not data_timeout:
        return timedelta(days=30)
    return timedelta(seconds=max(data_timeout, LIMIT_SECONDS) + SPARE_SECONDS)


def _require_the_ranks_that_were_started() -> None:
    """Ranks that do not know each other would write over one another's checkpoints."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != world_size():
        raise ConfigError(
            f"the launcher started {started} processes but {world_size()} joined; on a CPU use "
            "torchrun --nproc_per_node N"
        )


@functools.cache
def _leave_group_at_exit() -> None:
    atexit.register(_leave_group)


def _leave_group() -> None:
    if dist.is_initialized():
        # DDP, in what a run left in reference cycles, holds on to the group and its threads.
        gc.collect()
        dist.destroy_process_group()


def _cpu_group(patience: timedelta | None = None) -> Any:
    """A gloo group beside NCCL's, so that small agreements do not wait for the GPU's stream.

    The first call makes it, on every rank at the same point.
    """
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if not _cpu_groups:
        _cpu_groups.append(dist.new_group(backend="gloo", timeout=patience))
    return _cpu_groups[0]


def agree(*values: int) -> tuple[int, ...]:
    """The largest of each value over all ranks; every rank must call it at the same point."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_cpu_group())
    return tuple(int(value) for value in tensor)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's small picklable ``value``, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group())
    return values


def from_main(value: Any) -> Any:
    """Rank 0's small picklable ``value``, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_cpu_group())
    return box[0]


def raise_together(error: Exception | None) -> None:
    """Raises on every rank if any has an error; every rank must call it at the same point.

    A rank that leaves alone keeps the others waiting for it in their next exchange.

    Raises:
        Exception: this rank's own error, or a TrainingError that says another's.
    """
    (some,) = agree(error is not None)
    if some:
        raise_first(error)


def raise_first(error: Exception | None) -> NoReturn:
    """`raise_together` where all ranks know already that one of them has an error."""
    seen = gather_objects(None if error is None else str(error) or type(error).__name__)
    if error is not None:
        raise error
    first = next(i for i, message in enumerate(seen) if message is not None)
    raise TrainingError(f"rank {first}: {seen[first]}")


def mean_over_ranks(values: dict[K, float]) -> dict[K, float]:
    """The mean of each value over all ranks; the keys must be the same on all of them."""
    if world_size() == 1 or not values:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor, group=_cpu_group())
    return dict(zip(values, (tensor / world_size()).tolist(), strict=True))


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Gives every rank rank 0's buffers, which are those that checkpoints keep.

    DDP does so at the start of a forward only: after the last one each rank has the running
    statistics of its own batches. Every rank must call it at the same point.
    """
    if world_size() == 1:
        return
    for buffer in module.buffers():
        whole = buffer.detach().contiguous()
        dist.broadcast(whole, src=0)
        buffer.copy_(whole)
