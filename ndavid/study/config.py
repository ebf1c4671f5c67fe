"""What a study is: methods x arms x seeds, and what is measured of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ndavid.config import nearest
from ndavid.errors import ConfigError

TRAINING = "training"
"""The folder of a cell's training, and what its diagnostics are called where measurements are."""

PREPARATIONS = "preparations"
"""The folder of all preparations, beside those of the methods."""

Override = str | bool | int | float | list | dict | None
"""A value of a script's key; text first, so that it stays as written, brackets and all."""

# What braces stand for beside places and preparations; the evaluators fill in {fold} themselves.
_BRACES = ("cell", "fold", "output", "seed", "split")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(kw_only=True)
class PreparationConfig:
    """A step that others need, run once before them; ``{its name}`` stands for its folder."""

    name: str = ""
    """what others call it by"""
    script: str = ""
    """the script, from the repository's root"""
    config: str = ""
    """its YAML; empty: none"""
    overrides: dict[str, Override] = field(default_factory=dict)
    """dotted keys and values; {place} and {output}, its own, stand for folders"""


@dataclass(kw_only=True)
class MethodConfig:
    """A way of training."""

    name: str = ""
    """how the tables call it"""
    recipe: str = ""
    """the script that trains, from the repository's root"""
    config: str = ""
    """its YAML, without negatives"""
    overrides: dict[str, Override] = field(default_factory=dict)
    """dotted keys and values for every arm; {place} stands for a folder, {seed} and {split} for
    those of the training"""


@dataclass(kw_only=True)
class ArmConfig:
    """One variant of the methods, such as one kind of negatives."""

    name: str = ""
    """how the tables call it"""
    overrides: dict[str, Override] = field(default_factory=dict)
    """dotted keys and values beside the method's own, with the same braces"""
    methods: list[str] = field(default_factory=list)
    """methods it is run with; empty: all"""
    trained: bool = True
    """false: random weights are measured, a floor for the others"""


@dataclass(kw_only=True)
class MeasurementConfig:
    """One evaluation of each training."""

    name: str = ""
    """how the tables call it"""
    script: str = ""
    """the evaluator, from the repository's root"""
    config: str = ""
    """its YAML"""
    overrides: dict[str, Override] = field(default_factory=dict)
    """dotted keys and values; {place} stands for a folder, {cell} for the cell's own, {seed} and
    {split} for those of the training"""
    methods: list[str] = field(default_factory=list)
    """methods whose trainings it measures; empty: all"""
    arms: list[str] = field(default_factory=list)
    """arms that it measures; empty: all"""
    metrics: list[str] = field(default_factory=list)
    """metrics that the tables show, without what follows a space in them; empty: all"""
    lower_is_better: list[str] = field(default_factory=list)
    """those metrics that are distances or errors; tables and figures say so"""
    fixed_split: bool = False
    """true: in a study with `splits` it tests every seed on the same split on purpose, one that is
    kept out of all trainings"""


@dataclass(kw_only=True)
class StudyConfig:
    """A grid of trainings, what is measured of each, and how it is run."""

    title: str = ""
    """heading of the report"""
    output: str = "runs/study"
    """folder of everything; the same command goes on where it stopped"""
    places: dict[str, str] = field(default_factory=dict)
    """folders that the rest names in braces: --places.jhmdb21 data/jhmdb21"""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """seeds of the trainings; the first is run for every arm before the second begins"""
    splits: list[int] = field(default_factory=list)
    """official splits dealt to the seeds in turn, empty: none; {split} stands for a seed's"""
    baseline: str = "none"
    """the arm that others are compared with"""
    only_arms: list[str] = field(default_factory=list)
    """arms that are run and reported, the baseline always among them; empty: all. With other
    `seeds` and another `output` it repeats a part of a study"""
    jobs: int = 0
    """steps at once, dealt to the GPUs in turn; 0: one for each GPU, or as many as fit the CPU"""
    threads: int = 1
    """threads of a step on the CPU"""
    dry_run: bool = False
    """print each step's command and whether it is done, and run nothing"""
    report_only: bool = False
    """write the report of what is there, and run nothing; beside a running study too"""
    diagnostics: list[str] = field(default_factory=list)
    """metrics of training whose first and last values are tabled, such as nda_outrank"""
    resamples: int = 10000
    """of the bootstrap"""
    preparations: list[PreparationConfig] = field(default_factory=list)
    """run once, before everything"""
    methods: list[MethodConfig] = field(default_factory=list)
    """ways of training"""
    arms: list[ArmConfig] = field(default_factory=list)
    """variants of each"""
    measurements: list[MeasurementConfig] = field(default_factory=list)
    """evaluations of each training, in this order"""

    def __post_init__(self) -> None:
        prepared = _check_names("preparations", [p.name for p in self.preparations], least=0)
        methods = _check_names("methods", [m.name for m in self.methods], taken=[PREPARATIONS])
        arms = _check_names("arms", [a.name for a in self.arms])
        _check_names("measurements", [m.name for m in self.measurements], taken=[TRAINING])
        # The others are folders beside each other; these share the braces.
        _check_names("places and preparations", [*self.places, *prepared], least=0, taken=_BRACES)
        _check_chosen("baseline", [self.baseline], arms)
        _check_chosen("only_arms", self.only_arms, arms)
        for arm in self.arms:
            _check_chosen(f"methods of arm {arm.name}", arm.methods, methods)
            if arm.overrides and not arm.trained:
                raise ConfigError(f"arm {arm.name}: overrides of a training that there is not")
        for measurement in self.measurements:
            where = f"of measurement {measurement.name}"
            _check_chosen(f"methods {where}", measurement.methods, methods)
            _check_chosen(f"arms {where}", measurement.arms, arms)
        self._check_numbers()
        self._check_baseline()
        self._check_splits()

    def _check_numbers(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must name each seed once, not {self.seeds}")
        for name, least in (("jobs", 0), ("threads", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if min(self.splits, default=1) < 1:
            raise ConfigError(f"splits are counted from 1; not {self.splits}")

    def _check_baseline(self) -> None:
        (baseline,) = (arm for arm in self.arms if arm.name == self.baseline)
        without = [
            m.name for m in self.methods if baseline.methods and m.name not in baseline.methods
        ]
        if without:
            raise ConfigError(
                f"method {without[0]}: no arm {self.baseline!r}, the baseline, so that its arms "
                "would be compared with nothing; add it to the `methods` of that arm"
            )

    def _check_splits(self) -> None:
        """What is trained on a seed's split is tested on it, and the other way round."""
        overrides = [one.overrides for one in self.methods]
        overrides += [one.overrides for one in self.arms]
        overrides += [one.overrides for one in self.measurements]
        named = _names_split(*overrides)
        if named and not self.splits:
            raise ConfigError("an override names {split}, but the study has no `splits`")
        # Every seed would be tested on the configs' own split, whatever the study promises.
        if self.splits and not named:
            raise ConfigError(f"splits are {self.splits}, but no override names {{split}}")
        for measurement in self.measurements:
            if measurement.fixed_split and _names_split(measurement.overrides):
                raise ConfigError(
                    f"measurement {measurement.name}: its overrides name {{split}}, and "
                    "`fixed_split` says that they do not"
                )
            for method in self.methods:
                for arm in self.arms:
                    if self.splits and arm.trained and measures(measurement, method, arm):
                        _check_split(measurement, method, arm)

    def chosen_arms(self) -> list[ArmConfig]:
        """Returns the arms that are run, in the order of ``arms``."""
        chosen = {self.baseline, *self.only_arms}
        return [arm for arm in self.arms if not self.only_arms or arm.name in chosen]

    def split_of(self, seed: int) -> int | None:
        """The official split dealt to one of ``seeds``; None in a study without splits."""
        if not self.splits:
            return None
        return self.splits[self.seeds.index(seed) % len(self.splits)]


def measures(measurement: MeasurementConfig, method: MethodConfig, arm: ArmConfig) -> bool:
    """Whether a measurement is of this method's training with this arm, which there must be."""
    return (
        (not arm.methods or method.name in arm.methods)
        and (not measurement.methods or method.name in measurement.methods)
        and (not measurement.arms or arm.name in measurement.arms)
    )


def _names_split(*overrides: dict[str, Override]) -> bool:
    return "{split}" in str(overrides)


def _check_split(measurement: MeasurementConfig, method: MethodConfig, arm: ArmConfig) -> None:
    trained, tested = f"method {method.name} with {arm.name}", f"measurement {measurement.name}"
    trained_by_split = _names_split(method.overrides, arm.overrides)
    tested_by_split = _names_split(measurement.overrides)
    if trained_by_split and not tested_by_split and not measurement.fixed_split:
        raise ConfigError(
            f"{trained} is trained on {{split}}, but no override of {tested} names it: every seed "
            "would be tested on the config's own split, which some were trained on; name {split}, "
            "or say `fixed_split: true` where that split is kept out of all trainings"
        )
    if tested_by_split and not trained_by_split:
        raise ConfigError(
            f"{tested} tests {{split}}, but no override of {trained} names it: every seed would be "
            "trained on the config's own split, which holds what others are tested on"
        )


def _check_names(
    what: str, names: Sequence[str], *, least: int = 1, taken: Sequence[str] = ()
) -> list[str]:
    """Names become folders, so they are short and plain; none is given twice or has a meaning."""
    if len(names) < least:
        raise ConfigError(f"a study needs at least one entry under {what}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{what}: {name!r} cannot be a name: lower-case letters, digits, '_', '-' and '.'"
            )
        if names.count(name) > 1:
            raise ConfigError(f"{what}: {name!r} is given twice")
        if name in taken:
            raise ConfigError(f"{what}: {name!r} has a meaning of its own; take another name")
    return list(names)


def _check_chosen(what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    for name in chosen:
        if name not in known:
            raise ConfigError(f"{what}: no {name!r}{nearest(name, known)}")
