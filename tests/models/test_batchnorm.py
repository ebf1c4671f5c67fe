"""Which statistics batch norm uses, moves and keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ndavid.models.batchnorm import (
    drop_running_stats,
    freeze,
    has_running_stats,
    track_running_stats,
    without_stat_updates,
)
from ndavid.models.encoders import build_encoder


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["resnet2d3d10", "timm:resnet18"])
def test_a_broken_batch_does_not_move_running_statistics(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    clips = 5 + 3 * torch.randn(2, 3, 5, 32, 32)
    before = statistics(encoder)
    with without_stat_updates(encoder):
        apart = encoder(clips)
        # Its own batch statistics normalise it, not the running ones.
    assert same(statistics(encoder), before)
    assert torch.equal(encoder(clips), apart)
    assert not same(statistics(encoder), before)  # updates are on again


def test_gradients_flow_through_such_a_forward() -> None:
    encoder = build_encoder("resnet2d3d10")
    with without_stat_updates(encoder):
        encoder(torch.randn(2, 3, 5, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_updates_come_back_after_an_error_and_when_nested() -> None:
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ZeroDivisionError), without_stat_updates(norm), without_stat_updates(norm):
        1 / 0  # noqa: B018
    before = statistics(norm)
    norm(torch.randn(8, 3))
    assert not same(statistics(norm), before)


def test_layers_in_eval_mode_go_on_using_running_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    norm(10 + torch.randn(8, 3))
    norm.eval()
    x = torch.randn(4, 3)
    expected = norm(x)
    with without_stat_updates(norm):
        assert torch.equal(norm(x), expected)


def test_statistics_stand_still_in_compiled_models_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))

    def step(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return module(x)

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 2, 4, 4)
    step(compiled, x)
    before = statistics(network)
    with without_stat_updates(network):
        apart = step(compiled, x)
    assert same(statistics(network), before)
    torch.testing.assert_close(step(compiled, x), apart)
    assert not same(statistics(network), before)


def test_dropped_statistics_mean_batch_statistics_in_eval() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet2d3d10")
    x = 2 + torch.randn(2, 3, 5, 32, 32)
    expected = encoder(x)
    drop_running_stats(encoder).eval()
    assert not has_running_stats(encoder)
    assert not any("running" in key for key in encoder.state_dict())
    assert torch.equal(encoder(x), expected)


def test_fresh_statistics_are_learnt_again() -> None:
    torch.manual_seed(0)
    norm = track_running_stats(drop_running_stats(nn.BatchNorm1d(2)))
    assert has_running_stats(norm)
    for _ in range(200):
        norm(3 + 2 * torch.randn(64, 2))
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(norm.running_var, torch.full((2,), 4.0), atol=0.8, rtol=0)


def test_existing_statistics_are_kept() -> None:
    norm = nn.BatchNorm1d(2)
    norm(torch.randn(8, 2))
    before = statistics(norm)
    assert same(statistics(track_running_stats(norm)), before)


def test_a_frozen_encoder_stands_still_inside_a_training_parent() -> None:
    encoder = freeze(build_encoder("resnet2d3d10"))
    parent = nn.Sequential(encoder, nn.BatchNorm3d(256))
    copied = copy.deepcopy(parent)
    for network in (parent, copied):
        network.train()
        before = statistics(network[0])
        network(torch.randn(2, 3, 5, 64, 64)).sum().backward()
        assert same(statistics(network[0]), before)
        assert all(p.grad is None for p in network[0].parameters())
        assert network[1].training and network[1].weight.grad is not None
