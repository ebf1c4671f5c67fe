"""Nearest neighbours and recalls against loops, and the evaluator on real clips."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ndavid.data.config import DataConfig
from ndavid.data.decode import open_reader
from ndavid.data.manifest import Manifest, read_manifest
from ndavid.errors import ConfigError
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.protocol import load_result
from ndavid.evaluation.retrieval import (
    RetrievalConfig,
    centred,
    found_within,
    nearest,
    recalls,
    run,
)
from ndavid.evaluation.views import ViewsConfig


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_retrieval_equals_the_loop(seed: int, asked: int, known: int, chunk: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    queries = torch.randn(asked, 6, generator=draw)
    gallery = torch.randn(known, 6, generator=draw) * 3
    query_labels = torch.randint(0, 3, (asked,), generator=draw)
    gallery_labels = torch.randint(0, 3, (known,), generator=draw)

    order = nearest(queries, gallery, count=known, chunk=chunk)
    found = recalls(found_within(order, query_labels, gallery_labels, [1, 2, 5, 50]))

    hits = {1: 0, 2: 0, 5: 0}
    for row, query in enumerate(queries.tolist()):
        ranked = sorted(range(known), key=lambda g: -cosine(query, gallery[g].tolist()))
        assert order[row].tolist() == ranked
        for k in hits:
            same = [gallery_labels[g] == query_labels[row] for g in ranked[:k]]
            hits[k] += any(same)
    assert set(found) == {f"R@{k}" for k in hits if k <= known}
    for k in hits:
        if k <= known:
            assert found[f"R@{k}"].value == hits[k] / asked


def test_equal_neighbours_come_in_gallery_order() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    order = nearest(torch.tensor([[3.0, 0.0]]), gallery, count=3)
    assert order.tolist() == [[0, 2, 1]]


def config(coloured: Path, output: Path) -> RetrievalConfig:
    return RetrievalConfig(
        data=DataConfig(root=str(coloured)),
        output=str(output),
        model=ClassifierConfig(encoder="resnet2d3d10_half", head="pool"),
        views=ViewsConfig(
            sampling="dense", num_frames=4, frame_stride=2, size=32, clips=2, crops=1, num_workers=0
        ),
        ks=[1, 5, 100],
        num_examples=4,
        num_neighbours=3,
    )


def test_the_evaluator_on_real_clips(coloured: Path, tmp_path: Path) -> None:
    result = run(config(coloured, tmp_path))
    assert load_result(tmp_path / "result.json") == result
    assert set(result.metrics) == {"R@1", "R@5"}, "a gallery of 12 has no R@100"
    assert result.metrics["R@1"].n == result.protocol.num_videos == 6
    # Four of twelve are of the query's class.
    assert result.chance == result.chances["R@1"] == pytest.approx(1 / 3)
    assert result.chances["R@5"] == pytest.approx(1 - math.comb(8, 5) / math.comb(12, 5))
    missing = "R@100 cannot be computed: the gallery has only 12 videos."
    assert missing in result.protocol.warnings and missing in result.protocol.notes
    # Whether a random encoder tells red from blue: pooled features of pixels do.
    assert result.metrics["R@5"].value == 1.0
    examples = result.details["neighbours"]
    assert len(examples) == 4
    for example in examples:
        similar = [neighbour["similarity"] for neighbour in example["neighbours"]]
        assert len(similar) == 3 and similar == sorted(similar, reverse=True)
        for neighbour in example["neighbours"]:
            assert neighbour["correct"] == (neighbour["class"] == example["query"]["class"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 * (1 + 3)


def test_features_are_centred_by_set_where_one_says_so(coloured: Path, tmp_path: Path) -> None:
    plain = run(config(coloured, tmp_path))
    settings = config(coloured, tmp_path)
    settings.centre_by_set = True
    result = run(settings)
    assert "minus the mean of its own set" in result.protocol.averaging
    assert "minus the mean" not in plain.protocol.averaging
    similar = [
        [
            found["similarity"]
            for example in one.details["neighbours"]
            for found in example["neighbours"]
        ]
        for one in (plain, result)
    ]
    # Pooled features of a network have a large common part; without it they spread.
    assert min(similar[1]) < min(similar[0])


def test_centring_takes_away_what_a_set_has_in_common() -> None:
    draw = torch.Generator().manual_seed(0)
    gallery = torch.randn(9, 5, generator=draw)
    queries = gallery[:4] + 0.01 * torch.randn(4, 5, generator=draw)
    shifted = queries + 100.0
    assert torch.allclose(centred(shifted), centred(queries), atol=1e-4)
    assert centred(shifted).mean(0).abs().max() < 1e-4
    rows = queries.tolist()
    mean = [math.fsum(column) / 4 for column in zip(*rows, strict=True)]
    expected = [[x - m for x, m in zip(row, mean, strict=True)] for row in rows]
    assert torch.allclose(centred(queries), torch.tensor(expected, dtype=torch.double))


def test_a_gallery_smaller_than_every_k_is_an_error(coloured: Path, tmp_path: Path) -> None:
    settings = config(coloured, tmp_path)
    settings.ks = [50, 100]
    with pytest.raises(ConfigError, match=r"ks \[50, 100\]: the gallery has only 12 videos"):
        run(settings)


def test_folders_of_frames_are_shown_too(coloured: Path, tmp_path: Path) -> None:
    # The report has to read neighbours with the backend of the evaluation.
    manifest = read_manifest(coloured)
    records = []
    for record in manifest.records:
        folder = record.path.removesuffix(".mp4")
        (tmp_path / "frames" / folder).mkdir(parents=True)
        with open_reader(coloured / record.path) as reader:
            frames = reader.read(range(len(reader)))
        for number, frame in enumerate(frames, start=1):
            picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
            picture.save(tmp_path / "frames" / folder / f"img_{number:05d}.jpg")
        records.append(dataclasses.replace(record, path=folder))
    Manifest(tmp_path / "frames", manifest.classes, tuple(records)).write(tmp_path / "frames")
    settings = config(tmp_path / "frames", tmp_path / "out")
    settings.views.backend = "frames"
    assert run(settings).metrics["R@1"].n == 6
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 * (1 + 3)


def test_folds_are_averaged(coloured: Path, tmp_path: Path) -> None:
    settings = config(coloured, tmp_path)
    settings.folds = [1, 2]
    result = run(settings)
    each = [fold["metrics"]["R@1"]["value"] for fold in result.details["folds"]]
    assert result.metrics["R@1"].value == pytest.approx(sum(each) / 2)
    assert result.metrics["R@1"].n == 12


def test_no_manifest_is_an_error_that_says_which_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.root is empty"):
        run(RetrievalConfig(output="unused"))
