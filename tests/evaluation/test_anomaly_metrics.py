"""Numbers on anomalies against scikit-learn, and intervals against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ndavid.evaluation.anomaly_metrics import NAMES, Bootstrap, detection, mean_of, quartiles
from ndavid.evaluation.intervals import auroc, wilson

# Few values, so that many scores are equal.
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(known: list[float], anomalies: list[float]) -> list[float]:
    labels = [0] * len(known) + [1] * len(anomalies)
    scores = [*known, *anomalies]
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    fpr = false[np.argmax(true >= 0.95 - 1e-9)]
    return [roc_auc_score(labels, scores), average_precision_score(labels, scores), float(fpr)]


@settings(deadline=None, max_examples=150)
@given(known=SCORES, anomalies=SCORES)
def test_values_are_scikit_learns(known: list[float], anomalies: list[float]) -> None:
    once = torch.ones(1, len(known)), torch.ones(1, len(anomalies))
    found = detection(torch.tensor(known), torch.tensor(anomalies), *once)
    assert found[0].tolist() == pytest.approx(reference(known, anomalies), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), known=SCORES, anomalies=SCORES)
def test_an_image_drawn_twice_is_two_images(data, known, anomalies) -> None:
    def drawn(scores: list[float]) -> list[int]:
        size = len(scores)
        counts = st.lists(st.integers(0, 3), min_size=size, max_size=size)
        return data.draw(counts.filter(any))

    both = [(scores, drawn(scores)) for scores in (known, anomalies)]
    weights = [torch.tensor([counts]) for _, counts in both]
    found = detection(torch.tensor(known), torch.tensor(anomalies), *weights)
    repeated = [list(np.repeat(scores, counts)) for scores, counts in both]
    assert found[0].tolist() == pytest.approx(reference(*repeated), abs=1e-12)


def test_perfect_and_hopeless_scores() -> None:
    low, high = torch.arange(20.0), torch.arange(20.0) + 100
    perfect = Bootstrap(low, 50, seeded()).compare(high).metrics()
    # No resample differs from another; twenty images of a kind say no more than twenty can.
    area, best, worst = auroc(low, high), wilson(20, 20), wilson(0, 20)
    assert [(m.value, m.low, m.high) for m in perfect.values()] == [
        (1, pytest.approx(area.low), 1),
        (1, pytest.approx(best.low), 1),
        (0, 0, pytest.approx(worst.high)),
    ]
    hopeless = Bootstrap(high, 50, seeded()).compare(low).metrics()
    assert hopeless["AUROC"].value == 0 and hopeless["FPR95"].value == 1
    assert list(perfect) == list(NAMES) and perfect["AUROC"].n == 40


@pytest.mark.parametrize(("known", "anomalies"), [(2000, 3), (3, 2000)])
def test_few_images_of_either_kind_prove_little(known: int, anomalies: int) -> None:
    low, high = torch.arange(float(known)), torch.arange(float(anomalies)) + 5000
    found = Bootstrap(low, 20, seeded()).compare(high)
    three = wilson(3, 3)
    expected = {
        "AUROC": (auroc(low, high).low, 1.0),
        "AUPR": (three.low, 1.0),
        "FPR95": (0.0, 1 - three.low),
    }
    for name, ends in expected.items():
        metric = found.metrics()[name]
        assert (metric.low, metric.high) == pytest.approx(ends, abs=1e-9)
        assert metric.high - metric.low > 0.25


def test_a_mean_is_no_surer_for_columns_whose_spread_is_unseen() -> None:
    known = torch.randn(500, generator=seeded())
    bootstrap = Bootstrap(known, 100, seeded(1))
    apart = bootstrap.compare(torch.full((3,), 50.0))
    mixed = bootstrap.compare(torch.randn(400, generator=seeded(2)) + 1)
    alone = apart.metrics()["AUROC"]
    twice = mean_of([apart, apart]).metrics()["AUROC"]
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))
    mean = mean_of([apart, mixed]).metrics()["AUROC"]
    other = mixed.metrics()["AUROC"]
    assert mean.value - mean.low > (alone.value - alone.low) / 2
    assert mean.low == pytest.approx((alone.low + other.low) / 2)


def test_intervals_cover_what_they_promise() -> None:
    # Two Gaussians a deviation apart: AUROC is Phi(1 / sqrt 2).
    truth = float(torch.special.ndtr(torch.tensor(0.5**0.5)))
    draws, hits = seeded(3), 0
    for trial in range(200):
        known, anomalies = torch.randn(60, generator=draws), torch.randn(50, generator=draws) + 1
        metric = Bootstrap(known, 200, seeded(trial)).compare(anomalies).metrics()["AUROC"]
        hits += metric.low <= truth <= metric.high
    assert 0.89 <= hits / 200 <= 0.99


def test_copies_are_drawn_with_their_originals() -> None:
    known = torch.randn(200, generator=seeded())
    copies = known + 0.5 + 0.01 * torch.randn(200, generator=seeded(1))
    bootstrap = Bootstrap(known, 300, seeded(2))
    paired = bootstrap.compare(copies, torch.arange(200)).metrics()["AUROC"]
    apart = bootstrap.compare(copies).metrics()["AUROC"]
    assert paired.value == apart.value
    assert paired.high - paired.low < 0.8 * (apart.high - apart.low)
    # The order of the copies is nothing to go by: their originals are.
    order = torch.randperm(200, generator=seeded(4))
    shuffled = bootstrap.compare(copies[order], order).metrics()["AUROC"]
    assert (shuffled.low, shuffled.high) == pytest.approx((paired.low, paired.high), abs=1e-12)


def test_a_mean_keeps_what_its_columns_share() -> None:
    known = torch.randn(30, generator=seeded())
    bootstrap = Bootstrap(known, 400, seeded(1))
    columns = [
        bootstrap.compare(torch.randn(3000, generator=seeded(k)) + 0.5) for k in range(2, 10)
    ]
    mean = mean_of(columns).metrics()["AUROC"]
    single = columns[0].metrics()["AUROC"]
    values = [column.metrics()["AUROC"].value for column in columns]
    assert mean.value == pytest.approx(sum(values) / 8) and mean.n == 30 + 8 * 3000
    # Thirty known images decide all columns alike: eight of them know hardly more than one.
    assert mean.high - mean.low > 0.8 * (single.high - single.low)


def test_only_the_generator_decides_an_interval() -> None:
    known, anomalies = (torch.randn(50, generator=seeded(k)) for k in (0, 1))
    first = Bootstrap(known, 100, seeded(5)).compare(anomalies)
    torch.manual_seed(9)
    assert torch.equal(
        Bootstrap(known, 100, seeded(5)).compare(anomalies).resampled, first.resampled
    )
    other = Bootstrap(known, 100, seeded(6)).compare(anomalies)
    assert not torch.equal(other.resampled, first.resampled)
    assert torch.equal(other.values, first.values)


def test_nothing_to_compare() -> None:
    some = torch.zeros(3)
    with pytest.raises(ValueError, match="known images"):
        Bootstrap(some[:0], 10, seeded())
    with pytest.raises(ValueError, match="two resamples"):
        Bootstrap(some, 1, seeded())
    with pytest.raises(ValueError, match="no scores of anomalies"):
        Bootstrap(some, 10, seeded()).compare(some[:0])
    with pytest.raises(ValueError, match="at least one column"):
        mean_of([])


def test_quartiles_are_scores() -> None:
    assert quartiles(torch.tensor([5.0, 1, 4, 2, 3])) == {"q25": 2, "median": 3, "q75": 4}
