"""Kernels between feature rows, and sums of them over parts of the cohorts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.metrics.gram import squares_of
from core.metrics.resampling import TABLE_ROWS, Draw
from core.metrics.threads import one_blas_thread

Matrix = NDArray[np.float64]
Kernel = Literal["rbf", "polynomial", "linear"]
Blocks = Iterator[tuple[slice, Matrix]]  # some rows, and their kernel with all rows

CELLS = 2**20  # values of a table in memory at a time where not all are kept: 8 MiB, whatever the size of the cohorts
MEDIAN_ROWS = 2048  # beyond, the median distance is that of so many random rows


def median_distance(rows: ArrayLike) -> float:
    """Median Euclidean distance between distinct rows, the usual bandwidth of an RBF kernel.

    Parameters
    ----------
    rows : array, shape (n, d)
        Of more than `TABLE_ROWS` rows, `MEDIAN_ROWS` random ones are taken, always the same.

    Raises
    ------
    InputError
        When it is zero: at least half the pairs are equal.
    """
    data = np.asarray(rows, dtype=np.float64)
    if len(data) > TABLE_ROWS:
        data = data[np.random.default_rng(len(data)).permutation(len(data))[:MEDIAN_ROWS]]
    squared = squared_distances(data)
    return median_of_squares(squared, "feature rows", "Look for repeated volumes or a constant encoder.")


def median_of_squares(squared: Matrix, what: str, remedy: str) -> float:
    """Median distance from the table of squared distances of what is compared; refused when it is zero."""
    pairs = np.concatenate([row[place:] for place, row in enumerate(squared, start=1)])
    median = float(np.median(np.sqrt(pairs, out=pairs), overwrite_input=True))
    if not median > 0:
        found = f"the median distance between {what} is 0, so the RBF kernel has no bandwidth."
        raise InputError(found, what, remedy)
    return median


def kernel_matrix(rows: Matrix, *, kernel: Kernel, bandwidth: float | None = None) -> Matrix:
    """Kernel values between all rows: (n, d) to (n, n)."""
    if kernel == "rbf":
        return rbf(squared_distances(rows), bandwidth)
    with one_blas_thread():
        return _of_products(rows @ rows.T, rows.shape[1], kernel)


def kernel_blocks(rows: Matrix, *, kernel: Kernel, bandwidth: float | None = None) -> Blocks:
    """Kernel values between blocks of rows and all rows, without ever holding all of them: (block, n) each."""
    centred = rows - rows.mean(axis=0) if kernel == "rbf" else rows
    norms = (centred**2).sum(axis=1)
    for block in row_blocks(len(rows), len(rows)):
        with one_blas_thread():
            products = centred[block] @ centred.T
        if kernel != "rbf":
            yield block, _of_products(products, rows.shape[1], kernel)
            continue
        yield block, rbf(squares_of(products, norms[block], norms), bandwidth)


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Cut n rows of a table so wide into slices of at most `CELLS` values, or of one row."""
    size = max(1, CELLS // width)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rbf(squared: Matrix, bandwidth: float | None) -> Matrix:
    """RBF kernel exp(−‖x−y‖² / 2h²) of squared distances, which are overwritten."""
    if bandwidth is None or not (np.isfinite(bandwidth) and bandwidth > 0):
        raise InputError(f"expected a bandwidth > 0, found {bandwidth}.", "bandwidth", "Give a positive number.")
    squared /= -2 * bandwidth**2
    return np.exp(squared, out=squared)


def squared_distances(rows: Matrix) -> Matrix:
    """Squared Euclidean distances between all rows: (n, d) to (n, n)."""
    centred = rows - rows.mean(axis=0)  # distances do not change, rounding does
    with one_blas_thread():
        products = centred @ centred.T
    norms = np.diag(products).copy()
    return squares_of(products, norms, norms)


def pair_sums(blocks: Blocks, n: int, draws: Sequence[Draw]) -> Matrix:
    """Sum a symmetric kernel over all pairs (i, i′), (j, j′) and (i, j) of each draw: (draws, 3).

    All draws are columns of counts in two matrix products with the kernel, many times faster than
    picking their rows out; a row that is drawn twice counts twice. The kernel passes by once.
    """
    sums = np.zeros((len(draws), 3))
    with one_blas_thread():
        for block, rows in blocks:
            for part in row_blocks(len(draws), n):
                first, second = (counts([draw[side] for draw in draws[part]], n) for side in (0, 1))
                along_first, along_second = rows @ first, rows @ second
                sums[part, 0] += (along_first * first[block]).sum(axis=0)
                sums[part, 1] += (along_second * second[block]).sum(axis=0)
                sums[part, 2] += (along_first * second[block]).sum(axis=0)
    return sums


def diagonal_sums(diagonal: NDArray[np.float64], draws: Sequence[Draw]) -> Matrix:
    """Sum k(x, x) over the rows i and j of each draw: (draws, 2)."""
    return np.array([[diagonal[i].sum(), diagonal[j].sum()] for i, j in draws]).reshape(-1, 2)


def counts(chosen: Sequence[NDArray[np.intp]], n: int) -> Matrix:
    """How often each of n rows was drawn: (n, draws)."""
    table = np.empty((len(chosen), n))
    for row, rows in zip(table, chosen, strict=True):
        row[:] = np.bincount(rows, minlength=n)
    return np.ascontiguousarray(table.T)


def mmd2_of_draws(blocks: Blocks, diagonal: NDArray[np.float64], draws: Sequence[Draw]) -> NDArray[np.float64]:
    """Unbiased MMD² of each draw of distinct rows, from a kernel that passes by once: (draws,)."""
    sums, own = pair_sums(blocks, len(diagonal), draws), diagonal_sums(diagonal, draws)
    n, m = (np.array([len(draw[side]) for draw in draws]) for side in (0, 1))
    within = (sums[:, 0] - own[:, 0]) / (n * (n - 1)) + (sums[:, 1] - own[:, 1]) / (m * (m - 1))
    return np.asarray(within - 2 * sums[:, 2] / (n * m))


def _of_products(products: Matrix, width: int, kernel: str) -> Matrix:
    if kernel == "linear":
        return products
    if kernel == "polynomial":
        return (products / width + 1) ** 3
    raise InputError(f"unknown kernel {kernel!r}.", "kernel", "Choose one of: rbf, polynomial, linear.")
