"""Intervals beside every resample there can be, loops, and studies in which nothing differs."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ndavid.engine.rng import generator
from ndavid.evaluation.intervals import wilson
from ndavid.study.groups import Group
from ndavid.study.intervals import (
    both,
    by_item,
    by_seed,
    item_means,
    resampled_means,
    source_values,
    two_way_error,
)

RESAMPLES = 200_000


def group(
    seeds: Sequence[int], *rows: Sequence[float], sources: Sequence[int] | None = None
) -> Group:
    table = torch.tensor(rows, dtype=torch.float64)
    numbers = range(table.shape[1]) if sources is None else sources
    return Group(tuple(seeds), table, torch.tensor(numbers))


CROSSED = [group([0, 1], [1.0, 0.0, -1.0, 0.5], [0.0, 0.0, 1.0, 0.5])]
NESTED = [group([0], [1.0, 0.0]), group([1], [0.0, -1.0, 0.25])]
MIXED = [group([0, 2], [1.0, 0.0], [0.5, 1.0]), group([1], [0.0, -1.0])]
SOURCES = [
    group([0, 1], [1.0, 0.0, -1.0, 0.5, 1.0], [0.0, 0.0, 1.0, 0.5, 0.0], sources=[0, 1, 0, 2, 0])
]


def all_draws(groups: Sequence[Group]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every way to draw as many sources as there are, with replacement, in each group."""
    counts = [len(one.sizes) for one in groups]
    return itertools.product(*(itertools.product(range(n), repeat=n) for n in counts))


def mean_of(groups: Sequence[Group], seed: int, draws: Sequence[tuple[int, ...]]) -> float:
    """A seed's mean over the items of the sources drawn for its group."""
    for place, one in enumerate(groups):
        if seed in one.seeds:
            row = one.table[one.seeds.index(seed)].tolist()
            sources = one.sources.tolist()
            values = [
                v for s in draws[place] for v, own in zip(row, sources, strict=True) if own == s
            ]
            return sum(values) / len(values)
    raise AssertionError(seed)


def looped_means(groups: Sequence[Group]) -> dict[float, float]:
    """The mean of all seeds -> its probability."""
    seeds = range(sum(len(one.seeds) for one in groups))
    values = [
        sum(mean_of(groups, seed, draws) for seed in seeds) / len(seeds)
        for draws in all_draws(groups)
    ]
    found: dict[float, float] = defaultdict(float)
    for value in values:
        found[round(value, 9)] += 1 / len(values)
    return found


@pytest.mark.parametrize(
    "groups",
    [CROSSED, NESTED, MIXED, SOURCES],
    ids=["crossed", "nested", "mixed", "sources"],
)
def test_sources_drawn_anew_beside_all_draws(groups: list[Group]) -> None:
    """Every value comes, and as often as it should, up to five standard errors."""
    means = item_means(groups, RESAMPLES).mean(dim=0)
    values, counts = means.round(decimals=9).unique(return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    expected = looped_means(groups)
    assert {*found} <= {*expected}
    for value, share in expected.items():
        error = math.sqrt(RESAMPLES * share * (1 - share))
        assert abs(found.get(value, 0) - RESAMPLES * share) < 5 * error + 1, value


def test_resampled_means_are_those_of_single_items_drawn_in_a_loop() -> None:
    """Of 500 items in many kinds: the spread that drawing item by item gives."""
    draws = generator(1, "test")
    table = torch.randint(-10, 11, (3, 500), generator=draws).double() / 10
    alone = Group((0, 1, 2), table, torch.arange(500))
    found = resampled_means(alone, 4000, generator(2, "test"))
    looped = torch.stack(
        [table[:, torch.randint(500, (500,), generator=draws)].mean(dim=1) for _ in range(4000)],
        dim=1,
    )
    assert found.mean(dim=1).sub(table.mean(dim=1)).abs().max() < 0.002
    # What seeds have in common too: the items are drawn alike for all of them.
    assert torch.allclose(found.cov(), looped.cov(), rtol=0.1, atol=3e-5)
    assert torch.allclose(found.cov(), table.cov() / 500, rtol=0.1, atol=3e-5)


def test_cifars_ten_thousand_items_take_no_time() -> None:
    draws = generator(0, "test")
    arm, base = (torch.randint(2, (3, 10_000), generator=draws).double() for _ in range(2))
    groups = [Group((0, 1, 2), arm - base, torch.arange(10_000))]
    began = time.process_time()
    items = by_item(groups, 10_000)
    wide = both(groups, items)
    assert time.process_time() - began < 3
    mean = (arm - base).mean(dim=0)
    error = 1.96 * mean.std().item() / 100  # of the mean of 10,000 items
    assert items.low == pytest.approx(mean.mean().item() - error, abs=0.1 * error)
    assert items.high == pytest.approx(mean.mean().item() + error, abs=0.1 * error)
    assert wide is not None and wide.low < items.low and items.high < wide.high


def test_clips_of_one_source_widen_the_interval() -> None:
    """Ten clips each of thirty sources that stand or fall together: as thirty, not as 300."""
    table = torch.randn(1, 30, generator=generator(3, "test"), dtype=torch.float64)
    clips = table.repeat_interleave(10, dim=1)
    few = by_item([Group((0,), table, torch.arange(30))], 4000)
    many = by_item([Group((0,), clips, torch.arange(30).repeat_interleave(10))], 4000)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    blind = by_item([Group((0,), clips, torch.arange(300))], 4000)
    assert (blind.high - blind.low) * math.sqrt(10) == pytest.approx(few.high - few.low, rel=0.1)


def test_by_seed_is_students_interval() -> None:
    # Of 1, 2 and 3: 2 and 4.3027 (tables of Student's t) times 1 / sqrt(3).
    found = by_seed(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert by_seed(torch.tensor([1.0], dtype=torch.float64)) is None


def looped_two_way(values: list[list[float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom, written out."""
    seeds, sources = len(values), len(values[0])
    mean = sum(map(sum, values)) / seeds / sources
    of_seed = [sum(row) / sources for row in values]
    of_source = [sum(row[g] for row in values) / seeds for g in range(sources)]
    ms_seed = sources * sum((m - mean) ** 2 for m in of_seed) / (seeds - 1)
    ms_source = seeds * sum((m - mean) ** 2 for m in of_source) / (sources - 1)
    rest = 0.0
    for s in range(seeds):
        for g in range(sources):
            rest += (values[s][g] - of_seed[s] - of_source[g] + mean) ** 2
    free = (seeds - 1) * (sources - 1)
    ms_rest = rest / free
    if ms_seed > ms_rest and ms_source > ms_rest:
        total = ms_seed + ms_source - ms_rest
        below = ms_seed**2 / (seeds - 1) + ms_source**2 / (sources - 1) + ms_rest**2 / free
        freedom = total**2 / below
    elif ms_seed > ms_rest:
        total, freedom = ms_seed, seeds - 1
    elif ms_source > ms_rest:
        total, freedom = ms_source, sources - 1
    else:
        total, freedom = ms_rest, free
    return math.sqrt(total / seeds / sources), freedom


def test_the_two_way_error_beside_loops() -> None:
    draws = generator(4, "test")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    kinds = set()
    for seed, source in itertools.product((0.0, 2.0), repeat=2):
        values = normal(8, 3, 5) + seed * normal(8, 3, 1) + source * normal(8, 1, 5)
        errors, freedoms = two_way_error(values)
        for one, error, freedom in zip(values, errors.tolist(), freedoms.tolist(), strict=True):
            expected = looped_two_way(one.tolist())
            assert (error, freedom) == pytest.approx(expected)
            kinds.add(expected[1] if expected[1] in (2, 4, 8) else 0)
    assert kinds == {0, 2, 4, 8}  # each of the four cases was met


def looped_source_values(one: Group) -> list[list[float]]:
    found = []
    for row in one.table.tolist():
        mean = sum(row) / len(row)
        count = len(one.sizes)
        found.append([mean] * count)
        for value, source in zip(row, one.sources.tolist(), strict=True):
            found[-1][source] += count / len(row) * (value - mean)
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(0, 99))
def test_values_of_sources_beside_loops(seeds: int, drawn: list[int], seed: int) -> None:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(drawn))}
    table = torch.randn(seeds, len(drawn), generator=generator(seed, "test"), dtype=torch.float64)
    one = Group(tuple(range(seeds)), table, torch.tensor([numbers[name] for name in drawn]))
    found = source_values(one)
    expected = torch.tensor(looped_source_values(one), dtype=torch.float64)
    assert torch.allclose(found, expected)
    assert torch.allclose(found.mean(dim=1), table.mean(dim=1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 12), st.integers(0, 99))
def test_with_one_item_a_source_nothing_changes(seeds: int, items: int, seed: int) -> None:
    draws = generator(seed, "test")
    table = torch.randint(-2, 3, (seeds, items), generator=draws).double()
    order = torch.randperm(items, generator=draws)
    alone = Group(tuple(range(seeds)), table, torch.arange(items))
    named = Group(tuple(range(seeds)), table, order)  # a name each, whatever it is
    assert torch.allclose(source_values(alone), table)
    first, second = by_item([alone], 300), by_item([named], 300)
    assert first == second
    one, other = both([alone], first), both([named], second)
    assert (one is None) == (other is None) == (seeds == 1)
    if one is not None and other is not None:  # sums are taken in another order
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-9)


@pytest.mark.parametrize("groups", [CROSSED, NESTED, MIXED, SOURCES])
def test_both_is_never_narrower_than_either(groups: list[Group]) -> None:
    items = by_item(groups, 1000)
    wide = both(groups, items)
    seeds = by_seed(torch.cat([one.table.mean(dim=1) for one in groups]))
    assert wide is not None and seeds is not None
    for part in (items, seeds):
        assert wide.low <= part.low and part.high <= wide.high


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([CROSSED, NESTED, MIXED, SOURCES]), st.integers(-3, 3))
def test_a_shift_of_all_outcomes_shifts_the_intervals(groups: list[Group], shift: int) -> None:
    moved = [Group(one.seeds, one.table + shift, one.sources) for one in groups]
    old, new = by_item(groups, 300), by_item(moved, 300)
    assert (new.low, new.high) == pytest.approx((old.low + shift, old.high + shift), abs=1e-9)
    wide, wider = both(groups, old), both(moved, new)
    assert wide is not None and wider is not None
    assert wider.low == pytest.approx(wide.low + shift, abs=1e-9)
    assert wider.high == pytest.approx(wide.high + shift, abs=1e-9)


@pytest.mark.parametrize("groups", [CROSSED, NESTED, MIXED, SOURCES])
def test_identical_outcomes_of_few_items_prove_no_equality(groups: list[Group]) -> None:
    nothing = [Group(one.seeds, torch.zeros_like(one.table), one.sources) for one in groups]
    items = by_item(nothing, 300)
    assert items.low == -items.high < -0.4 and both(nothing, items) == items


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_items_that_all_differ_by_the_same_leave_others_open(count: int, shift: float) -> None:
    items = by_item([group([0], [shift] * count)], 300)
    others = wilson(0, count).high
    # As many others as that could differ by anything from -1 to 1.
    expected = shift - others * (1 + shift), shift + others * (1 - shift)
    assert (items.low, items.high) == pytest.approx(expected)
    assert items.high - items.low > 0
    if count == 1:
        assert not items.excludes_zero()


def test_of_a_single_source_only_the_seeds_are_known() -> None:
    groups = [group([0, 1, 2], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0], sources=[0, 0])]
    assert both(groups, by_item(groups, 300)) == by_seed(
        torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    )


STUDIES = {300: 4000, 2000: 2000}


def false_exclusions(
    items: int, seed_sd: float, common: float, noise: list[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Shares of studies without an effect in which *both* and *by seed* exclude 0.

    Args:
        items: Tested by all seeds.
        seed_sd: Of the seeds' differences.
        common: The share of an item's variance (0.6 squared) that seeds have in common.
        noise: Standard normal (studies, 1, items) and (studies, seeds, items), in parts.
    """
    wrong_both = wrong_seed = studies = 0
    draws = generator(5, "test", items, round(1000 * seed_sd), round(10 * common))
    for shared, own in noise:
        seeds = torch.randn(len(own), own.shape[1], 1, generator=draws, dtype=torch.float64)
        values = 0.6 * (common**0.5 * shared + (1 - common) ** 0.5 * own) + seed_sd * seeds
        means = values.mean(dim=2)
        error, freedom = two_way_error(values)
        two_way = error * torch.from_numpy(stats.t.ppf(0.975, freedom.numpy()))
        single = means.std(dim=1) / means.shape[1] ** 0.5
        single *= float(stats.t.ppf(0.975, means.shape[1] - 1))
        # Of so many items the bootstrap is the normal interval.
        over_items = 1.96 * values.mean(dim=1).std(dim=1) / items**0.5
        half = torch.stack([two_way, single, over_items]).amax(dim=0)
        wrong_both += int((means.mean(dim=1).abs() > half).sum())
        wrong_seed += int((means.mean(dim=1).abs() > single).sum())
        studies += len(own)
    return wrong_both / studies, wrong_seed / studies


@pytest.mark.parametrize("items", [300, 2000])
def test_studies_without_an_effect_seldom_find_one(items: int) -> None:
    """Three seeds, whatever they vary by: at most one study in twenty, up to chance."""
    draws = generator(6, "test", items)
    part = 500
    sizes = [part] * (STUDIES[items] // part)
    noise = [
        (
            torch.randn(size, 1, items, generator=draws),
            torch.randn(size, 3, items, generator=draws),
        )
        for size in sizes
    ]
    for seed_sd, common in itertools.product((0.0, 0.02, 0.08), (0.0, 0.5, 1.0)):
        wrong_both, wrong_seed = false_exclusions(items, seed_sd, common, noise)
        print(f"n={items} sd={seed_sd} common={common}: {wrong_both:.3f} {wrong_seed:.3f}")
        assert wrong_both <= 0.065, (seed_sd, common)
        # By itself it is right where items give the seeds nothing in common.
        if common == 0.0:
            assert abs(wrong_seed - 0.05) <= 0.015, seed_sd
