"""How well a score tells anomalies from known images, with bootstrap intervals.

    AUROC   the probability that an anomaly scores above a known image, equal scores half.
    AUPR    average precision with the anomalies as the class to be found: the sum over recall steps
            of the precision there, without interpolation. Guessing gives their share of the images.
    FPR95   the share of known images taken for anomalies at the highest threshold that finds at
            least 95% of the anomalies. Guessing gives 95%; less is better.

Intervals are the bootstrap's percentiles (Efron 1979). Known images are drawn once for all columns,
so that a mean over columns keeps what they share; a copy of a known image is drawn together with
it. Where all draws give the same (everything told apart, or all scores equal) the bootstrap knows
no spread. For AUROC the interval is then Newcombe's, which counts both kinds of images. For AUPR
and FPR95 it is Wilson's of a share of as many images as there are of the rarer kind: three
anomalies set no better a threshold for the thousands of known images beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ndavid.evaluation.intervals import Metric, newcombe, share_of

NAMES = ("AUROC", "AUPR", "FPR95")

_RECALL = 0.95
# Resamples looked at together; of 20,000 scores, 100 of them take three times as long each.
_CHUNK = 25


@dataclass(frozen=True)
class Detection:
    """The three numbers of one column, or of the mean over several.

    Attributes:
        values: (3,) float64, as ``NAMES``.
        resampled: (R, 3) the same of each resample.
        unseen: (3, 2) how far each end lies outside the percentiles of ``resampled``.
        known: Known images.
        others: Images beside them; copies of the known ones are none.
    """

    values: Tensor
    resampled: Tensor
    unseen: Tensor
    known: int
    others: int

    def metrics(self) -> dict[str, Metric]:
        """Returns each number with its 95% interval."""
        ends = (_percentiles(self.resampled) + self.unseen).clamp(0, 1).tolist()
        count = self.known + self.others
        return {
            name: Metric(value, count, low, high)
            for name, value, (low, high) in zip(NAMES, self.values.tolist(), ends, strict=True)
        }


def _percentiles(resampled: Tensor) -> Tensor:
    """The ends of the bootstrap's 95% intervals: (3, 2) of (R, 3)."""
    ends = torch.tensor([0.025, 0.975], dtype=torch.double)
    return torch.quantile(resampled, ends, dim=0).T


def _unseen(values: Tensor, resampled: Tensor, known: int, anomalies: int) -> Tensor:
    """By how much the bootstrap's ends must be moved where no resample differed, else 0: (3, 2)."""
    percentiles = _percentiles(resampled)
    auroc, *shares = values.clamp(0, 1).tolist()
    rarer = [share_of(share, min(known, anomalies)) for share in shares]
    ends = torch.tensor(
        [newcombe(auroc, known, anomalies), *((share.low, share.high) for share in rarer)],
        dtype=torch.double,
    )
    constant = percentiles[:, :1] == percentiles[:, 1:]
    return torch.where(constant, ends - percentiles, 0.0)


class Bootstrap:
    """Compares columns of anomalies with the same known images.

    Args:
        known: (M,) scores, finite; higher is more anomalous.
        resamples: How many.
        generator: Draws them.

    Raises:
        ValueError: Without a score, or with fewer than two resamples.
    """

    def __init__(self, known: Tensor, resamples: int, generator: torch.Generator) -> None:
        if not len(known) or resamples < 2:
            raise ValueError("a bootstrap needs scores of known images and two resamples")
        self.known = known
        self.resamples = resamples
        self.generator = generator
        self.known_counts = self._draw(len(known))

    def compare(self, anomalies: Tensor, copies_of: Tensor | None = None) -> Detection:
        """Returns how well the scores tell ``anomalies`` from the known images.

        Args:
            anomalies: (N,) scores, finite.
            copies_of: (N,) positions of the known images that they are copies of; None for other
                images, which are drawn by themselves.

        Raises:
            ValueError: Without a score.
        """
        if not len(anomalies):
            raise ValueError("no scores of anomalies to compare")
        if copies_of is None:
            counts = self._draw(len(anomalies))
        else:
            counts = self.known_counts[:, copies_of]
        once = [torch.ones(1, len(scores)) for scores in (self.known, anomalies)]
        rows = [
            detection(self.known, anomalies, *both)
            for both in (
                once,
                *zip(self.known_counts.split(_CHUNK), counts.split(_CHUNK), strict=True),
            )
        ]
        found = torch.cat(rows)
        others = len(anomalies) if copies_of is None else 0
        unseen = _unseen(found[0], found[1:], len(self.known), len(anomalies))
        return Detection(found[0], found[1:], unseen, len(self.known), others)

    def _draw(self, number: int) -> Tensor:
        """How often each of so many images is in each resample: (R, number), int16."""
        counts = torch.zeros(self.resamples, number, dtype=torch.int16)
        one = torch.ones(number, dtype=torch.int16)
        for row in counts:
            row.index_add_(0, torch.randint(number, (number,), generator=self.generator), one)
        return counts


def mean_of(columns: Sequence[Detection]) -> Detection:
    """Returns the plain mean over columns that one ``Bootstrap`` compared.

    Columns whose resamples do not differ add what those do not show, as if all erred alike.

    Raises:
        ValueError: Without columns.
    """
    if not columns:
        raise ValueError("a mean needs at least one column")
    return Detection(
        torch.stack([column.values for column in columns]).mean(0),
        torch.stack([column.resampled for column in columns]).mean(0),
        torch.stack([column.unseen for column in columns]).mean(0),
        columns[0].known,
        sum(column.others for column in columns),
    )


def detection(known: Tensor, anomalies: Tensor, *counts: Tensor) -> Tensor:
    """Returns AUROC, AUPR and FPR95 (R, 3), float64, of R weightings of the same scores.

    Args:
        known: (M,) scores; higher is more anomalous.
        anomalies: (N,) scores.
        counts: How often each known image (R, M) and each anomaly (R, N) is there.
    """
    values, place = torch.cat([known, anomalies]).double().unique(return_inverse=True)
    # From the highest score down: a threshold each, and no order among equal scores.
    place = len(values) - 1 - place
    false, true = (
        torch.zeros(len(values), len(weights), dtype=torch.double).index_add_(
            0, where, weights.T.double()
        )
        for where, weights in zip(place.split([len(known), len(anomalies)]), counts, strict=True)
    )
    false_above, true_above = false.cumsum(0), true.cumsum(0)
    all_false, all_true = false_above[-1], true_above[-1]
    below = all_false - false_above
    auroc = (true * (below + false / 2)).sum(0) / (all_false * all_true)
    precision = true_above / (true_above + false_above).clamp(min=1)
    aupr = (true * precision).sum(0) / all_true
    enough = torch.ceil(_RECALL * all_true - 1e-6)
    threshold = (true_above < enough).sum(0, keepdim=True)
    fpr = false_above.gather(0, threshold)[0] / all_false
    return torch.stack([auroc, aupr, fpr], dim=1)


def quartiles(scores: Tensor) -> dict[str, float]:
    """Returns the three quartiles of scores (N,), by the nearest rank."""
    ends = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    found = scores.double().sort().values[(ends * (len(scores) - 1)).round().long()]
    return dict(zip(("q25", "median", "q75"), found.tolist(), strict=True))
