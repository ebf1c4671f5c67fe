"""Random permutations that are sure to change something, drawn for a whole batch at once.

The released NDA code draws until a permutation is not the identity, sample by sample: a loop that
never ends for one element, and lets fixed points through. Here small permutations come out of a
table of the allowed ones; larger ones are drawn all together and only the rejected rows again.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

# 6! = 720 rows of 6: small enough to list, and it covers every grid of up to six cells.
_LARGEST_TABLE = 6


def non_identity(count: int, n: int, generator: torch.Generator) -> Tensor:
    """``count`` permutations of ``n``, uniform over all but the identity: int64 ``(count, n)``."""
    if n < 2:
        raise ValueError(f"{n} element has no permutation but the identity; take at least 2")
    return _draw(count, n, generator, derange=False)


def derangements(count: int, n: int, generator: torch.Generator) -> Tensor:
    """``count`` permutations of ``n``, uniform over those without a fixed point: ``(count, n)``."""
    if n < 2:
        raise ValueError(f"{n} element cannot leave its place; take at least 2")
    return _draw(count, n, generator, derange=True)


def partial_derangements(count: int, n: int, moved: int, generator: torch.Generator) -> Tensor:
    """``count`` permutations of ``n`` in which exactly ``moved`` elements change place.

    Uniform over which elements move and over their derangements; ``moved=2`` is a plain swap.
    """
    if not 2 <= moved <= n:
        raise ValueError(f"{moved} of {n} elements cannot change place; take 2 to {n}")
    chosen = _any(count, n, generator)[:, :moved]
    goes_to = chosen.gather(1, derangements(count, moved, generator))
    return torch.arange(n).repeat(count, 1).scatter_(1, chosen, goes_to)


def partners(batch: int, generator: torch.Generator) -> Tensor:
    """Another sample of the batch for each one: int64 ``(batch,)``.

    One random cycle through the whole batch, so nobody meets itself, everybody is somebody's
    partner once, and each sample's partner is uniform over the others.
    """
    order = torch.randperm(batch, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _draw(count: int, n: int, generator: torch.Generator, *, derange: bool) -> Tensor:
    if n <= _LARGEST_TABLE:
        allowed = _table(n, derange)
        return allowed[torch.randint(len(allowed), (count,), generator=generator)]
    permutations = _any(count, n, generator)
    home = torch.arange(n)
    while True:
        stays = permutations == home
        rejected = (stays.any(1) if derange else stays.all(1)).nonzero().squeeze(1)
        if not len(rejected):
            return permutations
        permutations[rejected] = _any(len(rejected), n, generator)


def _any(count: int, n: int, generator: torch.Generator) -> Tensor:
    # float64: with 24 random bits, ties would favour the original order.
    return torch.rand(count, n, dtype=torch.float64, generator=generator).argsort(1)


@functools.cache
def _table(n: int, derange: bool) -> Tensor:
    """The allowed permutations of a few elements, one a row."""
    rows = torch.tensor(list(itertools.permutations(range(n))))
    return rows[(rows != torch.arange(n)).all(1)] if derange else rows[1:]
