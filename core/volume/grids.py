"""The atlas grids, volumes on them, and the published intensity rules. Reads no file of a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError

TEMPLATE_SCALE = 0.9  # ICBM152 (145x181x155 mm) scaled to average adult size, so that it fits the grid


@dataclass(frozen=True)
class Grid:
    """An atlas grid: RAS+ axes, isotropic voxels.

    Parameters
    ----------
    name : str
        "full" or "half".
    shape : tuple of int
        Voxels left→right, posterior→anterior, inferior→superior.
    spacing : float
        Voxel edge in mm.
    origin : tuple of float
        World coordinates (mm) of the centre of voxel (0, 0, 0).
    """

    name: str
    shape: tuple[int, int, int]
    spacing: float
    origin: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel-to-world matrix (4, 4) in mm."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = self.origin
        return affine


# The half grid's voxels are the 2x2x2 blocks of the full grid, so both cover the same field of view.
FULL = Grid("full", (144, 192, 144), 1.0, (-71.5, -110.5, -67.0))
HALF = Grid("half", (72, 96, 72), 2.0, (-71.0, -110.0, -66.5))
GRIDS = {grid.name: grid for grid in (FULL, HALF)}


@dataclass(frozen=True)
class Volume:
    """A 3D image with its place in the world.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Intensities (float32) or labels (int32) in RAS+ axis order.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm.
    case_id : str
        Name of the case; for files the name without suffix.
    notes : tuple of str
        What was changed while reading, in words.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    case_id: str = ""
    notes: tuple[str, ...] = field(default=())


def grid_named(name: str) -> Grid:
    """Return the grid called ``name``.

    Raises
    ------
    InputError
        When there is no such grid.
    """
    if name not in GRIDS:
        raise InputError(f"unknown grid {name!r}.", "grid", f"Choose one of: {', '.join(GRIDS)}.")
    return GRIDS[name]


def resample(volume: Volume, shape: Sequence[int], affine: NDArray[np.float64], *, order: int = 1) -> Volume:
    """Interpolate a volume at the voxels of another frame; outside values are the background minimum."""
    to_source = np.linalg.inv(volume.affine) @ affine
    data = ndimage.affine_transform(
        volume.data,
        to_source[:3, :3],
        offset=to_source[:3, 3],
        output_shape=tuple(shape),
        order=order,
        cval=float(volume.data.min()),
        prefilter=order > 1,
    )
    return replace(volume, data=data.astype(volume.data.dtype), affine=np.asarray(affine))


def block_mean(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average 2x2x2 blocks: (2x, 2y, 2z) to (x, y, z)."""
    x, y, z = (n // 2 for n in data.shape)
    return data.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5), dtype=np.float32)


@lru_cache(maxsize=8)
def template(grid: Grid) -> Volume:
    """Return the embedded atlas on a grid: ICBM152 2009a symmetric T1 scaled by 0.9, in [-1, 1].

    Returns
    -------
    Volume
        Shape ``grid.shape``, background exactly -1. The array is read-only: it is shared.

    References
    ----------
    Fonov et al., NeuroImage 54 (2011), doi:10.1016/j.neuroimage.2010.07.033.
    """
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    scale = np.diag([TEMPLATE_SCALE] * 3 + [1.0])
    raw = Volume(np.asarray(image.dataobj, dtype=np.float32), scale @ image.affine, "icbm152")
    data = ndimage.gaussian_filter(raw.data, 0.5 * (grid.spacing / TEMPLATE_SCALE - 1))
    on_grid = resample(replace(raw, data=data), grid.shape, grid.affine)
    scaled = normalise_percentile(on_grid.data)
    scaled.setflags(write=False)
    return replace(on_grid, data=scaled)


def normalise_percentile(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map a skull-stripped scan to [-1, 1] by the published rule for real scans.

    Values above the 95 % quantile of the whole volume are clipped to it, values at or below the
    5 % quantile become 0, then v / q95 * 2 - 1 (Wu et al., MICCAI 2024, code).

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Non-negative intensities, background 0.

    Returns
    -------
    ndarray, float32
        In [-1, 1], background exactly -1.

    Raises
    ------
    InputError
        When fewer than 5 % of the voxels are above the background.
    """
    low, high = np.quantile(data, [0.05, 0.95])
    if not high > 0:
        raise InputError(
            "fewer than 5 % of the voxels are brighter than the background.", "", "Check that it is a brain."
        )
    clipped = np.where(data <= low, 0.0, np.minimum(data, high))
    return (clipped / high * 2 - 1).astype(np.float32)


def normalise_maximum(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map a generated volume to [-1, 1] by the published rule: v / max * 2 - 1 when min ≥ 0."""
    return (data / data.max() * 2 - 1).astype(np.float32)
