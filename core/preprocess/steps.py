"""The steps of preprocessing, each a function of a volume."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError
from core.preprocess.scans import spacing_of, to_sitk
from core.volume import (
    FULL,
    HALF,
    PUBLISHED_SHAPE,
    Volume,
    load,
    load_on_grid,
    normalise_percentile,
    resample,
)
from core.volume import template as embedded_template

if TYPE_CHECKING:
    from deepbet.bet import BrainExtraction

BRAIN_ML = (500.0, 2500.0)
MIN_MATCH = 0.5  # correlation with the atlas at 2 mm: 0.86 for a right answer, at most 0.31 for flipped axes
MAX_TURN = 60.0  # degrees; nobody lies so in a scanner, and the mirror of a swapped header fits at 90°
CLIP_NOTE = 0.001  # fraction of the brain outside the grid from which it is worth a note
EDGE_NOTE_MM2 = 100.0  # area of brain on a face of the scan from which it is worth a note
NLM_BETA = 0.5  # best of those compared, see registration.md
NLM_SLAB = 32  # planes; fixed, so that the number of threads cannot change the rounding
GREEDY_METRIC, GREEDY_ITERATIONS = (
    "NCC 4x4x4",
    "100x50x0",
)  # voxels; levels of 4 and 2 mm, the one of 1 mm gains nothing
_STDOUT_LOCK = threading.Lock()


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
    shrink = [max(1, min(4, round(4 / s))) for s in spacing_of(scan.affine)]
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
            " -threads 1 -o found -V 0",  # more threads sum in another order each time: 1e-4 mm of noise
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
    """Drop what C code prints: greedy's optimiser tells in spite of ``-V 0`` how it stopped, an alarm for nothing.

    Whether the answer is right is checked afterwards. The descriptors belong to the whole process, hence the lock.
    """
    with _STDOUT_LOCK, open(os.devnull, "w") as null:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(null.fileno(), 1)
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


def align(
    brain: Volume, fixed: Volume, path: Path, template: Path | None
) -> tuple[NDArray[np.float64], dict[str, object]]:
    """Register a brain to the atlas and refuse an answer that cannot be right; see `register`."""
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


def resample_brain(
    scan: Volume, mask: NDArray[np.bool_], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], dict[str, object]]:
    """Interpolate the head and cut it by the mask afterwards, so that the cortex is not mixed with background."""
    box = _bounding_box(mask, margin=6)
    data, near = scan.data[box], mask[box]
    world = affine @ scan.affine
    # Scans finer than the grid are smoothed to its resolution first, or they would alias.
    sigma = 0.5 * np.maximum(FULL.spacing / spacing_of(world) - 1, 0)
    data = ndimage.gaussian_filter(data, np.where(sigma > 0.1, sigma, 0))
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    head = resample(Volume(data, world @ start), FULL.shape, FULL.affine, order=3).data
    inside = resample(Volume(near.astype(np.float32), world @ start), FULL.shape, FULL.affine).data > 0.5
    # A tiny positive floor keeps dark CSF apart from the background, so that data > -1 is the brain mask.
    floor = 1e-3 * float(head[inside].max()) if inside.any() else 0.0
    return np.where(inside, np.maximum(head, floor), 0).astype(np.float32), {"interpolation": "cubic B-spline"}


def edge_notes(mask: NDArray[np.bool_], spacing: NDArray[np.float64], to_atlas: NDArray[np.float64]) -> list[str]:
    """Say in words when the atlas grid or the scan cuts the brain."""
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
