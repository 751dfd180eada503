"""Maps of all cohorts in two dimensions, fitted on all rows together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from core.errors import InputError
from core.metrics.features import Matrix, checked
from core.metrics.threads import one_blas_thread

Method = Literal["pca", "umap"]

NEIGHBOURS = 15  # UMAP's usual size of a neighbourhood
LEAST_FOR_UMAP = 5  # rows in all; fewer have no neighbourhood to keep
MOST_FOR_UMAP = 2000  # rows that are fitted; the library takes memory for each, and for their pairs


@dataclass(frozen=True)
class JointMap:
    """Positions of all rows on one map.

    Parameters
    ----------
    cohorts : tuple of ndarray, shape (n_i, 2)
        The real cohort first, then the synthetic ones in the order given.
    shares : tuple of float or None
        Share of the variance along both axes of a PCA; None for UMAP, whose axes mean nothing.
    """

    cohorts: tuple[NDArray[np.float64], ...]
    shares: tuple[float, float] | None


def joint_map(real: ArrayLike, synthetic: Sequence[ArrayLike], *, method: Method, seed: int) -> JointMap:
    """Place real and synthetic rows on one map, fitted on all of them together.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : sequence of arrays, shape (m_i, d)
    method : {"pca", "umap"}
        PCA keeps distances as well as a plane can, UMAP keeps neighbours; distances between far points
        of a UMAP mean little.
    seed : int
        Seed of UMAP, and of the `MOST_FOR_UMAP` rows that it is fitted on where there are more; the others are placed
        among them. PCA needs none.

    Returns
    -------
    JointMap
        The sign of a PCA axis is fixed so that its largest loading is positive.

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`; no synthetic cohort, an unknown method, fewer than
        five rows in all for UMAP, features that are constant over all cohorts.

    References
    ----------
    McInnes, Healy & Melville, arXiv:1802.03426 (UMAP).
    """
    if not len(synthetic):
        raise InputError("no synthetic cohort.", "map", "Give at least one.")
    pairs = [checked(real, rows) for rows in synthetic]
    parts = [pairs[0][0], *(rows for _, rows in pairs)]
    pooled = np.vstack(parts)
    pooled -= pooled.mean(axis=0)
    if not np.ptp(pooled, axis=0).any():
        raise InputError("all volumes look the same to this encoder.", "map", "Use another encoder.")
    if method == "pca":
        positions, shares = _pca(pooled)
    elif method == "umap":
        positions, shares = _umap(pooled, seed), None
    else:
        raise InputError(f"unknown method {method!r}.", "map", "Choose one of: pca, umap.")
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return JointMap(tuple(np.split(positions, ends)), shares)


def _pca(centred: Matrix) -> tuple[Matrix, tuple[float, float]]:
    """Scores along the two axes of greatest variance, and their shares of it."""
    n, d = centred.shape
    with one_blas_thread():
        table = centred @ centred.T if n <= d else centred.T @ centred
        last = len(table) - 1
        found, vectors = linalg.eigh(table, subset_by_index=[max(0, last - 1), last])
        vectors = vectors[:, ::-1]
        axes = centred.T @ vectors if n <= d else vectors
        lengths = np.linalg.norm(axes, axis=0)
        axes = np.divide(axes, lengths, out=np.zeros_like(axes), where=lengths > 1e-8 * lengths.max())
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        scores = centred @ axes
    share = np.maximum(found[::-1], 0.0) / np.trace(table)
    if scores.shape[1] < 2:  # a single feature has a single axis
        scores, share = np.column_stack([scores, np.zeros(n)]), np.append(share, 0.0)
    return scores, (float(share[0]), float(share[1]))


def _umap(rows: Matrix, seed: int) -> Matrix:
    if len(rows) < LEAST_FOR_UMAP:
        raise InputError(
            f"{len(rows)} volumes in all: a UMAP needs {LEAST_FOR_UMAP}.", "map", "Use PCA, or add volumes."
        )
    from umap import UMAP  # compiles for seconds on its first use

    neighbours = min(NEIGHBOURS, len(rows) - 1)
    init = "spectral" if len(rows) > 2 * NEIGHBOURS else "random"  # few rows have too few eigenvectors
    model = UMAP(n_components=2, n_neighbors=neighbours, init=init, random_state=seed, transform_seed=seed, n_jobs=1)
    order = np.arange(len(rows)) if len(rows) <= MOST_FOR_UMAP else np.random.default_rng(seed).permutation(len(rows))
    placed = np.empty((len(rows), 2))
    for start in range(0, len(rows), MOST_FOR_UMAP):
        some = order[start : start + MOST_FOR_UMAP]
        placed[some] = model.transform(rows[some]) if start else model.fit_transform(rows[some])
    return placed
