"""The numbers of the published evaluation, quirks included (Wu et al., MICCAI 2024, and its code).

For comparison with the literature only: each quirk is named where it is reproduced, and the estimator
to trust stands beside it under the same name with the variant "corrected". Written from a description
of what the code computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from core.errors import InputError
from core.metrics.base import CohortName, FeatureMetric, Group, Score, Setting, VolumeMetric
from core.metrics.features import Matrix, checked, feature_warnings, frechet_distance, frechet_estimate
from core.metrics.images import WEIGHTS, Band, banded, checked_pair, halve, ssim_and_contrast
from core.metrics.resampling import TABLE_ROWS, Estimate, Rows, one_by_one, score, summarise_groups
from core.metrics.threads import one_blas_thread

C1, C2 = 0.01**2, 0.03**2  # quirk: data range 1, although volumes span 2
SIGMA = 1.5
FEATURE_PASSES = 10  # identical ones, so their mean is one of them
IMAGE_PASSES = 5
SSIM_PASSES = 10
REAL_PAIRS = 1000
REFERENCE = "Wu et al., MICCAI 2024, and its published code"


def fid(real: ArrayLike, synthetic: ArrayLike) -> float:
    """Fréchet distance as published: the first half of the real rows, each twice. Lower is better.

    Parameters
    ----------
    real : array, shape (n, d)
        In file order.
    synthetic : array, shape (m, d)

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`.

    References
    ----------
    Wu et al., MICCAI 2024.
    """
    first, second = checked(real, synthetic)
    return frechet_distance(first[doubled(np.arange(len(first)))], second)


def feature_mmd(real: ArrayLike, synthetic: ArrayLike) -> float:
    """MMD of features as published: biased, linear, on blocks of two rows. Lower is better.

    Parameters
    ----------
    real : array, shape (n, d)
        In file order; the first half is used, each row twice.
    synthetic : array, shape (m, d)
        In file order.

    Returns
    -------
    float
        Σ ‖mean of two real − mean of two synthetic‖² over the N/2 blocks, divided by N − 1 rather than
        N/2, where N is the smaller cohort and an odd last row is left out.

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`.

    References
    ----------
    Wu et al., MICCAI 2024.
    """
    first, second = checked(real, synthetic)
    return _feature_mmd(first[doubled(np.arange(len(first)))], second)


def image_mmd(
    real: Sequence[NDArray[np.floating]],
    synthetic: Sequence[NDArray[np.floating]],
    *,
    seed: int,
    passes: int = IMAGE_PASSES,
) -> float:
    """MMD of volumes as published: neighbouring synthetic pairs against random real pairs. Lower is better.

    Parameters
    ----------
    real, synthetic : sequence of arrays, shape (x, y, z)
        Read one at a time: at most four volumes are held.
    seed : int
        Seed of the real pairs.
    passes : int
        Passes over the synthetic cohort, each with other real pairs.

    Returns
    -------
    float
        Mean of ‖mean of two real − mean of two synthetic‖², not divided by the number of voxels.

    Raises
    ------
    InputError
        Fewer than two volumes in a cohort, NaN, or unequal shapes.

    References
    ----------
    Wu et al., MICCAI 2024.
    """
    pairs = _real_pairs(len(real), len(synthetic), seed=seed, passes=passes)  # (passes, m - 1, 2)
    total, current = 0.0, synthetic[0]
    for i in range(len(synthetic) - 1):
        following = synthetic[i + 1]
        for j, k in pairs[:, i]:
            total += measure_image_mmd(
                current, following, real[j], real[k], cohorts=("synthetic", "synthetic", "real", "real")
            )
        current = following
    return total / (passes * (len(synthetic) - 1))


def ms_ssim_pair(x: ArrayLike, y: ArrayLike, *, normalize: bool) -> float:
    """MS-SSIM of two volumes as published; 1 for equal ones.

    Parameters
    ----------
    x, y : array, shape (x, y, z)
    normalize : bool
        Map the mean ssim and contrast of each scale by (v + 1)/2; the code does so for real pairs only.

    Returns
    -------
    float
        Π csᵢ^wᵢ over four scales × ssim^(4 w) of the fifth, which the code multiplies in with each of the
        other four. NaN when a mean is negative, as in the code.

    Raises
    ------
    InputError
        Volumes that are not 3D, not finite, of different shapes, or with an edge below 16 voxels.

    References
    ----------
    Wu et al., MICCAI 2024.
    """
    first, second = checked_pair(x, y)
    if min(first.shape) < 2 ** (len(WEIGHTS) - 1):
        raise InputError(f"shape {first.shape} cannot be halved four times.", "volumes", "Use edges of 16 or more.")
    values = []
    for scale in range(len(WEIGHTS)):
        if scale:
            first, second = halve(first), halve(second)
        bands = tuple(_reflecting_bands(n) for n in first.shape)
        values.append(ssim_and_contrast(first, second, bands, C1, C2))
    means = np.array(values)  # (scale, ssim and contrast)
    if normalize:
        means = (means + 1) / 2
    with np.errstate(invalid="ignore"):
        powers = means ** np.array(WEIGHTS)[:, None]
    return float(np.prod(powers[:-1, 1] * powers[-1, 0]))


def doubled(rows: Rows) -> Rows:
    """Return the first half of the rows, each twice: the code writes a batch of one row into two places."""
    return np.repeat(rows, 2)[: len(rows)]


def evaluate_fid(real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int) -> Score:
    """`fid` with half-sample interval and real-against-real floor."""
    first, second = checked(real, synthetic)
    estimate = frechet_estimate(first, second)
    return score(
        lambda draws: estimate([(doubled(i), j) for i, j in draws]),
        len(first),
        len(second),
        seed=seed,
        n_boot=n_boot,
        lower=0.0,
        biased=True,
        settings={"width": first.shape[1], "ddof": 1, "real_rows": "first half, each twice"},
        warnings=feature_warnings(first, second, covariance=True),
    )


def evaluate_feature_mmd(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int
) -> Score:
    """`feature_mmd` with half-sample interval and real-against-real floor."""
    first, second = checked(real, synthetic)
    return score(
        _feature_mmd_estimate(np.vstack([first, second])),
        len(first),
        len(second),
        seed=seed,
        n_boot=n_boot,
        lower=0.0,
        biased=False,  # within-pair variance keeps it well above 0 at every size
        settings={"width": first.shape[1], "real_rows": "first half, each twice", "passes": FEATURE_PASSES},
        warnings=feature_warnings(first, second, covariance=False),
    )


def plan_image_mmd(n_real: int, n_synthetic: int, *, seed: int, passes: int = IMAGE_PASSES) -> list[Group]:
    """List two neighbouring synthetic and two random real volumes a group; four real ones for the floor, in one pass.

    Raises
    ------
    InputError
        When a cohort has fewer than two volumes.
    """
    pairs = _real_pairs(n_real, n_synthetic, seed=seed, passes=passes)
    groups: list[Group] = [
        (("synthetic", i), ("synthetic", i + 1), ("real", int(j)), ("real", int(k)))
        for one_pass in pairs
        for i, (j, k) in enumerate(one_pass)
    ]
    if n_real >= 4:
        rng = np.random.default_rng([seed, 1])
        fours = (rng.choice(n_real, 4, replace=False) for _ in range(n_real - 1))
        groups += [tuple(("real", int(i)) for i in four) for four in fours]
    return groups


def measure_image_mmd(*volumes: NDArray[np.floating], cohorts: Sequence[CohortName]) -> float:
    """‖mean of the first two − mean of the last two‖² of four volumes (NaN voxels are refused)."""
    shapes = {np.shape(volume) for volume in volumes}
    if len(volumes) != 4 or len(shapes) != 1:
        raise InputError(
            f"expected four volumes of one shape, found {len(volumes)} with {sorted(shapes)}.",
            "volumes",
            "Bring all to one atlas grid.",
        )
    first, second, third, fourth = (np.asarray(volume, dtype=np.float32) for volume in volumes)
    gap = (first + second - third - fourth) / 2
    value = float(np.square(gap, out=gap).sum(dtype=np.float64))
    if not np.isfinite(value):
        raise InputError("NaN or Inf voxels.", "volumes", "Repair the volume or leave it out.")
    return value


def plan_ms_ssim(
    n_real: int, n_synthetic: int, *, seed: int, passes: int = SSIM_PASSES, real_pairs: int = REAL_PAIRS
) -> list[Group]:
    """Each synthetic volume against one random real volume a pass, and random pairs of real volumes.

    Raises
    ------
    InputError
        When there are fewer than two real volumes, or no synthetic one.
    """
    if n_real < 2 or n_synthetic < 1:
        raise InputError(
            f"{n_real} real and {n_synthetic} synthetic volume(s); pairs need 2 and 1.", "cohorts", "Add volumes."
        )
    partners = np.random.default_rng([seed, 0]).integers(n_real, size=(passes, n_synthetic))
    groups: list[Group] = [
        (("synthetic", i), ("real", int(j))) for one_pass in partners for i, j in enumerate(one_pass)
    ]
    rng = np.random.default_rng([seed, 1])  # of its own, so that one set of real pairs serves every generator
    pairs = (sorted(int(i) for i in rng.choice(n_real, 2, replace=False)) for _ in range(real_pairs))
    return groups + [(("real", i), ("real", j)) for i, j in pairs]


def measure_ms_ssim(*volumes: NDArray[np.floating], cohorts: Sequence[CohortName]) -> float:
    """`ms_ssim_pair`, normalised for real pairs only."""
    x, y = volumes
    return ms_ssim_pair(x, y, normalize="synthetic" not in cohorts)


def summarise_ms_ssim(
    groups: Sequence[Group], values: Sequence[float], *, n_real: int, n_synthetic: int, seed: int, n_boot: int
) -> Score:
    """Mean over synthetic-real pairs beside the mean over real pairs, which is another estimator."""
    settings: dict[str, Setting] = {
        "data_range": 1.0,
        "passes": _passes(groups, n_synthetic),
        "normalized": "real pairs only",
    }
    return summarise_groups(
        groups, values, n_real=n_real, n_synthetic=n_synthetic, seed=seed, n_boot=n_boot, settings=settings
    )


FID = FeatureMetric(
    name="fid",
    label="FID, as published",
    variant="published",
    unit="squared feature units",
    direction="lower",
    range=(0.0, float("inf")),
    least_n=2,
    reference=REFERENCE,
    meaning="Fréchet distance with the first half of the real volumes counted twice and the other half left out.",
    version=1,
    evaluate=evaluate_fid,
)
MMD = FeatureMetric(
    name="mmd",
    label="MMD, as published",
    variant="published",
    unit="squared feature units",
    direction="lower",
    range=(0.0, float("inf")),
    least_n=2,
    reference=REFERENCE,
    meaning="About half of the squared mean gap plus the variance within pairs; it mostly repeats FID.",
    version=1,
    evaluate=evaluate_feature_mmd,
)
MS_SSIM = VolumeMetric(
    name="ms-ssim",
    label="MS-SSIM, as published",
    variant="published",
    unit="",
    direction="match real",
    range=(0.0, 1.0),
    least_n=2,
    reference=REFERENCE,
    meaning="How alike synthetic and real brains are, beside how alike real brains are by another formula.",
    version=1,
    plan=plan_ms_ssim,
    measure=measure_ms_ssim,
    summarise=summarise_ms_ssim,
)


def _passes(groups: Sequence[Group], groups_a_pass: int) -> int:
    return sum(any(cohort == "synthetic" for cohort, _ in group) for group in groups) // max(1, groups_a_pass)


def _feature_mmd(real: Matrix, synthetic: Matrix) -> float:
    blocks = min(len(real), len(synthetic)) // 2
    means = (rows[: 2 * blocks].reshape(blocks, 2, -1).mean(axis=1) for rows in (real, synthetic))
    gap = np.subtract(*means)  # (blocks, d)
    return float((gap**2).sum() / (min(len(real), len(synthetic)) - 1))


def _feature_mmd_estimate(pooled: Matrix) -> Estimate:
    """`_feature_mmd` of any rows; from a table of products where that is not too large."""
    if len(pooled) > TABLE_ROWS:
        return one_by_one(lambda i, j: _feature_mmd(pooled[doubled(i)], pooled[j]))
    centred = pooled - pooled.mean(axis=0)
    with one_blas_thread():
        products = centred @ centred.T
    norms = np.diag(products)

    def value(i: Rows, j: Rows) -> float:
        smaller = min(len(i), len(j))
        x, y, z = i[: smaller // 2], j[: smaller // 2 * 2 : 2], j[1 : smaller // 2 * 2 : 2]  # x stands twice
        blocks = norms[x] + (norms[y] + norms[z] + 2 * products[y, z]) / 4 - products[x, y] - products[x, z]
        return float(blocks.sum() / (smaller - 1))

    return one_by_one(value)


def _real_pairs(n_real: int, n_synthetic: int, *, seed: int, passes: int) -> NDArray[np.intp]:
    """Two distinct real volumes for every neighbouring synthetic pair: (passes, n_synthetic - 1, 2)."""
    for name, n in (("real", n_real), ("synthetic", n_synthetic)):
        if n < 2:
            raise InputError(f"{n} volume(s): a block needs 2.", f"{name} cohort", "Add volumes to the cohort.")
    if passes < 1:
        raise InputError(f"expected at least 1 pass, found {passes}.", "passes", "The publication has 5.")
    rng = np.random.default_rng([seed, 0])
    pairs = [rng.choice(n_real, 2, replace=False) for _ in range(passes * (n_synthetic - 1))]
    return np.array(pairs).reshape(passes, n_synthetic - 1, 2)


@lru_cache(maxsize=64)
def _reflecting_bands(n: int) -> tuple[Band, ...]:
    """Gaussian filter along an axis of n voxels with reflecting edges, as `scipy.ndimage.gaussian_filter`."""
    return banded(ndimage.gaussian_filter1d(np.eye(n), SIGMA, axis=0, mode="reflect"))
