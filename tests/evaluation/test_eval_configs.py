"""Every YAML under eval/configs parses, says how to run it, and what to expect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ndavid.config import from_yaml
from ndavid.engine.optim import lr_factor
from ndavid.evaluation.finetune import FinetuneConfig
from ndavid.evaluation.image_finetune import ImageFinetuneConfig
from ndavid.evaluation.image_knn import ImageKnnConfig
from ndavid.evaluation.image_linear import ImageLinearConfig
from ndavid.evaluation.knn import KnnConfig
from ndavid.evaluation.linear import LinearConfig
from ndavid.evaluation.motion import MotionConfig
from ndavid.evaluation.ood import OodConfig
from ndavid.evaluation.other_images import parse_source
from ndavid.evaluation.pretrained import load_classifier, load_pooled
from ndavid.evaluation.retrieval import RetrievalConfig
from ndavid.methods.nda_config import NegativesConfig

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "configs"
VIDEO_KINDS = {
    "finetune": FinetuneConfig,
    "scratch": FinetuneConfig,
    "linear": LinearConfig,
    "motion": MotionConfig,
    "retrieval": RetrievalConfig,
    "knn": KnnConfig,
}
IMAGE_KINDS = {
    "image-finetune": ImageFinetuneConfig,
    "image-linear": ImageLinearConfig,
    "image-knn": ImageKnnConfig,
    "ood": OodConfig,
}
KINDS = VIDEO_KINDS | IMAGE_KINDS


def kind_of(path: Path) -> str:
    return path.stem.rsplit("_", 1)[1]


# These have a test of their own beside their evaluator's.
APART = {"detection", "generation", "anomaly"}
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if kind_of(path) not in APART)
OF_VIDEOS = [path for path in CONFIGS if kind_of(path) in VIDEO_KINDS]
OF_IMAGES = [path for path in CONFIGS if kind_of(path) in IMAGE_KINDS]


def script_of(kind: str) -> str:
    return {"scratch": "finetune"}.get(kind, kind.replace("-", "_"))


def test_each_dataset_has_each_evaluation() -> None:
    videos = ("ucf101", "hmdb51", "ucf101_6class", "jhmdb21", "demo")
    wanted = {f"{d}_{kind}" for d in videos for kind in ("finetune", "linear", "retrieval", "knn")}
    moco = ("ucf101_moco", "ucf101_6class_moco", "jhmdb21_moco")
    wanted |= {f"{d}_{kind}" for d in moco for kind in ("finetune", "linear", "retrieval", "knn")}
    of_motion = (
        "ucf101",
        "hmdb51",
        "ucf101_6class",
        "jhmdb21",
        "ucf101_6class_moco",
        "jhmdb21_moco",
    )
    wanted |= {f"{dataset}_motion" for dataset in of_motion}
    images = (
        "cifar10",
        "cifar10_packed",
        "cifar100",
        "stl10",
        "imagenet100",
        "imagenet1k",
        "folder",
    )
    wanted |= {f"{d}_image-{kind}" for d in images for kind in ("knn", "linear", "finetune")}
    assert {path.stem for path in CONFIGS} >= wanted
    assert set(OF_VIDEOS) | set(OF_IMAGES) == set(CONFIGS)


def test_the_variants_are_what_their_names_say() -> None:
    def config(name: str) -> FinetuneConfig:
        return from_yaml(FinetuneConfig, FOLDER / f"{name}.yaml")

    assert config("ucf101_scratch").mode == "scratch"
    assert config("ucf101_paper-compat_finetune").protocol == "paper_compat"
    of_each_fold = config("ucf101_3folds_finetune")
    assert of_each_fold.folds == [1, 2, 3] and "{fold}" in of_each_fold.checkpoint
    assert from_yaml(LinearConfig, FOLDER / "kinetics400_linear.yaml").test_split == "val"


def originals_rates(steps: list[int], epochs: int) -> list[float]:
    """The rate of each epoch in DPC's fine-tuning code, by the scheduler that it uses.

    A cycle of ``max(steps)`` epochs is run once; after it the exponent stays at one less than the
    number of steps. The scheduler is told the epoch that has ended, so that all acts an epoch late.
    """

    def factor(epoch: int) -> float:
        if epoch // max(steps) >= 1:
            return 0.1 ** (len(steps) - 1)
        return 0.1 ** sum(epoch % max(steps) >= step for step in steps)

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(epoch)
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(
    "name",
    ["ucf101", "ucf101_3folds", "ucf101_paper-compat", "ucf101_moco", "ucf101_scratch", "hmdb51"],
)
def test_fine_tuning_learns_at_the_originals_rate_in_every_epoch(name: str) -> None:
    stem = name if name.endswith("scratch") else f"{name}_finetune"
    config = from_yaml(FinetuneConfig, FOLDER / f"{stem}.yaml")
    steps = [150, 250, 300] if name == "hmdb51" else [60, 80, 100]
    epochs, per_epoch = config.run.epochs, 7
    total = epochs * per_epoch
    for epoch, rate in enumerate(originals_rates(steps, epochs)):
        for step in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
            found = lr_factor(step, config.optim, steps_per_epoch=per_epoch, total_steps=total)
            assert config.optim.lr * found == pytest.approx(rate), f"epoch {epoch}"


def test_mocos_clips_go_through_the_evaluators_of_dpcs() -> None:
    found = [path for path in OF_VIDEOS if "_moco_" in path.stem]
    assert len(found) == 14
    for path in found:
        config = from_yaml(VIDEO_KINDS[kind_of(path)], path)
        assert (config.model.head, config.views.sampling) == ("pool", "dense"), path.name


def test_no_motion_probe_is_given_the_seams_of_short_videos() -> None:
    found = [path for path in OF_VIDEOS if kind_of(path) == "motion"]
    assert {from_yaml(MotionConfig, path).views.short for path in found} == {"drop"}


@pytest.mark.parametrize("path", OF_IMAGES, ids=lambda path: path.stem)
def test_the_shares_and_recipes_of_images_are_what_their_names_say(path: Path) -> None:
    config = from_yaml(IMAGE_KINDS[kind_of(path)], path)
    share = {"10percent": 0.1, "1percent": 0.01}
    named = next((share[part] for part in path.stem.split("_") if part in share), 1.0)
    assert getattr(config, "label_fraction", 1.0) == named
    if isinstance(config, ImageLinearConfig):
        assert (config.mode == "sgd") == ("_sgd_" in path.stem)
    if isinstance(config, ImageLinearConfig) and config.mode == "sgd":
        optim, run = config.optim, config.run
        assert (optim.lr, optim.weight_decay, optim.momentum) == (30.0, 0.0, 0.9)
        assert (optim.milestones, run.epochs, run.batch_size) == ([60, 80], 100, 256)
        assert config.augment.preset == "linear" and config.augment.crop_scale is None
    if isinstance(config, OodConfig):
        assert all(parse_source(text).root for text in config.others)
        assert all(NegativesConfig(spec=spec).operation() for spec in config.nda)
    if isinstance(config, ImageKnnConfig):
        assert (config.ks, config.temperature) == ([20, 200], 0.07)


@pytest.mark.parametrize("path", OF_VIDEOS, ids=lambda path: path.stem)
def test_it_parses_and_builds(path: Path) -> None:
    config = from_yaml(VIDEO_KINDS[kind_of(path)], path)
    assert config.model.encoder, "random weights need a name"
    assert config.output == "", "it would be one folder for every checkpoint"
    if config.model.encoder == "resnet2d3d10":
        load_classifier(None, config.model, config.views, 5, seed=0)


@pytest.mark.parametrize("path", OF_IMAGES, ids=lambda path: path.stem)
def test_it_parses_and_builds_for_images(path: Path) -> None:
    config = from_yaml(IMAGE_KINDS[kind_of(path)], path)
    assert config.model.encoder, "random weights need a name"
    assert config.output == "", "it would be one folder for every checkpoint"
    if config.model.encoder == "cifar:resnet20":
        load_pooled(None, config.model, 5, seed=0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_has_the_command_the_hardware_and_the_number(path: Path) -> None:
    dataset, kind = path.stem.rsplit("_", 1)
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("# "))
    assert lines[0].startswith("# ")
    assert f"eval/{script_of(kind)}.py" in header
    assert f"--config eval/configs/{path.name}" in header
    if "for fold in" not in header:
        assert f"--output runs/{path.stem}" in header
    assert "Hardware: " in header
    assert "Number: " in header or dataset == "demo"
