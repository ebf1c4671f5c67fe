"""The questionable protocol of DPC's fine-tuning code, rebuilt so that it can be compared with.

Han, Xie and Zisserman (2019): ``eval/test.py`` of their code prints the accuracy of a "validation"
set that is made of test videos:

1. videos of ``span`` frames or fewer (120 for 8 blocks of 5 at stride 3) are dropped;
2. 30% of what is left of the *test* split is drawn, with pandas' rounding;
3. only full batches count, so that the last few videos of an order are never scored;
4. one random, augmented clip a video;
5. the best epoch on that same subset is the number reported.

UCF101 split 1: 3783 -> 2658 -> 797 -> 784 videos with batches of 16. HMDB51 split 1: 1530 -> 232 ->
70 -> 64: one video is 1.56 points.

Differences from the original: the subset is drawn from the run's seed, where the original redrew it
unseeded at every start; batch norm and everything else run as in the full protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ndavid.data.manifest import ClipRecord
from ndavid.errors import ConfigError

FRACTION = 0.3
BATCH_SIZE = 16

NOTES = (
    "paper_compat rebuilds the protocol of DPC's fine-tuning code; its numbers are "
    "not comparable with the full protocol, nor with published full-split numbers.",
    "The best epoch was chosen on the very test videos reported here: the value is biased upwards.",
    "One random augmented clip a video; short videos dropped from training and test.",
)


@dataclass(frozen=True)
class Subset:
    """The videos that ``paper_compat`` may score.

    Attributes:
        records: The drawn 30% of the long test videos, in drawn order.
        num_test: Videos of the official test split.
        num_long: Those longer than the span.
        num_scored: How many of ``records`` full batches hold.
    """

    records: tuple[ClipRecord, ...]
    num_test: int
    num_long: int
    num_scored: int

    @property
    def scored(self) -> tuple[ClipRecord, ...]:
        """The videos in full batches."""
        return self.records[: self.num_scored]

    def describe(self) -> str:
        """Returns the chain of sizes, e.g. ``3783 test videos -> 2658 longer than ...``."""
        return (
            f"{self.num_test} test videos -> {self.num_long} longer than a clip -> "
            f"{len(self.records)} drawn (30%) -> {self.num_scored} in full batches"
        )


def long_enough(records: Sequence[ClipRecord], span: int) -> tuple[ClipRecord, ...]:
    """Returns the records with more than ``span`` frames: exactly ``span`` is dropped too."""
    return tuple(record for record in records if record.num_frames > span)


def draw_subset(
    test: Sequence[ClipRecord],
    span: int,
    generator: torch.Generator,
    *,
    fraction: float = FRACTION,
    batch_size: int = BATCH_SIZE,
) -> Subset:
    """Draws the subset of the test split that the paper's code would score.

    Raises:
        ConfigError: If no full batch is left.
    """
    kept = long_enough(test, span)
    # pandas' DataFrame.sample rounds frac * rows to the nearest whole number, halves to even.
    drawn = round(fraction * len(kept))
    order = torch.randperm(len(kept), generator=generator)[:drawn].tolist()
    scored = drawn // batch_size * batch_size
    if scored == 0:
        raise ConfigError(
            f"paper_compat leaves {drawn} of {len(test)} test videos (longer than {span} frames, "
            f"30% of those), fewer than one batch of {batch_size}; use protocol=full"
        )
    return Subset(tuple(kept[i] for i in order), len(test), len(kept), scored)
