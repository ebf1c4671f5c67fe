"""Differences between an arm and the baseline, seed by seed and item by item.

Both arms of a seed are measured on the same items, and what makes an item hard is common to both:
the difference an item is far less noisy than two accuracies side by side. Three 95% intervals
(``intervals.py``) say three things:

* *by item*: other test items, these trainings. It knows nothing of seeds.
* *by seed*: other trainings, these items.
* *both*: what another study would find. Where there are items, this one decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ndavid.study.collect import Collected, key_of
from ndavid.study.config import TRAINING
from ndavid.study.groups import Design, design_of, paired_groups
from ndavid.study.intervals import Interval, both, by_item, by_seed


@dataclass(frozen=True)
class Difference:
    """An arm minus the baseline, for one metric.

    Attributes:
        method, arm, measurement, metric: Of what.
        seeds: Those that both have, in order.
        by_seed_values: The difference in each of them.
        value: Their mean.
        items: Paired items, each counted once; 0 where the metric has none.
        sources: What they were cut from; as many as items where each stands alone.
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
    sources: int
    design: Design
    by_item: Interval | None
    by_seed: Interval | None
    both: Interval | None

    @property
    def deciding(self) -> Interval | None:
        """The widest interval that knows of seeds; None of a single one."""
        return self.both or self.by_seed

    def is_told(self) -> bool:
        """Whether the deciding interval excludes 0."""
        return self.deciding is not None and self.deciding.excludes_zero()


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
        single = torch.tensor(
            [values[own] - values[base] for own, base in both_have.values()], dtype=torch.float64
        )
        groups = paired_groups(
            [
                (collected.outcomes.get(own), collected.outcomes.get(base))
                for own, base in both_have.values()
            ],
            collected.sources.get(measurement, {}),
        )
        over_items = by_item(groups, resamples) if groups else None
        found.append(
            Difference(
                method=method,
                arm=arm,
                measurement=measurement,
                metric=metric,
                seeds=tuple(both_have),
                by_seed_values=tuple(single.tolist()),
                value=single.mean().item(),
                items=sum(group.table.shape[1] for group in groups),
                sources=sum(len(group.sizes) for group in groups),
                design=design_of(groups),
                by_item=over_items,
                by_seed=by_seed(single),
                both=None if over_items is None else both(groups, over_items),
            )
        )
    return found
