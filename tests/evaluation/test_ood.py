"""Distances against closed forms and loops, AUROC columns end to end on real files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from ndavid.config import from_yaml, to_yaml
from ndavid.data.config import DataConfig
from ndavid.data.images import open_images
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig
from ndavid.evaluation.ood import OodConfig, knn_distance, mahalanobis_distance, run
from ndavid.evaluation.other_images import BrokenImages, only_changed, parse_source
from ndavid.evaluation.pretrained import EncoderConfig
from ndavid.evaluation.protocol import load_result
from ndavid.nda import from_spec

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
VIEWS = ImageViewsConfig(size=32, views_per_batch=16, num_workers=0)


def drawn(count: int, seed: int, dim: int = 4) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_knn_distance_is_that_to_the_kth_neighbour(k: int) -> None:
    train, queries = drawn(20, 0), drawn(7, 1)
    reference = NearestNeighbors(n_neighbors=k, metric="cosine").fit(train.numpy())
    expected = reference.kneighbors(queries.numpy())[0][:, -1]
    found = knn_distance(train, k, CPU)(queries)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_k_beyond_the_training_features() -> None:
    with pytest.raises(ConfigError, match="only 20 training features"):
        knn_distance(drawn(20, 0), 21, CPU)


def test_one_gaussian_is_the_textbooks_mahalanobis() -> None:
    train, queries = drawn(50, 0) @ drawn(4, 5) + 3, drawn(9, 1)
    reference = EmpiricalCovariance().fit(train.double().numpy())
    expected = reference.mahalanobis(queries.double().numpy())
    groups = torch.zeros(50, dtype=torch.long)
    found = mahalanobis_distance(train, groups, ridge=0.0)(queries)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_gaussian_a_class_in_closed_form() -> None:
    train, labels, queries = drawn(60, 0), torch.arange(60) % 3, drawn(9, 1)
    train = train + 4 * torch.eye(3, 4)[labels]
    values = train.double().numpy()
    means = [values[labels.numpy() == c].mean(0) for c in range(3)]
    centred = values - np.stack(means)[labels.numpy()]
    inverse = np.linalg.inv(centred.T @ centred / 60)
    expected = [
        min(float((q - mean) @ inverse @ (q - mean)) for mean in means)
        for q in queries.double().numpy()
    ]
    # Labels need not be consecutive: a class without a training image has no mean.
    found = mahalanobis_distance(train, 2 * labels + 1, ridge=0.0, chunk=4)(queries)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_too_few_features_for_a_covariance_are_one_line() -> None:
    train = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=r"3 training features of 8 numbers.*raise ridge"):
        mahalanobis_distance(train, torch.zeros(3, dtype=torch.long), ridge=0.0)


def test_a_constant_feature_does_not_break_it() -> None:
    train = drawn(30, 0)
    train[:, 1] = 2.0
    score = mahalanobis_distance(train, torch.zeros(30, dtype=torch.long), ridge=1e-6)
    assert score(train).isfinite().all()
    off = train[:1].clone()
    off[:, 1] += 1
    assert score(off) > 100 * score(train).max(), "what never varied is far away where it does"


def test_sources_are_read_from_their_specs() -> None:
    assert parse_source("svhn:root=data/svhn") == DataConfig(
        source="svhn", root="data/svhn", split="test"
    )
    found = parse_source("folder:root=/a b,split=,class_list=x.txt")
    assert found == DataConfig(source="folder", root="/a b", split="", class_list="x.txt")
    for text in ("svnh:root=x", "svhn:rot=x", "svhn:root"):
        with pytest.raises(ConfigError, match="others"):
            parse_source(text)


@pytest.mark.parametrize("spec", ["jigsaw:grid=2", "stitch", "cut_mix > jigsaw:grid=4"])
def test_broken_images_depend_on_seed_and_index_only(coloured_images: Path, spec: str) -> None:
    source = open_images(DataConfig(source="folder", root=str(coloured_images), split="test"))
    whole = ImageViews(source, VIEWS)
    first, again, other = (BrokenImages(source, VIEWS, from_spec(spec), seed) for seed in (0, 0, 1))
    order = [3, 17, 0]
    for index in order:
        image = first[index]["image"]
        assert image.dtype == torch.uint8 and image.shape == (3, 32, 32)
        assert not torch.equal(image, whole[index]["image"])
        assert torch.equal(image, again[index]["image"])
        assert (first[index]["label"], first[index]["index"]) == (whole[index]["label"], index)
    assert any(not torch.equal(first[i]["image"], other[i]["image"]) for i in order)


def config(coloured_images: Path, output: Path, **changes: object) -> OodConfig:
    base = OodConfig(
        data=DataConfig(source="folder", root=str(coloured_images)),
        output=str(output),
        model=EncoderConfig(encoder="cifar:resnet20"),
        views=VIEWS,
        device="cpu",
        others=[f"folder:root={coloured_images},split=far"],
        nda=["jigsaw:grid=4"],
        k=3,
        # Fewer images than features: their covariance has to be held up.
        ridge=0.1,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_noise_is_far_from_squares(coloured_images: Path, tmp_path: Path) -> None:
    result = run(config(coloured_images, tmp_path))
    assert load_result(tmp_path / "result.json") == result
    far = f"{coloured_images.stem} far"
    broken = "NDA jigsaw:grid=4"
    assert set(result.metrics) == {
        f"{score} AUROC {name}" for score in ("knn", "mahalanobis") for name in (far, broken)
    }
    assert result.metrics[f"knn AUROC {far}"].value > 0.95
    assert result.metrics[f"knn AUROC {far}"].n == 18 + 24
    assert result.metrics[f"knn AUROC {broken}"].n == 18 + 18
    assert result.chance == 0.5 and result.task == "ood"
    assert any("NDA columns" in note for note in result.protocol.notes)
    medians = {name: q["median"] for name, q in result.details["distances"]["knn"].items()}
    assert medians[far] > medians["test"]


def test_the_test_set_against_itself_is_a_coin_toss(coloured_images: Path, tmp_path: Path) -> None:
    same = f"folder:root={coloured_images},split=test"
    result = run(config(coloured_images, tmp_path, others=[same], nda=[]))
    for metric in result.metrics.values():
        assert metric.value == 0.5 and metric.low < 0.5 < metric.high


def test_labels_matter_where_a_gaussian_is_fitted_to_each_class(
    coloured_images: Path, tmp_path: Path
) -> None:
    classes = run(config(coloured_images, tmp_path / "a"))
    one = run(config(coloured_images, tmp_path / "b", gaussians="one"))
    key = "mahalanobis AUROC NDA jigsaw:grid=4"
    assert classes.metrics[key] != one.metrics[key]
    assert any("no labels" in note for note in one.protocol.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others": [], "nda": []}, "name other image sets"),
        ({"nda": ["jigsw"]}, "did you mean"),
        ({"nda": ["frame_shuffle"]}, "clips"),
        ({"nda": [""]}, "empty spec"),
        ({"nda": ["stitch", "stitch"]}, "once"),
        ({"k": 0}, "k must be"),
    ],
)
def test_what_cannot_work_is_said_before_features_are_computed(
    coloured_images: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config(coloured_images, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_script_runs_from_its_config(coloured_images: Path, tmp_path: Path) -> None:
    settings = config(coloured_images, tmp_path / "out")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(settings))
    assert from_yaml(OodConfig, path) == settings
    done = forked.call(ROOT / "eval" / "ood.py", "--config", str(path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "AUROC" in done.stdout and "NDA columns" in done.stdout
    assert "NDA jigsaw:grid=4" in (tmp_path / "out" / "report.html").read_text()


def test_broken_images_that_did_not_change_are_left_out_and_counted(
    coloured_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = BrokenImages.__getitem__

    def plain(self: Any, index: int) -> dict[str, Any]:
        return read(self, index) | {"unchanged": torch.tensor([index in (0, 2)])}

    monkeypatch.setattr(BrokenImages, "__getitem__", plain)
    result = run(config(coloured_images, tmp_path, nda=["jigsaw"]))
    whole = result.protocol.num_images
    assert result.details["unchanged"] == {"NDA jigsaw": 2}
    assert result.details["sets"]["NDA jigsaw"] == whole - 2
    assert any("2 images came out as they went in" in note for note in result.protocol.notes)


def test_a_plain_image_cut_into_a_jigsaw_is_known() -> None:
    assert only_changed(torch.tensor([[True], [False]]), 2, "jigsaw").tolist() == [False, True]
    assert only_changed(None, 2, "jigsaw").all()
    with pytest.raises(DataError, match="nothing is broken"):
        only_changed(torch.ones(2, 1, dtype=torch.bool), 2, "jigsaw")
