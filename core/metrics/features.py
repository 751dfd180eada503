"""Distances between two cohorts of feature vectors."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.resampling import Estimate, Rows, score
from core.metrics.threads import one_blas_thread

Matrix = NDArray[np.float64]
Kernel = Literal["rbf", "polynomial", "linear"]


def frechet_distance(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Fréchet distance between the Gaussians fitted to two cohorts of features (FID). Lower is better.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : array, shape (m, d)

    Returns
    -------
    float
        ‖Δμ‖² + Tr Σr + Tr Σs − 2 Tr (Σr Σs)^½ with covariances of ddof = 1; 0 for equal moments.

    Raises
    ------
    InputError
        Not two matrices of one width with two rows or more, NaN or Inf.

    Notes
    -----
    The last trace is the nuclear norm ‖Xr Xsᵀ‖∗ / √((n−1)(m−1)) of the centred rows. It needs neither
    the d×d root nor full rank, and has no imaginary part. The value falls with the cohort size even
    when nothing else changes, so it is compared only at equal N.

    References
    ----------
    Heusel et al., NeurIPS 2017, arXiv:1706.08500. Chong & Forsyth, CVPR 2020, arXiv:1911.07023 (bias).
    """
    with one_blas_thread():
        return _frechet(*checked(real, synthetic))


def mmd2(real: ArrayLike, synthetic: ArrayLike, *, kernel: Kernel, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of two cohorts of features. Lower is better.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : array, shape (m, d)
    kernel : {"rbf", "polynomial", "linear"}
        exp(−‖x−y‖² / 2h²), (x·y/d + 1)³ as in KID, or x·y.
    bandwidth : float, optional
        h of the RBF kernel; the median distance between the pooled rows when not given. Fix it when
        several cohorts are compared.

    Returns
    -------
    float
        mean k(x, x′) + mean k(y, y′) over distinct rows − 2 mean k(x, y). Its expectation is 0 for equal
        distributions, so small negative values are normal.

    Raises
    ------
    InputError
        As `frechet_distance`; also an unknown kernel, a bandwidth that is not positive, or a median
        distance of zero.

    References
    ----------
    Gretton et al., JMLR 13 (2012) 723–773. Bińkowski et al., ICLR 2018, arXiv:1801.01401 (KID).
    """
    first, second = checked(real, synthetic)
    n, pooled = len(first), np.vstack([first, second])
    if kernel == "rbf" and bandwidth is None:
        bandwidth = median_distance(pooled)
    estimate = _mmd2_estimate(kernel_matrix(pooled, kernel=kernel, bandwidth=bandwidth))
    return estimate(np.arange(n), np.arange(n, len(pooled)))


def median_distance(rows: ArrayLike) -> float:
    """Median Euclidean distance between distinct rows, the usual bandwidth of an RBF kernel.

    Parameters
    ----------
    rows : array, shape (n, d)

    Raises
    ------
    InputError
        When it is zero: at least half the pairs are equal.
    """
    squared = _squared_distances(np.asarray(rows, dtype=np.float64))
    median = float(np.median(np.sqrt(squared[np.triu_indices(len(squared), 1)])))
    if not median > 0:
        raise InputError(
            "the median distance between feature rows is 0, so the RBF kernel has no bandwidth.",
            "features",
            "Look for repeated volumes or a constant encoder, or give a bandwidth.",
        )
    return median


def kernel_matrix(rows: Matrix, *, kernel: Kernel, bandwidth: float | None = None) -> Matrix:
    """Kernel values between all rows: (n, d) to (n, n)."""
    if kernel == "linear":
        return rows @ rows.T
    if kernel == "polynomial":
        return (rows @ rows.T / rows.shape[1] + 1) ** 3
    if kernel != "rbf":
        raise InputError(f"unknown kernel {kernel!r}.", "kernel", "Choose one of: rbf, polynomial, linear.")
    if bandwidth is None or not (np.isfinite(bandwidth) and bandwidth > 0):
        raise InputError(f"expected a bandwidth > 0, found {bandwidth}.", "bandwidth", "Give a positive number.")
    return np.exp(-_squared_distances(rows) / (2 * bandwidth**2))


def checked(real: ArrayLike, synthetic: ArrayLike) -> tuple[Matrix, Matrix]:
    """Return both feature matrices in float64, or say what is wrong with them.

    Raises
    ------
    InputError
        Not two matrices of one width with two rows or more, NaN or Inf.
    """
    first, second = _matrix(real, "real features"), _matrix(synthetic, "synthetic features")
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"real features have width {first.shape[1]}, synthetic features {second.shape[1]}.",
            "features",
            "Extract both with the same encoder.",
        )
    return first, second


def frechet_estimate(real: Matrix, synthetic: Matrix) -> Estimate:
    """Fréchet distance between any rows of the pooled cohorts, from one table of products where that is cheaper."""
    pooled = np.vstack([real, synthetic])
    pooled -= pooled.mean(axis=0)  # keeps the products small beside the spread
    if len(pooled) > pooled.shape[1]:
        return lambda i, j: _frechet(pooled[i], pooled[j])
    products = pooled @ pooled.T

    def estimate(i: Rows, j: Rows) -> float:
        within_i, within_j, between = products[np.ix_(i, i)], products[np.ix_(j, j)], products[np.ix_(i, j)]
        gap = within_i.mean() + within_j.mean() - 2 * between.mean()
        spread = sum((np.trace(w) - len(w) * w.mean()) / (len(w) - 1) for w in (within_i, within_j))
        centred = between - between.mean(0) - between.mean(1)[:, None] + between.mean()
        return _assemble(float(gap), float(spread), centred, len(i), len(j))

    return estimate


def feature_warnings(real: Matrix, synthetic: Matrix, *, covariance: bool) -> list[str]:
    """List what weakens a comparison of these features."""
    notes = [
        f"all {name} features are constant: every volume looks the same to this encoder"
        for name, rows in (("real", real), ("synthetic", synthetic))
        if not np.ptp(rows, axis=0).any()
    ]
    n, width = min(len(real), len(synthetic)), real.shape[1]
    if covariance and n <= width:
        notes.append(
            f"N = {n} is not larger than the feature width {width}: the covariance is singular; compare only at equal N"
        )
    return notes


def evaluate_frechet(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int) -> Score:
    """Fréchet distance with half-sample interval and real-against-real floor; see `frechet_distance`."""
    first, second = checked(real, synthetic)
    return score(
        frechet_estimate(first, second),
        len(first),
        len(second),
        seed=seed,
        n_boot=n_boot,
        lower=0.0,
        biased=True,
        settings={"width": first.shape[1], "ddof": 1},
        warnings=feature_warnings(first, second, covariance=True),
    )


def evaluate_mmd2_rbf(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int) -> Score:
    """Unbiased RBF MMD² whose bandwidth is the median distance between real rows, so one for all cohorts."""
    first, second = checked(real, synthetic)
    return _evaluate_mmd2(first, second, kernel="rbf", bandwidth=median_distance(first), seed=seed, n_boot=n_boot)


def evaluate_kid(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int) -> Score:
    """Unbiased MMD² with the cubic kernel of KID, on all rows at once."""
    first, second = checked(real, synthetic)
    return _evaluate_mmd2(first, second, kernel="polynomial", bandwidth=None, seed=seed, n_boot=n_boot)


FRECHET = FeatureMetric(
    name="fid",
    label="Fréchet distance",
    variant="corrected",
    unit="squared feature units",
    direction="lower",
    range=(0.0, float("inf")),
    least_n=2,
    reference="Heusel et al., NeurIPS 2017, arXiv:1706.08500",
    meaning="How far apart the two cohorts lie in mean and covariance of what the encoder sees.",
    version=1,
    evaluate=evaluate_frechet,
)
MMD2_RBF = FeatureMetric(
    name="mmd2-rbf",
    label="MMD² (RBF)",
    variant="corrected",
    unit="",
    direction="lower",
    range=(-2.0, 2.0),
    least_n=2,
    reference="Gretton et al., JMLR 13 (2012) 723-773",
    meaning="Whether the two cohorts differ in any way the encoder sees; 0 when they do not, whatever their size.",
    version=1,
    evaluate=evaluate_mmd2_rbf,
)
KID = FeatureMetric(
    name="kid",
    label="KID",
    variant="corrected",
    unit="",
    direction="lower",
    range=(float("-inf"), float("inf")),
    least_n=2,
    reference="Bińkowski et al., ICLR 2018, arXiv:1801.01401",
    meaning="How far apart the two cohorts lie in mean, spread and skew of what the encoder sees; 0 when equal.",
    version=1,
    evaluate=evaluate_kid,
)


def _evaluate_mmd2(
    real: Matrix, synthetic: Matrix, *, kernel: Kernel, bandwidth: float | None, seed: int, n_boot: int
) -> Score:
    matrix = kernel_matrix(np.vstack([real, synthetic]), kernel=kernel, bandwidth=bandwidth)
    return score(
        _mmd2_estimate(matrix),
        len(real),
        len(synthetic),
        seed=seed,
        n_boot=n_boot,
        lower=-np.inf,
        biased=False,
        settings={"width": real.shape[1], "kernel": kernel, "bandwidth": bandwidth},
        warnings=feature_warnings(real, synthetic, covariance=False),
    )


def _mmd2_estimate(kernel: Matrix) -> Estimate:
    diagonal = np.diag(kernel)

    def within(i: Rows) -> float:
        return float((kernel[np.ix_(i, i)].sum() - diagonal[i].sum()) / (len(i) * (len(i) - 1)))

    return lambda i, j: within(i) + within(j) - 2 * float(kernel[np.ix_(i, j)].mean())


def _squared_distances(rows: Matrix) -> Matrix:
    centred = rows - rows.mean(axis=0)  # distances do not change, rounding does
    products = centred @ centred.T
    norms = np.diag(products)
    squared = norms[:, None] + norms[None, :] - 2 * products
    squared[squared < 1e-12 * norms.max()] = 0.0  # rounding of equal rows
    return squared


def _frechet(real: Matrix, synthetic: Matrix) -> float:
    """Fréchet distance of checked rows: (n, d), (m, d)."""
    gap = real.mean(axis=0) - synthetic.mean(axis=0)
    first, second = real - real.mean(axis=0), synthetic - synthetic.mean(axis=0)
    spread = (first**2).sum() / (len(first) - 1) + (second**2).sum() / (len(second) - 1)
    between = _triangle(first) @ _triangle(second).T
    return _assemble(float(gap @ gap), float(spread), between, len(first), len(second))


def _assemble(gap: float, spread: float, between: Matrix, n: int, m: int) -> float:
    with one_blas_thread():
        nuclear = float(linalg.svdvals(between, check_finite=False).sum())
    return max(0.0, gap + spread - 2 * nuclear / math.sqrt((n - 1) * (m - 1)))  # below 0 only by rounding


def _triangle(rows: Matrix) -> Matrix:
    """Return a matrix of at most d rows with the same XᵀX: (n, d) to (min(n, d), d)."""
    return rows if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(rows, mode="r"))


def _matrix(features: ArrayLike, where: str) -> Matrix:
    try:
        rows = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("not a table of numbers.", where, "Give an array (volumes, features).") from error
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise InputError(f"expected (volumes, features), found shape {rows.shape}.", where, "Give one row a volume.")
    if len(rows) < 2:
        raise InputError(f"{len(rows)} volume(s): a distance needs at least 2.", where, "Add volumes to the cohort.")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        listed = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise InputError(
            f"{len(bad)} of {len(rows)} rows hold NaN or Inf (rows {listed}).",
            where,
            "Check these volumes.",
        )
    return rows
