"""The GAN's recipe as a user starts it: own images, kills, two ranks, bad input."""

from __future__ import annotations

import signal
from pathlib import Path

import image_files
import processes
import pytest
import torch
from PIL import Image
from test_configs import load_script
from test_recipes import assert_one_clear_line, call

from ndavid.engine import checkpoint
from ndavid.errors import NdavidError
from ndavid.evaluation.gan_sheets import settled
from ndavid.models.weights.release import load_gan

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "train_gan.py"
CONFIGS = ROOT / "recipes" / "configs" / "gan"
SMALL = [
    "--model.architecture=sngan",
    "--model.image_size=32",
    "--model.attention=0",
    "--model.generator_channels=2",
    "--model.discriminator_channels=4",
    "--model.latent_dim=8",
    "--run.batch_size=4",
    "--run.log_every=1",
    "--run.num_workers=0",
    "--run.ema_decay=0.9",
    "--run.ema_start_step=1",
    "--run.epochs=40",
    "--run.max_steps=6",
    "--sheets.every=3",
    "--sheets.columns=4",
    "--sheets.rows=3",
]
FOLDER = [
    f"--config={CONFIGS / 'folder_biggan_nda-jigsaw.yaml'}",
    "--adversarial.discriminator_steps=2",
    *SMALL,
]
CONDITIONAL = [
    f"--config={CONFIGS / 'cifar10_biggan-cond_nda-stitch.yaml'}",
    "--data.source=folder",
    "--data.split=",
    "--model.num_classes=3",
    "--adversarial.discriminator_steps=1",
    *SMALL,
]


@pytest.fixture(scope="module")
def own_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four JPEGs of one size in folders that are no classes, and one file that is none."""
    root = tmp_path_factory.mktemp("own")
    image_files.write_tree(root, {"holiday": 12, "garden": 12}, size=(40, 56))
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def class_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_files.write_tree(
        tmp_path_factory.mktemp("tree"), {"a": 8, "b": 8, "c": 8}, size=(32, 32)
    )


def test_a_folder_of_ones_own_images(own_images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    outcome = call(RECIPE, *FOLDER, f"--data.root={own_images}", f"--run.output={output}")
    assert outcome.returncode == 0, outcome.stderr
    assert "24 images to train on" in outcome.stdout
    records = [r for r in processes.records(output) if "loss" in r]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    named = {"discriminator_loss", "generator_loss", "real_logit", "fake_logit", "nda_logit"}
    assert named <= records[-1].keys()
    for kind, size in (("samples", (133, 100)), ("interpolations", (133, 100)),
                       ("negatives", (133, 67))):  # fmt: skip
        with Image.open(output / "samples" / f"{kind}_step_0000006.png") as sheet:
            assert sheet.size == size
        assert (output / "samples" / f"{kind}_step_0000003.png").exists()
    page = (output / "report.html").read_text()
    assert page.count("data:image/png") >= 3
    loaded = load_gan(output)
    assert loaded.step == 6 and loaded.ema and not loaded.gan.training
    images = settled(loaded.gan.generator)(torch.randn(2, 8))
    assert images.shape == (2, 3, 32, 32) and images.abs().amax() <= 1


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    class_tree: Path, tmp_path: Path, ranks: int
) -> None:
    options = [*CONDITIONAL, f"--data.root={class_tree}", "--run.save_every_steps=2"]
    options += ["--run.precision=no"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    processes.run(RECIPE, options, whole, ranks=ranks)
    processes.kill_at(processes.start(RECIPE, options, cut, ranks=ranks), 3)
    assert checkpoint.load(cut).step < 6
    processes.run(RECIPE, options, cut, ranks=ranks)
    processes.assert_same_run(whole, cut)
    kept = checkpoint.load(cut)
    assert set(kept.state["optimizer"]) == {"discriminator", "generator"}
    assert kept.ema is not None and "linear.weight" in {
        name.replace("parametrizations.weight.original", "weight") for name in kept.ema
    }
    for sheet in sorted((whole / "samples").iterdir()):
        assert sheet.read_bytes() == (cut / "samples" / sheet.name).read_bytes()


def test_a_term_signal_saves_first(own_images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = [*FOLDER, f"--data.root={own_images}", "--run.max_steps=200", "--run.epochs=100"]
    job = processes.start(RECIPE, options, output)
    job.wait_for_step(2)
    job.ranks()[0].send_signal(signal.SIGTERM)
    code, errors = job.finish()
    assert code == 143, errors
    assert checkpoint.load(output).step >= 2


def test_a_loss_that_is_not_finite_stops_the_run(own_images: Path, tmp_path: Path) -> None:
    outcome = call(
        RECIPE,
        *FOLDER,
        f"--data.root={own_images}",
        f"--run.output={tmp_path / 'run'}",
        "--optim.lr=1e38",
        "--run.precision=no",
        "--run.save_every_steps=1",
    )
    assert_one_clear_line(outcome, "the loss is nan", "1e+38")


def test_an_operation_without_a_partner_stops_with_one_clear_line(
    own_images: Path, tmp_path: Path
) -> None:
    output = f"--run.output={tmp_path / 'run'}"
    options = [f"--data.root={own_images}", output, "--nda.spec=stitch", "--run.batch_size=1"]
    assert_one_clear_line(call(RECIPE, *FOLDER, *options), "needs a batch of at least 2")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--nda.spec=jigsow"], "jigsaw"),
        (["--model.image_size=40"], "image_size"),
        (["--model.num_classes=2"], "has 0 classes"),
        (["--adversarial.objective=kl", "--nda.alpha=0.5"], "sum to 1"),
        (["--adversarial.objective=hing"], "hinge"),
        (["--data.root=nowhere"], "no such folder"),
        (["--sheets.columns=1"], "columns >= 2"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    own_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    named: str,
) -> None:
    output = tmp_path / "run"
    arguments = [*FOLDER, f"--data.root={own_images}", f"--run.output={output}", *options]
    monkeypatch.setattr("sys.argv", ["train_gan.py", *arguments])
    with pytest.raises(NdavidError, match=named):
        load_script(RECIPE).main()
    assert not output.exists()


def test_one_class_holds_all_images_of_a_set_with_classes_and_of_one_without(
    class_tree: Path, own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, root, options in (("tree", class_tree, CONDITIONAL), ("own", own_images, FOLDER)):
        output = tmp_path / name
        arguments = [*options, f"--data.root={root}", f"--run.output={output}"]
        arguments += ["--model.num_classes=1", "--model.init=original", "--run.max_steps=3"]
        monkeypatch.setattr("sys.argv", ["train_gan.py", *arguments])
        load_script(RECIPE).main()
        loaded = load_gan(output)
        assert loaded.gan.discriminator.embed.weight.shape[0] == 1
        with Image.open(output / "samples" / "samples_step_0000003.png") as sheet:
            assert sheet.size == (133, 100)  # as many rows as an unconditional one has


def test_labels_have_to_be_those_of_the_model(
    class_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*CONDITIONAL, f"--data.root={class_tree}", f"--run.output={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", ["train_gan.py", *arguments, "--model.num_classes=5"])
    with pytest.raises(NdavidError, match=r"has 3 classes; set model\.num_classes to 3"):
        load_script(RECIPE).main()
