"""Statistics of a reading study: accuracy, sensitivity, and agreement of readers with each other and with scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

EXACT_UP_TO = 8  # ranks; 8! orders are enumerated, more are drawn
DRAWS = 20_000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the number of answers behind it; NaN where it is not defined."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def wilson(correct: ArrayLike, clusters: Sequence[object] | None = None) -> Estimate:
    """Return the share of right answers with its Wilson interval.

    Parameters
    ----------
    correct : array of bool, shape (n,)
        One value an answer.
    clusters : sequence, optional
        What each answer belongs to (the case, when several readers saw it); the number of answers is then divided by
        the design effect of the clusters, which is never taken below 1.

    Returns
    -------
    Estimate

    References
    ----------
    Wilson, JASA 22 (1927), doi:10.1080/01621459.1927.10502953; design effect: Rao & Scott, Biometrics 48 (1992),
    doi:10.2307/2532311.
    """
    right = np.asarray(correct, dtype=float)
    n = len(right)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    share, z = float(right.mean()), float(stats.norm.ppf(0.975))
    effective = n / (design_effect(right, clusters) if clusters is not None else 1.0)
    centre = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z / (1 + z**2 / effective) * np.sqrt(share * (1 - share) / effective + z**2 / (4 * effective**2))
    return Estimate(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)), n)


def design_effect(values: NDArray[np.float64], clusters: Sequence[object]) -> float:
    """Return how much clusters widen the variance of a share: 1 when answers of a cluster are independent."""
    n, share = len(values), values.mean()
    table = pd.DataFrame({"value": values - share, "cluster": pd.factorize(np.array([repr(c) for c in clusters]))[0]})
    sums = table.groupby("cluster")["value"].sum().to_numpy()
    simple = share * (1 - share) / n
    if len(sums) < 2 or simple == 0:
        return 1.0
    return max(1.0, float(len(sums) / (len(sums) - 1) * (sums**2).sum() / n**2 / simple))


def d_prime(hits: int, synthetic: int, false_alarms: int, real: int) -> Estimate:
    """Return d′ of "synthetic" answers: z(hit rate) − z(false-alarm rate), with the log-linear correction.

    Parameters
    ----------
    hits, synthetic : int
        Synthetic volumes called synthetic, of all synthetic ones.
    false_alarms, real : int
        Real volumes called synthetic, of all real ones.

    Returns
    -------
    Estimate
        0 is guessing; higher: better told apart. Normal interval with the variance of Gourevitch & Galanter.

    References
    ----------
    Hautus, Behav. Res. Methods 27 (1995), doi:10.3758/BF03203619; Gourevitch & Galanter, Psychometrika 32 (1967),
    doi:10.1007/BF02289402.
    """
    n = synthetic + real
    if synthetic == 0 or real == 0:
        return Estimate(np.nan, np.nan, np.nan, n)
    rates = np.array([(hits + 0.5) / (synthetic + 1), (false_alarms + 0.5) / (real + 1)])
    z = stats.norm.ppf(rates)
    value = float(z[0] - z[1])
    spread = rates * (1 - rates) / (np.array([synthetic, real]) * stats.norm.pdf(z) ** 2)
    half = float(stats.norm.ppf(0.975) * np.sqrt(spread.sum()))
    return Estimate(value, value - half, value + half, n)


def d_prime_forced_choice(accuracy: Estimate) -> Estimate:
    """Return d′ = √2 z(share correct) of two-alternative forced choice, the interval from that of the share.

    The share is log-linearly corrected, so that a perfect reader gets a finite value.

    References
    ----------
    Macmillan & Creelman, Detection Theory (2005), ch. 7.
    """
    n = accuracy.n
    if n == 0:
        return accuracy
    shares = (np.array([accuracy.value, accuracy.ci_low, accuracy.ci_high]) * n + 0.5) / (n + 1)
    value, low, high = (float(v) for v in np.sqrt(2) * stats.norm.ppf(shares))
    return Estimate(value, low, high, n)


def krippendorff_alpha(ratings: ArrayLike, level: str) -> float:
    """Return Krippendorff's α.

    Parameters
    ----------
    ratings : array, shape (readers, units)
        NaN where a reader gave no rating.
    level : {"nominal", "ordinal"}
        Which differences count as large.

    Returns
    -------
    float
        1: agreement, 0: what chance gives; NaN when no unit has two ratings or all ratings are equal.

    References
    ----------
    Hayes & Krippendorff, Commun. Methods Meas. 1 (2007), doi:10.1080/19312450709336664.
    """
    table = np.asarray(ratings, dtype=float)
    values = np.unique(table[np.isfinite(table)])
    counts = np.stack([(table == value).sum(axis=0) for value in values]) if len(values) else np.zeros((0, 0))
    counts = counts[:, counts.sum(axis=0) >= 2].astype(float)  # (values, pairable units)
    if counts.size == 0:
        return np.nan
    pairs = counts.sum(axis=0) - 1
    coincidences = (counts / pairs) @ counts.T - np.diag((counts / pairs).sum(axis=1))
    totals = coincidences.sum(axis=1)
    distance = _distances(totals, level)
    expected = float((np.outer(totals, totals) * distance).sum()) / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected) if expected > 0 else np.nan


def _distances(totals: NDArray[np.float64], level: str) -> NDArray[np.float64]:
    if level == "nominal":
        return 1.0 - np.eye(len(totals))
    middle = np.cumsum(totals) - totals / 2
    return np.asarray((middle[:, None] - middle[None, :]) ** 2)


def cohen_kappa(first: Sequence[object], second: Sequence[object], *, weights: str = "") -> float:
    """Return Cohen's κ of two raters, or of one rater twice.

    Parameters
    ----------
    first, second : sequence of equal length
        Categories; numbers when weighted.
    weights : {"", "quadratic"}
        "quadratic" counts a disagreement by its squared difference.

    Returns
    -------
    float
        1: agreement, 0: what chance gives; NaN when there is nothing to compare or only one category.

    References
    ----------
    Cohen, Psychol. Bull. 70 (1968), doi:10.1037/h0026256.
    """
    names = sorted({*first, *second}, key=str)
    if len(first) == 0 or len(names) < 2:
        return np.nan
    index = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for a, b in zip(first, second, strict=True):
        table[index[a], index[b]] += 1
    table /= table.sum()
    if weights == "quadratic":
        place = np.array([float(str(name)) for name in names])
        cost = (place[:, None] - place[None, :]) ** 2
    else:
        cost = 1.0 - np.eye(len(names))
    return float(1 - (cost * table).sum() / (cost * np.outer(table.sum(axis=1), table.sum(axis=0))).sum())


def rank_correlation(first: ArrayLike, second: ArrayLike, *, seed: int) -> tuple[float, float, float, int]:
    """Return Spearman's ρ, its two-sided permutation p, Kendall's τ-b, and the number of pairs.

    Up to eight pairs all orders are enumerated, so p is exact, ties or not; beyond, 20 000 random orders.

    Returns
    -------
    tuple of (float, float, float, int)
        NaN with fewer than three pairs or when one side is constant.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = stats.rankdata(x[both]), stats.rankdata(y[both])
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan, n
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    rho = float((x * y).mean())
    if n <= EXACT_UP_TO:
        orders = np.array(list(permutations(range(n))))
        p = float((np.abs(y[orders] @ x / n) >= abs(rho) - 1e-9).sum() / factorial(n))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
        p = float(((np.abs(y[orders] @ x / n) >= abs(rho) - 1e-9).sum() + 1) / (DRAWS + 1))
    return rho, p, float(stats.kendalltau(x, y).statistic), n
