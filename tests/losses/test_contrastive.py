"""info_nce against a loop that writes the formula down, and the promises of its docstring."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ndavid.losses import (
    contrastive_metrics,
    info_nce,
    info_nce_from_similarities,
    similarity,
)


def naive_info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    nda_negatives: Tensor | None = None,
    *,
    temperature: float,
    nda_weight: float = 1.0,
    nda_scale: float = 1.0,
    negative_mask: Tensor | None = None,
    nda_mask: Tensor | None = None,
) -> float:
    """-log( e^pos / (e^pos + sum e^neg + weight * sum e^(scale * nda)) ), row by row."""
    rows = query.shape[0]
    total = 0.0
    for r in range(rows):
        q = query[r].double()
        pos = math.exp(float(q @ positive[r].double()) / temperature)
        denominator = pos
        for k in range(0 if negatives is None else negatives.shape[0]):
            if negative_mask is None or negative_mask[r, k]:
                denominator += math.exp(float(q @ negatives[k].double()) / temperature)
        if nda_negatives is not None:
            group = r // (rows // nda_negatives.shape[0])
            for m in range(nda_negatives.shape[1]):
                if nda_mask is None or nda_mask[group, m]:
                    dot = float(q @ nda_negatives[group, m].double())
                    denominator += nda_weight * math.exp(nda_scale * dot / temperature)
        total += math.log(denominator / pos)
    return total / rows


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def coin(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(max_examples=150, deadline=None)
@given(
    groups=st.integers(1, 4),
    rows_per_group=st.integers(1, 4),
    dim=st.integers(1, 6),
    k=st.integers(0, 5),
    m=st.integers(0, 5),
    temperature=st.sampled_from([0.07, 0.5, 1.0, 3.0]),
    weight=st.sampled_from([0.0, 0.25, 1.0, 7.0]),
    scale=st.sampled_from([0.5, 1.0, 3.0]),
    masked=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_agrees_with_the_formula(
    groups, rows_per_group, dim, k, m, temperature, weight, scale, masked, seed
) -> None:
    rows = groups * rows_per_group
    query, positive = vectors(rows, dim, seed=seed), vectors(rows, dim, seed=seed + 1)
    negatives = vectors(k, dim, seed=seed + 2) if k else None
    nda = vectors(groups, m, dim, seed=seed + 3) if m else None
    settings_of_loss = {
        "temperature": temperature,
        "nda_weight": weight,
        "nda_scale": scale,
        "negative_mask": coin(rows, k, seed=seed) if masked and k else None,
        "nda_mask": coin(groups, m, seed=seed + 1) if masked and m else None,
    }
    if k == 0 and m == 0:
        with pytest.raises(ValueError, match="at least one negative"):
            info_nce(query, positive, negatives, nda, **settings_of_loss)
        return
    result = info_nce(query, positive, negatives, nda, **settings_of_loss)
    expected = naive_info_nce(query, positive, negatives, nda, **settings_of_loss)
    assert result.loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("nda_shape", [(5, 3), (1, 5, 3), (2, 5, 3), (6, 5, 3)])
def test_gradients_are_those_of_the_formula(nda_shape: tuple[int, ...]) -> None:
    query, positive = vectors(6, 3, dtype=torch.float64), vectors(6, 3, seed=1, dtype=torch.float64)
    negatives = vectors(4, 3, seed=2, dtype=torch.float64)
    nda = vectors(*nda_shape, seed=3, dtype=torch.float64)
    inputs = tuple(x.requires_grad_() for x in (query, positive, negatives, nda))

    def loss(*tensors: Tensor) -> Tensor:
        return info_nce(
            *tensors,
            temperature=0.5,
            nda_weight=2.0,
            nda_scale=1.5,
            negative_mask=coin(6, 4),
            nda_mask=coin(6, 5, seed=1),
        ).loss

    assert torch.autograd.gradcheck(loss, inputs)


def test_nda_equal_to_a_queue_key_is_one_more_key() -> None:
    query, positive, queue = vectors(4, 8), vectors(4, 8, seed=1), vectors(7, 8, seed=2)
    extra = vectors(1, 8, seed=3)
    longer = info_nce(query, positive, torch.cat([queue, extra]), temperature=0.2)
    with_nda = info_nce(query, positive, queue, extra, temperature=0.2)
    torch.testing.assert_close(with_nda.loss, longer.loss)


def test_shared_grouped_and_own_negatives_agree_when_they_hold_the_same() -> None:
    query, positive, nda = vectors(6, 8), vectors(6, 8, seed=1), vectors(5, 8, seed=2)
    shared = info_nce(query, positive, None, nda, temperature=1.0).loss
    for groups in (1, 2, 3, 6):
        copies = nda.expand(groups, -1, -1)
        torch.testing.assert_close(
            info_nce(query, positive, None, copies, temperature=1.0).loss, shared
        )


def test_weight_two_counts_a_negative_twice() -> None:
    query, positive, queue = vectors(4, 8), vectors(4, 8, seed=1), vectors(7, 8, seed=2)
    nda = vectors(4, 3, 8, seed=3)
    twice = info_nce(query, positive, queue, torch.cat([nda, nda], dim=1), temperature=0.3)
    weighted = info_nce(query, positive, queue, nda, temperature=0.3, nda_weight=2.0)
    torch.testing.assert_close(weighted.loss, twice.loss)


@pytest.mark.parametrize(("rows", "k", "dim"), [(1, 1, 1), (7, 33, 16), (64, 500, 32)])
def test_without_nda_it_is_cross_entropy_to_the_bit(rows: int, k: int, dim: int) -> None:
    query, positive, queue = (
        vectors(rows, dim),
        vectors(rows, dim, seed=1),
        vectors(k, dim, seed=2),
    )
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.07
    plain = torch.nn.functional.cross_entropy(logits, torch.zeros(rows, dtype=torch.long))
    assert torch.equal(info_nce(query, positive, queue, temperature=0.07).loss, plain)


def test_weight_zero_gives_plain_loss_and_gradients_to_the_bit() -> None:
    queue, nda = vectors(50, 16, seed=2), vectors(8, 9, 16, seed=3).requires_grad_()
    gradients = []
    for extra in (None, nda):
        query = vectors(8, 16).requires_grad_()
        positive = vectors(8, 16, seed=1).requires_grad_()
        loss = info_nce(query, positive, queue, extra, temperature=0.1, nda_weight=0.0).loss
        loss.backward()
        gradients.append((loss, query.grad, positive.grad))
    for plain, with_nda in zip(*gradients, strict=True):
        assert torch.equal(plain, with_nda)
    assert nda.grad is None or not nda.grad.any()


def test_rows_with_all_nda_masked_keep_the_plain_loss_and_send_no_gradient() -> None:
    query, positive, queue = vectors(6, 8), vectors(6, 8, seed=1), vectors(7, 8, seed=2)
    nda = vectors(6, 4, 8, seed=3).requires_grad_()
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[5] = True  # rows 0..4 have nothing left
    plain = info_nce(query[:5], positive[:5], queue, temperature=0.2).loss
    masked = info_nce(query[:5], positive[:5], queue, nda[:5], temperature=0.2, nda_mask=mask[:5])
    torch.testing.assert_close(masked.loss, plain)
    info_nce(query, positive, queue, nda, temperature=0.2, nda_mask=mask).loss.backward()
    assert nda.grad is not None and torch.isfinite(nda.grad).all()
    assert not nda.grad[:5].any() and nda.grad[5].any()


def test_only_nda_negatives_and_a_row_without_any_stay_finite() -> None:
    query = vectors(2, 4).requires_grad_()
    mask = torch.tensor([[True, True], [False, False]])
    result = info_nce(
        query, vectors(2, 4, seed=1), None, vectors(2, 2, 4), temperature=1.0, nda_mask=mask
    )
    result.loss.backward()
    assert result.loss.isfinite() and query.grad is not None and query.grad.isfinite().all()


@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_large_similarities_do_not_overflow(size: float) -> None:
    query = (vectors(4, 8) * size).requires_grad_()
    result = info_nce(query, -query.detach(), vectors(5, 8) * size, temperature=0.07)
    result.loss.backward()
    assert result.loss.isfinite() and query.grad is not None and query.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    tensors = [
        vectors(*shape, seed=i).to(dtype)
        for i, shape in enumerate([(6, 64), (6, 64), (9, 64), (3, 4, 64)])
    ]
    half = info_nce(*tensors, temperature=0.07)
    full = info_nce(*[t.float() for t in tensors], temperature=0.07)
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.loss, full.loss)


def test_autocast_does_not_reach_the_similarities() -> None:
    tensors = [
        vectors(*shape, seed=i) for i, shape in enumerate([(6, 64), (6, 64), (9, 64), (3, 4, 64)])
    ]
    outside = info_nce(*tensors, temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(*tensors, temperature=0.07)
    assert torch.equal(inside.loss, outside.loss)
    assert inside.nda is not None and outside.nda is not None
    assert torch.equal(inside.nda, outside.nda)


def test_similarity_of_groups_is_that_of_repeated_keys() -> None:
    query, keys = vectors(12, 5), vectors(4, 3, 5, seed=1)
    rows = torch.stack([keys[r // 3] @ query[r] for r in range(12)])
    torch.testing.assert_close(similarity(query, keys), rows)


def test_similarities_that_share_no_vector_enter_directly() -> None:
    positive, negatives, nda = vectors(5), vectors(5, 4, seed=1), vectors(5, 3, seed=2)
    expected = torch.stack(
        [
            torch.logsumexp(torch.cat([positive[r : r + 1], negatives[r], nda[r]]) / 0.5, 0)
            - positive[r] / 0.5
            for r in range(5)
        ]
    ).mean()
    result = info_nce_from_similarities(positive, negatives, nda, temperature=0.5)
    torch.testing.assert_close(result.loss, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"nda_weight": -1.0}, "nda_weight"),
        ({"nda_weight": math.inf}, "nda_weight"),
        ({"nda_scale": 0.0}, "nda_scale"),
        ({"positive": vectors(5, 4)}, "positive"),
        ({"negatives": vectors(3, 5)}, "similarity takes"),
        ({"nda_negatives": vectors(4, 2, 4)}, "4 groups"),
        ({"negative_mask": coin(6, 2)}, "negative_mask"),
        ({"negative_mask": torch.ones(6, 3)}, "bool"),
        ({"nda_mask": coin(4, 2)}, "nda_mask"),
        ({"nda_negatives": None}, "no such negatives"),
        ({"query": vectors(0, 4), "positive": vectors(0, 4)}, "at least one row"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {
        "query": vectors(6, 4),
        "positive": vectors(6, 4),
        "negatives": vectors(3, 4),
        "nda_negatives": vectors(3, 2, 4),
        "temperature": 1.0,
        "nda_mask": coin(3, 2),
    }
    with pytest.raises(ValueError, match=message):
        info_nce(**(arguments | change))


# --- metrics ---------------------------------------------------------------------------------


def naive_top_k(positive: Tensor, negatives: Tensor, k: int) -> float:
    """Mean over every way of breaking the ties."""
    shares = []
    for pos, negs in zip(positive.tolist(), negatives.tolist(), strict=True):
        above = sum(n > pos for n in negs)
        tied = sum(n == pos for n in negs)
        shares.append(sum(above + place < k for place in range(tied + 1)) / (tied + 1))
    return sum(shares) / len(shares)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 5), k=st.integers(1, 9), levels=st.integers(1, 6), seed=st.integers(0, 999)
)
def test_top_k_breaks_ties_fairly(rows: int, k: int, levels: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    positive = torch.randint(levels, (rows,), generator=draw).float()
    negatives = torch.randint(levels, (rows, k), generator=draw).float()
    metrics = contrastive_metrics(info_nce_from_similarities(positive, negatives, temperature=1.0))
    assert metrics["top1"].item() == pytest.approx(naive_top_k(positive, negatives, 1), abs=1e-6)
    assert metrics["top5"].item() == pytest.approx(naive_top_k(positive, negatives, 5), abs=1e-6)


def test_collapsed_features_score_chance() -> None:
    ones = torch.ones(8, 4)
    metrics = contrastive_metrics(info_nce(ones, ones, torch.ones(19, 4), temperature=1.0))
    assert metrics["top1"].item() == pytest.approx(1 / 20)
    assert metrics["top5"].item() == pytest.approx(5 / 20)


def test_nda_metrics_count_rows_that_have_nda() -> None:
    positive = torch.tensor([2.0, 2.0, 2.0, 2.0])
    nda = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    result = info_nce_from_similarities(
        positive, nda, nda, temperature=0.5, nda_mask=mask, nda_weight=0.0, nda_scale=5.0
    )
    metrics = contrastive_metrics(result)
    # Row 0 wins, row 1 loses, row 2 ties (neither), row 3 has none and does not count.
    assert metrics["nda_accuracy"].item() == pytest.approx(1 / 3)
    assert metrics["nda_outrank"].item() == pytest.approx(1 / 3)
    assert metrics["nda_active"].item() == pytest.approx(5 / 8)


def test_nda_metrics_are_not_invented_when_no_row_has_any() -> None:
    result = info_nce_from_similarities(
        vectors(3), vectors(3, 2), vectors(3, 2), temperature=1.0, nda_mask=torch.zeros(2) > 0
    )
    metrics = contrastive_metrics(result)
    assert metrics["nda_accuracy"].isnan() and metrics["nda_outrank"].isnan()
    assert metrics["nda_active"].item() == 0


def test_metrics_carry_no_gradient() -> None:
    query = vectors(4, 8).requires_grad_()
    result = info_nce(query, vectors(4, 8), vectors(6, 8), vectors(4, 2, 8), temperature=1.0)
    assert all(not value.requires_grad for value in contrastive_metrics(result).values())


@pytest.mark.gpu
def test_cuda_agrees_with_cpu_under_autocast() -> None:
    tensors = [
        vectors(*shape, seed=i)
        for i, shape in enumerate([(96, 256), (96, 256), (512, 256), (12, 6, 256)])
    ]
    cpu = info_nce(*tensors, temperature=1.0)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cuda = info_nce(*[t.cuda() for t in tensors], temperature=1.0)
    torch.testing.assert_close(cuda.loss.cpu(), cpu.loss, rtol=1e-4, atol=1e-4)
