"""Volumes on the atlas grids: reading, checking, normalising and writing NIfTI.

Inside the product every array is float32 in RAS+ axis order (left→right, posterior→anterior,
inferior→superior), intensities span [-1, 1] and the background is exactly -1.
"""

from core.volume.files import (
    BOMB_RATIO,
    SMALL,
    SUFFIXES,
    byte_nifti,
    case_name,
    check_bytes,
    check_extent,
    is_place,
    load,
    load_labels,
    save,
)
from core.volume.fitting import AXES_FAULT, CONTENT_FAULTS, NO_BRAIN, PUBLISHED_SHAPE, grid_of, load_on_grid
from core.volume.grids import (
    FULL,
    GRIDS,
    HALF,
    TEMPLATE_SCALE,
    Grid,
    Volume,
    block_mean,
    grid_named,
    normalise_maximum,
    normalise_percentile,
    resample,
    template,
)

__all__ = [
    "AXES_FAULT",
    "BOMB_RATIO",
    "CONTENT_FAULTS",
    "FULL",
    "GRIDS",
    "HALF",
    "NO_BRAIN",
    "PUBLISHED_SHAPE",
    "SMALL",
    "SUFFIXES",
    "TEMPLATE_SCALE",
    "Grid",
    "Volume",
    "block_mean",
    "byte_nifti",
    "case_name",
    "check_bytes",
    "check_extent",
    "grid_named",
    "grid_of",
    "is_place",
    "load",
    "load_labels",
    "load_on_grid",
    "normalise_maximum",
    "normalise_percentile",
    "resample",
    "save",
    "template",
]
