"""Loading encoders: what is in the file is in the model, and anything else is one clear error."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ndavid.engine import checkpoint as engine_checkpoint
from ndavid.errors import CheckpointError, ConfigError
from ndavid.evaluation.pretrained import ClassifierConfig, load_classifier, open_weights
from ndavid.evaluation.views import ViewsConfig
from ndavid.files import file_sha256
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.weights.matching import KeyReport, compare, find_prefix
from ndavid.models.weights.release import save_pretrained

VIEWS = ViewsConfig(num_blocks=2, block_len=3, size=32)
DPC_CONFIG = DpcConfig(encoder="resnet2d3d10", num_blocks=4, block_len=3, pred_steps=1)


@pytest.fixture(scope="module")
def dpc() -> DPC:
    torch.manual_seed(0)
    return DPC(DPC_CONFIG)


@pytest.fixture(scope="module")
def saved(dpc: DPC, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_pretrained(dpc, folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(dpc: DPC, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    state = {f"dpc.{name}": tensor for name, tensor in dpc.state_dict().items()}
    engine_checkpoint.save(folder, 7, model=state, state={"step": 7})
    (folder / "config.yaml").write_text(
        "model: {encoder: resnet2d3d10, num_blocks: 4, block_len: 3, pred_steps: 1}\n"
    )
    return folder


@pytest.mark.parametrize("head", ["dpc", "pool"])
@pytest.mark.parametrize("source", ["saved", "run_folder"])
def test_the_classifier_holds_the_files_encoder(
    source: str, head: str, dpc: DPC, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(source)
    config = ClassifierConfig(head=head)  # type: ignore[arg-type]
    loaded = load_classifier(open_weights(str(folder), config), config, VIEWS, 5, seed=0)
    assert loaded.encoder == "resnet2d3d10"
    for name, tensor in dpc.encoder.state_dict().items():
        assert torch.equal(loaded.classifier.encoder.state_dict()[name], tensor), name
    if head == "dpc":
        for name, tensor in dpc.agg.state_dict().items():
            assert torch.equal(loaded.classifier.agg.state_dict()[name], tensor), name
    assert loaded.key_report["fraction"] == 1.0
    weights = Path(loaded.source["path"])
    assert weights.is_file() and loaded.source["sha256"] == file_sha256(weights)
    frames = VIEWS.num_blocks * VIEWS.block_len
    logits = loaded.classifier.eval()(torch.zeros(1, 3, frames, 32, 32))
    assert logits.shape == (1, 5)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    config = ClassifierConfig(encoder="resnet2d3d10")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (
        load_classifier(None, config, VIEWS, 3, seed=seed).classifier.encoder.conv1.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("checkpoint", ["", "saved"])
@pytest.mark.parametrize(
    ("head", "head_init", "orthogonal"),
    [("dpc", None, True), ("pool", None, False), ("dpc", "torch", False)],
)
def test_the_heads_init_is_its_recipes_unless_the_config_names_one(
    checkpoint: str, head: str, head_init: str | None, orthogonal: bool, saved: Path
) -> None:
    config = ClassifierConfig(head=head, head_init=head_init, encoder="resnet2d3d10")  # type: ignore[arg-type]
    weights = str(saved) if checkpoint else ""
    fc = load_classifier(open_weights(weights, config), config, VIEWS, 5, seed=0).classifier.head.fc
    assert torch.allclose(fc.weight @ fc.weight.T, torch.eye(5), atol=1e-5) == orthogonal
    assert bool(fc.bias.any()) != orthogonal


def test_the_comparison_sees_what_was_not_loaded() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    stored = {f"module.net.{name}": tensor.clone() for name, tensor in module.state_dict().items()}

    def compared() -> KeyReport:
        return compare(module, stored, prefix=find_prefix(module, stored), values=True)

    assert compared().fraction == 1.0
    stored["module.net.0.weight"] += 1
    del stored["module.net.1.bias"]
    stored["module.net.extra.weight"] = torch.zeros(1)
    # Of the same name and values, but another network's: no match.
    stored["other.1.bias"] = module[1].bias.detach().clone()
    report = compared()
    assert report.mismatched == ("0.weight",)
    assert report.missing == ("1.bias",)
    assert report.unexpected == ("extra.weight",)
    assert report.fraction == 4 / 6


@pytest.mark.parametrize("head", ["dpc", "pool"])
def test_averaged_weights_are_loaded_where_asked_for(dpc: DPC, tmp_path: Path, head: str) -> None:
    state = {f"dpc.{name}": tensor for name, tensor in dpc.state_dict().items()}
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    (tmp_path / "config.yaml").write_text(
        "model: {encoder: resnet2d3d10, num_blocks: 4, block_len: 3, pred_steps: 1}\n"
    )
    engine_checkpoint.save(tmp_path, 6, model=state, state={"step": 6})
    assert "no averaged weights" in one_error(tmp_path, head=head, weights="ema")
    engine_checkpoint.save(tmp_path, 7, model=state, ema=average, state={"step": 7})
    config = ClassifierConfig(head=head, weights="ema")  # type: ignore[arg-type]
    loaded = load_classifier(open_weights(str(tmp_path), config), config, VIEWS, 3, seed=0)
    found = loaded.classifier.encoder.state_dict()["conv1.weight"]
    assert torch.equal(found, dpc.encoder.state_dict()["conv1.weight"] + 1)
    assert loaded.source["path"] == str(tmp_path / "checkpoints" / "step_7" / "ema.safetensors")
    assert loaded.key_report["fraction"] == 1.0


class RunsCode:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("should-not-exist"),))


def one_error(checkpoint: Path | str, **changes: str) -> str:
    config = ClassifierConfig(**changes)  # type: ignore[arg-type]

    def load() -> None:
        load_classifier(open_weights(str(checkpoint), config), config, VIEWS, 3, seed=0)

    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("head", ["dpc", "pool"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, head: str) -> None:
    assert f"{tmp_path / 'gone'}: no such file or folder" in one_error(tmp_path / "gone", head=head)
    (tmp_path / "text.pt").write_text("not weights")
    assert "text.pt" in one_error(tmp_path / "text.pt", head=head)
    (tmp_path / "text.safetensors").write_text("not weights")
    assert "text.safetensors" in one_error(tmp_path / "text.safetensors", head=head)
    (tmp_path / "empty").mkdir()
    assert "empty" in one_error(tmp_path / "empty", head=head)


@pytest.mark.parametrize("head", ["dpc", "pool"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"conv1.weight": RunsCode()}}, path)
    assert "code" in one_error(path, head=head)
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(RunsCode()))
    one_error(plain, head=head)
    assert not (tmp_path / "should-not-exist").exists()


@pytest.mark.parametrize("head", ["dpc", "pool"])
def test_another_encoder_than_asked_for_is_an_error(saved: Path, head: str) -> None:
    message = one_error(saved, head=head, encoder="resnet2d3d18")
    assert "resnet2d3d10" in message and "resnet2d3d18" in message


@pytest.mark.filterwarnings("ignore:passed over")
def test_a_damaged_run_is_an_error(dpc: DPC, tmp_path: Path) -> None:
    state = {f"dpc.{name}": tensor for name, tensor in dpc.state_dict().items()}
    target = engine_checkpoint.save(tmp_path, 7, model=state, state={"step": 7})
    weights = target / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert str(tmp_path) in one_error(tmp_path)


def test_random_weights_need_a_name_that_exists() -> None:
    assert "name the encoder" in one_error("")
    assert "resnet2d3d18" in one_error("", encoder="resnet2d3d81")


def test_a_dpc_head_needs_blocks() -> None:
    dense = ViewsConfig(sampling="dense")
    with pytest.raises(ConfigError, match="sampling: blocks"):
        load_classifier(None, ClassifierConfig(encoder="resnet2d3d10"), dense, 3, seed=0)
