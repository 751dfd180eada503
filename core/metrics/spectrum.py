"""Sharpness of a volume: how its power is spread over spatial frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from core.errors import InputError
from core.metrics.base import CohortName, Group, Score, Setting, VolumeMetric
from core.metrics.resampling import summarise_groups

EDGES = (0.0, 0.0625, 0.125, 0.25, 0.5)  # cycles per voxel; 0.5 is the finest the grid holds


def band_power(volume: ArrayLike, *, edges: Sequence[float] = EDGES) -> NDArray[np.float64]:
    """Share of the variance of a volume in each band of spatial frequency, summed over directions.

    Parameters
    ----------
    volume : array, shape (x, y, z)
    edges : sequence of float
        Ascending radial frequencies in cycles per voxel, from 0 to at most 0.5. The mean and whatever
        lies beyond the last edge (the corners of the cube) are left out.

    Returns
    -------
    ndarray, shape (len(edges) - 1,)
        Sums to 1; NaN for a constant volume.

    Raises
    ------
    InputError
        Not a finite 3D volume; edges that do not ascend within 0 and 0.5.
    """
    data = np.asarray(volume, dtype=np.float32)
    if data.ndim != 3 or min(data.shape) < 2 or not np.isfinite(data).all():
        raise InputError(
            f"expected a finite 3D volume, found shape {data.shape}, or NaN or Inf.", "volume", "Repair it."
        )
    limits = np.asarray(edges, dtype=np.float64)
    if len(limits) < 2 or limits[0] < 0 or limits[-1] > 0.5 or (np.diff(limits) <= 0).any():
        raise InputError(f"expected ascending edges within 0 and 0.5, found {tuple(edges)}.", "edges", "As `EDGES`.")
    if not np.ptp(data):
        return np.full(len(limits) - 1, np.nan)
    spectrum = fft.rfftn(data - data.mean(dtype=np.float64).astype(np.float32))
    power = np.square(spectrum.real) + np.square(spectrum.imag)  # (x, y, z // 2 + 1)
    mirrored = slice(1, (data.shape[2] + 1) // 2)
    power[..., mirrored] *= 2  # the other half of the last axis
    power[0, 0, 0] = 0.0
    squares = [fft.fftfreq(n) ** 2 for n in data.shape[:2]] + [fft.rfftfreq(data.shape[2]) ** 2]
    radius = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2]).ravel()
    band = np.searchsorted(limits, radius, side="right") - 1
    band[radius == limits[-1]] = len(limits) - 2
    sums = np.bincount(band + 1, weights=power.ravel(), minlength=len(limits) + 1)[1 : len(limits)]
    return np.asarray(sums / sums.sum())


def plan_single(n_real: int, n_synthetic: int, *, seed: int) -> list[Group]:
    """Every volume by itself.

    Raises
    ------
    InputError
        When a cohort is empty.
    """
    for name, n in (("real", n_real), ("synthetic", n_synthetic)):
        if n < 1:
            raise InputError("no volumes.", f"{name} cohort", "Add volumes to the cohort.")
    groups: list[Group] = [(("synthetic", i),) for i in range(n_synthetic)]
    return [*groups, *((("real", i),) for i in range(n_real))]


def measure_sharpness(*volumes: NDArray[np.floating], cohorts: Sequence[CohortName]) -> float:
    """Decadic logarithm of the share of power in the finest band; NaN for a constant volume."""
    (volume,) = volumes
    share = float(band_power(volume)[-1])
    return float(np.log10(share)) if share > 0 else float("nan")


def summarise_sharpness(
    groups: Sequence[Group], values: Sequence[float], *, n_real: int, n_synthetic: int, seed: int, n_boot: int
) -> Score:
    """Mean over synthetic volumes, beside the mean over real ones as its floor."""
    settings: dict[str, Setting] = {"band": f"{EDGES[-2]} to {EDGES[-1]} cycles per voxel", "mean": "of decadic logs"}
    return summarise_groups(
        groups, values, n_real=n_real, n_synthetic=n_synthetic, seed=seed, n_boot=n_boot, settings=settings
    )


SHARPNESS = VolumeMetric(
    name="sharpness",
    label="Sharpness",
    variant="corrected",
    unit="log10 share of power",
    direction="match real",
    range=(float("-inf"), 0.0),
    least_n=2,
    reference="Dohmen et al., Sci Rep 15 (2025) 3853, arXiv:2408.06075",
    meaning="Share of detail two to four voxels wide: below the real value volumes are blurred, above it noisy.",
    version=1,
    plan=plan_single,
    measure=measure_sharpness,
    summarise=summarise_sharpness,
)
