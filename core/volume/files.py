"""Image files: reading what can be trusted of them, and writing NIfTI. The only module that imports nibabel."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.openers import ImageOpener
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from core.errors import InputError
from core.volume.grids import HALF, Volume

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
MAX_VOXELS = 640**3  # larger headers are absurd for a head at 0.4 mm and would exhaust memory
MAX_RATIO = 1032  # bytes that one byte of gzip can stand for: what a header promises beyond it is not there
# Images shrink far less than the file of one repeated byte that is made to exhaust memory.
SMALL, BOMB_RATIO = 2**27, 250
MAX_OFFSET = 2**24  # bytes before the voxels
MAX_COORDINATE, SPACINGS = 1e5, (1e-3, 1e3)  # mm


@dataclass(frozen=True)
class Stored:
    """An image file as its header describes it; no voxel was read yet."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    voxels: ArrayProxy


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
    image = open_header(path)
    data, affine = _read(image, path), image.affine
    _check_values(data, path)
    shape = data.shape
    if orientation:
        spacing = float(abs(np.linalg.det(affine[:3, :3])) ** (1 / 3))
        if np.array_equal(affine, np.eye(4)) and sorted(shape) == sorted(HALF.shape):
            spacing = HALF.spacing  # an identity affine says nothing about the spacing either
        affine = _affine_of_codes(orientation, shape, spacing, path)
    return _to_ras(data, affine, case_name(path))


def load_labels(path: Path | str) -> Volume:
    """Read a label map as int32 in RAS+ axis order."""
    path = Path(path)
    image = open_header(path)
    data = _read(image, path)
    if not (np.abs(data) < 2**24).all():  # False for NaN too
        raise InputError("the label map holds values that are no labels.", str(path), "Segment again.")
    volume = _to_ras(data, image.affine, case_name(path))
    return replace(volume, data=np.rint(volume.data).astype(np.int32))


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


def open_header(path: Path) -> Stored:
    """Read what the header of an image says, and no voxel.

    Raises
    ------
    InputError
        Missing, empty or no image; an affine that is no place.
    """
    if not path.is_file():
        raise InputError("there is no such file.", str(path), "Check the path.")
    if path.stat().st_size == 0:
        raise InputError("the file is empty.", str(path), "Copy or export it again.")
    try:
        header = _header(path)
        shape = tuple(int(n) for n in header.get_data_shape())
        image = Stored(shape, np.asarray(header.get_best_affine(), np.float64), ArrayProxy(str(path), header))
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


def _shape_3d(image: Stored, path: Path) -> tuple[int, int, int]:
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


def _read(image: Stored, path: Path) -> NDArray[np.float32]:
    shape = _shape_3d(image, path)
    _check_size(image, path)
    try:
        return np.asarray(image.voxels, dtype=np.float32).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise InputError(
            f"the data cannot be read to the end ({_short(error)}).", str(path), "The file is truncated: copy it again."
        ) from error


def _check_size(image: Stored, path: Path) -> None:
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


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
