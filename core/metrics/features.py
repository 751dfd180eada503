"""Distances between two cohorts of feature vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score, Setting
from core.metrics.kernels import (
    MEDIAN_ROWS,
    Kernel,
    Matrix,
    kernel_blocks,
    kernel_matrix,
    median_distance,
    mmd2_of_draws,
    pair_sums,
)
from core.metrics.resampling import LARGE_DRAWS, PERMUTATIONS, TABLE_ROWS, Draw, Estimate, Rows, one_by_one, score
from core.metrics.threads import one_blas_thread

ROUNDING = 1e-10  # error of a Fréchet distance, relative to it, at which singular values take the slow way


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
    estimate = _mmd2_estimate(pooled, kernel=kernel, bandwidth=bandwidth)
    return float(estimate([(np.arange(n), np.arange(n, len(pooled)))])[0])


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
    if len(pooled) > TABLE_ROWS or max(len(real), len(synthetic)) > 2 * pooled.shape[1]:
        return one_by_one(lambda i, j: _frechet(pooled[i], pooled[j]))
    with one_blas_thread():
        products = pooled @ pooled.T
    return lambda draws: _frechet_of_draws(products, draws)


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
        curve=True,
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
    label="FID (Fréchet distance)",
    variant="corrected",
    unit="squared feature units",
    direction="lower",
    range=(0.0, float("inf")),
    least_n=2,
    reference="Heusel et al., NeurIPS 2017, arXiv:1706.08500",
    meaning="How far apart the two cohorts lie in mean and covariance of what the encoder sees.",
    version=2,
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
    version=2,
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
    version=2,
    evaluate=evaluate_kid,
)


def _evaluate_mmd2(
    real: Matrix, synthetic: Matrix, *, kernel: Kernel, bandwidth: float | None, seed: int, n_boot: int
) -> Score:
    pooled = np.vstack([real, synthetic])
    settings: dict[str, Setting] = {"width": real.shape[1], "kernel": kernel, "bandwidth": bandwidth}
    if kernel == "rbf" and len(real) > TABLE_ROWS:
        settings["bandwidth_rows"] = MEDIAN_ROWS
    return score(
        _mmd2_estimate(pooled, kernel=kernel, bandwidth=bandwidth),
        len(real),
        len(synthetic),
        seed=seed,
        n_boot=n_boot,
        lower=-np.inf,
        biased=False,
        settings=settings,
        warnings=feature_warnings(real, synthetic, covariance=False),
        permutations=PERMUTATIONS,
        curve=True,
        most_draws=LARGE_DRAWS,
    )


def _mmd2_estimate(pooled: Matrix, *, kernel: Kernel, bandwidth: float | None) -> Estimate:
    """Unbiased MMD² of any rows; of many rows the kernel is computed block by block and never held whole."""
    if len(pooled) <= TABLE_ROWS:
        matrix = kernel_matrix(pooled, kernel=kernel, bandwidth=bandwidth)
        return lambda draws: mmd2_of_draws(iter([(slice(None), matrix)]), np.diag(matrix), draws)
    norms = (pooled**2).sum(axis=1)
    diagonals = {"rbf": np.ones(len(pooled)), "polynomial": (norms / pooled.shape[1] + 1) ** 3, "linear": norms}
    return lambda draws: mmd2_of_draws(
        kernel_blocks(pooled, kernel=kernel, bandwidth=bandwidth), diagonals[kernel], draws
    )


def _frechet(real: Matrix, synthetic: Matrix) -> float:
    """Fréchet distance of checked rows: (n, d), (m, d)."""
    gap = real.mean(axis=0) - synthetic.mean(axis=0)
    first, second = real - real.mean(axis=0), synthetic - synthetic.mean(axis=0)
    spread = (first**2).sum() / (len(first) - 1) + (second**2).sum() / (len(second) - 1)
    between = _triangle(first) @ _triangle(second).T
    nuclear = float(linalg.svdvals(between, check_finite=False).sum())
    value = float(gap @ gap + spread) - 2 * nuclear / math.sqrt((len(first) - 1) * (len(second) - 1))
    return max(0.0, value)  # below 0 only by rounding


def _frechet_of_draws(products: Matrix, draws: Sequence[Draw]) -> NDArray[np.float64]:
    """Fréchet distance of each draw from the inner products of centred rows: (draws,)."""
    sums, diagonal = pair_sums(iter([(slice(None), products)]), len(products), draws), np.diag(products)
    values = np.empty(len(draws))
    with one_blas_thread():
        for k, (i, j) in enumerate(draws):
            n, m = len(i), len(j)
            within_i, within_j, across = sums[k] / (n * n, m * m, n * m)
            spread = (diagonal[i].sum() - n * within_i) / (n - 1) + (diagonal[j].sum() - m * within_j) / (m - 1)
            rest, scale = within_i + within_j - 2 * across + spread, 2 / math.sqrt((n - 1) * (m - 1))
            between = _centred(products, i, j)
            nuclear, error = _nuclear_by_eigenvalues(between)
            if not scale * error <= ROUNDING * abs(rest - scale * nuclear):
                nuclear = float(linalg.svdvals(between, check_finite=False).sum())
            values[k] = max(0.0, rest - scale * nuclear)
    return values


def _centred(products: Matrix, i: Rows, j: Rows) -> Matrix:
    """Products of the centred rows i and j; a row drawn w times becomes one row times √w, same singular values."""
    (i, often_i), (j, often_j) = (np.unique(rows, return_counts=True) for rows in (i, j))
    between = products[i[:, None], j]
    along_i, along_j = often_i @ between / often_i.sum(), between @ often_j / often_j.sum()
    between -= along_i
    between -= (along_j - along_j @ often_i / often_i.sum())[:, None]
    if often_i.max() > 1 or often_j.max() > 1:
        between *= np.sqrt(often_i)[:, None] * np.sqrt(often_j)
    return between


def _nuclear_by_eigenvalues(between: Matrix) -> tuple[float, float]:
    """Sum of the singular values of centred products at half the cost, and a bound of its error.

    They are roots of the eigenvalues of BBᵀ, of which the first is 0 because B is centred. Squaring costs
    small ones their digits, which the bound says.
    """
    short = between if len(between) <= between.shape[1] else between.T
    squares = linalg.eigvalsh(short @ short.T, check_finite=False, driver="evr")[1:]
    if not len(squares) or not squares[0] > 0:
        return 0.0, math.inf
    values = np.sqrt(squares)
    return float(values.sum()), float(10 * np.finfo(float).eps * squares[-1] * (0.5 / values).sum())


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
