"""What a caller may have done in the middle of training: hooks, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HookContext:
    """What a hook is given while training waits for it, on every rank."""

    epoch: int
    """whole epochs done"""
    step: int
    """optimizer steps done"""
    method: nn.Module
    """the bare method, in eval mode; the loop sets it back to train mode"""
    ema: nn.Module | None
    """the averaged method, or the part of it that is averaged, if the run keeps an average"""
    device: torch.device
    output: Path
    show: Callable[[str, Tensor], None] = lambda name, picture: None
    """puts a picture, uint8 (3, H, W), into TensorBoard under a name, at this step"""
    total_steps: int = 0
    """the step at which the run ends"""


Hook = Callable[[HookContext], dict[str, float]]


@dataclass(frozen=True)
class EverySteps:
    """A hook that is called each time another ``every`` optimizer steps are done."""

    every: int
    call: Hook
