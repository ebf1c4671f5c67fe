"""Original BigGAN weights: our networks against one written from the layout alone, step by step."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.errors import CheckpointError
from ndavid.models.gan.model import Gan, GanConfig
from ndavid.models.weights.original_biggan import load_biggan_release
from ndavid.models.weights.state_files import write_state_dict

State = dict[str, Tensor]
CHANNELS, LATENT, CLASSES = 16, 12, 3


def random_layer(state: State, name: str, *shape: int, bias: bool = True) -> None:
    """A layer under spectral norm: weight, bias, the singular vector and the logged value."""
    g = torch.Generator().manual_seed(len(state))
    state[f"{name}.weight"] = torch.randn(shape, generator=g)
    if bias:
        state[f"{name}.bias"] = torch.randn(shape[0], generator=g)
    state[f"{name}.u0"] = torch.randn(1, shape[0], generator=g)
    state[f"{name}.sv0"] = torch.ones(1)


def random_norm(state: State, name: str, classes: int) -> None:
    g = torch.Generator().manual_seed(len(state))
    if classes:
        state[f"{name}.gain.weight"] = torch.randn(classes, CHANNELS, generator=g)
        state[f"{name}.bias.weight"] = torch.randn(classes, CHANNELS, generator=g)
    else:
        state[f"{name}.gain"] = torch.randn(CHANNELS, generator=g)
        state[f"{name}.bias"] = torch.randn(CHANNELS, generator=g)
    state[f"{name}.stored_mean"] = torch.randn(CHANNELS, generator=g)
    state[f"{name}.stored_var"] = torch.rand(CHANNELS, generator=g) + 0.5


def generator_state(classes: int = CLASSES) -> State:
    state: State = {}
    c = CHANNELS
    random_layer(state, "linear", 16 * c, LATENT)
    for i in range(3):
        block = f"blocks.{i}.0"
        random_layer(state, f"{block}.conv1", c, c, 3, 3)
        random_layer(state, f"{block}.conv2", c, c, 3, 3)
        random_layer(state, f"{block}.conv_sc", c, c, 1, 1)
        random_norm(state, f"{block}.bn1", classes)
        random_norm(state, f"{block}.bn2", classes)
    random_norm(state, "output_layer.0", 0)
    random_layer(state, "output_layer.2", 3, c, 3, 3)
    return state


def discriminator_state(classes: int = CLASSES) -> State:
    state: State = {}
    c = CHANNELS
    for i in range(4):
        block, width = f"blocks.{i}.0", c if i else 3
        random_layer(state, f"{block}.conv1", c, width, 3, 3)
        random_layer(state, f"{block}.conv2", c, c, 3, 3)
        if i < 2:
            random_layer(state, f"{block}.conv_sc", c, width, 1, 1)
    random_layer(state, "linear", 1, c)
    random_layer(state, "embed", classes, c, bias=False)
    return state


class Naive:
    """The original's forward written out layer by layer, on a state dict, in float64."""

    def __init__(self, state: State) -> None:
        self.state = {key: value.double() for key, value in state.items()}

    def weight(self, name: str) -> Tensor:
        weight, u = self.state[f"{name}.weight"], self.state[f"{name}.u0"]
        matrix = weight.reshape(len(weight), -1)
        v = u @ matrix
        v = v / v.norm()
        u = v @ matrix.T
        u = u / u.norm()
        return weight / (v @ matrix.T @ u.T)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        mean, var = (self.state[f"{name}.stored_{key}"][:, None, None] for key in ("mean", "var"))
        return (x - mean) / (var + 1e-5).sqrt() * gain[..., None, None] + bias[..., None, None]

    def class_norm(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        gain, bias = (self.state[f"{name}.{key}.weight"][y] for key in ("gain", "bias"))
        return self.norm(name, x, 1 + gain, bias)

    def generate(self, z: Tensor, y: Tensor) -> Tensor:
        h = z @ self.weight("linear").T + self.state["linear.bias"]
        h = h.view(len(z), -1, 4, 4)
        for i in range(3):
            block, x = f"blocks.{i}.0", h
            h = self.class_norm(f"{block}.bn1", x, y).relu()
            h, x = (t.repeat_interleave(2, 2).repeat_interleave(2, 3) for t in (h, x))
            h = self.conv(f"{block}.conv1", h)
            h = self.conv(f"{block}.conv2", self.class_norm(f"{block}.bn2", h, y).relu())
            h = h + self.conv(f"{block}.conv_sc", x)
        last = "output_layer.0"
        h = self.norm(last, h, self.state[f"{last}.gain"], self.state[f"{last}.bias"]).relu()
        return self.conv("output_layer.2", h).tanh()

    def judge(self, x: Tensor, y: Tensor) -> Tensor:
        for i in range(4):
            block = f"blocks.{i}.0"
            h = self.conv(f"{block}.conv1", x if i == 0 else x.relu())
            h = self.conv(f"{block}.conv2", h.relu())
            if i == 0:
                h, x = F.avg_pool2d(h, 2), self.conv(f"{block}.conv_sc", F.avg_pool2d(x, 2))
            elif i == 1:
                h, x = F.avg_pool2d(h, 2), F.avg_pool2d(self.conv(f"{block}.conv_sc", x), 2)
            x = h + x
        h = x.relu().sum(dim=(2, 3))
        projection = (self.weight("embed")[y] * h).sum(dim=1)
        return (h @ self.weight("linear").T)[:, 0] + self.state["linear.bias"] + projection


@pytest.mark.parametrize("classes", [1, CLASSES])
@torch.no_grad()
def test_generator_agrees_with_the_naive_one(classes: int) -> None:
    state = generator_state(classes)
    z, y = torch.randn(5, LATENT), torch.arange(5) % classes
    network = load_biggan_release(state, "generator")
    wanted = Naive(state).generate(z.double(), y)
    assert wanted.std() > 0.1
    for _ in range(2):  # eval mode throws its step of power iteration away
        torch.testing.assert_close(network(z, y).double(), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("classes", [1, CLASSES])
@torch.no_grad()
def test_discriminator_agrees_with_the_naive_one(classes: int) -> None:
    state = discriminator_state(classes)
    x, y = torch.rand(5, 3, 32, 32) * 2 - 1, torch.arange(5) % classes
    wanted = Naive(state).judge(x.double(), y)
    assert wanted.std() > 0
    network = load_biggan_release({"state_dict": state}, "discriminator")
    for _ in range(2):
        torch.testing.assert_close(network(x, y).double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_the_networks_of_one_class_are_those_that_the_released_weights_fit(
    which: Literal["generator", "discriminator"],
) -> None:
    state = generator_state(1) if which == "generator" else discriminator_state(1)
    released = load_biggan_release(state, which)
    size = {"generator_channels": CHANNELS // 4, "discriminator_channels": CHANNELS // 4}
    gan = Gan(GanConfig(num_classes=1, latent_dim=LATENT, init="original", **size))
    ours = getattr(gan, which)
    shapes = [{n: p.shape for n, p in net.named_parameters()} for net in (released, ours)]
    assert shapes[0] == shapes[1]
    if which == "discriminator":
        assert shapes[1]["embed.parametrizations.weight.original"] == (1, CHANNELS)


@torch.no_grad()
def test_training_mode_keeps_the_step_of_power_iteration() -> None:
    state = discriminator_state()
    network = load_biggan_release(state, "discriminator")
    x, y = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    before = network(x, y)
    network.train()
    network(x, y)
    key = "blocks.2.conv1.parametrizations.weight.0.u"
    stored = network.state_dict()[key]
    matrix = state["blocks.2.0.conv1.weight"].flatten(1)
    v = F.normalize(state["blocks.2.0.conv1.u0"] @ matrix)
    torch.testing.assert_close(stored, F.normalize(v @ matrix.T)[0])
    network.eval()
    assert not torch.allclose(network(x, y), before)
    torch.testing.assert_close(network.state_dict()[key], stored, atol=0, rtol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reads_files_and_the_prefix_of_data_parallel(tmp_path: Path, suffix: str) -> None:
    state = generator_state()
    path = tmp_path / f"G_ema{suffix}"
    prefixed = {f"module.{key}": value for key, value in state.items()}
    if suffix == ".pth":
        torch.save(prefixed, path)
    else:
        write_state_dict(prefixed, path)
    z, y = torch.randn(2, LATENT), torch.tensor([0, 2])
    torch.testing.assert_close(
        load_biggan_release(path, "generator")(z, y), load_biggan_release(state, "generator")(z, y)
    )


def without(key: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != key}


FAULTS = [
    (without("blocks.1.0.conv2.weight"), "lacks blocks.1.conv2.weight"),
    (without("blocks.1.0.conv2.u0"), "lacks blocks.1.conv2.u0"),
    (without("linear.weight"), "no linear.weight"),
    (without("blocks.0.0.bn1.gain.weight"), "no blocks.0.bn1.gain.weight"),
    (lambda s: s | {"blocks.1.1.theta.weight": torch.ones(1)}, "also has blocks.1.1.theta.weight"),
    (lambda s: s | {"linear.weight": torch.ones(3)}, "linear.weight has the shape"),
    (lambda s: s | {"output_layer.2.bias": torch.ones(4)}, "differs in conv.bias"),
]


@pytest.mark.parametrize(("break_it", "said"), FAULTS)
def test_a_state_dict_that_does_not_fit_is_one_clear_line(
    break_it: Callable[[State], State], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        load_biggan_release(break_it(generator_state()), "generator")
    assert "\n" not in str(caught.value)


def test_the_other_network_is_one_clear_line() -> None:
    with pytest.raises(CheckpointError, match=r"not the discriminator .* no embed.weight"):
        load_biggan_release(generator_state(), "discriminator")
    with pytest.raises(ValueError, match="'D'"):
        load_biggan_release(generator_state(), "D")  # type: ignore[arg-type]


class _Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.system, ("echo ran",))


def test_files_that_are_no_checkpoint_are_one_clear_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, torn, missing = tmp_path / "code.pth", tmp_path / "torn.pth", tmp_path / "none.pth"
    torch.save({"linear.weight": _Code()}, code)
    torch.save(generator_state(), torn)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps([1, 2, 3]))
    for path, said in (
        (code, "run code"),
        (torn, "damaged"),
        (missing, "no such file"),
        (plain, "not a checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            load_biggan_release(path, "generator")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "ran" not in capfd.readouterr().out
