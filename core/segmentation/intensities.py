"""What the intensities of an image say about its labels; both engines of this project judge themselves by it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.segmentation import QC_GROUPS, qc_groups

WHITE, FIRST_PARCEL = (2, 41), 1000
# Left and right, and all parcels, look alike: one class each.
_CLASSES = (
    (2, 41),
    (4, 43, 5, 44),
    (7, 46),
    (8, 47),
    (10, 49),
    (11, 50, 26, 58),
    (12, 51),
    (13, 52),
    (14, 15),
    (16,),
    (17, 53, 18, 54),
    (24,),
    (28, 60),
)


def favoured_groups(data: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.int8]:
    """Return the QC group (1 to 8, 0 outside the labels) that each voxel's intensity favours.

    One Gaussian is fitted to each class of tissue on its labels; a voxel goes to the class that its intensity and the
    labels around it favour.
    """
    classes, brain = _class_map()[labels], labels > 0
    best, favoured = np.full(data.shape, -np.inf, np.float32), np.zeros(data.shape, np.int8)
    for k in range(1, int(classes.max()) + 1):
        mask = classes == k
        if mask.sum() < 10:
            continue
        prior = ndimage.gaussian_filter(mask.astype(np.float32), 1.0, truncate=2.0)
        centre = np.median(data[mask])
        spread = 1.4826 * np.median(np.abs(data[mask] - centre)) + 0.02
        score = np.log(prior + 1e-6) - 0.5 * ((data - centre) / spread) ** 2 - np.log(spread)
        better = brain & (score > best)
        best[better], favoured[better] = score[better], k
    return _group_of_class()[favoured]


def explained(data: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the image that the labels alone explain: every class at its median, softened as by partial volume."""
    classes = _class_map()[labels]
    tones = np.full(int(classes.max()) + 1, -1, np.float32)
    for k in range(1, len(tones)):
        inside = data[classes == k]
        tones[k] = np.median(inside) if inside.size else -1
    return np.asarray(ndimage.gaussian_filter(tones[classes], 0.5), np.float32)


@lru_cache(maxsize=1)
def group_map() -> NDArray[np.int8]:
    """Return the QC group (1 to 8, 0 for none) by FreeSurfer id, shape (3000,)."""
    table = np.zeros(3000, np.int8)
    for label, group in qc_groups().items():
        table[label] = QC_GROUPS.index(group) + 1
    return table


@lru_cache(maxsize=1)
def _class_map() -> NDArray[np.int8]:
    table = np.zeros(3000, np.int8)
    table[FIRST_PARCEL:] = len(_CLASSES) + 1
    for k, ids in enumerate(_CLASSES, start=1):
        table[list(ids)] = k
    return table


@lru_cache(maxsize=1)
def _group_of_class() -> NDArray[np.int8]:
    return np.array([0, *(group_map()[ids[0]] for ids in _CLASSES), group_map()[FIRST_PARCEL + 1]], np.int8)
