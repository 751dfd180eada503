"""Copy check: whether synthetic volumes lie closer to the training cohort than to people never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from core.errors import InputError
from core.metrics.features import Matrix, checked
from core.metrics.neighbours import distance_blocks

WORST = 10


@dataclass(frozen=True)
class CopyPair:
    """A synthetic row, its nearest training row, and how much nearer that is than the nearest held-out row.

    ``ratio`` is ``distance_training`` over ``distance_held_out``.
    """

    synthetic: int
    training: int
    ratio: float
    distance_training: float
    distance_held_out: float


@dataclass(frozen=True)
class CopyResult:
    """What the copy check found.

    Parameters
    ----------
    share : float
        Share of synthetic rows nearer to training than to held-out rows, equal distances counting half;
        about 0.5 without copying.
    p_value : float
        One-sided binomial test of a share above 0.5; equal distances are left out.
    worst : tuple of CopyPair
        Smallest ratios first. Row numbers are those of the arrays given.
    n_synthetic, n_reference, seed : int
        Synthetic rows, rows drawn from each of training and held-out, seed of the draw.
    """

    share: float
    p_value: float
    worst: tuple[CopyPair, ...]
    n_synthetic: int
    n_reference: int
    seed: int


def copy_check(
    synthetic: ArrayLike, training: ArrayLike, held_out: ArrayLike, *, seed: int, worst: int = WORST
) -> CopyResult:
    """Compare distances to the training cohort with distances to held-out people. A share of 0.5 is best.

    Parameters
    ----------
    synthetic : array, shape (n, d)
        Features, or flattened volumes.
    training, held_out : array, shape (m, d), (l, d)
        What the generator saw, and other people of the same population. The larger one is reduced to a
        random part of the size of the smaller one, because more candidates are nearer by chance.
    seed : int
        Seed of that part.
    worst : int
        Number of pairs listed; these are looked for in the whole training cohort.

    Returns
    -------
    CopyResult
        From r = distance to the nearest training row / distance to the nearest held-out row.

    Raises
    ------
    InputError
        Not matrices of one width with two rows or more, NaN or Inf.

    Notes
    -----
    The rows of the test share their references, so with few references it rejects more often than stated.
    Repeated scans of one person must be on one side. Distances are computed in blocks of rows.
    """
    rows, seen = checked(synthetic, training)
    unseen, _ = checked(held_out, training)
    part, others = _equal_parts(len(seen), len(unseen), seed)
    to_unseen, _ = _nearest(rows, unseen[others])
    to_part, _ = _nearest(rows, seen[part])
    to_seen, which = _nearest(rows, seen) if worst > 0 else (to_part, part)
    return _result(to_part, to_unseen, to_seen, which, size=len(part), seed=seed, worst=worst)


def copy_check_distances(
    to_training: ArrayLike, to_held_out: ArrayLike, *, seed: int, worst: int = WORST
) -> CopyResult:
    """Do as `copy_check` where the distances are known: volumes, by their inner products.

    Parameters
    ----------
    to_training, to_held_out : array, shape (n, m), (n, l)
        Distances of every synthetic volume to every training volume, and to every held-out one.
    seed, worst : int
        As for `copy_check`.

    Returns
    -------
    CopyResult

    Raises
    ------
    InputError
        Not two tables with the same rows, fewer than two columns, NaN, Inf or negative distances.
    """
    seen, unseen = (np.asarray(table, dtype=np.float64) for table in (to_training, to_held_out))
    if seen.ndim != 2 or unseen.ndim != 2 or len(seen) != len(unseen) or min(*seen.shape, *unseen.shape) < 1:
        what = f"expected distances (n, m) and (n, l), found {seen.shape} and {unseen.shape}."
        raise InputError(what, "distances", "Give one row for each synthetic volume.")
    if min(seen.shape[1], unseen.shape[1]) < 2:
        raise InputError("fewer than 2 volumes to compare with.", "distances", "Add training or held-out volumes.")
    if not all(np.isfinite(table).all() and table.min() >= 0 for table in (seen, unseen)):
        raise InputError("NaN, Inf or negative distances.", "distances", "Repair the volumes or leave them out.")
    part, others = _equal_parts(seen.shape[1], unseen.shape[1], seed)
    to_part, to_unseen = seen[:, part].min(axis=1), unseen[:, others].min(axis=1)
    which = seen.argmin(axis=1)
    return _result(to_part, to_unseen, seen.min(axis=1), which, size=len(part), seed=seed, worst=worst)


def _equal_parts(n_seen: int, n_unseen: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw equally many rows of both references."""
    rng, size = np.random.default_rng(seed), min(n_seen, n_unseen)
    return np.sort(rng.permutation(n_seen)[:size]), np.sort(rng.permutation(n_unseen)[:size])


def _result(
    to_part: NDArray[np.float64],
    to_unseen: NDArray[np.float64],
    to_seen: NDArray[np.float64],
    which: NDArray[np.intp],
    *,
    size: int,
    seed: int,
    worst: int,
) -> CopyResult:
    """Test and list: distances of the synthetic rows to the drawn parts, and to the whole training cohort."""
    n = len(to_part)
    nearer, equal = int((to_part < to_unseen).sum()), int((to_part == to_unseen).sum())
    decided = n - equal
    p_value = float(stats.binomtest(nearer, decided, alternative="greater").pvalue) if decided else 1.0
    ratio = _ratio(to_seen, to_unseen)
    first = np.argsort(ratio, kind="stable")[: max(0, worst)]
    pairs = tuple(
        CopyPair(int(i), int(which[i]), float(ratio[i]), float(to_seen[i]), float(to_unseen[i])) for i in first
    )
    return CopyResult((nearer + equal / 2) / n, p_value, pairs, n, size, seed)


def _nearest(rows: Matrix, others: Matrix) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Distance to the nearest other row, and which it is: (n, d), (m, d) to (n,), (n,)."""
    distance, which = np.empty(len(rows)), np.empty(len(rows), dtype=np.intp)
    origin = others.mean(axis=0)
    for block, squared in distance_blocks(rows - origin, others - origin):
        which[block] = squared.argmin(axis=1)
        distance[block] = np.linalg.norm(rows[block] - others[which[block]], axis=1)  # exactly 0 for a copy
    return distance, which


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide distances; 1 where both are 0, infinite where only the second is."""
    ratio = np.full(len(numerator), np.inf)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    ratio[(numerator == 0) & (denominator == 0)] = 1.0
    return ratio
