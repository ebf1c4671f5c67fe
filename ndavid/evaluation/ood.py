"""Does a representation know its own data? AUROC of distances between features.

Negative data augmentation claims to teach the support of the data. Measured here on frozen
features: how well the distance to *training* features tells test images from those of another set.
Two distances:

    knn          one minus the cosine similarity to the k-th nearest training feature (Sun, Ming,
                 Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML
                 2022). No labels.
    mahalanobis  to the nearest class mean under the covariance that the classes share (Lee, Lee,
                 Lee and Shin, NeurIPS 2018, without its calibration on outliers);
                 ``gaussians: one`` fits a single Gaussian, without labels.

Columns marked NDA set the test images against copies of themselves that an operation broke. They
say whether the encoder sees that kind of damage, not whether it knows other data; an encoder that
was trained on the operation has seen its like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ndavid.data.images import open_images
from ndavid.errors import ConfigError
from ndavid.evaluation.anomaly_metrics import quartiles
from ndavid.evaluation.data_warnings import unreadable
from ndavid.evaluation.features import Features
from ndavid.evaluation.frozen_images import (
    FrozenImages,
    FrozenImagesConfig,
    image_features,
    load_frozen_images,
    write_image_result,
)
from ndavid.evaluation.intervals import Metric, auroc
from ndavid.evaluation.neighbours import nearest_chunks
from ndavid.evaluation.other_images import (
    BrokenImages,
    on_unchanged,
    only_changed,
    parse_operations,
    parse_others,
)
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result

Scores = Callable[[Tensor], Tensor]


@dataclass(kw_only=True)
class OodConfig(FrozenImagesConfig):
    """Which sets are set against the test images, and how far away they are found."""

    output: str = ""
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -ood (evaluation/output_folder.py)"""
    others: list[str] = field(default_factory=list)
    """other image sets, each SOURCE:KEY=VALUE,... with the keys of data, such as
    svhn:root=data/svhn,split=test"""
    nda: list[str] = field(default_factory=list)
    """operations that break copies of the test images (jigsaw:grid=2), a column each"""
    k: int = 50
    """the neighbour whose distance counts"""
    gaussians: Literal["classes", "one"] = "classes"
    """of the Mahalanobis distance: a mean for each class, or one for all"""
    ridge: float = 1e-6
    """added to the covariance, as a share of its mean variance"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.others and not self.nda:
            raise ConfigError("name other image sets (others) or operations (nda) to compare with")
        if self.k < 1 or self.ridge < 0:
            raise ConfigError("k must be at least 1, ridge not negative")


@alone_in_output
def run(config: OodConfig) -> Result:
    """Measures every column, writes ``result.json`` and returns it.

    Raises:
        ConfigError, CheckpointError, DataError: See ``errors``; each in one line.
    """
    others = parse_others(config.others)
    operations = parse_operations(config.nda, config.views.size)
    frozen = load_frozen_images(config, "distance")
    against = {
        name: image_features(frozen.extract, open_images(data), config.views, name)
        for name, data in others.items()
    }
    left_out: dict[str, int] = {}
    for spec, operation in operations.items():
        broken = _broken_features(config, frozen, operation, spec)
        kept = only_changed(broken.unchanged, len(broken.labels), spec)
        against[f"NDA {spec}"] = broken.subset(kept)
        left_out[f"NDA {spec}"] = int((~kept).sum())
    result = _compare(config, frozen, against)
    result.protocol.warn(*on_unchanged(left_out))
    result.details["unchanged"] = left_out
    return write_image_result(result, config, frozen.loaded.opened)


# ---- features -----------------------------------------------------------------------------------


def _broken_features(
    config: OodConfig, frozen: FrozenImages, operation: Any, spec: str
) -> Features:
    dataset = BrokenImages(frozen.test_source, config.views, operation, config.seed)
    names = [frozen.test_source.name(index) for index in range(len(dataset))]
    return frozen.extract(dataset, dataset.broken_digest(spec), names, spec)


# ---- distances ----------------------------------------------------------------------------------


def knn_distance(train: Tensor, k: int, device: torch.device) -> Scores:
    """Returns features (Q, D) -> (Q,), one minus the cosine to the k-th nearest of ``train``.

    Raises:
        ConfigError: If there are fewer than k.
    """
    if k > len(train):
        raise ConfigError(f"k is {k}, but there are only {len(train)} training features")

    def score(queries: Tensor) -> Tensor:
        chunks = nearest_chunks(queries, train, k, device=device)
        return torch.cat([1 - similarity[:, -1].cpu() for similarity, _ in chunks])

    return score


def mahalanobis_distance(train: Tensor, groups: Tensor, ridge: float, chunk: int = 8192) -> Scores:
    """Returns features (Q, D) -> (Q,), the squared distance to the nearest mean.

    Args:
        train: (N, D).
        groups: (N,) which mean each belongs to, from 0; the covariance about them is shared.
        ridge: Share of the mean variance that is added to every variance.
        chunk: Queries compared at a time.

    Raises:
        ConfigError: If there are too few features for their covariance to have an inverse.
    """
    values = train.double()
    used, groups = groups.unique(return_inverse=True)
    counts = torch.bincount(groups, minlength=len(used))
    means = torch.zeros(len(used), values.shape[1], dtype=torch.double)
    means.index_add_(0, groups, values).div_(counts[:, None])
    centred = values - means[groups]
    covariance = centred.T @ centred / len(values)
    variance = covariance.diagonal().mean()
    # A feature that never changes has no direction to measure in: the ridge gives it one.
    tiny = torch.finfo(torch.double).tiny
    covariance.diagonal().add_(max(float(ridge * variance), tiny))
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ConfigError(
            f"the covariance of {len(values)} training features of {values.shape[1]} numbers has "
            f"no inverse with ridge {ridge:g}: raise ridge, or take more images"
        )

    def whiten(rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(root, rows.T, upper=False).T

    centres = whiten(means)

    def score(queries: Tensor) -> Tensor:
        parts = [
            torch.cdist(whiten(part.double()), centres, compute_mode="donot_use_mm_for_euclid_dist")
            for part in queries.split(chunk)
        ]
        return torch.cat(parts).min(1).values.square()

    return score


# ---- result -------------------------------------------------------------------------------------


def _compare(config: OodConfig, frozen: FrozenImages, against: dict[str, Features]) -> Result:
    train = frozen.train.pooled()
    labels = frozen.train.labels
    groups = labels if config.gaussians == "classes" else torch.zeros_like(labels)
    scores = {
        "knn": knn_distance(train, config.k, frozen.device),
        "mahalanobis": mahalanobis_distance(train, groups, config.ridge),
    }
    metrics: dict[str, Metric] = {}
    distances: dict[str, dict[str, dict[str, float]]] = {}
    for score_name, score in scores.items():
        inside = score(frozen.test.pooled())
        distances[score_name] = {"test": quartiles(inside)}
        for name, features in against.items():
            outside = score(features.pooled())
            metrics[f"{score_name} AUROC {name}"] = auroc(inside, outside)
            distances[score_name][name] = quartiles(outside)
    protocol = frozen.protocol(
        averaging="one view an image",
        selection="nothing is trained",
        notes=_notes(config, frozen, against),
    )
    for name, features in against.items():
        protocol.warn(*unreadable(features.bad, name, "images"))
    result = frozen.result(
        "ood",
        metrics,
        protocol,
        chances=dict.fromkeys(metrics, 0.5),
        details={
            "distances": distances,
            "sets": {name: len(features.labels) for name, features in against.items()},
        },
    )
    result.details["bad"] += [list(entry) for f in against.values() for entry in f.bad]
    return result


def _notes(config: OodConfig, frozen: FrozenImages, against: dict[str, Features]) -> list[str]:
    means = "one Gaussian a class, shared covariance"
    if config.gaussians == "one":
        means = "one Gaussian, no labels"
    notes = [
        "AUROC: the probability that an image of the other set lies farther from the training "
        f"features than a test image. knn: cosine distance to neighbour {config.k}; mahalanobis: "
        f"{means}.",
        f"Distances are to {frozen.gallery}; n counts test images and those of the other set.",
    ]
    if any(name.startswith("NDA ") for name in against):
        notes.append(
            "NDA columns: test images against broken copies of themselves; no other data, and the "
            "two sides are not independent, as the interval takes them to be."
        )
    return notes
