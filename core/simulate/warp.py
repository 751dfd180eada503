"""The template's side of a simulation: smooth invertible warps, and the true volumes they imply.

The warp is the exponential of a stationary velocity field (Arsigny et al., MICCAI 2006, doi:10.1007/11866565_113)
times a head size. The field is the sum of a draw from the deformation model (`deformation`), and of a gradient field
whose divergence is constant inside each structure, so that every region also grows or shrinks on its own. Regional
volumes are integrals of the Jacobian determinant over the atlas labels, so they do not depend on counting voxels.
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

from core.simulate.deformation import draw_velocity
from core.volume import FULL, HALF, TEMPLATE_SCALE, Grid, Volume, load_labels, resample

Array = NDArray[np.float32]
Labels = NDArray[np.int32]

SQUARINGS = 5
LEAST_JACOBIAN, DAMPING = 0.03, 0.9  # a field that compresses more is damped until it does not
FILLING = (2, 24, 41)  # white matter and csf give the room that other structures take
CHANGE_ROUNDS, PERSON_ROUNDS = 8, 3  # in which a change of volume is brought to what was asked for
FLUID_SHARE = 10.0  # csf gives this many times its share


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
    """Return the template with its labels; read once."""
    from nilearn import datasets

    folder = Path(__file__).parents[2] / "data"
    labels = load_labels(folder / "atlas_labels.nii.gz").data.astype(np.int32)
    ids = np.unique(labels[labels > 0]).astype(np.int64)
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


def make_warp(log_size: float, growth: Mapping[int, float], amount: float, rng: np.random.Generator) -> Warp:
    """Draw a warp.

    Parameters
    ----------
    log_size : float
        Log of the head's volume relative to the template.
    growth : mapping
        Divergence inside each label, about the log change of its volume; others 0.
    amount : float
        Multiplies the draw from the deformation model.
    """
    velocity = growth_velocity(growth)
    if amount:
        velocity += draw_velocity(amount, rng)
    both, jacobian = exponential(velocity)
    while jacobian.min() < LEAST_JACOBIAN:
        velocity *= np.float32(DAMPING)
        both, jacobian = exponential(velocity)
    return Warp(float(np.exp(log_size / 3)), both[0], both[1], jacobian)


def exponential(velocity: Array) -> tuple[torch.Tensor, Array]:
    """Integrate a velocity field.

    Parameters
    ----------
    velocity : ndarray, shape (3, x, y, z) of the half grid
        In mm.

    Returns
    -------
    tensor, shape (2, 3, x, y, z)
        Displacements forward and backward, in units where the field of view is [-1, 1].
    ndarray, shape (x, y, z)
        Determinant of the derivative of the forward map.
    """
    half_extent = np.array(HALF.shape, np.float32) * np.float32(HALF.spacing / 2)
    flow = torch.from_numpy(velocity / half_extent[:, None, None, None])
    both = torch.stack([flow, -flow]) / 2**SQUARINGS
    here = points(HALF)
    for _ in range(SQUARINGS):
        both = both + torch.stack([sample(one, here + one.permute(1, 2, 3, 0)) for one in both])
    return both, _determinant(both[0])


def growth_velocity(growth: Mapping[int, float]) -> Array:
    """Return the gradient field with the divergence asked for, in mm on the half grid, shape (3, x, y, z)."""
    wave = _wave_numbers()
    square = (wave**2).sum(axis=0)
    divergence = fft.rfftn(_growth_map(growth)) * np.exp(-square / 2)
    square[0, 0, 0] = 1
    velocity = -1j * wave * (divergence / square)
    return np.asarray(fft.irfftn(velocity, s=HALF.shape, axes=(1, 2, 3)), np.float32)


@lru_cache(maxsize=1)
def _wave_numbers() -> Array:
    axes = [2 * np.pi * fft.fftfreq(n, HALF.spacing) for n in HALF.shape]
    axes[2] = 2 * np.pi * fft.rfftfreq(HALF.shape[2], HALF.spacing)
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _growth_map(growth: Mapping[int, float]) -> Array:
    """Divergence on the half grid; csf and white matter give what the other regions take, so heads keep their size."""
    brain = atlas()
    wanted = np.array([growth.get(int(label), 0.0) for label in brain.ids])
    sizes = np.asarray(brain.shares.sum(axis=1)).ravel()
    give = np.isin(brain.ids, FILLING) * np.where(brain.ids == 24, FLUID_SHARE, 1.0)
    wanted = wanted - give * (wanted @ sizes) / (give @ sizes)
    return np.asarray(wanted @ brain.shares, np.float32).reshape(HALF.shape)


def points(grid: Grid) -> torch.Tensor:
    """Return voxel centres, shape (x, y, z, 3), in units where the field of view is [-1, 1]."""
    axes = [(2 * torch.arange(n) + 1) / n - 1 for n in grid.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(data: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return trilinear values (c, i, j, k) of data (c, x, y, z) at points (i, j, k, 3); the border extends outwards."""
    return torch.nn.functional.grid_sample(
        data[None], points.flip(-1)[None], align_corners=False, padding_mode="border"
    )[0]


def _determinant(displacement: torch.Tensor) -> Array:
    """Return the determinant of the derivative of the map, on the half grid."""
    voxels = displacement.numpy() * (np.array(HALF.shape, np.float32) / 2)[:, None, None, None]  # in voxels
    d = np.stack([np.stack(np.gradient(u)) for u in voxels])  # (component, direction, x, y, z)
    a, b, c = (d[i] + np.eye(3, dtype=np.float32)[i][:, None, None, None] for i in range(3))
    return np.asarray(
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]),
        np.float32,
    )


def true_volumes(warp: Warp) -> dict[str, float]:
    """Return volumes in mm³ of what lies inside the field of view, under SynthSeg's column names."""
    brain = atlas()
    landing = (points(HALF) + warp.forward.permute(1, 2, 3, 0)) * warp.scale
    seen = (landing.abs() <= 1).all(dim=-1).numpy()
    weight = warp.jacobian * seen * (HALF.spacing * warp.scale) ** 3
    sizes = dict(zip(brain.ids.tolist(), (brain.shares @ weight.ravel()).tolist(), strict=True))
    return {name: float(sum(sizes.get(k, 0.0) for k in ids)) for name, ids in brain.names.items()}


def pull_back(warp: Warp, grid: Grid) -> tuple[torch.Tensor, Labels]:
    """Return where in the template each voxel of the case comes from, and the case's labels.

    Returns
    -------
    tensor, shape (x, y, z, 3)
        Positions in the template, in units where the field of view is [-1, 1].
    ndarray, shape (x, y, z), int32
    """
    source = points(grid) / warp.scale
    source = source + sample(warp.backward, source).permute(1, 2, 3, 0)
    index = [((source[..., a] + 1) * (n / 2)).long().clamp(0, n - 1).numpy() for a, n in enumerate(FULL.shape)]
    labels = atlas().labels[tuple(index)]
    labels[(source.abs() > 1).any(dim=-1).numpy()] = 0
    return source, labels


def compose(first: Warp, then: Warp) -> Warp:
    """Return the warp that applies ``first`` to the template and ``then`` to the result."""
    here = points(HALF)
    forward = first.forward + sample(then.forward, here + first.forward.permute(1, 2, 3, 0))
    backward = then.backward + sample(first.backward, here + then.backward.permute(1, 2, 3, 0))
    return Warp(first.scale * then.scale, forward, backward, _determinant(forward))


def change_volumes(ratios: Mapping[int, float], person: Warp) -> Warp:
    """Return a person whose structures have these parts of the volume they had, the others being left alone.

    Parameters
    ----------
    ratios : mapping
        Label to ratio of its volume. All labels but csf and white matter, which make room, keep theirs.
    person : Warp
        From the template to the person.
    """
    sizes = atlas().shares @ person.jacobian.ravel()
    growth = _growth_for(tuple(sorted(ratios.items())), CHANGE_ROUNDS)
    for _ in range(PERSON_ROUNDS):  # inside a structure this person's Jacobian varies, so the template's answer is near
        changed = compose(_grown(growth), person)
        growth = growth + _lacking(ratios, changed, sizes)
    return compose(_grown(growth), person)


@lru_cache(maxsize=8)
def _growth_for(ratios: tuple[tuple[int, float], ...], rounds: int) -> NDArray[np.float64]:
    """Return the divergence of each label that changes volumes of the template."""
    sizes = np.asarray(atlas().shares.sum(axis=1)).ravel()
    growth = np.log([dict(ratios).get(int(label), 1.0) for label in atlas().ids])
    for _ in range(rounds):  # divergence leaks into neighbours and structures move out of it: correct what is reached
        growth = growth + _lacking(dict(ratios), _grown(growth), sizes)
    return growth


def _grown(growth: NDArray[np.float64]) -> Warp:
    return make_warp(0.0, dict(zip(atlas().ids.tolist(), growth, strict=True)), 0.0, np.random.default_rng(0))


def _lacking(ratios: Mapping[int, float], reached: Warp, sizes: Array) -> NDArray[np.float64]:
    """Return the log change of volume that each label still lacks; 0 where room is made."""
    target = np.log([ratios.get(int(label), 1.0) for label in atlas().ids])
    lacking = target - np.log((atlas().shares @ reached.jacobian.ravel()) / sizes)
    return np.where(np.isin(atlas().ids, FILLING), 0.0, lacking)
