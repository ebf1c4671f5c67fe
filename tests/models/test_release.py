"""Saving, finding and matching weights; and files that are no checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.errors import CheckpointError
from ndavid.models.batchnorm import has_running_stats
from ndavid.models.classifier import EncoderClassifier
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.build import build_encoder
from ndavid.models.moco import MoCo, MocoConfig
from ndavid.models.normalize import IMAGENET_MEAN, Normalize
from ndavid.models.weights import hub
from ndavid.models.weights.checkpoint import open_checkpoint
from ndavid.models.weights.matching import find_prefix, load_matching
from ndavid.models.weights.release import load_dpc, load_encoder, save_pretrained
from ndavid.models.weights.state_files import read_state_dict

CLIP = torch.randn(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = DpcConfig(encoder="resnet2d3d10", num_blocks=3, pred_steps=1)


@pytest.fixture
def dpc() -> DPC:
    torch.manual_seed(0)
    model = DPC(CONFIG)
    model.encode(CLIP.unsqueeze(0))  # running statistics that are not the initial ones
    return model.eval()


def write_run(run: Path, dpc: DPC, step: int, *, complete: bool = True) -> Path:
    """A run's folder as the engine leaves it, for a method that holds ``dpc``."""
    config = "model:\n  encoder: resnet2d3d10\n  num_blocks: 3\n  block_len: 5\n  pred_steps: 1\n"
    state = {f"dpc.{key}": value for key, value in dpc.state_dict().items()}
    return write_state(run, state, config, step, complete=complete)


def write_state(
    run: Path, state: dict[str, Tensor], config: str, step: int, *, complete: bool = True
) -> Path:
    """A run's folder with one checkpoint of a method's ``state``."""
    folder = run / "checkpoints" / f"step_{step}"
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / MODEL_FILE)
    (run / "config.yaml").write_text(config + "run:\n  epochs: 1\n")
    if complete:
        complete_run(folder, step)
    return folder


def complete_run(folder: Path, step: int) -> None:
    """What the engine writes last: size and SHA-256 of each file."""
    files = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.iterdir()
    }
    content = {"format": 1, "step": step, "files": files}
    (folder / "complete.json").write_text(json.dumps(content))


def flip_a_byte(file: Path) -> None:
    """Changes the last byte, which is a weight: the file still loads."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_dpc_comes_back_from_its_folder(tmp_path: Path, dpc: DPC) -> None:
    save_pretrained(dpc, tmp_path)
    loaded = load_dpc(tmp_path)
    assert loaded.config == CONFIG
    assert torch.equal(loaded.encode(CLIP.unsqueeze(0)), dpc.encode(CLIP.unsqueeze(0)))
    assert torch.equal(loaded.agg.cell.out_gate.weight, dpc.agg.cell.out_gate.weight)


def test_an_encoder_comes_back_from_whatever_held_it(tmp_path: Path, dpc: DPC) -> None:
    classifier = EncoderClassifier(dpc.encoder, 4)
    for name, model in {"a": dpc, "b": dpc.encoder, "c": classifier}.items():
        save_pretrained(model, tmp_path / name)
        encoder = load_encoder(tmp_path / name)
        assert not encoder.training and encoder.name == "resnet2d3d10"
        assert torch.equal(encoder(CLIP), dpc.encoder(CLIP))


def test_library_encoders_come_back(tmp_path: Path) -> None:
    encoder = build_encoder("timm:test_resnet").eval()
    save_pretrained(encoder.to(memory_format=torch.channels_last), tmp_path)
    torch.testing.assert_close(load_encoder(tmp_path)(CLIP), encoder(CLIP), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet2d3d10", "cifar:resnet20", "timm:test_resnet"])
def test_the_hub_takes_and_gives_back_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    encoder(CLIP)  # running statistics that are not the initial ones
    calls: list[tuple[Any, ...]] = []

    class Hub:
        """What huggingface_hub would send over the network, kept in a folder."""

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
            calls.append(("create", repo_id, private, exist_ok))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
            shutil.copytree(folder_path, tmp_path / repo_id)

    def snapshot(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append(("download", repo_id, revision, allow_patterns))
        return str(tmp_path / repo_id)

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    address = hub.push_to_hub(encoder, "owner/name", private=True)
    loaded = load_encoder(hub.from_hub("owner/name", revision="v1"))
    assert address == "https://huggingface.co/owner/name"
    files = ["config.json", "model.safetensors"]
    assert calls == [("create", "owner/name", True, True), ("download", "owner/name", "v1", files)]
    assert type(loaded) is type(encoder) and loaded.name == name and not loaded.training
    assert torch.equal(loaded(CLIP), encoder.eval()(CLIP))
    folder = tmp_path / "owner" / "name"
    config = json.loads((folder / "config.json").read_text())
    assert config["pixels"]["mean"] == list(IMAGENET_MEAN)
    assert config["feature_dim"] == encoder.feature_dim
    assert 'load_encoder(from_hub("owner/name"))' in (folder / "README.md").read_text()


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    save_pretrained(build_encoder("cifar:resnet20"), tmp_path)
    weights = read_state_dict(tmp_path / "model.safetensors")
    save_file({f"x{k}": v for k, v in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d% of the model's keys.*at least 95%"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("where", ["checkpoint", "run", "saved"])
def test_the_weights_file_is_read_once(
    tmp_path: Path, dpc: DPC, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(dpc, tmp_path / "saved")
    step = write_run(tmp_path / "run", dpc, 10)
    path = {"checkpoint": step, "run": tmp_path / "run", "saved": tmp_path / "saved"}[where]
    read: list[str] = []

    def note(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and str(given[0]).endswith(MODEL_FILE):
            read.append(str(given[0]))

    sys.addaudithook(note)
    opened = open_checkpoint(path)
    encoder, whole = load_encoder(opened), load_dpc(opened)
    assert len(read) == 1
    assert opened.digest == hashlib.sha256(Path(read[0]).read_bytes()).hexdigest()
    assert torch.equal(encoder(CLIP), dpc.encoder(CLIP)) and whole.config == CONFIG


def test_the_encoders_name_is_that_of_the_index(tmp_path: Path, dpc: DPC) -> None:
    folder = write_run(tmp_path, dpc, 10)
    index = json.loads((folder / "complete.json").read_text()) | {"encoder": "resnet2d3d10"}
    (folder / "complete.json").write_text(json.dumps(index))
    (tmp_path / "config.yaml").write_text("my_own: {net: resnet2d3d10}\n")
    assert torch.equal(load_encoder(tmp_path)(CLIP), dpc.encoder(CLIP))


def test_an_encoder_serves_in_foreign_code(tmp_path: Path) -> None:
    save_pretrained(build_encoder("cifar:resnet20"), tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        vectors = encoder.pooled(Normalize()(images))
    assert vectors.shape == (2, encoder.feature_dim)
    # As a part of another's module, which copies, pickles and trains it.
    model = nn.Sequential(copy.deepcopy(encoder), nn.Flatten(), nn.Linear(64 * 8 * 8, 2))
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(Normalize()(images)), model(Normalize()(images)))
    model.train()(Normalize()(images)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_missing_running_statistics_stay_missing(tmp_path: Path) -> None:
    model = DPC(DpcConfig(encoder="resnet2d3d10", running_stats=False))
    save_pretrained(model, tmp_path)
    assert not has_running_stats(load_encoder(tmp_path))
    assert not has_running_stats(load_dpc(tmp_path).encoder)


@pytest.mark.filterwarnings("ignore:passed over")
def test_the_newest_complete_checkpoint_of_a_run_is_taken(tmp_path: Path, dpc: DPC) -> None:
    other = DPC(CONFIG)
    write_run(tmp_path, other, 9)
    newest = write_run(tmp_path, dpc, 10)
    write_run(tmp_path, other, 11, complete=False)
    for path in (tmp_path, newest, newest / "model.safetensors"):
        assert torch.equal(load_encoder(path)(CLIP), dpc.encoder(CLIP))
        assert load_dpc(path).config == CONFIG


@pytest.mark.parametrize("load", [load_encoder, load_dpc])
def test_damaged_weights_are_never_loaded(
    tmp_path: Path, dpc: DPC, load: Callable[[Path], nn.Module]
) -> None:
    write_run(tmp_path, dpc, 9)
    newest = write_run(tmp_path, DPC(CONFIG), 10)
    flip_a_byte(newest / "model.safetensors")
    read_state_dict(newest / "model.safetensors")  # The flip alone is no error.
    for path in (newest, newest / "model.safetensors"):
        with pytest.raises(CheckpointError, match="content changed"):
            load(path)
    with pytest.warns(UserWarning, match="passed over a damaged checkpoint: .*step_10"):
        model = load(tmp_path)
    encoder = model.encoder if isinstance(model, DPC) else model
    assert torch.equal(encoder(CLIP), dpc.encoder(CLIP))
    flip_a_byte(tmp_path / "checkpoints" / "step_9" / "model.safetensors")
    with (
        pytest.raises(CheckpointError, match="without a complete"),
        pytest.warns(UserWarning, match="passed over"),
    ):
        load(tmp_path)


def test_a_checkpoint_that_lost_a_file_or_its_end_is_refused(tmp_path: Path, dpc: DPC) -> None:
    folder = write_run(tmp_path, dpc, 10)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 bytes instead of"):
        load_encoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_encoder(folder)
    with pytest.raises(CheckpointError, match="not written to the end"):
        load_encoder(write_run(tmp_path, dpc, 11, complete=False))


def test_averaged_weights_are_those_of_their_file(tmp_path: Path, dpc: DPC) -> None:
    folder = write_run(tmp_path, DPC(CONFIG), 10)
    for path in (tmp_path, folder):
        with pytest.raises(CheckpointError, match=r"no averaged weights.*ema_decay"):
            load_encoder(path, weights="ema")
    averaged = {f"dpc.{key}": value.contiguous() for key, value in dpc.state_dict().items()}
    save_file(averaged, folder / "ema.safetensors")
    (folder / "complete.json").unlink()
    complete_run(folder, 10)
    for path in (tmp_path, folder):
        assert torch.equal(load_encoder(path, weights="ema")(CLIP), dpc.encoder(CLIP))
        assert not torch.equal(load_encoder(path)(CLIP), dpc.encoder(CLIP))
    assert torch.equal(load_dpc(tmp_path, weights="ema").encoder(CLIP), dpc.encoder(CLIP))
    flip_a_byte(folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match="content changed"):
        load_encoder(folder, weights="ema")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_dpc(tmp_path / "weights.pth", weights="ema")


def moco_method(name: str, bn_splits: int) -> nn.ModuleDict:
    """What a method around a MoCo saves, with a momentum copy that is not its encoder."""
    moco = MoCo(MocoConfig(encoder=name, dim=16, queue_size=8, bn_splits=bn_splits))
    moco.encoder(torch.randn(4, 3, 32, 32))  # running statistics that are not the initial ones
    for parameter in moco.key_encoder.parameters():
        nn.init.normal_(parameter)
    return nn.ModuleDict({"moco": moco})


TIMM = "timm:test_resnet"
MOCO_CONFIG = "model:\n  encoder: {name}\n  queue_size: 8\n  momentum: 0.999\nnda:\n  spec: ''\n"


@pytest.mark.parametrize(
    ("name", "bn_splits"),
    [("cifar:resnet20", 1), ("cifar:resnet20", 2), ("torchvision:resnet18", 1), (TIMM, 1)],
)
def test_of_a_moco_run_the_query_encoder_is_taken(
    tmp_path: Path, name: str, bn_splits: int
) -> None:
    torch.manual_seed(0)
    method = moco_method(name, bn_splits)
    state = method.state_dict()
    folder = write_state(tmp_path, state, MOCO_CONFIG.format(name=name), 5)
    query = method.eval().get_submodule("moco.encoder")
    images = torch.randn(2, 3, 32, 32)
    for path in (tmp_path, folder, folder / MODEL_FILE):
        encoder = load_encoder(path)
        assert not encoder.training and encoder.name == name
        torch.testing.assert_close(encoder(images), query(images))
    for order in (state, dict(reversed(state.items()))):
        assert find_prefix(encoder, order) == "moco.encoder."


@pytest.mark.parametrize("copy", ["moco.key_encoder", "module.encoder_k", "ema.encoder"])
def test_a_momentum_copy_alone_is_refused(tmp_path: Path, copy: str) -> None:
    name = "cifar:resnet20"
    state = {f"{copy}.{k}": v for k, v in build_encoder(name).state_dict().items()}
    folder = write_state(tmp_path, state, MOCO_CONFIG.format(name=name), 5)
    with pytest.raises(CheckpointError, match=r"0\.0% of the model's keys"):
        load_encoder(folder)


def test_a_prefix_is_whole_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    state = {f"momentum.10.{k}": torch.zeros(2) for k in ("weight", "bias")}
    assert find_prefix(model, state) == ""
    assert find_prefix(model, state | {"a.net.0.weight": torch.zeros(2)}) == "a.net."
    assert find_prefix(model, state | {"0.weight": torch.zeros(2)}) == ""


def test_folders_that_hold_no_model_are_named(tmp_path: Path, dpc: DPC) -> None:
    with pytest.raises(CheckpointError, match="not a saved model"):
        load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_encoder(tmp_path / "nowhere.pth")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="without a complete checkpoint"):
        load_encoder(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "checkpoints" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no config"):
        load_encoder(tmp_path / "checkpoints")


def test_weights_of_another_encoder_are_refused(tmp_path: Path, dpc: DPC) -> None:
    save_pretrained(dpc, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder": "resnet2d3d50"}))
    with pytest.raises(CheckpointError, match=r"\d%.*at least 95%"):
        load_encoder(tmp_path)


def test_a_model_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoder"):
        save_pretrained(nn.Linear(2, 2), tmp_path)


def test_the_report_says_what_matched() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    state = {
        "net.0.weight": torch.ones(3, 2),
        "net.0.bias": torch.ones(3),
        "net.1.weight": torch.ones(5, 3),
        "net.9.bias": torch.ones(1),
        "other": torch.ones(1),
    }
    before = model[1].weight.clone()
    report = load_matching(model, state, min_fraction=0.5, prefix="net.")
    assert report.matched == ("0.bias", "0.weight")
    assert report.missing == ("1.bias",)
    assert report.mismatched == ("1.weight",)
    assert report.unexpected == ("9.bias",)
    assert report.fraction == 0.5
    assert torch.equal(model[0].weight, torch.ones(3, 2))
    assert torch.equal(model[1].weight, before)
    assert "50.0%" in str(report) and "1.bias" in str(report)


def test_too_few_matches_change_nothing() -> None:
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(CheckpointError, match=r"Linear under the prefix 'x.': 50.0%.*95%"):
        load_matching(model, {"x.weight": torch.ones(3, 2)}, prefix="x.")
    assert torch.equal(model.weight, before)


def test_counters_of_batch_norm_do_not_count() -> None:
    norm = nn.BatchNorm1d(2)
    state = {k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    assert load_matching(norm, state, min_fraction=1.0).fraction == 1.0


class Command:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": {"a": torch.zeros(1)}, "extra": Command(marker)}
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Command(marker)))
    for name in ("new.pth", "old.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}: refused: .*code.*system"):
            load_encoder(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"plain\.pth"):
        load_encoder(tmp_path / "plain.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all\n", bytes(range(256)) * 20, b"\x80\x02}q\x00."]
)
@pytest.mark.parametrize("name", ["file.pth", "model.safetensors"])
def test_files_that_are_no_checkpoint_are_named(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_state_dict(path)
