"""Which statistics batch norm uses, moves and keeps."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ndavid.models.batchnorm import (
    FlatBatchNorm3d,
    SplitBatchNorm,
    batch_norms,
    drop_running_stats,
    flatten_batch_norms,
    freeze,
    has_running_stats,
    running_statistics,
    split_batch_norms,
    track_running_stats,
    without_stat_updates,
)
from ndavid.models.encoders.build import build_encoder


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


# --- split batch norm ----------------------------------------------------------------------------

SHAPES = {"features": (6, 4), "images": (6, 4, 3, 5), "clips": (6, 4, 2, 3, 5)}
PLAIN = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def used_norm(dimensions: int, **options) -> nn.Module:
    """A batch norm that has learnt something, so that no parameter or statistic is neutral."""
    torch.manual_seed(1)
    norm = PLAIN[dimensions](4, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm(2 + 3 * torch.randn(SHAPES[{2: "features", 4: "images", 5: "clips"}[dimensions]]))
    return norm


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("splits", [2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.5}],
    ids=str,
)
def test_groups_are_normalised_as_by_separate_layers(shape, splits: int, options: dict) -> None:
    norm = used_norm(len(shape), **options)
    split = SplitBatchNorm(copy.deepcopy(norm), splits)
    apart = [copy.deepcopy(norm) for _ in range(splits)]
    x = (torch.randn(shape) + torch.arange(6.0).view(-1, *[1] * (len(shape) - 1))).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(shape)
    out = split(x)
    (out * weights).sum().backward()
    expected = torch.empty(shape)
    for group, layer in enumerate(apart):
        expected[group::splits] = layer(y[group::splits])
    (expected * weights).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x.grad, y.grad)
    for name, parameter in split.named_parameters():
        gradient = sum(layer.get_parameter(name).grad for layer in apart)
        torch.testing.assert_close(parameter.grad, gradient)
    assert dict(split.named_buffers()).keys() == dict(norm.named_buffers()).keys()
    for name, buffer in split.named_buffers():
        each = torch.stack([layer.get_buffer(name).float() for layer in apart])
        torch.testing.assert_close(buffer.float(), each.mean(dim=0))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_eval_mode_it_is_the_plain_layer(shape) -> None:
    norm = used_norm(len(shape)).eval()
    split = SplitBatchNorm(copy.deepcopy(norm), 4)  # 4 does not divide the batch
    assert not split.training
    x = torch.randn(shape)
    assert torch.equal(split(x), norm(x))
    assert same(statistics(split), statistics(norm))


def test_a_batch_that_does_not_split_is_refused_in_training() -> None:
    split = SplitBatchNorm(nn.BatchNorm2d(4), 4)
    with pytest.raises(ValueError, match="4 equal groups of a batch of 6"):
        split(torch.randn(6, 4, 2, 2))


def test_split_layers_use_and_spare_running_statistics_as_told() -> None:
    split = nn.Sequential(SplitBatchNorm(used_norm(4), 2))
    before, x = statistics(split), torch.randn(6, 4, 3, 5)
    with without_stat_updates(split):
        own = split(x)
    with running_statistics(split):
        running = split(x)
    assert same(statistics(split), before) and split[0].training
    torch.testing.assert_close(own, split(x))
    assert not same(statistics(split), before)
    split.eval()
    assert not torch.equal(split(x), running)  # they have moved
    split.load_state_dict(before, strict=False)
    torch.testing.assert_close(split(x), running)


@pytest.mark.parametrize("name", ["resnet2d3d10", "timm:efficientnet_lite0", "cifar:resnet20"])
def test_every_layer_of_an_encoder_is_split_and_its_state_dict_stays(name: str) -> None:
    """timm's layers hide an activation, without which the output would differ."""
    torch.manual_seed(0)
    # In double precision, on maps of some size: statistics of few values blow rounding errors up.
    plain = build_encoder(name).double()
    shape = (4, 3, 5, 64, 64) if name.startswith("resnet2d3d") else (4, 3, 96, 96)
    pixels = torch.randn(shape, dtype=torch.float64)
    plain(pixels)
    split = split_batch_norms(copy.deepcopy(plain), 2)
    assert [type(layer) for layer in batch_norms(split)] == [SplitBatchNorm] * len(
        batch_norms(plain)
    )
    assert list(split.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        # In training two copies of a sample in other groups meet other company.
        out = split(pixels[[0, 0, 1, 2]])
        assert not torch.allclose(out[0], out[1], rtol=1e-3)
        # And a batch whose groups are alike cannot tell that it was split.
        twice = pixels[:2].repeat_interleave(2, dim=0)
        both = [copy.deepcopy(net)(twice) for net in (split, plain)]
        torch.testing.assert_close(*both)
        split.load_state_dict(plain.state_dict())
        assert torch.equal(split.eval()(pixels), plain.eval()(pixels))


def test_synchronised_layers_are_split_like_plain_ones() -> None:
    norm = used_norm(4)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm))
    split = split_batch_norms(nn.Sequential(synchronised), 2)[0]
    x = torch.randn(6, 4, 3, 5)
    assert type(synchronised) is nn.SyncBatchNorm and type(split) is SplitBatchNorm
    assert torch.equal(split(x), SplitBatchNorm(norm, 2)(x))


def test_a_frozen_layer_stays_frozen_and_an_activation_keeps_its_parameters() -> None:
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(4, act_layer=nn.PReLU)
    norm.weight.requires_grad_(False)
    nn.init.constant_(norm.act.weight, 0.5)
    x = torch.randn(6, 4, 2, 2)
    split = split_batch_norms(nn.Sequential(copy.deepcopy(norm)), 1)[0]
    assert list(split.state_dict()) == list(norm.state_dict())
    assert not split.weight.requires_grad and split.bias.requires_grad
    torch.testing.assert_close(split(x), norm(x))


@pytest.mark.parametrize("splits", [1, 3])
def test_half_precision_goes_through(splits: int) -> None:
    norm = used_norm(4)
    split = SplitBatchNorm(copy.deepcopy(norm), splits)
    x = torch.randn(6, 4, 3, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = split(x)
        assert out.dtype == norm(x).dtype == torch.bfloat16
    expected = SplitBatchNorm(used_norm(4), splits)(x.float())
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    assert split.running_mean.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_split_on_a_gpu_as_on_the_cpu(dtype: torch.dtype) -> None:
    x = torch.randn(6, 4, 3, 5)
    on_cpu, on_gpu = SplitBatchNorm(used_norm(4), 3), SplitBatchNorm(used_norm(4), 3).cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        out = on_gpu(x.cuda().to(dtype).to(memory_format=torch.channels_last))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float().cpu(), on_cpu(x), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(on_gpu.running_var.cpu(), on_cpu.running_var, rtol=2e-2, atol=2e-2)


def flat_and_plain(device: str = "cpu") -> tuple[nn.BatchNorm3d, nn.BatchNorm3d]:
    """The same layer as `FlatBatchNorm3d` and as PyTorch's."""
    plain = nn.BatchNorm3d(4).to(device)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([0.5, 1.0, -1.5, 2.0]))
        plain.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    flat = flatten_batch_norms(nn.Sequential(copy.deepcopy(plain)))[0]  # type: ignore[index]
    assert type(flat) is FlatBatchNorm3d
    return flat, plain


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last_3d),
    "neither": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6, 7), (3, 4, 1, 6, 7), (3, 4, 2, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flat_batch_norm_is_the_plain_one(
    layout: str, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    flat, plain = flat_and_plain(device)
    x = LAYOUTS[layout](torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    x = x.to(device, dtype)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    results = []
    for norm in (flat, plain):
        given = x.detach().requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = norm(given)
        (out.float() * weight).sum().backward()
        results.append((out, given.grad, norm.weight.grad, norm.running_var, norm.eval()(x)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **near)
    # A view of the input's layout: nothing is copied into another one.
    if layout != "neither":
        assert results[0][0].stride() == results[1][0].stride()
    assert flat.state_dict().keys() == plain.state_dict().keys()
    assert flat.num_batches_tracked == 1


class Calls(TorchDispatchMode):
    """Counts the operators that are run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_flat_batch_norm_adds_views_and_no_copies(layout: str) -> None:
    # An in-place ReLU behind it, as encoders have.
    x = LAYOUTS[layout](torch.randn(2, 4, 3, 5, 5)).requires_grad_()
    weight = LAYOUTS[layout](torch.randn(2, 4, 3, 5, 5))
    counts = []
    for norm in flat_and_plain():
        with Calls() as calls:
            (norm(x).relu_() * weight).sum().backward()
        x.grad = None
        counts.append(calls.counts)
    added = counts[0] - counts[1]
    assert set(added) <= {"view", "_unsafe_view"} and not counts[1] - counts[0], added


def test_a_flat_batch_norm_refuses_images() -> None:
    with pytest.raises(ValueError, match="5D"):
        flat_and_plain()[0](torch.zeros(2, 4, 3, 3))


def test_encoders_of_clips_are_built_with_flat_batch_norms_and_hooks_stay() -> None:
    encoder = build_encoder("resnet2d3d10")
    assert {type(norm) for norm in batch_norms(encoder)} == {FlatBatchNorm3d}
    norm = nn.Sequential(nn.BatchNorm3d(4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4))
    called = []
    norm[0].register_forward_hook(lambda *_: called.append(1))
    flatten_batch_norms(norm)
    norm[0](torch.randn(2, 4, 2, 3, 3))
    kinds = [type(layer) for layer in norm]
    assert called and kinds == [FlatBatchNorm3d, nn.BatchNorm2d, nn.SyncBatchNorm]
