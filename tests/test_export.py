"""recipes/export.py as a user starts it, on checkpoints of every kind."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchvision import models

from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.release import load_encoder

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "export.py"


def call_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Runs the recipe in this process, which need not import torch once more; its exit code."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPE), run_name="__main__")
    return end.value.code


def write_run(run: Path, config: Mapping[str, Any], prefix: str = "moco.encoder.") -> Path:
    """A run's folder with one whole checkpoint of the encoder that the config names."""
    torch.manual_seed(0)
    encoder = build_encoder(config["model"]["encoder"])
    folder = run / "checkpoints" / "step_3"
    folder.mkdir(parents=True)
    file = folder / "model.safetensors"
    save_file({f"{prefix}{k}": v for k, v in encoder.state_dict().items()}, file)
    files = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    }
    (folder / "complete.json").write_text(json.dumps({"format": 1, "step": 3, "files": files}))
    (run / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    return run


MOCO_IMAGES = {
    "data": {"source": "folder", "root": "cifar", "num_frames": 16},
    "augment": {"size": 24},
    "model": {"encoder": "cifar:resnet20", "queue_size": 8},
}


def test_a_run_is_exported_and_can_be_used(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MOCO_IMAGES)
    output = tmp_path / "out"
    arguments = [f"--checkpoint={run}", f"--output={output}", "--kinds=[folder,program]"]
    done = forked.call(RECIPE, *arguments, cwd=RECIPE.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "cifar:resnet20 for samples of (3, 24, 24)" in done.stdout
    assert done.stdout.count("largest error") == done.stdout.count("tolerance 1e-04") == 2
    images = torch.randn(3, 3, 24, 24)
    program = torch.export.load(output / "encoder.pt2").module()
    with torch.no_grad():
        expected = load_encoder(run)(images)
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(load_encoder(output / "encoder")(images), expected)


def test_what_is_missing_fails_the_command_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as on a machine without it
    run = write_run(tmp_path / "run", MOCO_IMAGES)
    arguments = [f"--checkpoint={run}", f"--output={tmp_path / 'out'}", "--kinds=[folder,onnx]"]
    for more, code in (([], 2), (["--allow_missing=true"], 0)):
        assert call_here(monkeypatch, *arguments, *more) == code
        said = capsys.readouterr()
        assert "onnx: not exported: import of onnxruntime" in said.out
        assert ("error: onnx: not exported" in said.err) == bool(code)
        assert (tmp_path / "out" / "encoder" / "model.safetensors").is_file()


def test_original_moco_weights_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = models.resnet18()
    state = {f"module.encoder_q.{k}": v for k, v in net.state_dict().items()}
    path = tmp_path / "moco.pth.tar"
    torch.save({"arch": "resnet18", "state_dict": state}, path)
    arguments = [f"--checkpoint={path}", f"--output={tmp_path / 'out'}", "--kinds=[folder]"]
    assert call_here(monkeypatch, *arguments) == 2
    assert "give --size" in capsys.readouterr().err
    assert call_here(monkeypatch, *arguments, "--size=32") == 0
    weights = load_encoder(tmp_path / "out" / "encoder").state_dict()
    assert torch.equal(weights["layer4.1.conv2.weight"], net.layer4[1].conv2.weight)


def test_nothing_to_export_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_here(monkeypatch) == 2
    assert "error: give --checkpoint" in capsys.readouterr().err


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The recipe's functions by name."""
    return runpy.run_path(str(RECIPE))


CLIPS = {"data": {"source": "clips", "root": "m", "num_frames": 8}}
VIEWS = {"sampling": "blocks", "num_blocks": 4, "block_len": 5, "num_frames": 16}


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        ({"model": {"block_len": 5, "num_blocks": 8}, "data": {"root": "m"}}, 5),
        ({"model": {}, **CLIPS}, 8),
        ({"model": {}, **MOCO_IMAGES}, None),
        ({"model": {"head": "dpc"}, "views": VIEWS, "data": {"root": "m"}}, 5),
        ({"model": {"head": "pool"}, "views": VIEWS, "data": {"root": "m"}}, 20),
        ({"model": {"head": "pool"}, "views": {**VIEWS, "sampling": "dense"}}, 16),
        ({"model": {}, "views": {"size": 32}, "data": {"source": "cifar10"}}, None),
        ({"encoder": "resnet2d3d10"}, None),
    ],
    ids=["dpc", "moco-clips", "moco-images", "dpc-head", "pool", "dense", "images", "folder"],
)
def test_frames_are_those_that_the_encoder_saw(
    recipe: dict[str, Any], config: Mapping[str, Any], frames: int | None
) -> None:
    assert recipe["trained_frames"](config) == frames


def test_the_shape_comes_from_the_run_or_the_command_line(recipe: dict[str, Any]) -> None:
    config: Callable[..., Any] = recipe["ExportConfig"]
    shape = recipe["input_shape"]
    run, saved = MOCO_IMAGES | CLIPS, {"encoder": "resnet2d3d10"}
    image_net, video_net = build_encoder("cifar:resnet20"), build_encoder("resnet2d3d10")
    assert shape(config(), image_net, run) == (3, 8, 24, 24)
    assert shape(config(frames=0, size=32), image_net, run) == (3, 32, 32)
    assert shape(config(frames=4), video_net, run) == (3, 4, 24, 24)
    with pytest.raises(Exception, match="give --frames"):
        shape(config(size=32), video_net, saved)
    with pytest.raises(Exception, match="give --size"):
        shape(config(frames=8), video_net, saved)
    mvit = build_encoder("torchvision:mvit_v2_s")
    assert shape(config(), mvit, saved) == (3, 16, 224, 224)
