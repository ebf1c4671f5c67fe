"""Reading the original MoCo's checkpoints, against torchvision's own forward."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from ndavid.errors import CheckpointError
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.weights.matching import compare, find_prefix
from ndavid.models.weights.original_moco import load_moco_release
from ndavid.models.weights.release import load_encoder
from ndavid.models.weights.state_files import read_state_dict

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def original_net(arch: str, version: int) -> nn.Module:
    """A torchvision ResNet with MoCo's head for ``fc``, and statistics of its own."""
    net = models.get_model(arch, num_classes=128)
    if version == 2:
        dim = net.fc.in_features
        net.fc = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 128))
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return net.eval()


def original_state(query: nn.Module, key: nn.Module) -> dict[str, Tensor]:
    """The state dict of MoCo's DistributedDataParallel model, its momentum copy first."""
    state = {f"module.encoder_k.{k}": v for k, v in key.state_dict().items()}
    state |= {f"module.encoder_q.{k}": v for k, v in query.state_dict().items()}
    return {
        **state,
        "module.queue": torch.randn(128, 32),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }


def write(path: Path, state: dict[str, Tensor], arch: str = "resnet50", **more: object) -> Path:
    content = {"epoch": 200, "arch": arch, "state_dict": state, **more}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize(
    ("arch", "version"),
    [
        ("resnet50", 1),
        ("resnet18", 2),
        pytest.param("resnet50", 2, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 2, marks=pytest.mark.slow),
    ],
)
def test_features_are_those_of_torchvisions_forward(
    tmp_path: Path, arch: str, version: int
) -> None:
    torch.manual_seed(0)
    query, key = original_net(arch, version), original_net(arch, version)
    path = write(tmp_path / "moco.pth.tar", original_state(query, key), arch)
    query.fc = nn.Identity()
    for encoder in (load_encoder(path), load_moco_release(path)):
        assert not encoder.training and encoder.name == f"torchvision:{arch}"
        with torch.no_grad():
            ours, theirs = encoder.pooled(IMAGES), query(IMAGES)
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
        assert theirs.std() > 0


def test_evaluation_can_prove_what_it_loaded(tmp_path: Path) -> None:
    query, key = original_net("resnet18", 2), original_net("resnet18", 2)
    path = write(tmp_path / "moco.pth.tar", original_state(query, key), "resnet18")
    encoder, stored = load_encoder(path), read_state_dict(path)
    prefix = find_prefix(encoder, stored)
    assert prefix == "module.encoder_q."
    assert compare(encoder, stored, prefix=prefix, values=True).fraction == 1.0


def test_a_state_dict_is_read_with_and_without_its_wrapping() -> None:
    net = original_net("resnet18", 1)
    state = {k: v for k, v in original_state(net, net).items() if "encoder_k" not in k}
    bare = {k.removeprefix("module."): v for k, v in state.items()}
    for source in (state, bare, {"state_dict": state}):
        assert torch.equal(load_moco_release(source).state_dict()["conv1.weight"], net.conv1.weight)


def test_old_files_without_counters_are_read() -> None:
    net = original_net("resnet18", 1)
    state = {k: v for k, v in original_state(net, net).items() if "num_batches" not in k}
    assert load_moco_release(state).name == "torchvision:resnet18"


def test_a_dpc_file_goes_to_the_dpc_reader(tmp_path: Path) -> None:
    dpc = DPC(DpcConfig(encoder="resnet2d3d18", num_blocks=3, pred_steps=1)).eval()
    names = {"encoder.": "backbone.", "agg.cell.": "agg.ConvGRUCell_00."}
    names |= {"predictor.": "network_pred."}
    state = {
        f"module.{theirs}{key.removeprefix(ours)}": value
        for key, value in dpc.state_dict().items()
        for ours, theirs in names.items()
        if key.startswith(ours)
    }
    encoder = load_encoder(write(tmp_path / "dpc.pth.tar", state, "resnet18"))
    clip = torch.randn(1, 3, 5, 32, 32)
    assert encoder.name == "resnet2d3d18"
    assert torch.equal(encoder(clip), dpc.encoder(clip))
    with pytest.raises(CheckpointError, match="not a MoCo checkpoint"):
        load_moco_release(tmp_path / "dpc.pth.tar")


def test_a_file_of_neither_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "supervised.pth.tar", dict(models.resnet18().state_dict()))
    with pytest.raises(CheckpointError, match=r"supervised.*neither.*DPC.*MoCo.*conv1\.weight"):
        load_encoder(path)


def test_weights_of_no_resnet_are_named() -> None:
    net = original_net("resnet18", 2)
    state = original_state(net, net)
    state["module.encoder_q.layer4.1.bn2.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"resnet18 comes nearest.*layer4\.1\.bn2.* and 0"):
        load_moco_release(state)


class Command:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    net, marker = original_net("resnet18", 2), tmp_path / "ran"
    state = original_state(net, net)
    path = write(tmp_path / "moco.pth.tar", state, optimizer=Command(marker))
    for load in (load_encoder, load_moco_release):
        with pytest.raises(CheckpointError, match="refused: a pickle that wants to run code"):
            load(path)
    assert not marker.exists()
