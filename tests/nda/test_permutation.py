"""Uniform over the allowed permutations, and never anything else."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from ndavid.nda import permutation


def counts(rows):
    return Counter(map(tuple, rows.tolist()))


def assert_uniform(rows, allowed):
    """Chi-squared within five standard deviations: fails by chance about once in a million."""
    seen = counts(rows)
    assert set(seen) == set(allowed)
    expected = len(rows) / len(allowed)
    chi2 = sum((seen[p] - expected) ** 2 / expected for p in allowed)
    freedom = len(allowed) - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * max(freedom, 1)) + 1e-9


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("largest_table", [6, 1], ids=["table", "rejection"])
def test_non_identity_is_uniform(n, largest_table, seeded, monkeypatch):
    monkeypatch.setattr(permutation, "_LARGEST_TABLE", largest_table)
    identity, *others = itertools.permutations(range(n))
    rows = permutation.non_identity(20_000, n, seeded(n))
    assert identity not in counts(rows)
    assert_uniform(rows, others)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("largest_table", [6, 1], ids=["table", "rejection"])
def test_derangements_are_uniform(n, largest_table, seeded, monkeypatch):
    monkeypatch.setattr(permutation, "_LARGEST_TABLE", largest_table)
    allowed = [p for p in itertools.permutations(range(n)) if all(a != i for i, a in enumerate(p))]
    assert_uniform(permutation.derangements(20_000, n, seeded(n)), allowed)


@pytest.mark.parametrize("n", [7, 16, 40])
def test_large_derangements_are_permutations_without_fixed_points(n, seeded):
    rows = permutation.derangements(2_000, n, seeded(n))
    assert (rows.sort(1).values == torch.arange(n)).all()
    assert (rows != torch.arange(n)).all()


@pytest.mark.parametrize("moved", [2, 3, 4])
def test_partial_derangements_move_exactly_so_many(moved, seeded):
    rows = permutation.partial_derangements(20_000, 4, moved, seeded(moved))
    allowed = [
        p for p in itertools.permutations(range(4)) if sum(a != i for i, a in enumerate(p)) == moved
    ]
    assert_uniform(rows, allowed)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_partners_are_others_each_once_and_uniform(batch, seeded):
    generator = seeded(batch)
    rows = torch.stack([permutation.partners(batch, generator) for _ in range(4_000)])
    assert (rows != torch.arange(batch)).all()
    assert (rows.sort(1).values == torch.arange(batch)).all()
    for own in range(batch):
        seen = torch.bincount(rows[:, own], minlength=batch).double()
        expected = len(rows) / (batch - 1)
        assert seen[own] == 0
        assert ((seen[torch.arange(batch) != own] - expected).abs() < 5 * expected**0.5).all()


def test_one_element_is_refused(seeded):
    for draw in (permutation.non_identity, permutation.derangements):
        with pytest.raises(ValueError, match="at least 2"):
            draw(3, 1, seeded(0))
    with pytest.raises(ValueError, match="take 2 to 4"):
        permutation.partial_derangements(3, 4, 5, seeded(0))
