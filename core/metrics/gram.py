"""Inner products of volumes: all that distances and kernels between them need, in one pass over the files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from core.metrics.threads import one_blas_thread

Rows32 = NDArray[np.float32]
BACKGROUND = -1.0  # shifted to 0, where background adds nothing to a product
COLUMNS = 16384  # voxels multiplied at a time in float64
SHARE = 4  # part of the memory that the rows held at once may take
MEMORY_BYTES = 2 * 10**9


def gram_matrix(
    volumes: Iterable[NDArray[np.floating]],
    n: int,
    *,
    scratch: Path,
    rows: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> NDArray[np.float64]:
    """Inner products of all pairs of volumes, intensities shifted by +1 so that the background is 0.

    Parameters
    ----------
    volumes : iterable of n arrays of one shape
        Each is asked for once, in order, and let go.
    n : int
        Number of volumes.
    scratch : Path
        Existing folder for one temporary file of 4 bytes a voxel and volume; it is used, and removed
        afterwards, only where the volumes do not fit the memory.
    rows : int, optional
        Multiply only the first so many volumes with all; the other products are NaN but for the diagonal.
    memory_bytes : int
        Most memory to take, beside that of reading one volume.

    Returns
    -------
    ndarray, shape (n, n)
        Products of float32 intensities, summed in float64.

    Raises
    ------
    InputError
        Volumes of different shapes, NaN or Inf, more or fewer than ``n``, no room on the disk, or too
        little memory for one column of voxels.

    Notes
    -----
    The scratch file holds blocks of voxels, each of all volumes, so that it is written once and read
    once from start to end. Voxels that are background in every volume are left out of the products.
    """
    if n < 1:
        raise InputError(f"{n} volumes.", "volumes", "Give at least one.")
    flat = _flattened(volumes, n)
    first = next(flat)
    if n * first.size * 4 <= memory_bytes // SHARE:
        held = np.empty((n, first.size), dtype=np.float32)
        held[0] = first
        for row, values in enumerate(flat, start=1):
            held[row] = values
        return _accumulated(iter([held]), n, rows, memory_bytes)
    width = memory_bytes // SHARE // (4 * n)  # voxels of a block
    if width < 1:
        raise InputError(f"{memory_bytes} bytes hold no voxel of {n} volumes.", "memory_bytes", "Allow more memory.")
    needed, free = n * first.size * 4, shutil.disk_usage(scratch).free
    if needed > free:
        what = f"{needed / 1e9:.1f} GB are needed for {n} volumes, {free / 1e9:.1f} GB are free."
        raise InputError(what, str(scratch), "Free some space, or point the workspace to a larger disk.")
    with tempfile.TemporaryFile(dir=scratch) as file:
        _write_blocks(file.fileno(), first, flat, n, width)
        return _accumulated(_read_blocks(file.fileno(), n, first.size, width), n, rows, memory_bytes)


def squared_distances(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances between volumes from their inner products: (n, n) to (n, n)."""
    norms = np.diag(products)
    return squares_of(products.copy(), norms, norms)


def squares_of(
    products: NDArray[np.float64], own: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Squared distances of some rows to others, (n, m), from products, which are overwritten, and squared norms."""
    squared = own[:, None] + others
    products *= 2
    squared -= products
    squared[squared < 1e-12 * others.max(initial=0.0)] = 0.0  # rounding of equal rows
    return squared


def _flattened(volumes: Iterable[NDArray[np.floating]], n: int) -> Iterator[Rows32]:
    """Yield exactly n flat volumes with background 0."""
    shape: tuple[int, ...] | None = None
    count = 0
    for count, volume in enumerate(volumes, start=1):
        data = np.asarray(volume, dtype=np.float32)
        shape = data.shape if shape is None else shape
        if data.shape != shape:
            what = f"volume {count - 1} has shape {data.shape}, the first one {shape}."
            raise InputError(what, "volumes", "Bring all to one atlas grid.")
        if count > n:
            break
        flat = data.ravel() - np.float32(BACKGROUND)
        if not np.isfinite(flat).all():
            raise InputError(f"volume {count - 1} holds NaN or Inf voxels.", "volumes", "Repair it or leave it out.")
        yield flat
    if count != n:
        found = f"more than {n}" if count > n else str(count)
        raise InputError(f"{found} volumes where {n} were announced.", "volumes", "Give their true number.")


def _write_blocks(descriptor: int, first: Rows32, others: Iterable[Rows32], n: int, width: int) -> None:
    """Write block after block of ``width`` voxels, each holding all volumes in order."""
    size = first.size

    def write(row: int, values: Rows32) -> None:
        for start in range(0, size, width):
            part = values[start : start + width]
            view, place = memoryview(part.tobytes()), 4 * (start * n + row * len(part))
            while view:
                written = os.pwrite(descriptor, view, place)
                view, place = view[written:], place + written

    write(0, first)
    for row, values in enumerate(others, start=1):
        write(row, values)


def _read_blocks(descriptor: int, n: int, size: int, width: int) -> Iterator[Rows32]:
    """Yield the blocks of a scratch file: (n, at most width)."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        for start in range(0, size, width):
            columns = min(width, size - start)
            yield np.fromfile(file, dtype=np.float32, count=n * columns).reshape(n, columns)


def _accumulated(blocks: Iterator[Rows32], n: int, rows: int | None, memory_bytes: int) -> NDArray[np.float64]:
    """Sum the products of blocks of voxels in float64: (n, voxels) each, to (n, n)."""
    first = n if rows is None else rows
    products, norms = np.zeros((first, n)), np.zeros(n)
    columns = max(1, min(COLUMNS, memory_bytes // SHARE // (8 * n)))
    with one_blas_thread():
        for block in blocks:
            for start in range(0, block.shape[1], columns):
                part = block[:, start : start + columns]
                part = part[:, part.any(axis=0)].astype(np.float64)
                products += part[:first] @ part.T
                if first < n:
                    norms += np.einsum("ij,ij->i", part, part)
    if first == n:
        return products
    whole = np.full((n, n), np.nan)
    whole[:first], whole[:, :first] = products, products.T
    whole[np.diag_indices(n)] = norms
    return whole
