"""Running moments of features: Fréchet distances of cohorts too large to hold."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from core.errors import InputError
from core.metrics.threads import one_blas_thread


class Moments:
    """Count, mean and scatter of rows that pass by in batches; memory grows with the width alone.

    Parameters
    ----------
    width : int
        Number of features.

    References
    ----------
    Chan, Golub & LeVeque, Am Stat 37 (1983) 242-247, doi:10.1080/00031305.1983.10483115.
    """

    def __init__(self, width: int):
        if width < 1:
            raise InputError(f"expected 1 feature or more, found {width}.", "width", "Give the encoder's width.")
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(width)
        self.scatter: NDArray[np.float64] = np.zeros((width, width))

    def update(self, batch: ArrayLike) -> None:
        """Add rows: (n, width).

        Raises
        ------
        InputError
            Another width, NaN or Inf.
        """
        rows = np.asarray(batch, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            what = f"expected (volumes, {len(self.mean)}), found shape {rows.shape}."
            raise InputError(what, "batch", "Extract all with the same encoder.")
        if not np.isfinite(rows).all():
            raise InputError("rows hold NaN or Inf.", "batch", "Check these volumes.")
        if len(rows):
            mean = rows.mean(axis=0)
            centred = rows - mean
            with one_blas_thread():
                self._add(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add the rows that another accumulator has seen.

        Raises
        ------
        InputError
            Another width.
        """
        if len(other.mean) != len(self.mean):
            what = f"widths {len(self.mean)} and {len(other.mean)}."
            raise InputError(what, "moments", "Extract all with the same encoder.")
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the rows with ddof = 1: (width, width)."""
        if self.count < 2:
            raise InputError(f"{self.count} volume(s): a covariance needs 2.", "moments", "Add volumes.")
        return np.asarray(self.scatter / (self.count - 1))

    def _add(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        total, gap = self.count + count, mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(gap, gap) * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total


def frechet_distance_moments(real: Moments, synthetic: Moments) -> float:
    """Fréchet distance of two cohorts from their running moments. Lower is better.

    Parameters
    ----------
    real, synthetic : Moments

    Returns
    -------
    float
        The value of `core.metrics.features.frechet_distance` on the rows themselves.

    Raises
    ------
    InputError
        Different widths, or fewer than two rows in a cohort.

    Notes
    -----
    Tr (Σr Σs)^½ is the nuclear norm of Rr Rsᵀ with factors RᵀR = Σ from eigenvalues. With fewer rows than
    features a covariance is singular: its factor keeps only the axes that hold variance, and rounding costs
    more digits than from the rows themselves.
    """
    if len(real.mean) != len(synthetic.mean):
        what = f"real features have width {len(real.mean)}, synthetic features {len(synthetic.mean)}."
        raise InputError(what, "moments", "Extract both with the same encoder.")
    first, second = real.covariance, synthetic.covariance
    gap = real.mean - synthetic.mean
    with one_blas_thread():
        between = _factor(first, real.count) @ _factor(second, synthetic.count).T
        nuclear = float(linalg.svdvals(between, check_finite=False).sum()) if between.size else 0.0
    value = float(gap @ gap + np.trace(first) + np.trace(second)) - 2 * nuclear
    if not math.isfinite(value):
        raise InputError(f"the value is {value}: the features are too large for float64.", "moments", "Rescale them.")
    return max(0.0, value)


def _factor(covariance: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Matrix R of at most count − 1 rows with RᵀR = covariance."""
    values, vectors = linalg.eigh(covariance, check_finite=False)
    values, vectors = values[-(count - 1) :], vectors[:, -(count - 1) :]
    kept = values > 0
    return np.asarray(np.sqrt(values[kept])[:, None] * vectors[:, kept].T)
