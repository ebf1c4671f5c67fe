"""Intervals against published values, the bootstrap, and their own coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ndavid.evaluation import intervals
from ndavid.evaluation.intervals import (
    Metric,
    auroc,
    mean_class_accuracy,
    mean_of_independent,
    mean_of_items,
    top_k_accuracy,
    wilson,
)


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_newcombes_table(
    successes: int, trials: int, low: float, high: float
) -> None:
    metric = wilson(successes, trials)
    assert metric.value == successes / trials
    assert metric.n == trials
    assert (metric.low, metric.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_own_equation(counts: tuple[int, int]) -> None:
    successes, trials = counts
    metric = wilson(successes, trials)
    assert 0 <= metric.low <= metric.value <= metric.high <= 1
    # The ends are where the score test against the true proportion is just rejected.
    for end in (metric.low, metric.high):
        if 0 < end < 1:
            score = (metric.value - end) / math.sqrt(end * (1 - end) / trials)
            assert abs(score) == pytest.approx(1.959964, rel=1e-4)


def test_a_proportion_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="3 successes in 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="at least one part"):
        mean_of_independent([])


def test_one_class_has_the_interval_of_a_proportion() -> None:
    alone, proportion = mean_class_accuracy([7], [10]), wilson(7, 10)
    assert alone.n == proportion.n
    assert (alone.value, alone.low, alone.high) == pytest.approx(
        (proportion.value, proportion.low, proportion.high)
    )


def test_mean_class_accuracy_weighs_classes_alike_and_leaves_empty_ones_out() -> None:
    metric = mean_class_accuracy([90, 1, 0], [100, 2, 0])
    assert metric.value == pytest.approx((0.9 + 0.5) / 2)
    assert metric.n == 102


def test_mean_class_interval_agrees_with_a_stratified_bootstrap() -> None:
    totals, correct = [40, 25, 60, 33], [30, 12, 51, 9]
    metric = mean_class_accuracy(correct, totals)
    generator = torch.Generator().manual_seed(0)
    count = torch.tensor(totals, dtype=torch.float64).expand(20000, -1).contiguous()
    share = torch.tensor(correct, dtype=torch.float64) / torch.tensor(totals)
    draws = torch.binomial(count, share.expand(20000, -1).contiguous(), generator) / count
    low, high = draws.mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert (metric.low, metric.high) == pytest.approx((low, high), abs=0.012)


def test_mean_class_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    totals, truth = [12, 8, 20, 15, 10, 9], torch.tensor([0.9, 0.3, 0.98, 0.5, 0.7, 0.05])
    repeats = 1500
    count = torch.tensor(totals, dtype=torch.float32).expand(repeats, -1).contiguous()
    drawn = torch.binomial(count, truth.expand(repeats, -1).contiguous(), generator).int().tolist()
    inside = sum(
        metric.low <= float(truth.mean()) <= metric.high
        for metric in (mean_class_accuracy(row, totals) for row in drawn)
    )
    # Four standard errors of a 95% coverage over 1500 repeats are 0.023.
    assert 0.927 <= inside / repeats <= 0.985


def test_perfect_results_keep_an_interval() -> None:
    metric = mean_class_accuracy([10, 10], [10, 10])
    assert metric.value == 1 and metric.high == 1
    assert 0.7 < metric.low < 1


def test_top_k_accuracy_counts_hits() -> None:
    assert top_k_accuracy([True, False, True, True]) == wilson(3, 4)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_auroc_equals_scikit_learns_and_the_loop(seed: int, inside: int, outside: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Few distinct values, so that there are ties.
    negatives = torch.randint(0, 6, (inside,), generator=draw).float()
    positives = torch.randint(1, 8, (outside,), generator=draw).float()
    found = auroc(negatives, positives)
    wins = sum((p > n) + (p == n) / 2 for p in positives.tolist() for n in negatives.tolist())
    assert found.value == pytest.approx(wins / (inside * outside))
    truth = [0] * inside + [1] * outside
    scores = [*negatives.tolist(), *positives.tolist()]
    assert found.value == pytest.approx(roc_auc_score(truth, scores))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == inside + outside
    mirrored = auroc(-negatives, -positives)
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-6)


def test_a_perfect_auroc_of_few_scores_is_not_certain() -> None:
    few, many = (auroc(torch.zeros(count), torch.ones(count)) for count in (5, 500))
    assert few.value == many.value == few.high == 1.0
    assert few.low < 0.85 < 0.98 < many.low


def test_the_auroc_interval_covers_as_often_as_it_says() -> None:
    draw = torch.Generator().manual_seed(0)
    shift = 1.0
    truth = 0.5 * (1 + math.erf(shift / 2))  # P(N(1, 1) > N(0, 1))
    hits = []
    for _ in range(2000):
        negatives, positives = torch.randn(2, 30, generator=draw)
        found = auroc(negatives, positives + shift)
        hits.append(found.low <= truth <= found.high)
    assert 0.93 < sum(hits) / len(hits) < 0.975


def test_an_auroc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="both kinds"):
        auroc(torch.zeros(0), torch.ones(3))


def test_a_number_that_is_no_share_is_shown_as_it_is() -> None:
    assert str(Metric(12.25, 100, 11.5, 13.25, percent=False)) == "12.25 [11.5, 13.25] (n=100)"
    assert str(Metric(0.5, 100, 0.25, 0.75)) == "50.00 [25.00, 75.00] (n=100)"


def shares(count: int, seed: int) -> list[float]:
    """Sixths, as of the clips of a video, on both sides of a half."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(1, 7, (count,), generator=draw).double() / 6).tolist()


@pytest.mark.parametrize("count", [5, 40, 300])
def test_the_interval_of_a_mean_of_items_is_the_bootstraps(count: int) -> None:
    values = shares(count, seed=count)
    metric = mean_of_items(values)
    assert (metric.value, metric.n) == (pytest.approx(sum(values) / count), count)
    draw = np.random.default_rng(1)
    means = sorted(
        sum(values[place] for place in draw.integers(0, count, count)) / count for _ in range(4000)
    )
    # Two bootstraps of so many draws differ by a few hundredths of the interval's width.
    close = 0.08 * (metric.high - metric.low)
    assert (metric.low, metric.high) == pytest.approx((means[100], means[-101]), abs=close)


def test_of_hits_and_misses_it_is_nearly_wilsons() -> None:
    metric, proportion = mean_of_items([1.0] * 260 + [0.0] * 140), wilson(260, 400)
    assert metric.value == proportion.value
    assert (metric.low, metric.high) == pytest.approx((proportion.low, proportion.high), abs=0.006)


def test_it_neither_changes_from_call_to_call_nor_with_the_draws_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = shares(70, seed=0)
    torch.manual_seed(0)
    whole = mean_of_items(values)
    before = torch.random.get_rng_state()
    for held in (1, 70 * 3, 10**9):
        monkeypatch.setattr(intervals, "_DRAWS", held)
        assert mean_of_items(values) == whole
    assert torch.equal(torch.random.get_rng_state(), before)


def test_items_that_are_all_alike_have_the_interval_of_a_share() -> None:
    """A classifier that calls all clips the same is right about half of each video's."""
    assert mean_of_items([0.5] * 20) == wilson(10, 20)
    assert mean_of_items([1.0] * 9) == wilson(9, 9)
    single = mean_of_items([0.3])
    assert single.low < 0.05 and single.high > 0.8
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        mean_of_items([0.2, 1.2])
    with pytest.raises(ValueError, match="at least one item"):
        mean_of_items([])
