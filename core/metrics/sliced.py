"""Sliced Wasserstein distance: one-dimensional optimal transport along many directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.features import Matrix, checked, feature_warnings
from core.metrics.resampling import Estimate, Rows, one_by_one, score
from core.metrics.threads import one_blas_thread

DIRECTIONS = 1000
DIRECTION_SEED = 0  # one set of directions for all cohorts and studies
STREAM = 7919  # features simulated from the same seed must not be the directions themselves
BLOCK = 64  # directions sorted at a time


def sliced_wasserstein(
    real: ArrayLike, synthetic: ArrayLike, *, seed: int = DIRECTION_SEED, directions: int = DIRECTIONS
) -> float:
    """Squared sliced Wasserstein-2 distance of two cohorts of features (MIND). Lower is better.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : array, shape (m, d)
    seed : int
        Seed of the directions.
    directions : int
        Number of unit directions.

    Returns
    -------
    float
        Mean over the directions of ∫ (F⁻¹(u) − G⁻¹(u))² du between the projected cohorts. Cohorts of
        different size are compared on the joint grid of their quantile steps, which is exact. The
        distance of two Gaussians that differ by a shift is ‖Δμ‖² / d.

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`; fewer than one direction.

    Notes
    -----
    Like FID it falls with the cohort size when nothing else changes, so it is compared only at equal N.

    References
    ----------
    Bonneel et al., J Math Imaging Vis 51 (2015) 22-45, doi:10.1007/s10851-014-0506-3. MIND,
    arXiv:2605.06797.
    """
    first, second = checked(real, synthetic)
    projections = _projected(first, second, seed, directions)
    return _transport(np.sort(projections[:, : len(first)]), np.sort(projections[:, len(first) :]))


def evaluate_sliced(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int) -> Score:
    """Sliced Wasserstein distance with half-sample interval and real-against-real floor."""
    first, second = checked(real, synthetic)
    return score(
        _estimate(_projected(first, second, DIRECTION_SEED, DIRECTIONS), len(first)),
        len(first),
        len(second),
        seed=seed,
        n_boot=n_boot,
        lower=0.0,
        biased=True,
        settings={"width": first.shape[1], "directions": DIRECTIONS, "direction_seed": DIRECTION_SEED},
        warnings=feature_warnings(first, second, covariance=False),
    )


SLICED = FeatureMetric(
    name="sliced-w2",
    label="Sliced Wasserstein",
    variant="corrected",
    unit="squared feature units",
    direction="lower",
    range=(0.0, float("inf")),
    least_n=2,
    reference="MIND, arXiv:2605.06797; Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3",
    meaning="How far feature values must be moved, averaged over random directions, to turn one cohort into the other.",
    version=1,
    evaluate=evaluate_sliced,
)


def _projected(real: Matrix, synthetic: Matrix, seed: int, directions: int) -> Matrix:
    """Pooled rows along random unit directions: (directions, n + m)."""
    if directions < 1:
        raise InputError(f"expected at least 1 direction, found {directions}.", "directions", "The usual number: 1000.")
    axes = np.random.default_rng([seed, STREAM]).normal(size=(directions, real.shape[1]))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    origin = real.mean(axis=0)
    with one_blas_thread():
        return np.hstack([axes @ (real - origin).T, axes @ (synthetic - origin).T])


def _estimate(projections: Matrix, n_real: int) -> Estimate:
    """Transport between any distinct rows; rows are ranked once along each direction and only picked out afterwards."""
    sides = [_ranked(projections[:, :n_real], 0), _ranked(projections[:, n_real:], n_real)]

    def value(i: Rows, j: Rows) -> float:
        picked = []
        for rows in (i, j):
            order, ranked = sides[int(rows[0] >= n_real)]  # all rows of a draw's side are of one cohort
            taken = np.zeros(projections.shape[1], dtype=bool)
            taken[rows] = True
            places = np.flatnonzero(np.take(taken, order))  # faster than a mask of two dimensions
            picked.append(np.take(ranked, places).reshape(len(projections), len(rows)))
        return _transport(*picked)

    return one_by_one(value)


def _ranked(projections: Matrix, start: int) -> tuple[NDArray[np.intp], Matrix]:
    """Row numbers, counted from ``start``, and values in ascending order along each direction."""
    order = np.argsort(projections, axis=1)
    return order + start, np.take_along_axis(projections, order, axis=1)


def _transport(real: Matrix, synthetic: Matrix) -> float:
    """Mean squared W2 of sorted values: (directions, n), (directions, m)."""
    n, m = real.shape[1], synthetic.shape[1]
    if n == m:
        gap = np.subtract(real, synthetic)
        return float(np.square(gap, out=gap).mean())  # a product of vectors would wake the threads of the library
    steps = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))  # in units of 1 / nm: exact
    weights = np.diff(steps) / (n * m)
    total = 0.0
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        gap = real[rows, steps[:-1] // m] - synthetic[rows, steps[:-1] // n]
        total += float((gap**2 @ weights).sum())
    return total / len(real)
