"""Differences between an arm and the baseline, seed by seed and item by item.

Both arms of a seed are measured on the same items, and what makes an item hard is common to both:
the difference an item is far less noisy than two accuracies side by side. Three 95% intervals, by
the percentile bootstrap (Efron 1979), say three things:

* *by item*: other test videos, these trainings. It knows nothing of seeds.
* *by seed*: other trainings, these videos. With three seeds it is hardly wider than from the least
  to the greatest of three differences: too narrow to be trusted alone.
* *both*: seeds and items are drawn anew. This is the one to believe.

How items are drawn anew depends on the design:

* *crossed*: all seeds are tested on the same items, which are drawn alike for all, independently of
  the seeds (the crossed bootstrap of Owen 2007, which errs on the wide side).
* *nested*: each seed has items of its own, as when each is trained and tested on another official
  split. Items are drawn within each seed, and for *both* within each seed drawn (the two-stage
  bootstrap of Davison and Hinkley 1997, section 3.8, which errs on the wide side too).
* *mixed*: some seeds share their items, as when six are dealt three splits. Items are drawn within
  each split, alike for its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ndavid.engine.rng import generator
from ndavid.study.collect import Collected, Outcomes, key_of
from ndavid.study.config import TRAINING

Design = Literal["crossed", "nested", "mixed", ""]

# Values that are equal but for the last bits are one.
_DECIMALS = 12


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline, for one metric.

    Attributes:
        method, arm, measurement, metric: Of what.
        seeds: Those that both have, in order.
        by_seed_values: The difference in each of them.
        value: Their mean.
        items: Paired items, each counted once; 0 where the metric has none.
        design: Whether seeds share their items; empty where there are no items.
        by_item, by_seed, both: Intervals; None where there are no items, or fewer than two seeds.
    """

    method: str
    arm: str
    measurement: str
    metric: str
    seeds: tuple[int, ...]
    by_seed_values: tuple[float, ...]
    value: float
    items: int
    design: Design
    by_item: Interval | None
    by_seed: Interval | None
    both: Interval | None

    def is_told(self) -> bool:
        """Whether the widest interval that knows of seeds excludes 0."""
        interval = self.both or self.by_seed
        return interval is not None and interval.excludes_zero()


@dataclass(frozen=True)
class Group:
    """Seeds that are tested on the same items.

    Attributes:
        seeds: Their positions among all.
        table: Differences (seeds, items), float64.
    """

    seeds: tuple[int, ...]
    table: Tensor


def differences(collected: Collected, baseline: str, resamples: int) -> list[Difference]:
    """All differences to the baseline, in the rows' order; of single seeds too.

    A rerun gives the same digits: what is drawn depends on the outcomes alone.
    """
    values = {key_of(row): row.value for row in collected.rows if row.measurement != TRAINING}
    seeds = sorted({row.seed for row in collected.rows})
    compared = dict.fromkeys(
        (method, arm, measurement, metric)
        for method, arm, _, measurement, metric in values
        if arm != baseline
    )
    found = []
    for method, arm, measurement, metric in compared:
        keys = {
            seed: tuple((method, one, seed, measurement, metric) for one in (arm, baseline))
            for seed in seeds
        }
        both_have = {seed: pair for seed, pair in keys.items() if {*pair} <= values.keys()}
        if not both_have:
            continue
        by_seed = torch.tensor(
            [values[own] - values[base] for own, base in both_have.values()], dtype=torch.float64
        )
        groups = paired_groups(
            [
                (collected.outcomes.get(own), collected.outcomes.get(base))
                for own, base in both_have.values()
            ]
        )
        several = len(both_have) > 1
        means = item_means(groups, resamples) if groups else None
        found.append(
            Difference(
                method=method,
                arm=arm,
                measurement=measurement,
                metric=metric,
                seeds=tuple(both_have),
                by_seed_values=tuple(by_seed.tolist()),
                value=by_seed.mean().item(),
                items=sum(group.table.shape[1] for group in groups),
                design=design_of(groups),
                by_item=None if means is None else interval(means.mean(dim=0)),
                by_seed=interval(over_seeds(by_seed, resamples)) if several else None,
                both=None if means is None or not several else interval(over_both(groups, means)),
            )
        )
    return found


def paired_groups(pairs: Sequence[tuple[Outcomes | None, Outcomes | None]]) -> list[Group]:
    """Outcomes of an arm and of the baseline, a pair a seed -> groups of seeds with common items.

    Empty where a seed has no outcomes, or none that both arms have: a mean over the other seeds
    would be another number than the one it stands beside.
    """
    members: list[list[int]] = []
    items: list[set[str]] = []
    for seed, (arm, base) in enumerate(pairs):
        own = {*arm} & {*base} if arm is not None and base is not None else set()
        if not own:
            return []
        for group, common in enumerate(items):
            # Not all of them: an evaluation may have left an item out.
            if common & own:
                members[group].append(seed)
                common &= own
                break
        else:
            members.append([seed])
            items.append(own)
    return [
        Group(tuple(seeds), _table([pairs[seed] for seed in seeds], sorted(common)))
        for seeds, common in zip(members, items, strict=True)
    ]


def _table(
    pairs: Sequence[tuple[Outcomes | None, Outcomes | None]], items: Sequence[str]
) -> Tensor:
    return torch.tensor(
        [[arm[i] - base[i] for i in items] for arm, base in pairs if arm and base],
        dtype=torch.float64,
    )


def design_of(groups: Sequence[Group]) -> Design:
    """How seeds and items meet; a single seed's items are crossed with it."""
    if not groups:
        return ""
    if len(groups) == 1:
        return "crossed"
    return "nested" if all(len(group.seeds) == 1 for group in groups) else "mixed"


def item_means(groups: Sequence[Group], resamples: int, turn: int = 0) -> Tensor:
    """Each seed's mean (seeds, resamples), items drawn anew within each group.

    Args:
        groups: All seeds.
        resamples: How often.
        turn: Another number draws other items.
    """
    seeds = sum(len(group.seeds) for group in groups)
    means = torch.empty(seeds, resamples, dtype=torch.float64)
    for number, group in enumerate(groups):
        draws = generator(0, "bootstrap items", number, turn)
        means[list(group.seeds)] = resampled_means(group.table, resamples, draws)
    return means


def over_seeds(values: Tensor, resamples: int) -> Tensor:
    """The mean (resamples,) of ``values`` (seeds,), seeds drawn anew."""
    return values[_drawn_seeds(len(values), resamples)].mean(dim=0)


def over_both(groups: Sequence[Group], means: Tensor) -> Tensor:
    """The mean (resamples,), seeds and items drawn anew as the design wants it.

    Args:
        groups: All seeds.
        means: Their `item_means` (seeds, resamples).
    """
    seeds, resamples = means.shape
    drawn = _drawn_seeds(seeds, resamples)
    if design_of(groups) != "nested":
        return means.gather(0, drawn).mean(dim=0)
    # A seed that is drawn twice has other items each time.
    turns = [means, *(item_means(groups, resamples, turn) for turn in range(1, seeds))]
    chosen = [turn.gather(0, one[None]) for turn, one in zip(turns, drawn, strict=True)]
    return torch.cat(chosen).mean(dim=0)


def interval(means: Tensor) -> Interval:
    """The middle 95% of resampled means."""
    ends = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype))
    return Interval(ends[0].item(), ends[1].item())


def resampled_means(table: Tensor, resamples: int, draws: torch.Generator) -> Tensor:
    """Means (seeds, resamples) over items drawn with replacement, alike for all seeds.

    Items with the same differences are of a kind. How many of a kind are drawn is binomial, given
    those of the kinds before it: the same distribution as item by item, and kinds are few.

    Args:
        table: Differences (seeds, items), float64.
        resamples: How often.
        draws: Where from.
    """
    kinds, sizes = table.round(decimals=_DECIMALS).unique(dim=1, return_counts=True)
    remaining = table.shape[1]
    open_draws = torch.full((resamples,), float(remaining), dtype=torch.float64)
    sums = torch.zeros(len(table), resamples, dtype=torch.float64)
    for kind, size in zip(kinds.T, sizes.tolist(), strict=True):
        share = torch.full_like(open_draws, size / remaining)
        count = torch.binomial(open_draws, share, generator=draws)
        sums += kind[:, None] * count
        open_draws -= count
        remaining -= size
    return sums / table.shape[1]


def _drawn_seeds(seeds: int, resamples: int) -> Tensor:
    """Positions (seeds, resamples) of seeds drawn with replacement."""
    return torch.randint(seeds, (seeds, resamples), generator=generator(0, "bootstrap seeds"))
