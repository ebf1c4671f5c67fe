"""Every row meets the broken features it should, against four nested loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ndavid.methods.nda_columns import dense_rows, nda_columns
from ndavid.methods.nda_config import NdaConfig

B, P, D, H, W = 3, 2, 4, 2, 3


def met_by(config: NdaConfig, row: tuple, column: tuple, partner: list[int]) -> bool:
    """Whether row (b, p, h, w) meets broken feature (kb, q, h, w), by the rule in words."""
    b, p, *cell = row
    kb, q, *broken_cell = column
    if config.share == "own" and kb % B != b:
        return False
    if config.share == "batch" and partner[kb] == b:
        return False
    if config.align == "all":
        return True
    return broken_cell == cell and (config.where != "context" or q == p)


@settings(max_examples=60, deadline=None)
@given(
    where=st.sampled_from(["future", "all", "context"]),
    share=st.sampled_from(["own", "batch"]),
    align=st.sampled_from(["same_cell", "all"]),
    draws=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_rows_meet_the_features_that_the_rule_gives(where, share, align, draws, seed) -> None:
    config = NdaConfig(where=where, share=share, align=align)
    blocks = {"future": P, "all": P + 2, "context": P}[where]
    g = torch.Generator().manual_seed(seed)
    true = torch.randn(B, P, D, H, W, generator=g, dtype=torch.float64)
    broken = torch.randn(draws * B, blocks, D, H, W, generator=g, dtype=torch.float64)
    used = torch.rand(draws * B, blocks, H, W, generator=g) < 0.7
    partner = torch.randint(-1, B, (draws * B,), generator=g)

    columns = nda_columns(config, true, broken, used, partner)
    rows = list(itertools.product(range(B), range(P), range(H), range(W)))
    everything = list(itertools.product(range(draws * B), range(blocks), range(H), range(W)))
    for line, (b, p, h, w) in enumerate(rows):
        assert torch.equal(dense_rows(true)[line], true[b, p, :, h, w])
        expected = [
            float(true[b, p, :, h, w] @ broken[kb, q, :, y, x])
            for kb, q, y, x in everything
            if used[kb, q, y, x] and met_by(config, (b, p, h, w), (kb, q, y, x), partner.tolist())
        ]
        met = columns.similarity[line][columns.mask[line]].tolist()
        assert sorted(met) == pytest.approx(sorted(expected))


@pytest.mark.parametrize("where", ["future", "context"])
@pytest.mark.parametrize("share", ["own", "batch"])
def test_pooled_maps_enter_once_not_once_a_cell(where: str, share: str) -> None:
    config = NdaConfig(where=where, share=share, entry="pooled", align="all")
    true = torch.randn(B, P, D, 1, 1).expand(B, P, D, H, W)
    broken = torch.randn(2 * B, P, D, 1, 1).expand(2 * B, P, D, H, W)
    used = torch.ones(2 * B, P, H, W, dtype=torch.bool)
    columns = nda_columns(config, true, broken, used, torch.full((2 * B,), -1))
    per_sample = 2 if where == "context" else 2 * P
    assert columns.similarity.shape == (B * P * H * W, per_sample * (B if share == "batch" else 1))
    assert columns.mask.all()
