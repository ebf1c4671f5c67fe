"""kNN classification: each test item takes the class that its training neighbours vote for.

Cosine similarity, votes weighted by exp(similarity / temperature) (``neighbours.py``). Nothing is
trained and nothing is chosen, so that no setting can be tuned on test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.evaluation.chance import classification_chances
from ndavid.evaluation.classify import (
    PerItem,
    accuracies,
    classification_details,
    top_outcomes,
)
from ndavid.evaluation.frozen import Frozen
from ndavid.evaluation.frozen_videos import (
    FrozenFold,
    FrozenVideosConfig,
    measure_folds,
)
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.neighbours import TEMPERATURE, too_many_neighbours, vote
from ndavid.evaluation.outcomes import Outcome
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result


@dataclass(kw_only=True)
class KnnSettings:
    """How neighbours vote."""

    ks: list[int] = field(default_factory=lambda: [20, 200])
    """numbers of neighbours, each reported; those beyond the size of the gallery are named"""
    temperature: float = TEMPERATURE
    """of the votes' weights exp(cosine / temperature)"""

    def check_votes(self) -> None:
        """Raises ConfigError on values out of range."""
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks must be at least 1, not {self.ks}")
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be above 0, not {self.temperature}")


@dataclass(kw_only=True)
class KnnConfig(FrozenVideosConfig, KnnSettings):
    """kNN classification of videos with frozen features."""

    output: str = ""
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -knn (evaluation/output_folder.py)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_votes()


@alone_in_output
def run(config: KnnConfig) -> Result:
    """Classifies the videos of every fold, writes ``result.json`` and returns it."""
    return measure_folds(config, _classify_fold)


def _classify_fold(config: KnnConfig, fold: FrozenFold) -> Result:
    return classify_by_neighbours(fold, config)


def classify_by_neighbours(frozen: Frozen, settings: KnnSettings) -> Result:
    """Returns top-1 and top-5 (``top1_k20``, ...) of the votes; confusions are of the smallest k.

    Raises:
        ConfigError: If every k is larger than the gallery.
    """
    gallery, queries = frozen.train, frozen.test
    ks = [k for k in sorted(set(settings.ks)) if k <= len(gallery.names)]
    if not ks:
        raise ConfigError(f"ks {settings.ks}: the gallery has only {len(gallery.names)} items")
    shares = vote(
        queries.pooled(),
        gallery.pooled(),
        gallery.labels,
        len(frozen.classes),
        ks=ks,
        temperature=settings.temperature,
        device=frozen.device,
    )
    predictions = {
        k: PerItem(values, queries.labels, _positions(queries.labels), queries.bad)
        for k, values in shares.items()
    }
    metrics: dict[str, Metric] = {}
    outcomes: list[Outcome] = []
    for k, found in predictions.items():
        metrics |= {f"{name}_k{k}": metric for name, metric in _top(found).items()}
        outcomes += top_outcomes(found, queries.names, suffix=f"_k{k}")
    protocol = frozen.protocol(
        averaging=(
            "features averaged over views, cosine similarity, votes weighted by "
            f"exp(similarity / {settings.temperature:g})"
        ),
        selection="nothing is trained",
        notes=[f"Gallery: {frozen.gallery}."],
    )
    unit = "videos" if frozen.looked_at.num_videos else "images"
    protocol.warn(*too_many_neighbours("accuracy at k ", settings.ks, len(gallery.names), unit))
    return frozen.result(
        "knn",
        metrics,
        protocol,
        chances=classification_chances(queries.labels, metrics),
        details=classification_details(predictions[ks[0]], frozen.classes),
        outcomes=outcomes,
    )


def _positions(labels: Tensor) -> Tensor:
    return torch.arange(len(labels))


def _top(predictions: PerItem) -> dict[str, Metric]:
    return {
        name: metric for name, metric in accuracies(predictions).items() if name.startswith("top")
    }
