"""Reading raw scans: NIfTI, MGH, NRRD files and DICOM series folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from core.errors import InputError
from core.preprocess.dicom import check_promise, is_dicom, read_series, read_with
from core.volume import SUFFIXES, Volume, is_place, load

NRRD_SUFFIXES = (".nrrd", ".nhdr")
SCAN_SUFFIXES = SUFFIXES + NRRD_SUFFIXES
COMPANIONS = (".json", ".tsv", ".csv", ".txt", ".md", ".html", ".bval", ".bvec")  # BIDS sidecars and notes
MIN_VOXELS, MAX_SPACING = 64, 5.0
NRRD_HEADER = 2**16  # bytes in which a header must end
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def case_id_of(path: Path | str) -> str:
    """Return the name of a scan: the file name without image suffix, or the name of a DICOM folder."""
    path = Path(path)
    suffix = _suffix(path)
    return path.name[: -len(suffix)] if suffix else path.resolve().name


def find_scans(paths: Sequence[Path]) -> list[Path]:
    """List the scans in files, folders of images and DICOM series folders, searched in depth.

    Parameters
    ----------
    paths : sequence of path
        A folder that directly holds DICOM files is one scan. Hidden files and the sidecars in
        ``COMPANIONS`` are no scans and are passed over; every other file of a folder is listed, and one of
        unknown kind is explained when it is read, so that the others go on.

    Returns
    -------
    list of path
        Sorted inside each given path, each scan once.

    Raises
    ------
    InputError
        A missing path; a given file of unknown kind; a folder with both images and DICOM files; no scan at all.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise InputError("there is no such file or folder.", str(path), "Check the path.")
        found.update(dict.fromkeys(_scans_in(path) if path.is_dir() else [_known(path)]))
    if not found:
        raise InputError("no scan was found.", ", ".join(map(str, paths)), f"Give {_kinds()}.")
    return list(found)


def read_scan(path: Path | str) -> Volume:
    """Read a NIfTI, MGH or NRRD file or a DICOM series folder as float32 in RAS+ axis order.

    Raises
    ------
    InputError
        Missing or unreadable input, unknown suffix, no or several DICOM series, missing slices,
        not 3D, NaN, constant, under 64 voxels along an axis, or voxels over 5 mm.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file or folder.", str(path), "Check the path.")
    if path.is_dir():
        volume = _from_sitk(_one_volume(read_series(path), path), path)
    elif _suffix(_known(path)) in NRRD_SUFFIXES:
        volume = _from_sitk(_read_nrrd(path), path)
    else:
        volume = replace(load(path), case_id=case_id_of(path))
    spacing = spacing_of(volume.affine)
    if min(volume.data.shape) < MIN_VOXELS or spacing.max() > MAX_SPACING:
        raise InputError(
            f"{times(volume.data.shape)} voxels of {times(spacing)} mm are not a 3D T1w head; expected at least "
            f"{MIN_VOXELS} voxels along each axis and at most {MAX_SPACING:g} mm.",
            str(path),
            "Give the 3D T1w scan (such as MPRAGE), not a localiser or a 2D series.",
        )
    return volume


def to_sitk(volume: Volume) -> sitk.Image:
    """Convert a volume in RAS world coordinates to a SimpleITK image in LPS."""
    affine = _LPS @ volume.affine
    spacing = spacing_of(affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))  # (z, y, x)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _suffix(path: Path) -> str:
    return next((s for s in SCAN_SUFFIXES if path.name.lower().endswith(s)), "")


def _kinds() -> str:
    return f"a file ending in {', '.join(SCAN_SUFFIXES)}, or a folder with one DICOM series"


def _known(path: Path) -> Path:
    if not _suffix(path):
        remedy = "Give the folder of the series." if is_dicom(path) else f"Give {_kinds()}."
        what = "one DICOM file is not a scan." if is_dicom(path) else f"unknown kind of file {path.suffix!r}."
        raise InputError(what, str(path), remedy)
    return path


def _scans_in(folder: Path) -> list[Path]:
    scans: list[Path] = []
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.upper() != "DICOMDIR")
    files = [p for p in entries if p.is_file() and not p.name.lower().endswith(COMPANIONS)]
    dicom = [p for p in files if not _suffix(p) and is_dicom(p)]
    others = [p for p in files if p not in set(dicom)]
    if dicom and any(_suffix(p) for p in others):
        raise InputError("images and DICOM files lie in one folder.", str(folder), "Put the DICOM series in its own.")
    scans += [folder] if dicom else []
    scans += others
    for inner in (p for p in entries if p.is_dir()):
        scans += _scans_in(inner)
    return scans


def _read_nrrd(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    held = path.stat().st_size + _data_file_bytes(path)
    read_with(reader.ReadImageInformation, path)
    check_promise(reader, 1, held, path)
    return _one_volume(read_with(reader.Execute, path), path)


def _data_file_bytes(path: Path) -> int:
    """Return the size of the file that holds the voxels, 0 when the header's own does.

    Raises
    ------
    InputError
        A header that does not end, or voxels anywhere else than in one file of the same folder.
    """
    with path.open("rb") as file:
        text = file.read(NRRD_HEADER).decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > NRRD_HEADER // 2 and "\n\n" not in text:
        raise InputError("the header does not end.", str(path), "Export it again, or convert it.")
    names = re.findall(r"^ *data ?file *: *(.*)$", text, re.IGNORECASE | re.MULTILINE)
    data = [path.parent / name.strip() for name in names]
    if any(not file.is_file() or file.resolve().parent != path.parent.resolve() for file in data):
        what = "the voxels are said to lie elsewhere than in one file beside the header."
        raise InputError(what, str(path), "Save header and voxels in one .nrrd file.")
    return sum(file.stat().st_size for file in data)


def _one_volume(image: sitk.Image, path: Path) -> sitk.Image:
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"expected one 3D volume, found size {image.GetSize()} with {image.GetNumberOfComponentsPerPixel()} values "
            "a voxel.",
            str(path),
            "Save one volume per file.",
        )
    return image


def _from_sitk(image: sitk.Image, path: Path) -> Volume:
    ras = read_with(lambda: sitk.DICOMOrient(image, "RAS"), path)
    data = np.ascontiguousarray(sitk.GetArrayFromImage(ras).T, dtype=np.float32)  # (x, y, z)
    if not np.isfinite(data).all() or data.min() == data.max():
        raise InputError("the voxels are NaN, Inf or all equal.", str(path), "Export the scan again.")
    affine = np.eye(4)
    affine[:3, :3] = np.array(ras.GetDirection()).reshape(3, 3) * np.array(ras.GetSpacing())
    affine[:3, 3] = ras.GetOrigin()
    if not is_place(affine):
        raise InputError("the axes are singular, not finite or absurd.", str(path), "Export the scan again.")
    codes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    notes = () if codes == "RAS" else (f"axes reordered from {codes} to RAS",)
    return Volume(data, _LPS @ affine, case_id_of(path), notes)


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel edges in mm of a voxel-to-world matrix."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def times(numbers: Sequence[float] | NDArray[np.float64]) -> str:
    """Join numbers as 1×2×3."""
    return "×".join(f"{n:.3g}" for n in numbers)
