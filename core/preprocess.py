"""From a raw T1w head to a skull-stripped brain on the atlas grid, in [-1, 1].

Steps: RAS orientation, non-local means, N4 bias correction, brain extraction, 12-parameter affine to the
atlas, one interpolation, published intensity rule. Choices are measured in ``docs/decisions/registration.md``.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError
from core.volume import (
    FULL,
    GRIDS,
    HALF,
    PUBLISHED_SHAPE,
    SUFFIXES,
    Grid,
    Volume,
    block_mean,
    load,
    load_on_grid,
    normalise_percentile,
    resample,
)
from core.volume import template as embedded_template

if TYPE_CHECKING:
    from deepbet.bet import BrainExtraction

VERSION = 1
NRRD_SUFFIXES = (".nrrd", ".nhdr")
SCAN_SUFFIXES = SUFFIXES + NRRD_SUFFIXES
COMPANIONS = (".json", ".tsv", ".csv", ".txt", ".md", ".html", ".bval", ".bvec")  # BIDS sidecars and notes
MIN_VOXELS, MAX_SPACING = 64, 5.0
BRAIN_ML = (500.0, 2500.0)
MIN_MATCH = 0.5  # correlation with the atlas at 2 mm: 0.86 for a right answer, at most 0.31 for flipped axes
MAX_TURN = 60.0  # degrees; nobody lies so in a scanner, and the mirror of a swapped header fits at 90°
CLIP_NOTE = 0.001  # fraction of the brain outside the grid from which it is worth a note
EDGE_NOTE_MM2 = 100.0  # area of brain on a face of the scan from which it is worth a note
NLM_BETA = 0.5  # best of those compared at noise of 3 to 15 % of white matter
NLM_SLAB = 32  # planes; fixed, so that the number of threads cannot change the rounding
GREEDY_METRIC, GREEDY_ITERATIONS = (
    "NCC 4x4x4",
    "100x50x0",
)  # voxels; levels of 4 and 2 mm, the one of 1 mm gains nothing
_STDOUT_LOCK = threading.Lock()
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_T = TypeVar("_T")


@dataclass(frozen=True)
class Step:
    """One step of the preprocessing, as it was run.

    Parameters
    ----------
    name : str
        orientation, denoising, bias, brain, affine, resampling or intensity.
    parameters : dict
        Settings and measured values, JSON-able.
    seconds : float
        Wall time.
    """

    name: str
    parameters: dict[str, object]
    seconds: float


@dataclass(frozen=True)
class Preprocessed:
    """An atlas-space brain and how it was made.

    Parameters
    ----------
    volume : Volume
        On the grid asked for, in [-1, 1], background exactly -1; ``notes`` holds warnings.
    affine : ndarray, shape (4, 4)
        World mm of the input to world mm of the atlas.
    steps : tuple of Step
        In the order run.
    brain_ml : float
        Volume of the extracted brain in the input scan.
    """

    volume: Volume
    affine: NDArray[np.float64]
    steps: tuple[Step, ...]
    brain_ml: float

    def provenance(self) -> dict[str, object]:
        """Return everything but the voxels as a JSON-able dict."""
        return {
            "version": VERSION,
            "case_id": self.volume.case_id,
            "shape": list(self.volume.data.shape),
            "affine": self.affine.tolist(),
            "brain_ml": self.brain_ml,
            "notes": list(self.volume.notes),
            "steps": [asdict(step) for step in self.steps],
            "packages": {name: version(name) for name in ("SimpleITK", "picsl_greedy", "deepbet", "scipy", "torch")},
        }


@dataclass
class _Clock:
    steps: list[Step] = field(default_factory=list)

    def run(self, name: str, work: Callable[[], tuple[_T, dict[str, object]]]) -> _T:
        start = time.perf_counter()
        result, parameters = work()
        self.steps.append(Step(name, parameters, time.perf_counter() - start))
        return result


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
    spacing = _spacing(volume.affine)
    if min(volume.data.shape) < MIN_VOXELS or spacing.max() > MAX_SPACING:
        raise InputError(
            f"{_times(volume.data.shape)} voxels of {_times(spacing)} mm are not a 3D T1w head; expected at least "
            f"{MIN_VOXELS} voxels along each axis and at most {MAX_SPACING:g} mm.",
            str(path),
            "Give the 3D T1w scan (such as MPRAGE), not a localiser or a 2D series.",
        )
    return volume


def preprocess(path: Path | str, grid: Grid, *, template: Path | None = None, threads: int = 2) -> Preprocessed:
    """Bring a raw T1w head to the atlas.

    Parameters
    ----------
    path : path
        NIfTI, MGH or NRRD file, or DICOM series folder.
    grid : Grid
        The half grid is made from the full one by averaging 2x2x2 blocks.
    template : path, optional
        Skull-stripped T1w atlas (such as SRI24) instead of the embedded one; see `load_template`.
    threads : int
        CPU threads.

    Returns
    -------
    Preprocessed
        The same input, settings and packages give the same voxels.

    Raises
    ------
    InputError
        As `read_scan` and `load_template`; no plausible brain; a brain that does not match the atlas.
    """
    path, clock = Path(path), _Clock()
    fixed = load_template(template)
    scan = clock.run("orientation", lambda: _with_notes(read_scan(path)))
    notes = list(scan.notes)
    scan = clock.run("denoising", lambda: denoise(scan, threads=threads))
    scan = clock.run("bias", lambda: correct_bias(scan, threads=threads))
    mask = clock.run("brain", lambda: extract_brain(scan, path, threads=threads))
    brain_ml = float(clock.steps[-1].parameters["ml"])  # type: ignore[arg-type]
    brain = replace(scan, data=np.where(mask, scan.data, 0).astype(np.float32))
    affine = clock.run("affine", lambda: _align(brain, fixed, path, template))
    raw = clock.run("resampling", lambda: _resample_brain(scan, mask, affine))
    notes += _edge_notes(mask, _spacing(scan.affine), affine @ scan.affine)
    data = clock.run("intensity", lambda: (normalise_percentile(raw), {"rule": "percentile"}))
    if grid != FULL:
        if grid != HALF:
            raise InputError(f"no way to make the grid {grid.name!r}.", "grid", f"Choose one of: {', '.join(GRIDS)}.")
        data = block_mean(data)
    volume = Volume(data, grid.affine, case_id_of(path), tuple(notes))
    return Preprocessed(volume, affine, tuple(clock.steps), brain_ml)


def denoise(scan: Volume, *, threads: int) -> tuple[Volume, dict[str, object]]:
    """Remove noise by non-local means: 3x3x3 patches, 26 neighbours, strength from the measured noise.

    Returns
    -------
    Volume, dict
        The scan, non-negative; the settings and the estimated noise.

    References
    ----------
    Coupé et al., IEEE Trans. Med. Imaging 27 (2008), doi:10.1109/TMI.2007.906087.
    """
    data = np.maximum(scan.data - min(float(np.quantile(scan.data[::2, ::2, ::2], 0.01)), 0.0), 0)
    head = _foreground(data)
    box = _bounding_box(head, margin=4)
    sigma = _noise_sigma(data[box], head[box])
    if sigma > 0:
        data[box] = _non_local_means(data[box], sigma, threads)
    settings = {"method": "non-local means", "patch": 3, "search": 3, "beta": NLM_BETA, "sigma": sigma}
    return replace(scan, data=data), settings


def correct_bias(scan: Volume, *, threads: int) -> tuple[Volume, dict[str, object]]:
    """Divide by the smooth bias field that N4 finds on a copy of about 4 mm.

    Returns
    -------
    Volume, dict
        The scan; the settings and the spread (maximum / minimum) of the field over the head.

    References
    ----------
    Tustison et al., IEEE Trans. Med. Imaging 29 (2010), doi:10.1109/TMI.2010.2046908.
    """
    shrink = [max(1, min(4, round(4 / s))) for s in _spacing(scan.affine)]
    head = _foreground(scan.data)
    image, mask = to_sitk(scan), to_sitk(replace(scan, data=head.astype(np.uint8)))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(threads)
    n4.SetMaximumNumberOfIterations([50, 50, 50, 50])
    n4.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T  # (x, y, z)
    low, high = (float(v) for v in np.quantile(log_field[head], [0.01, 0.99]))
    data = (scan.data / np.exp(log_field)).astype(np.float32)
    return replace(scan, data=data), {"method": "N4", "shrink": shrink, "spread": float(np.exp(high - low))}


def extract_brain(scan: Volume, path: Path | str, *, threads: int) -> tuple[NDArray[np.bool_], dict[str, object]]:
    """Find the brain with deepbet.

    Returns
    -------
    ndarray of bool, dict
        Mask, shape of the scan, largest component, holes filled; the settings and the volume ``ml``.

    Raises
    ------
    InputError
        When no brain, or one outside 500 to 2500 mL, is found.

    References
    ----------
    Fisch et al., Comput. Biol. Med. 179 (2024), doi:10.1016/j.compbiomed.2024.108845.
    """
    remedy = "Check that it is a T1w head with the whole brain in view, and that its header gives the right axes."
    extraction = _deepbet()
    with _torch_threads(threads):
        try:
            mask = extraction.postprocess(extraction.run_model(scan.data.copy()) > 0.5).astype(bool)
        except (AssertionError, ValueError, IndexError, RuntimeError) as error:  # deepbet's ways to find nothing
            raise InputError("no brain was found.", str(path), remedy) from error
    ml = float(mask.sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000)
    if not BRAIN_ML[0] <= ml <= BRAIN_ML[1]:
        raise InputError(
            f"no plausible brain was found: {ml:.0f} mL, expected {BRAIN_ML[0]:g} to {BRAIN_ML[1]:g} mL.",
            str(path),
            remedy,
        )
    return mask, {"method": "deepbet", "ml": ml}


def register(brain: Volume, fixed: Volume) -> NDArray[np.float64]:
    """Find the 12-parameter affine that brings a stripped brain onto a stripped atlas.

    Parameters
    ----------
    brain, fixed : Volume
        Background is the minimum of each.

    Returns
    -------
    ndarray, shape (4, 4)
        World mm of ``brain`` to world mm of ``fixed``.

    References
    ----------
    Yushkevich et al., greedy: https://github.com/pyushkevich/greedy
    """
    from picsl_greedy import Greedy3D

    moving = replace(brain, data=brain.data - brain.data.min())
    target = replace(fixed, data=fixed.data - fixed.data.min())
    start = np.eye(4)
    start[:3, 3] = _brain_centre(moving) - _brain_centre(fixed)
    # The start is put in the header: greedy takes no transform from memory as initial value.
    moving = replace(moving, affine=np.linalg.inv(start) @ moving.affine)
    greedy = Greedy3D()
    with _quiet_stdout():
        greedy.execute(
            f"-i fixed moving -a -dof 12 -ia-identity -m {GREEDY_METRIC} -n {GREEDY_ITERATIONS} -jitter 0 -seed 1"
            " -threads 1 -o found -V 0",  # more threads sum in another order each time: 1e-5 mm of noise
            out=io.StringIO(),
            fixed=to_sitk(target),
            moving=to_sitk(moving),
            found=None,
        )
    return np.asarray(np.linalg.inv(start @ np.asarray(greedy["found"], dtype=np.float64)))


def load_template(path: Path | None) -> Volume:
    """Return the atlas on the full grid in [-1, 1].

    Parameters
    ----------
    path : path or None
        None for the embedded atlas. A file of the published or the full shape is taken voxel by voxel;
        any other is resampled so that the middle of its brain's bounding box is the middle of the grid.

    Raises
    ------
    InputError
        As `core.volume.load`; a template that is not skull-stripped.
    """
    if path is None:
        return embedded_template(FULL)
    raw = load(path)
    inside = raw.data > raw.data.min()
    if inside.mean() > 0.6:
        raise InputError(
            f"{inside.mean():.0%} of the voxels are brighter than the background: not skull-stripped.",
            str(path),
            "Give the brain-only version of the template, background constant.",
        )
    if raw.data.shape in (FULL.shape, HALF.shape, PUBLISHED_SHAPE):
        return load_on_grid(path, FULL, rule="percentile")
    ends = np.array([[part.start, part.stop - 1] for part in _bounding_box(inside, margin=0)])
    middle = raw.affine[:3, :3] @ ends.mean(axis=1) + raw.affine[:3, 3]
    centred = raw.affine.copy()
    centred[:3, 3] += (FULL.affine @ np.append((np.array(FULL.shape) - 1) / 2, 1))[:3] - middle
    on_grid = resample(replace(raw, data=raw.data - raw.data.min(), affine=centred), FULL.shape, FULL.affine)
    return replace(on_grid, data=normalise_percentile(on_grid.data))


def to_sitk(volume: Volume) -> sitk.Image:
    """Convert a volume in RAS world coordinates to a SimpleITK image in LPS."""
    affine = _LPS @ volume.affine
    spacing = _spacing(affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))  # (z, y, x)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def brain_of(path: Path | str, *, threads: int = 2) -> Volume:
    """Run the steps before registration: the stripped brain in the space of the scan, background 0."""
    scan, _ = correct_bias(denoise(read_scan(path), threads=threads)[0], threads=threads)
    mask, _ = extract_brain(scan, path, threads=threads)
    return replace(scan, data=np.where(mask, scan.data, 0).astype(np.float32))


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


def _with_notes(scan: Volume) -> tuple[Volume, dict[str, object]]:
    shape, spacing = [int(n) for n in scan.data.shape], [round(float(s), 4) for s in _spacing(scan.affine)]
    return scan, {"shape": shape, "spacing_mm": spacing, "notes": list(scan.notes)}


def _spacing(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _times(numbers: Sequence[float] | NDArray[np.float64]) -> str:
    return "×".join(f"{n:.3g}" for n in numbers)


def _foreground(data: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Voxels above Otsu's threshold, found on every second voxel; the brightest 0.5 % (fat, vessels) are clipped."""
    sample = np.minimum(data[::2, ::2, ::2], np.quantile(data[::2, ::2, ::2], 0.995))
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(np.ascontiguousarray(sample)))
    return np.asarray(data > otsu.GetThreshold())


def _bounding_box(mask: NDArray[np.bool_], *, margin: int) -> tuple[slice, ...]:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, mask.shape, strict=True))


def _noise_sigma(data: NDArray[np.float32], head: NDArray[np.bool_]) -> float:
    """Noise from the median of the pseudo-residuals (Coupé et al. 2008), which anatomy inflates little."""
    kernel = np.zeros((3, 3, 3), dtype=np.float32)
    kernel[1, 1, ::2] = kernel[1, ::2, 1] = kernel[::2, 1, 1] = -1 / 6
    kernel[1, 1, 1] = 1
    residual = np.abs(ndimage.convolve(data, kernel)[head])
    return float(np.sqrt(6 / 7) * 1.4826 * np.median(residual))


def _non_local_means(data: NDArray[np.float32], sigma: float, threads: int) -> NDArray[np.float32]:
    padded = np.pad(data, 3, mode="edge")

    def slab(start: int) -> NDArray[np.float32]:
        return _nlm_slab(padded[start : start + NLM_SLAB + 6], sigma)  # the last slab is cut by the slice

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return np.concatenate(list(pool.map(slab, range(0, data.shape[0], NLM_SLAB))))


def _nlm_slab(padded: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Non-local means of the inner part of a slab that carries 3 extra voxels on every side."""
    around = padded[1:-1, 1:-1, 1:-1]  # one voxel more than the patches need
    total, weights = around.copy(), np.ones_like(around)
    size = around.shape
    for shift in np.ndindex(3, 3, 3):
        if shift == (1, 1, 1):
            continue
        other = padded[tuple(slice(s, s + n) for s, n in zip(shift, size, strict=True))]
        distance = ndimage.uniform_filter((around - other) ** 2, 3)
        weight = np.exp(np.maximum(distance - 2 * sigma**2, 0) / np.float32(-2 * NLM_BETA * sigma**2))
        total += weight * other
        weights += weight
    return np.asarray((total / weights)[2:-2, 2:-2, 2:-2])


@lru_cache(maxsize=1)
def _deepbet() -> BrainExtraction:
    from deepbet.bet import BrainExtraction  # imports torch and more: only when a brain is extracted

    return BrainExtraction(no_gpu=True)


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send what C code prints to stderr; stdout may carry a summary in JSON.

    greedy's optimiser prints in spite of ``-V 0``. The descriptor belongs to the whole process, hence the lock.
    """
    with _STDOUT_LOCK:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            if sys.platform != "win32":
                ctypes.CDLL(None).fflush(None)  # or the text would come out after the restoration
            os.dup2(kept, 1)
            os.close(kept)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _brain_centre(volume: Volume) -> NDArray[np.float64]:
    index = np.argwhere(volume.data > volume.data.min()).mean(axis=0)
    return np.asarray(volume.affine[:3, :3] @ index + volume.affine[:3, 3])


def _align(
    brain: Volume, fixed: Volume, path: Path, template: Path | None
) -> tuple[NDArray[np.float64], dict[str, object]]:
    affine = register(brain, fixed)
    moved = resample(replace(brain, affine=affine @ brain.affine), fixed.data.shape, fixed.affine).data
    scaled = np.minimum(moved, np.quantile(moved, 0.95))
    union = (fixed.data > fixed.data.min()) | (moved > 0)
    smooth = [ndimage.gaussian_filter(data, 2)[union] for data in (fixed.data, scaled)]  # gyri differ, lobes do not
    match = float(np.corrcoef(*smooth)[0, 1])
    if not match >= MIN_MATCH or np.linalg.det(affine[:3, :3]) <= 0:
        raise InputError(
            f"the brain does not match the atlas after registration (correlation {match:.2f}, expected at least "
            f"{MIN_MATCH}).",
            str(path),
            "Check the orientation in its header, and that it is a T1w scan.",
        )
    left, _, right = np.linalg.svd(affine[:3, :3])
    turn = float(np.rad2deg(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))
    if turn > MAX_TURN:
        raise InputError(
            f"the head is turned by {turn:.0f}° from what its header says, so left and right cannot be trusted.",
            str(path),
            "Repair the orientation in its header.",
        )
    scales = [round(float(s), 4) for s in np.linalg.svd(affine[:3, :3], compute_uv=False)]
    named: dict[str, object] = {"template": "embedded (ICBM152 2009a symmetric × 0.9)"}
    if template is not None:
        named = {"template": template.name, "template_sha256": hashlib.sha256(template.read_bytes()).hexdigest()}
    return affine, named | {
        "tool": "greedy",
        "metric": GREEDY_METRIC,
        "iterations": GREEDY_ITERATIONS,
        "parameters": 12,
        "correlation": match,
        "scales": scales,
    }


def _resample_brain(
    scan: Volume, mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], dict[str, object]]:
    """Interpolate the head and cut it by the mask afterwards, so that the cortex is not mixed with background."""
    box = _bounding_box(mask, margin=6)
    data, near = scan.data[box], mask[box]
    world = affine @ scan.affine
    # Scans finer than the grid are smoothed to its resolution first, or they would alias.
    sigma = 0.5 * np.maximum(FULL.spacing / _spacing(world) - 1, 0)
    data = ndimage.gaussian_filter(data, np.where(sigma > 0.1, sigma, 0))
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    head = resample(Volume(data, world @ start), FULL.shape, FULL.affine, order=3).data
    inside = resample(Volume(near.astype(np.float32), world @ start), FULL.shape, FULL.affine).data > 0.5
    # A tiny positive floor keeps dark CSF apart from the background, so that data > -1 is the brain mask.
    floor = 1e-3 * float(head[inside].max()) if inside.any() else 0.0
    return np.where(inside, np.maximum(head, floor), 0).astype(np.float32), {"interpolation": "cubic B-spline"}


def _edge_notes(mask: NDArray[np.bool_], spacing: NDArray[np.float64], to_atlas: NDArray[np.float64]) -> list[str]:
    notes = []
    to_grid = np.linalg.inv(FULL.affine) @ to_atlas
    index = np.argwhere(mask) @ to_grid[:3, :3].T + to_grid[:3, 3]
    outside = ((index < -0.5) | (index > np.array(FULL.shape) - 0.5)).any(axis=1).mean()
    if outside > CLIP_NOTE:
        notes.append(f"{outside:.1%} of the brain lies outside the atlas grid and is cut off")
    for axis, names in enumerate((("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))):
        area = float(np.prod(np.delete(spacing, axis)))
        for name, plane in zip(names, (0, -1), strict=True):
            if mask.take(plane, axis).sum() * area > EDGE_NOTE_MM2:
                notes.append(f"the brain touches the {name} edge of the scan: part of it may be missing")
    return notes
