"""The split of a step: real loop, real files, and parts that add up to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import training_step
from made_up_video import write_prepared
from spans import REST, Spans

from ndavid.engine import loop

ENCODER = "resnet2d3d10_half"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_prepared(tmp_path_factory.mktemp("clips"), 8, 128))


@pytest.mark.parametrize("name", ["dpc", pytest.param("moco", marks=pytest.mark.slow)])
def test_every_part_of_a_step_is_seen(name: str, manifest: str, tmp_path: Path) -> None:
    case = training_step.CASES[name]._replace(batch=2)
    fetch = loop._Loop._fetch
    steps = training_step.train(case, manifest, ENCODER, tmp_path / "run")
    assert loop._Loop._fetch is fetch
    assert len(steps) == training_step.STEPS
    assert set().union(*steps) <= set(training_step.PARTS)
    here = set(training_step.PARTS) - {"gather"}
    assert all(step[part] > 0 for step in steps for part in here)
    rows = training_step.rows_of(name, steps)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    shares = {row["part"]: row["share"] for row in rows}
    assert shares["backward"] > shares["logging"]
    assert shares["gather"] == 0  # one rank
    assert shares[REST] < 0.2


def test_all_names_that_are_watched_exist() -> None:
    spans = Spans(torch.device("cpu"))
    training_step.watch(spans)
    with spans:
        pass
    assert len(spans.steps) == 1


def test_two_ranks_are_set_against_one() -> None:
    rows = [
        {"case": "dpc", "seconds": 1.0},
        {"case": "dpc", "seconds": 2.0},
        {"case": "dpc, 2 ranks", "seconds": 4.5},
        {"case": "moco, 2 ranks", "seconds": 1.0},  # nothing to set it against
    ]
    (row,) = training_step.world_ratios(rows)
    assert row["ratio"] == 1.5


@pytest.mark.slow
def test_two_ranks_exchange_features(manifest: str, tmp_path: Path) -> None:
    steps = training_step.start("moco, 2 ranks", manifest, ENCODER, 1, tmp_path)
    assert all(step["gather"] > 0 for step in steps)
