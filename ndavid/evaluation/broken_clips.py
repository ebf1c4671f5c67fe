"""Test views of videos beside copies of themselves whose frames were put in a wrong order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from ndavid.data.video import ViewsDataset
from ndavid.engine.rng import generator
from ndavid.methods.nda_config import NegativesConfig


@dataclass(frozen=True)
class BrokenCopies:
    """Which copies are made of every view.

    Attributes:
        specs: An operation a copy, as ``nda.from_spec`` reads it; none that mixes two samples.
        seed: Draws their parameters.
    """

    specs: tuple[str, ...]
    seed: int

    @property
    def looks(self) -> int:
        """How many clips each view becomes: itself and its copies."""
        return 1 + len(self.specs)

    def digest(self, views: str) -> str:
        """Returns the digest of views and copies, given that of the views."""
        # Features that do not say which copies changed are others.
        return hashlib.sha256(f"{views} {self.specs} {self.seed} compared".encode()).hexdigest()


class BrokenViews:
    """The views of each video, then a copy of them all an operation, in one go along the views.

    A video is decoded once. Its copies are broken by a generator of its own, so that they depend
    neither on the other videos, nor on ranks and workers. ``unchanged``, bool (looks * V,), says
    which copies came out as they went in, of a still for instance: those are no copies in a wrong
    order.

    Args:
        dataset: The views (V, C, T, H, W) of each video.
        copies: What becomes of them: samples hold (looks * V, C, T, H, W).

    Raises:
        ConfigError: If an operation cannot break clips of that length.
    """

    def __init__(self, dataset: ViewsDataset, copies: BrokenCopies) -> None:
        self.dataset = dataset
        self.seed = copies.seed
        self.operations: dict[str, Any] = {
            spec: NegativesConfig(spec=spec).operation() for spec in copies.specs
        }
        sampler = dataset.sampler
        frames = len(sampler.clip(0, sampler.span + 1))
        for operation in self.operations.values():
            # Here, in one line, rather than from a loader process. No operation minds the size.
            operation.check((1, 3, frames, 1, 1))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        if "video" not in sample:
            return sample
        views, path = sample["video"], self.dataset.records[index].path
        made = [
            operation.broken(views, generator=generator(self.seed, f"motion {spec} {path}"))
            for spec, operation in self.operations.items()
        ]
        copies = [each.pixels for each in made]
        unchanged = [torch.zeros(len(views), dtype=torch.bool), *(~each.changed for each in made)]
        # Copies of the same view may be broken in different ways.
        own = torch.arange(len(views), (1 + len(copies)) * len(views))
        return sample | {
            "video": torch.cat([views, *copies]),
            "same_as": torch.cat([sample["same_as"], own]),
            "unchanged": torch.cat(unchanged),
        }
