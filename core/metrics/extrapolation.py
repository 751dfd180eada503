"""Fréchet distance carried to infinitely many volumes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.features import checked, feature_warnings, frechet_estimate
from core.metrics.resampling import Estimate, Rows, score

FRACTIONS = (0.5, 0.625, 0.75, 0.875, 1.0)
REPEATS = 4  # random subsets at each size below the full one
SUBSET_SEED = 0
LEAST = 8
MOST_DRAWS = 100  # each draw is a whole curve


@dataclass(frozen=True)
class Extrapolation:
    """Fréchet distances at growing cohort sizes, and the value of their line at 1/N = 0."""

    value: float
    sizes: tuple[float, ...]
    distances: tuple[float, ...]


def frechet_extrapolated(real: ArrayLike, synthetic: ArrayLike, *, seed: int = SUBSET_SEED) -> Extrapolation:
    """Fréchet distance at infinite N: a line in 1/N through the distances of random subsets. Lower is better.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : array, shape (m, d)
    seed : int
        Seed of the subsets.

    Returns
    -------
    Extrapolation
        Sizes are harmonic means of both subsets. The value may fall below 0 where the cohorts do not differ.

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`; fewer than eight rows.

    Notes
    -----
    The bias is a line in 1/N only where N is well above d. Below it the curve bends, and the value still
    lies above that of infinite N.

    References
    ----------
    Chong & Forsyth, CVPR 2020, arXiv:1911.07023.
    """
    first, second = checked(real, synthetic)
    n, m = len(first), len(second)
    if min(n, m) < LEAST:
        raise InputError(
            f"{n} real and {m} synthetic rows: the curve needs {LEAST} of each.", "features", "Add volumes."
        )
    return _curve(frechet_estimate(first, second), np.arange(n), np.arange(n, n + m), seed)


def evaluate_extrapolated(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int
) -> Score:
    """Extrapolated Fréchet distance with half-sample interval, floor and its curve in the settings."""
    first, second = checked(real, synthetic)
    n, m, width = len(first), len(second), first.shape[1]
    notes = feature_warnings(first, second, covariance=False)
    if min(n, m) <= 2 * width:
        notes.append(
            f"N = {min(n, m)} is small beside the feature width {width}: the curve bends, so this is not yet the value "
            "at infinite N; compare only at equal N"
        )
    distance = frechet_estimate(first, second)

    def estimate(i: Rows, j: Rows) -> float:
        return _curve(distance, i, j, SUBSET_SEED).value

    found = score(
        estimate,
        n,
        m,
        seed=seed,
        n_boot=min(n_boot, MOST_DRAWS),
        lower=-np.inf,
        biased=False,
        least=LEAST,
        settings={"width": width, "repeats": REPEATS, "subset_seed": SUBSET_SEED},
        warnings=notes,
    )
    if found.value is None:
        return found
    curve = _curve(distance, np.arange(n), np.arange(n, n + m), SUBSET_SEED)
    points = [[round(n, 1), float(f"{d:.6g}")] for n, d in zip(curve.sizes, curve.distances, strict=True)]
    return replace(found, settings={**found.settings, "curve": json.dumps(points)})


FRECHET_EXTRAPOLATED = FeatureMetric(
    name="fid-infinity",
    label="Fréchet distance, infinite N",
    variant="corrected",
    unit="squared feature units",
    direction="lower",
    range=(float("-inf"), float("inf")),
    least_n=LEAST,
    reference="Chong & Forsyth, CVPR 2020, arXiv:1911.07023",
    meaning="The Fréchet distance less the part that comes from having few volumes, as far as a line shows it.",
    version=1,
    evaluate=evaluate_extrapolated,
)


def _curve(distance: Estimate, i: Rows, j: Rows, seed: int) -> Extrapolation:
    """Distances of random subsets of the rows, and their line in 1/N, every subset with equal weight."""
    rng = np.random.default_rng(seed)
    inverse, values = [], []
    sizes: list[float] = []
    means: list[float] = []
    for fraction in FRACTIONS:
        a, b = round(fraction * len(i)), round(fraction * len(j))
        repeats = 1 if fraction == 1 else REPEATS
        found = [distance(rng.permutation(i)[:a], rng.permutation(j)[:b]) for _ in range(repeats)]
        sizes.append(2 / (1 / a + 1 / b))
        means.append(float(np.mean(found)))
        inverse += [1 / sizes[-1]] * repeats
        values += found
    intercept = float(np.polyfit(np.array(inverse) * len(i), values, 1)[1])
    return Extrapolation(intercept, tuple(sizes), tuple(means))
