"""The other parts, small: what they write is what run.py reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import decoding
import forked
import gpu
import loader
import pytest
import torch
from made_up_video import FRAMES, record_of, write_prepared, write_scene

from ndavid.data.decode import probe
from ndavid.data.manifest import read_manifest
from ndavid.data.sampling import DpcBlocks

BENCHMARKS = Path(decoding.__file__).parent


def run_script(name: str, output: Path, *arguments: str) -> dict[str, Any]:
    """A script's report, checked against what run.py says of it."""
    words = ["--output", str(output), *arguments]
    done = forked.call(BENCHMARKS / f"{name}.py", *words, cwd=BENCHMARKS.parent, timeout=550)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert report["ratios"] and report["machine"]["cores"]
    for row in report["ratios"]:
        assert row["name"] and row["ratio"] > 0
        if "limit" in row:
            below = row["ratio"] <= row["limit"]
            assert row["ok"] == (not below if row["at_least"] else below)
    return report


@pytest.mark.slow
def test_operations(tmp_path: Path) -> None:
    report = run_script("nda_ops", tmp_path / "ops.json", "--rounds", "2", "--threads", "1")
    names = {row["op"] for row in report["rows"]}
    assert {"clone", "jigsaw", "reverse"} <= names
    assert not any("clone /" in row["name"] for row in report["ratios"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("moco_step", ["--rounds", "2"]),
        ("gan_step", ["--rounds", "1", "--batch", "8", "--threads", "1"]),
        ("loading", ["--rounds", "2"]),
        ("growth", ["--rounds", "1", "--planned", "resnet2d3d10"]),
        ("loader", ["--rounds", "1", "--clips", "12", "--images", "256"]),
        ("decoding", ["--rounds", "1"]),
    ],
)
def test_slower_parts(name: str, arguments: list[str], tmp_path: Path) -> None:
    assert run_script(name, tmp_path / "found.json", *arguments)["ratios"]


def test_made_up_clips_are_a_prepared_set(tmp_path: Path) -> None:
    manifest = read_manifest(write_prepared(tmp_path, 3, 64))
    assert [r.num_frames for r in manifest.select("train")] == [FRAMES] * 3
    assert all((manifest.root / r.path).exists() for r in manifest.records)
    info = probe(tmp_path / "clip_000.mp4")
    assert (info.height, info.num_frames) == (64, FRAMES)
    assert record_of(tmp_path / "clip_001.mp4", DpcBlocks()).num_frames == FRAMES
    with pytest.raises(SystemExit, match="120 frames, 240 are needed"):
        record_of(tmp_path / "clip_001.mp4", DpcBlocks(frame_stride=6))


def test_decoders_read_both_sizes(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_scene(clip, 12)
    found = decoding.sources(clip, tmp_path)
    kinds = [decoding.ORIGINAL, decoding.PREPARED]
    assert {("pyav", kind) for kind in kinds} | {("frames", kind) for kind in kinds} <= set(found)
    for (backend, _), path in found.items():
        decoding.reading(path, backend, 12, torch.tensor([0, 6, 11]))()


def test_decoders_are_set_against_pyav_and_their_original() -> None:
    times = {
        ("pyav", "original"): [4.0, 4.0],
        ("decord", "original"): [8.0, 8.0],
        ("pyav", "prepared"): [1.0, 1.0],
        ("torchcodec", "prepared"): [3.0, 3.0],
    }
    ratios = {row["name"]: row["ratio"] for row in decoding.ratios_of(times)}
    assert ratios == {
        "decord / pyav, original": 2.0,
        "pyav: prepared / original": 0.25,
        "torchcodec / pyav, prepared": 3.0,
    }


def test_loaders_read_whole_epochs() -> None:
    taken = loader.measure(loader.images(64), 16, rounds=1)
    assert list(taken) == [0, 1, 2]
    assert all(each.wall > 0 and each.processor > 0 for epochs in taken.values() for each in epochs)
    rows = loader.rows_of("images", 64, taken)
    assert rows[0]["samples_per_s"] == pytest.approx(64 / taken[0][0].wall)
    first, second = loader.ratios_of("images", rows, taken)
    assert first["ratio"] == pytest.approx(taken[0][0].wall / taken[1][0].wall)
    assert "2 workers / 1 worker" in second["name"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_without_a_gpu_the_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(output)])
    gpu.main()
    (row,) = json.loads(output.read_text())["ratios"]
    assert row["ratio"] is None and row["name"] == "no GPU here"


@pytest.mark.slow
def test_the_gpus_part_runs_on_a_cpu(tmp_path: Path) -> None:
    small = ["--batch", "2", "--size", "32", "--rounds", "2", "--steps", "2", "--workers", "1"]
    small += ["--encoder", "resnet2d3d10", "--device", "cpu", "--peak", "1"]
    report = run_script("gpu", tmp_path / "gpu.json", *small)
    rows = {row["name"]: row for row in report["ratios"]}
    assert rows["waiting for clips / training"]["limit"] == gpu.WAITING_LIMIT
    found = report["found"]
    shares = [cost["share"] for cost in found["largest_costs"]]
    assert len(shares) >= 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
    assert found["fed"]["samples_per_s"] > 0 and found["fed"]["loader_samples_per_s"] > 0
    assert rows["step / peak bfloat16"]["ratio"] == pytest.approx(found["tflops"])
    assert rows["NDA step / plain step"]["ratio"] > 1
    assert rows["kernels / step"]["ratio"] > 0


def test_a_slow_loader_is_said_to_bound_the_run() -> None:
    speed = {"samples_per_s": 50.0, "seconds_data": 0.9, "seconds_compute": 0.1}
    speed["loader_samples_per_s"] = 52.0
    waiting, bound = gpu.rows_of_feeding(speed, ready=500.0, workers=10)
    assert waiting["ratio"] == pytest.approx(0.9) and not waiting["ok"]
    assert bound["ratio"] == pytest.approx(50 / 52) and not bound["ok"]
    assert "5.2 a worker" in bound["note"] and "bound the run" in bound["note"]
    # What was made ahead hides it for a while; the loader alone tells.
    rested = speed | {"samples_per_s": 490.0, "seconds_data": 0.0}
    waiting, bound = gpu.rows_of_feeding(rested, ready=500.0, workers=10)
    assert waiting["ok"] and not bound["ok"]
    fast = rested | {"loader_samples_per_s": 900.0}
    waiting, bound = gpu.rows_of_feeding(fast, ready=500.0, workers=10)
    assert waiting["ok"] and bound["ok"] and "bound" not in bound["note"]


def test_peaks_are_found_by_name() -> None:
    assert gpu.peak_of("NVIDIA H100 80GB HBM3") == 989
    assert gpu.peak_of("NVIDIA H100 PCIe") == 756
    assert gpu.peak_of("NVIDIA L40S") == 362
    assert gpu.peak_of("NVIDIA L4") == 121
    assert gpu.peak_of("something new") is None
