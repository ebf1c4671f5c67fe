"""What a run trains and what it reads, set up for the loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, default_collate

from ndavid.collectives import rank, world_size
from ndavid.engine.alternating import ONLY, AlternatingMethod, train_all
from ndavid.engine.loader import Collate, KeyedDataset, build_loader, build_sampler
from ndavid.engine.loader import close as close_loader
from ndavid.engine.memory_format import to_channels_last
from ndavid.engine.optim import OptimConfig, build_optimizer
from ndavid.engine.rng import derive_seed
from ndavid.engine.run_config import RunConfig
from ndavid.engine.sampler import EpochSampler
from ndavid.engine.shard_sampler import ShardSampler
from ndavid.engine.shared_memory import check_room
from ndavid.errors import ConfigError

ParamGroups = Callable[[Any], Iterable[dict[str, Any]]]


@dataclass
class TrainingModel:
    """A method on its device, and what trains and averages its weights."""

    method: nn.Module
    """as the caller gave it"""
    wrapped: nn.Module
    """the same, called through autocast and DDP"""
    optimizers: dict[str, torch.optim.Optimizer]
    """by name; a plain method's one optimizer is called `ONLY`"""
    parameters: dict[str, list[nn.Parameter]]
    """what each optimizer moves"""
    averaged: nn.Module
    """the part of the method that an average is kept of"""
    ema: ModelEmaV3 | None
    ema_start: int
    """the optimizer step, counted from 1, from which on the average decays"""


@dataclass(frozen=True)
class TrainingData:
    """Where the batches of a run come from."""

    sampler: EpochSampler
    loader: DataLoader[Any]
    batches_per_step: int
    """batches that one training step reads on each rank"""
    steps_per_epoch: int
    digest: str | None
    """of what the dataset reads, where it has one"""

    def order(self) -> dict[str, int]:
        """What the order of the data depends on beside the config."""
        order = {"world_size": world_size(), "num_samples": self.sampler.num_samples}
        if isinstance(self.sampler, ShardSampler):
            # No worker and one worker are both one reader.
            order["num_workers"] = self.sampler.readers
        return order


def setup_model(
    method: nn.Module,
    accelerator: Accelerator,
    run: RunConfig,
    optim: OptimConfig,
    param_groups: ParamGroups | None,
    closing: contextlib.ExitStack,
) -> TrainingModel:
    """Puts method, optimizers and average on the device, wraps them; ``closing`` undoes it."""
    method = method.to(accelerator.device)
    if run.channels_last:
        to_channels_last(method)
    averaged = _averaged(method)
    ema = ModelEmaV3(averaged, decay=run.ema_decay) if run.ema_decay else None
    optimizers = _build_optimizers(method, optim, param_groups)
    if run.compile:
        for target in _compile_targets(method):
            target.compile()
    wrapped, *prepared = accelerator.prepare(method, *optimizers.values())
    # accelerate puts autocast around forward; the caller gets the method back without it.
    closing.callback(accelerator.unwrap_model, wrapped, keep_fp32_wrapper=False)
    optimizers = dict(zip(optimizers, prepared, strict=True))
    parameters = {
        name: [p for group in optimizer.param_groups for p in group["params"]]
        for name, optimizer in optimizers.items()
    }
    closing.callback(train_all, parameters)
    return TrainingModel(method, wrapped, optimizers, parameters, averaged, ema, run.ema_start_step)


def setup_data(
    dataset: KeyedDataset,
    collate: Collate | None,
    method: nn.Module,
    accelerator: Accelerator,
    run: RunConfig,
    optim: OptimConfig,
    closing: contextlib.ExitStack,
) -> TrainingData:
    """Builds the loader and, from its length, the number of steps; ``closing`` ends its workers.

    Raises:
        ConfigError: fewer samples than one step reads.
    """
    accumulate = optim.accumulate_steps
    own: int = method.batches_per_step if isinstance(method, AlternatingMethod) else 1
    batches_per_step = accumulate * own
    sampler = build_sampler(
        dataset,
        run.batch_size,
        seed=run.seed,
        rank=rank(),
        world_size=world_size(),
        num_workers=run.num_workers,
    )
    _check_shared_memory(dataset, collate, run)
    loader = build_loader(
        dataset,
        sampler,
        collate,
        num_workers=run.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    closing.callback(close_loader, loader)
    steps_per_epoch = len(sampler) // batches_per_step
    if not steps_per_epoch:
        needed = batches_per_step * run.batch_size * world_size()
        raise ConfigError(
            f"a step reads {batches_per_step} batches (optim.accumulate_steps "
            f"{accumulate}), {needed} samples, and there are {len(dataset)}: lower "
            "run.batch_size or how many batches a step reads"
        )
    digest: str | None = getattr(dataset, "digest", None)
    return TrainingData(sampler, loader, batches_per_step, steps_per_epoch, digest)


@contextlib.contextmanager
def backend_settings(deterministic: bool, device: torch.device) -> Iterator[None]:
    """Backend settings of a run; they and the default generators are as before afterwards."""
    benchmark = torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    strict_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # Clips have one size in a run, so that trying cuDNN's algorithms once pays.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(strict, warn_only=strict_warns)


def _build_optimizers(
    method: nn.Module, config: OptimConfig, param_groups: ParamGroups | None
) -> dict[str, torch.optim.Optimizer]:
    if isinstance(method, AlternatingMethod):
        return {
            name: build_optimizer(method, config, groups)
            for name, groups in method.optimizer_groups().items()
        }
    groups = param_groups(method) if param_groups else None
    return {ONLY: build_optimizer(method, config, groups)}


def _compile_targets(method: nn.Module) -> Iterable[nn.Module]:
    """The method's own choice of what to compile, or the whole method."""
    chosen = getattr(method, "compile_targets", None)
    return [method] if chosen is None else chosen()


def _averaged(method: nn.Module) -> nn.Module:
    """The method's own choice of what an average is kept of, or all of it."""
    chosen = getattr(method, "averaged", None)
    return method if chosen is None else cast(nn.Module, chosen())


def _check_shared_memory(dataset: KeyedDataset, collate: Collate | None, run: RunConfig) -> None:
    # A sample of shards means a whole shard, and a reader that workers must not inherit.
    if getattr(dataset, "shard_sizes", None) is not None:
        return
    key = (0, derive_seed(run.seed, "sample", 0, 0))
    check_room(
        lambda: (collate or default_collate)([dataset[key]]),
        batch_size=run.batch_size,
        num_workers=run.num_workers,
    )
