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

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ndavid.data.image_sources import ImageSource
from ndavid.data.images import ImageDataConfig, open_images
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError
from ndavid.evaluation.features import Features
from ndavid.evaluation.frozen_images import (
    FrozenImages,
    FrozenImagesConfig,
    image_features,
    load_frozen_images,
    write_image_result,
)
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig, dataset_name
from ndavid.evaluation.intervals import Metric, auroc
from ndavid.evaluation.neighbours import nearest_chunks
from ndavid.evaluation.protocol import Result
from ndavid.methods.nda_config import NegativesConfig

Scores = Callable[[Tensor], Tensor]


@dataclass(kw_only=True)
class OodConfig(FrozenImagesConfig):
    """Which sets are set against the test images, and how far away they are found."""

    output: str = "runs/ood"
    """folder for result.json and report.html"""
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


def run(config: OodConfig) -> Result:
    """Measures every column, writes ``result.json`` and returns it.

    Raises:
        ConfigError, CheckpointError, DataError: See ``errors``; each in one line.
    """
    others = {_column(data): data for data in map(parse_source, config.others)}
    operations = {f"NDA {spec}": _operation(spec, config.views.size) for spec in config.nda}
    if len(others) < len(config.others) or len(operations) < len(config.nda):
        raise ConfigError("others and nda must name each set and each operation once")
    frozen = load_frozen_images(config)
    against = {name: _other_features(config, frozen, data) for name, data in others.items()}
    for (name, operation), spec in zip(operations.items(), config.nda, strict=True):
        against[name] = _broken_features(config, frozen, operation, spec)
    return write_image_result(_compare(config, frozen, against), config)


def parse_source(text: str) -> ImageDataConfig:
    """Returns the image set that ``SOURCE:KEY=VALUE,...`` names; its split is ``test`` unless said.

    Raises:
        ConfigError: If it is no such text, or has unknown keys.
    """
    source, _, rest = text.partition(":")
    keys = {"source": source, "split": "test"}
    for part in filter(None, rest.split(",")):
        key, given, value = part.partition("=")
        if not given or key not in ("root", "split", "class_list"):
            raise ConfigError(f"others: {text!r}: expected root=, split= or class_list=: {part!r}")
        keys[key] = value
    known = ("cifar10", "cifar100", "stl10", "svhn", "folder", "packed")
    if source not in known:
        raise ConfigError(f"others: {text!r}: its source must be one of {', '.join(known)}")
    return ImageDataConfig(**keys)  # type: ignore[arg-type]


def _column(data: ImageDataConfig) -> str:
    return f"{dataset_name(data)} {data.split}".strip()


def _operation(spec: str, size: int) -> Any:
    operation = NegativesConfig(spec=spec).operation()
    if operation is None:
        raise ConfigError("nda: an empty spec breaks nothing")
    # Here, in one line, rather than from a loader process.
    operation.check((2, 3, size, size))
    return operation


# ---- features -----------------------------------------------------------------------------------


def _other_features(config: OodConfig, frozen: FrozenImages, data: ImageDataConfig) -> Features:
    return image_features(frozen.extract, open_images(data), config.views, _column(data))


def _broken_features(
    config: OodConfig, frozen: FrozenImages, operation: Any, spec: str
) -> Features:
    dataset = BrokenImages(frozen.test_source, config.views, operation, config.seed)
    digest = hashlib.sha256(f"{dataset.digest()} {spec} {config.seed}".encode()).hexdigest()
    names = [frozen.test_source.name(index) for index in range(len(dataset))]
    return frozen.extract(dataset, digest, names, spec)


class BrokenImages(ImageViews):
    """The test views after an operation of negative augmentation.

    An image is broken by a generator of its own, with an image drawn by it as the partner of
    operations that mix two: it depends neither on the batch nor on the ranks.
    """

    def __init__(
        self, source: ImageSource, views: ImageViewsConfig, operation: Any, seed: int
    ) -> None:
        super().__init__(source, views)
        if len(source) < 2:
            raise ConfigError("an operation needs at least two test images")
        self.operation = operation
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if "image" not in sample:
            return sample
        draw = generator(self.seed, "ood", index)
        away = int(torch.randint(1, len(self), (), generator=draw))
        partner = super().__getitem__((index + away) % len(self))
        if "image" not in partner:
            return {name: sample[name] for name in ("label", "index")} | {"bad": partner["bad"]}
        pair = torch.stack([sample["image"], partner["image"]])
        return sample | {"image": self.operation(pair, generator=draw)[0]}


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
    root = torch.linalg.cholesky(covariance)

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
        distances[score_name] = {"test": _quartiles(inside)}
        for name, features in against.items():
            outside = score(features.pooled())
            metrics[f"{score_name} AUROC {name}"] = auroc(inside, outside)
            distances[score_name][name] = _quartiles(outside)
    protocol = frozen.protocol(
        averaging="one view an image",
        selection="nothing is trained",
        notes=_notes(config, frozen, against),
    )
    result = frozen.result(
        "ood",
        metrics,
        protocol,
        chance=0.5,
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


def _quartiles(scores: Tensor) -> dict[str, float]:
    ends = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    found = scores.double().sort().values[(ends * (len(scores) - 1)).round().long()]
    return dict(zip(("q25", "median", "q75"), found.tolist(), strict=True))
