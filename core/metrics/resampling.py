"""Intervals and floors: how sure a number is, and what real against real would give.

Intervals of feature metrics come from half-samples: every draw takes half the subjects of each
cohort without replacement. The spread of an estimate over half-samples equals its sampling
spread at the full size (Shao & Wu, Ann Stat 17 (1989), doi:10.1214/aos/1176347263). The usual
bootstrap draws rows twice, which lowers the rank of a covariance and puts k(x, x) into an
unbiased MMD²: its Fréchet distances lie so far above the estimate that the percentile interval
misses it. Draws are centred on the estimate, because at half the size the bias is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from core.errors import InputError
from core.metrics.base import Group, Score, Setting

Rows = NDArray[np.intp]
Estimate = Callable[[Rows, Rows], float]  # rows of the pooled cohorts in the real and in the synthetic role

LEVEL = 0.95
SPLITS = 20  # real-against-real splits averaged into the floor
LEAST_FOR_INTERVAL = 4  # a half-sample then has two subjects
LEAST_FOR_CURVATURE = 32  # a quarter of a split then has eight


def score(
    estimate: Estimate,
    n_real: int,
    n_synthetic: int,
    *,
    seed: int,
    n_boot: int,
    lower: float,
    biased: bool,
    settings: dict[str, Setting],
    warnings: Sequence[str] = (),
    upper: float = np.inf,
    least: int = 2,
) -> Score:
    """Evaluate an estimate with its interval and floor; with fewer than ``least`` subjects it is a gap.

    Parameters
    ----------
    estimate : callable
        Takes two arrays of row numbers of the pooled cohorts (real rows first).
    n_real, n_synthetic : int
        Subjects in each cohort.
    seed, n_boot : int
        Seed and number of half-samples; 0 leaves out the interval.
    lower : float
        Least possible value, at which the interval is cut.
    biased : bool
        Whether the expectation depends on the cohort size, so that the floor must be carried to it.
    settings, warnings
        Passed on to the score.
    upper : float
        Greatest possible value, at which the interval is cut.
    least : int
        Fewest subjects a cohort, a half-sample and a part of a split need.

    Raises
    ------
    InputError
        When the estimate is not finite.
    """
    if min(n_real, n_synthetic) < least:
        gap = f"{n_real} real and {n_synthetic} synthetic volumes: this metric needs {least} of each"
        return Score(None, None, None, None, n_real, n_synthetic, {**settings, "seed": seed}, (*warnings, gap))
    value = estimate(np.arange(n_real), np.arange(n_real, n_real + n_synthetic))
    if not np.isfinite(value):
        raise InputError(f"the value is {value}: the features are too large for float64.", "features", "Rescale them.")
    notes = list(warnings)
    low = high = None
    enough = max(LEAST_FOR_INTERVAL, 2 * least)
    if min(n_real, n_synthetic) < enough:
        notes.append(f"fewer than {enough} volumes in a cohort: no interval")
    elif n_boot:
        draws = half_samples(estimate, n_real, n_synthetic, rng=np.random.default_rng([seed, 0]), n_boot=n_boot)
        low, high = centred_interval(value, draws, lower=lower, upper=upper)
    if n_real != n_synthetic:
        notes.append(f"different N: {n_real} real and {n_synthetic} synthetic; compare only with scores at these sizes")
    floor, floor_settings = real_floor(
        estimate, n_real, n_synthetic, rng=np.random.default_rng([seed, 1]), biased=biased, least=least
    )
    if floor is None:
        notes.append(f"fewer than {2 * least} real volumes: no floor")
    interval = f"{LEVEL:.0%} from {n_boot} half-samples of the subjects, centred on the estimate"
    return Score(
        value,
        low,
        high,
        floor,
        n_real,
        n_synthetic,
        {**settings, "seed": seed, "interval": interval if low is not None else None, **floor_settings},
        tuple(notes),
    )


def half_samples(
    estimate: Estimate, n_real: int, n_synthetic: int, *, rng: np.random.Generator, n_boot: int
) -> NDArray[np.float64]:
    """Evaluate an estimate on random halves of both cohorts; odd sizes are rounded up or down at random.

    Returns
    -------
    ndarray, shape (n_boot,)
    """

    def half(n: int) -> Rows:
        return np.sort(rng.permutation(n)[: (n + int(rng.integers(2))) // 2])  # file order matters to published code

    return np.array([estimate(half(n_real), n_real + half(n_synthetic)) for _ in range(n_boot)])


def centred_interval(
    value: float, draws: NDArray[np.float64], *, lower: float, upper: float = np.inf
) -> tuple[float, float]:
    """Shift the percentile interval of the draws so that their mean falls on the estimate."""
    tail = (1 - LEVEL) / 2
    low, high = value + np.quantile(draws - draws.mean(), [tail, 1 - tail])
    return max(lower, min(value, float(low))), min(upper, max(value, float(high)))


def real_floor(
    estimate: Estimate, n_real: int, n_synthetic: int, *, rng: np.random.Generator, biased: bool, least: int = 2
) -> tuple[float | None, dict[str, Setting]]:
    """Mean of the estimate over random splits of the real cohort into a real and a synthetic part.

    The synthetic part has ``n_synthetic`` rows where the real cohort has twice as many, half the
    real cohort otherwise; the rest plays the real cohort. A split is smaller than the comparison it
    stands for, and a biased estimate is larger at a smaller size: it is then carried to the size of
    the comparison (harmonic mean of the two cohort sizes) by the power of N seen between splits of
    this size and smaller ones.

    Returns
    -------
    floor : float or None
        None where a part has fewer than ``least`` rows (two: with fewer than four real rows).
    settings : dict
        Sizes and rule used.
    """
    part = min(n_synthetic, n_real // 2)
    rest = n_real - part
    if part < least:
        return None, {}

    def mean_over_splits(divisor: int) -> float:
        a, b = rest // divisor, part // divisor
        orders = (rng.permutation(n_real) for _ in range(SPLITS))
        return float(np.mean([estimate(order[:a], order[a : a + b]) for order in orders]))

    floor = mean_over_splits(1)
    settings: dict[str, Setting] = {"floor_splits": SPLITS, "floor_n_real": rest, "floor_n_synthetic": part}
    size, target = _harmonic(rest, part), _harmonic(n_real, n_synthetic)
    if not biased or target <= size:
        return floor, settings
    if part < 4 or floor <= 0:
        return floor, {**settings, "floor_rule": "at the size of the splits: too few real volumes to carry it further"}
    divisors = (1, 2, 4) if part >= LEAST_FOR_CURVATURE else (1, 2)
    sizes = [_harmonic(rest // k, part // k) for k in divisors]
    means = [floor, *(mean_over_splits(k) for k in divisors[1:])]
    powers = -np.diff(np.log(means)) / np.diff(np.log(sizes))
    power = float(np.clip(2 * powers[0] - powers[-1], 0.0, 1.0))  # it changes with N as much again at the next step
    rule = f"carried from {size:.4g} to {target:.4g} volumes by N^-{power:.3f}"
    return floor * (size / target) ** power, {**settings, "floor_rule": rule, "floor_at_split": floor}


def summarise_groups(
    groups: Sequence[Group],
    values: Sequence[float],
    *,
    n_real: int,
    n_synthetic: int,
    seed: int,
    n_boot: int,
    settings: dict[str, Setting],
) -> Score:
    """Average the groups that hold a synthetic volume; the floor is the average of the others.

    Groups that share a volume are not independent. The interval takes the variance of the mean that
    is robust to sharing, the sum of the products of the residuals of all groups with a common volume
    (Aronow, Samii & Assenova, Political Analysis 23 (2015), doi:10.1093/pan/mpv018), and Student's t.

    Raises
    ------
    InputError
        When groups and values differ in number.
    """
    if len(groups) != len(values):
        raise InputError(f"{len(values)} values for {len(groups)} groups.", "groups", "Give one value for each group.")
    measured = np.asarray(values, dtype=np.float64)
    synthetic = np.array([any(cohort == "synthetic" for cohort, _ in group) for group in groups], dtype=bool)
    missing = int(np.isnan(measured).sum())
    warnings = [f"{missing} of {len(groups)} groups have no value and are left out"] if missing else []
    chosen = [np.flatnonzero(kind & ~np.isnan(measured)).tolist() for kind in (synthetic, ~synthetic)]
    value, floor = (float(measured[rows].mean()) if len(rows) else None for rows in chosen)
    low, high = mean_interval([groups[i] for i in chosen[0]], measured[chosen[0]]) if n_boot else (None, None)
    floor_low, floor_high = mean_interval([groups[i] for i in chosen[1]], measured[chosen[1]])
    if value is None:
        warnings.append("no group of synthetic volumes has a value")
    elif low is None and n_boot:
        warnings.append("too few volumes for an interval")
    if floor is None:
        warnings.append("no group of real volumes has a value: no floor")
    if n_real != n_synthetic:
        warnings.append(f"different N: {n_real} real and {n_synthetic} synthetic")
    found: dict[str, Setting] = {
        "seed": seed,
        "groups": len(chosen[0]),
        "floor_groups": len(chosen[1]),
        "floor_ci_low": floor_low,
        "floor_ci_high": floor_high,
        "interval": f"{LEVEL:.0%}, variance robust to shared volumes" if low is not None else None,
    }
    return Score(value, low, high, floor, n_real, n_synthetic, {**settings, **found}, tuple(warnings))


def mean_interval(groups: Sequence[Group], values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the interval of a mean over groups of which some share a volume; None below four volumes of a cohort."""
    members = sorted({member for group in groups for member in group})
    counts = [sum(name == cohort for name, _ in members) for cohort in {name for name, _ in members}]
    least = min(counts, default=0)
    if least < LEAST_FOR_INTERVAL:
        return None, None
    column = {member: i for i, member in enumerate(members)}
    entries = [(row, column[member]) for row, group in enumerate(groups) for member in group]
    rows, columns = np.array(entries).T
    incidence = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(groups), len(members)))
    shared = incidence @ incidence.T
    shared.data[:] = 1.0
    residual = values - values.mean()
    variance = max(float(residual @ (shared @ residual)), float(residual @ residual)) / len(values) ** 2
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, least - 1)) * variance**0.5
    return float(values.mean()) - half_width, float(values.mean()) + half_width


def _harmonic(n: int, m: int) -> float:
    return 2 / (1 / n + 1 / m)
