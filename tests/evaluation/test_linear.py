"""The linear probe on real clips: its result, its cache, a missing video."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ndavid.data.config import DataConfig
from ndavid.data.manifest import read_manifest
from ndavid.errors import DataError
from ndavid.evaluation.linear import LinearConfig, run
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.protocol import load_result
from ndavid.evaluation.views import ViewsConfig


def config(coloured: Path, output: Path) -> LinearConfig:
    return LinearConfig(
        data=DataConfig(root=str(coloured)),
        output=str(output),
        model=ClassifierConfig(encoder="resnet2d3d10_half", head="pool"),
        views=ViewsConfig(
            sampling="dense", num_frames=4, frame_stride=2, size=32, clips=2, crops=1, num_workers=0
        ),
        holdout=0.25,
    )


def test_the_evaluator_on_real_clips(coloured: Path, tmp_path: Path) -> None:
    result = run(config(coloured, tmp_path))
    assert load_result(tmp_path / "result.json") == result
    assert result.task == "linear_probe"
    # Colour is linear in pooled features, even of a random encoder.
    assert result.metrics["top1"].value == 1.0
    assert result.metrics["top1"].n == 6
    assert result.metrics["top1"].low < 0.7, "six videos say little, and the interval says so"
    assert "3 videos of held-out train groups" in result.protocol.selection
    assert result.details["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]


def test_a_second_run_reads_the_cache_and_says_the_same(coloured: Path, tmp_path: Path) -> None:
    first = run(config(coloured, tmp_path))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    again = run(config(coloured, tmp_path))
    assert len(files) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == files
    assert again.metrics == first.metrics


def test_other_weights_or_views_do_not_meet_that_cache(coloured: Path, tmp_path: Path) -> None:
    run(config(coloured, tmp_path))
    other_seed, other_views = config(coloured, tmp_path), config(coloured, tmp_path)
    other_seed.seed = 1
    other_views.views.clips = 1
    run(other_seed)
    run(other_views)
    assert len(list((tmp_path / "features").iterdir())) == 6


def test_a_damaged_cache_is_computed_again(coloured: Path, tmp_path: Path) -> None:
    first = run(config(coloured, tmp_path))
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert run(config(coloured, tmp_path)).metrics == first.metrics


def test_a_missing_video_is_one_clear_error_from_a_worker_too(
    coloured: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.csv"
    text = (coloured / "manifest.csv").read_text()
    gone = "Red/v_Red_g03_c01.mp4"
    assert gone in text
    manifest.write_text(f"# root: {coloured}\n" + text.replace(gone, "Red/gone.mp4"))
    settings = config(manifest, tmp_path / "out")
    settings.views.num_workers = 1
    with pytest.raises(
        DataError, match=r"gone\.mp4: cannot be evaluated: .*no such file"
    ) as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    settings.views.on_bad = "skip"
    result = run(settings)
    assert [Path(path).name for path, _ in result.details["bad"]] == ["gone.mp4"]


def test_without_a_second_group_a_single_decay_is_the_way_on(
    coloured: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(coloured)
    records = tuple(dataclasses.replace(r, group=f"{r.label}") for r in manifest.records)
    dataclasses.replace(manifest, records=records).write(tmp_path / "manifest.csv")
    settings = config(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"has one train group .* or give a single weight decay"):
        run(settings)
    settings.weight_decays = [0.01, 0.01]  # one value, however often it is written
    result = run(settings)
    assert result.protocol.selection == "weight decay 0.01, as given"
    assert result.metrics["top1"].value == 1.0
    assert result.details["sweep"] == {}


def test_a_split_without_videos_is_named_before_anything_is_computed(
    coloured: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(coloured)
    records = tuple(dataclasses.replace(r, splits=("train",)) for r in manifest.records)
    dataclasses.replace(manifest, records=records).write(tmp_path / "manifest.csv")
    with pytest.raises(DataError, match=r"test split of fold 1 holds no videos: .*--test-fraction"):
        run(config(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out" / "features").exists()
