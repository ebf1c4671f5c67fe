"""95% intervals of proportions, of means and of AUROC; resampled only for means of items.

Sources:
    Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference": the score
    interval of one proportion, which stays sensible at 0 and at 1 and for a few dozen videos.
    Zou & Donner (2008), "Construction of confidence limits about effect measures: a general
    approach" (MOVER): the interval of a weighted sum of independent proportions from their own
    intervals. With one term it is the Wilson interval itself.
    Newcombe (2006), "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic. Part 2": the score interval of an AUROC (its method 5), Wilson's idea with the
    variance of Hanley and McNeil (1982), which stays sensible at 1 too.
    Efron (1979), "Bootstrap Methods: Another Look at the Jackknife": the percentiles of the mean of
    items drawn anew, for values of which nothing else is known.

An interval here covers the choice of test items. It knows nothing of seeds: two trainings differ
by more than it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959963984540054
"""The 97.5% quantile of the normal distribution: two-sided 95%."""

_RESAMPLES = 10_000
# Draws held at once, 8 bytes each: those of a large test split would take 300 MB together.
_DRAWS = 1_000_000


@dataclass(frozen=True)
class Metric:
    """A measured value, the number of units it was measured on, and its 95% interval.

    Attributes:
        value: The value; accuracies and recalls are fractions in [0, 1], never per cent.
        n: The number of test videos or images behind it.
        low: Lower end of the 95% interval.
        high: Upper end of the 95% interval.
        percent: Whether it is a share, which readers are shown in per cent.
    """

    value: float
    n: int
    low: float
    high: float
    percent: bool = True

    def __str__(self) -> str:
        if not self.percent:
            return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n={self.n})"
        return f"{100 * self.value:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}] (n={self.n})"


def wilson(successes: int, trials: int) -> Metric:
    """Returns the proportion ``successes / trials`` with its 95% Wilson score interval.

    Raises:
        ValueError: Without trials, or with more successes than trials.
    """
    if trials < 1:
        raise ValueError("a proportion needs at least one trial")
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    return share_of(successes / trials, trials)


def share_of(p: float, trials: int) -> Metric:
    """Returns a mean ``p`` of values in [0, 1] with the Wilson interval of a share of that size.

    Of all values in [0, 1] with the same mean, zeros and ones vary most: the interval is wide
    enough for any. ``trials`` is at least 1.
    """
    z2 = Z_95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # At 0 and 1 the ends are exact; rounding must not push them past the value.
    low = 0.0 if p == 0 else centre - half
    high = 1.0 if p == 1 else centre + half
    return Metric(p, trials, low, high)


def mean_of_independent(parts: Sequence[Metric]) -> Metric:
    """Returns the plain mean of independently measured values with its 95% MOVER interval.

    Used for the mean over classes (each class has its own videos) and over folds, whose test videos
    differ. ``n`` is the sum of the parts'.

    Raises:
        ValueError: Without parts.
    """
    if not parts:
        raise ValueError("a mean needs at least one part")
    count = len(parts)
    value = math.fsum(part.value for part in parts) / count
    below = math.sqrt(math.fsum((part.value - part.low) ** 2 for part in parts)) / count
    above = math.sqrt(math.fsum((part.high - part.value) ** 2 for part in parts)) / count
    return Metric(value, sum(part.n for part in parts), value - below, value + above)


def mean_of_items(values: Sequence[float]) -> Metric:
    """Returns the mean of one value an item with its 95% interval, the bootstrap's percentiles.

    For values in [0, 1] that are no hits or misses, such as a share of a video's clips. The same
    values give the same interval: what is drawn is fixed. Of values that are all alike the
    bootstrap knows no spread; they get the interval of a share (``share_of``).

    Raises:
        ValueError: Without values, or with one outside [0, 1].
    """
    if not values:
        raise ValueError("a mean needs at least one item")
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("a mean of items is of values in [0, 1]")
    if min(values) == max(values):
        return share_of(values[0], len(values))
    items, count = torch.tensor(values, dtype=torch.double), len(values)
    draw = torch.Generator().manual_seed(0)
    at_once = max(1, _DRAWS // count)
    means = []
    for start in range(0, _RESAMPLES, at_once):
        rows = min(at_once, _RESAMPLES - start)
        means.append(items[torch.randint(count, (rows, count), generator=draw)].mean(1))
    ends = torch.tensor([0.025, 0.975], dtype=torch.double)
    low, high = torch.quantile(torch.cat(means), ends).tolist()
    value = math.fsum(values) / count
    # Rounding must not push an end past the value.
    return Metric(value, count, min(low, value), max(high, value))


def top_k_accuracy(hits: Sequence[bool]) -> Metric:
    """Returns the share of true ``hits`` (one a video) with its Wilson interval."""
    return wilson(sum(bool(hit) for hit in hits), len(hits))


def mean_class_accuracy(correct: Sequence[int], total: Sequence[int]) -> Metric:
    """Returns the mean over classes of ``correct[c] / total[c]`` with its interval.

    Classes without a test video have no accuracy and are left out of the mean.
    """
    return mean_of_independent(
        [wilson(hits, videos) for hits, videos in zip(correct, total, strict=True) if videos]
    )


def auroc(negatives: Tensor, positives: Tensor) -> Metric:
    """Returns the probability that a positive scores above a negative, equal scores half.

    This is the area under the ROC curve, with its 95% Newcombe interval; ``n`` counts both.

    Args:
        negatives: (M,) scores, finite.
        positives: (N,) scores, finite.

    Raises:
        ValueError: Without scores on either side.
    """
    if not len(negatives) or not len(positives):
        raise ValueError("an AUROC needs scores of both kinds")
    ordered, asked = negatives.double().sort().values, positives.double()
    below = torch.searchsorted(ordered, asked)
    not_above = torch.searchsorted(ordered, asked, right=True)
    pairs = len(negatives) * len(positives)
    area = float((below + not_above).sum()) / 2 / pairs
    low, high = newcombe(area, len(negatives), len(positives))
    return Metric(area, len(negatives) + len(positives), low, high)


def newcombe(area: float, negatives: int, positives: int) -> tuple[float, float]:
    """Returns the 95% interval of an AUROC ``area`` from so many scores of both kinds.

    Its ends are the areas that would put ``area`` exactly at the edge of their own interval.
    """
    others = (negatives + positives) / 2 - 1

    def excess(candidate: float) -> float:
        spread = (1 - candidate) / (2 - candidate) + candidate / (1 + candidate)
        variance = candidate * (1 - candidate) * (1 + others * spread) / (negatives * positives)
        return (candidate - area) ** 2 - Z_95**2 * variance

    low = 0.0 if area == 0 else _bisect(excess, 0.0, area)
    high = 1.0 if area == 1 else _bisect(excess, 1.0, area)
    return low, high


def _bisect(excess: Callable[[float], float], outside: float, inside: float) -> float:
    """Where ``excess`` changes its sign between a point where it is positive and one where not."""
    for _ in range(100):
        middle = (outside + inside) / 2
        if excess(middle) > 0:
            outside = middle
        else:
            inside = middle
    return (outside + inside) / 2
