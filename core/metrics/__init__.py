"""Metrics of synthetic against real cohorts; the order of `METRICS` is the order on screen.

Keys are the names in metrics.csv; the published variant of a metric has "/published" after its name.
"""

from __future__ import annotations

from core.metrics import classifier, extrapolation, features, image_mmd, images, neighbours, published, sliced, spectrum
from core.metrics.base import (
    CohortName,
    CurvePoint,
    FeatureMetric,
    GramMetric,
    Group,
    Metric,
    Score,
    VolumeMetric,
    badness,
)

__all__ = [
    "METRICS",
    "CohortName",
    "CurvePoint",
    "FeatureMetric",
    "GramMetric",
    "Group",
    "Metric",
    "Score",
    "VolumeMetric",
    "badness",
    "label_named",
]

METRICS: dict[str, Metric] = {
    "fid": features.FRECHET,
    "fid-infinity": extrapolation.FRECHET_EXTRAPOLATED,
    "mmd2-rbf": features.MMD2_RBF,
    "kid": features.KID,
    "sliced-w2": sliced.SLICED,
    "c2st": classifier.C2ST,
    "precision": neighbours.PRECISION,
    "recall": neighbours.RECALL,
    "density": neighbours.DENSITY,
    "coverage": neighbours.COVERAGE,
    "ms-ssim": images.MS_SSIM,
    "ms-ssim-real": images.MS_SSIM_REAL,
    "sharpness": spectrum.SHARPNESS,
    "image-mmd": image_mmd.IMAGE_MMD,
    "fid/published": published.FID,
    "mmd/published": published.MMD,
    "image-mmd/published": image_mmd.IMAGE_MMD_PUBLISHED,
    "ms-ssim/published": published.MS_SSIM,
}


def label_named(name: str) -> str:
    """Return the label of a metric by its name in studies and CSVs, which its variants share."""
    return next((metric.label for metric in METRICS.values() if metric.name == name), name)
