"""Copy check: whether synthetic volumes lie closer to the training cohort than to people never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from core.metrics.features import Matrix, checked
from core.metrics.neighbours import distance_blocks

WORST = 10


@dataclass(frozen=True)
class CopyPair:
    """A synthetic row, its nearest training row, and how much nearer that is than the nearest held-out row."""

    synthetic: int
    training: int
    ratio: float


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
    rng, size = np.random.default_rng(seed), min(len(seen), len(unseen))
    part = np.sort(rng.permutation(len(seen))[:size])
    others = np.sort(rng.permutation(len(unseen))[:size])
    to_unseen, _ = _nearest(rows, unseen[others])
    to_part, _ = _nearest(rows, seen[part])
    to_seen, which = (to_part, None) if worst < 1 else _nearest(rows, seen)
    nearer, equal = int((to_part < to_unseen).sum()), int((to_part == to_unseen).sum())
    decided = len(rows) - equal
    p_value = float(stats.binomtest(nearer, decided, alternative="greater").pvalue) if decided else 1.0
    pairs: tuple[CopyPair, ...] = ()
    if which is not None:
        ratio = _ratio(to_seen, to_unseen)
        first = np.argsort(ratio, kind="stable")[:worst]
        pairs = tuple(CopyPair(int(i), int(which[i]), float(ratio[i])) for i in first)
    return CopyResult((nearer + equal / 2) / len(rows), p_value, pairs, len(rows), size, seed)


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
