"""The classifier's recipe as a user starts it: images in memory and in files, and bad input."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
from image_files import write_tree
from test_recipes import assert_one_clear_line, call

from ndavid.data.config import DataConfig
from ndavid.data.image_archive import write_archive
from ndavid.data.image_packing import pack
from ndavid.data.images import open_images
from ndavid.engine.rng import derive_seed
from ndavid.evaluation.generation_features import classifier_space
from ndavid.evaluation.image_task import split_off
from ndavid.evaluation.protocol import load_result

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "train_classifier.py"
CONFIG = ROOT / "recipes" / "configs" / "classifier" / "cifar10_packed_resnet20.yaml"
SHORT = [
    f"--config={CONFIG}",
    "--held_out=0.25",
    "--run.batch_size=8",
    "--run.epochs=2",
    "--run.log_every=1",
    "--optim.warmup_steps=0",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four photos of 32 pixels in two classes."""
    root = tmp_path_factory.mktemp("photos")
    write_tree(root / "train", {"a": 12, "b": 12}, size=(32, 32))
    return root


@pytest.mark.parametrize("source", ["packed", "folder"])
def test_a_run_leaves_a_feature_space_and_its_accuracy(
    tree: Path, tmp_path: Path, source: str
) -> None:
    root = tree
    if source == "packed":
        root = tmp_path / "photos.npz"
        images = open_images(DataConfig(source="folder", root=str(tree)))
        write_archive(root, images.classes, {"train": pack(images, quality=None).split})
    output = tmp_path / "run"
    words = [*SHORT, f"--data.source={source}", f"--data.root={root}", f"--run.output={output}"]
    outcome = call(RECIPE, *words)
    assert outcome.returncode == 0, outcome.stderr
    assert "18 images to train on, 6 held out" in outcome.stdout
    records = processes.records(output)
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert [r["val/top1"] for r in records if "val/top1" in r], "measured at the second epoch"
    result = load_result(output / "result.json")
    assert result.metrics["top1"].n == result.protocol.num_images == 6
    assert result.protocol.split == "train"
    outcomes = (output / "outcomes.csv").read_text().splitlines()[1:]
    places = [int(line.split(",")[1]) for line in outcomes]
    # Three of each class, by their places among all 24.
    assert len(set(places)) == 6 and sum(place < 12 for place in places) == 3
    right = sum(line.endswith(",top1,1.0") for line in outcomes)
    assert result.metrics["top1"].value == pytest.approx(right / 6)
    space = classifier_space(str(output), 32)
    assert space.sha256 == result.tested["sha256"] and space.dim == 64
    assert "% top-1 on held-out training images" in space.about


def test_what_was_not_trained_on_stands_before_the_accuracy(tmp_path: Path) -> None:
    # The single image of c is held out; one of a cannot be read.
    tree = write_tree(tmp_path / "photos" / "train", {"a": 12, "b": 12, "c": 1}, size=(32, 32))
    source = open_images(DataConfig(source="folder", root=str(tree.parent)))
    train, _ = split_off(source, 0.25, derive_seed(0, "holdout"))
    (tree / "a" / Path(train.name(0)).name).write_bytes(b"no image")
    output = tmp_path / "run"
    words = [*SHORT, "--data.source=folder", f"--data.root={tree.parent}"]
    words += [f"--run.output={output}", "--run.max_bad_fraction=0.2"]
    outcome = call(RECIPE, *words)
    assert outcome.returncode == 0, outcome.stderr
    expected = [
        "1 training images could not be read; others stood in for them.",
        "1 of 3 classes have no training images, and are never guessed right: c.",
    ]
    assert load_result(output / "result.json").protocol.warnings == expected
    lines = outcome.stdout.splitlines()
    first = lines.index(f"warning: {expected[0]}")
    assert lines[first + 1] == f"warning: {expected[1]}"
    assert lines[first + 2].startswith("top1 ")


def test_sizes_that_differ_are_refused_in_one_line(tree: Path, tmp_path: Path) -> None:
    words = [*SHORT, f"--run.output={tmp_path}", "--views.size=16"]
    assert_one_clear_line(call(RECIPE, *words), "augment.size is 32 and views.size 16")
