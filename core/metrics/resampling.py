"""Intervals and floors: how sure a number is, and what real against real would give.

Intervals of feature metrics come from half-samples: every draw takes half the subjects of each
cohort without replacement. The spread of an estimate over half-samples equals its sampling
spread at the full size (Shao & Wu, Ann Stat 17 (1989), doi:10.1214/aos/1176347263). The usual
bootstrap draws rows twice, which lowers the rank of a covariance and puts k(x, x) into an
unbiased MMD²: its Fréchet distances lie so far above the estimate that the percentile interval
misses it. Draws are centred on the estimate, because at half the size the bias is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from core.errors import InputError
from core.metrics.base import CurvePoint, Group, Score, Setting

Rows = NDArray[np.intp]
Draw = tuple[Rows, Rows]  # rows of the pooled cohorts in the real and in the synthetic role
Estimate = Callable[[Sequence[Draw]], NDArray[np.float64]]  # all draws at once, so that they share the work

LEVEL = 0.95
SPLITS = 20  # real-against-real splits averaged into the floor
LEAST_FOR_INTERVAL = 4  # a half-sample then has two subjects
LEAST_FOR_CURVATURE = 32  # a quarter of a split then has eight
CURVE_FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the smaller cohort
CURVE_LEAST = 4  # subjects of each cohort at the first point of a curve
SUBSETS = 10  # random subsets behind a point of the curve
PERMUTATIONS = 1000
TABLE_ROWS = 4096  # up to here a table of all pairs is kept (128 MiB); beyond, draws are fewer
LARGE_DRAWS = 200


@dataclass
class _Batch:
    """Draws of all parts of a score, evaluated together."""

    draws: list[Draw] = field(default_factory=list)

    def add(self, draws: Sequence[Draw]) -> slice:
        self.draws += draws
        return slice(len(self.draws) - len(draws), len(self.draws))


def one_by_one(value: Callable[[Rows, Rows], float]) -> Estimate:
    """Estimate that evaluates its draws one after the other."""
    return lambda draws: np.array([value(i, j) for i, j in draws], dtype=np.float64)


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
    permutations: int = 0,
    curve: bool = False,
    most_draws: int = LARGE_DRAWS,
) -> Score:
    """Evaluate an estimate with its interval and floor; with fewer than ``least`` subjects it is a gap.

    Parameters
    ----------
    estimate : callable
        Takes draws: pairs of arrays of row numbers of the pooled cohorts (real rows first).
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
    permutations : int
        Permutations of the labels behind the p-value; 0 leaves it out.
    curve : bool
        Whether to add the estimate at growing cohort sizes.
    most_draws : int
        Most half-samples, and most permutations, of cohorts that have more than `TABLE_ROWS` rows together.

    Raises
    ------
    InputError
        When the estimate is not finite.
    """
    if min(n_real, n_synthetic) < least:
        gap = f"{n_real} real and {n_synthetic} synthetic volumes: this metric needs {least} of each"
        return Score(None, None, None, None, n_real, n_synthetic, {**settings, "seed": seed}, (*warnings, gap))
    notes, batch, enough = list(warnings), _Batch(), max(LEAST_FOR_INTERVAL, 2 * least)
    if n_real + n_synthetic > TABLE_ROWS:
        n_boot, permutations = min(n_boot, most_draws), min(permutations, most_draws)
    whole = batch.add([(np.arange(n_real), np.arange(n_real, n_real + n_synthetic))])
    halves = splits = shuffled = slice(0, 0)
    if min(n_real, n_synthetic) < enough:
        notes.append(f"fewer than {enough} volumes in a cohort: no interval")
    elif n_boot:
        halves = batch.add(half_draws(n_real, n_synthetic, rng=np.random.default_rng([seed, 0]), n_boot=n_boot))
    if n_real != n_synthetic:
        notes.append(f"different N: {n_real} real and {n_synthetic} synthetic; compare only with scores at these sizes")
    floor_plan = FloorPlan.make(n_real, n_synthetic, biased=biased, least=least)
    if floor_plan is None:
        notes.append(f"fewer than {2 * least} real volumes: no floor")
    else:
        splits = batch.add(floor_plan.draws(np.random.default_rng([seed, 1])))
    sizes = curve_sizes(n_real, n_synthetic, max(least, CURVE_LEAST)) if curve else []
    points = [
        batch.add(subset_draws(n_real, n_synthetic, size, rng=np.random.default_rng([seed, 2, size]))) for size in sizes
    ]
    if permutations:
        rng = np.random.default_rng([seed, 3])
        shuffled = batch.add(permuted_draws(n_real, n_synthetic, rng=rng, permutations=permutations))
    values = estimate(batch.draws)
    value = float(values[whole][0])
    if not np.isfinite(value):
        raise InputError(f"the value is {value}: the features are too large for float64.", "features", "Rescale them.")
    found: dict[str, Setting] = {**settings, "seed": seed, "interval": None}
    low = high = p_value = floor = None
    if len(values[halves]):
        low, high = centred_interval(value, values[halves], lower=lower, upper=upper)
        found["interval"] = f"{LEVEL:.0%} from {n_boot} half-samples of the subjects, centred on the estimate"
    if floor_plan is not None:
        floor, floor_settings = floor_plan.carried(values[splits])
        found.update(floor_settings)
    if permutations:
        p_value = permutation_p(value, values[shuffled])
        found["permutations"] = permutations
    spread = tuple(curve_point(n, values[p], lower, upper) for n, p in zip(sizes, points, strict=True))
    return Score(value, low, high, floor, n_real, n_synthetic, found, tuple(notes), p_value, spread)


def half_draws(n_real: int, n_synthetic: int, *, rng: np.random.Generator, n_boot: int) -> list[Draw]:
    """Random halves of both cohorts; odd sizes are rounded up or down at random."""

    def half(n: int) -> Rows:
        return np.sort(rng.permutation(n)[: (n + int(rng.integers(2))) // 2])  # file order matters to published code

    return [(half(n_real), n_real + half(n_synthetic)) for _ in range(n_boot)]


def subset_draws(n_real: int, n_synthetic: int, size: int, *, rng: np.random.Generator) -> list[Draw]:
    """Random subsets of ``size`` rows of both cohorts: `SUBSETS`, or one where that is all rows of both."""
    repeats = 1 if size == n_real == n_synthetic else SUBSETS
    return [
        (np.sort(rng.permutation(n_real)[:size]), n_real + np.sort(rng.permutation(n_synthetic)[:size]))
        for _ in range(repeats)
    ]


def permuted_draws(n_real: int, n_synthetic: int, *, rng: np.random.Generator, permutations: int) -> list[Draw]:
    """Both cohorts with their labels permuted."""
    orders = (rng.permutation(n_real + n_synthetic) for _ in range(permutations))
    return [(order[:n_real], order[n_real:]) for order in orders]


def curve_sizes(n_real: int, n_synthetic: int, least: int) -> list[int]:
    """Cohort sizes at which a curve is drawn, ascending."""
    n = min(n_real, n_synthetic)
    return sorted({size for size in (round(fraction * n) for fraction in CURVE_FRACTIONS) if size >= least})


def curve_point(n: int, values: NDArray[np.float64], lower: float, upper: float = np.inf) -> CurvePoint:
    """Mean and spread of an estimate over subsets of n rows; the spread is cut at the range of the estimate."""
    mean = float(values.mean())
    if len(values) < 2:
        return CurvePoint(n, mean, None, None)
    half_width = float(stats.norm.ppf((1 + LEVEL) / 2) * values.std(ddof=1))
    return CurvePoint(n, mean, max(lower, mean - half_width), min(upper, mean + half_width))


def permutation_p(value: float, permuted: NDArray[np.float64]) -> float:
    """Share of permutations with a value as large, the observed one counted among them (Phipson & Smyth 2010)."""
    tolerance = 1e-12 * abs(value)  # a permutation that only exchanges the cohorts is equal but for rounding
    return float((1 + (permuted >= value - tolerance).sum()) / (1 + len(permuted)))


def centred_interval(
    value: float, draws: NDArray[np.float64], *, lower: float, upper: float = np.inf
) -> tuple[float, float]:
    """Shift the percentile interval of the draws so that their mean falls on the estimate."""
    tail = (1 - LEVEL) / 2
    low, high = value + np.quantile(draws - draws.mean(), [tail, 1 - tail])
    return max(lower, min(value, float(low))), min(upper, max(value, float(high)))


@dataclass(frozen=True)
class FloorPlan:
    """Splits of the real cohort into a real and a synthetic part, and how their mean becomes the floor.

    The synthetic part has as many rows as the synthetic cohort where the real cohort has twice as many,
    half the real cohort otherwise; the rest plays the real cohort. A split is smaller than the comparison
    it stands for, and a biased estimate is larger at a smaller size: it is then carried to the size of the
    comparison (harmonic mean of the two cohort sizes) by the power of N seen between splits of this size
    and smaller ones.
    """

    n_real: int
    rest: int
    part: int
    size: float
    target: float
    divisors: tuple[int, ...]
    carry: bool

    @classmethod
    def make(cls, n_real: int, n_synthetic: int, *, biased: bool, least: int = 2) -> FloorPlan | None:
        """Return the plan; None where a part has fewer than ``least`` rows (two: with fewer than four real rows)."""
        part = min(n_synthetic, n_real // 2)
        rest = n_real - part
        if part < least:
            return None
        size, target = _harmonic(rest, part), _harmonic(n_real, n_synthetic)
        carry = biased and target > size
        divisors = (1,) if not carry or part < 4 else (1, 2, 4) if part >= LEAST_FOR_CURVATURE else (1, 2)
        return cls(n_real, rest, part, size, target, divisors, carry)

    def draws(self, rng: np.random.Generator) -> list[Draw]:
        """List `SPLITS` random splits at each size."""
        return list(self._draws(rng))

    def _draws(self, rng: np.random.Generator) -> Iterator[Draw]:
        for divisor in self.divisors:
            a, b = self.rest // divisor, self.part // divisor
            for _ in range(SPLITS):
                order = rng.permutation(self.n_real)
                yield order[:a], order[a : a + b]

    def carried(self, values: NDArray[np.float64]) -> tuple[float, dict[str, Setting]]:
        """Floor at the size of the comparison, with the sizes and the rule used."""
        means = values.reshape(len(self.divisors), SPLITS).mean(axis=1)
        floor = float(means[0])
        settings: dict[str, Setting] = {
            "floor_splits": SPLITS,
            "floor_n_real": self.rest,
            "floor_n_synthetic": self.part,
        }
        if not self.carry:
            return floor, settings
        if len(means) == 1 or floor <= 0:
            rule = "at the size of the splits: too few real volumes to carry it further"
            return floor, {**settings, "floor_rule": rule}
        sizes = [_harmonic(self.rest // k, self.part // k) for k in self.divisors]
        powers = -np.diff(np.log(means)) / np.diff(np.log(sizes))
        power = float(np.clip(2 * powers[0] - powers[-1], 0.0, 1.0))  # changes with N as much again at the next step
        rule = f"carried from {self.size:.4g} to {self.target:.4g} volumes by N^-{power:.3f}"
        carried = floor * (self.size / self.target) ** power
        return carried, {**settings, "floor_rule": rule, "floor_at_split": floor}


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
