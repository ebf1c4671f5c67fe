"""Spectral norm against singular values, and what several forwards of one step share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ndavid.models.gan.spectral_norm import (
    frozen_power_iteration,
    refresh_spectral_norms,
    shared_spectral_norm,
    spectral_norm,
    spectral_norms,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)]
    return nn.Sequential(*[spectral_norm(x) if isinstance(x, nn.Conv2d) else x for x in layers])


def largest_singular_values(module: nn.Module) -> list[float]:
    convs = [child for child in module.modules() if isinstance(child, nn.Conv2d)]
    return [float(torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)) for conv in convs]


def vectors(module: nn.Module) -> list[Tensor]:
    return [norm._u.clone() for norm in spectral_norms(module)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def move_weights(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def test_weights_have_unit_norm_once_the_vectors_fit() -> None:
    net = refresh_spectral_norms(network(), iterations=200).eval()
    assert largest_singular_values(net) == pytest.approx([1, 1], abs=1e-3)


def test_autocast_does_not_round_sigma() -> None:
    net, x = network().eval(), torch.randn(2, 3, 8, 8)
    wanted = [conv.weight for conv in net if isinstance(conv, nn.Conv2d)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [conv.weight for conv in net if isinstance(conv, nn.Conv2d)]
        assert net(x).dtype == torch.bfloat16
    for weight, exact in zip(found, wanted, strict=True):
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, exact, atol=0, rtol=0)


def test_training_forwards_move_the_vectors_and_frozen_ones_do_not() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    move_weights(net)
    start = vectors(net)
    with frozen_power_iteration(net):
        first, second = net(x), net(x)
        assert same(vectors(net), start) and net.training
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    net(x)
    assert not same(vectors(net), start)


def test_is_torchs_own_in_float32() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    twin = nn.Sequential(*[plain_copy(layer) for layer in net])
    for _ in range(3):
        torch.testing.assert_close(net(x), twin(x))
    assert all(
        torch.allclose(value, theirs, atol=1e-6)
        for value, theirs in zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def plain_copy(layer: nn.Module) -> nn.Module:
    """The same layer under torch's spectral norm."""
    if not isinstance(layer, nn.Conv2d):
        return layer
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    conv = torch.nn.utils.parametrizations.spectral_norm(conv)
    conv.load_state_dict(layer.state_dict())
    return conv


def test_frozen_leaves_eval_mode_alone_and_survives_an_error() -> None:
    net = network().eval()
    with frozen_power_iteration(net):
        pass
    assert not any(norm.training for norm in spectral_norms(net))
    net.train()
    with pytest.raises(RuntimeError, match="on purpose"), frozen_power_iteration(net):
        raise RuntimeError("on purpose")
    assert all(norm.training for norm in spectral_norms(net))


def test_shared_weights_are_normalised_once() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    move_weights(net)
    twin = copy.deepcopy(net)
    with torch.no_grad(), shared_spectral_norm(net):
        several = [net(x) for _ in range(3)]
    with torch.no_grad():
        once = twin(x)
    assert all(torch.equal(out, once) for out in several)
    assert same(vectors(net), vectors(twin))


def test_shared_weights_give_gradients_and_are_forgotten() -> None:
    net, x = network().eval(), torch.randn(2, 3, 8, 8)
    with shared_spectral_norm(net):
        with torch.no_grad():
            net(x)
        (net(x) + net(2 * x)).sum().backward()  # what was made without gradient is not reused
    shared = [p.grad for p in net.parameters()]
    net.zero_grad()
    (net(x) + net(2 * x)).sum().backward()
    for parameter, grad in zip(net.parameters(), shared, strict=True):
        assert grad is not None and grad.norm() > 0
        torch.testing.assert_close(parameter.grad, grad)
    before = net(x)
    move_weights(net)
    assert not torch.allclose(net(x), before)


def test_an_average_of_networks_is_brought_up_to_date() -> None:
    nets = [network() for _ in range(2)]
    move_weights(nets[0])
    for _ in range(20):
        move_weights(nets[1])
    mean = copy.deepcopy(nets[0])
    pairs = [net.state_dict() for net in nets]
    mean.load_state_dict({key: (pairs[0][key] + pairs[1][key]) / 2 for key in pairs[0]})
    mean.eval()
    stale = largest_singular_values(mean)
    fresh = largest_singular_values(refresh_spectral_norms(mean, iterations=100))
    assert max(abs(value - 1) for value in stale) > 0.02
    assert fresh == pytest.approx([1, 1], abs=1e-3)


def test_state_dict_goes_through_a_file_of_tensors() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    move_weights(net)
    net(x)
    twin = network()
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(twin.eval()(x), net.eval()(x), atol=0, rtol=0)
