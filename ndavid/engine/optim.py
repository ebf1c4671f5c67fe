"""Optimizers by name, from timm, and the learning rate as a function of the optimizer step.

Weight decay applies to every parameter, biases and normalisation included, as in the original DPC
and MoCo code; ``decay_bias_and_norm: false`` leaves 1-D parameters out, as ViT recipes do.

A scheduler that is stepped carries state, and one that accelerate prepared steps once a process.
Here the rate is a pure function of the step: nothing to save, the same for any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from ndavid.config import changeable, nearest
from ndavid.errors import ConfigError
from ndavid.ranges import NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_1, check_ranges


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer, learning rate schedule, clipping and accumulation."""

    name: str = "adam"
    """any timm optimizer: sgd, adam, adamw, lars, ..."""
    lr: float = 1e-3
    """learning rate at its peak, for the whole global batch as it is (never rescaled)"""
    weight_decay: float = 1e-5
    """L2 penalty (sgd, adam, lars) or decoupled decay (adamw)"""
    decay_bias_and_norm: bool = True
    """decay 1-D parameters too, as the original DPC and MoCo do"""
    momentum: float = 0.9
    """for optimizers that have one (sgd, lars)"""
    nesterov: bool = False
    """Nesterov's form of momentum, for sgd; timm alone would turn it on"""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """for optimizers that have them (adam, adamw)"""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant with `milestones`, or cosine to zero at the last step"""
    warmup_steps: int = 0
    """optimizer steps of linear warm-up from lr / (warmup_steps + 1)"""
    milestones: list[int] = field(default_factory=list)
    """epochs at which a constant schedule multiplies lr by `gamma`"""
    gamma: float = 0.1
    """factor at each milestone"""
    clip_grad_norm: float | None = None
    """largest global gradient norm; none clips nothing"""
    accumulate_steps: int = changeable(1, when="elsewhere, in other batches")
    """batches summed into one optimizer step; the rest of an epoch that fills none is left out"""
    encoder_lr_scale: float = 1.0
    """factor on lr for the encoder's parameters, for recipes that pass it in their groups"""

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, "optim.warmup_steps must not be negative")
        _require(self.accumulate_steps >= 1, "optim.accumulate_steps must be at least 1")
        _require(len(self.betas) == 2, f"optim.betas needs two numbers, not {self.betas}")
        cosine_steps = self.schedule == "cosine" and bool(self.milestones)
        _require(not cosine_steps, "optim.milestones belong to schedule: constant")
        check_ranges(
            self,
            "optim",
            lr=POSITIVE,
            weight_decay=NOT_NEGATIVE,
            momentum=SHARE,
            betas=SHARE_BELOW_1,
            # A detector gives exact fractions of an epoch; a config holds whole ones.
            milestones=POSITIVE,
            gamma=POSITIVE,
            clip_grad_norm=POSITIVE,
            encoder_lr_scale=NOT_NEGATIVE,
        )
        increasing = self.milestones == sorted(set(self.milestones))
        _require(increasing, f"optim.milestones must increase, not {self.milestones}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def build_optimizer(
    method: nn.Module,
    config: OptimConfig,
    groups: Iterable[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over ``groups``, or over every parameter of ``method`` that takes gradients.

    Args:
        method: where parameters come from when no groups are given.
        config: optimizer name and its numbers.
        groups: dicts with ``params`` and, optionally, ``lr_scale`` (a factor on the learning rate).
            Parameters without gradient are left out.

    Raises:
        ConfigError: an unknown optimizer, a parameter in two groups, nothing to train.
    """
    name = config.name.lower()
    known = [str(known_name) for known_name in list_optimizers()]
    if name not in known:
        hint = nearest(name, known)
        raise ConfigError(f"optim.name: unknown optimizer '{config.name}'{hint}")
    given = [{"params": list(method.parameters())}] if groups is None else list(groups)
    prepared = [part for group in given for part in _split_group(group, config)]
    parameters = [id(p) for group in prepared for p in group["params"]]
    if not parameters:
        raise ConfigError("there is nothing to train: no parameter takes gradients")
    if len(set(parameters)) != len(parameters):
        raise ConfigError("a parameter is in two optimizer groups")
    info = get_optimizer_info(name)
    options: dict[str, Any] = {}
    if info.has_betas:
        options["betas"] = tuple(config.betas)
    if "nesterov" in (info.defaults or {}):
        options["nesterov"] = config.nesterov
    return create_optimizer_v2(
        prepared,
        opt=name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **options,
    )


def _split_group(group: dict[str, Any], config: OptimConfig) -> list[dict[str, Any]]:
    """One caller's group as optimizer groups: trained parameters only, decayed ones apart."""
    scale = float(group.get("lr_scale", 1.0))
    trained = [p for p in group["params"] if p.requires_grad]
    if config.decay_bias_and_norm:
        parts = [(trained, config.weight_decay)]
    else:
        parts = [
            ([p for p in trained if p.ndim > 1], config.weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ]
    return [
        {"params": params, "lr": config.lr, "lr_scale": scale, "weight_decay": decay}
        for params, decay in parts
        if params
    ]


def lr_factor(step: int, config: OptimConfig, *, steps_per_epoch: int, total_steps: int) -> float:
    """The factor on ``config.lr`` at an optimizer step counted from 0.

    Warm-up is linear and reaches 1 at step ``warmup_steps``. Milestones are epochs of the run,
    warm-up included: with milestone m, step ``m * steps_per_epoch`` is the first at the lower rate.
    (timm's MultiStepLRScheduler lowers it one step early, hence no use of it here.)
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "cosine":
        length = max(total_steps - config.warmup_steps, 1)
        done = min((step - config.warmup_steps) / length, 1.0)
        return 0.5 * (1 + math.cos(math.pi * done))
    passed = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
    return config.gamma**passed


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets every group's learning rate to ``lr`` times the group's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
