"""Which steps a study consists of: the commands of its preparations and of each of its cells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ndavid.config import nearest
from ndavid.errors import ConfigError
from ndavid.study.config import (
    PREPARATIONS,
    TRAINING,
    ArmConfig,
    MeasurementConfig,
    MethodConfig,
    PreparationConfig,
    StudyConfig,
    measures,
)

_BRACES = re.compile(r"\{([a-z][a-z0-9_.-]*)\}")


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        folder: What it writes, and where the record of it is kept.
        script: The program, from the repository's root.
        config: Its YAML; empty: none.
        overrides: Keys and words, in the order of the command line.
    """

    folder: Path
    script: str
    config: str
    overrides: tuple[tuple[str, str], ...]

    @property
    def command(self) -> list[str]:
        """The words after ``python``."""
        config = ["--config", self.config] if self.config else []
        words = (word for key, value in self.overrides for word in (f"--{key}", value))
        return [self.script, *config, *words]


@dataclass(frozen=True)
class Measured:
    """A measurement of a cell: what it is, and its step."""

    config: MeasurementConfig
    step: Step


@dataclass(frozen=True)
class Cell:
    """One training and what is measured of it: steps that follow each other.

    Attributes:
        method, arm, seed: Its place in the grid.
        training: None for random weights.
        measurements: In the config's order.
    """

    method: str
    arm: str
    seed: int
    training: Step | None
    measurements: tuple[Measured, ...]

    @property
    def name(self) -> str:
        return f"{self.method}/{self.arm}/seed{self.seed}"

    @property
    def steps(self) -> list[Step]:
        training = [] if self.training is None else [self.training]
        return [*training, *(measured.step for measured in self.measurements)]


def preparations(config: StudyConfig) -> list[Step]:
    """The steps that come before all cells; one may use the folders of those before it.

    Raises:
        ConfigError: A brace that names nothing.
    """
    places = dict(config.places)
    steps = []
    for preparation in config.preparations:
        folder = preparation_folder(config, preparation)
        overrides = _filled(preparation.overrides, {**places, "output": str(folder)})
        steps.append(Step(folder, preparation.script, preparation.config, overrides))
        places[preparation.name] = str(folder)
    return steps


def preparation_folder(config: StudyConfig, preparation: PreparationConfig) -> Path:
    """Where a preparation writes."""
    return Path(config.output) / PREPARATIONS / preparation.name


def cells(config: StudyConfig) -> list[Cell]:
    """The grid, seed by seed, so that a study that is stopped holds whole seeds.

    Raises:
        ConfigError: A brace that names nothing.
    """
    return [
        _cell(config, method, arm, seed)
        for seed in config.seeds
        for method in config.methods
        for arm in config.chosen_arms()
        if not arm.methods or method.name in arm.methods
    ]


def _cell(config: StudyConfig, method: MethodConfig, arm: ArmConfig, seed: int) -> Cell:
    folder = Path(config.output) / method.name / arm.name / f"seed{seed}"
    run = folder / TRAINING
    prepared = {p.name: str(preparation_folder(config, p)) for p in config.preparations}
    places = {**config.places, **prepared, "cell": str(folder), "seed": str(seed)}
    split = config.split_of(seed)
    if split is not None:
        places["split"] = str(split)
    training = None
    if arm.trained:
        values = {**method.overrides, **arm.overrides, "run.output": str(run), "run.seed": seed}
        training = Step(run, method.recipe, method.config, _filled(values, places))
    checkpoint = str(run) if arm.trained else ""
    measurements = []
    for measurement in config.measurements:
        if measures(measurement, method, arm):
            target = folder / measurement.name
            given = {"checkpoint": checkpoint, "output": str(target)}
            overrides = _filled({**measurement.overrides, **given}, places)
            step = Step(target, measurement.script, measurement.config, overrides)
            measurements.append(Measured(measurement, step))
    return Cell(method.name, arm.name, seed, training, tuple(measurements))


def _filled(overrides: Mapping[str, Any], places: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Keys and values as the command line takes them, with folders in the place of their names."""
    return tuple((key, _word(_replaced(value, places))) for key, value in overrides.items())


def _replaced(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_replaced(item, places) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, places) for key, item in value.items()}
    if not isinstance(value, str):
        return value

    def place(found: re.Match[str]) -> str:
        name = found.group(1)
        if name == "fold":  # the evaluators', which replace it by the fold they measure
            return found.group(0)
        if name not in places:
            raise ConfigError(
                f"{value!r} names a place that is not known{nearest(name, [*places])}"
            )
        return places[name]

    return _BRACES.sub(place, value)


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    # A scalar is a document of its own, which YAML ends with three dots.
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n...")[0].strip()
