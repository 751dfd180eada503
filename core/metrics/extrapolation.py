"""Fréchet distance carried to infinitely many volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.features import checked, feature_warnings, frechet_estimate
from core.metrics.resampling import Draw, Rows, curve_point, score

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
    distances = frechet_estimate(first, second)(_subsets(np.arange(n), np.arange(n, n + m), seed))
    return _line(n, m, distances)


def evaluate_extrapolated(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int
) -> Score:
    """Extrapolated Fréchet distance with half-sample interval, floor and the curve behind the line."""
    first, second = checked(real, synthetic)
    n, m, width = len(first), len(second), first.shape[1]
    notes = feature_warnings(first, second, covariance=False)
    if LEAST <= min(n, m) <= 2 * width:
        notes.append(
            f"N = {min(n, m)} is small beside the feature width {width}: the curve bends, so this is not yet the value "
            "at infinite N; compare only at equal N"
        )
    distance, whole = frechet_estimate(first, second), {}

    def estimate(draws: Sequence[Draw]) -> NDArray[np.float64]:
        subsets = [subset for i, j in draws for subset in _subsets(i, j, SUBSET_SEED)]
        distances = distance(subsets).reshape(len(draws), -1)
        whole["distances"] = distances[0]  # the first draw is both cohorts as they are
        return np.array([_line(len(i), len(j), row).value for (i, j), row in zip(draws, distances, strict=True)])

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
    rows = np.split(whole["distances"], np.cumsum(_repeats())[:-1])
    sizes = [round(_harmonic(*size)) for size in _sizes(n, m)]
    curve = tuple(curve_point(size, row, 0.0) for size, row in zip(sizes, rows, strict=True))
    return replace(found, curve=curve)


FRECHET_EXTRAPOLATED = FeatureMetric(
    name="fid-infinity",
    label="FID, infinite N",
    variant="corrected",
    unit="squared feature units",
    direction="lower",
    range=(float("-inf"), float("inf")),
    least_n=LEAST,
    reference="Chong & Forsyth, CVPR 2020, arXiv:1911.07023",
    meaning="The Fréchet distance less the part that comes from having few volumes, as far as a line shows it.",
    version=2,
    evaluate=evaluate_extrapolated,
)


def _sizes(n: int, m: int) -> list[tuple[int, int]]:
    """Rows of both cohorts at each point of the curve."""
    return [(round(fraction * n), round(fraction * m)) for fraction in FRACTIONS]


def _repeats() -> list[int]:
    return [1 if fraction == 1 else REPEATS for fraction in FRACTIONS]


def _subsets(i: Rows, j: Rows, seed: int) -> list[Draw]:
    """Random subsets of the rows, point after point of the curve."""
    rng = np.random.default_rng(seed)
    return [
        (rng.permutation(i)[:a], rng.permutation(j)[:b])
        for (a, b), repeats in zip(_sizes(len(i), len(j)), _repeats(), strict=True)
        for _ in range(repeats)
    ]


def _line(n: int, m: int, distances: NDArray[np.float64]) -> Extrapolation:
    """Line in 1/N through the distances of the subsets, each with equal weight."""
    sizes = [_harmonic(a, b) for a, b in _sizes(n, m)]
    means = [float(part.mean()) for part in np.split(distances, np.cumsum(_repeats())[:-1])]
    inverse = np.repeat([1 / size for size in sizes], _repeats())
    intercept = float(np.polyfit(inverse * n, distances, 1)[1])
    return Extrapolation(intercept, tuple(sizes), tuple(means))


def _harmonic(n: int, m: int) -> float:
    return 2 / (1 / n + 1 / m)
