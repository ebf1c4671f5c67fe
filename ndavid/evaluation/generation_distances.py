"""How far generated images are from real ones, from the features of both, with 95% intervals.

Sources:
    Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule": the Frechet distance of
    two Gaussians, FID where the features are Inception's.
    Binkowski et al. (2018), "Demystifying MMD GANs": the squared maximum mean discrepancy under
    (x . y / D + 1)^3, unbiased, KID where the features are Inception's. Zaremba, Gretton and
    Blaschko (2013), "B-tests": its mean over disjoint subsets, which are independent.
    Kynkaanniemi et al. (2019), "Improved Precision and Recall Metric": which samples lie within
    the balls that reach from each item of the other set to its k-th neighbour.
    Rippl, Munk and Sturm (2016), "Limit laws of the empirical Wasserstein distance: Gaussian
    distributions": the spread of the first, by its derivative.

Differences from torch-fidelity and torchmetrics, whose values these are in the tests: intervals,
which those don't have; and the kernel distance takes disjoint subsets, where theirs overlap and so
don't tell how far their mean may be off.

Everything is in float64: the Frechet distance is a small difference of large traces. The intervals
cover the choice of images on both sides, not the training seed. None of the values but the second
is free of bias: they may be compared at the same number of images only.
"""

from __future__ import annotations

import math

import torch
from scipy.special import stdtrit
from torch import Tensor

from ndavid.evaluation.intervals import Z_95, Metric, wilson

_SMALLEST_SUBSET = 2

# Eigenvalues below this share of the largest are rounding: no image lies in their direction.
_NOTHING = 1e-12


def frechet(generated: Tensor, reference: Tensor) -> Metric:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of means and covariances.

    The value of M and N images is larger than that of infinitely many; the interval is around what
    M and N images give on average.

    Args:
        generated: (M, D).
        reference: (N, D).

    Raises:
        ValueError: With fewer than two images on a side.
    """
    _check(generated, reference, at_least=2)
    x, y = generated.double(), reference.double()
    shift = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    over_x, over_y = (_Covariance(rows) for rows in (x, y))
    cross = over_x.root @ over_y.matrix @ over_x.root
    overlap = torch.linalg.eigvalsh(cross).clamp(min=0).sqrt().sum()
    value = shift @ shift + over_x.matrix.trace() + over_y.matrix.trace() - 2 * overlap
    spread = sum(
        _influence(rows, sign * shift, mine, other).var() / len(rows)
        for rows, sign, mine, other in ((x, 1, over_x, over_y), (y, -1, over_y, over_x))
    )
    value = max(float(value), 0.0)
    half = Z_95 * math.sqrt(spread)
    return Metric(value, len(x), max(value - half, 0.0), value + half, percent=False)


class _Covariance:
    """A covariance with its square root and the inverse of that, zero where it has no extent."""

    def __init__(self, centred: Tensor) -> None:
        self.matrix = centred.T @ centred / (len(centred) - 1)
        values, vectors = torch.linalg.eigh(self.matrix)
        used = values > _NOTHING * values[-1]
        roots = torch.where(used, values, 0).sqrt()
        inverses = torch.where(used, values, torch.inf).rsqrt()
        self.root = (vectors * roots) @ vectors.T
        self.inverse_root = (vectors * inverses) @ vectors.T


def _influence(centred: Tensor, shift: Tensor, mine: _Covariance, other: _Covariance) -> Tensor:
    """By how much the distance moves with the weight of each image, up to a constant; (M,)."""
    values, vectors = torch.linalg.eigh(mine.root @ other.matrix @ mine.root)
    overlap = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    whitened = centred @ mine.inverse_root
    transported = ((whitened @ overlap) * whitened).sum(1)
    return 2 * (centred @ shift) + centred.square().sum(1) - transported


def kernel_distance(
    generated: Tensor, reference: Tensor, *, subset_size: int, generator: torch.Generator
) -> Metric:
    """Returns the unbiased MMD^2 under (x . y / D + 1)^3: its mean over disjoint subsets.

    The subsets are as many as fit into the smaller side, at least four; they are smaller than asked
    for where there are too few images, which leaves the value without bias. It may be negative.

    Args:
        generated: (M, D).
        reference: (N, D).
        subset_size: Images of each side in a subset.
        generator: Deals the images out, on the CPU.

    Raises:
        ValueError: With fewer than eight images on a side, or a subset of fewer than two.
    """
    _check(generated, reference, at_least=4 * _SMALLEST_SUBSET)
    if subset_size < _SMALLEST_SUBSET:
        raise ValueError(f"a subset needs at least {_SMALLEST_SUBSET} images, not {subset_size}")
    smaller = min(len(generated), len(reference))
    size = min(subset_size, smaller // 4)
    count = smaller // size
    x, y = (
        rows[torch.randperm(len(rows), generator=generator)[: count * size]].double()
        for rows in (generated, reference)
    )
    values = torch.stack([_mmd(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])
    return mean_of_parts(values, count * size)


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate from two sets of the same size."""
    size = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum(
        (k.sum() - k.diagonal().sum()) / (size * (size - 1)) for k in (kernel(x, x), kernel(y, y))
    )
    return within - 2 * kernel(x, y).mean()


def mean_of_parts(values: Tensor, count: int) -> Metric:
    """Returns the mean of a number's values on disjoint parts, with Student's interval.

    Args:
        values: (P,), P >= 2.
        count: Images in all parts together.
    """
    parts = len(values)
    quantile = float(stdtrit(parts - 1, 0.975))
    half = quantile * float(values.double().std()) / math.sqrt(parts)
    mean = float(values.double().mean())
    return Metric(mean, count, mean - half, mean + half, percent=False)


def precision_and_recall(
    generated: Tensor, reference: Tensor, *, k: int = 3, chunk: int = 1024
) -> tuple[Metric, Metric]:
    """Returns the share of generated images near real ones, and of real images near generated.

    Near is within the distance of some item of the other set to its ``k``-th neighbour there. The
    intervals are Wilson's, and take the other set as given. Both shares grow with the other set.

    Args:
        generated: (M, D).
        reference: (N, D).
        k: The neighbour whose distance is the radius; an item is not its own neighbour.
        chunk: Rows of distances held at a time.

    Raises:
        ValueError: If a side has no k other items.
    """
    _check(generated, reference, at_least=k + 1)
    # About a common centre, where differences of squares lose the least.
    centre = reference.double().mean(0)
    x, y = generated.double() - centre, reference.double() - centre
    precise = _covered(x, y, _radii(y, k, chunk), chunk)
    recalled = _covered(y, x, _radii(x, k, chunk), chunk)
    return wilson(int(precise.sum()), len(x)), wilson(int(recalled.sum()), len(y))


def _radii(rows: Tensor, k: int, chunk: int) -> Tensor:
    """The squared distance of each row to its k-th neighbour, itself left out."""
    found = []
    for start in range(0, len(rows), chunk):
        distances = _squared_distances(rows[start : start + chunk], rows)
        place = torch.arange(len(distances), device=rows.device)
        distances[place, start + place] = torch.inf
        # kthvalue takes ten times as long.
        found.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found)


def _covered(rows: Tensor, centres: Tensor, radii: Tensor, chunk: int) -> Tensor:
    """Whether each row lies within the radius of some centre; bool."""
    return torch.cat(
        [(_squared_distances(part, centres) <= radii).any(dim=1) for part in rows.split(chunk)]
    )


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return squares.addmm(a, b.T, alpha=-2).clamp_(min=0)


def _check(generated: Tensor, reference: Tensor, *, at_least: int) -> None:
    for name, rows in (("generated", generated), ("reference", reference)):
        if rows.ndim != 2 or len(rows) < at_least:
            raise ValueError(
                f"need features (N, D) of at least {at_least} {name} images, got "
                f"{tuple(rows.shape)}"
            )
        if not rows.isfinite().all():
            raise ValueError(f"features of {name} images are not finite: weights or images broken")
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features of {generated.shape[1]} and {reference.shape[1]} numbers are not alike"
        )
