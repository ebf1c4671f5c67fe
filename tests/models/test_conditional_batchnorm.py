"""The generator's batch norm: against torch's, by class, and over two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor, nn

from ndavid.collectives import rank, world_size
from ndavid.models.batchnorm import batch_norms, running_statistics, without_stat_updates
from ndavid.models.gan.conditional_batchnorm import ClassBatchNorm, SyncedBatchNorm

LABELS = torch.tensor([0, 2, 1, 2, 0, 1, 2, 2])


def a_batch() -> Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, 4, 4, generator=g)
    return x * torch.arange(1, 9)[:, None, None, None] + 100  # rows unalike, far from zero


def a_norm(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm = SyncedBatchNorm(5) if kind == "plain" else ClassBatchNorm(5, 3)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def output_and_gradients(norm: nn.Module, kind: str, rows: slice) -> dict[str, Tensor]:
    """Of a loss that is a mean over rows, as losses are."""
    x = a_batch()[rows].requires_grad_()
    out = norm(x) if kind == "plain" else norm(x, LABELS[rows])
    weights = torch.randn(8, 5, 4, 4, generator=torch.Generator().manual_seed(1))[rows]
    ((out * weights).sum(dim=(1, 2, 3)) ** 2).mean().backward()
    assert x.grad is not None
    named = {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    buffers = {name: value.clone() for name, value in norm.named_buffers()}
    return {"out": out.detach(), "input": x.grad} | named | buffers


def one_rank() -> dict[str, Any]:
    results: dict[str, Any] = {"ranks": world_size()}
    for kind in ("plain", "classes"):
        # Shares of unlike size: 3 and 5 rows.
        uneven = slice(0, 3) if rank() == 0 else slice(3, 8)
        x = a_batch()[uneven]
        norm = a_norm(kind)
        out = norm(x) if kind == "plain" else norm(x, LABELS[uneven])
        results[f"{kind} uneven"] = out.detach()
        half = slice(4 * rank(), 4 * rank() + 4)
        found = output_and_gradients(a_norm(kind), kind, half)
        results |= {f"{kind} {name}": value for name, value in found.items()}
    return results


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(Path(__file__), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("kind", ["plain", "classes"])
def test_two_ranks_are_one_big_batch(two_ranks: list[dict[str, Any]], kind: str) -> None:
    assert [found["ranks"] for found in two_ranks] == [2, 2]
    whole = output_and_gradients(a_norm(kind), kind, slice(0, 8))
    for name, wanted in whole.items():
        parts = [found[f"{kind} {name}"] for found in two_ranks]
        if name in ("out", "input"):
            # A rank's loss is a mean over half the rows: its gradients are twice as large.
            both = torch.cat(parts) / (2 if name == "input" else 1)
            torch.testing.assert_close(both, wanted, atol=1e-3, rtol=1e-3)
        elif "running" in name or "tracked" in name:
            for part in parts:
                torch.testing.assert_close(part, wanted)
        else:  # DDP takes the mean of the ranks' gradients
            mean = torch.stack(parts).mean(dim=0)
            torch.testing.assert_close(mean, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "classes"])
def test_ranks_may_hold_unlike_numbers_of_samples(
    two_ranks: list[dict[str, Any]], kind: str
) -> None:
    wanted = output_and_gradients(a_norm(kind), kind, slice(0, 8))["out"]
    found = torch.cat([one[f"{kind} uneven"] for one in two_ranks])
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_one_rank_is_torchs_batch_norm() -> None:
    ours, theirs = a_norm("plain"), nn.BatchNorm2d(5)
    theirs.load_state_dict(ours.state_dict())
    for mode in (True, False):
        ours.train(mode)
        theirs.train(mode)
        torch.testing.assert_close(ours(a_batch()), theirs(a_batch()), atol=0, rtol=0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=0, rtol=0)


def test_each_class_has_its_gain_and_bias() -> None:
    norm, x = a_norm("classes"), a_batch()
    out = norm(x, LABELS)
    plain = nn.BatchNorm2d(5, affine=False)(x)
    for row, label in enumerate(LABELS.tolist()):
        gain, bias = norm.gain.weight[label], norm.bias.weight[label]
        wanted = plain[row] * (1 + gain[:, None, None]) + bias[:, None, None]
        torch.testing.assert_close(out[row], wanted)


def test_a_vector_gives_gain_and_bias_by_linear_functions() -> None:
    torch.manual_seed(0)
    norm, x, vector = ClassBatchNorm(5, vector_dim=3), a_batch(), torch.randn(8, 3)
    plain = nn.BatchNorm2d(5, affine=False)(x)
    gain, bias = (vector @ layer.weight.T for layer in (norm.gain, norm.bias))
    wanted = plain * (1 + gain[:, :, None, None]) + bias[:, :, None, None]
    torch.testing.assert_close(norm(x, vector), wanted)


def test_all_classes_start_as_a_plain_norm() -> None:
    x = a_batch()
    torch.testing.assert_close(ClassBatchNorm(5, 3)(x, LABELS), nn.BatchNorm2d(5)(x))
    torch.testing.assert_close(ClassBatchNorm(5)(x, None), nn.BatchNorm2d(5)(x))


def test_statistics_are_chosen_from_outside_as_of_any_batch_norm() -> None:
    norm = a_norm("classes")
    assert len(batch_norms(norm)) == 1
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with without_stat_updates(norm):
        own = norm(a_batch(), LABELS)
    with running_statistics(norm):
        running = norm(a_batch(), LABELS)
    torch.testing.assert_close(norm.state_dict(), before, atol=0, rtol=0)
    assert not torch.allclose(own, running)


def test_bfloat16_stays_bfloat16() -> None:
    for norm in (ClassBatchNorm(5), ClassBatchNorm(5, 3)):
        assert norm(a_batch().bfloat16(), LABELS).dtype == torch.bfloat16


if __name__ == "__main__":
    ranks.serve(one_rank)
