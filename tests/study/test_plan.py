"""The plan: which commands a study consists of, and what braces stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ndavid.errors import ConfigError
from ndavid.study.config import (
    ArmConfig,
    MeasurementConfig,
    MethodConfig,
    PreparationConfig,
    StudyConfig,
)
from ndavid.study.plan import cells, preparations

Make = Callable[..., StudyConfig]


def words(command: list[str]) -> dict[str, str]:
    """Options of a command and their values."""
    pairs = command[1:]
    assert len(pairs) % 2 == 0
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def study(**changes: object) -> StudyConfig:
    values: dict[str, object] = {
        "output": "runs/s",
        "places": {"clips": "data/my clips"},
        "seeds": [4, 5],
        "methods": [
            MethodConfig(
                name="dpc",
                recipe="recipes/a.py",
                config="a.yaml",
                overrides={"data.root": "{clips}/m", "run.epochs": 3, "nda.weight": 0.5},
            ),
            MethodConfig(name="moco", recipe="recipes/b.py", config="b.yaml"),
        ],
        "arms": [
            ArmConfig(name="random", trained=False),
            ArmConfig(name="none"),
            ArmConfig(
                name="jigsaw", methods=["dpc"], overrides={"nda.weight": 1e-05, "nda.on": True}
            ),
        ],
        "measurements": [
            MeasurementConfig(
                name="knn",
                script="eval/knn.py",
                config="knn.yaml",
                overrides={"seed": "{seed}", "cache": "{cell}/f", "weights": "x/fold{fold}"},
            ),
            MeasurementConfig(name="ood", script="eval/ood.py", methods=["moco"], arms=["none"]),
        ],
    }
    return StudyConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_the_grid_is_walked_seed_by_seed() -> None:
    names = [cell.name for cell in cells(study())]
    assert names == [
        f"{cell}/seed{seed}"
        for seed in (4, 5)
        for cell in ("dpc/random", "dpc/none", "dpc/jigsaw", "moco/random", "moco/none")
    ]


@pytest.mark.parametrize("only", [["jigsaw"], ["none", "jigsaw"]])
def test_chosen_arms_are_run_with_the_baseline_and_no_others(only: list[str]) -> None:
    config = study(only_arms=only, seeds=[7])
    names = [cell.name for cell in cells(config)]
    assert names == [f"{cell}/seed7" for cell in ("dpc/none", "dpc/jigsaw", "moco/none")]


def test_an_arm_that_is_chosen_and_unknown_is_named_with_its_like() -> None:
    with pytest.raises(ConfigError, match=r"only_arms: no 'jigsav'.*jigsaw"):
        study(only_arms=["jigsav"])


def test_the_commands_of_a_cell() -> None:
    cell = next(c for c in cells(study()) if c.name == "dpc/jigsaw/seed5")
    training, (knn,) = cell.training, cell.measurements
    assert training is not None
    assert training.command[0] == "recipes/a.py"
    assert training.folder == Path("runs/s/dpc/jigsaw/seed5/training")
    assert words(training.command) == {
        "--config": "a.yaml",
        "--data.root": "data/my clips/m",
        "--run.epochs": "3",
        "--nda.weight": "1.0e-05",
        "--nda.on": "true",
        "--run.output": "runs/s/dpc/jigsaw/seed5/training",
        "--run.seed": "5",
    }
    assert words(knn.step.command) == {
        "--config": "knn.yaml",
        "--seed": "5",
        "--cache": "runs/s/dpc/jigsaw/seed5/f",
        "--weights": "x/fold{fold}",
        "--checkpoint": "runs/s/dpc/jigsaw/seed5/training",
        "--output": "runs/s/dpc/jigsaw/seed5/knn",
    }


def test_random_weights_are_measured_without_a_training() -> None:
    cell = next(c for c in cells(study()) if c.name == "moco/random/seed4")
    assert cell.training is None
    assert [m.config.name for m in cell.measurements] == ["knn"]
    assert words(cell.measurements[0].step.command)["--checkpoint"] == ""


def test_a_measurement_is_made_of_its_methods_and_arms_only() -> None:
    measured = {c.name: [m.config.name for m in c.measurements] for c in cells(study())}
    assert measured["moco/none/seed4"] == ["knn", "ood"]
    assert measured["dpc/none/seed4"] == ["knn"]


def test_each_seed_trains_and_is_tested_on_its_split() -> None:
    method = MethodConfig(name="dpc", recipe="a.py", overrides={"data.fold": "{split}"})
    measurement = MeasurementConfig(name="knn", script="k.py", overrides={"folds": "[{split}]"})
    planned = cells(
        study(
            seeds=[4, 5, 6],
            splits=[1, 3],
            methods=[method],
            arms=[ArmConfig(name="none")],
            measurements=[measurement],
        )
    )
    commands = [[words(step.command) for step in cell.steps] for cell in planned]
    assert [training["--data.fold"] for training, _ in commands] == ["1", "3", "1"]
    assert [knn["--folds"] for _, knn in commands] == ["[1]", "[3]", "[1]"]


def test_a_preparation_may_use_those_before_it_and_all_else_may_use_it() -> None:
    config = study(
        preparations=[
            PreparationConfig(
                name="all", script="datasets/x.py", overrides={"from": "{clips}", "to": "{output}"}
            ),
            PreparationConfig(name="few", script="datasets/y.py", overrides={"from": "{all}"}),
        ],
        methods=[MethodConfig(name="dpc", recipe="a.py", overrides={"data": ["{few}/a", 1]})],
        arms=[ArmConfig(name="none")],
        measurements=[MeasurementConfig(name="knn", script="k.py")],
    )
    first, second = preparations(config)
    assert words(first.command) == {
        "--from": "data/my clips",
        "--to": "runs/s/preparations/all",
    }
    assert words(second.command) == {"--from": "runs/s/preparations/all"}
    training = cells(config)[0].training
    assert training is not None
    assert words(training.command)["--data"] == "[runs/s/preparations/few/a, 1]"


def test_a_brace_that_names_nothing_is_an_error_with_the_nearest_name() -> None:
    method = MethodConfig(name="dpc", recipe="a.py", overrides={"data": {"a": ["{clps}"]}})
    measurement = MeasurementConfig(name="knn", script="k.py")
    with pytest.raises(ConfigError, match=r"'{clps}' names a place.*did you mean 'clips'"):
        cells(study(methods=[method], arms=[ArmConfig(name="none")], measurements=[measurement]))
    later = PreparationConfig(name="a", script="x.py", overrides={"from": "{b}"})
    with pytest.raises(ConfigError, match=r"'{b}' names a place"):
        preparations(study(preparations=[later, PreparationConfig(name="b", script="y.py")]))
