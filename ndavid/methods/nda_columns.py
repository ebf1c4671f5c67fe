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
from ndavid.losses.chunked import GroupedNegatives
from ndavid.losses.contrastive import similarity
from ndavid.methods.nda_config import NdaConfig

NATURAL_ORDER = "(b p h w)"

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


class DealtNegatives(NamedTuple):
    """Broken features before they are compared, and the order of the rows that share them."""

    order: str
    """Of the axes b, p, h and w, as einops writes it."""
    negatives: GroupedNegatives


def dense_rows(maps: Tensor, order: str = NATURAL_ORDER) -> Tensor:
    """Maps (B, P, D, h, w) -> rows (B * P * h * w, D), in any ``order`` of the axes."""
    return rearrange(maps, f"b p d h w -> {order} d")


def deal_negatives(
    config: NdaConfig, true: Tensor, broken: Tensor, used: Tensor, partner: Tensor
) -> DealtNegatives:
    """Deals the broken maps to groups of rows, in the order that lays such rows side by side.

    The arguments are those of `nda_columns`. With ``share=batch`` the broken features of all ranks
    are gathered, with gradient, and each group knows who lent content to which of its features.
    """
    batch, steps, _, height, width = true.shape
    # A pooled map has one cell; of a broken prediction it meets its own step alone.
    align = "same_cell" if config.entry == "pooled" else config.align
    groups = (_GROUPS_OF_STEPS if config.where == "context" else _GROUPS)[config.share, align]
    order = _ROWS[config.share]
    if config.share == "batch":
        broken, used = gather_with_grad(broken), gather_without_grad(used)
    keys, marks = rearrange(broken, groups, b=batch), _deal(used, groups, batch)
    dealt = GroupedNegatives(dense_rows(true, order), keys, marks)
    if config.share == "batch":
        lenders = _deal(_lenders(partner, batch).expand_as(used), groups, batch)
        samples = rank() * batch + torch.arange(batch, device=true.device)
        samples = samples.reshape(-1, 1, 1, 1).expand(batch, steps, height, width)
        owners = rearrange(samples, f"b p h w -> {order}")
        dealt = dealt._replace(owner=owners, lender=lenders)
    return DealtNegatives(order, dealt)


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

    Returns the columns of the rows that `dense_rows` makes of ``true``. With ``share=batch`` a row
    skips the features that borrowed from its own sample: there they hold the row's positive.
    """
    return columns_of(deal_negatives(config, true, broken, used, partner), true)


def columns_of(dealt: DealtNegatives, true: Tensor) -> NdaColumns:
    """Every row's similarities with its group, in the order of `dense_rows` of ``true``."""
    batch, steps, _, height, width = true.shape
    axes = {"b": batch, "p": steps, "h": height, "w": width}
    order, negatives = dealt
    scores = similarity(negatives.query, negatives.keys)
    everything = slice(0, len(negatives.query)), slice(0, len(negatives.keys))
    mask = negatives.mask(*everything)
    natural = f"{order} m -> {NATURAL_ORDER} m"
    return NdaColumns(rearrange(scores, natural, **axes), rearrange(mask, natural, **axes))


def _lenders(partner: Tensor, batch: int) -> Tensor:
    """Every rank's partners as indices into the batch of all ranks: (K * B, 1, 1, 1)."""
    lender = torch.where(partner < 0, -1, partner + rank() * batch)
    return gather_without_grad(lender).reshape(-1, 1, 1, 1)


def _deal(marks: Tensor, groups: str, batch: int) -> Tensor:
    """Marks (K * B, Q, h, w) -> (G, M), as the features they belong to are dealt."""
    return rearrange(marks, groups.replace(" d", ""), b=batch)
