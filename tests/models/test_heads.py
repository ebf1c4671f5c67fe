"""Projection heads: what they compute, their sizes, unit length in every precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ndavid.models.heads import ProjectionHead, pool


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 2, 4), (3, 6, 2, 4, 5)])
def test_pooling_is_the_mean_over_whatever_axes_there_are(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape)
    expected = torch.stack([row.reshape(6, -1).mean(dim=1) for row in maps])
    torch.testing.assert_close(pool(maps), expected)


@pytest.mark.parametrize("hidden", [0, 10])
def test_mlp_is_linear_relu_linear(hidden: int) -> None:
    head = ProjectionHead(6, 4, kind="mlp", hidden_dim=hidden)
    first, _, last = head.layers
    assert [type(layer) for layer in head.layers] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (first.in_features, last.out_features) == (6, 4)
    assert first.out_features == last.in_features == (hidden or 6)
    maps = torch.randn(3, 6, 2, 2)
    vectors = last(first(maps.mean((2, 3))).clamp(min=0))
    expected = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(maps), expected)


def test_linear_is_one_layer() -> None:
    head = ProjectionHead(6, 4, kind="linear")
    (layer,) = head.layers
    maps = torch.randn(3, 6, 2, 2, 2)
    vectors = layer(maps.mean((2, 3, 4)))
    torch.testing.assert_close(head(maps), vectors / vectors.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_unit_length_in_float32_under_autocast(kind: str) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(64, 32, kind=kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = head(torch.randn(16, 64, 3, 3).bfloat16())
    assert vectors.dtype == torch.float32
    # bfloat16 would miss 1 by up to 4e-3.
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(16), rtol=0, atol=1e-6)


def test_the_encoder_learns_through_it() -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 6, 2, 2, requires_grad=True)
    head = ProjectionHead(6, 4)
    head(maps)[:, 0].sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((0, 4), {}, "sizes must be positive"),
        ((6, 0), {}, "sizes must be positive"),
        ((6, 4), {"hidden_dim": -1}, "sizes must be positive"),
        ((6, 4), {"kind": "bilinear"}, "mlp or linear, not 'bilinear'"),
    ],
)
def test_bad_sizes_and_kinds_are_refused(sizes, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectionHead(*sizes, **options)
