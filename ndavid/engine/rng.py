"""One seed, many independent streams: every random number is a function of (seed, purpose, keys).

Nothing is carried from step to step, so a resumed run draws what the uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str, *keys: int) -> int:
    """A seed in [0, 2**63) for one purpose and position, the same on every machine.

    Args:
        seed: the run's seed.
        purpose: what it is drawn for, such as "step" or "nda".
        keys: the position, such as (rank, step).
    """
    text = "\x1f".join([str(int(seed)), purpose, *(str(int(key)) for key in keys)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A fresh CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *keys))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seeds torch's default CPU generator inside the block and restores it after.

    For code that draws from it and cannot be handed a generator: ``torch.nn`` initialisers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive_seed(seed, purpose))
        yield
