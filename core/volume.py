"""Volumes on the atlas grids: reading, checking, normalising and writing NIfTI.

The only module that imports nibabel. Inside the product every array is float32 in
RAS+ axis order (left→right, posterior→anterior, inferior→superior), intensities span
[-1, 1] and the background is exactly -1.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.openers import ImageOpener
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
MAX_VOXELS = 640**3  # larger headers are absurd for a head at 0.4 mm and would exhaust memory
MAX_RATIO = 1032  # bytes that one byte of gzip can stand for: what a header promises beyond it is not there
# Images shrink far less than the file of one repeated byte that is made to exhaust memory.
SMALL, BOMB_RATIO = 2**27, 250
MAX_OFFSET = 2**24  # bytes before the voxels
MAX_COORDINATE, SPACINGS = 1e5, (1e-3, 1e3)  # mm
TEMPLATE_SCALE = 0.9  # ICBM152 (145x181x155 mm) scaled to average adult size, so that it fits the grid
PUBLISHED_SHAPE = (138, 176, 138)  # SRI24 space of the paper, before padding
PUBLISHED_OFFSET = (3, 8, 3)
ORIENTATION_MARGIN = 0.10  # how much better a flipped volume must match the template to be called flipped
SHAPELESS = 0.80  # match with the template below which no orientation makes a brain of it; real ones reach 0.9
NO_BRAIN = "no brain in any orientation"
AXES_FAULT = "the anatomy does not follow the header"
# What a refusal says when the fault lies in the image that was made, not in the file that holds it.
CONTENT_FAULTS = (AXES_FAULT, "voxels are NaN or Inf", "all voxels are zero", "all voxels equal")


@dataclass(frozen=True)
class Grid:
    """An atlas grid: RAS+ axes, isotropic voxels.

    Parameters
    ----------
    name : str
        "full" or "half".
    shape : tuple of int
        Voxels left→right, posterior→anterior, inferior→superior.
    spacing : float
        Voxel edge in mm.
    origin : tuple of float
        World coordinates (mm) of the centre of voxel (0, 0, 0).
    """

    name: str
    shape: tuple[int, int, int]
    spacing: float
    origin: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel-to-world matrix (4, 4) in mm."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = self.origin
        return affine


# The half grid's voxels are the 2x2x2 blocks of the full grid, so both cover the same field of view.
FULL = Grid("full", (144, 192, 144), 1.0, (-71.5, -110.5, -67.0))
HALF = Grid("half", (72, 96, 72), 2.0, (-71.0, -110.0, -66.5))
GRIDS = {grid.name: grid for grid in (FULL, HALF)}


@dataclass(frozen=True)
class Volume:
    """A 3D image with its place in the world.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Intensities (float32) or labels (int32) in RAS+ axis order.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm.
    case_id : str
        Name of the case; for files the name without suffix.
    notes : tuple of str
        What was changed while reading, in words.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    case_id: str = ""
    notes: tuple[str, ...] = field(default=())


def grid_named(name: str) -> Grid:
    """Return the grid called ``name``.

    Raises
    ------
    InputError
        When there is no such grid.
    """
    if name not in GRIDS:
        raise InputError(f"unknown grid {name!r}.", "grid", f"Choose one of: {', '.join(GRIDS)}.")
    return GRIDS[name]


def case_name(path: Path | str) -> str:
    """Return the file name without its image suffix."""
    name = Path(path).name
    for suffix in (*SUFFIXES, ".nrrd"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def load(path: Path | str, *, orientation: str = "") -> Volume:
    """Read one 3D image and bring its axes to RAS+.

    Parameters
    ----------
    path : path
        NIfTI or MGH file.
    orientation : str
        Axis codes of the stored array, such as "RAS" or "LPS", when the header is known
        to be wrong; "" trusts the header.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        Missing, unreadable or truncated file; not 3D; NaN or Inf; constant image.
    """
    path = Path(path)
    image = _open(path)
    data, affine = _read(image, path), image.affine
    _check_values(data, path)
    shape = data.shape
    if orientation:
        spacing = float(abs(np.linalg.det(affine[:3, :3])) ** (1 / 3))
        if np.array_equal(affine, np.eye(4)) and sorted(shape) == sorted(HALF.shape):
            spacing = HALF.spacing  # an identity affine says nothing about the spacing either
        affine = _affine_of_codes(orientation, shape, spacing, path)
    return _to_ras(data, affine, case_name(path))


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
    header = _open(path)
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
            shape = _open(Path(path)).shape[:3]
        except InputError:
            continue
        if shape == HALF.shape:
            return HALF
        if shape in _KNOWN_SHAPES:
            return FULL
    return FULL


def save(volume: Volume, path: Path | str) -> None:
    """Write a volume as NIfTI; integer arrays keep their type, others become float32.

    The header is new: texts and extensions of the file it was read from, where names may stand, are not kept.
    """
    data = volume.data
    dtype = np.int32 if np.issubdtype(data.dtype, np.integer) else np.float32
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), volume.affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, str(path))


def byte_nifti(
    data: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    slope: float = 1.0,
    shift: float = 0.0,
    labels: bool = False,
) -> bytes:
    """Return the content of a .nii.gz file of single bytes, which stand for ``slope`` × byte + ``shift``, or labels."""
    image = nib.Nifti1Image(np.asarray(data, dtype=np.uint8), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(slope, shift)
    if labels:
        image.header.set_intent("label")
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)  # the same volume gives the same bytes


def load_labels(path: Path | str) -> Volume:
    """Read a label map as int32 in RAS+ axis order."""
    path = Path(path)
    image = _open(path)
    data = _read(image, path)
    if not (np.abs(data) < 2**24).all():  # False for NaN too
        raise InputError("the label map holds values that are no labels.", str(path), "Segment again.")
    volume = _to_ras(data, image.affine, case_name(path))
    return replace(volume, data=np.rint(volume.data).astype(np.int32))


def resample(volume: Volume, shape: Sequence[int], affine: NDArray[np.float64], *, order: int = 1) -> Volume:
    """Interpolate a volume at the voxels of another frame; outside values are the background minimum."""
    to_source = np.linalg.inv(volume.affine) @ affine
    data = ndimage.affine_transform(
        volume.data,
        to_source[:3, :3],
        offset=to_source[:3, 3],
        output_shape=tuple(shape),
        order=order,
        cval=float(volume.data.min()),
        prefilter=order > 1,
    )
    return replace(volume, data=data.astype(volume.data.dtype), affine=np.asarray(affine))


@lru_cache(maxsize=8)
def template(grid: Grid) -> Volume:
    """Return the embedded atlas on a grid: ICBM152 2009a symmetric T1 scaled by 0.9, in [-1, 1].

    Returns
    -------
    Volume
        Shape ``grid.shape``, background exactly -1. The array is read-only: it is shared.

    References
    ----------
    Fonov et al., NeuroImage 54 (2011), doi:10.1016/j.neuroimage.2010.07.033.
    """
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=1)
    scale = np.diag([TEMPLATE_SCALE] * 3 + [1.0])
    raw = Volume(np.asarray(image.dataobj, dtype=np.float32), scale @ image.affine, "icbm152")
    data = ndimage.gaussian_filter(raw.data, 0.5 * (grid.spacing / TEMPLATE_SCALE - 1))
    on_grid = resample(replace(raw, data=data), grid.shape, grid.affine)
    scaled = normalise_percentile(on_grid.data)
    scaled.setflags(write=False)
    return replace(on_grid, data=scaled)


def normalise_percentile(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map a skull-stripped scan to [-1, 1] by the published rule for real scans.

    Values above the 95 % quantile of the whole volume are clipped to it, values at or below the
    5 % quantile become 0, then v / q95 * 2 - 1 (Wu et al., MICCAI 2024, code).

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Non-negative intensities, background 0.

    Returns
    -------
    ndarray, float32
        In [-1, 1], background exactly -1.

    Raises
    ------
    InputError
        When fewer than 5 % of the voxels are above the background.
    """
    low, high = np.quantile(data, [0.05, 0.95])
    if not high > 0:
        raise InputError(
            "fewer than 5 % of the voxels are brighter than the background.", "", "Check that it is a brain."
        )
    clipped = np.where(data <= low, 0.0, np.minimum(data, high))
    return (clipped / high * 2 - 1).astype(np.float32)


def normalise_maximum(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map a generated volume to [-1, 1] by the published rule: v / max * 2 - 1 when min ≥ 0."""
    return (data / data.max() * 2 - 1).astype(np.float32)


_RULES = {"percentile": normalise_percentile, "maximum": normalise_maximum}
_KNOWN_SHAPES = (FULL.shape, HALF.shape, PUBLISHED_SHAPE)


@dataclass(frozen=True)
class _Stored:
    """An image file as its header describes it; no voxel was read yet."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    voxels: ArrayProxy


def _open(path: Path) -> _Stored:
    if not path.is_file():
        raise InputError("there is no such file.", str(path), "Check the path.")
    if path.stat().st_size == 0:
        raise InputError("the file is empty.", str(path), "Copy or export it again.")
    try:
        header = _header(path)
        shape = tuple(int(n) for n in header.get_data_shape())
        image = _Stored(shape, np.asarray(header.get_best_affine(), np.float64), ArrayProxy(str(path), header))
    except Exception as error:  # nibabel raises many types on malformed headers
        raise InputError(
            f"not a readable NIfTI or MGH image ({_short(error)}).", str(path), "Convert it to .nii.gz, or remove it."
        ) from error
    if not is_place(image.affine):
        raise InputError("the affine is singular, not finite or absurd.", str(path), "Repair the header.")
    return image


def _header(path: Path) -> nib.Nifti1Header | MGHHeader:
    """Read the header and nothing after it: extensions hold names, and their sizes may be lies."""
    with ImageOpener(str(path)) as file:
        block = file.read(nib.Nifti2Header.sizeof_hdr)
    if path.suffix.lower() in (".mgz", ".mgh"):
        return MGHHeader(block[: MGHHeader._hdrdtype.itemsize])  # what lies behind are the voxels, not the footer
    second = nib.Nifti2Header.sizeof_hdr in (int.from_bytes(block[:4], order) for order in ("little", "big"))
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    return kind(block[: kind.sizeof_hdr])


def is_place(affine: NDArray[np.float64]) -> bool:
    """Tell whether an affine puts voxels of a possible size somewhere near the scanner."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > MAX_COORDINATE:
        return False
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    possible = spacing.min() >= SPACINGS[0] and spacing.max() <= SPACINGS[1]
    return bool(possible and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-4)


def _shape_3d(image: _Stored, path: Path) -> tuple[int, int, int]:
    full, shape = image.shape, image.shape[:3]
    if len(full) < 3 or any(n != 1 for n in full[3:]):
        raise InputError(f"expected a 3D volume, found shape {full}.", str(path), "Save one volume per file.")
    check_extent(shape, path)
    return shape[0], shape[1], shape[2]


def check_extent(shape: Sequence[int], path: Path) -> None:
    """Refuse a shape that no head has, before memory is taken for it.

    Raises
    ------
    InputError
    """
    if min(shape) < 1 or np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise InputError(f"the header gives the absurd shape {tuple(shape)}.", str(path), "Repair or remove the file.")


def _read(image: _Stored, path: Path) -> NDArray[np.float32]:
    shape = _shape_3d(image, path)
    _check_size(image, path)
    try:
        return np.asarray(image.voxels, dtype=np.float32).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise InputError(
            f"the data cannot be read to the end ({_short(error)}).", str(path), "The file is truncated: copy it again."
        ) from error


def _check_size(image: _Stored, path: Path) -> None:
    dtype, offset = image.voxels.dtype, image.voxels.offset
    if dtype.kind not in "iuf":
        raise InputError(f"the voxels are {dtype}, not single numbers.", str(path), "Save one number for each voxel.")
    if not 0 <= offset <= MAX_OFFSET:
        raise InputError(f"the header puts the voxels at byte {offset}.", str(path), "Repair the header.")
    wanted = offset + int(np.prod(image.shape, dtype=np.int64)) * dtype.itemsize
    check_bytes(wanted, path.stat().st_size, path, packed=path.suffix.lower() in (".gz", ".mgz"))


def check_bytes(wanted: int, held: int, path: Path, *, packed: bool) -> None:
    """Refuse what a file cannot hold, or what inflates like no image, before memory is taken for it.

    Raises
    ------
    InputError
    """
    if wanted > held * (MAX_RATIO if packed else 1):
        what = f"the data cannot be read to the end: the header promises {wanted:,} bytes, the file has {held:,}."
        raise InputError(what, str(path), "The file is truncated, or its header damaged: copy it again.")
    if packed and wanted > max(SMALL, BOMB_RATIO * held):
        what = f"{held:,} compressed bytes would become {wanted:,}: no image shrinks so far."
        raise InputError(what, str(path), "Remove the file; if it is an image, store it uncompressed.")


def _check_values(data: NDArray[np.float32], path: Path) -> None:
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise InputError(f"{bad} voxels are NaN or Inf.", str(path), "Repair the generator or set them to background.")
    if data.min() == data.max():
        what = "all voxels are zero." if data.flat[0] == 0 else f"all voxels equal {data.flat[0]:g}."
        raise InputError(what, str(path), "Remove the file or generate it again.")


def _to_ras(data: NDArray[np.float32], affine: NDArray[np.float64], case_id: str) -> Volume:
    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    codes = "".join(nib.aff2axcodes(affine))
    notes = () if codes == "RAS" else (f"axes reordered from {codes} to RAS",)
    return Volume(np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine), case_id, notes)


def _affine_of_codes(codes: str, shape: Sequence[int], spacing: float, path: Path) -> NDArray[np.float64]:
    try:
        ornt = axcodes2ornt(tuple(codes.upper()))
        valid = len(codes) == 3 and len(set(ornt[:, 0])) == 3
    except (ValueError, KeyError):
        valid = False
    if not valid:
        raise InputError(f"orientation {codes!r} is not three axis codes.", str(path), 'Write for example "RAS".')
    flips = ornt_transform(ornt, io_orientation(np.eye(4)))
    affine: NDArray[np.float64] = nib.orientations.inv_ornt_aff(flips, tuple(shape))
    return np.asarray(np.linalg.inv(affine) @ np.diag([spacing] * 3 + [1.0]))


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


def block_mean(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average 2x2x2 blocks: (2x, 2y, 2z) to (x, y, z)."""
    x, y, z = (n // 2 for n in data.shape)
    return data.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5), dtype=np.float32)


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


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
