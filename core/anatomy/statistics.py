"""Statistics of two cohorts by column; subjects who were scanned more than once count as one draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gammaln

NO_VARIANCE = 1e-12  # of the raw variance; what floating point leaves of a volume that TIV explains fully
SPLITS = 20  # of the real cohort, for a floor
BLOCK = 2**21  # counts of a bootstrap in memory at a time: 16 MiB, whatever the size of the cohorts

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]


def adjust_for_tiv(values: Floats, tiv: Floats) -> Floats:
    """Remove the part of each volume that total intracranial volume explains, around the mean TIV.

    Parameters
    ----------
    values : ndarray, shape (n, regions)
        Volumes of all pooled subjects, mm³.
    tiv : ndarray, shape (n,)
        Total intracranial volumes, mm³.

    Returns
    -------
    ndarray, shape (n, regions)
        ``volume - slope * (TIV - mean TIV)``, slope by ordinary least squares with intercept (Wu et al., 2024).
    """
    centred = tiv - tiv.mean()
    power = float(centred @ centred)
    slopes = centred @ (values - values.mean(axis=0)) / power if power > 0 else np.zeros(values.shape[1])
    return values - centred[:, None] * slopes


def cohens_d(real: Floats, synthetic: Floats) -> Floats:
    """Return (mean real - mean synthetic) / sqrt((var real + var synthetic) / 2) by column, ddof = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = real.mean(axis=0) - synthetic.mean(axis=0)
        return np.asarray(gap / np.sqrt((real.var(axis=0) + synthetic.var(axis=0)) / 2))


def hedges_g(real: Floats, synthetic: Floats) -> Floats:
    """Return the mean gap over the pooled SD (ddof = 1), corrected for small samples, by column.

    References
    ----------
    Hedges, J. Educ. Stat. 6 (1981), doi:10.3102/10769986006002107.
    """
    n, m = len(real), len(synthetic)
    freedom = n + m - 2
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt((n * real.var(axis=0) + m * synthetic.var(axis=0)) / freedom)
        correction = np.exp(gammaln(freedom / 2) - gammaln((freedom - 1) / 2)) * np.sqrt(2 / freedom)
        return np.asarray(correction * (real.mean(axis=0) - synthetic.mean(axis=0)) / pooled)


def participant_codes(subjects: Sequence[str], participants: Mapping[str, str] | None) -> Codes:
    """Return each subject's participant as a number from 0; a subject without participant is one of its own."""
    known = participants or {}
    names = [("participant", known[s]) if known.get(s) else ("subject", s) for s in subjects]
    return np.asarray(pd.factorize(pd.Series(names, dtype=object))[0], dtype=np.intp)


def draw_weights(codes: Codes, n_boot: int, rng: np.random.Generator) -> Floats:
    """Count how often each row is drawn when participants are drawn with replacement, shape (n_boot, n)."""
    groups = int(codes.max()) + 1
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=n_boot)
    return np.asarray(drawn[:, codes], dtype=np.float64)


def bootstrap_d(
    values: Sequence[Floats], tiv: Sequence[Floats], codes: Sequence[Codes], n_boot: int, seed: int
) -> Floats:
    """Return Cohen's d in each resample of participants, shape (n_boot, regions), the TIV slope refitted in each.

    Counts of a resample are weights, so every moment that d needs is one matrix product. Starting from values
    already adjusted changes nothing (adding a multiple of TIV leaves residuals as they are) and keeps the sums small.
    The real cohort, first, is drawn alike for every generator.
    """
    both, sizes = np.concatenate(values), np.concatenate(tiv)
    centre, scale = both.mean(axis=0), both.std(axis=0)
    unit = sizes.std() or 1.0
    sides = []
    for stream, (rows, size, code) in enumerate(zip(values, tiv, codes, strict=True)):
        with np.errstate(divide="ignore", invalid="ignore"):
            v, t = (rows - centre) / scale, ((size - sizes.mean()) / unit)[:, None]
        sides.append((np.hstack([v, v**2, v * t, t, t**2]), code, np.random.default_rng([seed, stream])))
    block = max(1, BLOCK // len(both))
    parts = [_resampled_d(sides, min(block, n_boot - done)) for done in range(0, n_boot, block)]
    return np.concatenate(parts)


def _resampled_d(sides: Sequence[tuple[Floats, Codes, np.random.Generator]], n_boot: int) -> Floats:
    """Return d in the next resamples; each side is [v, v², v t, t, t²] of its rows, their participants, a stream."""
    totals, means = [], []
    for rows, code, rng in sides:
        weights = draw_weights(code, n_boot, rng)
        totals.append(weights.sum(axis=1, keepdims=True))
        weights /= totals[-1]
        n = (rows.shape[1] - 2) // 3
        means.append(np.split(weights @ rows, [n, 2 * n, 3 * n, 3 * n + 1], axis=1))
    mean_v, _, mean_vt, mean_t, mean_tt = (
        sum(total * mean[i] for total, mean in zip(totals, means, strict=True)) / sum(totals) for i in range(5)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        power = mean_tt - mean_t**2
        slope = np.where(power > NO_VARIANCE, (mean_vt - mean_v * mean_t) / power, 0.0)
        first, second = (v - slope * t for v, _, _, t, _ in means)
        variances = [(vv - v**2) - 2 * slope * (vt - v * t) + slope**2 * (tt - t**2) for v, vv, vt, t, tt in means]
        spread = (variances[0] + variances[1]) / 2
        return np.asarray((first - second) / np.sqrt(np.where(spread > NO_VARIANCE, spread, np.nan)))


def quantiles(draws: Floats, levels: Sequence[float]) -> Floats:
    """Return quantiles by column, shape (levels, columns); columns without a finite value give NaN."""
    result = np.full((len(levels), draws.shape[1]), np.nan)
    usable = np.isfinite(draws).any(axis=0)
    if usable.any():
        result[:, usable] = np.nanquantile(draws[:, usable], levels, axis=0)
    return result


def tost_p(draws: Floats, margin: float) -> Floats:
    """Return the p-value of equivalence within ±margin by column: the larger share of draws beyond an end.

    The share is read from the interpolated quantile function, so that p < 0.05 exactly where the interval from 5 % to
    95 % lies inside the margin. At least 1 / (draws + 1).

    References
    ----------
    Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), doi:10.1007/BF01068419.
    """
    result = np.full(draws.shape[1], np.nan)
    for column in np.flatnonzero(np.isfinite(draws).any(axis=0)):
        values = np.sort(draws[np.isfinite(draws[:, column]), column])
        levels = np.linspace(0, 1, len(values))
        above = 1 - np.interp(margin, values, levels, left=0.0, right=1.0)
        below = np.interp(-margin, values, levels, left=0.0, right=1.0)
        result[column] = max(above, below, 1 / (len(values) + 1))
    return result


def spread_ratio(real: Floats, synthetic: Floats, least: Floats | float = 0.0) -> Floats:
    """Return log(SD synthetic / SD real) by column; an SD of at most ``least`` counts as 0."""
    deviations = [np.where(v.std(axis=0) <= least, 0.0, v.std(axis=0)) for v in (real, synthetic)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(deviations[1]) - np.log(deviations[0]))


def welch_p(real: Floats, synthetic: Floats, codes: Sequence[Codes]) -> Floats:
    """Return the p-value of equal means by column; with one row a participant it is Welch's t test.

    The variance of a mean is summed over participants, so that repeated scans of one person do not count as people.
    """
    means, variances, freedoms = [], [], []
    for values, code in zip((real, synthetic), codes, strict=True):
        groups = int(code.max()) + 1
        sums = np.zeros((groups, values.shape[1]))
        np.add.at(sums, code, values - values.mean(axis=0))
        means.append(values.mean(axis=0))
        variances.append((sums**2).sum(axis=0) / len(values) ** 2 * groups / max(groups - 1, 1))
        freedoms.append(max(groups - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        total = variances[0] + variances[1]
        freedom = total**2 / (variances[0] ** 2 / freedoms[0] + variances[1] ** 2 / freedoms[1])
        return np.asarray(2 * stats.t.sf(np.abs(means[0] - means[1]) / np.sqrt(total), freedom))


def false_discovery(p: Floats) -> Floats:
    """Return p after Benjamini-Hochberg over the finite entries; NaN stays NaN."""
    q = np.full_like(p, np.nan)
    usable = np.isfinite(p)
    if usable.any():
        q[usable] = stats.false_discovery_control(p[usable])
    return q


def wasserstein(real: Floats, synthetic: Floats) -> Floats:
    """Return the 1-Wasserstein distance by column, in standard deviations (ddof = 0) of the real cohort."""
    unit = real.std(axis=0)
    result = np.full(real.shape[1], np.nan)
    for column in np.flatnonzero(np.isfinite(unit) & (unit > 0) & np.isfinite(synthetic).all(axis=0)):
        result[column] = stats.wasserstein_distance(real[:, column], synthetic[:, column]) / unit[column]
    return result


def halves(codes: Codes, seed: int, splits: int = SPLITS) -> list[tuple[NDArray[np.bool_], float]]:
    """Split a cohort's participants in two at random, several times.

    Returns
    -------
    list of (mask, float)
        Rows of the first half, and ``sqrt(1/n1 + 1/n2)``, by which distances between equal cohorts shrink.
    """
    rng = np.random.default_rng([seed, 7])
    groups = int(codes.max()) + 1
    result = []
    for _ in range(splits):
        first = np.isin(codes, rng.permutation(groups)[: groups // 2])
        if 0 < first.sum() < len(codes):
            result.append((first, float(np.sqrt(1 / first.sum() + 1 / (~first).sum()))))
    return result


def wasserstein_floor(real: Floats, m: int, codes: Codes, seed: int) -> Floats:
    """Return what a perfect generator of ``m`` volumes would score: halves of the real cohort, carried to this size."""
    size = np.sqrt(1 / len(real) + 1 / m)
    draws = [wasserstein(real[mask], real[~mask]) * size / rate for mask, rate in halves(codes, seed)]
    return np.mean(draws, axis=0) if draws else np.full(real.shape[1], np.nan)
