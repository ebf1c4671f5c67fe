"""MoCo's recipe as a user starts it: images and clips, two ranks, a kill, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from test_recipes import assert_one_clear_line, call, write_manifest

from ndavid.engine import environment
from ndavid.models.weights.release import load_encoder

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "pretrain_moco.py"
CONFIGS = ROOT / "recipes" / "configs" / "moco"
SHORT = [
    "--model.queue_size=12",
    "--model.bn_splits=1",
    "--run.batch_size=4",
    "--run.log_every=1",
    "--run.num_workers=0",
    "--run.precision=no",
]
IMAGES = [
    f"--config={CONFIGS / 'cifar10_packed_resnet20_nda-jigsaw.yaml'}",
    "--data.source=folder",
    "--data.augment_on=workers",
    "--run.epochs=1",
    *SHORT,
]
CLIPS = [
    f"--config={CONFIGS / 'jhmdb21_r10_nda-frame_shuffle.yaml'}",
    "--augment.size=32",
    "--model.encoder=resnet2d3d10_half",
    "--data.fold=1",
    "--data.num_frames=4",
    "--monitor.every=0",
    "--run.epochs=1",
    *SHORT,
]


@pytest.fixture(scope="module")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of two classes."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for index in range(8):
            pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """Sixteen real mp4 clips and their manifest."""
    root = tmp_path_factory.mktemp("clips")
    paths = [f"A/v_A_g{index:02d}_c01.mp4" for index in range(16)]
    for path in paths:
        write_clip(root / path, num_frames=24, size=(48, 64))
    write_manifest(root, paths)
    return root


def test_a_run_on_images_leaves_an_encoder_and_its_curves(image_tree: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    outcome = call(RECIPE, *IMAGES, f"--data.root={image_tree}", f"--run.output={output}")
    assert outcome.returncode == 0, outcome.stderr
    records = [r for r in processes.records(output) if "loss" in r]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert {"top1", "nda_outrank", "nda_accuracy"} <= records[-1].keys()
    assert "val/knn_top1" in outcome.stderr + outcome.stdout
    for name in ("report.html", "negatives.png", "checkpoints"):
        assert (output / name).exists(), name
    encoder = load_encoder(output)
    assert encoder.name == "cifar:resnet20" and not encoder.training
    assert encoder(torch.zeros(2, 3, 32, 32)).shape[:2] == (2, 64)


@pytest.mark.slow  # a queue in two ranks that die: tests/methods/test_moco_runs.py
def test_a_run_on_clips_in_two_ranks_dies_and_resumes_to_the_same_bits(
    clips: Path, tmp_path: Path
) -> None:
    options = [*CLIPS, f"--data.root={clips}", "--run.save_every_steps=1"]
    options += ["--run.batch_size=2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    processes.run(RECIPE, options, whole, ranks=2)
    processes.kill_at(processes.start(RECIPE, options, broken, ranks=2), 2)
    processes.run(RECIPE, options, broken, ranks=2)
    processes.assert_same_run(whole, broken)


def test_bad_settings_give_one_clear_line(image_tree: Path, tmp_path: Path) -> None:
    output = f"--run.output={tmp_path / 'run'}"
    images = f"--data.root={image_tree}"
    nothing = call(RECIPE, *IMAGES, "--data.root=", output)
    assert_one_clear_line(nothing, "data.root is empty")
    in_memory = call(RECIPE, *IMAGES, images, "--data.augment_on=device", output)
    assert_one_clear_line(in_memory, "augment_on: workers")
    misspelt = call(RECIPE, *IMAGES, images, "--nda.view=keys", output)
    assert_one_clear_line(misspelt, "keys")
    no_time = call(RECIPE, *IMAGES, images, "--nda.spec=frame_shuffle", output)
    assert_one_clear_line(no_time, "frame_shuffle")


def test_a_queue_as_long_as_the_set_warns(image_tree: Path, tmp_path: Path) -> None:
    outcome = call(
        RECIPE,
        *IMAGES,
        f"--data.root={image_tree}",
        f"--run.output={tmp_path / 'run'}",
        "--model.queue_size=16",
        "--run.max_steps=1",
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "queue_size 16 is not below the 16 training samples" in outcome.stderr


def test_a_run_begun_under_the_old_defaults_goes_on_with_them(clips: Path, tmp_path: Path) -> None:
    """The same command that began it, when the defaults were the published form."""
    output = tmp_path / "run"
    common = [*CLIPS, f"--data.root={clips}", f"--run.output={output}"]
    old = ["--nda.encoder=key", "--nda.norm=own", "--nda.weight=1.0"]
    assert (
        call(RECIPE, *common, *old, "--run.max_steps=1", "--optim.schedule=constant").returncode
        == 0
    )
    begun = (output / "config.yaml").read_text()
    told = output / "environment.json"
    values = json.loads(told.read_text())
    assert values.pop("defaults") == environment.DEFAULTS
    told.write_text(json.dumps(values))  # as one that is older than the change of defaults
    typed = call(RECIPE, *common, "--nda.weight=16.0", "--optim.schedule=constant")
    assert typed.returncode == 2 and "nda.weight was 1.0, is 16.0" in typed.stderr
    again = call(RECIPE, *common, "--run.max_steps=2", "--optim.schedule=constant")
    assert again.returncode == 0, again.stderr
    assert "goes on with nda.encoder=key, nda.norm=own, nda.weight=1.0 as begun" in again.stdout
    assert [r["step"] for r in processes.records(output) if "loss" in r] == [1, 2]
    kept = {
        line for line in begun.splitlines() if line.startswith(("  encoder", "  norm", "  weight:"))
    }
    assert kept <= set((output / "config.yaml").read_text().splitlines())
    # It stays a run of then, for the next start as well.
    assert environment.defaults_of(output) == 0
    other = call(
        RECIPE, *common, "--run.max_steps=6", "--nda.weight=4.0", "--optim.schedule=constant"
    )
    assert other.returncode != 0 and "nda.weight was 1.0, is 4.0" in other.stderr
