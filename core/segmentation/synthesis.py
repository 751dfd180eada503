"""Random images from label maps: contrast, resolution, noise, bias and deformation (Billot et al., SynthSeg 2023).

An `Anatomy` is a person seen through a random affine and smooth deformation, on the full grid. `render` turns it into
an image as the product sees it: stripped, in [-1, 1], background -1, mostly T1w-like, with the faults that generators
make (blur, ringing, haze, shifted intensities). Everything is drawn from the generator that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch.nn import functional as F

from core.segmentation.labelmaps import (
    CORTEX,
    CSF,
    DEPTH_UNIT,
    FIRST_PARCEL,
    N_CODES,
    PARCELS,
    STRUCTURES,
    UNNAMED,
    Codes,
    Person,
    mirror_of_code,
    structure_of_code,
)
from core.volume import FULL, HALF, Grid, block_mean, normalise_percentile

Array = NDArray[np.float32]

# Mean, spread of the mean between scans, deviation inside the class, on an 8-bit scale: published T1w priors.
T1_PRIORS = {
    (2,): (160, 22, 15.6),
    (3, 11, 17, 18, 26): (96, 12, 18.9),
    (4, 5, 14, 15, 24): (44, 11, 25.6),
    (7,): (136, 13, 15.3),
    (8,): (88, 11, 17.1),
    (10,): (130, 18, 19.6),
    (12,): (124, 16, 13.8),
    (13,): (152, 20, 8.6),
    (28,): (143, 16, 21.1),
    (16,): (130, 12, 17.5),
}
WIDER = 1.2  # measured contrasts vary more than the published spread
T1_SHARE = 0.85
COARSE = (36, 48, 36)  # deformations are drawn at 4 mm
WARPS_MM = (((4, 5, 4), 2.5), ((7, 9, 7), 1.6), ((14, 19, 14), 0.7))  # control points and SD of displacement
FLUID = (4, 5, 14, 15)
GROWING = 8  # structures of one anatomy, beside the ventricles, that are made larger or smaller
TEMPLATE_TONES = (0.30, 0.66, 0.845)  # csf, grey and white matter of the template


@dataclass(frozen=True)
class Anatomy:
    """A deformed person on the full grid; fields as in `core.segmentation.labelmaps.Person`."""

    codes: Codes
    depth: NDArray[np.int8]
    texture: Array | None


def as_is(person: Person) -> Anatomy:
    """Return a person without deformation, for validation."""
    return Anatomy(person.codes, person.depth, person.texture)


def deform(person: Person, rng: np.random.Generator) -> Anatomy:
    """Mirror (half of the time) and deform a person: affine, smooth random field, structures that grow or shrink."""
    shift = _random_field(rng) + _growth_field(person.codes, rng)
    field = F.interpolate(torch.from_numpy(shift)[None], size=FULL.shape, mode="trilinear", align_corners=False)[0]
    matrix, offset = _random_affine(rng)
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in FULL.shape]
    index = np.zeros(FULL.shape, np.int64)
    position = []
    for axis, size in enumerate(FULL.shape):
        place = field[axis].numpy()
        for other, line in enumerate(axes):
            shape = [-1 if a == other else 1 for a in range(3)]
            place = place + np.float32(matrix[axis, other]) * line.reshape(shape)
        place += np.float32(offset[axis] + (size - 1) / 2)
        np.clip(place, 0, size - 1, out=place)
        position.append(place)
        index = index * size + np.rint(place).astype(np.int64)
    codes, depth = person.codes.ravel()[index], person.depth.ravel()[index]
    texture = None
    if person.texture is not None:
        texture = np.asarray(ndimage.map_coordinates(person.texture, position, order=1), np.float32)
    if rng.random() < 0.5:
        codes, depth = mirror_of_code()[codes[::-1]], np.ascontiguousarray(depth[::-1])
        texture = None if texture is None else np.ascontiguousarray(texture[::-1])
    return Anatomy(codes, depth, texture)


def render(anatomy: Anatomy, grid: Grid, rng: np.random.Generator, *, plain: bool = False) -> tuple[Array, Codes]:
    """Draw one image of an anatomy.

    Parameters
    ----------
    anatomy : Anatomy
        On the full grid.
    grid : Grid
        Grid of the image.
    rng : Generator
        Source of every draw.
    plain : bool
        A T1w-like image with mild faults only, for validation.

    Returns
    -------
    ndarray, shape of the grid, float32
        Image in [-1, 1].
    ndarray, shape (144, 192, 144), uint8
        Codes of what the image still shows: what is cut off is background.
    """
    inside = _brain_mask(anatomy.depth, rng)
    codes = np.where(inside, anatomy.codes, np.uint8(0))
    means, deviations = _tones(rng, t1=plain or rng.random() < T1_SHARE)
    if anatomy.texture is not None and (plain or rng.random() < 0.85):
        signal = _remap(anatomy.texture, rng)
        deviations = deviations * np.float32(0.2)
    else:
        signal = means[anatomy.codes]
    signal *= inside
    shown = inside.astype(np.float32)
    kinds = anatomy.codes
    if grid == HALF:
        signal, shown, kinds = block_mean(signal), block_mean(shown), kinds[1::2, 1::2, 1::2]
    signal += _texture(deviations[kinds], grid, rng) * shown
    faults = 0.3 if plain else 1.0
    signal *= np.exp(_smooth(rng, (4, 5, 4), grid) * np.float32(faults * rng.uniform(0, 0.15)))
    if rng.random() < 0.7:
        signal = _transfer(signal, grid, rng, faults)
        if plain or rng.random() < 0.7:
            signal *= shown > 0
    noise = abs(rng.normal(0, 0.03)) if rng.random() < 0.8 else rng.uniform(0, 0.12)
    signal += rng.standard_normal(grid.shape, np.float32) * np.float32(faults * noise) * (shown > 0)
    return _finish(np.maximum(signal, 0), shown > 0, grid, rng, plain), codes


def _finish(signal: Array, shown: NDArray[np.bool_], grid: Grid, rng: np.random.Generator, plain: bool) -> Array:
    """Gamma, then the intensity rule for real scans, then faults that generators add after it."""
    signal = signal / max(float(signal.max()), 1e-6)
    signal = signal ** np.float32(np.exp(rng.normal(0, 0.08 if plain else 0.2)))
    signal = np.where(shown, np.maximum(signal, 1e-3), signal)
    image = (normalise_percentile(signal.astype(np.float32)) + 1) / 2
    if plain:
        return np.asarray(image * 2 - 1, np.float32)
    if rng.random() < 0.3:
        image = np.where(image > 0, image * rng.uniform(0.7, 1.0) + rng.uniform(0, 0.1), 0)
    if rng.random() < 0.15:
        haze = 1 / (1 + np.exp(-2 * _smooth(rng, (9, 12, 9), grid)))
        image = np.where(shown, image, np.maximum(image, haze * rng.uniform(0.02, 0.35)))
    return np.asarray(np.clip(image, 0, 1) * 2 - 1, np.float32)


def _random_affine(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    angles, shears = np.radians(rng.normal(0, 2.5, 3)), rng.normal(0, 0.015, 3)
    scales = np.exp(rng.normal(0, 0.03) + rng.normal(0, 0.02, 3))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[[a, b], [a, b]] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    shear = np.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = shears
    return turn @ shear @ np.diag(scales), rng.normal(0, 2.0, 3)


def _random_field(rng: np.random.Generator) -> Array:
    """Displacement in mm at 4 mm, shape (3, 36, 48, 36)."""
    total = np.zeros((3, *COARSE), np.float32)
    amount = rng.uniform(0.3, 1.3)
    for points, size in WARPS_MM:
        knots = torch.from_numpy(rng.standard_normal((1, 3, *points), dtype=np.float32) * np.float32(size * amount))
        total += F.interpolate(knots, size=COARSE, mode="trilinear", align_corners=True)[0].numpy()
    return total


def _growth_field(codes: Codes, rng: np.random.Generator) -> Array:
    """Displacement that lets the ventricles and some random structures grow or shrink, more than ageing does.

    A network that knows where structures lie learns how large they use to be, too; what people's anatomy does not
    vary enough is then measured too near to the mean. Wide changes teach it to believe the image.
    """
    kinds = structure_of_code()[codes[2::4, 2::4, 2::4]]
    total = np.zeros((3, *COARSE), np.float32)
    others = rng.choice([s for s in STRUCTURES[1:] if s not in (2, 41, 3, 42, 24, *FLUID)], GROWING, replace=False)
    for ids, sigma, largest in [((4, 43, 14), 1.5, 3.5), *(((int(k),), 1.0, 1.8) for k in others)]:
        mask = np.isin(kinds, [STRUCTURES.index(k) for k in ids]).astype(np.float32)
        slope = np.stack(np.gradient(ndimage.gaussian_filter(mask, sigma)))
        reach = float(np.abs(slope).max())
        if reach > 0:
            total += slope * np.float32(np.clip(rng.normal(0.2, 0.8), -1.2, 1.6) * largest / reach)
    return total


def _brain_mask(depth: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Cut the head as brain extraction does: a few mm outside the tissue, uneven; sometimes the brain-stem is cut."""
    margin = rng.normal(1.5, 1.5) if rng.random() < 0.85 else rng.uniform(3, 10)
    uneven = _smooth(rng, (9, 12, 9), HALF) * np.float32(rng.uniform(0, 1.0))
    limit = np.clip(np.rint((np.clip(margin, -0.75, 10) + uneven) / DEPTH_UNIT), -127, 126).astype(np.int8)
    inside = depth <= limit.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    if rng.random() < 0.4:
        inside[:, :, : int(rng.integers(1, 12))] = False
    return inside


def _tones(rng: np.random.Generator, *, t1: bool) -> tuple[Array, Array]:
    """Draw mean and deviation of every code, in parts of the 8-bit range, equal on both sides."""
    means, deviations = np.zeros(FIRST_PARCEL), np.zeros(FIRST_PARCEL)
    for ids, (mean, spread, inner) in T1_PRIORS.items():
        level = rng.normal(mean, WIDER * spread) if t1 else 0.0
        for k in ids:
            own = level + rng.normal(0, 5) if t1 else rng.uniform(15, 245)
            channel = STRUCTURES.index(k)
            means[channel] = max(own, 5.0)
            deviations[channel] = inner * rng.uniform(0.2, 0.9) if t1 else rng.uniform(2, 20)
    table, other = structure_of_code(), mirror_of_code()
    for values in (means, deviations):
        mirrored = values[other[:FIRST_PARCEL]]
        values[:] = np.where(values > 0, values, mirrored)
    all_means, all_deviations = means[table], deviations[table]
    regional = rng.normal(0, 3, len(PARCELS))
    all_means[FIRST_PARCEL:UNNAMED] = means[CORTEX[0]] + np.tile(regional, 2)
    all_means[UNNAMED], all_deviations[UNNAMED] = rng.uniform(30, 180), 15
    all_means[0] = rng.uniform(20, 110) if rng.random() < 0.5 else means[CSF]
    all_deviations[0] = 20
    assert len(all_means) == N_CODES
    return (all_means / 255).astype(np.float32), (all_deviations / 255).astype(np.float32)


def _remap(texture: Array, rng: np.random.Generator) -> Array:
    """Give a real T1w image another contrast: csf and grey matter move relative to white matter."""
    csf, grey = rng.normal(0.29, 0.06), rng.normal(0.62, 0.06)
    marks = (0.0, *TEMPLATE_TONES, 1.2)
    values = (0.0, max(csf, 0.05), float(np.clip(grey, csf + 0.1, 0.85)), 1.0, 1.35)
    return (np.interp(texture, marks, values) * 0.65).astype(np.float32)


def _texture(deviation: Array, grid: Grid, rng: np.random.Generator) -> Array:
    """Variation inside the classes: half of it smooth over 8 mm, half from voxel to voxel."""
    fine = rng.standard_normal(grid.shape, np.float32) * np.float32(0.7 / (2.0 if grid == HALF else 1.0))
    return deviation * (fine + np.float32(0.7) * _smooth(rng, (18, 24, 18), grid))


def _smooth(rng: np.random.Generator, points: tuple[int, int, int], grid: Grid) -> Array:
    """Random field of about unit deviation at its control points, shape of the grid."""
    knots = torch.from_numpy(rng.standard_normal((1, 1, *points), dtype=np.float32))
    return np.asarray(F.interpolate(knots, size=grid.shape, mode="trilinear", align_corners=True)[0, 0].numpy())


def _transfer(signal: Array, grid: Grid, rng: np.random.Generator, faults: float) -> Array:
    """Blur (now and then along one axis more), and sometimes cut high frequencies sharply, which rings."""
    sigma_mm = faults * rng.uniform(0, 1.1, 3)
    if rng.random() < 0.15 * faults:
        sigma_mm[rng.integers(3)] += rng.uniform(0.5, 2.0)
    if rng.random() < 0.1 * faults:
        sigma_mm = np.full(3, rng.uniform(1.0, 2.2))
    waves = [fft.fftfreq(grid.shape[0]), fft.fftfreq(grid.shape[1]), fft.rfftfreq(grid.shape[2])]  # per voxel
    gains = [np.exp(-2 * (np.pi * s / grid.spacing * w) ** 2) for s, w in zip(sigma_mm, waves, strict=True)]
    if rng.random() < 0.15 * faults:
        cut = rng.uniform(0.25, 0.45) * (grid.spacing / 2 if grid == HALF else 0.7)
        gains = [g * (np.abs(w) < cut) for g, w in zip(gains, waves, strict=True)]
    spectrum = fft.rfftn(signal)
    for axis, gain in enumerate(gains):
        spectrum *= gain.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(fft.irfftn(spectrum, s=grid.shape), np.float32)
