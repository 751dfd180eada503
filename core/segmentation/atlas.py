"""The atlas engine: register the embedded template to the case, carry its labels over, and judge the result.

Registration is greedy's (affine, then diffeomorphic with local correlation). The QC scores are predicted Dice: seven
measures of how well image, warped template and labels agree, mapped by logistic models fitted on simulated volumes
with known labels (``benchmarks/calibrate_atlas_qc.py`` writes ``data/atlas_qc.json``).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from core.segmentation import DATA, QC_GROUPS, Segmentation, check, volume_row
from core.segmentation.intensities import favoured_groups, group_map
from core.volume import FULL, HALF, Grid, Volume, block_mean, load_labels, template

Array = NDArray[np.float32]
Labels = NDArray[np.int32]
Points = NDArray[np.float64]

# Iterations per level, coarse to fine: on the full grid the same levels as on the half grid, and two steps more.
LEVELS = {"half": ("40x0", "60x40x5"), "full": ("40x20x0", "60x40x8x2")}
METRIC = "-m NCC 2x2x2 -s 2vox 0.5vox"
MARGIN_MM = 10  # the deformable step sees the affinely placed template and this much around it
FEATURES = ("correlation", "agreement", "contrast", "brightness", "sharpness", "strain", "roughness")
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # greedy's matrices are RAS, its images LPS


@dataclass(frozen=True)
class Registration:
    """Where each voxel of the case lies in the template: voxel coordinates on the same grid, shape (x, y, z, 3)."""

    grid: Grid
    positions: Points


def segment(volume: Volume) -> Segmentation:
    """Segment one volume.

    Parameters
    ----------
    volume : Volume
        Skull-stripped T1w on an atlas grid, in [-1, 1].

    Returns
    -------
    Segmentation

    Raises
    ------
    InputError
        Not on an atlas grid, not finite, empty or constant.
    """
    grid = check(volume)
    registration = register(volume.data, grid)
    labels = _labels_at(registration.positions, grid)
    qc = predict_dice(measure(volume.data, registration, labels))
    return Segmentation(Volume(labels, volume.affine, volume.case_id), volume_row(_sizes(registration)), qc)


def register(data: Array, grid: Grid) -> Registration:
    """Find the deformation from a case to the template; the same input gives the same result."""
    fixed, moving = data + np.float32(1), _template(grid) + np.float32(1)
    affine_levels, levels = LEVELS[grid.name]
    found = _greedy(f"-a -dof 12 -m SSD -ia-identity -n {affine_levels}", fixed, moving, grid.spacing)
    scale = np.diag([grid.spacing] * 3 + [1.0])
    affine = np.linalg.inv(scale) @ _FLIP @ np.asarray(found) @ _FLIP @ scale  # case voxel to template voxel
    placed = ndimage.affine_transform(moving, affine[:3, :3], affine[:3, 3], order=1)
    margin = round(MARGIN_MM / grid.spacing)
    ends = [
        (np.flatnonzero(placed.any(axis=other)).min(), np.flatnonzero(placed.any(axis=other)).max() + 1)
        for other in ((1, 2), (0, 2), (0, 1))
    ]
    box = tuple(slice(max(0, a - margin), min(n, b + margin)) for (a, b), n in zip(ends, grid.shape, strict=True))
    warp = _greedy(f"{METRIC} -n {levels}", fixed[box], placed[box], grid.spacing)
    positions = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1).astype(np.float64)
    positions[box] += _array(warp) / grid.spacing
    return Registration(grid, positions @ affine[:3, :3].T + affine[:3, 3])


def _greedy(options: str, fixed: Array, moving: Array, spacing: float) -> Any:
    """Run greedy in memory; the seed fixes the jitter and noise it adds to its metrics."""
    from picsl_greedy import Greedy3D

    tool, log = Greedy3D(), io.StringIO()
    images = {"fixed": _image(fixed, spacing), "moving": _image(moving, spacing), "found": None}
    tool.execute(f"-threads 1 -V 0 -seed 1 {options} -i fixed moving -o found", out=log, err=log, **images)
    return tool["found"]


def _image(data: Array, spacing: float) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))  # (z, y, x)
    image.SetSpacing([spacing] * 3)
    return image


def _array(warp: Any) -> Array:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(warp).transpose(2, 1, 0, 3)  # (x, y, z, 3) in mm


@lru_cache(maxsize=2)
def _template(grid: Grid) -> Array:
    """Return the template with sharpened edges: as it is, a mean of 152 brains, nuclei come out some 3 % too large."""
    image = template(grid).data + np.float32(1)
    sharp = image + np.float32(0.8) * (image - ndimage.gaussian_filter(image, 1.5 / grid.spacing))
    return np.where(image > 0, np.clip(sharp, 0.01, 2), 0).astype(np.float32) - np.float32(1)


@lru_cache(maxsize=1)
def _atlas_labels() -> Labels:
    return load_labels(DATA / "atlas_labels.nii.gz").data.astype(np.int32)


def _labels_at(positions: Points, grid: Grid) -> Labels:
    """Labels of the template nearest to positions given in voxels of ``grid``; 0 outside its field of view."""
    full = np.floor((positions + 0.5) * grid.spacing).astype(np.int32)
    inside: NDArray[np.bool_] = np.all((full >= 0) & (full < FULL.shape), axis=-1)
    x, y, z = np.moveaxis(np.clip(full, 0, np.array(FULL.shape) - 1), -1, 0)
    return np.where(inside, _atlas_labels()[x, y, z], 0).astype(np.int32)


def _sizes(registration: Registration) -> dict[int, float]:
    """Volume of each label in mm³, counted on the full grid whatever the grid of the case."""
    positions = torch.from_numpy(registration.positions).permute(3, 0, 1, 2)[None]
    if registration.grid is not FULL:  # voxels of the half grid are blocks of the full one
        positions = torch.nn.functional.interpolate(positions, size=FULL.shape, mode="trilinear", align_corners=False)
    labels = _labels_at(positions[0].permute(1, 2, 3, 0).numpy(), registration.grid)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    return {int(k): float(n) for k, n in zip(ids, counts, strict=True)}


def measure(data: Array, registration: Registration, labels: Labels) -> dict[str, dict[str, float]]:
    """Measure, per QC group on the half grid, how well image, warped template and labels agree.

    Returns
    -------
    dict
        Group to values by the names in `FEATURES`: correlation of image and warped template; Dice of the labels with
        those the image's own intensities favour; contrast to the surroundings, 1 where it is what the template lets
        expect and less where weaker or stronger; distance of the mean brightness from that expectation; sharpness of
        edges against it (log ratio); strain (SD of the log Jacobian); roughness (log of noise over tissue contrast).
    """
    positions = registration.positions
    if registration.grid is FULL:
        data = block_mean(data)
        means = [block_mean(positions[..., a].astype(np.float32)) for a in range(3)]
        positions = np.stack(means, axis=-1).astype(np.float64) / 2 - 0.25
        labels = _labels_at(positions, HALF)
    expected, unit = _expected(data, positions, labels)
    favoured, group = favoured_groups(data, labels), group_map()[labels]
    edges = [ndimage.gaussian_gradient_magnitude(x, 0.7) for x in (data, expected)]
    rough = np.abs(data - ndimage.uniform_filter(data, 3))
    strain = np.log(np.maximum(_determinant(positions), 0.05))
    result = {}
    for number, name in enumerate(QC_GROUPS, start=1):
        mask = group == number
        near = ndimage.binary_dilation(mask, iterations=2) & (labels > 0)
        ring = near & ~mask
        if mask.sum() < 20 or ring.sum() < 20:
            result[name] = dict.fromkeys(FEATURES, 0.0)
            continue
        contrast = [float(x[mask].mean() - x[ring].mean()) / unit for x in (data, expected)]
        overlap = 2 * np.sum(mask & (favoured == number)) / (mask.sum() + np.sum(favoured == number))
        values = (
            np.corrcoef(data[near], expected[near])[0, 1],
            overlap,
            1 - abs(1 - np.clip((contrast[0] * contrast[1] + 0.01) / (contrast[1] ** 2 + 0.01), -1, 2)),
            abs(float((data - expected)[mask].mean())) / unit,
            np.log((edges[0][near].mean() + 1e-3) / (edges[1][near].mean() + 1e-3)),
            strain[mask].std(),
            np.log(rough[mask].mean() / unit + 1e-3),
        )
        result[name] = {feature: float(value) for feature, value in zip(FEATURES, values, strict=True)}
    return result


def _expected(data: Array, positions: Points, labels: Labels) -> tuple[Array, float]:
    """Return the warped template in the intensities of the case, and the case's white-grey contrast."""
    moved = ndimage.map_coordinates(_template(HALF), positions.transpose(3, 0, 1, 2), order=1, cval=-1.0)
    tissues = [np.isin(labels, (4, 43, 24)), labels >= 1000, np.isin(labels, (2, 41))]
    here = [float(np.median(data[t])) if t.any() else 0.0 for t in tissues]
    there = [float(np.median(moved[t])) if t.any() else 0.0 for t in tissues]
    expected = np.interp(moved, [-1.0, *np.maximum.accumulate(there)], [-1.0, *here])
    return expected.astype(np.float32), max(here[2] - here[1], 0.05)


def predict_dice(measured: dict[str, dict[str, float]]) -> dict[str, float]:
    """Turn the measures of all groups into predicted Dice."""
    return {name: predict_group(_calibration()[name], values) for name, values in measured.items()}


def predict_group(model: dict[str, list[float]], values: dict[str, float]) -> float:
    """Return predicted Dice of one group: how well the labels fit, times whether the structure is there at all."""
    z = (np.array([values[f] for f in FEATURES]) - model["mean"]) / model["sd"]
    factors = [1 / (1 + np.exp(-(model[k][0] + z @ model[k][1:]))) for k in ("quality", "presence")]
    return float(factors[0] * factors[1])


@lru_cache(maxsize=1)
def _calibration() -> dict[str, Any]:
    return dict(json.loads((DATA / "atlas_qc.json").read_text(encoding="utf-8"))["groups"])


def _determinant(positions: Points) -> Array:
    slopes = np.array([np.gradient(positions[..., a].astype(np.float32)) for a in range(3)])  # (3, 3, x, y, z)
    return np.asarray(np.linalg.det(slopes.transpose(2, 3, 4, 0, 1)), np.float32)
