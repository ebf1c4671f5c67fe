"""The linear probe: features it must separate, a sweep that never sees test, real clips."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.classify import PerItem, accuracies
from ndavid.evaluation.features import Features
from ndavid.evaluation.linear import (
    LinearConfig,
    choose,
    fit_probe,
    log_loss,
    predict,
    run,
    sweep_weight_decay,
)
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.protocol import load_result
from ndavid.evaluation.views import ViewsConfig


def features(videos: int = 90, views: int = 2, noise: float = 0.3, seed: int = 0) -> Features:
    """Three classes around three corners of a 5-dimensional space, on very different scales."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(videos) % 3
    corners = torch.eye(3, 5)[labels].unsqueeze(1)
    values = corners + noise * torch.randn(videos, views, 5, generator=draw)
    values = values * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 7
    return Features(values, labels, tuple(f"{i}.mp4" for i in range(videos)))


@pytest.mark.parametrize("per_view", [False, True])
def test_separable_features_are_separated(per_view: bool) -> None:
    config = LinearConfig(per_view=per_view)
    probe, converged = fit_probe(features(seed=0), 3, 1e-3, config)
    found = predict(probe, features(seed=1), 3, config)
    assert converged
    assert accuracies(found)["top1"].value > 0.9
    assert found.values.shape == (90, 3)
    torch.testing.assert_close(found.values.sum(1), torch.ones(90))


def test_labels_without_relation_to_the_features_stay_at_chance() -> None:
    train, test = features(300, noise=1e4, seed=0), features(300, noise=1e4, seed=1)
    probe, _ = fit_probe(train, 3, 1e-1, LinearConfig())
    metric = accuracies(predict(probe, test, 3, LinearConfig()))["top1"]
    assert abs(metric.value - 1 / 3) < 0.12


def test_a_class_without_training_videos_is_never_predicted() -> None:
    train = features()
    keep = train.labels != 1
    probe, _ = fit_probe(train.subset(keep), 4, 1e-3, LinearConfig())
    found = predict(probe, train, 4, LinearConfig())
    assert found.values[:, [1, 3]].abs().max() == 0


def test_one_class_cannot_be_probed() -> None:
    train = dataclasses.replace(features(), labels=torch.zeros(90, dtype=torch.long))
    with pytest.raises(ConfigError, match="at least two classes"):
        fit_probe(train, 3, 1.0, LinearConfig())


def test_stronger_weight_decay_gives_smaller_weights() -> None:
    sizes = [
        abs(fit_probe(features(), 3, decay, LinearConfig())[0][-1].coef_).sum()
        for decay in (1e-4, 1e-2, 1.0)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_the_sweep_fits_without_the_held_out_videos() -> None:
    train = features(60, noise=0.05)
    held = {f"{i}.mp4" for i in range(45, 60)}
    # The held-out videos carry wrong labels: a fit that saw them would score better on them.
    wrong = train.labels.clone()
    wrong[45:] = (wrong[45:] + 1) % 3
    losses = sweep_weight_decay(dataclasses.replace(train, labels=wrong), held, 3, LinearConfig())
    assert min(losses.values()) > math.log(3), "surer of it than of chance"
    (loss,) = sweep_weight_decay(train, held, 3, LinearConfig(weight_decays=[1e-4])).values()
    assert loss < 0.1


def test_the_log_loss_is_that_of_a_plain_loop() -> None:
    values = torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])
    predictions = PerItem(values, torch.tensor([0, 0, 1]), torch.arange(3))
    expected = -(math.log(0.5) + math.log(0.1) + math.log(1e-12)) / 3
    assert log_loss(predictions) == pytest.approx(expected, rel=1e-6)


def test_of_equal_losses_the_strongest_decay_is_chosen() -> None:
    assert choose({1e-3: 0.7, 1e-2: 0.5, 1e-1: 0.5, 1.0: 0.6}) == 1e-1


def config(coloured: Path, output: Path) -> LinearConfig:
    return LinearConfig(
        manifest=str(coloured),
        output=str(output),
        model=ClassifierConfig(encoder="resnet2d3d10", head="pool"),
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
