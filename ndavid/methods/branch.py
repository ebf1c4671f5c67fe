"""Random numbers for NDA apart from a step's own."""

from __future__ import annotations

import torch


def branch(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator for NDA, seeded by the next number of ``generator``; None stays None.

    NDA draws nothing from the step's own: two runs that differ in NDA alone see the same views,
    shuffles and latents.
    """
    if generator is None:
        return None
    seed = torch.randint(2**62, (), generator=generator)
    return torch.Generator().manual_seed(int(seed))
