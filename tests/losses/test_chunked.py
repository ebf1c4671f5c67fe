"""The dense loss in chunks against the whole one: loss, gradients, metrics and memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ndavid.losses.chunked import GroupedNegatives, info_nce_in_chunks
from ndavid.losses.contrastive import (
    contrastive_metrics,
    info_nce_from_similarities,
    paired_similarity,
    similarity,
)


def vectors(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()


def whole(query, positive, columns, own_column, nda=None, **options) -> tuple[Tensor, dict]:
    """The same loss from the full matrix of scores."""
    everything = slice(0, len(query)), slice(0, 0 if nda is None else len(nda.keys))
    result = info_nce_from_similarities(
        paired_similarity(query, positive),
        similarity(query, columns),
        None if nda is None else similarity(nda.query, nda.keys),
        negative_mask=torch.arange(len(columns)) != own_column.unsqueeze(1),
        nda_mask=None if nda is None else nda.mask(*everything),
        **options,
    )
    return result.loss, contrastive_metrics(result)


def problem(rows: int, groups: int, *, extra: int, members: int, seed: int, dtype=torch.float64):
    """R rows among R + extra columns; ``groups`` of NDA negatives if there are members."""
    query, columns = (
        vectors(n, 5, seed=seed + i, dtype=dtype) for i, n in enumerate((rows, rows + extra))
    )
    own = torch.randperm(rows + extra, generator=torch.Generator().manual_seed(seed))[:rows]
    if not members:
        return (query, columns.detach()[own].requires_grad_(), columns, own), None
    g = torch.Generator().manual_seed(seed + 2)
    nda = GroupedNegatives(
        query=vectors(rows, 5, seed=seed + 3, dtype=dtype),
        keys=vectors(groups, members, 5, seed=seed + 4, dtype=dtype),
        used=torch.rand(groups, members, generator=g) < 0.7,
        owner=torch.randint(3, (rows,), generator=g),
        lender=torch.randint(-1, 3, (groups, members), generator=g),
    )
    return (query, columns.detach()[own].requires_grad_(), columns, own), nda


def outcome(loss_of, plain, nda, **options) -> tuple[Tensor, dict, list[Tensor]]:
    leaves = [*plain[:3], *([nda.query, nda.keys] if nda else [])]
    loss, metrics = loss_of(*plain, nda, **options)
    gradients = torch.autograd.grad(2 * loss, leaves, allow_unused=True)
    return loss, metrics, [torch.zeros(()) if g is None else g for g in gradients]


@settings(max_examples=120, deadline=None)
@given(
    groups=st.integers(1, 5),
    of_group=st.integers(1, 6),
    extra=st.integers(1, 4),
    members=st.integers(0, 4),
    chunk_rows=st.integers(1, 40),
    temperature=st.sampled_from([0.1, 1.0]),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 2**20),
)
def test_chunks_make_no_difference(
    groups, of_group, extra, members, chunk_rows, temperature, weight, scale, seed
) -> None:
    plain, nda = problem(groups * of_group, groups, extra=extra, members=members, seed=seed)
    options = {"temperature": temperature, "nda_weight": weight, "nda_scale": scale}
    expected = outcome(whole, plain, nda, **options)
    made = outcome(info_nce_in_chunks, plain, nda, chunk_rows=chunk_rows, **options)
    torch.testing.assert_close(made[0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made[2], expected[2], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(made[1], expected[1], rtol=1e-6, atol=1e-7, equal_nan=True)


def test_all_rows_in_one_chunk_is_the_whole_loss_to_the_bit() -> None:
    plain, nda = problem(12, 3, extra=2, members=4, seed=0, dtype=torch.float32)
    expected = outcome(whole, plain, nda, temperature=0.5)
    made = outcome(info_nce_in_chunks, plain, nda, chunk_rows=12, temperature=0.5)
    assert torch.equal(made[0], expected[0])
    assert all(torch.equal(made[1][name], expected[1][name]) for name in expected[1])
    assert all(torch.equal(a, b) for a, b in zip(made[2], expected[2], strict=True))


def test_weight_zero_sends_nothing_to_the_broken_side() -> None:
    plain, nda = problem(12, 3, extra=2, members=4, seed=1)
    loss, metrics = info_nce_in_chunks(*plain, nda, chunk_rows=5, temperature=1.0, nda_weight=0.0)
    without, _ = info_nce_in_chunks(*plain, chunk_rows=5, temperature=1.0)
    assert torch.allclose(loss, without)
    assert "nda_accuracy" in metrics
    assert torch.autograd.grad(loss, [nda.keys], allow_unused=True, retain_graph=True) == (None,)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    plain, nda = problem(12, 3, extra=2, members=4, seed=2)
    still = nda._replace(keys=nda.keys.detach())
    info_nce_in_chunks(*plain, still, chunk_rows=5, temperature=1.0).loss.backward()
    assert still.keys.grad is None and all(v.grad is not None for v in plain[:3])
    with torch.no_grad():
        assert not info_nce_in_chunks(*plain, nda, chunk_rows=5, temperature=1.0).loss.requires_grad


def test_a_second_derivative_is_refused() -> None:
    plain, _ = problem(6, 1, extra=1, members=0, seed=0)
    loss = info_nce_in_chunks(*plain, chunk_rows=2, temperature=1.0).loss
    (gradient,) = torch.autograd.grad(loss, plain[0], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), plain[0])


def test_bfloat16_vectors_are_compared_and_added_up_in_float32() -> None:
    plain, _ = problem(200, 1, extra=3, members=0, seed=0, dtype=torch.bfloat16)
    exact = [v.detach().double().requires_grad_() for v in plain[:3]]
    expected = outcome(whole, (*exact, plain[3]), None, temperature=1.0)
    made = outcome(info_nce_in_chunks, plain, None, chunk_rows=1, temperature=1.0)
    assert made[0].dtype == torch.float32
    torch.testing.assert_close(made[0].double(), expected[0], rtol=1e-5, atol=0)
    for gradient, truth in zip(made[2], expected[2], strict=True):
        assert gradient.dtype == torch.bfloat16
        # 200 additions in bfloat16 would have lost a tenth.
        assert (gradient - truth).norm() < 0.005 * truth.norm()


class LargestTensor(TorchDispatchMode):
    """Watches every operation for the most numbers that a single tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out


@pytest.mark.parametrize("batch", [1, 2])
def test_no_tensor_is_larger_than_a_chunk_of_the_scores(batch: int) -> None:
    rows = 200 * batch
    plain, nda = problem(rows, 1, extra=0, members=50 * batch, seed=0)
    for loss_of, options in ((whole, {}), (info_nce_in_chunks, {"chunk_rows": 20})):
        with LargestTensor() as seen:
            loss_of(*plain, nda, temperature=1.0, **options)[0].backward()
        if loss_of is whole:
            assert seen.numbers >= rows * rows
        else:
            # Positive, columns and NDA negatives side by side.
            assert seen.numbers <= 20 * (1 + rows + 50 * batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"chunk_rows": 0}, "chunk_rows"), ({"temperature": 0.0}, "temperature")],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    plain, _ = problem(4, 1, extra=1, members=0, seed=0)
    with pytest.raises(ValueError, match=message):
        info_nce_in_chunks(*plain, **({"chunk_rows": 2, "temperature": 1.0} | change))


def test_rows_that_cannot_be_dealt_are_refused() -> None:
    plain, _ = problem(4, 1, extra=1, members=0, seed=0)
    _, nda = problem(6, 3, extra=1, members=2, seed=0)
    with pytest.raises(ValueError, match="4 rows cannot be dealt to 3 groups"):
        info_nce_in_chunks(*plain, nda, chunk_rows=2, temperature=1.0)
