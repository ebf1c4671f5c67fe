"""Which broken features each row of a dense softmax meets.

A row is a (sample b, step p, cell h w). Rows that meet the same broken features are laid side by
side and share one group of them, so that no feature is ever copied row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ndavid.collectives import gather_with_grad, gather_without_grad, rank
from ndavid.losses.contrastive import similarity
from ndavid.methods.nda_config import NdaConfig

# How rows are laid out while they meet their groups: own-sample groups go sample by sample,
# batch-wide ones cell by cell.
_ROWS = {"own": "(b h w p)", "batch": "(h w p b)"}

# Broken maps are (k b) q d h w, k draws (and ranks) of b samples of q blocks -> groups, columns.
_GROUPS = {
    ("own", "all"): "(k b) q d h w -> b (k q h w) d",
    ("own", "same_cell"): "(k b) q d h w -> (b h w) (k q) d",
    ("batch", "all"): "(k b) q d h w -> () (k b q h w) d",
    ("batch", "same_cell"): "(k b) q d h w -> (h w) (k b q) d",
}
# A broken prediction belongs to a step: its aligned row is that of the same cell and step.
_GROUPS_OF_STEPS = _GROUPS | {
    ("own", "same_cell"): "(k b) q d h w -> (b h w q) k d",
    ("batch", "same_cell"): "(k b) q d h w -> (h w q) (k b) d",
}


class NdaColumns(NamedTuple):
    """What NDA adds to the R rows of the softmax."""

    similarity: Tensor
    """(R, M), float32"""
    mask: Tensor
    """(R, M), True where the row uses the column."""


def dense_rows(maps: Tensor) -> Tensor:
    """Maps (B, P, D, h, w) -> rows (B * P * h * w, D)."""
    return rearrange(maps, "b p d h w -> (b p h w) d")


def nda_columns(
    config: NdaConfig, true: Tensor, broken: Tensor, used: Tensor, partner: Tensor
) -> NdaColumns:
    """Lets each row of the true maps meet the broken ones that ``config`` deals to it.

    Args:
        config: ``share`` and ``align`` decide; ``where=context`` aligns steps too.
        true: (B, P, D, h, w): predictions, or targets where the prediction is what is broken.
        broken: (K * B, Q, D, h, w), draws first; Q blocks, or P steps of a broken prediction.
        used: bool (K * B, Q, h, w): which broken features are negatives at all.
        partner: (K * B,) index in this rank's batch of the sample that lent content, -1 for none.

    Returns the columns of the rows that `dense_rows` makes of ``true``. With ``share=batch`` the
    broken features of all ranks are gathered, with gradient, and a row skips those that borrowed
    from its own sample: there they hold the row's positive.
    """
    batch, steps, _, height, width = true.shape
    axes = {"b": batch, "p": steps, "h": height, "w": width}
    # Pooled maps hold the same vector in every cell: once is enough.
    align = "same_cell" if config.entry == "pooled" else config.align
    groups = (_GROUPS_OF_STEPS if config.where == "context" else _GROUPS)[config.share, align]
    order = _ROWS[config.share]
    if config.share == "batch":
        broken, used = gather_with_grad(broken), gather_without_grad(used)
    queries = rearrange(true, f"b p d h w -> {order} d")
    scores = similarity(queries, rearrange(broken, groups, b=batch))
    mask = _per_row(_deal(used, groups, batch), len(queries))
    if config.share == "batch":
        lenders = _deal(_lenders(partner, batch).expand_as(used), groups, batch)
        samples = rank() * batch + torch.arange(batch, device=true.device)
        samples = rearrange(
            samples.reshape(-1, 1, 1, 1).expand(batch, steps, height, width),
            f"b p h w -> {order} ()",
        )
        mask = mask & (samples != _per_row(lenders, len(queries)))
    natural = f"{order} m -> (b p h w) m"
    return NdaColumns(rearrange(scores, natural, **axes), rearrange(mask, natural, **axes))


def _lenders(partner: Tensor, batch: int) -> Tensor:
    """Every rank's partners as indices into the batch of all ranks: (K * B, 1, 1, 1)."""
    lender = torch.where(partner < 0, -1, partner + rank() * batch)
    return gather_without_grad(lender).reshape(-1, 1, 1, 1)


def _deal(marks: Tensor, groups: str, batch: int) -> Tensor:
    """Marks (K * B, Q, h, w) -> (G, M), as the features they belong to are dealt."""
    return rearrange(marks, groups.replace(" d", ""), b=batch)


def _per_row(groups: Tensor, rows: int) -> Tensor:
    """(G, M), one line a group -> (R, M), one line a row."""
    return groups.repeat_interleave(rows // len(groups), dim=0)
