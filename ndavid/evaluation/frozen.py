"""What every evaluation on frozen features shares: features of two splits, and the Result of them.

Where the features come from is another file's business (``frozen_videos``, ``frozen_images``); what
is done with them is the evaluator's: ``linear`` fits a regression, ``retrieval`` and ``knn``
nothing, ``ood`` asks how far test features lie from those of training.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ndavid.collectives import world_size
from ndavid.engine.environment import describe as describe_environment
from ndavid.evaluation.features import Features
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.outcomes import Outcome
from ndavid.evaluation.pretrained import Pretrained
from ndavid.evaluation.protocol import Protocol, Result
from ndavid.evaluation.provenance import Provenance


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Features of training items and of those that are measured, and where they come from.

    Attributes:
        classes: Names in label order.
        loaded: The encoder.
        provenance: What the encoder has seen before.
        train: Features of the training items.
        test: Features of the items that are measured.
        looked_at: How the data was read; evaluators add how they measured.
        gallery: The training items in words, with what was left out.
        seed: The run's seed.
        device: Where features are computed.
        started: ``time.monotonic`` when work began.
    """

    classes: tuple[str, ...]
    loaded: Pretrained
    provenance: Provenance
    train: Features
    test: Features
    looked_at: Protocol
    gallery: str
    seed: int
    device: torch.device
    started: float

    def protocol(self, *, averaging: str, selection: str, notes: Sequence[str] = ()) -> Protocol:
        """Returns how the items were measured; ``notes`` follow those on data and weights."""
        before = (*self.looked_at.notes, *self.loaded.notes, *self.provenance.notes)
        return dataclasses.replace(
            self.looked_at,
            averaging=averaging,
            selection=selection,
            num_bad=len(self.test.bad),
            notes=[*before, *notes],
            warnings=[*self.looked_at.warnings],
        )

    def result(
        self,
        task: str,
        metrics: dict[str, Metric],
        protocol: Protocol,
        *,
        chances: dict[str, float],
        details: dict[str, Any],
        outcomes: Sequence[Outcome] = (),
    ) -> Result:
        """Returns the Result; ``details`` come before those on weights and unreadable items.

        ``chances`` are what guessing would score; the first is that of the whole Result.
        """
        return Result(
            task=task,
            metrics=metrics,
            protocol=protocol,
            network=self.loaded.encoder,
            chance=next(iter(chances.values()), None),
            chances=chances,
            checkpoint=self.loaded.source,
            seed=self.seed,
            seconds=time.monotonic() - self.started,
            environment=describe_environment(
                seed=self.seed, device=self.device, world_size=world_size(), precision="no"
            ),
            details={
                **details,
                "key_report": self.loaded.key_report,
                "pretraining": self.provenance.details,
                "bad": [list(entry) for entry in (*self.train.bad, *self.test.bad)],
            },
            outcomes=list(outcomes),
        )
