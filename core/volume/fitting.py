"""Volumes of a user brought to an atlas grid and to [-1, 1], and checked on the way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError
from core.volume.files import load, open_header
from core.volume.grids import (
    FULL,
    GRIDS,
    HALF,
    Grid,
    Volume,
    block_mean,
    normalise_maximum,
    normalise_percentile,
    template,
)

PUBLISHED_SHAPE = (138, 176, 138)  # SRI24 space of the paper, before padding
PUBLISHED_OFFSET = (3, 8, 3)
ORIENTATION_MARGIN = 0.10  # how much better a flipped volume must match the template to be called flipped
SHAPELESS = 0.80  # match with the template below which no orientation makes a brain of it; real ones reach 0.9
NO_BRAIN = "no brain in any orientation"
AXES_FAULT = "the anatomy does not follow the header"
# What a refusal says when the fault lies in the image that was made, not in the file that holds it.
CONTENT_FAULTS = (AXES_FAULT, "voxels are NaN or Inf", "all voxels are zero", "all voxels equal")
_RULES = {"percentile": normalise_percentile, "maximum": normalise_maximum}
_KNOWN_SHAPES = (FULL.shape, HALF.shape, PUBLISHED_SHAPE)


def load_on_grid(path: Path | str, grid: Grid, *, rule: str, orientation: str = "", checked: bool = False) -> Volume:
    """Read an atlas-space volume, check that it is one, and bring it to ``grid`` and [-1, 1].

    Parameters
    ----------
    path : path
        NIfTI or MGH file already in atlas space.
    grid : Grid
        Grid wanted.
    rule : {"percentile", "maximum"}
        Published intensity rule for volumes that are not yet in [-1, 1]: ``percentile``
        for real scans, ``maximum`` for generated ones (Wu et al., MICCAI 2024).
    orientation : str
        See `load`.
    checked : bool
        True when this content passed before: the comparison of the axes with the anatomy is left out.

    Returns
    -------
    Volume
        Shape ``grid.shape``; ``notes`` says what was changed. A generated volume (``rule`` "maximum") that is no brain
        in any orientation is used and noted: leaving it out would flatter its generator.

    Raises
    ------
    InputError
        As `load`, and: identity affine, wrong shape or spacing, axes that do not match
        the anatomy, intensities outside the known ranges.
    """
    path = Path(path)
    header = open_header(path)
    if not orientation and np.array_equal(header.affine, np.eye(4)) and header.shape[:3] in _KNOWN_SHAPES:
        raise InputError(
            "the affine is the identity, so left and right are unknown.",
            str(path),
            'If its array axes run left→right, posterior→anterior, inferior→superior, set orientation = "RAS" '
            "for this cohort in study.toml; otherwise give its true axis codes.",
        )
    volume = load(path, orientation=orientation)
    volume = _fit_grid(volume, grid, path)
    volume = _fit_intensity(volume, rule, path)
    if checked:
        return volume
    note = _check_anatomical_axes(volume, grid, path, generated=rule == "maximum")
    return replace(volume, notes=(*volume.notes, note)) if note else volume


def grid_of(paths: Sequence[Path]) -> Grid:
    """Return the grid of the first readable volume, the full grid when none fits."""
    for path in paths:
        try:
            shape = open_header(Path(path)).shape[:3]
        except InputError:
            continue
        if shape == HALF.shape:
            return HALF
        if shape in _KNOWN_SHAPES:
            return FULL
    return FULL


def _fit_grid(volume: Volume, grid: Grid, path: Path) -> Volume:
    spacing = np.sqrt((volume.affine[:3, :3] ** 2).sum(axis=0))
    shape, notes = volume.data.shape, list(volume.notes)
    source = FULL if shape == PUBLISHED_SHAPE else next((g for g in GRIDS.values() if g.shape == shape), None)
    if source is None or not np.allclose(spacing, source.spacing, rtol=0.02):
        raise InputError(
            f"shape {shape} at {'×'.join(f'{s:.3g}' for s in spacing)} mm is not an atlas grid; expected "
            f"{FULL.shape} at 1 mm, {HALF.shape} at 2 mm, or {PUBLISHED_SHAPE} at 1 mm.",
            str(path),
            "For a raw scan run `python -m core preprocess`, or set raw = true for this cohort in study.toml.",
        )
    data = volume.data
    if shape == PUBLISHED_SHAPE:
        pads = [(o, n - s - o) for o, n, s in zip(PUBLISHED_OFFSET, FULL.shape, shape, strict=True)]
        data = np.pad(data, pads, constant_values=float(data.min()))
        notes.append(f"padded from {shape} to {FULL.shape}")
    if source is HALF and grid is FULL:
        raise InputError(
            f"half-grid volume {shape} in a study on the full grid.",
            str(path),
            'Set grid = "half" in study.toml, or --grid half.',
        )
    if source is FULL and grid is HALF:
        data = block_mean(data)
        notes.append("averaged from the full to the half grid")
    return replace(volume, data=data, affine=grid.affine, notes=tuple(notes))


def _fit_intensity(volume: Volume, rule: str, path: Path) -> Volume:
    low, high = float(volume.data.min()), float(volume.data.max())
    if low < 0:
        if low < -1.001 or high > 1.001:
            raise InputError(
                f"intensities span [{low:.4g}, {high:.4g}]; expected [-1, 1], or values from 0 up.",
                str(path),
                "Rescale the volume so that background is -1 and the brightest tissue 1.",
            )
        return replace(volume, data=np.clip(volume.data, -1, 1))
    if rule not in _RULES:
        raise InputError(f"unknown intensity rule {rule!r}.", str(path), f"Choose one of: {', '.join(_RULES)}.")
    try:
        data = _RULES[rule](volume.data)
    except InputError as error:
        raise InputError(error.what, str(path), error.remedy) from error
    note = f"intensity [{low:.4g}, {high:.4g}] mapped to [-1, 1] by the {rule} rule"
    return replace(volume, data=data, notes=(*volume.notes, note))


def _check_anatomical_axes(volume: Volume, grid: Grid, path: Path, *, generated: bool) -> str:
    """Refuse a volume that matches the template clearly better when flipped or with axes swapped.

    A left-right flip cannot be seen this way (the template is symmetric). Returns a note, or "", for what is used.
    """
    image, target = _coarse(volume.data), _coarse(template(grid).data)
    scores = {}
    for order, *flips in itertools.product(((0, 1, 2), (2, 1, 0)), (1,), (1, -1), (1, -1)):
        moved = image.transpose(order)[:: flips[0], :: flips[1], :: flips[2]]
        scores[order, flips[1], flips[2]] = float(np.corrcoef(moved.ravel(), target.ravel())[0, 1])
    best = max(scores, key=lambda key: scores[key])
    as_is = scores[(0, 1, 2), 1, 1]
    if scores[best] - as_is <= ORIENTATION_MARGIN:
        return ""
    if generated and scores[best] < SHAPELESS:
        return f"{NO_BRAIN} (match with the atlas {as_is:.2f}, turned {scores[best]:.2f}); used as it is"
    found = [
        text
        for text, wrong in (
            ("left-right and inferior-superior axes swapped", best[0] != (0, 1, 2)),
            ("posterior-anterior flipped", best[1] < 0),
            ("inferior-superior flipped", best[2] < 0),
        )
        if wrong
    ]
    raise InputError(
        f"{AXES_FAULT}: {', '.join(found)} (match with the atlas {as_is:.2f}, after the change {scores[best]:.2f}).",
        str(path),
        f'Repair the header, or set orientation = "{_codes_for(*best)}" for this cohort in study.toml.',
    )


def _coarse(data: NDArray[np.float32]) -> NDArray[np.float32]:
    step = max(1, round(data.shape[0] / 36))
    smooth = ndimage.uniform_filter(data, step)
    return np.asarray(smooth[step // 2 :: step, step // 2 :: step, step // 2 :: step])


def _codes_for(order: tuple[int, int, int], posterior: int, inferior: int) -> str:
    """Axis codes of an array which, once transposed by ``order`` and flipped, is RAS."""
    wanted = ("R", "A" if posterior > 0 else "P", "S" if inferior > 0 else "I")
    codes = [""] * 3
    for axis, source in enumerate(order):
        codes[source] = wanted[axis]
    return "".join(codes)
