"""The dense InfoNCE a few rows at a time: memory that grows with the batch, not with its square.

Every row of a dense softmax meets the targets of the whole batch, so that the scores are a square
of R x R and its softmax several more. Here some rows are scored, their loss is taken and led back
to their vectors at once, and the scores are forgotten before the next rows come. What stays is one
gradient of the size of the inputs: R x D. Nothing is computed twice, for the gradient of a sum is
the sum of gradients, and backward only scales it.

The loss, its gradients and the metrics are those of `info_nce_from_similarities`, up to the order
in which floating-point numbers are added up. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ndavid.losses.contrastive import (
    InfoNce,
    Tally,
    contrastive_tallies,
    info_nce_from_similarities,
    paired_similarity,
    similarity,
)


class GroupedNegatives(NamedTuple):
    """NDA negatives that consecutive rows share: row r meets group ``r // (R // G)``."""

    query: Tensor
    """(R, D): what a row compares with them; it need not be what it compares with the targets."""
    keys: Tensor
    """(G, M, D)"""
    used: Tensor
    """bool (G, M)"""
    owner: Tensor | None = None
    """(R,) integers; None: no entry is left out for its lender."""
    lender: Tensor | None = None
    """(G, M) integers: a row leaves out the entries whose lender is its own owner."""

    def mask(self, rows: slice, groups: slice) -> Tensor:
        """Bool (rows, M): which entries of their groups the rows use."""
        count = rows.stop - rows.start
        used = _per_row(self.used[groups], count)
        if self.owner is None or self.lender is None:
            return used
        return used & (self.owner[rows].unsqueeze(1) != _per_row(self.lender[groups], count))


class ChunkedInfoNce(NamedTuple):
    """The loss and what `contrastive_metrics` says of it, without the scores it came from."""

    loss: Tensor
    """Scalar: the mean over rows."""
    metrics: dict[str, Tensor]


def info_nce_in_chunks(
    query: Tensor,
    positive: Tensor,
    columns: Tensor,
    own_column: Tensor,
    nda: GroupedNegatives | None = None,
    *,
    chunk_rows: int,
    temperature: float,
    nda_weight: float = 1.0,
    nda_scale: float = 1.0,
) -> ChunkedInfoNce:
    """Contrasts rows with all columns but their own, and with NDA negatives, ``chunk_rows`` a time.

    Args:
        query: (R, D).
        positive: (R, D), row by row the key of the query.
        columns: (K, D), the keys of all rows, on all ranks.
        own_column: (R,) integers: which of the columns is the row's positive.
        nda: the NDA negatives of the rows, in the order of ``query``.
        chunk_rows: rows scored at a time; >= 1. Its scores take ``chunk_rows * (K + M)`` floats a
            handful of times over; from some hundred rows on, more are not faster.

    The other arguments are those of `info_nce_from_similarities`.

    Raises:
        ValueError: on a ``chunk_rows`` below 1, rows that the groups do not divide, or settings out
            of range.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    vectors = [query, positive, columns]
    if nda is not None:
        vectors += [nda.query, nda.keys]
    learn = torch.is_grad_enabled()
    sums = [_Gradient(vector) if learn and vector.requires_grad else None for vector in vectors]
    losses, tallies = [], list[dict[str, Tally]]()
    for rows, groups in _chunks(len(query), 1 if nda is None else len(nda.keys), chunk_rows):
        places = (rows, rows, slice(None), rows, groups)[: len(vectors)]
        # Leaves of a graph of their own, which is gone when the chunk is.
        parts = [v[place].detach() for v, place in zip(vectors, places, strict=True)]
        for part, gradient in zip(parts, sums, strict=True):
            part.requires_grad_(gradient is not None)
        result = _contrast(
            parts,
            _others(own_column[rows], len(columns)),
            None if nda is None else nda.mask(rows, groups),
            temperature=temperature,
            nda_weight=nda_weight,
            nda_scale=nda_scale,
        )
        share = result.loss * (len(parts[0]) / len(query))
        _accumulate(share, parts, places, sums)
        losses.append(share.detach())
        tallies.append(contrastive_tallies(result))
    loss = torch.stack(losses).sum()
    known = [(v, g.total) for v, g in zip(vectors, sums, strict=True) if g is not None and g.met]
    if known:
        inputs, gradients = zip(*known, strict=True)
        loss = _WithGradients.apply(loss, gradients, *inputs)
    return ChunkedInfoNce(loss, _means(tallies))


def _contrast(
    parts: Sequence[Tensor],
    others: Tensor,
    nda_mask: Tensor | None,
    *,
    temperature: float,
    nda_weight: float,
    nda_scale: float,
) -> InfoNce:
    """The loss of one chunk, whose vectors are ``parts``."""
    query, positive, columns, *nda = parts
    return info_nce_from_similarities(
        paired_similarity(query, positive),
        similarity(query, columns),
        similarity(*nda) if nda else None,
        temperature=temperature,
        nda_weight=nda_weight,
        nda_scale=nda_scale,
        negative_mask=others,
        nda_mask=nda_mask,
    )


def _chunks(rows: int, groups: int, chunk_rows: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the rows and of the groups they meet: whole groups, or parts of a single one."""
    if groups == 0 or rows % groups:
        raise ValueError(f"{rows} rows cannot be dealt to {groups} groups of NDA negatives")
    of_group = rows // groups
    together = max(1, chunk_rows // of_group)
    for first in range(0, groups, together):
        last = min(first + together, groups)
        stop = last * of_group
        for start in range(first * of_group, stop, chunk_rows):
            yield slice(start, min(start + chunk_rows, stop)), slice(first, last)


def _others(own_column: Tensor, columns: int) -> Tensor:
    """Bool (rows, columns): False where the column is the row's positive."""
    return torch.arange(columns, device=own_column.device) != own_column.unsqueeze(1)


def _per_row(groups: Tensor, rows: int) -> Tensor:
    """(G, M), one line a group -> (rows, M), one line a row."""
    return groups.repeat_interleave(rows // len(groups), dim=0)


class _Gradient:
    """The gradient of one of the inputs, added up chunk by chunk."""

    def __init__(self, vector: Tensor) -> None:
        dtype = torch.promote_types(vector.dtype, torch.float32)
        self.total = torch.zeros(vector.shape, dtype=dtype, device=vector.device)
        self.met = False

    def add(self, place: slice, gradient: Tensor) -> None:
        self.total[place] += gradient
        self.met = True


def _accumulate(
    loss: Tensor,
    parts: Sequence[Tensor],
    places: Sequence[slice],
    sums: Sequence[_Gradient | None],
) -> None:
    """Leads the loss of a chunk back to its vectors."""
    wanted = [i for i, gradient in enumerate(sums) if gradient is not None]
    # An input may have no part in the loss: NDA negatives of weight 0.
    if not wanted or not loss.requires_grad:
        return
    found = torch.autograd.grad(loss, [parts[i] for i in wanted], allow_unused=True)
    for i, gradient in zip(wanted, found, strict=True):
        total = sums[i]
        if gradient is not None and total is not None:
            total.add(places[i], gradient)


def _means(tallies: Sequence[dict[str, Tally]]) -> dict[str, Tensor]:
    """The metrics of all rows from the tallies of their parts."""
    return {
        name: torch.stack([each[name].total for each in tallies]).sum()
        / torch.stack([each[name].entries for each in tallies]).sum()
        for name in tallies[0]
    }


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradient with respect to each of its inputs is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(grad * gradient for gradient in ctx.saved_tensors))
