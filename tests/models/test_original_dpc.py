"""Reading the original DPC's checkpoints, against a functional forward written from the paper.

``OriginalDpc`` below works on the raw state dict with torch.nn.functional alone and shares nothing
with ndavid.models: two implementations that agree on random weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.errors import CheckpointError
from ndavid.models.batchnorm import has_running_stats
from ndavid.models.weights.original_dpc import load_dpc_classifier_release, load_dpc_release

State = dict[str, Tensor]
LAYOUTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class OriginalDpc:
    """The original's forward in eval mode, straight from its keys."""

    def __init__(self, state: State, depth: int, *, running_stats: bool) -> None:
        self.state = state
        self.depth = depth
        self.running_stats = running_stats

    def norm(self, x: Tensor, name: str) -> Tensor:
        s = self.state
        if self.running_stats:
            mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        else:
            axes = [d for d in range(x.ndim) if d != 1]
            mean, var = x.mean(axes), x.var(axes, unbiased=False)
        shape = (1, -1, *[1] * (x.ndim - 2))
        x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return x * s[f"{name}.weight"].view(shape) + s[f"{name}.bias"].view(shape)

    def conv(self, x: Tensor, name: str, stride, padding) -> Tensor:
        return F.conv3d(x, self.state[f"{name}.weight"], None, stride, padding)

    def block(self, x: Tensor, name: str, stride, three_d: bool, last: bool) -> Tensor:
        pad = (1, 1, 1) if three_d else (0, 1, 1)
        if self.depth == 50:
            out = F.relu(self.norm(self.conv(x, f"{name}.conv1", 1, 0), f"{name}.bn1"))
            out = F.relu(self.norm(self.conv(out, f"{name}.conv2", stride, pad), f"{name}.bn2"))
            out = self.norm(self.conv(out, f"{name}.conv3", 1, 0), f"{name}.bn3")
        else:
            out = F.relu(self.norm(self.conv(x, f"{name}.conv1", stride, pad), f"{name}.bn1"))
            out = self.norm(self.conv(out, f"{name}.conv2", 1, pad), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")
        return out + x if last else F.relu(out + x)

    def backbone(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x, "backbone.conv1", (1, 2, 2), (0, 3, 3)), "backbone.bn1"))
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        counts = LAYOUTS[self.depth]
        for layer in (1, 2, 3, 4):
            for i in range(counts[layer - 1]):
                first = {1: (1, 1, 1), 2: (1, 2, 2)}.get(layer, (2, 2, 2))
                stride = first if i == 0 else (1, 1, 1)
                last = layer == 4 and i == counts[3] - 1
                x = self.block(x, f"backbone.layer{layer}.{i}", stride, layer > 2, last)
        return x

    def pool(self, x: Tensor, frames: int) -> Tensor:
        return F.avg_pool3d(x, (math.ceil(frames / 4), 1, 1), stride=1).squeeze(2)

    def gru(self, x: Tensor, h: Tensor) -> Tensor:
        def gate(name: str, inputs: Tensor) -> Tensor:
            key = f"agg.ConvGRUCell_00.{name}"
            return F.conv2d(inputs, self.state[f"{key}.weight"], self.state[f"{key}.bias"])

        u = torch.sigmoid(gate("update_gate", torch.cat([x, h], 1)))
        r = torch.sigmoid(gate("reset_gate", torch.cat([x, h], 1)))
        o = torch.tanh(gate("out_gate", torch.cat([x, h * r], 1)))
        return h * (1 - u) + o * u

    def predict(self, h: Tensor) -> Tensor:
        s = self.state
        h = F.conv2d(h, s["network_pred.0.weight"], s["network_pred.0.bias"])
        return F.conv2d(F.relu(h), s["network_pred.2.weight"], s["network_pred.2.bias"])

    def scores(self, blocks: Tensor, steps: int) -> Tensor:
        b, n, _, frames = blocks.shape[:4]
        f = self.pool(self.backbone(blocks.flatten(0, 1)), frames).unflatten(0, (b, n))
        h = torch.zeros_like(f[:, 0])
        for i in range(n - steps):
            h = self.gru(F.relu(f[:, i]), h)
        predictions = [self.predict(h)]
        while len(predictions) < steps:
            h = self.gru(F.relu(predictions[-1]), h)
            predictions.append(self.predict(h))
        p = torch.stack(predictions, 1).flatten(3)
        return torch.einsum("bidc,ejdk->bicejk", p, f[:, n - steps :].flatten(3))

    def logits(self, blocks: Tensor) -> Tensor:
        b, n, _, frames = blocks.shape[:4]
        f = self.pool(F.relu(self.backbone(blocks.flatten(0, 1))), frames).unflatten(0, (b, n))
        h = torch.zeros_like(f[:, 0])
        for i in range(n):
            h = self.gru(f[:, i], h)
        pooled = self.norm(h.mean((2, 3)), "final_bn")
        return F.linear(pooled, self.state["final_fc.1.weight"], self.state["final_fc.1.bias"])


def original_state(depth: int, *, running_stats: bool, num_classes: int | None = None) -> State:
    """A state dict with the original's keys and shapes, and random values."""
    generator = torch.Generator().manual_seed(depth)
    state: State = {}

    def norm(name: str, width: int, tracked: bool = running_stats) -> None:
        # Under 1, so that fifty layers of random weights do not blow the features up.
        state[f"{name}.weight"] = 0.5 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)
        if tracked:
            state[f"{name}.running_mean"] = 0.2 * torch.randn(width, generator=generator)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(name: str, out: int, into: int, *kernel: int) -> None:
        fan = into * math.prod(kernel)
        weight = torch.randn(out, into, *kernel, generator=generator)
        state[f"{name}.weight"] = weight * math.sqrt(2 / fan)

    def biased(name: str, out: int, into: int, *kernel: int) -> None:
        conv(name, out, into, *kernel)
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)

    expansion = 4 if depth == 50 else 1
    conv("backbone.conv1", 64, 3, 1, 7, 7)
    norm("backbone.bn1", 64)
    width = 64
    for layer, (planes, count) in enumerate(
        zip((64, 128, 256, 256), LAYOUTS[depth], strict=True), 1
    ):
        time = 3 if layer > 2 else 1
        for i in range(count):
            name = f"backbone.layer{layer}.{i}"
            shapes = [(planes, width, time, 3, 3), (planes, planes, time, 3, 3)]
            if depth == 50:
                shapes = [
                    (planes, width, 1, 1, 1),
                    (planes, planes, time, 3, 3),
                    (4 * planes, planes, 1, 1, 1),
                ]
            for j, shape in enumerate(shapes, 1):
                conv(f"{name}.conv{j}", *shape)
                norm(f"{name}.bn{j}", shape[0])
            if i == 0 and (layer > 1 or width != planes * expansion):
                conv(f"{name}.downsample.0", planes * expansion, width, 1, 1, 1)
                norm(f"{name}.downsample.1", planes * expansion)
            width = planes * expansion
    for gate in ("reset_gate", "update_gate", "out_gate"):
        biased(f"agg.ConvGRUCell_00.{gate}", width, 2 * width, 1, 1)
        for part in ("weight", "bias"):
            state[f"agg.cell_list.0.{gate}.{part}"] = state[f"agg.ConvGRUCell_00.{gate}.{part}"]
    if num_classes is None:
        biased("network_pred.0", width, width, 1, 1)
        biased("network_pred.2", width, width, 1, 1)
    else:
        norm("final_bn", width, tracked=True)
        biased("final_fc.1", num_classes, width)
    return state


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("running_stats", [False, True])
def test_scores_agree_with_the_original(depth: int, running_stats: bool) -> None:
    state = original_state(depth, running_stats=running_stats)
    blocks = torch.randn(2, 4, 3, 5, 64, 40, generator=torch.Generator().manual_seed(1))
    model = load_dpc_release(state, num_blocks=4, pred_steps=2)
    with torch.no_grad():
        theirs = OriginalDpc(state, depth, running_stats=running_stats).scores(blocks, steps=2)
        ours = model.scores(blocks)
    assert ours.shape == (2, 2, 4, 2, 2, 4)
    assert relative_error(ours, theirs) < 1e-4
    assert has_running_stats(model) == running_stats
    # The scores say something: they would not agree by being all alike.
    assert theirs.std() > 0.05 * theirs.abs().max()


def test_scores_agree_to_the_last_digits_in_float64() -> None:
    state = {k: v.double() for k, v in original_state(18, running_stats=False).items()}
    blocks = torch.randn(2, 3, 3, 5, 32, 32, dtype=torch.float64)
    model = load_dpc_release(state, num_blocks=3, pred_steps=2).double()
    with torch.no_grad():
        theirs = OriginalDpc(state, 18, running_stats=False).scores(blocks, steps=2)
        assert relative_error(model.scores(blocks), theirs) < 1e-10


@pytest.mark.parametrize("depth", [18, 50])
def test_classifiers_agree_with_the_original(depth: int) -> None:
    state = original_state(depth, running_stats=True, num_classes=5)
    blocks = torch.randn(2, 3, 3, 5, 48, 48, generator=torch.Generator().manual_seed(2))
    model = load_dpc_classifier_release(state, num_blocks=3, pred_steps=1)
    video = blocks.transpose(1, 2).flatten(2, 3)
    with torch.no_grad():
        theirs = OriginalDpc(state, depth, running_stats=True).logits(blocks)
        ours = model(video)
    assert ours.shape == (2, 5)
    assert relative_error(ours, theirs) < 1e-4


def test_files_as_the_original_wrote_them_are_read(tmp_path: Path) -> None:
    state = original_state(18, running_stats=False)
    wrapped = {f"module.{key}": value for key, value in state.items()}
    path = tmp_path / "epoch300.pth.tar"
    content = {
        "epoch": 300,
        "net": "resnet18",
        "state_dict": wrapped,
        "best_acc": np.float64(0.4),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
    }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    loaded = load_dpc_release(path)
    assert not loaded.training
    assert loaded.config.encoder == "resnet2d3d18"
    key = "backbone.layer4.1.conv2.weight"
    assert torch.equal(loaded.encoder.layer4[1].conv2.weight, state[key])


def test_the_cell_is_read_from_either_of_its_names() -> None:
    state = original_state(18, running_stats=False)
    only_list = {k: v for k, v in state.items() if "ConvGRUCell_00" not in k}
    a, b = load_dpc_release(state), load_dpc_release(only_list)
    assert torch.equal(a.agg.cell.out_gate.weight, b.agg.cell.out_gate.weight)


def test_two_copies_of_the_cell_that_differ_are_refused() -> None:
    state = original_state(18, running_stats=False)
    state["agg.cell_list.0.out_gate.bias"] = state["agg.cell_list.0.out_gate.bias"] + 1
    with pytest.raises(CheckpointError, match="differ"):
        load_dpc_release(state)


def test_what_is_no_original_checkpoint_is_named() -> None:
    state = original_state(18, running_stats=False)
    with pytest.raises(CheckpointError, match=r"unknown key 'fc\.weight'"):
        load_dpc_release({**state, "fc.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no 2D3D-ResNet"):
        load_dpc_release({k: v for k, v in state.items() if "layer2.1" not in k})
    with pytest.raises(CheckpointError, match=r"missing \['predictor"):
        load_dpc_release({k: v for k, v in state.items() if "network_pred" not in k})
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_dpc_release({**state, "network_pred.2.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="no classifier"):
        load_dpc_classifier_release(state)
