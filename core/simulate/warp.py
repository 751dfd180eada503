"""The template's side of a simulation: smooth invertible warps, and the true volumes they imply.

The warp is the exponential of a stationary velocity field (Arsigny et al., MICCAI 2006, doi:10.1007/11866565_113)
times a head size. The field is the sum of random fields at three scales, and of a gradient field whose divergence is
constant inside each structure, so that every region also grows or shrinks on its own. Regional volumes are integrals
of the Jacobian determinant over the atlas labels, so they do not depend on counting voxels.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse

from core.volume import FULL, HALF, TEMPLATE_SCALE, Grid, Volume, load_labels, resample

Array = NDArray[np.float32]
Labels = NDArray[np.int32]

SCALES_MM = ((24.0, 2.0), (12.0, 0.9), (6.0, 0.3))  # smoothness (Gaussian sigma) and SD of a component, both in mm
MIRRORED = 0.4  # weight of the mirrored random field: left and right of a person vary together, r = 0.7
SQUARINGS = 5
FLUID_SHARE = 10.0  # what regions gain is taken from csf and white matter, csf giving this many times its share


@dataclass(frozen=True)
class Atlas:
    """The template's side of the simulation: label ids, names, shares of each label in half-grid voxels, images."""

    ids: NDArray[np.int64]
    names: dict[str, list[int]]
    labels: Labels
    shares: sparse.csr_matrix  # (labels, half-grid voxels), rows as in ids
    brain: NDArray[np.bool_]  # half grid
    images: dict[str, torch.Tensor]  # per grid: full-grid template, band-limited for that grid


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    from nilearn import datasets

    folder = Path(__file__).parents[1] / "data"
    labels = load_labels(folder / "atlas_labels.nii.gz").data.astype(np.int32)
    ids = np.unique(labels[labels > 0])
    blocks = np.arange(np.prod(HALF.shape)).reshape(HALF.shape).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    inside = labels > 0
    entries = (np.full(int(inside.sum()), 0.125), (np.searchsorted(ids, labels[inside]), blocks[inside]))
    shares = sparse.coo_matrix(entries, (len(ids), blocks.max() + 1)).tocsr()
    image = datasets.load_mni152_template(resolution=1)
    scaled = np.diag([TEMPLATE_SCALE] * 3 + [1.0]) @ image.affine
    raw = resample(Volume(np.asarray(image.dataobj, np.float32), scaled), FULL.shape, FULL.affine).data
    # The template is a mean of 152 brains: sharpened, it looks more like one of them.
    sharp = np.clip(raw + 0.8 * (raw - ndimage.gaussian_filter(raw, 1.5)), 0.02, 1)
    images = {"full": sharp, "half": ndimage.gaussian_filter(sharp, 0.8)}
    with (folder / "label_table.csv").open(newline="") as table:
        names = {row["name"]: [int(row["id"])] for row in csv.DictReader(table)}
    for side, first in (("left", 1000), ("right", 2000)):
        names[f"{side} cerebral cortex"] = [int(k) for k in ids if first < k < first + 1000]
    tensors = {name: torch.from_numpy(data)[None] for name, data in images.items()}
    brain = np.asarray(shares.sum(axis=0)).reshape(HALF.shape) > 0
    return Atlas(ids, {"total intracranial": ids.tolist()} | names, labels, shares, brain, tensors)


@dataclass(frozen=True)
class Warp:
    """Atlas to case and back, as displacements on the half grid, in units where the field of view is [-1, 1]."""

    scale: float
    forward: torch.Tensor  # (3, x, y, z)
    backward: torch.Tensor
    jacobian: Array  # of the forward map without scale


def make_warp(recipe: Recipe, rng: np.random.Generator) -> Warp:
    velocity = _velocity(recipe, rng)
    half_extent = np.array(HALF.shape, np.float32) * HALF.spacing / 2
    flow = torch.from_numpy(velocity / half_extent[:, None, None, None])
    both = torch.stack([flow, -flow]) / 2**SQUARINGS
    here = points(HALF)
    for _ in range(SQUARINGS):
        both = both + torch.stack([sample(one, here + one.permute(1, 2, 3, 0)) for one in both])
    in_voxels = both[0].numpy() * (half_extent / HALF.spacing)[:, None, None, None]
    return Warp(float(np.exp(recipe.log_size / 3)), both[0], both[1], _determinant(in_voxels))


def _velocity(recipe: Recipe, rng: np.random.Generator) -> Array:
    """Velocity in mm on the half grid, shape (3, x, y, z): random fields plus regional growth, made in Fourier space."""
    wave = _wave_numbers()
    square = (wave**2).sum(axis=0)
    spectrum = np.zeros(square.shape, np.float32)
    for sigma, size in SCALES_MM:  # a Gaussian of this gain turns white noise of SD 1 into a field of SD `size`
        gain = size * (2 * np.sqrt(np.pi) * sigma / HALF.spacing) ** 1.5
        spectrum += (gain * np.exp(-square * sigma**2 / 2)) ** 2
    noise = rng.standard_normal((3, *HALF.shape), dtype=np.float32)
    mirrored = noise[:, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None, None]
    noise = (noise + MIRRORED * mirrored) / np.float32(np.hypot(1, MIRRORED))
    field_hat = fft.rfftn(noise, axes=(1, 2, 3)) * (recipe.warp * np.sqrt(spectrum))
    growth_hat = fft.rfftn(_growth_map(recipe.growth)) * np.exp(-square / 2)
    square[0, 0, 0] = 1
    field_hat -= 1j * wave * (growth_hat / square)  # the gradient field with this divergence
    return np.asarray(fft.irfftn(field_hat, s=HALF.shape, axes=(1, 2, 3)), np.float32)


@lru_cache(maxsize=1)
def _wave_numbers() -> Array:
    axes = [2 * np.pi * fft.fftfreq(n, HALF.spacing) for n in HALF.shape]
    axes[2] = 2 * np.pi * fft.rfftfreq(HALF.shape[2], HALF.spacing)
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _growth_map(growth: dict[int, float]) -> Array:
    """Divergence on the half grid; csf and white matter give what the other regions take, so heads keep their size."""
    atlas = atlas()
    wanted = np.array([growth.get(int(label), 0.0) for label in atlas.ids])
    sizes = np.asarray(atlas.shares.sum(axis=1)).ravel()
    fluid, white = atlas.ids == 24, np.isin(atlas.ids, (2, 41))
    give = np.where(fluid, FLUID_SHARE, 0.0) + white
    wanted = wanted - give * (wanted @ sizes) / (give @ sizes)
    return np.asarray(wanted @ atlas.shares, np.float32).reshape(HALF.shape)


def points(grid: Grid) -> torch.Tensor:
    """Voxel centres, shape (x, y, z, 3), in units where the field of view is [-1, 1]."""
    axes = [(2 * torch.arange(n) + 1) / n - 1 for n in grid.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(data: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Trilinear values of data (c, x, y, z) at points (i, j, k, 3): (c, i, j, k); the border extends outwards."""
    return torch.nn.functional.gridsample(
        data[None], points.flip(-1)[None], align_corners=False, padding_mode="border"
    )[0]


def _determinant(displacement: Array) -> Array:
    d = np.stack([np.stack(np.gradient(u)) for u in displacement])  # (component, direction, x, y, z)
    a, b, c = (d[i] + np.eye(3, dtype=np.float32)[i][:, None, None, None] for i in range(3))
    return np.asarray(
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]),
        np.float32,
    )


def true_volumes(warp: Warp) -> dict[str, float]:
    """Volumes in mm³ of what lies inside the field of view, under SynthSeg's names."""
    atlas = atlas()
    landing = (points(HALF) + warp.forward.permute(1, 2, 3, 0)) * warp.scale
    seen = (landing.abs() <= 1).all(dim=-1).numpy()
    weight = warp.jacobian * seen * (HALF.spacing * warp.scale) ** 3
    sizes = dict(zip(atlas.ids.tolist(), (atlas.shares @ weight.ravel()).tolist(), strict=True))
    return {name: float(sum(sizes.get(k, 0.0) for k in ids)) for name, ids in atlas.names.items()}


@lru_cache(maxsize=32)
def divergence_for(ids: tuple[int, ...], ratio: float) -> float:
    """Divergence that changes the volume of a structure of the template by this ratio (secant steps)."""

    def reached(value: float) -> float:
        recipe = Recipe(MEAN_AGE, "F", "site-1", 0.0, dict.fromkeys(ids, value), (0.3, 0.6), 0.0, (), warp=0.0)
        jacobian = make_warp(recipe, np.random.default_rng(0)).jacobian
        weights = atlas().shares[np.isin(atlas().ids, ids)]
        return float(np.log((weights @ jacobian.ravel()).sum() / weights.sum()))

    target = np.log(ratio)
    value = target
    for _ in range(5):
        value *= target / reached(value)
    return float(value)


