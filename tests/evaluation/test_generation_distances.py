"""Distances of generated images against closed forms on Gaussians, loops, and the libraries."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch_fidelity import metric_fid, metric_kid, metric_prc
from torchmetrics.image.fid import FrechetInceptionDistance

from ndavid.evaluation.generation_distances import (
    frechet,
    kernel_distance,
    mean_of_parts,
    precision_and_recall,
)
from ndavid.evaluation.intervals import Metric


def drawn(count: int, seed: int, dim: int = 5) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()


def with_moments(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """The rows, moved so that their mean and covariance are exactly these."""
    centred = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(centred.T.cov()), centred.T, upper=False
    )
    return white.T @ torch.linalg.cholesky(covariance).T + mean


def some_covariance(seed: int, dim: int = 5) -> Tensor:
    root = drawn(dim, seed, dim)
    return root @ root.T + 0.1 * torch.eye(dim, dtype=torch.double)


def dealt(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Frechet ------------------------------------------------------------------------------------


def test_frechet_of_diagonal_gaussians_is_the_textbooks() -> None:
    ours, theirs, shift = torch.tensor(
        [[1, 2, 3, 0.5, 4], [2, 2, 1, 1.5, 0.1], [0.5, 0, -1, 2, 0]], dtype=torch.double
    )
    x = with_moments(drawn(40, 0), shift, ours.square().diag())
    y = with_moments(drawn(60, 1), torch.zeros(5).double(), theirs.square().diag())
    expected = float(shift.square().sum() + (ours - theirs).square().sum())
    found = frechet(x, y)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.n == 40 and not found.percent


@pytest.mark.parametrize("seed", range(4))
def test_frechet_of_any_gaussians_is_that_of_the_matrix_root(seed: int) -> None:
    one, two = some_covariance(10 + seed), some_covariance(20 + seed)
    mean = drawn(1, 30 + seed)[0]
    x = with_moments(drawn(40, seed), mean, one)
    y = with_moments(drawn(50, 5 + seed), 0 * mean, two)
    root = scipy.linalg.sqrtm((one @ two).numpy()).real
    expected = float(mean @ mean) + np.trace(one.numpy() + two.numpy() - 2 * root)
    assert frechet(x, y).value == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("count", "dim"), [(200, 8), (20, 32)])
def test_frechet_is_that_of_torch_fidelity_with_few_images_too(count: int, dim: int) -> None:
    x, y = drawn(count, 0, dim) * 2 + 1, drawn(count + 5, 1, dim)
    theirs = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(x), metric_fid.fid_features_to_statistics(y), False
    )
    # Of singular covariances their eigenvalues are good to the root of the rounding error.
    expected = theirs["frechet_inception_distance"]
    assert frechet(x, y).value == pytest.approx(expected, rel=1e-9 if count > dim else 1e-5)


def test_frechet_is_that_of_torchmetrics() -> None:
    features = torch.nn.Identity()
    features.num_features = 6  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    x, y = drawn(100, 0, 6) * 1.5, drawn(120, 1, 6) + 0.3
    metric.update(x, real=False)
    metric.update(y, real=True)
    assert frechet(x, y).value == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_of_the_same_images_is_nothing_and_never_negative() -> None:
    x = drawn(30, 0, 40)
    found = frechet(x, x.flip(0))
    assert 0 <= found.value < 1e-6 and found.low == 0
    constant = torch.ones(10, 3)
    assert frechet(constant, constant + 2).value == pytest.approx(12)


def repeated(measure: object, times: int = 60) -> tuple[list[Metric], Tensor]:
    """A number on fresh draws of the same two Gaussians, and its values."""
    root = drawn(5, 99)
    found = [
        measure(drawn(600, 2 * k) @ root + 0.3, drawn(800, 2 * k + 1))  # type: ignore[operator]
        for k in range(times)
    ]
    return found, torch.tensor([metric.value for metric in found])


def test_the_interval_of_frechet_is_as_wide_as_its_spread() -> None:
    found, values = repeated(frechet)
    claimed = torch.tensor([(m.high - m.low) / 2 / 1.96 for m in found])
    assert 0.75 < float(claimed.mean() / values.std()) < 1.33


# ---- kernel distance ----------------------------------------------------------------------------


def moments(mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First, second and third raw moments of a Gaussian whose covariance is root^T root."""
    spread = root.T @ root
    third = torch.einsum("i,j,k->ijk", mean, mean, mean)
    for order in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
        third = third + torch.einsum(order, mean, spread)
    return mean, spread + mean.outer(mean), third


def expected_kernel(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    """The mean of (x . y / D + 1)^3 over independent x and y of these moments."""
    dim = len(a[0])
    first, second, third = (
        (p * q).sum() / dim**k for k, (p, q) in enumerate(zip(a, b, strict=True), 1)
    )
    return float(1 + 3 * first + 3 * second + third)


def test_the_kernel_distance_of_gaussians_is_the_closed_form() -> None:
    root = drawn(5, 99)
    x = moments(torch.full((5,), 0.3).double(), root)
    y = moments(torch.zeros(5).double(), torch.eye(5).double())
    truth = expected_kernel(x, x) + expected_kernel(y, y) - 2 * expected_kernel(x, y)
    measure = partial(kernel_distance, subset_size=60, generator=dealt())
    found, values = repeated(measure)
    assert found[0].n == 600, "ten subsets of sixty"
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 60**0.5
    covered = sum(metric.low <= truth <= metric.high for metric in found)
    assert covered >= 0.85 * len(found)


def test_the_kernel_distance_is_that_of_loops() -> None:
    x, y = drawn(11, 0, 3), drawn(9, 1, 3)
    order = dealt(4)
    first, second = (rows[torch.randperm(len(rows), generator=order)[:8]] for rows in (x, y))

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    expected = []
    for start in range(0, 8, 2):
        a, b = first[start : start + 2], second[start : start + 2]
        across = sum(kernel(p, q) for p in a for q in b) / 4
        expected.append(kernel(a[0], a[1]) + kernel(b[0], b[1]) - 2 * across)
    found = kernel_distance(x, y, subset_size=1000, generator=dealt(4))
    assert found.value == pytest.approx(np.mean(expected), rel=1e-9)
    half = 3.182446 * np.std(expected, ddof=1) / 2  # Student's, three degrees of freedom
    assert found.high - found.value == pytest.approx(half, rel=1e-6)


def test_each_subset_is_that_of_torch_fidelity() -> None:
    x, y = drawn(100, 0), drawn(100, 1) + 1
    order = dealt(7)
    first, second = (rows[torch.randperm(100, generator=order)] for rows in (x, y))
    expected = []
    for a, b in zip(first.split(25), second.split(25), strict=True):
        kernels = [((p @ q.T / 5 + 1) ** 3).numpy() for p, q in ((a, a), (a, b), (b, b))]
        expected.append(metric_kid.mmd2(*kernels))
    found = kernel_distance(x, y, subset_size=25, generator=dealt(7))
    assert found.value == pytest.approx(np.mean(expected), rel=1e-9)


def test_the_same_distribution_has_a_kernel_distance_about_zero() -> None:
    values = [
        kernel_distance(drawn(200, k), drawn(200, 100 + k), subset_size=50, generator=dealt()).value
        for k in range(40)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / 40**0.5
    assert min(values) < 0, "an unbiased estimate of zero is negative half the time"


def test_a_mean_of_parts_has_students_interval() -> None:
    found = mean_of_parts(torch.tensor([1.0, 3.0]), 20)
    assert (found.value, found.n) == (2, 20)
    assert found.high == pytest.approx(2 + 12.706205, rel=1e-6)


# ---- precision and recall -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_precision_and_recall_are_those_of_loops(k: int, chunk: int) -> None:
    x, y = drawn(40, 0) * 0.8, drawn(50, 1) + 0.5

    def share(asked: Tensor, centres: Tensor) -> float:
        near = NearestNeighbors(n_neighbors=k + 1).fit(centres.numpy())
        radii = near.kneighbors(centres.numpy())[0][:, k]
        hits = [
            any(float((row - c).norm()) <= r for c, r in zip(centres, radii, strict=True))
            for row in asked
        ]
        return float(np.mean(hits))

    precision, recall = precision_and_recall(x, y, k=k, chunk=chunk)
    assert precision.value == pytest.approx(share(x, y)) and precision.n == 40
    assert recall.value == pytest.approx(share(y, x)) and recall.n == 50
    assert 0 < precision.value < 1 and precision.percent


def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    x, y = drawn(300, 0) * 0.8, drawn(280, 1) + 0.5
    found = tuple(metric.value for metric in precision_and_recall(x, y))
    assert found == pytest.approx(metric_prc.calculate_precision_recall_full(x, y, 3), abs=1e-6)


def test_a_generator_that_drops_a_mode_is_precise_but_recalls_half() -> None:
    here, there = drawn(100, 0), drawn(100, 1) + 100
    precision, recall = precision_and_recall(drawn(100, 2), torch.cat([here, there]), k=10)
    assert precision.value > 0.9
    assert 0.4 < recall.value <= 0.5
    assert precision_and_recall(here, here)[0].value == 1
    assert precision_and_recall(here, there)[1].value == 0


# ---- what cannot be measured --------------------------------------------------------------------


def test_too_few_or_unlike_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 generated"):
        frechet(drawn(1, 0), drawn(9, 1))
    with pytest.raises(ValueError, match="not alike"):
        frechet(drawn(9, 0), drawn(9, 1, dim=6))
    with pytest.raises(ValueError, match="at least 8 reference"):
        kernel_distance(drawn(9, 0), drawn(7, 1), subset_size=2, generator=dealt())
    with pytest.raises(ValueError, match="a subset needs"):
        kernel_distance(drawn(9, 0), drawn(9, 1), subset_size=1, generator=dealt())
    with pytest.raises(ValueError, match="at least 4 reference"):
        precision_and_recall(drawn(9, 0), drawn(3, 1))


@pytest.mark.parametrize("side", ["generated", "reference"])
def test_features_that_are_not_finite_are_named(side: str) -> None:
    good = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    broken = good.clone()
    broken[3, 1] = torch.nan
    pair = (broken, good) if side == "generated" else (good, broken)
    draw = torch.Generator().manual_seed(0)
    for measure in (
        frechet,
        precision_and_recall,
        partial(kernel_distance, subset_size=4, generator=draw),
    ):
        with pytest.raises(ValueError, match=f"features of {side} images are not finite"):
            measure(*pair)
