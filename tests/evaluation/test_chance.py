"""What guessing scores: against guesses that are really drawn."""

from __future__ import annotations

import math

import pytest
import torch

from ndavid.evaluation.chance import classification_chances, recall_chances
from ndavid.evaluation.intervals import wilson
from ndavid.evaluation.protocol import Protocol, Result, mean_over_folds

DRAWS = 20_000


def test_two_balanced_classes_are_found_within_five_neighbours() -> None:
    labels = torch.tensor([0, 1]).repeat(50)
    found = recall_chances(labels, labels, [1, 5])
    assert found["R@1"] == pytest.approx(0.5)
    assert found["R@5"] == pytest.approx(0.97, abs=0.005)


def test_recall_is_that_of_neighbours_drawn_at_random() -> None:
    gallery = torch.tensor([0] * 7 + [1] * 2 + [2] * 1)
    queries = torch.tensor([0, 1, 1, 2, 3])  # class 3 has nothing to be found
    draw = torch.Generator().manual_seed(0)
    drawn = torch.rand(DRAWS, len(gallery), generator=draw).argsort(dim=1)
    found = recall_chances(queries, gallery, [4, 1, 10])
    for k in (1, 4, 10):
        neighbours = gallery[drawn[:, :k]]
        hits = torch.stack([(neighbours == q).any(1).double().mean() for q in queries])
        assert found[f"R@{k}"] == pytest.approx(float(hits.mean()), abs=0.01)
    assert found["R@10"] == 0.8


def test_large_galleries_are_counted_exactly() -> None:
    gallery = torch.arange(101).repeat_interleave(95)
    found = recall_chances(torch.arange(101), gallery, [50])
    size = len(gallery)
    missed = math.prod((size - 95 - i) / (size - i) for i in range(50))
    assert found["R@50"] == pytest.approx(1 - missed, rel=1e-12)


def test_classes_without_test_items_are_not_guessed() -> None:
    """Lists of 101 classes of which six have clips: one in six, not one in 101."""
    labels = torch.tensor([3, 17, 20, 44, 80, 100]).repeat_interleave(torch.arange(1, 7))
    names = ["top1", "top5_k20", "top1_k200", "mean_class_accuracy", "other"]
    found = classification_chances(labels, names)
    assert found == pytest.approx(
        {"top1": 1 / 6, "top5_k20": 5 / 6, "top1_k200": 1 / 6, "mean_class_accuracy": 1 / 6}
    )
    assert classification_chances(torch.tensor([0, 1, 2]), ["top5"]) == {"top5": 1.0}


def test_chance_stands_beside_each_metric_and_is_averaged_over_folds() -> None:
    folds = [
        Result(
            task="retrieval",
            metrics={"R@1": wilson(1, 4), "R@5": wilson(3, 4)},
            protocol=Protocol(folds=[fold], warnings=["the same"], notes=["the same"]),
            chance=chance,
            chances={"R@1": chance, "R@5": 4 * chance},
        )
        for fold, chance in ((1, 0.1), (2, 0.2))
    ]
    both = mean_over_folds(folds)
    assert both.chance == both.chance_of("R@1") == pytest.approx(0.15)
    assert both.chance_of("R@5") == pytest.approx(0.6)
    assert both.protocol.warnings == ["the same"]
    first, second = both.summary().splitlines()
    assert first.endswith("chance 15.00") and second.endswith("chance 60.00")


def test_the_one_chance_of_older_results_is_that_of_one_metric() -> None:
    def old(*names: str) -> Result:
        metrics = {name: wilson(1, 4) for name in names}
        return Result(task="t", metrics=metrics, protocol=Protocol(), chance=0.25)

    assert old("top1", "top5").chance_of("top1") == 0.25
    assert old("top1", "top5").chance_of("top5") is None
    assert old("mean_class", "top1").chance_of("top1") == 0.25
    recalls = old("R@1", "R@5", "R@50")
    assert [recalls.chance_of(name) for name in recalls.metrics] == [0.25, None, None]
    shown = recalls.summary().splitlines()
    assert "chance" in shown[0] and "chance" not in "".join(shown[1:])
    assert recalls.chance_of("top1") is None
    assert Result(task="t", metrics={}, protocol=Protocol()).chance_of("fcd") is None
