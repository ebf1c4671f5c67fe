"""InfoNCE with negatives that were made out of the data itself.

Papers: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"
(InfoNCE); Sinha et al. 2021, "Negative Data Augmentation" (the NDA term: samples of a distribution
off the data's support join the denominator); Ge et al. 2021, "Robust Contrastive Learning Using
Negative Samples with Diminished Semantics" (the scale on the similarity of such negatives).

One softmax a row, the positive at column 0:

    logits = [ s(q, k+) | s(q, k_1..K) | nda_scale * s(q, k_nda) + T log(nda_weight) ] / T

Differences from the papers: rows may be told which of the columns are theirs (``negative_mask``,
``nda_mask``), because dense losses must not call an untouched cell a negative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class InfoNce(NamedTuple):
    """The loss, and the similarities it came from, for the metrics.

    The blocks are similarities divided by the temperature, in float32, before ``nda_weight`` and
    ``nda_scale``, so that the metrics of two runs with other weights can be compared. A masked
    entry is minus infinity.
    """

    loss: Tensor
    """Scalar: the mean over rows."""
    positive: Tensor
    """(R,)"""
    negatives: Tensor | None
    """(R, K)"""
    nda: Tensor | None
    """(R, M)"""


def info_nce(
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
) -> InfoNce:
    """Contrasts each query with its positive, shared negatives and NDA negatives (dot product).

    Args:
        query: (R, D). Not normalised here: pass unit vectors for cosine similarity.
        positive: (R, D), row by row the key of the query.
        negatives: (K, D), shared by all rows: a queue, or the keys of the batch.
        nda_negatives: (G, M, D) with R divisible by G, where row r sees group ``r // (R // G)``;
            G = R gives each row its own. (M, D) is shared by all rows.
        temperature: divides every similarity; > 0.
        nda_weight: how many times an NDA negative counts in the denominator; >= 0. At 0 the loss
            and its gradients are, to the bit, those without NDA negatives.
        nda_scale: multiplies the similarity of the NDA negatives (the alpha of Ge et al.); > 0.
        negative_mask: bool (R, K), True where the row uses the column.
        nda_mask: bool (R, M) or (G, M), or (M,) for shared negatives; True where used.

    Raises:
        ValueError: on shapes that don't fit, a temperature, weight or scale out of range, or when
            there is no negative of either kind.
    """
    _check_vectors(query, positive, negatives)
    negative_similarity = None if negatives is None else similarity(query, negatives)
    nda_similarity = None if nda_negatives is None else similarity(query, nda_negatives)
    return info_nce_from_similarities(
        paired_similarity(query, positive),
        negative_similarity,
        nda_similarity,
        temperature=temperature,
        nda_weight=nda_weight,
        nda_scale=nda_scale,
        negative_mask=negative_mask,
        nda_mask=nda_mask,
    )


def info_nce_from_similarities(
    positive: Tensor,
    negatives: Tensor | None = None,
    nda: Tensor | None = None,
    *,
    temperature: float,
    nda_weight: float = 1.0,
    nda_scale: float = 1.0,
    negative_mask: Tensor | None = None,
    nda_mask: Tensor | None = None,
) -> InfoNce:
    """InfoNCE from similarities, for negatives that are pairs of their own.

    A broken prediction against the true target, for instance, shares neither side's vector with
    the other columns of its row.

    Args:
        positive: (R,) similarity of each row with its positive.
        negatives: (R, K).
        nda: (R, M).
        nda_mask: bool (R, M), (G, M) with R divisible by G (consecutive rows share), or (M,).

    The other arguments and errors are those of `info_nce`.
    """
    _check_settings(temperature, nda_weight, nda_scale)
    rows = positive.shape[0]
    pos = _at_least_float32(positive) / temperature
    neg = _masked_logits(negatives, negative_mask, rows, temperature, "negative")
    broken = _masked_logits(nda, nda_mask, rows, temperature, "nda")
    if neg is None and broken is None:
        raise ValueError(
            "info_nce needs at least one negative or NDA negative: with the positive alone the "
            "loss is 0 whatever the features (use a larger batch, a queue or an NDA operation)"
        )
    blocks = [pos.unsqueeze(1)]
    if neg is not None:
        blocks.append(neg)
    # A weight of 0 is log 0 = -inf: columns of probability 0. They are left out rather than added,
    # so that not even the order of the summation differs from the plain loss.
    if broken is not None and nda_weight > 0:
        blocks.append(_weighted(broken, nda_weight, nda_scale))
    labels = torch.zeros(rows, dtype=torch.long, device=pos.device)
    loss = F.cross_entropy(torch.cat(blocks, dim=1), labels)
    return InfoNce(loss, pos, neg, broken)


def similarity(query: Tensor, keys: Tensor) -> Tensor:
    """Dot products of (R, D) queries with (K, D) shared or (G, M, D) grouped keys, in float32.

    Row r meets group ``r // (R // G)``; the keys are never copied row by row. Runs in float32 (or
    float64, if the inputs are) even under autocast. Returns (R, K) or (R, M).
    """
    if query.dim() != 2 or keys.dim() not in (2, 3) or query.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"similarity takes (R, D) queries with (K, D) or (G, M, D) keys, "
            f"got {tuple(query.shape)} and {tuple(keys.shape)}"
        )
    with torch.autocast(query.device.type, enabled=False):
        q, k = _at_least_float32(query), _at_least_float32(keys)
        if k.dim() == 2:
            return q @ k.T
        rows, groups = q.shape[0], k.shape[0]
        if groups == 0 or rows % groups:
            raise ValueError(f"{rows} rows cannot be dealt to {groups} groups of NDA negatives")
        grouped = q.reshape(groups, rows // groups, q.shape[1])
        return torch.bmm(grouped, k.transpose(1, 2)).reshape(rows, k.shape[1])


def paired_similarity(query: Tensor, key: Tensor) -> Tensor:
    """Dot product of (..., D) with (..., D) row by row, in float32 even under autocast: (...)."""
    with torch.autocast(query.device.type, enabled=False):
        return (_at_least_float32(query) * _at_least_float32(key)).sum(dim=-1)


class Tally(NamedTuple):
    """A metric that can be added up over parts of the rows: the mean is ``total / entries``."""

    total: Tensor
    """Scalar"""
    entries: Tensor
    """Scalar: how many rows, or entries, the total is of."""


def contrastive_metrics(result: InfoNce) -> dict[str, Tensor]:
    """What the softmax of a step looked like, as detached scalars.

    ``top1`` and ``top5`` (when there are plain negatives): share of rows whose positive ranks in
    the first k among [positive | negatives]. Ties are broken by a fair coin, in expectation, so
    that features that have collapsed to a point score chance and not 1.

    With NDA negatives also: ``nda_accuracy``, the share of rows whose positive beats *every* NDA
    negative of the row; ``nda_outrank``, the share with an NDA negative strictly above the
    positive (a tie is neither); both over the rows that have an unmasked NDA negative, NaN when
    none has. ``nda_active``: the share of the NDA entries that are not masked. They compare plain
    similarities, whatever weight and scale the loss gives them.
    """
    return {name: total / entries for name, (total, entries) in contrastive_tallies(result).items()}


@torch.no_grad()
def contrastive_tallies(result: InfoNce) -> dict[str, Tally]:
    """The `contrastive_metrics` before their division, for losses that see the rows in parts."""
    tallies: dict[str, Tally] = {}
    positive = result.positive.unsqueeze(1)
    if result.negatives is not None:
        rows = torch.full((), len(positive), device=positive.device)
        above = (result.negatives > positive).sum(dim=1)
        tied = (result.negatives == positive).sum(dim=1)
        for k in (1, 5):
            tallies[f"top{k}"] = Tally(((k - above) / (tied + 1)).clamp(0, 1).sum(), rows)
    if result.nda is not None:
        used = result.nda > -math.inf
        has_nda = used.any(dim=1)
        rows = has_nda.sum()
        hardest = result.nda.amax(dim=1)
        beaten, above_all = result.positive > hardest, hardest > result.positive
        tallies["nda_accuracy"] = Tally((has_nda & beaten).sum(), rows)
        tallies["nda_outrank"] = Tally((has_nda & above_all).sum(), rows)
        entries = torch.full((), used.numel(), device=used.device)
        tallies["nda_active"] = Tally(used.sum(), entries)
    return tallies


def _weighted(logits: Tensor, weight: float, scale: float) -> Tensor:
    """The NDA logits as the softmax sees them; bit-identical at weight and scale 1."""
    if scale != 1:
        logits = logits * scale
    if weight != 1:
        logits = logits + math.log(weight)
    return logits


def _masked_logits(
    similarities: Tensor | None, mask: Tensor | None, rows: int, temperature: float, name: str
) -> Tensor | None:
    """(R, K) logits with minus infinity where the mask is False; None when there is no column."""
    if similarities is None:
        if mask is not None:
            raise ValueError(f"{name}_mask is given, but there are no such negatives to mask")
        return None
    if similarities.dim() != 2 or similarities.shape[0] != rows:
        raise ValueError(
            f"expected ({rows}, K) {name} similarities, got {tuple(similarities.shape)}"
        )
    if similarities.shape[1] == 0:
        return None
    logits = _at_least_float32(similarities) / temperature
    if mask is None:
        return logits
    # masked_fill and not an added -inf: the gradient of a masked entry is then exactly 0.
    return logits.masked_fill(~_row_mask(mask, rows, logits.shape[1], name), -math.inf)


def _row_mask(mask: Tensor, rows: int, columns: int, name: str) -> Tensor:
    """A (R, K), (G, K) or (K,) mask as one that broadcasts to (R, K)."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}_mask must be bool (True = use), got {mask.dtype}")
    table = mask.unsqueeze(0) if mask.dim() == 1 else mask
    groups = table.shape[0]
    if table.dim() != 2 or table.shape[1] != columns or groups == 0 or rows % groups:
        raise ValueError(
            f"{name}_mask {tuple(mask.shape)} does not fit {rows} rows of {columns} columns"
        )
    return table if groups in (1, rows) else table.repeat_interleave(rows // groups, dim=0)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_vectors(query: Tensor, positive: Tensor, negatives: Tensor | None) -> None:
    if query.dim() != 2 or query.shape != positive.shape:
        raise ValueError(
            "query and positive must both be (R, D), "
            f"got {tuple(query.shape)} and {tuple(positive.shape)}"
        )
    if query.shape[0] == 0:
        raise ValueError("info_nce needs at least one row")
    if negatives is not None and negatives.dim() != 2:
        raise ValueError(f"negatives must be (K, D), got {tuple(negatives.shape)}")


def _check_settings(temperature: float, nda_weight: float, nda_scale: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a number above 0, got {temperature}")
    if not (math.isfinite(nda_weight) and nda_weight >= 0):
        raise ValueError(f"nda_weight must be a number >= 0, got {nda_weight}")
    if not (math.isfinite(nda_scale) and nda_scale > 0):
        raise ValueError(f"nda_scale must be a number above 0, got {nda_scale}")
