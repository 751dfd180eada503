"""Fidelity and variety from nearest neighbours: precision, recall, density, coverage.

A ball around every feature vector reaches to its k-th nearest neighbour in the same cohort. Precision
and density ask whether synthetic volumes lie in balls of real ones, recall and coverage the reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.features import Matrix, checked, feature_warnings
from core.metrics.kernels import row_blocks
from core.metrics.resampling import TABLE_ROWS, Draw, Estimate, Rows, score
from core.metrics.threads import one_blas_thread

Share = Literal["precision", "recall", "density", "coverage"]

NEIGHBOURS = 5
NEAREST = 48  # rows sorted around each centre; a half-sample finds its fifth nearest among them nearly always
LEAST_FOR_COVERAGE = 100  # below it, simulated intervals of a share near 0 or 1 hold it less often than stated
SHARES: tuple[Share, ...] = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class NeighbourShares:
    """Precision, recall and coverage between 0 and 1; density about 1 for equal distributions, and above it."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_shares(real: ArrayLike, synthetic: ArrayLike, *, k: int = NEIGHBOURS) -> NeighbourShares:
    """Precision, recall, density and coverage of a synthetic cohort. Higher is better.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : array, shape (m, d)
    k : int
        The ball of a row reaches to its k-th nearest other row, without its surface.

    Returns
    -------
    NeighbourShares
        precision: share of synthetic rows in a real ball; recall: share of real rows in a synthetic
        ball; density: mean number of real balls around a synthetic row, divided by k; coverage: share
        of real balls that hold a synthetic row.

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`; k below 1, or a cohort without k other rows.

    Notes
    -----
    Distances are computed in blocks of rows: memory grows with n and m, time with their product.

    References
    ----------
    Kynkäänniemi et al., NeurIPS 2019, arXiv:1904.06991 (precision, recall). Naeem et al., ICML 2020,
    arXiv:2002.09797 (density, coverage).
    """
    first, second = checked(real, synthetic)
    if not 1 <= k < min(len(first), len(second)):
        raise InputError(
            f"expected 1 ≤ k < N, found k = {k} with {len(first)} real and {len(second)} synthetic rows.",
            "k",
            "Use 5 with six volumes or more.",
        )
    origin = first.mean(axis=0)  # keeps the products small beside the distances
    first, second = first - origin, second - origin
    own_real, own_synthetic = radii(first, k), radii(second, k)
    hits, recalled, covered = np.zeros(len(second)), 0, 0
    for block, squared in distance_blocks(first, second):
        inside = squared < own_real[block, None]
        hits += inside.sum(axis=0)
        covered += int(inside.any(axis=1).sum())
        recalled += int((squared < own_synthetic).any(axis=1).sum())
    n = len(first)
    return NeighbourShares(float((hits > 0).mean()), recalled / n, float(hits.mean() / k), covered / n)


def distance_blocks(rows: Matrix, others: Matrix) -> Iterator[tuple[slice, Matrix]]:
    """Yield squared distances from blocks of rows to all others: (block, m)."""
    norms = (others**2).sum(axis=1)
    for block in row_blocks(len(rows), len(others)):
        with one_blas_thread():
            squared = rows[block] @ others.T
        squared *= -2
        squared += (rows[block] ** 2).sum(axis=1)[:, None]
        squared += norms
        yield block, np.maximum(squared, 0.0, out=squared)


def radii(rows: Matrix, k: int) -> NDArray[np.float64]:
    """Squared distance of every row to its k-th nearest other row: (n, d) to (n,)."""
    found = np.empty(len(rows))
    for block, squared in distance_blocks(rows, rows):
        squared[np.arange(len(squared)), np.arange(block.start, block.stop)] = np.inf
        found[block] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return found


def evaluate_share(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int, share: Share
) -> Score:
    """One of the four shares with half-sample interval and real-against-real floor; see `neighbour_shares`."""
    first, second = checked(real, synthetic)
    notes = feature_warnings(first, second, covariance=False)
    if n_boot and 2 * (NEIGHBOURS + 1) <= min(len(first), len(second)) < LEAST_FOR_COVERAGE:
        notes.append(f"fewer than {LEAST_FOR_COVERAGE} volumes in a cohort: the interval may be too narrow")
    return score(
        _estimate(first, second, share),
        len(first),
        len(second),
        seed=seed,
        n_boot=n_boot,
        lower=0.0,
        upper=np.inf if share == "density" else 1.0,
        biased=False,
        least=NEIGHBOURS + 1,
        settings={"width": first.shape[1], "k": NEIGHBOURS, "ball": "open"},
        warnings=notes,
    )


def _metric(share: Share, label: str, reference: str, meaning: str) -> FeatureMetric:
    return FeatureMetric(
        name=share,
        label=label,
        variant="corrected",
        unit="",
        direction="higher",
        range=(0.0, float("inf") if share == "density" else 1.0),
        least_n=NEIGHBOURS + 1,
        reference=reference,
        meaning=meaning,
        version=1,
        evaluate=partial(evaluate_share, share=share),
    )


PRECISION = _metric(
    "precision",
    "Precision",
    "Kynkäänniemi et al., NeurIPS 2019, arXiv:1904.06991",
    "Share of synthetic brains that lie among the real ones; one odd real brain can raise it.",
)
RECALL = _metric(
    "recall",
    "Recall",
    "Kynkäänniemi et al., NeurIPS 2019, arXiv:1904.06991",
    "Share of real brains that lie among the synthetic ones; low when the generator lacks variety.",
)
DENSITY = _metric(
    "density",
    "Density",
    "Naeem et al., ICML 2020, arXiv:2002.09797",
    "How densely real brains surround each synthetic one; about 1 for a perfect generator, more when it keeps to the "
    "typical.",
)
COVERAGE = _metric(
    "coverage",
    "Coverage",
    "Naeem et al., ICML 2020, arXiv:2002.09797",
    "Share of real brains with a synthetic one in their neighbourhood; low when the generator lacks variety.",
)


def _estimate(real: Matrix, synthetic: Matrix, share: Share) -> Estimate:
    """Share of any draws. Distances pass by once, in blocks of centres that serve all draws."""
    pooled = np.vstack([real, synthetic])
    pooled -= pooled.mean(axis=0)
    if len(pooled) <= TABLE_ROWS:
        table = np.vstack([squared for _, squared in distance_blocks(pooled, pooled)])
        return lambda draws: _share_of_draws(iter([(slice(0, len(table)), table)]), len(table), draws, share)
    return lambda draws: _share_of_draws(distance_blocks(pooled, pooled), len(pooled), draws, share)


def _share_of_draws(
    blocks: Iterator[tuple[slice, Matrix]], n: int, draws: Sequence[Draw], share: Share
) -> NDArray[np.float64]:
    """Share of each draw: (draws,). Of every centre only its nearest rows are sorted, once for all draws."""
    roles = [(j, i) if share == "recall" else (i, j) for i, j in draws]  # centres, others
    found = [np.zeros(len(others)) for _, others in roles]  # balls around each other row
    filled = np.zeros(len(draws))
    for block, squared in blocks:
        squared[np.arange(len(squared)), np.arange(block.start, block.stop)] = np.inf
        near = _nearest(squared)
        for k, (centres, others) in enumerate(roles):
            rows = centres[(centres >= block.start) & (centres < block.stop)] - block.start
            inside = squared[rows[:, None], others] < _radii_among(squared, near, rows, centres, n)[:, None]
            if share == "coverage":
                filled[k] += inside.any(axis=1).sum()
            elif share == "density":
                filled[k] += inside.sum()
            else:
                found[k] += inside.any(axis=0)
    if share == "coverage":
        return np.array([count / len(centres) for count, (centres, _) in zip(filled, roles, strict=True)])
    if share == "density":
        return np.array([count / len(others) / NEIGHBOURS for count, (_, others) in zip(filled, roles, strict=True)])
    return np.array([float((hits > 0).mean()) for hits in found])


def _nearest(squared: Matrix) -> NDArray[np.intp]:
    """Columns of the `NEAREST` least distances of each row, ascending: (rows, at most NEAREST)."""
    most = min(NEAREST, squared.shape[1])
    some = np.argpartition(squared, most - 1, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(squared, some, axis=1), axis=1)
    return np.take_along_axis(some, order, axis=1)


def _radii_among(squared: Matrix, near: NDArray[np.intp], rows: Rows, centres: Rows, n: int) -> NDArray[np.float64]:
    """Squared distance of some rows of a block to their k-th nearest centre, from the sorted nearest rows."""
    chosen = np.zeros(n, dtype=bool)
    chosen[centres] = True
    candidates = near[rows]
    passed = np.cumsum(chosen[candidates], axis=1, dtype=np.int16)
    reached = passed[:, -1] >= NEIGHBOURS
    place = np.argmax(passed >= NEIGHBOURS, axis=1)
    own = squared[rows, candidates[np.arange(len(rows)), place]]
    if not reached.all():  # the k-th nearest centre is not among the sorted ones
        far = squared[rows[~reached][:, None], centres]
        own[~reached] = np.partition(far, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]
    return np.asarray(own)
