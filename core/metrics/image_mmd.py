"""Image MMD: distances between whole volumes, from their inner products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from core.metrics.base import GramMetric, Score, Setting
from core.metrics.gram import squared_distances
from core.metrics.kernels import Matrix, median_of_squares, mmd2_of_draws, rbf
from core.metrics.published import REFERENCE, plan_image_mmd
from core.metrics.resampling import PERMUTATIONS, score, summarise_groups

SYMMETRY = 1e-9  # relative difference of products that should be equal


def image_mmd2(products: NDArray[np.float64], n_real: int, *, bandwidth: float | None = None) -> float:
    """Unbiased RBF MMD² of two cohorts of volumes. Lower is better.

    Parameters
    ----------
    products : array, shape (n + m, n + m)
        Inner products as `core.metrics.gram.gram_matrix` makes them, real rows first.
    n_real : int
    bandwidth : float, optional
        The median distance between real volumes when not given.

    Raises
    ------
    InputError
        Fewer than two volumes in a cohort, NaN or Inf, a table that is not square and symmetric, a median
        distance of zero.

    References
    ----------
    Gretton et al., JMLR 13 (2012) 723-773.
    """
    table = checked_products(products, n_real)
    kernel = rbf(*_squared_and_bandwidth(table, n_real, bandwidth))
    whole = (np.arange(n_real), np.arange(n_real, len(kernel)))
    return float(mmd2_of_draws(iter([(slice(None), kernel)]), np.diag(kernel), [whole])[0])


def evaluate_image_mmd2(products: NDArray[np.float64], n_real: int, *, seed: int, n_boot: int) -> Score:
    """`image_mmd2` with half-sample interval, real-against-real floor, permutation p and curve."""
    table = checked_products(products, n_real)
    squared, bandwidth = _squared_and_bandwidth(table, n_real, None)
    kernel = rbf(squared, bandwidth)
    return score(
        lambda draws: mmd2_of_draws(iter([(slice(None), kernel)]), np.diag(kernel), draws),
        n_real,
        len(table) - n_real,
        seed=seed,
        n_boot=n_boot,
        lower=-np.inf,
        biased=False,
        settings={"kernel": "rbf", "bandwidth": bandwidth, "bandwidth_rule": "median distance of real volumes"},
        permutations=PERMUTATIONS,
        curve=True,
    )


def evaluate_published(products: NDArray[np.float64], n_real: int, *, seed: int, n_boot: int) -> Score:
    """`core.metrics.published.image_mmd` from inner products: the same pairs, the same block formula."""
    table = checked_products(products, n_real)
    n_synthetic = len(table) - n_real
    groups = plan_image_mmd(n_real, n_synthetic, seed=seed)
    start = {"real": 0, "synthetic": n_real}
    rows = np.array([[start[cohort] + i for cohort, i in group] for group in groups])  # (groups, 4)
    signs = np.array([1.0, 1.0, -1.0, -1.0])
    blocks = table[rows[:, :, None], rows[:, None, :]]  # (groups, 4, 4)
    values = np.maximum(0.0, np.einsum("a,gab,b->g", signs, blocks, signs) / 4)
    passes = sum(group[0][0] == "synthetic" for group in groups) // (n_synthetic - 1)
    settings: dict[str, Setting] = {"passes": passes, "divided_by_voxels": "no"}
    return summarise_groups(
        groups,
        values.tolist(),
        n_real=n_real,
        n_synthetic=n_synthetic,
        seed=seed,
        n_boot=n_boot,
        settings=settings,
    )


def checked_products(products: NDArray[np.float64], n_real: int) -> Matrix:
    """Return the products in float64, or say what is wrong with them.

    Raises
    ------
    InputError
        Fewer than two volumes in a cohort, NaN or Inf, a table that is not square and symmetric.
    """
    table = np.asarray(products, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise InputError(f"expected a square table, found shape {table.shape}.", "inner products", "As `gram_matrix`.")
    for name, n in (("real", n_real), ("synthetic", len(table) - n_real)):
        if n < 2:
            raise InputError(f"{n} volume(s): a distance needs 2.", f"{name} cohort", "Add volumes to the cohort.")
    if not np.isfinite(table).all():
        raise InputError("NaN or Inf.", "inner products", "Multiply all volumes that are compared.")
    if np.abs(table - table.T).max() > SYMMETRY * np.abs(table).max(initial=0.0):
        raise InputError("the table is not symmetric.", "inner products", "As `gram_matrix` makes it.")
    return table


IMAGE_MMD = GramMetric(
    name="image-mmd",
    label="Image MMD² (RBF)",
    variant="corrected",
    unit="",
    direction="lower",
    range=(-2.0, 2.0),
    least_n=2,
    reference="Gretton et al., JMLR 13 (2012) 723-773",
    meaning="Whether the two cohorts differ voxel by voxel, without any encoder; 0 when they do not, whatever their "
    "size.",
    version=1,
    evaluate=evaluate_image_mmd2,
)
IMAGE_MMD_PUBLISHED = GramMetric(
    name="image-mmd",
    label="Image MMD, as published",
    variant="published",
    unit="squared intensity summed over voxels",
    direction="lower",
    range=(0.0, float("inf")),
    least_n=2,
    reference=REFERENCE,
    meaning="Squared difference between the average of two real and of two synthetic volumes, voxel by voxel.",
    version=2,
    evaluate=evaluate_published,
)


def _squared_and_bandwidth(table: Matrix, n_real: int, bandwidth: float | None) -> tuple[Matrix, float]:
    squared = squared_distances(table)
    if bandwidth is None:
        remedy = "Look for repeated volumes in the real cohort."
        bandwidth = median_of_squares(squared[:n_real, :n_real], "real volumes", remedy)
    return squared, bandwidth
