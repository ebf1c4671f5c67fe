"""Intervals of differences, beside every resample there can be, written out in loops."""

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
from torch import Tensor

from ndavid.engine.rng import generator
from ndavid.study.collect import Collected, Key, Row
from ndavid.study.paired import (
    Difference,
    Group,
    design_of,
    differences,
    interval,
    item_means,
    over_both,
    over_seeds,
    paired_groups,
    resampled_means,
)

RESAMPLES = 200_000


def group(seeds: Sequence[int], *rows: Sequence[float]) -> Group:
    return Group(tuple(seeds), torch.tensor(rows, dtype=torch.float64))


CROSSED = [group([0, 1], [1.0, 0.0, -1.0, 0.5], [0.0, 0.0, 1.0, 0.5])]
NESTED = [group([0], [1.0, 0.0]), group([1], [0.0, -1.0, 0.25])]
MIXED = [group([0, 2], [1.0, 0.0], [0.5, 1.0]), group([1], [0.0, -1.0])]


def over_items(groups: Sequence[Group], resamples: int) -> Tensor:
    """The seeds' mean, items drawn anew."""
    return item_means(groups, resamples).mean(dim=0)


def over_all(groups: Sequence[Group], resamples: int) -> Tensor:
    """The seeds' mean, seeds and items drawn anew."""
    return over_both(groups, item_means(groups, resamples))


def drawn_items(count: int) -> Iterator[tuple[int, ...]]:
    """Every way to draw as many items as there are, with replacement."""
    return itertools.product(range(count), repeat=count)


def mean_of(groups: Sequence[Group], seed: int, draws: Sequence[tuple[int, ...]]) -> float:
    """A seed's mean over the items drawn for its group."""
    for place, one in enumerate(groups):
        if seed in one.seeds:
            row = one.table[one.seeds.index(seed)].tolist()
            return sum(row[item] for item in draws[place]) / len(draws[place])
    raise AssertionError(seed)


def count_of(groups: Sequence[Group]) -> int:
    return sum(len(one.seeds) for one in groups)


def all_draws(groups: Sequence[Group]) -> Iterator[tuple[tuple[int, ...], ...]]:
    return itertools.product(*(drawn_items(one.table.shape[1]) for one in groups))


def by_item(groups: Sequence[Group]) -> list[float]:
    seeds = range(count_of(groups))
    return [
        sum(mean_of(groups, seed, draws) for seed in seeds) / len(seeds)
        for draws in all_draws(groups)
    ]


def both_shared(groups: Sequence[Group]) -> list[float]:
    """Seeds drawn, and items once a group, whatever seeds were drawn."""
    count = count_of(groups)
    return [
        sum(mean_of(groups, seed, draws) for seed in seeds) / count
        for draws in all_draws(groups)
        for seeds in itertools.product(range(count), repeat=count)
    ]


def both_nested(groups: Sequence[Group]) -> dict[float, float]:
    """Seeds drawn, and items anew for each of them: outcomes -> probability."""
    count = count_of(groups)
    single: list[dict[float, float]] = []
    for seed, one in enumerate(groups):
        means: dict[float, float] = defaultdict(float)
        draws = [*drawn_items(one.table.shape[1])]
        for items in draws:
            whole = tuple(items if k == seed else (0,) for k in range(len(groups)))
            means[mean_of(groups, seed, whole)] += 1 / len(draws) / count
        single.append(means)
    one_turn: dict[float, float] = defaultdict(float)
    for means in single:
        for value, share in means.items():
            one_turn[value] += share
    found: dict[float, float] = defaultdict(float)
    for turns in itertools.product(one_turn.items(), repeat=count):
        value = sum(value for value, _ in turns) / count
        found[round(value, 9)] += math.prod(share for _, share in turns)
    return found


def shares(values: Sequence[float]) -> dict[float, float]:
    found: dict[float, float] = defaultdict(float)
    for value in values:
        found[round(value, 9)] += 1 / len(values)
    return found


def assert_drawn_from(means: Tensor, expected: dict[float, float]) -> None:
    """Every value comes, and as often as it should, up to five standard errors."""
    values, counts = means.round(decimals=9).unique(return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert len(means) == RESAMPLES and {*found} <= {*expected}
    for value, share in expected.items():
        error = math.sqrt(RESAMPLES * share * (1 - share))
        assert abs(found.get(value, 0) - RESAMPLES * share) < 5 * error + 1, value


@pytest.mark.parametrize("groups", [CROSSED, NESTED, MIXED], ids=["crossed", "nested", "mixed"])
def test_items_drawn_anew_beside_all_draws(groups: list[Group]) -> None:
    assert_drawn_from(over_items(groups, RESAMPLES), shares(by_item(groups)))


def test_seeds_drawn_anew_beside_all_draws() -> None:
    values = [0.1, -0.2, 0.4]
    expected = [sum(drawn) / 3 for drawn in itertools.product(values, repeat=3)]
    found = over_seeds(torch.tensor(values, dtype=torch.float64), RESAMPLES)
    assert_drawn_from(found, shares(expected))


@pytest.mark.parametrize("groups", [CROSSED, MIXED], ids=["crossed", "mixed"])
def test_seeds_and_shared_items_drawn_anew_beside_all_draws(groups: list[Group]) -> None:
    assert_drawn_from(over_all(groups, RESAMPLES), shares(both_shared(groups)))


def test_seeds_and_their_own_items_drawn_anew_beside_all_draws() -> None:
    assert_drawn_from(over_all(NESTED, RESAMPLES), both_nested(NESTED))


def test_resampled_means_are_those_of_single_items_drawn_in_a_loop() -> None:
    """Of 500 items in many kinds: the spread that drawing item by item gives."""
    draws = generator(1, "test")
    table = torch.randint(-10, 11, (3, 500), generator=draws).double() / 10
    found = resampled_means(table, 4000, generator(2, "test"))
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
    groups = [Group((0, 1, 2), arm - base)]
    began = time.process_time()
    both, items = interval(over_all(groups, 10_000)), interval(over_items(groups, 10_000))
    assert time.process_time() - began < 3
    mean = (arm - base).mean(dim=0)
    error = 1.96 * mean.std().item() / 100  # of the mean of 10,000 items
    assert items.low == pytest.approx(mean.mean().item() - error, abs=0.1 * error)
    assert items.high == pytest.approx(mean.mean().item() + error, abs=0.1 * error)
    assert both.low < items.low and items.high < both.high


outcome = st.integers(0, 10).map(lambda tenths: tenths / 10)


@st.composite
def outcomes(draw: st.DrawFn) -> list[tuple[dict[str, float], dict[str, float]]]:
    """A pair a seed, of an arm and of the baseline; seeds share their items or none."""
    seeds, items = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    nested = draw(st.booleans())
    found = []
    for seed in range(seeds):
        names = [f"{seed if nested else 0}:v{k}" for k in range(items)]
        arm, base = ({name: draw(outcome) for name in names} for _ in range(2))
        found.append((arm, base))
    return found


@settings(max_examples=40, deadline=None)
@given(outcomes(), st.integers(-3, 3))
def test_a_shift_of_all_outcomes_shifts_the_intervals(
    pairs: list[tuple[dict[str, float], dict[str, float]]], shift: int
) -> None:
    moved = [({k: v + shift for k, v in arm.items()}, base) for arm, base in pairs]
    before, after = paired_groups(pairs), paired_groups(moved)
    assert design_of(before) == design_of(after)
    for draw in (over_items, over_all):
        old, new = interval(draw(before, 300)), interval(draw(after, 300))
        assert new.low == pytest.approx(old.low + shift, abs=1e-9)
        assert new.high == pytest.approx(old.high + shift, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(outcomes())
def test_identical_arms_differ_by_exactly_nothing(
    pairs: list[tuple[dict[str, float], dict[str, float]]],
) -> None:
    groups = paired_groups([(arm, dict(arm)) for arm, _ in pairs])
    for draw in (over_items, over_all):
        found = interval(draw(groups, 300))
        assert (found.low, found.high) == (0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(outcomes())
def test_the_other_way_round_the_differences_change_their_sign(
    pairs: list[tuple[dict[str, float], dict[str, float]]],
) -> None:
    ours = paired_groups(pairs)
    theirs = paired_groups([(base, arm) for arm, base in pairs])
    assert [one.seeds for one in ours] == [one.seeds for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.table, -other.table)


def test_seeds_are_grouped_by_the_items_that_they_share() -> None:
    first, second = {"1:a": 1.0, "1:b": 0.0}, {"2:a": 0.0, "2:b": 0.5}
    zero = dict.fromkeys([*first, *second], 0.0)
    crossed = paired_groups([(first, zero), ({**first, "1:c": 1.0}, {**zero, "1:d": 1.0})])
    assert design_of(crossed) == "crossed"
    assert crossed[0].table.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    nested = paired_groups([(first, zero), (second, zero)])
    assert design_of(nested) == "nested" and [g.seeds for g in nested] == [(0,), (1,)]
    assert [g.table.tolist() for g in nested] == [[[1.0, 0.0]], [[0.0, 0.5]]]
    mixed = paired_groups([(first, zero), (second, zero), (first, zero)])
    assert design_of(mixed) == "mixed" and [g.seeds for g in mixed] == [(0, 2), (1,)]
    assert design_of(paired_groups([(second, zero)])) == "crossed"


def test_without_the_items_of_one_seed_there_is_nothing_to_pair() -> None:
    one = {"0:a": 1.0}
    for missing in ((one, None), (None, one), (one, {"0:b": 1.0}), (None, None)):
        assert paired_groups([(one, one), missing]) == []
    assert design_of([]) == ""


def collected(values: dict[tuple[str, int], list[float]], *, items: bool = True) -> Collected:
    """One method, measurement and metric: (arm, seed) -> the outcomes of its items."""
    found = Collected()
    for (arm, seed), right in values.items():
        row = Row(
            method="m",
            arm=arm,
            seed=seed,
            measurement="knn",
            metric="top1",
            value=sum(right) / len(right),
            n=len(right),
            training_seconds=1.0,
            seconds=1.0,
        )
        found.rows.append(row)
        if items:
            key: Key = ("m", arm, seed, "knn", "top1")
            found.outcomes[key] = {f"0:v{k}": value for k, value in enumerate(right)}
    return found


VALUES = {
    ("none", 2): [1.0, 0.0, 0.0, 0.0],
    ("none", 1): [0.0, 0.0, 0.0, 1.0],
    ("jigsaw", 1): [1.0, 1.0, 0.0, 1.0],
    ("jigsaw", 2): [1.0, 1.0, 1.0, 0.0],
    ("jigsaw", 3): [1.0, 1.0, 1.0, 1.0],  # the baseline of this seed is not there yet
    ("stitch", 2): [0.0, 0.0, 0.0, 0.0],
}


def test_differences_are_taken_seed_by_seed() -> None:
    jigsaw, stitch = differences(collected(VALUES), "none", 500)
    assert (jigsaw.arm, jigsaw.seeds, jigsaw.by_seed_values) == ("jigsaw", (1, 2), (0.5, 0.5))
    assert (jigsaw.value, jigsaw.items, jigsaw.design) == (0.5, 4, "crossed")
    assert jigsaw.by_seed is not None and (jigsaw.by_seed.low, jigsaw.by_seed.high) == (0.5, 0.5)
    assert jigsaw.by_item is not None and jigsaw.both is not None
    assert jigsaw.both.low <= jigsaw.by_item.low <= 0.5 <= jigsaw.by_item.high <= jigsaw.both.high
    # One seed says nothing about seeds.
    assert (stitch.seeds, stitch.value) == ((2,), -0.25)
    assert stitch.by_item is not None and stitch.by_seed is None and stitch.both is None
    assert not stitch.is_told()


def test_metrics_without_outcomes_have_an_interval_by_seed_only() -> None:
    jigsaw, _ = differences(collected(VALUES, items=False), "none", 500)
    assert (jigsaw.items, jigsaw.design, jigsaw.by_item, jigsaw.both) == (0, "", None, None)
    assert jigsaw.by_seed is not None and jigsaw.is_told()


def test_the_same_outcomes_give_the_same_digits_whatever_else_is_there() -> None:
    everything = differences(collected(VALUES), "none", 500)
    few = {key: value for key, value in VALUES.items() if key[0] != "stitch"}
    alone = differences(collected(dict(reversed(few.items()))), "none", 500)
    assert everything[0] == alone[0]


def test_diagnostics_of_trainings_are_not_compared() -> None:
    found = collected({("none", 1): [1.0], ("jigsaw", 1): [0.0]})
    for row in found.rows:
        object.__setattr__(row, "measurement", "training")
    assert differences(found, "none", 500) == []


def test_a_difference_is_told_by_the_interval_that_knows_of_seeds() -> None:
    values = {("none", s): [0.0] * 8 for s in (0, 1)}
    values |= {("far", 0): [1.0] * 8, ("far", 1): [0.0] * 8}
    (far,) = differences(collected(values), "none", 500)
    assert isinstance(far, Difference)
    assert far.by_item is not None and far.by_item.excludes_zero()
    assert far.both is not None and not far.both.excludes_zero() and not far.is_told()
