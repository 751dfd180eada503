"""Random images from label maps: contrast, resolution, noise, bias and deformation (Billot et al., SynthSeg 2023).

An `Anatomy` is a person seen through a random affine and smooth deformation, on the full grid. `render` turns it into
an image as the product sees it: stripped, in [-1, 1], background -1, mostly T1w-like, with the faults that generators
make (blur, ringing, haze, shifted intensities). Everything is drawn from the generator that is passed, and
computed where the anatomy is: a GPU makes images as fast as a network learns from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
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
    Person,
    mirror_of_code,
    structure_of_code,
)
from core.volume import FULL, HALF, Grid

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
    """A person on the full grid, as tensors of one device; fields as in `core.segmentation.labelmaps.Person`."""

    codes: Tensor
    depth: Tensor
    texture: Tensor | None


def as_is(person: Person, device: str = "cpu") -> Anatomy:
    """Return a person without deformation."""
    texture = None if person.texture is None else torch.from_numpy(person.texture).to(device)
    return Anatomy(torch.from_numpy(person.codes).to(device), torch.from_numpy(person.depth).to(device), texture)


def deform(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Mirror (half of the time) and deform an anatomy: affine, smooth random field, structures that grow or shrink."""
    device, noise = anatomy.codes.device, _noise(rng, anatomy.codes.device)
    shift = _random_field(rng, noise) + _growth_field(anatomy.codes, rng)
    field = F.interpolate(shift[None], size=FULL.shape, mode="trilinear", align_corners=False)[0]
    matrix, offset = _random_affine(rng)
    axes = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in FULL.shape]
    index = torch.zeros(FULL.shape, dtype=torch.int64, device=device)
    position = []
    for axis, size in enumerate(FULL.shape):
        place = field[axis]
        for other, line in enumerate(axes):
            shape = [-1 if a == other else 1 for a in range(3)]
            place = place + float(matrix[axis, other]) * line.reshape(shape)
        place = (place + float(offset[axis] + (size - 1) / 2)).clamp_(0, size - 1)
        position.append(place)
        index = index * size + place.round().long()
    codes, depth = anatomy.codes.flatten()[index], anatomy.depth.flatten()[index]
    texture = None
    if anatomy.texture is not None:
        ends = zip(position, FULL.shape, strict=True)
        grid = torch.stack([2 * place / (size - 1) - 1 for place, size in ends][::-1], -1)  # x is the last axis there
        texture = F.grid_sample(anatomy.texture[None, None], grid[None], align_corners=True)[0, 0]
    if rng.random() < 0.5:
        codes, depth = _table(mirror_of_code(), device)[codes.flip(0).long()], depth.flip(0)
        texture = None if texture is None else texture.flip(0)
    return Anatomy(codes, depth, texture)


def render(anatomy: Anatomy, grid: Grid, rng: np.random.Generator, *, plain: bool = False) -> tuple[Tensor, Tensor]:
    """Draw one image of an anatomy, on its device.

    Parameters
    ----------
    anatomy : Anatomy
        On the full grid.
    grid : Grid
        Grid of the image.
    rng : Generator
        Source of every draw; noise comes from a generator of the device that is seeded from it.
    plain : bool
        A T1w-like image with mild faults only, for validation.

    Returns
    -------
    tensor, shape of the grid, float32
        Image in [-1, 1].
    tensor, shape (144, 192, 144), uint8
        Codes of what the image still shows: what is cut off is background.
    """
    noise = _noise(rng, anatomy.codes.device)
    inside = _brain_mask(anatomy.depth, rng, noise)
    codes = anatomy.codes * inside
    means, deviations = (_table(t, codes.device) for t in _tones(rng, t1=plain or rng.random() < T1_SHARE))
    if anatomy.texture is not None and (plain or rng.random() < 0.85):
        signal = _remap(anatomy.texture, rng)
        deviations = deviations * 0.2
    else:
        signal = means[anatomy.codes.long()]
    signal = signal * inside
    shown = inside.float()
    kinds = anatomy.codes
    if grid == HALF:
        signal, shown, kinds = _halved(signal), _halved(shown), kinds[1::2, 1::2, 1::2]
    signal += _texture(deviations[kinds.long()], grid, noise) * shown
    faults = 0.3 if plain else 1.0
    signal *= torch.exp(_smooth(noise, (4, 5, 4), grid) * (faults * rng.uniform(0, 0.15)))
    if rng.random() < 0.7:
        signal = _transfer(signal, grid, rng, faults)
        if plain or rng.random() < 0.7:
            signal *= shown > 0
    level = abs(rng.normal(0, 0.03)) if rng.random() < 0.8 else rng.uniform(0, 0.12)
    signal += _draw(noise, grid.shape) * (faults * level) * (shown > 0)
    return _finish(signal.clamp_min(0), shown > 0, grid, rng, noise, plain), codes


def _noise(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """Return a generator of noise on a device, seeded from the numbers of another."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**63)))


def _draw(noise: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=noise, device=noise.device)


def _table(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


def _halved(data: Tensor) -> Tensor:
    return F.avg_pool3d(data[None, None], 2)[0, 0]


def _finish(
    signal: Tensor, shown: Tensor, grid: Grid, rng: np.random.Generator, noise: torch.Generator, plain: bool
) -> Tensor:
    """Gamma, then the intensity rule for real scans, then faults that generators add after it."""
    signal = signal / signal.max().clamp_min(1e-6)
    signal = signal ** float(np.exp(rng.normal(0, 0.08 if plain else 0.2)))
    signal = torch.where(shown, signal.clamp_min(1e-3), signal)
    image = _percentile_rule(signal)
    if plain:
        return image * 2 - 1
    if rng.random() < 0.3:
        image = torch.where(image > 0, image * rng.uniform(0.7, 1.0) + rng.uniform(0, 0.1), 0)
    if rng.random() < 0.15:
        haze = torch.sigmoid(2 * _smooth(noise, (9, 12, 9), grid))
        image = torch.where(shown, image, torch.maximum(image, haze * rng.uniform(0.02, 0.35)))
    return image.clamp(0, 1) * 2 - 1


def _percentile_rule(signal: Tensor) -> Tensor:
    """`core.volume.normalise_percentile` on a device, in [0, 1]."""
    flat = signal.flatten()[::5]  # a fifth of the voxels tells the quantiles well enough
    low, high = (flat.kthvalue(1 + round(q * (len(flat) - 1))).values for q in (0.05, 0.95))
    return torch.where(signal <= low, 0, torch.minimum(signal, high)) / high.clamp_min(1e-6)


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


def _random_field(rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Displacement in mm at 4 mm, shape (3, 36, 48, 36)."""
    total = torch.zeros((3, *COARSE), device=noise.device)
    amount = rng.uniform(0.3, 1.3)
    for points, size in WARPS_MM:
        knots = _draw(noise, (1, 3, *points)) * (size * amount)
        total += F.interpolate(knots, size=COARSE, mode="trilinear", align_corners=True)[0]
    return total


def _growth_field(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Displacement that lets the ventricles and some random structures grow or shrink, more than ageing does.

    A network that knows where structures lie learns how large they use to be, too; what people's anatomy does not
    vary enough is then measured too near to the mean. Wide changes teach it to believe the image.
    """
    kinds = _table(structure_of_code(), codes.device)[codes[2::4, 2::4, 2::4].long()]
    others = rng.choice([s for s in STRUCTURES[1:] if s not in (2, 41, 3, 42, 24, *FLUID)], GROWING, replace=False)
    total = torch.zeros((3, *COARSE), device=codes.device)
    kinds_of_growth: list[tuple[list[tuple[int, ...]], float, float]] = [
        ([(4, 43, 14)], 1.5, 3.5),
        ([(int(k),) for k in others], 1.0, 1.8),
    ]
    for sets, sigma, largest in kinds_of_growth:
        channels = [torch.tensor([STRUCTURES.index(k) for k in ids], device=kinds.device) for ids in sets]
        masks = torch.stack([torch.isin(kinds, each) for each in channels]).float()
        slopes = torch.stack(torch.gradient(_smoothed(masks, sigma), dim=(1, 2, 3)), 1)  # (sets, 3, ...)
        reach = slopes.abs().amax((1, 2, 3, 4)).clamp_min(1e-6)
        amounts = torch.tensor(np.clip(rng.normal(0.2, 0.8, len(sets)), -1.2, 1.6) * largest, dtype=torch.float32)
        total += torch.einsum("s,scxyz->cxyz", amounts.to(reach.device) / reach, slopes)
    return total


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of maps (n, x, y, z)."""
    radius = int(4 * sigma + 0.5)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=maps.device) / sigma) ** 2)
    line /= line.sum()
    for axis in range(3):
        kernel = line.view([1, 1] + [-1 if a == axis else 1 for a in range(3)])
        maps = F.conv3d(maps[:, None], kernel, padding="same")[:, 0]
    return maps


def _brain_mask(depth: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Cut the head as brain extraction does: a few mm outside the tissue, uneven; sometimes the brain-stem is cut."""
    margin = rng.normal(1.5, 1.5) if rng.random() < 0.85 else rng.uniform(3, 10)
    uneven = _smooth(noise, (9, 12, 9), HALF) * rng.uniform(0, 1.0)
    limit = ((float(np.clip(margin, -0.75, 10)) + uneven) / DEPTH_UNIT).round().clamp(-127, 126)
    inside = depth <= F.interpolate(limit[None, None], scale_factor=2.0, mode="nearest")[0, 0]
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


def _remap(texture: Tensor, rng: np.random.Generator) -> Tensor:
    """Give a real T1w image another contrast: csf and grey matter move relative to white matter."""
    csf, grey = rng.normal(0.29, 0.06), rng.normal(0.62, 0.06)
    marks = (0.0, *TEMPLATE_TONES, 1.2)
    values = (0.0, max(csf, 0.05), float(np.clip(grey, csf + 0.1, 0.85)), 1.0, 1.35)
    result = torch.zeros_like(texture)
    for k in range(len(marks) - 1):  # linear between the marks
        slope = (values[k + 1] - values[k]) / (marks[k + 1] - marks[k])
        result += (texture.clamp(marks[k], marks[k + 1]) - marks[k]) * slope
    return result * 0.65


def _texture(deviation: Tensor, grid: Grid, noise: torch.Generator) -> Tensor:
    """Variation inside the classes: half of it smooth over 8 mm, half from voxel to voxel."""
    fine = _draw(noise, grid.shape) * (0.7 / (2.0 if grid == HALF else 1.0))
    return deviation * (fine + 0.7 * _smooth(noise, (18, 24, 18), grid))


def _smooth(noise: torch.Generator, points: tuple[int, int, int], grid: Grid) -> Tensor:
    """Random field of about unit deviation at its control points, shape of the grid."""
    return F.interpolate(_draw(noise, (1, 1, *points)), size=grid.shape, mode="trilinear", align_corners=True)[0, 0]


def _transfer(signal: Tensor, grid: Grid, rng: np.random.Generator, faults: float) -> Tensor:
    """Blur (now and then along one axis more), and sometimes cut high frequencies sharply, which rings."""
    sigma_mm = faults * rng.uniform(0, 1.1, 3)
    if rng.random() < 0.15 * faults:
        sigma_mm[rng.integers(3)] += rng.uniform(0.5, 2.0)
    if rng.random() < 0.1 * faults:
        sigma_mm = np.full(3, rng.uniform(1.0, 2.2))
    waves = [np.fft.fftfreq(grid.shape[0]), np.fft.fftfreq(grid.shape[1]), np.fft.rfftfreq(grid.shape[2])]  # per voxel
    gains = [np.exp(-2 * (np.pi * s / grid.spacing * w) ** 2) for s, w in zip(sigma_mm, waves, strict=True)]
    if rng.random() < 0.15 * faults:
        cut = rng.uniform(0.25, 0.45) * (grid.spacing / 2 if grid == HALF else 0.7)
        gains = [g * (np.abs(w) < cut) for g, w in zip(gains, waves, strict=True)]
    spectrum = torch.fft.rfftn(signal)
    for axis, gain in enumerate(gains):
        shape = [-1 if a == axis else 1 for a in range(3)]
        spectrum *= _table(gain.astype(np.float32), signal.device).reshape(shape)
    return torch.fft.irfftn(spectrum, s=grid.shape)
