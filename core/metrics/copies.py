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
PERMUTATIONS = 9999


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
        One-sided permutation test: how often the share is as large when the references of both sides change places
        at random. Synthetic rows may share their nearest reference, as blurred or collapsed cohorts do.
    p_binomial : float
        One-sided binomial test of a share above 0.5, equal distances left out: it takes synthetic rows as independent,
        and calls any cohort a copy whose rows all lie nearest to the same one person.
    worst : tuple of CopyPair
        Smallest ratios first. Row numbers are those of the arrays given.
    n_synthetic, n_reference, seed : int
        Synthetic rows, rows drawn from each of training and held-out, seed of the draw.
    """

    share: float
    p_value: float
    p_binomial: float
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
    The permutation test asks whether training and held-out people are exchangeable to the generator, which they are
    when it has not seen the former; it holds for dependent synthetic rows. Repeated scans of one person must be on one
    side. Distances are computed in blocks of rows.
    """
    rows, seen = checked(synthetic, training)
    unseen, _ = checked(held_out, training)
    part, others = _equal_parts(len(seen), len(unseen), seed)
    to_unseen, to_part = _nearest(rows, unseen[others]), _nearest(rows, seen[part])
    to_seen = _nearest(rows, seen) if worst > 0 else to_part
    return _result(to_part, to_unseen, to_seen, size=len(part), seed=seed, worst=worst)


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
    to_part, to_unseen, to_seen = (
        (table.min(axis=1), table.argmin(axis=1)) for table in (seen[:, part], unseen[:, others], seen)
    )
    return _result(to_part, to_unseen, to_seen, size=len(part), seed=seed, worst=worst)


def _equal_parts(n_seen: int, n_unseen: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw equally many rows of both references."""
    rng, size = np.random.default_rng(seed), min(n_seen, n_unseen)
    return np.sort(rng.permutation(n_seen)[:size]), np.sort(rng.permutation(n_unseen)[:size])


Nearest = tuple[NDArray[np.float64], NDArray[np.intp]]  # distance to the nearest other row, and which it is


def _result(to_part: Nearest, to_unseen: Nearest, to_seen: Nearest, *, size: int, seed: int, worst: int) -> CopyResult:
    """Test and list: nearest rows of the drawn parts, and of the whole training cohort."""
    n, held_out = len(to_part[0]), to_unseen[0]
    nearer, equal = to_part[0] < held_out, to_part[0] == held_out
    decided = int((~equal).sum())
    binomial = stats.binomtest(int(nearer.sum()), decided, alternative="greater").pvalue if decided else 1.0
    nearest = np.where(nearer, to_part[1], size + to_unseen[1])[~equal]  # numbered through both references
    p_value = _permutation_p(np.bincount(nearest, minlength=2 * size), seed)
    ratio = _ratio(to_seen[0], held_out)
    first = np.argsort(ratio, kind="stable")[: max(0, worst)]
    pairs = tuple(
        CopyPair(int(i), int(to_seen[1][i]), float(ratio[i]), float(to_seen[0][i]), float(held_out[i])) for i in first
    )
    share = float((nearer.sum() + equal.sum() / 2) / n)
    return CopyResult(share, p_value, float(binomial), pairs, n, size, seed)


def _permutation_p(counts: NDArray[np.intp], seed: int) -> float:
    """How often as many rows have their nearest reference on the training side when sides are drawn anew.

    Changing the side of a reference changes no distance, so how many rows each reference is nearest to is all it takes:
    counts (2 size,), training references first.
    """
    size = len(counts) // 2
    rng = np.random.default_rng([seed, 1])
    found = counts[:size].sum()
    draws = rng.permuted(np.tile(counts, (PERMUTATIONS, 1)), axis=1)[:, :size].sum(axis=1)
    return float((1 + (draws >= found).sum()) / (1 + PERMUTATIONS))


def _nearest(rows: Matrix, others: Matrix) -> Nearest:
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
