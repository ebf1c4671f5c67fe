"""95% intervals of a mean difference: over test items, over trainings, and over both.

* *By item* is a bootstrap (Efron 1979): sources, of which there are dozens or thousands, are drawn
  anew, each with all its items. Where all sources differ by the same, it knows no spread; others
  may yet differ by something else, and the interval reaches as far as a share of them could move it
  that Wilson's interval allows for.
* *By seed* is Student's t over the seeds' differences. Not a bootstrap: of three seeds it gives the
  least and the greatest difference, which exclude 0 in a quarter of all cases without an effect,
  when all three happen to fall on one side.
* *Both*, where all seeds are tested on the same items: the variance of a table of seeds by sources
  with random effects of both (two-way analysis of variance without replication), with the degrees
  of freedom of Satterthwaite (1946). That alone is too sure of itself: when three seeds happen to
  lie close together it takes them for equal, and excluded 0 in up to 8% of simulated cases without
  an effect (13% of two seeds). So the interval is never narrower than either of the others, and
  then 0.7% to 6% of three seeds did (``tests/study/test_intervals.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from ndavid.engine.rng import generator
from ndavid.evaluation.intervals import wilson
from ndavid.study.groups import Group, design_of

# Values that are equal but for the last bits are one.
_DECIMALS = 12


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def by_item(groups: Sequence[Group], resamples: int) -> Interval:
    """Other test items, these trainings: sources drawn anew within each group, alike for its seeds.

    Outcomes are taken to be in [0, 1] where no draw differs.

    Args:
        groups: All seeds.
        resamples: How often.
    """
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(item_means(groups, resamples).mean(dim=0), ends).tolist()
    if high - low > 10**-_DECIMALS:
        return Interval(low, high)
    others = _could_be_otherwise(groups)
    return Interval(low - others * max(1 + low, 0.0), high + others * max(1 - high, 0.0))


def _could_be_otherwise(groups: Sequence[Group]) -> float:
    """The share of all sources that may differ from those seen, none of which differs."""
    seeds = sum(len(group.seeds) for group in groups)
    return sum(len(group.seeds) * wilson(0, len(group.sizes)).high for group in groups) / seeds


def by_seed(values: Tensor) -> Interval | None:
    """Other trainings, these items: Student's t over ``values`` (seeds,); None of a single one."""
    if len(values) < 2:
        return None
    return _around(values.mean(), values.std() / len(values) ** 0.5, len(values) - 1)


def both(groups: Sequence[Group], items: Interval) -> Interval | None:
    """Other trainings and other items; None of a single seed.

    Where seeds have items of their own (nested), the spread of their differences holds the items'
    already, and the interval is that over seeds. So it is where some share items (mixed), which is
    a little narrow there: seeds with common items err together, and their spread does not show it.

    Args:
        groups: All seeds.
        items: Their interval `by_item`, which this one is never narrower than.
    """
    means = torch.cat([group.table.mean(dim=1) for group in groups])
    seeds = by_seed(means)
    if seeds is None:
        return None
    parts = [items, seeds]
    if design_of(groups) == "crossed" and len(groups[0].sizes) > 1:
        error, freedom = two_way_error(source_values(groups[0]))
        parts.append(_around(means.mean(), error, freedom.item()))
    return Interval(min(part.low for part in parts), max(part.high for part in parts))


def source_values(group: Group) -> Tensor:
    """What each source adds to the seeds' means (seeds, sources), linearised.

    A mean over items is a ratio, summed differences to summed counts. To first order it moves with
    a source's ``D + (G / N) * sum(y - D)`` over its items, D being the seed's mean, G the number of
    sources and N that of items (Cochran 1977, section 6). The mean of these is D; where each item
    is its own source they are its differences.
    """
    means = group.table.mean(dim=1, keepdim=True)
    share = len(group.sizes) / group.table.shape[1]
    return means + share * (group.sums - means * group.sizes)


def two_way_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """The standard error of the mean of ``values`` (..., seeds, sources), and its freedom, (...).

    Seeds and sources are random, with one value a cell:
    ``Var = (MS_seeds + MS_sources - MS_rest) / (seeds * sources)``. Where a mean square is below
    that of the rest, its effect's variance is estimated as negative: it is taken as 0, and the
    other mean square, or that of the rest, stands alone.

    Args:
        values: At least two seeds and two sources.
    """
    seeds, sources = values.shape[-2:]
    mean = values.mean(dim=(-2, -1), keepdim=True)
    of_seed, of_source = values.mean(dim=-1, keepdim=True), values.mean(dim=-2, keepdim=True)
    free = torch.tensor([seeds - 1, sources - 1, (seeds - 1) * (sources - 1)], dtype=torch.float64)
    sums = [
        sources * (of_seed - mean).square().sum(dim=(-2, -1)),
        seeds * (of_source - mean).square().sum(dim=(-2, -1)),
        (values - of_seed - of_source + mean).square().sum(dim=(-2, -1)),
    ]
    squares = torch.stack(sums, dim=-1) / free
    # Where they are equal, rounding must not decide.
    there = (squares[..., :2] > squares[..., 2:] * (1 + 1e-9)).double()
    signs = torch.cat([there, 1 - there.sum(dim=-1, keepdim=True)], dim=-1)
    parts = signs * squares
    total = parts.sum(dim=-1)
    # Of values that are all alike, nothing is free and nothing varies: any number will do.
    freedom = torch.where(total > 0, total.square() / (parts.square() / free).sum(dim=-1), 1.0)
    return (total / (seeds * sources)).sqrt(), freedom


def item_means(groups: Sequence[Group], resamples: int) -> Tensor:
    """Each seed's mean (seeds, resamples), sources drawn anew within each group."""
    seeds = sum(len(group.seeds) for group in groups)
    means = torch.empty(seeds, resamples, dtype=torch.float64)
    for number, group in enumerate(groups):
        draws = generator(0, "bootstrap items", number)
        means[list(group.seeds)] = resampled_means(group, resamples, draws)
    return means


def resampled_means(group: Group, resamples: int, draws: torch.Generator) -> Tensor:
    """Means over items (seeds, resamples), sources drawn with replacement, alike for all seeds.

    Sources of as many items with the same sums are of a kind. How many of a kind are drawn is
    binomial, given those of the kinds before it: the same distribution as source by source, and of
    thousands of images kinds are few.
    """
    columns = torch.cat([group.sums, group.sizes[None]])
    kinds, counts = columns.round(decimals=_DECIMALS).unique(dim=1, return_counts=True)
    remaining = columns.shape[1]
    open_draws = torch.full((resamples,), float(remaining), dtype=torch.float64)
    sums = torch.zeros(len(columns), resamples, dtype=torch.float64)
    for kind, count in zip(kinds.T, counts.tolist(), strict=True):
        share = torch.full_like(open_draws, count / remaining)
        drawn = torch.binomial(open_draws, share, generator=draws)
        sums += kind[:, None] * drawn
        open_draws -= drawn
        remaining -= count
    return sums[:-1] / sums[-1]


def _around(mean: Tensor, error: Tensor, freedom: float) -> Interval:
    half = float(stats.t.ppf(0.975, freedom)) * error.item()
    return Interval(mean.item() - half, mean.item() + half)
