"""Inputs in which every pixel is distinct, so that any moved or replaced one shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


@pytest.fixture
def distinct() -> Callable[[Sequence[int]], Tensor]:
    """A float32 batch that holds each whole number once, in random places."""

    def make(shape: Sequence[int]) -> Tensor:
        count = torch.Size(shape).numel()
        assert count < 2**24, "float32 cannot tell more whole numbers apart"
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
        return order.float().view(*shape) + 1

    return make


@pytest.fixture
def seeded() -> Callable[[int], torch.Generator]:
    return lambda seed: torch.Generator().manual_seed(seed)
