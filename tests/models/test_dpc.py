"""The ConvGRU and DPC's predictions, against naive loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ndavid.errors import ConfigError
from ndavid.models.convgru import ConvGRU
from ndavid.models.dpc import DPC, DpcConfig, dense_scores


def small(**changes: object) -> DPC:
    torch.manual_seed(0)
    config = {"encoder": "resnet2d3d10", "num_blocks": 4, "pred_steps": 2, **changes}
    return DPC(DpcConfig(**config))


def test_the_gru_agrees_with_torchs_own_at_each_cell() -> None:
    # torch's candidate resets after its linear map, ours before (as Cho et al. 2014 did): with the
    # reset gate wide open both are the same recurrence.
    torch.manual_seed(0)
    ours, theirs = ConvGRU(6, 5, dropout=0.0), torch.nn.GRUCell(6, 5)
    with torch.no_grad():
        ours.cell.reset_gate.weight.zero_()
        ours.cell.reset_gate.bias.fill_(40.0)
        weight = [ours.cell.reset_gate, ours.cell.update_gate, ours.cell.out_gate]
        flat = torch.cat([gate.weight[:, :, 0, 0] for gate in weight])
        bias = torch.cat([gate.bias for gate in weight])
        # torch keeps 1 - update.
        sign = torch.cat([torch.ones(5), -torch.ones(5), torch.ones(5)])
        theirs.weight_ih.copy_(flat[:, :6] * sign[:, None])
        theirs.weight_hh.copy_(flat[:, 6:] * sign[:, None])
        theirs.bias_ih.copy_(bias * sign)
        theirs.bias_hh.zero_()
    sequence = torch.randn(2, 3, 6, 2, 3)
    out = ours(sequence)
    for y in range(2):
        for x in range(3):
            hidden = None
            for step in range(3):
                hidden = theirs(sequence[:, step, :, y, x], hidden)
            torch.testing.assert_close(out[:, :, y, x], hidden)


def test_the_gru_starts_orthogonal_and_drops_out_in_training_only() -> None:
    gru = ConvGRU(8, 8, dropout=0.5)
    weight = gru.cell.out_gate.weight[:, :, 0, 0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    assert not gru.cell.out_gate.bias.any()
    x = torch.randn(4, 1, 8, 3, 3)
    assert (gru(x) == 0).float().mean() > 0.3
    assert (gru.eval()(x) != 0).all()
    with pytest.raises(ValueError, match="at least one step"):
        gru(x[:, :0])


def test_shapes_follow_the_contract() -> None:
    model = small().eval()
    blocks = torch.randn(2, 4, 3, 5, 32, 64)
    predictions, targets = model(blocks)
    assert predictions.shape == targets.shape == (2, 2, 256, 1, 2)
    assert model.encode(blocks).shape == (2, 4, 256, 1, 2)
    assert model.scores(blocks).shape == (2, 2, 2, 2, 2, 2)


def test_forward_is_its_parts() -> None:
    model = small().eval()
    blocks = torch.randn(2, 4, 3, 5, 32, 32)
    with torch.no_grad():
        features = model.encode(blocks)
        predictions, targets = model(blocks)
        assert torch.equal(predictions, model.predict_from(features[:, :2]))
    assert torch.equal(targets, features[:, 2:])
    assert (targets < 0).any()  # before the ReLU


def test_predictions_see_the_past_only() -> None:
    model = small().eval()
    blocks = torch.randn(1, 4, 3, 5, 32, 32)
    future, past = blocks.clone(), blocks.clone()
    future[:, 2:] += 1
    past[:, 1] += 1
    with torch.no_grad():
        predictions, targets = model(blocks)
        assert torch.allclose(model(future)[0], predictions, atol=1e-5)
        assert not torch.allclose(model(future)[1], targets, atol=1e-2)
        assert not torch.allclose(model(past)[0], predictions, atol=1e-4)


def test_blocks_are_encoded_each_by_itself() -> None:
    model = small().eval()
    blocks = torch.randn(2, 3, 3, 5, 32, 32)
    with torch.no_grad():
        features = model.encode(blocks)
        for b in range(2):
            for n in range(3):
                alone = model.encoder(blocks[b, n].unsqueeze(0)).mean(2)[0]
                torch.testing.assert_close(features[b, n], alone, rtol=1e-4, atol=1e-5)


def test_scores_are_the_dot_products_in_row_order() -> None:
    p, t = torch.randn(2, 3, 5, 2, 4), torch.randn(2, 3, 5, 2, 4)
    scores = dense_scores(p, t)
    assert scores.shape == (2, 3, 8, 2, 3, 8)
    for b, i, y, x, c, j, v, u in [(0, 1, 1, 2, 1, 2, 0, 3), (1, 0, 0, 0, 1, 0, 1, 3)]:
        naive = sum(p[b, i, d, y, x] * t[c, j, d, v, u] for d in range(5))
        torch.testing.assert_close(scores[b, i, y * 4 + x, c, j, v * 4 + u], naive)


def test_training_lowers_the_contrastive_loss() -> None:
    model = small(dropout=0.0)
    blocks = torch.randn(4, 4, 3, 5, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        scores = model.scores(blocks).flatten(0, 2).flatten(1)
        loss = F.cross_entropy(scores, torch.arange(len(scores)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_any_encoder_fits_in() -> None:
    model = DPC(DpcConfig(encoder="timm:test_resnet", num_blocks=3, pred_steps=1, block_len=2))
    predictions, _ = model(torch.randn(2, 3, 3, 2, 64, 64))
    assert predictions.shape == (2, 1, 96, 2, 2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pred_steps must lie in \[1, 7\], got 8|num_blocks - 1"):
        DpcConfig(pred_steps=8)
    with pytest.raises(ConfigError, match="dropout"):
        DpcConfig(dropout=1.0)
    model = small()
    with pytest.raises(ValueError, match="no context"):
        model(torch.randn(1, 2, 3, 5, 32, 32))
    with pytest.raises(ValueError, match="expected blocks"):
        model(torch.randn(1, 3, 5, 32, 32))


def test_dpc_compiles_into_one_graph() -> None:
    model = small(dropout=0.0).eval()
    blocks = torch.randn(1, 4, 3, 5, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for ours, theirs in zip(model(blocks), compiled(blocks), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
