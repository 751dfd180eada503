"""Checks of a volume's image, beside the scores of its segmentation: what a label map cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError

VERSION = 1
CHECKS: dict[str, str] = {
    "sharpness": "Mean slope of the intensity within the brain, per mm, in units of its range; low when blurred.",
    "background": "Root mean square intensity outside the brain, in units of the mean within; 0 is clean.",
    "contrast": "White minus grey matter in units of their pooled deviation; low when tissues look alike.",
    "symmetry": "Correlation of the brain with its mirror image; low when one side is malformed.",
}
WHITE, GREY = (2, 41), (3, 42)  # FreeSurfer ids; parcels count as grey matter
FIRST_PARCEL = 1000
MARGIN_MM = 4.0  # the edge of the brain belongs to neither side
FAR = 5.0  # robust deviations of the real cohort beyond which a value is unlike any real one
LEAST_REAL = 5


def check_image(data: NDArray[np.float32], labels: NDArray[np.integer], spacing: float) -> dict[str, float]:
    """Measure sharpness, background, tissue contrast and left-right likeness of one volume.

    Parameters
    ----------
    data : array, shape (x, y, z)
        Intensities in [-1, 1], background -1; the first axis runs from left to right through the middle.
    labels : array, shape (x, y, z)
        FreeSurfer ids, 0 outside the brain.
    spacing : float
        Voxel edge in mm.

    Returns
    -------
    dict
        One value for each of `CHECKS`; NaN where a tissue is missing.

    Raises
    ------
    InputError
        Shapes differ, or the label map is empty.
    """
    if data.shape != labels.shape:
        raise InputError(f"image {data.shape} and label map {labels.shape} differ.", "image check", "Segment again.")
    brain = labels > 0
    if not brain.any():
        raise InputError("the label map is empty.", "image check", "There is no brain to look at.")
    intensity = data.astype(np.float64) + 1
    low, high = np.percentile(intensity[brain], (5, 95))
    extent = max(high - low, 1e-9)
    slopes = np.sqrt(sum(np.square(slope) for slope in np.gradient(intensity, spacing)))
    inner = ndimage.binary_erosion(brain, iterations=max(1, round(MARGIN_MM / spacing / 2)))
    outside = ~ndimage.binary_dilation(brain, iterations=max(1, round(MARGIN_MM / spacing)))
    both = inner & inner[::-1]
    return {
        "sharpness": float(slopes[inner].mean() / extent) if inner.any() else float("nan"),
        "background": float(np.sqrt(np.square(intensity[outside]).mean()) / intensity[brain].mean()),
        "contrast": _contrast(intensity, labels),
        "symmetry": _correlation(intensity[both], intensity[::-1][both]),
    }


def unlike_real(table: pd.DataFrame, real: str) -> pd.DataFrame:
    """Add ``unlike``: the checks in which a volume lies far outside the real cohort.

    Parameters
    ----------
    table : DataFrame
        ``cohort``, ``subject`` and a column for each of `CHECKS`.
    real : str
        Name of the real cohort.

    Returns
    -------
    DataFrame
        Distances count in robust deviations (1.4826 median absolute deviations) of the real cohort; more than 5 is
        far. With fewer than five real volumes nothing is called unlike.
    """
    known = table[table["cohort"] == real]
    if len(known) < LEAST_REAL:
        return table.assign(unlike="")
    limits = {name: _limits(known[name].dropna().to_numpy()) for name in CHECKS}
    return table.assign(unlike=[_unlike(row, limits) for row in table[list(CHECKS)].to_dict("records")])


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    centre = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    spread = max(spread, 0.01 * abs(centre), 1e-6)  # simulated cohorts can be equal to the last digit
    return centre - FAR * spread, centre + FAR * spread


def _unlike(row: Mapping[Any, float], limits: Mapping[str, tuple[float, float]]) -> str:
    words = []
    for name, (low, high) in limits.items():
        if np.isnan(row[name]) or row[name] < low:
            words.append(f"{name} low")
        elif row[name] > high:
            words.append(f"{name} high")
    return ", ".join(words)


def _contrast(intensity: NDArray[np.float64], labels: NDArray[np.integer]) -> float:
    white = intensity[np.isin(labels, WHITE)]
    grey = intensity[np.isin(labels, GREY) | (labels >= FIRST_PARCEL)]
    if len(white) < 2 or len(grey) < 2:
        return float("nan")
    pooled = np.sqrt((white.var() + grey.var()) / 2)
    return float((white.mean() - grey.mean()) / max(pooled, 1e-9))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
