"""Every YAML in the repository parses into its script's config, and says how to run it."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import scripts
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from scripts import ROOT
from scripts import load as load_script

from ndavid import nda
from ndavid.config import from_yaml
from ndavid.errors import ConfigError
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.study.config import StudyConfig
from ndavid.study.plan import Step, cells, preparations

# Folder of recipes/configs -> script and config class.
TRAINING = {
    "dpc": ("pretrain_dpc.py", "PretrainDpcConfig"),
    "moco": ("pretrain_moco.py", "PretrainMocoConfig"),
    "gan": ("train_gan.py", "TrainGanConfig"),
    "classifier": ("train_classifier.py", "TrainClassifierConfig"),
}
RECIPES = sorted(
    path for method in TRAINING for path in (ROOT / "recipes" / "configs" / method).glob("*.yaml")
)
EVAL = sorted((ROOT / "eval" / "configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "recipes" / "configs" / "studies").glob("*.yaml"))
LAUNCH = sorted((ROOT / "recipes" / "launch").glob("*.yaml"))
# The task that ends an evaluation config's name -> script and config class.
TASKS = {
    "finetune": ("finetune", "FinetuneConfig"),
    "scratch": ("finetune", "FinetuneConfig"),
    "linear": ("linear", "LinearConfig"),
    "motion": ("motion", "MotionConfig"),
    "retrieval": ("retrieval", "RetrievalConfig"),
    "knn": ("knn", "KnnConfig"),
    "image-knn": ("image_knn", "ImageKnnConfig"),
    "image-linear": ("image_linear", "ImageLinearConfig"),
    "image-finetune": ("image_finetune", "ImageFinetuneConfig"),
    "ood": ("ood", "OodConfig"),
    "detection": ("detection", "DetectionConfig"),
    "generation": ("generation", "GenerationConfig"),
    "anomaly": ("anomaly", "AnomalyConfig"),
}


@functools.cache
def training_config(path: Path):  # type: ignore[no-untyped-def]
    """Read once for all tests, which do not change it."""
    script, config_class = TRAINING[path.parent.name]
    return from_yaml(getattr(load_script(ROOT / "recipes" / script), config_class), path)


@functools.cache
def study_config(path: Path) -> StudyConfig:
    return from_yaml(StudyConfig, path)


def header(path: Path) -> str:
    """The comment on top of a file."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_every_yaml_is_covered_by_a_test_here() -> None:
    kept = {p for p in ROOT.rglob("*.y*ml") if not {".venv", "runs", ".git"} & set(p.parts)}
    assert kept == set(RECIPES) | set(EVAL) | set(STUDIES) | set(LAUNCH)
    assert {path.parent.name for path in RECIPES} == set(TRAINING)
    assert EVAL and STUDIES and LAUNCH


def recipe_id(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_training_config(path: Path) -> None:
    config = training_config(path)
    top = header(path)
    folder = path.parent.name
    assert f"recipes/configs/{folder}/{path.name}" in top
    assert f"recipes/{TRAINING[folder][0]}" in top
    assert "# Hardware:" in top
    assert config.run.output == f"runs/{path.stem}"
    spec = config.nda.spec if hasattr(config, "nda") else ""
    assert ("_nda-" in path.stem) == bool(spec)
    if spec:
        nda.from_spec(spec)


@pytest.mark.parametrize("path", [p for p in RECIPES if "_nda-" in p.stem], ids=recipe_id)
def test_nda_config_differs_from_its_baseline_in_the_negatives_only(path: Path) -> None:
    baseline = path.with_name(path.stem.split("_nda-")[0] + ".yaml")
    assert baseline.exists(), f"{path.name} has no baseline {baseline.name} beside it"
    ours, theirs = (dataclasses.asdict(training_config(p)) for p in (path, baseline))
    for config in (ours, theirs):
        if path.parent.name == "moco":  # there the baseline's settings are right for any operation
            config["nda"].pop("spec")
        else:
            config.pop("nda")
        config["run"].pop("output")
    assert ours == theirs


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_a_spec_alone_turns_on_negatives_that_teach(path: Path) -> None:
    """Of clips the code's defaults, in the baseline too; of images the published form."""
    if path.parent.name != "moco":
        return
    config = training_config(path)
    found = (
        config.nda.view,
        config.nda.encoder,
        config.nda.norm,
        config.nda.share,
        config.nda.weight,
    )
    loud, published = ("key", "query", "shared", "own", 16.0), ("key", "key", "own", "own", 1.0)
    assert found == (loud if "num_frames" in path.read_text() else published)


def test_the_page_on_negatives_has_the_defaults_of_images_and_of_clips() -> None:
    text = " ".join((ROOT / "docs" / "concepts.md").read_text().split())
    said = re.findall(r"set it to (\d+) \(`nda\.encoder: (\w+)`, `nda\.norm: (\w+)`\)", text)
    images, clips = set(), set()
    for path in RECIPES:
        if path.parent.name == "moco":
            of = training_config(path).nda
            found = clips if "num_frames" in path.read_text() else images
            found.add((f"{of.weight:g}", of.encoder, of.norm))
    ours = MocoNdaConfig()
    assert clips == {(f"{ours.weight:g}", ours.encoder, ours.norm)}
    assert said == [*images, *clips]


@pytest.mark.parametrize("path", EVAL, ids=lambda p: p.stem)
def test_evaluation_config(path: Path) -> None:
    script, config_class = TASKS[path.stem.rsplit("_", 1)[1]]
    module = load_script(ROOT / "eval" / f"{script}.py")
    assert from_yaml(getattr(module, config_class), path) is not None
    assert f"eval/configs/{path.name}" in header(path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_study(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step's script understands its command line: hours later would be late to learn it."""
    monkeypatch.chdir(ROOT)
    config = study_config(path)
    assert f"--config recipes/configs/studies/{path.name}" in header(path)
    assert "# Hardware:" in header(path)
    assert config.title and config.output.startswith("runs/studies/")
    check_steps(config)
    specs = [arm.overrides.get("nda.spec") for arm in config.arms]
    for spec in filter(None, specs):
        nda.from_spec(str(spec))


def check_steps(config: StudyConfig) -> None:
    for step in distinct_steps(config):
        scripts.check(step.script, step.command[1:], " ".join(step.command))


def distinct_steps(config: StudyConfig) -> list[Step]:
    """The steps that differ in more than their seed, their operation and what they write."""
    grid = [cell for cell in cells(config) if cell.seed == config.seeds[0]]
    steps = [*preparations(config), *(step for cell in grid for step in cell.steps)]

    def kept(step: Step) -> tuple[str, ...]:
        words = zip(step.command, ["", *step.command], strict=False)
        return tuple(w for w, key in words if config.output not in w and key != "--nda.spec")

    return [*{kept(step): step for step in steps}.values()]


def test_studies_have_folders_of_their_own() -> None:
    outputs = [study_config(path).output for path in STUDIES]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("run.max_steps: 240", "run.max_step: 240", "did you mean 'run.max_steps'"),
        ("run.max_steps: 240", "run.max_steps: one", "'run.max_steps' must be"),
        (', seed: "{seed}"', ", sed: 1", "did you mean 'seed'"),
        ("cifar10_packed_image-knn.yaml", "cifar10_packed_knn.yaml", "cifar10_packed_knn.yaml"),
    ],
)
def test_a_wrong_override_in_a_study_is_found(
    old: str, new: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "recipes" / "configs" / "studies" / "images_cpu.yaml").read_text()
    assert text.count(old) == 1
    file = tmp_path / "study.yaml"
    file.write_text(text.replace(old, new))
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as error:
        check_steps(from_yaml(StudyConfig, file))
    assert named in str(error.value)


@pytest.mark.parametrize("path", LAUNCH, ids=lambda p: p.stem)
def test_launch_file(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
    assert f"recipes/launch/{path.name}" in header(path)
