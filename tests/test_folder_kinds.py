"""Default output folders, and folders that hold something else already."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scripts
import yaml

from ndavid.config import from_yaml, to_yaml
from ndavid.data.config import DataConfig
from ndavid.engine.run_directory import check_folder as check_run_folder
from ndavid.engine.settings import Settings
from ndavid.errors import ConfigError
from ndavid.evaluation import knn, linear, output_folder
from ndavid.evaluation.output_folder import check_folder, name_of, with_output
from ndavid.study.runner import _check_output

ROOT = Path(__file__).resolve().parent.parent

RECIPES = {
    "dpc": ("pretrain_dpc", "PretrainDpcConfig"),
    "moco": ("pretrain_moco", "PretrainMocoConfig"),
    "gan": ("train_gan", "TrainGanConfig"),
    "classifier": ("train_classifier", "TrainClassifierConfig"),
}


def recipe_config(name: str) -> Any:
    script, kind = RECIPES[name]
    return getattr(scripts.load(ROOT / "recipes" / f"{script}.py"), kind)()


@pytest.mark.parametrize("name", RECIPES)
def test_each_method_has_a_folder_of_its_own(name: str) -> None:
    assert recipe_config(name).run.output == f"runs/{name}"


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("runs/ucf101-stitch", "ucf101-stitch"),
        ("runs/ucf101-stitch/", "ucf101-stitch"),
        ("runs/a/checkpoints/step_500", "a-step_500"),
        ("runs/a/checkpoints/step_500/model.safetensors", "a-step_500"),
        ("runs/a/checkpoints/step_500/ema.safetensors", "a-step_500-ema"),
        ("runs/studies/x/dpc/none/seed0/training", "studies-x-dpc-none-seed0-training"),
        ("runs/fold{fold}", "foldN"),
        ("/read/only/moco_v2_800ep_pretrain.pth.tar", "moco_v2_800ep_pretrain"),
        ("/elsewhere/mine/checkpoints/step_9", "mine-step_9"),
        ("/elsewhere/mine/model.safetensors", "mine"),
        ("k400_128_r18_dpc-rnn.pth.tar", "k400_128_r18_dpc-rnn"),
        ("../my runs/ä b", "b"),
    ],
)
def test_the_name_of_a_checkpoint(checkpoint: str, name: str) -> None:
    assert name_of(checkpoint) == name


def test_the_working_directory_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-run").mkdir()
    monkeypatch.chdir(tmp_path / "my-run")
    assert name_of(".") == "my-run"


def test_an_evaluation_goes_to_its_checkpoints_name_and_task() -> None:
    config = linear.LinearConfig(checkpoint="runs/ucf101-stitch")
    assert with_output(config, "linear").output == "runs/ucf101-stitch-linear"
    random = linear.LinearConfig()
    random.model.encoder = "cifar:resnet18"
    assert with_output(random, "linear").output == "runs/random-cifar-resnet18-linear"
    chosen = dataclasses.replace(config, output="here")
    assert with_output(chosen, "linear") is chosen


def test_a_run_of_an_evaluator_gets_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[Any] = []

    def measure(config: Any, classify: Any) -> None:
        given.append(config)
        assert (tmp_path / config.output).is_dir()  # held while it is measured

    monkeypatch.setattr(knn, "measure_folds", measure)
    knn.run(knn.KnnConfig(checkpoint="weights/r18.pth"))
    assert [config.output for config in given] == ["runs/r18-knn"]


def test_no_config_of_an_evaluator_names_one_folder_for_every_checkpoint() -> None:
    files = sorted((ROOT / "eval" / "configs").glob("*.yaml"))
    named = [file.name for file in files if "output" in yaml.safe_load(file.read_text())]
    assert len(files) > 50 and named == []


# What folders hold.


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def training(folder: Path, kind: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    return write(folder, config__yaml=to_yaml(recipe_config(kind)), metrics__jsonl="")


def result(folder: Path, task: str = "knn", **config: Any) -> Path:
    text = json.dumps({"task": task, "metrics": {}, "protocol": {}, "config": config})
    return write(folder, result__json=text, report__html="")


def study(folder: Path) -> Path:
    (folder / "dpc" / "none" / "seed0").mkdir(parents=True)
    return folder


def dataset(folder: Path) -> Path:
    return write(folder, manifest__csv="")


@pytest.mark.parametrize("kind", RECIPES)
def test_a_folder_of_its_own_kind_goes_on(kind: str, tmp_path: Path) -> None:
    training(tmp_path / "run", kind)
    settings = Settings.of(recipe_config(kind))
    check_run_folder(tmp_path / "run", settings)
    check_run_folder(tmp_path / "absent", settings)
    # A run from before some keys were there, and one that ended before its first checkpoint.
    values = yaml.safe_load(settings.yaml)
    del values["run"]["deterministic"], values["optim"]
    write(tmp_path / "run", config__yaml=yaml.safe_dump(values))
    (tmp_path / "run" / "checkpoints").rmdir()
    check_run_folder(tmp_path / "run", settings)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: training(folder, "gan"), "another kind of run"),
        (lambda folder: training(folder, "moco"), "another kind of run"),
        (lambda folder: training(folder, "classifier"), "another kind of run"),
        (result, "holds an evaluation's result, not a training run"),
        (study, "holds a study, not a training run"),
        (dataset, "holds a prepared dataset, not a training run"),
        (lambda folder: write(folder, config__yaml="services: {web: 1}"), "config.yaml there is"),
        (lambda folder: write(folder, report__html="mine"), "report.html there is not ours"),
    ],
)
def test_training_refuses_a_folder_of_another_kind(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_run_folder(make(tmp_path / "x"), Settings.of(recipe_config("dpc")))
    line = str(refused.value)
    assert said in line and "choose another run.output" in line
    assert "\n" not in line and len(line.replace(str(tmp_path), "")) < 160


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: training(folder, "gan"), "holds a training run, not an evaluation's"),
        (study, "holds a study"),
        (dataset, "holds a prepared dataset"),
        (lambda folder: result(folder, "retrieval"), "the result of retrieval, not of knn"),
        (lambda folder: write(folder, result__json="[1, 2]"), "result.json there is not ours"),
        (lambda folder: write(folder, report__html=""), "report.html there is not ours"),
    ],
)
def test_an_evaluation_refuses_a_folder_of_another_kind(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "x")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ConfigError, match="choose another output") as refused:
        knn.run(knn.KnnConfig(output=str(folder)))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_default_folder_keeps_the_results_of_other_weights_and_data(tmp_path: Path) -> None:
    config = knn.KnnConfig(checkpoint="runs/a", data=DataConfig(root="data/ucf101"), output="set")
    folder = result(tmp_path, checkpoint="runs/a", data={"root": "data/ucf101"})
    check_folder(folder, "knn", config)
    result(tmp_path, checkpoint="runs/a", data={"root": "data/hmdb51"})
    with pytest.raises(ConfigError, match=r"data\.root 'data/hmdb51', not 'data/ucf101'"):
        check_folder(folder, "knn", config)
    result(tmp_path, checkpoint="other/runs/a", data={"root": "data/ucf101"})
    with pytest.raises(ConfigError, match="checkpoint 'other/runs/a', not 'runs/a'"):
        check_folder(folder, "knn", config)
    check_folder(folder, "knn")  # named by the user: replaced, as ever


def test_a_study_refuses_a_folder_of_another_kind(tmp_path: Path) -> None:
    _check_output(tmp_path)
    _check_output(study(tmp_path / "s"))
    for make in (lambda folder: training(folder, "dpc"), result, dataset):
        folder = make(tmp_path / str(len(list(tmp_path.iterdir()))))
        with pytest.raises(ConfigError, match="not a study: choose another output"):
            _check_output(folder)
    with pytest.raises(ConfigError, match=r"results.csv there is not ours"):
        _check_output(write(tmp_path / "t", results__csv="mine"))


def test_every_evaluator_has_a_name_for_its_results() -> None:
    names = {path.stem for path in (ROOT / "eval").glob("*.py")}
    assert output_folder._TASKS.keys() <= names
    assert from_yaml(knn.KnnConfig, "checkpoint: runs/a\n").output == ""
