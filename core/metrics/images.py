"""Similarity of two volumes, and what it says about the variety within a cohort."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import InputError
from core.metrics.base import CohortName, Group, Score, Setting, VolumeMetric
from core.metrics.resampling import summarise_groups
from core.metrics.threads import one_blas_thread

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
SIGMA = 1.5
WINDOWS = (11, 9)  # the standard window, and the largest one of which five scales fit a 144-voxel edge
DATA_RANGE = 2.0  # volumes span [-1, 1]
PAIRS_PER_VOLUME = 4
BLOCK = 24  # output rows a band-matrix product covers; measured best between 16 and 68
COLUMNS = 2048  # keeps the maps of the last axis in the cache

Band = tuple[slice, slice, NDArray[np.float32]]  # output rows, input rows, weights


def ms_ssim(
    x: ArrayLike,
    y: ArrayLike,
    *,
    data_range: float,
    scales: int = 5,
    window: int | None = None,
    sigma: float = SIGMA,
) -> float:
    """Multi-scale structural similarity of two volumes; 1 for equal ones, higher is more alike.

    Parameters
    ----------
    x, y : array, shape (x, y, z)
    data_range : float
        Span of possible intensities: 2 for volumes in [-1, 1].
    scales : int
        Number of scales, each half the size of the one before. With fewer than five, the weights of
        the finest ones are divided by their sum.
    window : int, optional
        Edge of the Gaussian window. When not given: 11 where it fits the coarsest scale, otherwise 9,
        which fits the full grid with five scales and the half grid with four. Only windows that lie
        wholly inside the volume count.
    sigma : float
        Width of the Gaussian in voxels.

    Returns
    -------
    float
        Π csᵢ^wᵢ over the finer scales × ssim^w of the coarsest; a negative mean counts as 0.

    Raises
    ------
    InputError
        Volumes that are not 3D, not finite or of different shapes; data range not positive; scales
        that do not fit the volume.

    Notes
    -----
    The value of MONAI's ``MultiScaleSSIMMetric`` at the same window wherever that is defined.

    References
    ----------
    Wang, Simoncelli & Bovik, Asilomar 2003, doi:10.1109/ACSSC.2003.1292216.
    """
    first, second = checked_pair(x, y)
    if not (np.isfinite(data_range) and data_range > 0):
        raise InputError(f"expected a data range > 0, found {data_range}.", "data_range", "2 for volumes in [-1, 1].")
    if not (np.isfinite(sigma) and sigma > 0):
        raise InputError(f"expected a width > 0, found {sigma}.", "sigma", "The standard width is 1.5 voxels.")
    edge = _fitting_window(first.shape, scales, window)
    weights = np.array(WEIGHTS[:scales]) / (sum(WEIGHTS[:scales]) if scales < len(WEIGHTS) else 1.0)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    factors = []
    for scale in range(scales):
        if scale:
            first, second = halve(first), halve(second)
        bands = tuple(valid_bands(n, edge, sigma) for n in first.shape)
        ssim, contrast = ssim_and_contrast(first, second, bands, c1, c2)
        factors.append(contrast if scale < scales - 1 else ssim)
    return float(np.prod(np.maximum(factors, 0.0) ** weights))


def scales_for(shape: Sequence[int]) -> int:
    """Return the number of scales used for a volume: as many of the five as the smaller window fits.

    Raises
    ------
    InputError
        When not even one fits.
    """
    fitting = [scales for scales in range(1, len(WEIGHTS) + 1) if min(shape) // 2 ** (scales - 1) >= WINDOWS[-1]]
    if not fitting:
        raise InputError(
            f"shape {tuple(shape)} is smaller than the window of {WINDOWS[-1]} voxels.",
            "volumes",
            "Use larger volumes.",
        )
    return fitting[-1]


def checked_pair(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two volumes as float32, or say what is wrong with them.

    Raises
    ------
    InputError
        Not 3D, not finite, or of different shapes.
    """
    first, second = np.asarray(x, dtype=np.float32), np.asarray(y, dtype=np.float32)
    if first.shape != second.shape or first.ndim != 3:
        raise InputError(
            f"expected two 3D volumes of one shape, found {first.shape} and {second.shape}.",
            "volumes",
            "Bring both to one atlas grid.",
        )
    for name, volume in (("first", first), ("second", second)):
        if not np.isfinite(volume).all():
            raise InputError("NaN or Inf voxels.", f"{name} volume", "Repair the volume or leave it out.")
    return first, second


def ssim_and_contrast(
    x: NDArray[np.float32], y: NDArray[np.float32], bands: Sequence[tuple[Band, ...]], c1: float, c2: float
) -> tuple[float, float]:
    """Mean structural similarity and mean of its contrast-structure part at one scale.

    Filters the four maps x, y, x² + y² and xy by one banded matrix an axis (the separable Gaussian as
    small dense products, several times faster than a convolution on a CPU).

    Parameters
    ----------
    x, y : ndarray, shape (x, y, z)
    bands : three tuples of Band
        Filter of each axis; see `valid_bands`.
    c1, c2 : float
        Stability constants.
    """
    origin = x[0, 0, 0]  # background becomes 0, where single precision loses nothing of a variance
    with one_blas_thread():
        maps = _filter_planes(x - origin, y - origin, bands[1], bands[2])  # (map, x, y'z')
        total = np.zeros(2)
        for start in range(0, maps.shape[2], COLUMNS):
            for _, columns, weights in bands[0]:
                means = weights @ maps[:, columns, start : start + COLUMNS]
                total += _sums(means, origin, c1, c2)
    ssim, contrast = total / (_rows(bands[0]) * maps.shape[2])
    return float(ssim), float(contrast)


@lru_cache(maxsize=64)
def valid_bands(n: int, window: int, sigma: float) -> tuple[Band, ...]:
    """Gaussian filter along an axis of n voxels, at the n − window + 1 places where the window lies inside."""
    distance = np.arange(window) - (window - 1) / 2
    gaussian = np.exp(-((distance / sigma) ** 2) / 2)
    matrix = np.zeros((n - window + 1, n))
    for row in range(len(matrix)):
        matrix[row, row : row + window] = gaussian / gaussian.sum()
    return banded(matrix)


def banded(matrix: NDArray[np.float64]) -> tuple[Band, ...]:
    """Cut a filter matrix (outputs, inputs) into blocks of rows with the inputs they touch."""
    bands = []
    for start in range(0, len(matrix), BLOCK):
        rows = slice(start, min(start + BLOCK, len(matrix)))
        touched = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(touched[0]), int(touched[-1]) + 1)
        bands.append((rows, columns, np.ascontiguousarray(matrix[rows, columns], dtype=np.float32)))
    return tuple(bands)


def halve(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average 2×2×2 blocks, leaving out a last odd plane: (x, y, z) to (x//2, y//2, z//2)."""
    for axis in range(3):
        even = 2 * (volume.shape[axis] // 2)
        pairs = np.moveaxis(volume, axis, 0)[:even]
        volume = np.moveaxis((pairs[0::2] + pairs[1::2]) * np.float32(0.5), 0, axis)
    return np.ascontiguousarray(volume)


def plan_within(n_real: int, n_synthetic: int, *, seed: int, pairs_per_volume: int = PAIRS_PER_VOLUME) -> list[Group]:
    """Pairs within each cohort: synthetic pairs for the value, real pairs for the floor.

    Every volume is in ``pairs_per_volume`` pairs (all pairs of a small cohort), so the number of
    pairs grows with the cohort and not with its square. The real pairs depend on the real cohort
    alone, so that one set serves every generator.

    Raises
    ------
    InputError
        When a cohort has fewer than two volumes.
    """
    for name, n in (("real", n_real), ("synthetic", n_synthetic)):
        if n < 2:
            raise InputError(f"{n} volume(s): a pair needs 2.", f"{name} cohort", "Add volumes to the cohort.")
    return _ring("synthetic", n_synthetic, seed, pairs_per_volume) + _ring("real", n_real, seed, pairs_per_volume)


def measure_within(*volumes: NDArray[np.floating], cohorts: Sequence[CohortName]) -> float:
    """MS-SSIM of one pair in [-1, 1], at the number of scales that fits its grid."""
    x, y = volumes
    return ms_ssim(x, y, data_range=DATA_RANGE, scales=scales_for(x.shape))


def summarise_within(
    groups: Sequence[Group], values: Sequence[float], *, n_real: int, n_synthetic: int, seed: int, n_boot: int
) -> Score:
    """Mean MS-SSIM of the pairs with a synthetic volume, beside the mean within the real cohort as its floor."""
    settings: dict[str, Setting] = {
        "data_range": DATA_RANGE,
        "sigma": SIGMA,
        "window": "11, or 9 where 11 does not fit the coarsest scale",
        "scales": "5 on the full grid, 4 on the half grid",
    }
    return summarise_groups(
        groups, values, n_real=n_real, n_synthetic=n_synthetic, seed=seed, n_boot=n_boot, settings=settings
    )


def plan_against_real(
    n_real: int, n_synthetic: int, *, seed: int, pairs_per_volume: int = PAIRS_PER_VOLUME
) -> list[Group]:
    """Pairs of a synthetic and a real volume for the value, pairs of real volumes for the floor.

    Every synthetic volume meets ``pairs_per_volume`` real ones (all of a small cohort), and these take turns,
    so that all real volumes are used equally often. The real pairs are those of `plan_within`.

    Raises
    ------
    InputError
        When a cohort has fewer than two volumes.
    """
    within = plan_within(n_real, n_synthetic, seed=seed, pairs_per_volume=pairs_per_volume)
    order = np.random.default_rng([seed, n_real, n_synthetic]).permutation(n_real)
    each = min(pairs_per_volume, n_real)
    groups: list[Group] = [
        (("synthetic", i), ("real", int(order[(i * each + step) % n_real])))
        for i in range(n_synthetic)
        for step in range(each)
    ]
    return [*groups, *(group for group in within if group[0][0] == "real")]


MS_SSIM = VolumeMetric(
    name="ms-ssim",
    label="MS-SSIM within the cohort",
    variant="corrected",
    unit="",
    direction="match real",
    range=(0.0, 1.0),
    least_n=2,
    reference="Wang et al., Asilomar 2003, doi:10.1109/ACSSC.2003.1292216",
    meaning="How alike two brains of the cohort are: above the real value the generator lacks variety.",
    version=1,
    plan=plan_within,
    measure=measure_within,
    summarise=summarise_within,
)
MS_SSIM_REAL = VolumeMetric(
    name="ms-ssim-real",
    label="MS-SSIM against real",
    variant="corrected",
    unit="",
    direction="match real",
    range=(0.0, 1.0),
    least_n=2,
    reference="Wang et al., Asilomar 2003, doi:10.1109/ACSSC.2003.1292216",
    meaning="How alike a synthetic and a real brain are: below the value of two real brains they look different.",
    version=1,
    plan=plan_against_real,
    measure=measure_within,
    summarise=summarise_within,
)


def _filter_planes(
    x: NDArray[np.float32], y: NDArray[np.float32], across_y: Sequence[Band], across_z: Sequence[Band]
) -> NDArray[np.float32]:
    """Filter x, y, x² + y² and xy within each plane of the first axis: (x, y, z) to (4, x, y'z')."""
    height, width = _rows(across_y), _rows(across_z)
    maps = np.empty((4, len(x), height, width), dtype=np.float32)
    narrow = np.empty((4, x.shape[1], width), dtype=np.float32)
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        plane = np.stack([a, b, a * a + b * b, a * b])  # (map, y, z)
        for rows, columns, weights in across_z:
            narrow[..., rows] = plane[..., columns] @ weights.T
        for rows, columns, weights in across_y:
            maps[:, i, rows] = weights @ narrow[:, columns]
    return maps.reshape(4, len(x), -1)


def _sums(means: NDArray[np.float32], origin: np.float32, c1: float, c2: float) -> tuple[float, float]:
    """Sum ssim and contrast over voxels, given the local means of x, y, x² + y² and xy less their origin."""
    x, y, squares, product = means
    contrast = (2 * (product - x * y) + c2) / (squares - x * x - y * y + c2)
    x, y = x + origin, y + origin
    ssim = contrast * ((2 * x * y + c1) / (x * x + y * y + c1))
    return float(ssim.sum(dtype=np.float64)), float(contrast.sum(dtype=np.float64))


def _ring(cohort: CohortName, n: int, seed: int, pairs_per_volume: int) -> list[Group]:
    """Pairs of neighbours on a ring of volumes in random order."""
    if n - 1 <= pairs_per_volume:
        return [((cohort, i), (cohort, j)) for i, j in itertools.combinations(range(n), 2)]
    order = np.random.default_rng([seed, n]).permutation(n)
    steps = range(1, max(1, pairs_per_volume // 2) + 1)
    pairs = (sorted((int(order[i]), int(order[(i + step) % n]))) for step in steps for i in range(n))
    return [((cohort, i), (cohort, j)) for i, j in pairs]


def _fitting_window(shape: Sequence[int], scales: int, window: int | None) -> int:
    if not 1 <= scales <= len(WEIGHTS):
        raise InputError(f"expected 1 to {len(WEIGHTS)} scales, found {scales}.", "scales", "The standard is 5.")
    coarsest = min(shape) // 2 ** (scales - 1)
    wanted = WINDOWS if window is None else (window,)
    fitting = [edge for edge in wanted if 1 <= edge <= coarsest]
    if not fitting:
        raise InputError(
            f"shape {tuple(shape)} is {coarsest} voxels wide at scale {scales}, less than the window of {wanted[-1]}.",
            "volumes",
            "Ask for fewer scales (4 on the half grid) or a smaller window.",
        )
    return fitting[0]


def _rows(bands: Sequence[Band]) -> int:
    return bands[-1][0].stop
