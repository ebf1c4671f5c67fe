"""Every YAML under eval/configs parses, says how to run it, and what to expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndavid.config import from_yaml
from ndavid.evaluation.finetune import FinetuneConfig
from ndavid.evaluation.linear import LinearConfig
from ndavid.evaluation.pretrained import load_classifier
from ndavid.evaluation.retrieval import RetrievalConfig

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "configs"
KINDS = {
    "finetune": FinetuneConfig,
    "scratch": FinetuneConfig,
    "linear": LinearConfig,
    "retrieval": RetrievalConfig,
}
SCRIPTS = {"finetune": "finetune", "scratch": "finetune"}
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_each_dataset_has_each_evaluation() -> None:
    datasets = ("ucf101", "hmdb51", "ucf101_6class", "jhmdb21", "demo")
    kinds = ("finetune", "linear", "retrieval")
    assert {path.stem for path in CONFIGS} >= {f"{d}_{k}" for d in datasets for k in kinds}


def test_the_variants_are_what_their_names_say() -> None:
    def config(name: str) -> FinetuneConfig:
        return from_yaml(FinetuneConfig, FOLDER / f"{name}.yaml")

    assert config("ucf101_scratch").mode == "scratch"
    assert config("ucf101_paper-compat_finetune").protocol == "paper_compat"
    of_each_fold = config("ucf101_3folds_finetune")
    assert of_each_fold.folds == [1, 2, 3] and "{fold}" in of_each_fold.checkpoint
    assert from_yaml(LinearConfig, FOLDER / "kinetics400_linear.yaml").split == "val"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_parses_and_builds(path: Path) -> None:
    config = from_yaml(KINDS[path.stem.rsplit("_", 1)[1]], path)
    assert config.model.encoder, "random weights need a name"
    if config.model.encoder == "resnet2d3d10":
        load_classifier("", config.model, config.views, 5, seed=0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_header_has_the_command_the_hardware_and_the_number(path: Path) -> None:
    dataset, kind = path.stem.rsplit("_", 1)
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("# "))
    assert lines[0].startswith("# ")
    assert f"eval/{SCRIPTS.get(kind, kind)}.py" in header
    assert f"--config eval/configs/{path.name}" in header
    assert "Hardware: " in header
    assert "Number: " in header or dataset == "demo"
