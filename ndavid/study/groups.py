"""Outcomes of an arm beside those of the baseline: which seeds share items, items share sources.

How seeds and items meet is the design:

* *crossed*: all seeds are tested on the same items.
* *nested*: each seed has items of its own, as when each is trained and tested on another official
  split.
* *mixed*: some seeds share their items, as when six are dealt three splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ndavid.study.collect import Outcomes

Design = Literal["crossed", "nested", "mixed", ""]


@dataclass(frozen=True)
class Group:
    """Seeds that are tested on the same items.

    Attributes:
        seeds: Their positions among all.
        table: Differences (seeds, items), float64.
        sources: The items' sources (items,), int64, counted from 0.
    """

    seeds: tuple[int, ...]
    table: Tensor
    sources: Tensor

    @property
    def sizes(self) -> Tensor:
        """Items of each source (sources,), float64."""
        return self.sources.bincount().double()

    @property
    def sums(self) -> Tensor:
        """Each source's differences, added up (seeds, sources)."""
        sums = torch.zeros(len(self.table), len(self.sizes), dtype=torch.float64)
        return sums.index_add_(1, self.sources, self.table)


def paired_groups(
    pairs: Sequence[tuple[Outcomes | None, Outcomes | None]], sources: Mapping[str, str]
) -> list[Group]:
    """Outcomes of an arm and of the baseline, a pair a seed -> groups of seeds with common items.

    Empty where a seed has no outcomes, or none that both arms have: a mean over the other seeds
    would be another number than the one it stands beside.

    Args:
        pairs: By seed.
        sources: Item -> its source; an item without one is its own.
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
        _group(seeds, [pairs[seed] for seed in seeds], sorted(common), sources)
        for seeds, common in zip(members, items, strict=True)
    ]


def _group(
    seeds: Sequence[int],
    pairs: Sequence[tuple[Outcomes | None, Outcomes | None]],
    items: Sequence[str],
    sources: Mapping[str, str],
) -> Group:
    table = torch.tensor(
        [[arm[i] - base[i] for i in items] for arm, base in pairs if arm and base],
        dtype=torch.float64,
    )
    names = [sources.get(item, item) for item in items]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Group(tuple(seeds), table, torch.tensor([numbers[name] for name in names]))


def design_of(groups: Sequence[Group]) -> Design:
    """How seeds and items meet; a single seed's items are crossed with it."""
    if not groups:
        return ""
    if len(groups) == 1:
        return "crossed"
    return "nested" if all(len(group.seeds) == 1 for group in groups) else "mixed"
