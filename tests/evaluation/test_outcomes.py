"""Outcomes of items: the file, and that every evaluator's add up to its metrics, item by item."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from ndavid.data.config import DataConfig
from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.data.transforms import AugmentConfig
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import DataError
from ndavid.evaluation import (
    finetune,
    image_finetune,
    image_knn,
    image_linear,
    knn,
    linear,
    retrieval,
)
from ndavid.evaluation.classify import PerItem, accuracies, top_outcomes
from ndavid.evaluation.image_views import ImageViewsConfig
from ndavid.evaluation.intervals import wilson
from ndavid.evaluation.linear_heads import HeadsConfig
from ndavid.evaluation.outcomes import Outcome, outcomes_of, read_outcomes, write_outcomes
from ndavid.evaluation.pretrained import ClassifierConfig, EncoderConfig
from ndavid.evaluation.protocol import Protocol, Result, load_result
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.views import ViewsConfig

VIDEO_VIEWS = ViewsConfig(
    sampling="dense", num_frames=5, frame_stride=2, size=32, clips=2, crops=1, num_workers=0
)
IMAGE_VIEWS = ImageViewsConfig(size=32, views_per_batch=16, num_workers=0, on_bad="skip")
RUN = RunConfig(epochs=1, batch_size=4, num_workers=0, device="cpu")
PLAIN = AugmentConfig(preset="none", size=32)

# ---- the file -----------------------------------------------------------------------------------


def test_outcomes_survive_their_file(tmp_path: Path) -> None:
    written = [
        Outcome("Wave/v_Wave_g01_c01.avi", "top1", 1.0, 1),
        Outcome('a, "b"\r\nü.mp4', "R@1", 1 / 3, 3),
        Outcome("17", "top1_k20", 0.0),
    ]
    path = write_outcomes(written, tmp_path / "new" / "outcomes.csv")
    assert read_outcomes(path) == written
    assert os.listdir(path.parent) == ["outcomes.csv"]
    assert path.read_text().splitlines()[:2] == [
        "fold,item,metric,value",
        "1,Wave/v_Wave_g01_c01.avi,top1,1.0",
    ]
    assert read_outcomes(write_outcomes([], path)) == []


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_outcomes([Outcome("old", "top1", 1.0)], tmp_path / "outcomes.csv")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_outcomes([Outcome("new", "top1", 0.0)] * 100, path)
    assert read_outcomes(path) == [Outcome("old", "top1", 1.0)]
    assert os.listdir(tmp_path) == ["outcomes.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "columns must be fold,item,metric,value"),
        (b"item,correct\na,1\n", "columns must be"),
        (b"fold,item,metric,value\n1,a,top1,1.0\n1,b,to", "row 2 is no outcome"),
        (b"fold,item,metric,value\n1,a,top1,1.0,2\n", "row 1 is no outcome"),
        (b"fold,item,metric,value\none,a,top1,1.0\n", "row 1 is no outcome"),
        (b"fold,item,metric,value\n1,a,top1,right\n", "row 1 is no outcome"),
        (b"fold,item,metric,value\n1,a,top1,nan\n", "row 1 needs"),
        (b"fold,item,metric,value\n-1,a,top1,1.0\n", "row 1 needs"),
        (b'fold,item,metric,value\n1,"a,top1,1.0\n', "not a table"),
        (b"fold,item,metric,value\n1,\xff,top1,1.0\n", "not a table"),
    ],
)
def test_what_is_no_table_of_outcomes_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "outcomes.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_outcomes(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_outcomes(tmp_path / "outcomes.csv")


def test_items_and_values_must_be_equally_many() -> None:
    with pytest.raises(ValueError):
        outcomes_of("top1", ["a", "b"], [True])


def test_no_other_results_outcomes_stay_beside_a_result(tmp_path: Path) -> None:
    metrics = {"top1": wilson(1, 2)}
    outcomes = outcomes_of("top1", ["0", "1"], [True, False])
    with_some = Result(task="knn", metrics=metrics, protocol=Protocol(), outcomes=outcomes)
    write_outputs(with_some, RUN, tmp_path)
    assert read_outcomes(tmp_path / "outcomes.csv") == outcomes
    write_outputs(dataclasses.replace(with_some, outcomes=[]), RUN, tmp_path)
    assert not (tmp_path / "outcomes.csv").exists()


# ---- classifiers --------------------------------------------------------------------------------


def test_outcomes_rank_as_accuracies_do_even_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    # Few distinct values, so that the order of equal ones decides.
    values = torch.randint(0, 3, (200, 7), generator=draw).float()
    labels = torch.randint(0, 7, (200,), generator=draw)
    indices = torch.arange(200) * 2 + 1
    predictions = PerItem(values, labels, indices)
    names = [f"{index}.mp4" for index in range(400)]
    metrics = accuracies(predictions)
    found = top_outcomes(predictions, names, suffix="_k5")
    for name in ("top1", "top5"):
        part = [outcome for outcome in found if outcome.metric == f"{name}_k5"]
        assert [outcome.item for outcome in part] == [f"{index}.mp4" for index in indices.tolist()]
        assert math.fsum(outcome.value for outcome in part) / 200 == metrics[name].value
        assert 0 < metrics[name].value < 1
    assert len(found) == 400, "nothing of mean class accuracy"


# ---- evaluators ---------------------------------------------------------------------------------


def check(result: Result, output: Path, items: Mapping[int, Sequence[str]]) -> None:
    """That the file and the Result agree, and each fold's outcomes with that fold's metrics."""
    written = read_outcomes(output / "outcomes.csv")
    assert written == result.outcomes
    stored = json.loads((output / "result.json").read_text())
    assert "outcomes" not in stored and load_result(output / "result.json").outcomes == []
    folds = {fold["fold"]: fold["metrics"] for fold in result.details.get("folds", [])}
    folds = folds or {next(iter(items)): stored["metrics"]}
    assert list(folds) == list(items) == sorted({outcome.fold for outcome in written})
    measured = set(result.metrics) - {"mean_class_accuracy"}
    assert {outcome.metric for outcome in written} == measured
    for fold, metrics in folds.items():
        for name in measured:
            part = [o for o in written if (o.fold, o.metric) == (fold, name)]
            assert [outcome.item for outcome in part] == list(items[fold])
            mean = math.fsum(outcome.value for outcome in part) / len(part)
            assert (mean, len(part)) == (metrics[name]["value"], metrics[name]["n"])


def wrong(result: Result, metric: str, fold: int) -> list[str]:
    asked = [o for o in result.outcomes if (o.metric, o.fold) == (metric, fold)]
    return [outcome.item for outcome in asked if outcome.value == 0]


def changed(record: ClipRecord) -> ClipRecord:
    """The test videos of fold 1: one too short, one gone, one of another class, three as before."""
    match record.path:
        case "Red/v_Red_g00_c01.mp4":
            return dataclasses.replace(record, num_frames=8)
        case "Red/v_Red_g01_c01.mp4":
            return dataclasses.replace(record, path="Red/gone.mp4")
        case "Green/v_Green_g00_c01.mp4":
            return dataclasses.replace(record, label=2)
    return record


MISLABELLED = "Green/v_Green_g00_c01.mp4"
SCORED = {
    1: [MISLABELLED, *(f"{n}_c01.mp4" for n in ("Green/v_Green_g01", "Blue/v_Blue_g00"))],
    2: [f"{n}/v_{n}_g{group:02d}_c01.mp4" for n in ("Red", "Green", "Blue") for group in (4, 5)],
}
SCORED[1].append("Blue/v_Blue_g01_c01.mp4")


@pytest.fixture
def awkward(coloured: Path, tmp_path: Path) -> str:
    """A manifest some of whose test videos are not scored, so that places and items differ."""
    manifest = read_manifest(coloured)
    records = tuple(changed(record) for record in manifest.records)
    path = tmp_path / "awkward" / "manifest.csv"
    path.parent.mkdir()
    Manifest(coloured, manifest.classes, records).write(path)
    return str(path)


def frozen_videos(kind: str, manifest: str, output: Path, folds: list[int]) -> Result:
    build, run = {
        "retrieval": (retrieval.RetrievalConfig, retrieval.run),
        "knn": (knn.KnnConfig, knn.run),
        "linear": (linear.LinearConfig, linear.run),
    }[kind]
    config = build(
        data=DataConfig(root=manifest),
        output=str(output),
        model=ClassifierConfig(encoder="resnet2d3d10_half", head="pool"),
        views=dataclasses.replace(VIDEO_VIEWS, short="drop", on_bad="skip"),
        folds=folds,
    )
    if isinstance(config, linear.LinearConfig):
        config.holdout = 0.25
    else:
        config.ks = [1, 5]
    return run(config)


@pytest.mark.parametrize(
    ("kind", "metric"), [("retrieval", "R@1"), ("knn", "top1_k1"), ("linear", "top1")]
)
def test_frozen_features_of_videos(kind: str, metric: str, awkward: str, tmp_path: Path) -> None:
    result = frozen_videos(kind, awkward, tmp_path / "out", [1])
    check(result, tmp_path / "out", {1: SCORED[1]})
    # Colours are told apart, so that only the video of another class is wrong.
    assert wrong(result, metric, fold=1) == [MISLABELLED]


@pytest.mark.parametrize("kind", ["retrieval", "knn", "linear"])
def test_folds_of_frozen_features(kind: str, awkward: str, tmp_path: Path) -> None:
    check(frozen_videos(kind, awkward, tmp_path / "out", [1, 2]), tmp_path / "out", SCORED)


def finetune_config(manifest: str, output: Path, **changes: object) -> finetune.FinetuneConfig:
    config = finetune.FinetuneConfig(
        data=DataConfig(root=manifest),
        output=str(output),
        model=ClassifierConfig(encoder="resnet2d3d10_half", head="pool"),
        views=VIDEO_VIEWS,
        augment=PLAIN,
        optim=OptimConfig(name="adamw", lr=1e-3, schedule="cosine"),
        run=RUN,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def test_fine_tuning_on_videos(awkward: str, tmp_path: Path) -> None:
    views = dataclasses.replace(VIDEO_VIEWS, short="drop", on_bad="skip")
    run = dataclasses.replace(RUN, epochs=12)
    result = finetune.run(finetune_config(awkward, tmp_path / "out", views=views, run=run))
    check(result, tmp_path / "out", {1: SCORED[1]})
    assert wrong(result, "top1", fold=1) == [MISLABELLED]


def test_folds_of_fine_tuning(coloured: Path, tmp_path: Path) -> None:
    result = finetune.run(finetune_config(str(coloured), tmp_path, folds=[1, 2]))
    records = read_manifest(coloured)
    items = {fold: [record.path for record in records.select("test", fold)] for fold in (1, 2)}
    assert items[2] == SCORED[2]
    check(result, tmp_path, items)


def test_the_subset_of_paper_compat(coloured: Path, tmp_path: Path) -> None:
    # 2 of 6 test videos are drawn, in an order of their own.
    config = finetune_config(
        str(coloured), tmp_path, protocol="paper_compat", paper_batch_size=1, run=RUN
    )
    result = finetune.run(config)
    items = [outcome.item for outcome in result.outcomes]
    tested = {record.path for record in read_manifest(coloured).select("test", 1)}
    assert len(set(items)) == 2 and set(items) <= tested
    check(result, tmp_path, {1: items})
    for row in result.details["per_class"]:
        values = [o.value for o in result.outcomes if o.item.startswith(f"{row['class']}/")]
        assert (len(values), sum(values)) == (row["count"], row["correct"])


@pytest.fixture
def images(coloured_images: Path, tmp_path: Path) -> DataConfig:
    """19 test images: number 0 cannot be read, number 6 is red but lies with the blue ones."""
    root = tmp_path / "images"
    for split in ("train", "test"):
        shutil.copytree(coloured_images / split, root / split)
    blue = root / "test" / "Blue"
    (blue / "000.png").write_bytes(b"no image")
    shutil.copy(root / "test" / "Red" / "000.png", blue / "006.png")
    return DataConfig(source="folder", root=str(root), split="train")


def evaluate_images(kind: str, data: DataConfig, output: Path) -> Result:
    model = EncoderConfig(encoder="cifar:resnet20")
    where = {"data": data, "output": str(output), "model": model, "views": IMAGE_VIEWS}
    run = dataclasses.replace(RUN, epochs=6, batch_size=16)
    if kind == "knn":
        return image_knn.run(image_knn.ImageKnnConfig(**where, device="cpu", ks=[1, 20]))
    if kind == "finetune":
        optim = OptimConfig(name="adamw", lr=3e-3)
        return image_finetune.run(
            image_finetune.ImageFinetuneConfig(**where, augment=PLAIN, optim=optim, run=run)
        )
    config = image_linear.ImageLinearConfig(
        **where,
        run=run,
        heads=HeadsConfig(learning_rates=[0.1], epochs=30, batch_size=16, holdout=0.25),
        augment=PLAIN,
    )
    if kind == "sgd":
        config.mode = "sgd"
        config.optim = OptimConfig(name="sgd", lr=1.0, weight_decay=0.0)
    return image_linear.run(config)


@pytest.mark.parametrize("kind", ["knn", "features", "sgd", "finetune"])
def test_images(kind: str, images: DataConfig, tmp_path: Path) -> None:
    result = evaluate_images(kind, images, tmp_path / "out")
    check(result, tmp_path / "out", {0: [str(place) for place in range(1, 19)]})
    metric = "top1_k1" if kind == "knn" else "top1"
    missed = wrong(result, metric, fold=0)
    # Six images of each class, in their order, the first of which is number 1.
    found = [6 - sum((int(item) - 1) // 6 == label for item in missed) for label in range(3)]
    assert found == [row["correct"] for row in result.details["per_class"]]
    if kind != "sgd":  # A few steps on a random encoder's features tell too little.
        assert len(missed) <= 3 and "6" in missed
