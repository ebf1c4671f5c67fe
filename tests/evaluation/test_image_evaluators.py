"""kNN, linear probe and fine-tuning of images, end to end on a small tree of real files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from ndavid.config import from_yaml, to_yaml
from ndavid.data.config import DataConfig
from ndavid.data.images import open_images
from ndavid.data.transforms import AugmentConfig
from ndavid.engine import checkpoint as engine_checkpoint
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError, DataError, TrainingError
from ndavid.evaluation import image_finetune, image_knn, image_linear
from ndavid.evaluation.frozen_images import share_of_labels
from ndavid.evaluation.image_finetune import ImageFinetuneConfig
from ndavid.evaluation.image_knn import ImageKnnConfig
from ndavid.evaluation.image_linear import ImageLinearConfig, held_out, start_like_moco
from ndavid.evaluation.image_task import ImageTask
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig, open_labelled
from ndavid.evaluation.linear_heads import HeadsConfig
from ndavid.evaluation.pretrained import EncoderConfig
from ndavid.evaluation.protocol import Result, load_result
from ndavid.evaluation.training import FrozenEncoderMethod
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.release import save_pretrained

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "cifar:resnet20"
VIEWS = ImageViewsConfig(size=32, views_per_batch=16, num_workers=0)
RUN = RunConfig(epochs=1, batch_size=16, num_workers=0, log_every=1, device="cpu")

Data = Callable[[], DataConfig]


@pytest.fixture
def data(coloured_images: Path) -> DataConfig:
    return DataConfig(source="folder", root=str(coloured_images), split="train")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_pretrained(build_encoder(ENCODER), folder)
    return folder


def knn_config(data: DataConfig, output: Path, **changes: object) -> ImageKnnConfig:
    config = ImageKnnConfig(
        data=data,
        output=str(output),
        model=EncoderConfig(encoder=ENCODER),
        views=VIEWS,
        device="cpu",
        ks=[1, 20, 200],
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def linear_config(data: DataConfig, output: Path, **changes: object) -> ImageLinearConfig:
    config = ImageLinearConfig(
        data=data,
        output=str(output),
        model=EncoderConfig(encoder=ENCODER),
        views=VIEWS,
        run=RUN,
        heads=HeadsConfig(learning_rates=[0.01, 0.1], epochs=30, batch_size=16, holdout=0.25),
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def finetune_config(data: DataConfig, output: Path, **changes: object) -> ImageFinetuneConfig:
    config = ImageFinetuneConfig(
        data=data,
        output=str(output),
        model=EncoderConfig(encoder=ENCODER),
        views=VIEWS,
        augment=AugmentConfig(preset="none", size=32),
        optim=OptimConfig(name="adamw", lr=3e-3),
        run=RUN,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def check_written(result: Result, output: Path) -> None:
    assert load_result(output / "result.json") == result
    protocol = result.protocol
    assert protocol.num_images == 18 and protocol.num_videos == 0
    assert protocol.dataset.startswith("coloured_images") and protocol.folds == []
    page = (output / "report.html").read_text()
    assert "18 scored" in page and "clips" not in page.split("Resolved config")[0]


def test_knn_finds_colours(data: DataConfig, tmp_path: Path) -> None:
    result = image_knn.run(knn_config(data, tmp_path))
    check_written(result, tmp_path)
    # 200 is more than the gallery of 48 has; three classes have no top-5.
    assert list(result.metrics) == ["top1_k1", "top1_k20"]
    assert result.metrics["top1_k1"].value > 0.9 and result.metrics["top1_k1"].n == 18
    assert result.chance == pytest.approx(1 / 3)
    assert "Gallery: 48 training images (0 unreadable)." in result.protocol.notes


def test_knn_without_a_small_enough_k(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 48"):
        image_knn.run(knn_config(data, tmp_path, ks=[49]))


def test_features_are_computed_once(data: DataConfig, tmp_path: Path) -> None:
    first = image_knn.run(knn_config(data, tmp_path))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    # The linear probe of the same encoder reads them too; another crop must not.
    image_knn.run(knn_config(data, tmp_path, ks=[5]))
    shared = linear_config(data, tmp_path / "linear", cache=str(tmp_path / "features"))
    image_linear.run(shared)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()} == files
    assert len(files) == 2
    views = dataclasses.replace(VIEWS, resize=36)
    image_knn.run(knn_config(data, tmp_path, views=views))
    assert len(list((tmp_path / "features").iterdir())) == 4
    assert image_knn.run(knn_config(data, tmp_path)).metrics == first.metrics


def test_a_linear_probe_on_features(data: DataConfig, encoder: Path, tmp_path: Path) -> None:
    result = image_linear.run(linear_config(data, tmp_path, checkpoint=str(encoder)))
    check_written(result, tmp_path)
    assert result.task == "linear_probe"
    assert result.metrics["top1"].value > 0.9
    assert "12 held-out training images" in result.protocol.selection
    assert set(result.details["sweep"]) == {"0.01", "0.1"}
    assert any("standardised by training statistics" in note for note in result.protocol.notes)
    assert result.checkpoint["path"] == str(encoder / "model.safetensors")
    assert result.details["key_report"]["fraction"] == 1.0
    again = image_linear.run(linear_config(data, tmp_path, checkpoint=str(encoder)))
    assert again.metrics == result.metrics


def test_moco_s_linear_recipe_leaves_the_encoder_to_the_bit(
    data: DataConfig, encoder: Path, tmp_path: Path
) -> None:
    config = linear_config(
        data,
        tmp_path,
        mode="sgd",
        checkpoint=str(encoder),
        run=dataclasses.replace(RUN, epochs=3),
        optim=OptimConfig(name="sgd", lr=1.0, weight_decay=0.0),
    )
    result = image_linear.run(config)
    check_written(result, tmp_path)
    assert result.task == "linear"
    trained = engine_checkpoint.load(tmp_path / "training").model
    before = load_file(encoder / "model.safetensors")
    frozen = {k: v for k, v in trained.items() if not k.startswith("classifier.head.")}
    assert any(name.endswith("running_mean") for name in frozen)
    for name, tensor in frozen.items():
        assert torch.equal(tensor, before[name.removeprefix("classifier.encoder.")]), name
    assert trained["classifier.head.fc.weight"].abs().max() > 0.1, "the head has learned"


def test_an_encoder_that_moves_while_it_should_not_is_an_error(
    data: DataConfig, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if someone forgot eval mode: running statistics drift with every batch.
    monkeypatch.setattr(FrozenEncoderMethod, "train", nn.Module.train)
    config = linear_config(data, tmp_path, mode="sgd", checkpoint=str(encoder))
    with pytest.raises(TrainingError, match="frozen encoder changed"):
        image_linear.run(config)


def test_the_first_weights_of_mocos_linear_layer() -> None:
    layer = nn.Linear(200, 100)
    start_like_moco(layer, seed=0)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert layer.bias.abs().max() == 0
    first = layer.weight.clone()
    start_like_moco(layer, seed=0)
    assert torch.equal(layer.weight, first)


def test_defaults_are_mocos_recipe() -> None:
    config = ImageLinearConfig()
    assert (config.optim.lr, config.optim.weight_decay) == (30.0, 0.0)
    assert (config.optim.milestones, config.optim.gamma) == ([60, 80], 0.1)
    assert (config.run.epochs, config.run.batch_size) == (100, 256)
    assert (config.optim.name, config.augment.preset) == ("sgd", "linear")


def test_fine_tuning_learns_colours(data: DataConfig, tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, epochs=6)
    result = image_finetune.run(finetune_config(data, tmp_path, run=run))
    check_written(result, tmp_path)
    assert result.task == "scratch" and result.checkpoint == {}
    assert result.metrics["top1"].value > 0.9
    assert result.protocol.selection == "last step (18)"
    assert result.details["training"]["items"] == 48
    assert "Training curves" in (tmp_path / "report.html").read_text()


def test_a_share_of_the_labels_is_said_and_used(
    data: DataConfig, encoder: Path, tmp_path: Path
) -> None:
    run = dataclasses.replace(RUN, batch_size=6)
    config = finetune_config(data, tmp_path, label_fraction=0.25, checkpoint=str(encoder), run=run)
    result = image_finetune.run(config)
    assert result.task == "finetune"
    assert result.details["training"]["items"] == 12
    assert "Trained on 0.25 of the labels: 12 images, every class alike." in result.protocol.notes
    stored = yaml.safe_load((tmp_path / "training" / "config.yaml").read_text())
    assert stored["label_fraction"] == 0.25
    other = dataclasses.replace(config, label_fraction=0.5)
    with pytest.raises(ConfigError, match=r"label_fraction|data"):
        image_finetune.run(other)


@pytest.mark.parametrize("fraction", [0.07, 0.25, 0.5])
def test_shares_are_stratified_nested_and_seeded(data: DataConfig, fraction: float) -> None:
    source = open_images(data)
    share = share_of_labels(source, fraction, seed=3)
    assert torch.bincount(share.labels).tolist() == [max(1, round(16 * fraction))] * 3
    names = {share.name(index) for index in range(len(share))}
    larger = share_of_labels(source, 0.75, seed=3)
    assert names <= {larger.name(index) for index in range(len(larger))}
    other = share_of_labels(source, fraction, seed=4)
    assert names != {other.name(index) for index in range(len(other))}
    assert share_of_labels(source, 1.0, seed=3) is source


def test_the_epoch_is_chosen_on_training_images(data: DataConfig, tmp_path: Path) -> None:
    run = dataclasses.replace(RUN, epochs=2)
    config = finetune_config(data, tmp_path, validation=0.25, run=run)
    task = ImageTask(config)
    assert task.validation is not None
    assert torch.bincount(task.validation.labels).tolist() == [4, 4, 4]
    names = {task.validation.name(i) for i in range(12)} | {task.train.name(i) for i in range(36)}
    assert len(names) == 48 and all("/train/" in name for name in names)
    result = image_finetune.run(config)
    assert "12 held-out training images" in result.protocol.selection
    assert result.tested["path"].endswith("best.safetensors")


def test_what_is_trained_is_only_tested_again(data: DataConfig, tmp_path: Path) -> None:
    first = image_finetune.run(finetune_config(data, tmp_path))
    views = dataclasses.replace(VIEWS, resize=36, views_per_batch=5)
    again = image_finetune.run(finetune_config(data, tmp_path, views=views))
    assert again.details["training"] == first.details["training"]
    assert "36 px" in again.protocol.sampling and "36 px" not in first.protocol.sampling


def test_held_out_images_are_of_every_class_and_leave_some_of_each() -> None:
    labels = torch.arange(40) % 4
    held = held_out(labels, 0.2, seed=0)
    assert torch.bincount(labels[held]).tolist() == [2, 2, 2, 2]
    assert torch.equal(held, held_out(labels, 0.2, seed=0))
    with pytest.raises(ConfigError, match="no training image of 1 classes"):
        held_out(torch.tensor([0, 0, 0, 1]), 0.2, seed=0)


def test_a_single_learning_rate_holds_no_image_out(data: DataConfig, tmp_path: Path) -> None:
    heads = HeadsConfig(learning_rates=[0.1], epochs=30, batch_size=16, holdout=0.99)
    result = image_linear.run(linear_config(data, tmp_path, heads=heads))
    assert result.protocol.selection == "learning rate 0.1, as given"
    assert result.details["sweep"] == {}
    assert result.metrics["top1"].value > 0.8


def test_an_unreadable_test_image_is_named_or_skipped_and_counted(
    coloured_images: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for folder in sorted((coloured_images / split).iterdir()):
            (tmp_path / "set" / split / folder.name).symlink_to(folder)
    red = tmp_path / "set" / "test" / "Red"
    red.unlink()
    red.mkdir()
    (red / "cut.png").write_bytes((coloured_images / "test/Red/000.png").read_bytes()[:80])
    config = knn_config(
        DataConfig(source="folder", root=str(tmp_path / "set")), tmp_path / "out", ks=[5]
    )
    for workers in (0, 1):
        views = dataclasses.replace(VIEWS, num_workers=workers)
        with pytest.raises(DataError, match=r"cut\.png: cannot be evaluated") as caught:
            image_knn.run(dataclasses.replace(config, views=views))
        assert "\n" not in str(caught.value)
    skipping = dataclasses.replace(config, views=dataclasses.replace(VIEWS, on_bad="skip"))
    result = image_knn.run(skipping)
    assert (result.protocol.num_images, result.protocol.num_bad) == (12, 1)
    assert Path(result.details["bad"][0][0]).name == "cut.png"


def test_test_images_are_what_the_transform_shows(data: DataConfig) -> None:
    source = open_images(data)
    dataset = ImageViews(source, VIEWS)
    assert torch.equal(dataset[5]["image"], source.read(5))
    smaller = ImageViews(source, ImageViewsConfig(size=16, resize=32))
    assert torch.equal(smaller[5]["image"], source.read(5)[:, 8:24, 8:24])
    assert smaller.digest() != dataset.digest()


def test_training_and_test_are_other_images_of_the_same_classes(
    data: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="both 'train'"):
        knn_config(data, tmp_path, test_split="train")
    (tmp_path / "train" / "Red").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    for split, name in (("train", "Red"), ("test", "Blue")):
        (tmp_path / split / name).mkdir(exist_ok=True)
        source = Path(data.root) / "train" / name / "000.png"
        (tmp_path / split / name / "a.png").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="other classes"):
        open_labelled(DataConfig(source="folder", root=str(tmp_path)), "test")


def test_the_pretraining_images_are_looked_up(
    data: DataConfig, encoder: Path, tmp_path: Path
) -> None:
    weights = load_file(encoder / "model.safetensors")
    state = {f"moco.encoder.{k}": v for k, v in weights.items()}
    # The momentum copy has other values; evaluations must take the query encoder.
    state |= {f"moco.key_encoder.{k}": torch.zeros_like(v) for k, v in weights.items()}
    run = tmp_path / "run"
    engine_checkpoint.save(run, 3, model=state, state={"step": 3})
    for split, seen in (("train", 0), ("test", 18)):
        images = dataclasses.asdict(dataclasses.replace(data, split=split))
        values = {"data": images}
        values |= {"model": {"encoder": ENCODER}, "nda": {"spec": "jigsaw"}}
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        result = image_knn.run(knn_config(data, tmp_path / split, checkpoint=str(run), ks=[5]))
        assert result.details["pretraining"]["test_images_seen"] == seen
        assert any("LEAK" in note for note in result.protocol.notes) == bool(seen)
        assert result.details["pretraining"]["nda"] == "jigsaw"
        assert result.details["key_report"]["fraction"] == 1.0
        page = (tmp_path / split / "report.html").read_text()
        assert f"the {split} split of folder" in page and f"{seen} test images among it" in page
    saved = image_knn.run(knn_config(data, tmp_path / "saved", checkpoint=str(encoder), ks=[5]))
    assert saved.metrics == result.metrics
    assert "not recorded" in " ".join(saved.protocol.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_fraction": 0.0}, "label_fraction"),
        ({"mode": "scratch", "checkpoint": "x"}, "takes no checkpoint"),
        ({"augment": AugmentConfig(size=64)}, "augment.size is 64 and views.size 32"),
        ({"validation": 1.0}, "validation"),
    ],
)
def test_settings_that_contradict_each_other(
    data: DataConfig, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune_config(data, tmp_path, **changes)


def script(name: str, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    if ranks == 1:
        return forked.call(ROOT / "eval" / f"{name}.py", *arguments, cwd=ROOT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.run(
        [sys.executable, *launch, f"eval/{name}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("image_knn", knn_config),
        ("image_linear", linear_config),
        ("image_finetune", finetune_config),
    ],
)
def test_the_scripts_run_from_their_configs(
    name: str, build: Callable[..., object], data: DataConfig, tmp_path: Path
) -> None:
    config = build(data, tmp_path / "out")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(type(config), path) == config
    done = script(name, "--config", str(path))
    assert done.returncode == 0, done.stderr
    assert "top1" in done.stdout and (tmp_path / "out" / "result.json").exists()


def test_an_empty_root_is_one_line_that_says_which_key(tmp_path: Path) -> None:
    done = script("image_knn", "--model.encoder", ENCODER, "--output", str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: no data: data.root is empty")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(data: DataConfig, tmp_path: Path) -> None:
    for name, config in (
        ("image_knn", knn_config(data, tmp_path / "knn")),
        ("image_linear", linear_config(data, tmp_path / "linear")),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(config))
        done = script(name, "--config", str(path), ranks=2)
        assert done.returncode == 0, done.stderr
        output = Path(str(config.output))
        found = load_result(output / "result.json")
        module = {"image_knn": image_knn, "image_linear": image_linear}[name]
        alone = module.run(dataclasses.replace(config, output=str(output) + "-alone"))
        assert found.metrics == alone.metrics and found.environment["world_size"] == 2
