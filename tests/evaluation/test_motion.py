"""The motion probe: what holds no order tells none, what holds it does, on real clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ndavid.data.config import DataConfig
from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation import motion, pretrained
from ndavid.evaluation.broken_clips import BrokenCopies, BrokenViews
from ndavid.evaluation.features import Features
from ndavid.evaluation.intervals import wilson
from ndavid.evaluation.linear import LinearConfig
from ndavid.evaluation.linear import run as run_linear
from ndavid.evaluation.motion import MotionConfig, beside_copies, probe_order, run
from ndavid.evaluation.outcomes import OUTCOMES_FILE, read_outcomes
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.protocol import load_result
from ndavid.evaluation.regression import Fitted
from ndavid.evaluation.views import ViewsConfig, views_dataset
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.base import Encoder
from ndavid.models.weights.release import save_pretrained

SIDE = 32
FRAMES = 20
GROUPS = 12
TEST_GROUPS = 4
CLIP = 4


def write_ramp(path: Path, seed: int) -> None:
    """An mp4 of noise that becomes brighter with every frame."""
    draw = np.random.default_rng(seed)
    noise = draw.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(FRAMES):
            picture = noise + np.uint8(20 + 6 * index)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class, a clip a group; the test groups of fold 2 are others than those of fold 1."""
    root = tmp_path_factory.mktemp("ramps")
    records = []
    for group in range(GROUPS):
        path = f"Ramp/v_Ramp_g{group:02d}_c01.mp4"
        write_ramp(root / path, seed=group)
        splits = (
            "test" if group < TEST_GROUPS else "train",
            "test" if group >= GROUPS - TEST_GROUPS else "train",
        )
        records.append(ClipRecord(path, 0, f"g{group:02d}", FRAMES, 25.0, SIDE, SIDE, splits))
    Manifest(root, ("Ramp",), tuple(records)).write(root / "manifest.csv")
    return root


class Unordered(Encoder):
    """Small pictures of the mean frame, which no order of frames can change, not by a bit."""

    feature_dim = 48

    def __init__(self) -> None:
        super().__init__("unordered")

    def forward(self, clips: Tensor) -> Tensor:
        mean = clips.sort(dim=2).values.mean(2)
        return adaptive_avg_pool2d(mean, 4).flatten(1)[:, :, None, None, None]


class Brightness(Encoder):
    """The brightness of each frame, in order."""

    feature_dim = CLIP

    def __init__(self) -> None:
        super().__init__("brightness")

    def forward(self, clips: Tensor) -> Tensor:
        return clips.mean((1, 3, 4))[:, :, None, None, None]


@pytest.fixture
def encode_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Encoder], None]:
    """Lets a network of this file stand in for those that ``build_encoder`` knows."""

    def stand_in(encoder: Encoder) -> None:
        monkeypatch.setattr(pretrained, "build_encoder", lambda name: encoder)

    return stand_in


def config(manifest: Path, output: Path, encoder: str = "any", **changes: Any) -> MotionConfig:
    views = ViewsConfig(
        sampling="dense",
        num_frames=CLIP,
        frame_stride=2,
        short="drop",
        size=SIDE,
        clips=3,
        crops=1,
        num_workers=0,
    )
    settings = MotionConfig(
        data=DataConfig(root=str(manifest)),
        output=str(output),
        model=ClassifierConfig(encoder=encoder, head="pool"),
        views=views,
    )
    return dataclasses.replace(settings, **changes)


def broken_views(folder: Path, *, seed: int = 0, backwards: bool = False) -> BrokenViews:
    """The views of all videos; ``backwards`` lists the videos from the last to the first."""
    manifest = read_manifest(folder)
    records = manifest.records[::-1] if backwards else manifest.records
    dataset, _ = views_dataset(records, manifest, config(folder, folder).views)
    return BrokenViews(dataset, BrokenCopies(tuple(motion.BROKEN.values()), seed))


# ---- the clips ----------------------------------------------------------------------------------


def test_copies_are_the_views_backwards_and_in_another_order(coloured: Path) -> None:
    views = broken_views(coloured)
    for index in range(len(views)):
        sample = views[index]
        true, backwards, shuffled = sample["video"].unflatten(0, (3, -1))
        assert torch.equal(true, views.dataset[index]["video"])
        assert torch.equal(backwards, true.flip(2))
        for clip, copy in zip(true, shuffled, strict=True):
            assert not torch.equal(clip, copy)
            frames = [clip[:, t].numpy().tobytes() for t in range(CLIP)]
            assert sorted(frames) == sorted(copy[:, t].numpy().tobytes() for t in range(CLIP))


def test_a_videos_copies_depend_on_the_seed_and_its_path_alone(coloured: Path) -> None:
    once, again = broken_views(coloured), broken_views(coloured, backwards=True)
    last = len(once) - 1
    torch.manual_seed(5)
    videos = [once[index]["video"] for index in range(len(once))]
    torch.manual_seed(6)
    assert all(
        torch.equal(videos[index], again[last - index]["video"]) for index in range(len(once))
    )
    others = [broken_views(coloured, seed=1)[index]["video"] for index in range(len(once))]
    by_kind = [
        [video.unflatten(0, (3, -1))[kind] for video in videos_of_seed]
        for kind in range(3)
        for videos_of_seed in (videos, others)
    ]
    same = [
        all(map(torch.equal, first, second))
        for first, second in zip(by_kind[::2], by_kind[1::2], strict=True)
    ]
    assert same == [True, True, False]


def test_copies_are_told_apart_by_the_cache() -> None:
    digests = {
        BrokenCopies(specs, seed).digest("views")
        for specs in (("reverse",), ("frame_shuffle",), ("reverse", "frame_shuffle"))
        for seed in (0, 1)
    }
    assert len(digests | {"views"}) == 7


def test_one_frame_has_no_order(ramps: Path, tmp_path: Path) -> None:
    settings = config(ramps, tmp_path, "resnet2d3d10_half")
    settings.views.num_frames = 1
    with pytest.raises(ConfigError, match="1 frame has only one order"):
        run(settings)


# ---- the regressions ----------------------------------------------------------------------------


def test_samples_keep_their_video_and_their_kind() -> None:
    videos, views = 5, 4
    places = torch.cartesian_prod(torch.arange(videos), torch.arange(3), torch.arange(views))
    values = places.float().view(videos, 3 * views, 3)
    features = Features(values, torch.zeros(videos), tuple(map(str, range(videos))))
    for copy in (1, 2):
        samples = beside_copies(features, copy)
        assert samples.values.shape == (videos * 2 * views, 1, 3)
        video, kind, view = samples.values.flatten(1).long().unbind(1)
        assert samples.names == tuple(map(str, video.tolist()))
        assert torch.equal(kind == copy, samples.labels == 1)
        assert torch.equal(kind == 0, samples.labels == 0)
        assert len({*zip(video.tolist(), kind.tolist(), view.tolist(), strict=True)}) == len(video)


def looks(videos: int, seed: int, gap: tuple[float, float]) -> Features:
    """Two views; reversed and shuffled copies lie apart from the true clips by so much."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(videos, 3, 2, 6, generator=draw)
    values[:, 1, :, 0] += gap[0]
    values[:, 2, :, 1] += gap[1]
    names = tuple(f"{seed}/{video}.mp4" for video in range(videos))
    return Features(values.flatten(1, 2), torch.zeros(videos, dtype=torch.long), names)


def test_each_copy_has_a_regression_of_its_own() -> None:
    train, test = looks(80, 0, (0.0, 8.0)), looks(60, 1, (0.0, 8.0))
    held_out = set(train.names[:20])
    shares = [
        float(probe_order(train, test, held_out, copy, MotionConfig()).told.double().mean())
        for copy in (1, 2)
    ]
    assert 0.35 < shares[0] < 0.65
    assert shares[1] > 0.98


def test_the_decay_is_chosen_on_held_out_videos_that_no_fit_has_seen() -> None:
    train = looks(60, 0, (8.0, 0.0))
    # Held-out videos, the most of all, have true and broken swapped: only fits that never saw them
    # get all of them wrong.
    wrong = train.values.unflatten(1, (3, 2)).clone()
    wrong[:45, [0, 1]] = wrong[:45, [1, 0]]
    swapped = dataclasses.replace(train, values=wrong.flatten(1, 2))
    probed = probe_order(swapped, train, set(train.names[:45]), 1, MotionConfig())
    assert min(probed.fitted.sweep.values()) > math.log(2), "surer of it than of chance"
    assert probed.told.double().mean() < 0.02, "the last fit is on all of them"


def test_held_out_groups_are_whole_and_bring_clips_with_their_copies(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted_on: list[tuple[Features, set[str]]] = []
    fit = motion.fit_chosen

    def watched(train: Features, held_out: set[str], *rest: Any) -> Fitted:
        fitted_on.append((train, held_out))
        return fit(train, held_out, *rest)

    monkeypatch.setattr(motion, "fit_chosen", watched)
    run(config(coloured, tmp_path, "resnet2d3d10_half", holdout=0.5))
    group = {record.path: record.group for record in read_manifest(coloured).records}
    assert len(fitted_on) == 2 and fitted_on[0][1] == fitted_on[1][1]
    for train, held_out in fitted_on:
        here = {group[path] for path in held_out}
        there = {group[name] for name in train.names if name not in held_out}
        assert here and there and not here & there
        for name in set(train.names):
            labels = train.labels[[place for place, at in enumerate(train.names) if at == name]]
            assert labels.tolist() == [0, 0, 0, 1, 1, 1]


# ---- from files to numbers ----------------------------------------------------------------------


def test_the_mean_frame_tells_nothing(
    ramps: Path, tmp_path: Path, encode_by: Callable[[Encoder], None], capsys
) -> None:
    """Each clip looks like its copy: exactly half are told, of four videos."""
    encode_by(Unordered())
    result = run(config(ramps, tmp_path))
    printed = capsys.readouterr().out
    for name in ("reversed", "shuffled"):
        metric = result.metrics[name]
        assert metric == wilson(TEST_GROUPS // 2, TEST_GROUPS)
        warning = f"{name}: the regression calls every clip the same as its broken copy"
        assert f"warning: {warning}" in printed
        told = result.details[name]["told"]
        assert told["true"] + told["broken"] == 1.0
    assert {outcome.value for outcome in result.outcomes} == {0.5}


def test_brightness_in_order_tells_which_way_it_rises(
    ramps: Path, tmp_path: Path, encode_by: Callable[[Encoder], None]
) -> None:
    encode_by(Brightness())
    result = run(config(ramps, tmp_path))
    assert result.metrics["reversed"].value == 1.0
    assert result.metrics["shuffled"].value > 0.85


def test_a_network_on_residual_frames_tells_ramps_from_their_copies(
    ramps: Path, tmp_path: Path
) -> None:
    result = run(config(ramps, tmp_path, "residual:resnet2d3d10_half"))
    assert load_result(tmp_path / "result.json") == result
    assert result.task == "motion_probe" and result.chance == 0.5
    assert result.protocol.num_videos == TEST_GROUPS
    assert result.metrics["reversed"].value > 0.95
    assert result.metrics["shuffled"].value > 0.7
    assert "videos of held-out train groups" in result.protocol.selection
    page = (tmp_path / "report.html").read_text()
    assert "Motion probe on" in page and "reversed %" in page and "shuffled %" in page


def test_outcomes_are_the_videos_parts_in_the_metrics(coloured: Path, tmp_path: Path) -> None:
    result = run(config(coloured, tmp_path, "residual:resnet2d3d10_half", folds=[1, 2]))
    assert read_outcomes(tmp_path / OUTCOMES_FILE) == result.outcomes
    manifest = read_manifest(coloured)
    for name in ("reversed", "shuffled"):
        means = []
        for fold in (1, 2):
            rows = [o for o in result.outcomes if (o.metric, o.fold) == (name, fold)]
            assert [row.item for row in rows] == [r.path for r in manifest.select("test", fold)]
            # Three clips and their copies: a share is some of six.
            assert all((6 * row.value) == pytest.approx(round(6 * row.value)) for row in rows)
            means.append(sum(row.value for row in rows) / len(rows))
        assert result.metrics[name].value == pytest.approx(sum(means) / 2)
        assert result.metrics[name].n == 12


def test_the_same_seed_gives_the_same_result_from_one_process_or_a_worker(
    coloured: Path, tmp_path: Path
) -> None:
    first = run(config(coloured, tmp_path / "first", "residual:resnet2d3d10_half"))
    settings = config(coloured, tmp_path / "again", "residual:resnet2d3d10_half")
    settings.views.num_workers = 1
    again = run(settings)
    assert again.outcomes == first.outcomes and again.metrics == first.metrics
    assert again.details == first.details


def test_a_second_run_reads_the_cache_and_says_the_same(coloured: Path, tmp_path: Path) -> None:
    settings = config(coloured, tmp_path, "residual:resnet2d3d10_half")
    first = run(settings)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    again = run(settings)
    assert len(files) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == files
    assert again.metrics == first.metrics and again.outcomes == first.outcomes


def test_a_linear_probe_of_the_same_views_has_a_cache_of_its_own(
    coloured: Path, tmp_path: Path
) -> None:
    settings = config(
        coloured, tmp_path / "motion", "resnet2d3d10_half", cache=str(tmp_path / "cache")
    )
    run(settings)
    shared = {name: getattr(settings, name) for name in ("data", "model", "views", "cache", "seed")}
    linear = run_linear(LinearConfig(output=str(tmp_path / "linear"), **shared))
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert linear.metrics["top1"].value == 1.0


def test_dpcs_encoder_and_gru_are_probed_on_blocks(ramps: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dpc = DPC(DpcConfig(encoder="resnet2d3d10", num_blocks=4, block_len=3, pred_steps=1))
    save_pretrained(dpc, tmp_path / "weights")
    settings = config(ramps, tmp_path / "out", "", checkpoint=str(tmp_path / "weights"))
    settings.model.head = "dpc"
    settings.views = ViewsConfig(
        num_blocks=3, block_len=3, frame_stride=1, size=SIDE, clips=2, crops=1, num_workers=0
    )
    result = run(settings)
    assert result.checkpoint["path"].startswith(str(tmp_path / "weights"))
    assert result.protocol.sampling == "3 blocks of 3 frames, every frame"
    assert result.metrics["reversed"].value > 0.9


def test_what_would_give_short_videos_away_is_said(ramps: Path, tmp_path: Path) -> None:
    settings = config(ramps, tmp_path, "resnet2d3d10_half")
    settings.views.frame_stride = 8
    settings.views.short = "loop"
    result = run(settings)
    assert any("4 test videos are shorter than a clip" in note for note in result.protocol.notes)
    settings.views.frame_stride = 2
    assert not any("shorter" in note for note in run(settings).protocol.notes)
    assert MotionConfig().views.short == "drop"


def test_an_unreadable_video_is_left_out_where_asked_for(coloured: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    text = (coloured / "manifest.csv").read_text()
    manifest.write_text(
        f"# root: {coloured}\n" + text.replace("Red/v_Red_g00_c01.mp4", "Red/gone.mp4")
    )
    settings = config(manifest, tmp_path / "out", "resnet2d3d10_half")
    with pytest.raises(DataError, match=r"gone\.mp4: cannot be evaluated"):
        run(settings)
    settings.views.on_bad = "skip"
    result = run(settings)
    assert result.protocol.num_bad == 1 and result.metrics["reversed"].n == 5


def test_a_single_source_leaves_nothing_to_choose_on(ramps: Path, tmp_path: Path) -> None:
    manifest = read_manifest(ramps)
    records = tuple(dataclasses.replace(record, group="one") for record in manifest.records)
    dataclasses.replace(manifest, records=records).write(tmp_path / "manifest.csv")
    settings = config(tmp_path, tmp_path / "out", "resnet2d3d10_half")
    with pytest.raises(DataError, match=r"a single source.*or give a single weight decay"):
        run(settings)
    settings.weight_decays = [0.01]
    result = run(settings)
    assert result.protocol.selection == "weight decay 0.01 (reversed) and 0.01 (shuffled), as given"


# ---- clips that no order changes ----------------------------------------------------------------


def test_a_copy_that_did_not_change_is_known(coloured: Path) -> None:
    views = broken_views(coloured)
    sample = views.dataset[0]
    frozen = sample | {"video": sample["video"].clone()}
    frozen["video"][1] = frozen["video"][1, :, :1]

    class Frozen:
        records = views.dataset.records

        def __getitem__(self, index: int) -> dict[str, Any]:
            return frozen

    assert not views[0]["unchanged"].any()
    views.dataset = Frozen()  # type: ignore[assignment]
    unchanged = views[0]["unchanged"].unflatten(0, (3, -1))
    assert unchanged.tolist() == [[False] * 3, [False, True, False], [False, True, False]]


def test_clips_that_no_order_changes_are_no_test_of_order_and_counted() -> None:
    """Every third video stands still: its copy has its very features, which no regression tells."""
    train, test = looks(60, 0, (8.0, 8.0)), looks(30, 1, (8.0, 8.0))
    found = {}
    for name, features in (("train", train), ("test", test)):
        values = features.values.unflatten(1, (3, 2)).clone()
        values[::3, 1:] = values[::3, :1]
        still = torch.zeros(len(features.names), 3, 2, dtype=torch.bool)
        still[::3, 1:] = True
        found[name] = dataclasses.replace(
            features, values=values.flatten(1, 2), unchanged=still.flatten(1)
        )
    probed = probe_order(found["train"], found["test"], set(train.names[:20]), 1, MotionConfig())
    assert probed.pairs().shape == (40, 2) and probed.pairs().double().mean() > 0.98
    assert list(probed.shares()) == [video for video in range(30) if video % 3]
    assert probed.details()["unchanged"] == 20
    # Where none moves there is nothing to probe, and one line says so.
    nothing = dataclasses.replace(found["test"], unchanged=torch.ones(30, 6, dtype=torch.bool))
    with pytest.raises(DataError, match="no test clip differs"):
        probe_order(found["train"], nothing, set(train.names[:20]), 1, MotionConfig())
