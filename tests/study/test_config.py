"""What cannot be a study is refused before anything runs, with the name that was meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ndavid.config import from_yaml, parse, to_yaml
from ndavid.errors import ConfigError
from ndavid.study.config import MethodConfig, StudyConfig

STUDY = """
places: {clips: data/clips}
seeds: [5, 6, 7, 8]
methods:
  - name: dpc
    recipe: recipes/pretrain_dpc.py
    overrides: {run.precision: "no", data.fold: "[1]", optim.lr: 1e-3, run.epochs: 2}
arms:
  - name: none
  - name: jigsaw
    overrides: {nda.spec: "jigsaw:grid=2"}
    methods: [dpc]
measurements:
  - name: knn
    script: eval/knn.py
    overrides: {seed: "{seed}", folds: "[{seed}]"}
"""


def changed(old: str, new: str) -> str:
    assert STUDY.count(old) == 1
    return STUDY.replace(old, new)


def test_a_study_is_read_and_its_values_stay_as_they_are_written() -> None:
    study = from_yaml(StudyConfig, STUDY)
    assert isinstance(study.methods[0], MethodConfig)
    assert study.methods[0].overrides == {
        "run.precision": "no",
        "data.fold": "[1]",
        "optim.lr": "1e-3",  # text to YAML, a number to the script that gets it
        "run.epochs": 2,
    }
    assert study.measurements[0].overrides == {"seed": "{seed}", "folds": "[{seed}]"}
    assert from_yaml(StudyConfig, to_yaml(study)) == study


def test_a_place_is_given_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    study = parse(StudyConfig, [f"--config={file}", "--places.clips", "elsewhere"])
    assert study.places == {"clips": "elsewhere"}


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: dpc", "name: DPC", "'DPC' cannot be a name"),
        ("name: dpc", "name: preparations", "'preparations' has a meaning"),
        ("name: knn", "name: training", "'training' has a meaning"),
        ("clips: data/clips", "seed: data/clips", "'seed' has a meaning"),
        ("name: jigsaw", "name: none", "'none' is given twice"),
        ("methods: [dpc]", "methods: [dcp]", "did you mean 'dpc'"),
        ("methods: [dpc]", "trained: false", "arm jigsaw: overrides"),
        ("script: eval/knn.py", "arms: [jigsow]", "did you mean 'jigsaw'"),
        ("script: eval/knn.py", "scrpt: eval/knn.py", "did you mean 'measurements[0].script'"),
        ("seeds: [5, 6, 7, 8]", "seeds: [5, 5]", "each seed once"),
        ("seeds: [5, 6, 7, 8]", "seeds: []", "each seed once"),
        ("seeds: [5, 6, 7, 8]", "baseline: non", "did you mean 'none'"),
        ("seeds: [5, 6, 7, 8]", "threads: 0", "threads must be at least 1"),
        ("seeds: [5, 6, 7, 8]", "resamples: 10", "resamples must be at least 100"),
        ("seeds: [5, 6, 7, 8]", "splits: [1, 2]", "no override names {split}"),
        ("[{seed}]", "[{split}]", "the study has no `splits`"),
        ("{nda.spec: ", "{x: '{split}', nda.spec: ", "the study has no `splits`"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_yaml(StudyConfig, changed(old, new))
    assert named in str(error.value)


@pytest.mark.parametrize("key", ["methods", "arms", "measurements"])
def test_a_study_needs_something_to_do(key: str) -> None:
    study = from_yaml(StudyConfig, STUDY)
    with pytest.raises(ConfigError, match=f"at least one entry under {key}"):
        dataclasses.replace(study, **{key: []})


SPLIT = STUDY.replace("[{seed}]", "[{split}]").replace('"[1]"', '"{split}"')


def test_splits_are_dealt_to_the_seeds_in_turn() -> None:
    study = from_yaml(StudyConfig, SPLIT + "splits: [3, 1, 2]\n")
    assert [study.split_of(seed) for seed in study.seeds] == [3, 1, 2, 3]
    assert from_yaml(StudyConfig, STUDY).split_of(5) is None
    with pytest.raises(ConfigError, match="counted from 1"):
        from_yaml(StudyConfig, SPLIT + "splits: [0, 1]\n")


FIXED = "    fixed_split: true\n"


@pytest.mark.parametrize(
    ("trained", "tested", "fixed", "named"),
    [
        (True, True, "", None),
        (True, False, FIXED, None),
        (True, False, "", "no override of measurement knn names it"),
        (False, True, "", "no override of method dpc with none names it"),
        (True, True, FIXED, "`fixed_split` says that they do not"),
    ],
)
def test_a_split_is_trained_and_tested_or_neither(
    trained: bool, tested: bool, fixed: str, named: str | None
) -> None:
    text = SPLIT if trained else SPLIT.replace('data.fold: "{split}"', 'data.fold: "[1]"')
    text = text if tested else text.replace("[{split}]", "[2]")
    text += f"{fixed}splits: [1, 2]\n"
    if named is None:
        assert from_yaml(StudyConfig, text).splits == [1, 2]
        return
    with pytest.raises(ConfigError) as error:
        from_yaml(StudyConfig, text)
    assert named in str(error.value)


def test_random_weights_may_be_tested_on_any_split() -> None:
    text = SPLIT.replace('data.fold: "{split}", ', "").replace(
        "name: none", "name: none\n    trained: false"
    )
    text = text.replace("name: knn", "name: knn\n    arms: [none]") + "splits: [1, 2]\n"
    assert from_yaml(StudyConfig, text).splits == [1, 2]


def test_every_method_has_the_baseline() -> None:
    other = "  - name: moco\n    recipe: a.py\narms:"
    text = STUDY.replace("arms:", other).replace("name: none", "name: none\n    methods: [moco]")
    with pytest.raises(ConfigError, match="method dpc: no arm 'none', the baseline"):
        from_yaml(StudyConfig, text)
    assert from_yaml(StudyConfig, STUDY.replace("arms:", other)).baseline == "none"
