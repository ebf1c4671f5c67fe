"""Activation checkpointing changes no output, no gradient and no statistic, and saves memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.batchnorm import (
    running_statistics,
    split_batch_norms,
    without_stat_updates,
)
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.encoders.recomputation import run_in_sequence, run_recomputed
from ndavid.models.moco import MoCo, MocoConfig
from ndavid.models.weights.release import load_dpc, save_pretrained

CLIPS = (2, 3, 5, 32, 32)
IMAGES = (4, 3, 32, 32)


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def build(name: str, checkpoints: bool) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(name)
    if checkpoints:
        encoder.checkpoint_activations()
    return encoder


def learn(encoder: nn.Module, x: Tensor, around=nullcontext) -> list[Tensor]:
    """Output, gradients and buffers of one forward and backward, dropout seeded."""
    torch.manual_seed(5)
    with around():
        out = encoder(x)
    # The backward pass of a training step stands outside of whatever stood around the forward.
    out.float().square().sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    return [out.detach(), *gradients, *(b.clone() for b in encoder.buffers())]


def assert_same(plain: list[Tensor], other: list[Tensor]) -> None:
    assert len(plain) == len(other)
    for a, b in zip(plain, other, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet2d3d10_half", CLIPS),
        ("residual:resnet2d3d10_half", CLIPS),
        pytest.param("torchvision:r3d_18", CLIPS, marks=pytest.mark.slow),
        ("torchvision:swin3d_t", CLIPS),  # stochastic depth
        ("pytorchvideo:x3d_xs", CLIPS),
        ("cifar:resnet20", IMAGES),
        ("torchvision:mobilenet_v3_small", IMAGES),  # activations in place
        pytest.param("torchvision:densenet121", IMAGES, marks=pytest.mark.slow),
        ("timm:resnet18", IMAGES),
        ("timm:resnet18", CLIPS),
    ],
)
def test_nothing_changes_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        plain, other = (learn(build(name, on), pixels(*shape)) for on in (False, True))
    assert_same(plain, other)


def split(encoder: nn.Module) -> nn.Module:
    return split_batch_norms(encoder, 2)


@pytest.mark.parametrize("prepare", [lambda e: e, split, nn.Module.eval], ids=["", "split", "eval"])
@pytest.mark.parametrize(
    "around_of",
    [
        lambda encoder: nullcontext,
        lambda encoder: lambda: without_stat_updates(encoder),
        lambda encoder: lambda: running_statistics(encoder),
        lambda encoder: lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["plain", "without_stat_updates", "running_statistics", "bfloat16"],
)
def test_the_second_time_is_as_the_first(prepare, around_of) -> None:
    """Whatever mode the forward ran in, and though it is another when backward comes."""
    results = []
    for on in (False, True):
        encoder = prepare(build("resnet2d3d10_half", on))
        results.append(learn(encoder, pixels(4, 3, 5, 32, 32), around_of(encoder)))
        results[-1].append(torch.tensor([m.training for m in encoder.modules()]))
    assert_same(*results)


def test_running_statistics_move_once() -> None:
    encoder = build("resnet2d3d10_half", True)
    learn(encoder, pixels(*CLIPS))
    assert all(int(b) == 1 for n, b in encoder.named_buffers() if n.endswith("tracked"))


def test_state_survives_a_failure_in_backward() -> None:
    """The copies that backward used do not stay behind in the layers."""
    encoder = build("resnet2d3d10_half", True)
    buffers = dict(encoder.named_buffers())
    out = encoder(pixels(*CLIPS))

    def fail(*_) -> None:
        raise RuntimeError("on purpose")

    handle = encoder.layer2[0].bn1.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        out.sum().backward()
    handle.remove()
    assert all(buffer is buffers[name] for name, buffer in encoder.named_buffers())
    assert all(m.training for m in encoder.modules())


def test_backward_may_come_twice() -> None:
    results = []
    for on in (False, True):
        encoder = build("resnet2d3d10_half", on)
        loss = encoder(pixels(*CLIPS)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        results.append([*(p.grad for p in encoder.parameters()), *encoder.buffers()])
    assert_same(*results)


def test_dropout_draws_the_same_masks() -> None:
    row = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), nn.Sequential(nn.Linear(8, 8))]
    wrapped = [nn.ModuleDict({"net": each}) for each in row]
    gradients = []
    for run in (run_in_sequence, run_recomputed):
        for each in wrapped:
            each.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            x = pixels(16, 8)
            run([_Calls(each) for each in wrapped], x).square().sum().backward()
            after = torch.rand(1)
        gradients.append([p.grad.clone() for each in wrapped for p in each.parameters()] + [after])
    assert_same(*gradients)


class _Calls(nn.Module):
    """A block that is no plain container, so that it is computed again as one."""

    def __init__(self, inner: nn.ModuleDict) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["net"](x)


def kept_numbers(encoder: Encoder, x: Tensor) -> int:
    """How many numbers a forward leaves behind for backward, parameters and pixels aside."""
    own = {p.data_ptr() for p in (*encoder.parameters(), *encoder.buffers(), x)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = encoder(x)
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["resnet2d3d18", "torchvision:r3d_18"])
def test_much_less_is_kept(name: str) -> None:
    x = pixels(1, 3, 5, 64, 64)
    assert kept_numbers(build(name, True), x) < 0.3 * kept_numbers(build(name, False), x)


def test_without_gradient_nothing_is_kept() -> None:
    encoder = build("resnet2d3d10_half", True)
    with torch.no_grad():
        assert not encoder(pixels(*CLIPS)).requires_grad


@pytest.mark.parametrize("name", ["timm:test_efficientnet", "torchvision:mvit_v2_s"])
def test_an_encoder_that_is_no_row_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot checkpoint"):
        build(name, True)


def test_a_compiled_graph_is_refused() -> None:
    assert build("resnet2d3d10_half", False).compilable()
    for name in ("resnet2d3d10_half", "residual:resnet2d3d10_half"):
        with pytest.raises(ConfigError, match=r"checkpoint_activations and run\.compile"):
            build(name, True).compilable()


def test_the_keys_of_dpc_and_moco_reach_the_encoder(tmp_path) -> None:
    dpc = DpcConfig(encoder="resnet2d3d10_half", checkpoint_activations=True)
    model = DPC(dpc)
    assert model.encoder.recomputes
    save_pretrained(model, tmp_path)
    assert not load_dpc(tmp_path).encoder.recomputes
    moco = MoCo(MocoConfig(encoder="cifar:resnet20", queue_size=8, checkpoint_activations=True))
    assert moco.encoder.recomputes and not moco.key_encoder.recomputes


def test_a_whole_dpc_has_the_same_gradients() -> None:
    results = []
    for on in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = DpcConfig(
                encoder="resnet2d3d10_half", num_blocks=3, pred_steps=1, checkpoint_activations=on
            )
            model = DPC(config)
            torch.manual_seed(1)
            predictions, targets = model(pixels(2, 3, 3, 5, 32, 32))
            (predictions * targets).sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert_same(*results)


@pytest.mark.gpu
def test_nothing_changes_on_cuda() -> None:
    results = []
    for on in (False, True):
        encoder = build("resnet2d3d18", on).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            out = encoder(pixels(*CLIPS).cuda())
        out.float().square().sum().backward()
        results.append([*(p.grad for p in encoder.parameters()), *encoder.buffers()])
    for a, b in zip(*results, strict=True):
        assert (a.double() - b.double()).norm() <= 0.05 * a.double().norm()
