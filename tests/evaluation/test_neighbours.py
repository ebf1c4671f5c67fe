"""The kNN vote against a written-out loop and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from ndavid.evaluation.neighbours import nearest_chunks, vote


def drawn(seed: int, asked: int, known: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    queries = torch.randn(asked, 5, generator=draw)
    gallery = 3 * torch.randn(known, 5, generator=draw)
    return queries, gallery, torch.randint(0, 4, (known,), generator=draw)


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 15), st.floats(0.03, 2.0))
@settings(max_examples=40, deadline=None)
def test_the_vote_equals_the_loop(seed: int, asked: int, known: int, temperature: float) -> None:
    queries, gallery, labels = drawn(seed, asked, known)
    ks = sorted({1, known // 2 + 1, known})
    found = vote(queries, gallery, labels, 4, ks=ks, temperature=temperature)
    assert list(found) == ks
    for row, query in enumerate(queries.tolist()):
        pairs = [
            (cosine(query, key), label)
            for key, label in zip(gallery.tolist(), labels.tolist(), strict=True)
        ]
        pairs.sort(key=lambda pair: -pair[0])
        for k in ks:
            votes = [0.0] * 4
            for similarity, label in pairs[:k]:
                votes[label] += math.exp(similarity / temperature)
            shares = [value / sum(votes) for value in votes]
            assert found[k][row].tolist() == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize("k", [1, 7, 30])
def test_the_vote_equals_scikit_learns(k: int) -> None:
    queries, gallery, labels = drawn(3, 200, 60)
    reference = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(gallery.numpy(), labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(queries.numpy())).float()
    found = vote(queries, gallery, labels, 4, ks=[k])[k]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_low_temperature_does_not_overflow() -> None:
    queries, gallery, labels = drawn(0, 5, 20)
    found = vote(queries, gallery, labels, 4, ks=[20], temperature=1e-4)[20]
    alone = vote(queries, gallery, labels, 4, ks=[1])[1]
    assert found.isfinite().all()
    assert torch.equal(found.argmax(1), alone.argmax(1)), "the nearest one decides"


def test_chunks_do_not_change_what_is_found() -> None:
    queries, gallery, _ = drawn(1, 23, 40)
    whole = next(nearest_chunks(queries, gallery, 6, chunk=100))
    parts = list(nearest_chunks(queries, gallery, 6, chunk=5))
    assert [len(similarity) for similarity, _ in parts] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([places for _, places in parts]), whole[1])


@pytest.mark.parametrize("ks", [[], [0], [5]])
def test_a_k_that_the_gallery_does_not_have(ks: list[int]) -> None:
    queries, gallery, labels = drawn(0, 2, 4)
    with pytest.raises(ValueError, match="1 <= k <= 4"):
        vote(queries, gallery, labels, 4, ks=ks)
