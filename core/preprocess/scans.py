"""Reading raw scans: NIfTI, MGH, NRRD files and DICOM series folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from core.errors import InputError
from core.volume import (
    SUFFIXES,
    Volume,
    load,
)

NRRD_SUFFIXES = (".nrrd", ".nhdr")
SCAN_SUFFIXES = SUFFIXES + NRRD_SUFFIXES
COMPANIONS = (".json", ".tsv", ".csv", ".txt", ".md", ".html", ".bval", ".bvec")  # BIDS sidecars and notes
MIN_VOXELS, MAX_SPACING = 64, 5.0
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
        volume = _from_sitk(_read_dicom(path), path)
    elif _suffix(_known(path)) in NRRD_SUFFIXES:
        volume = _from_sitk(_read_sitk(lambda: sitk.ReadImage(str(path)), path), path)
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
        remedy = "Give the folder of the series." if _is_dicom(path) else f"Give {_kinds()}."
        what = "one DICOM file is not a scan." if _is_dicom(path) else f"unknown kind of file {path.suffix!r}."
        raise InputError(what, str(path), remedy)
    return path


def _is_dicom(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def _scans_in(folder: Path) -> list[Path]:
    scans: list[Path] = []
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.upper() != "DICOMDIR")
    files = [p for p in entries if p.is_file() and not p.name.lower().endswith(COMPANIONS)]
    dicom = [p for p in files if not _suffix(p) and _is_dicom(p)]
    others = [p for p in files if p not in set(dicom)]
    if dicom and any(_suffix(p) for p in others):
        raise InputError("images and DICOM files lie in one folder.", str(folder), "Put the DICOM series in its own.")
    scans += [folder] if dicom else []
    scans += others
    for inner in (p for p in entries if p.is_dir()):
        scans += _scans_in(inner)
    return scans


def _read_dicom(folder: Path) -> sitk.Image:
    if not any(_is_dicom(p) for p in folder.iterdir()):
        raise InputError(
            "the folder holds no DICOM files.", str(folder), "Give the folder that directly holds the series."
        )
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series}
        listed = "; ".join(f"{uid} ({len(names)} files, first {Path(names[0]).name})" for uid, names in files.items())
        what = f"the folder holds {len(series)} DICOM series: {listed}." if series else "no readable DICOM series."
        raise InputError(what, str(folder), "Put the files of the T1w series alone in a folder and give that folder.")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = _read_sitk(reader.Execute, folder)
    key, count = "0020|0032", len(reader.GetFileNames())
    if count > 2 and all(reader.HasMetaDataKey(i, key) for i in range(count)):
        places = np.array([[float(v) for v in reader.GetMetaData(i, key).split("\\")] for i in range(count)])
        gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
            raise InputError(
                f"the slices are not evenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm apart, {count} files).",
                str(folder),
                "Slices are missing or doubled: export the series again.",
            )
    return image


def _read_sitk(read: Callable[[], sitk.Image], path: Path) -> sitk.Image:
    try:
        image = read()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-160:]
        raise InputError(f"it cannot be read ({reason}).", str(path), "Export it again, or convert it.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"expected one 3D volume, found size {image.GetSize()} with {image.GetNumberOfComponentsPerPixel()} values "
            "a voxel.",
            str(path),
            "Save one volume per file.",
        )
    return image


def _from_sitk(image: sitk.Image, path: Path) -> Volume:
    ras = sitk.DICOMOrient(image, "RAS")
    data = np.ascontiguousarray(sitk.GetArrayFromImage(ras).T, dtype=np.float32)  # (x, y, z)
    if not np.isfinite(data).all() or data.min() == data.max():
        raise InputError("the voxels are NaN, Inf or all equal.", str(path), "Export the scan again.")
    affine = np.eye(4)
    affine[:3, :3] = np.array(ras.GetDirection()).reshape(3, 3) * np.array(ras.GetSpacing())
    affine[:3, 3] = ras.GetOrigin()
    codes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    notes = () if codes == "RAS" else (f"axes reordered from {codes} to RAS",)
    return Volume(data, _LPS @ affine, case_id_of(path), notes)


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel edges in mm of a voxel-to-world matrix."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def times(numbers: Sequence[float] | NDArray[np.float64]) -> str:
    """Join numbers as 1×2×3."""
    return "×".join(f"{n:.3g}" for n in numbers)
