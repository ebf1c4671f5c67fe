"""A study as a user starts it: real clips, real recipes and evaluators, a page at the end."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from scripts import ROOT
from scripts import load as load_script

from ndavid.config import from_yaml, parse
from ndavid.data.annotations import parse_ucf101
from ndavid.data.preparation import prepare
from ndavid.data.synthetic import write_motion_clips
from ndavid.errors import ConfigError
from ndavid.study.config import StudyConfig
from ndavid.study.runner import run_steps

SCRIPT = ROOT / "recipes" / "study.py"
STUDY = """
title: Tiny
seeds: [0, 1]
splits: [1, 2]
diagnostics: [loss, nda_outrank]
resamples: 500
jobs: 1
methods:
  - name: dpc
    recipe: recipes/pretrain_dpc.py
    config: recipes/configs/dpc/demo_r10.yaml
    overrides: &data
      data.root: "{clips}"
      data.fold: "{split}"
      data.frame_stride: 1
      augment.size: 32
      model.encoder: resnet2d3d10_half
      model.num_blocks: 3
      model.block_len: 3
      model.pred_steps: 1
      run.batch_size: 4
      run.epochs: 1
      run.max_steps: 2
      run.log_every: 1
      run.num_workers: 0
arms:
  - name: none
  - name: frame_shuffle
    overrides: {nda.spec: frame_shuffle}
  - name: random
    trained: false
measurements:
  - name: retrieval
    script: eval/retrieval.py
    config: eval/configs/demo_retrieval.yaml
    overrides:
      data.root: "{clips}"
      model.encoder: resnet2d3d10_half
      folds: "[{split}]"
      seed: "{seed}"
      views.num_blocks: 3
      views.block_len: 3
      views.frame_stride: 1
      views.size: 32
      views.clips: 1
      views.num_workers: 0
    metrics: ["R@1", "R@5"]
  - name: unwell
    script: eval/retrieval.py
    config: eval/configs/demo_retrieval.yaml
    overrides: {data.root: "{clips}", ks: [0]}
    arms: [random]
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The study after its first start: its config, its words, and what the process said."""
    folder = tmp_path_factory.mktemp("study")
    clips = write_motion_clips(folder / "clips", num_clips=28, size=32)
    prepare(parse_ucf101(clips), clips, folder / "prepared", num_workers=0, progress=False)
    (folder / "study.yaml").write_text(STUDY)
    words = [
        f"--config={folder / 'study.yaml'}",
        f"--places.clips={folder / 'prepared'}",
        f"--output={folder / 'out'}",
    ]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    return {"words": words, "output": folder / "out", "ended": ended, "file": folder / "study.yaml"}


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """From where studies are run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # set back: a study sets it


def test_a_step_that_fails_is_told_and_the_others_finish(started: dict[str, Any]) -> None:
    ended, output = started["ended"], started["output"]
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    failed = [line for line in ended.stderr.splitlines() if line.startswith("failed:")]
    why = "exit code 2: error: ks must be at least 1, not [0]"
    assert failed == [f"failed: {output}/dpc/random/seed{seed}/unwell: {why}" for seed in (0, 1)]
    assert ended.stdout.splitlines()[0] == "12 steps, 0 done before; 1 at once"
    assert ended.stdout.splitlines()[-1] == str(output / "tables.md")
    assert len([*output.rglob("step.json")]) == 10


def test_what_is_written(started: dict[str, Any]) -> None:
    output = started["output"]
    with (output / "results.csv").open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    measured = [row for row in rows if row["measurement"] == "retrieval"]
    assert {(r["arm"], r["seed"], r["metric"]) for r in measured} == {
        (arm, seed, metric)
        for arm in ("none", "frame_shuffle", "random")
        for seed in ("0", "1")
        for metric in ("R@1", "R@5")
    }
    # Split 1 holds out other clips than split 2.
    assert {(row["seed"], row["n"]) for row in measured} == {("0", "18"), ("1", "10")}
    assert {row["metric"] for row in rows if row["measurement"] == "training"} == {
        *("loss_first", "loss_last", "nda_outrank_first", "nda_outrank_last")
    }
    content = json.loads((output / "differences.json").read_text())
    assert content["config"]["measurements"][0]["overrides"]["folds"] == "[{split}]"
    for difference in content["differences"]:
        assert (difference["design"], difference["items"]) == ("nested", 28)
        assert difference["sources"] < 28
        assert difference["seeds"] == [0, 1]
        low, high = difference["both"]["low"], difference["both"]["high"]
        assert low <= difference["value"] <= high
        own = [
            {row["arm"]: float(row["value"]) for row in measured
             if (row["seed"], row["metric"]) == (seed, difference["metric"])}
            for seed in ("0", "1")
        ]  # fmt: skip
        by_seed = [values[difference["arm"]] - values["none"] for values in own]
        assert difference["by_seed_values"] == pytest.approx(by_seed, abs=1e-5)
    assert len(content["differences"]) == 4
    page = (output / "tables.md").read_text()
    assert "### dpc, retrieval: R@1" in page and "(nested)" in page
    assert "**Missing: 2 steps** (dpc/random/seed0/unwell, dpc/random/seed1/unwell)." in page
    assert (output / "differences_dpc.png").read_bytes().startswith(b"\x89PNG")


def test_trainings_saw_their_split_and_retrieval_was_of_their_weights(
    started: dict[str, Any],
) -> None:
    digests = set()
    for seed, arm in ((0, "none"), (1, "none"), (0, "frame_shuffle"), (1, "frame_shuffle")):
        cell = started["output"] / "dpc" / arm / f"seed{seed}"
        assert f"fold: {seed + 1}\n" in (cell / "training" / "config.yaml").read_text()
        result = json.loads((cell / "retrieval" / "result.json").read_text())
        assert result["protocol"]["folds"] == [seed + 1]
        assert str(cell / "training") in result["checkpoint"]["path"]
        digests.add(result["checkpoint"]["sha256"])
    assert len(digests) == 4


def test_a_second_start_repeats_nothing(started: dict[str, Any], at_root: None) -> None:
    whole, _, _ = STUDY.partition("  - name: unwell")
    (started["file"].parent / "mended.yaml").write_text(whole)
    words = [f"--config={started['file'].parent / 'mended.yaml'}", *started["words"][1:]]
    config = parse(StudyConfig, words)
    before = {p: p.stat().st_mtime_ns for p in started["output"].rglob("*") if p.is_file()}
    progress = run_steps(config)
    assert (progress.done, progress.total, progress.failures) == (10, 10, [])
    after = {p: p.stat().st_mtime_ns for p in started["output"].rglob("*") if p.is_file()}
    assert after == before


def test_the_report_is_written_anew_without_running_anything(
    started: dict[str, Any], at_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = started["output"] / "tables.md"
    before = {p: p.stat().st_mtime_ns for p in started["output"].rglob("*/*") if p.is_file()}
    page.unlink()
    monkeypatch.setattr("sys.argv", ["study.py", *started["words"], "--report_only", "true"])
    load_script(SCRIPT).main()
    assert "### dpc, retrieval: R@1" in page.read_text()
    after = {p: p.stat().st_mtime_ns for p in started["output"].rglob("*/*") if p.is_file()}
    assert after == before


def test_another_override_is_not_mixed_in(started: dict[str, Any], at_root: None) -> None:
    config = from_yaml(StudyConfig, STUDY.replace("run.max_steps: 2", "run.max_steps: 3"))
    config.output = str(started["output"])
    config.places = {"clips": str(started["output"].parent / "prepared")}
    with pytest.raises(ConfigError) as error:
        run_steps(config)
    assert "dpc/none/seed0/training was made with another command" in str(error.value)
    assert "--run.max_steps '2', now '3'" in str(error.value)
