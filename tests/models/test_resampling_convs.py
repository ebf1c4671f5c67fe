"""Fused convolutions against the two plain operations they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.models.gan.resampling_convs import PooledConv2d, UpsampledConv2d


def upsampled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(x, conv.weight, conv.bias, padding=1)


def pooled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, conv.weight, conv.bias, padding=1), 2)


PAIRS = [(UpsampledConv2d, upsampled), (PooledConv2d, pooled)]
Plain = Callable[[nn.Conv2d, Tensor], Tensor]


@pytest.mark.parametrize(("fused", "plain"), PAIRS)
@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (2, 6), (8, 4)])
def test_output_and_gradients_are_those_of_the_plain_pair(
    fused: type[nn.Conv2d], plain: Plain, height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = fused(3, 5).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    out, wanted = conv(x), plain(conv, x)
    torch.testing.assert_close(out, wanted)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    expected = torch.autograd.grad((wanted * weights).sum(), inputs)
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value, truth)


@pytest.mark.parametrize(("fused", "plain"), PAIRS)
@pytest.mark.parametrize("size", [2, 4, 6, 8])
@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_on_the_cpu_keeps_every_gradient(
    fused: type[nn.Conv2d], plain: Plain, size: int, channels_last: bool
) -> None:
    """oneDNN's bfloat16 kernels are wrong for some small maps; those met here must not be."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv = fused(16, 16).to(memory_format=layout)
    x = torch.randn(4, 16, size, size).contiguous(memory_format=layout).requires_grad_()
    inputs = (x, conv.weight, conv.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    weights = torch.randn(out.shape)
    found = torch.autograd.grad((out.float() * weights).sum(), inputs)
    exact = fused(16, 16).double()
    exact.load_state_dict(conv.state_dict())
    twin = x.detach().double().requires_grad_()
    truth = torch.autograd.grad(
        (plain(exact, twin) * weights).sum(), (twin, exact.weight, exact.bias)
    )
    for value, wanted in zip(found, truth, strict=True):
        assert (value.double() - wanted).norm() < 0.02 * wanted.norm()
