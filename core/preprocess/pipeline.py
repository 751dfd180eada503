"""The whole chain, with a record of every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from core.preprocess.scans import case_id_of, read_scan, spacing_of
from core.preprocess.steps import align, correct_bias, denoise, edge_notes, extract_brain, load_template, resample_brain
from core.volume import (
    FULL,
    GRIDS,
    HALF,
    Grid,
    Volume,
    block_mean,
    normalise_percentile,
)

VERSION = 1
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
    affine = clock.run("affine", lambda: align(brain, fixed, path, template))
    raw = clock.run("resampling", lambda: resample_brain(scan, mask, affine))
    notes += edge_notes(mask, spacing_of(scan.affine), affine @ scan.affine)
    data = clock.run("intensity", lambda: (normalise_percentile(raw), {"rule": "percentile"}))
    if grid != FULL:
        if grid != HALF:
            raise InputError(f"no way to make the grid {grid.name!r}.", "grid", f"Choose one of: {', '.join(GRIDS)}.")
        data = block_mean(data)
    volume = Volume(data, grid.affine, case_id_of(path), tuple(notes))
    return Preprocessed(volume, affine, tuple(clock.steps), brain_ml)


def brain_of(path: Path | str, *, threads: int = 2) -> Volume:
    """Run the steps before registration: the stripped brain in the space of the scan, background 0."""
    scan, _ = correct_bias(denoise(read_scan(path), threads=threads)[0], threads=threads)
    mask, _ = extract_brain(scan, path, threads=threads)
    return replace(scan, data=np.where(mask, scan.data, 0).astype(np.float32))


def _with_notes(scan: Volume) -> tuple[Volume, dict[str, object]]:
    shape, spacing = [int(n) for n in scan.data.shape], [round(float(s), 4) for s in spacing_of(scan.affine)]
    return scan, {"shape": shape, "spacing_mm": spacing, "notes": list(scan.notes)}
