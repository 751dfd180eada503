"""Many volume files at little cost: a few simulated brains, each file scaled a little differently by its header."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from core import simulate
from core.volume import Grid

SHIFTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))  # voxels; each brain is moved by these


def write_files(folder: Path, n: int, grid: Grid, *, brains: int = 5, seed: int = 0) -> list[Path]:
    """Write n NIfTI files of ``4 · brains`` distinct patterns in [-1, 1]; no two have the same intensities.

    The voxels of a pattern are compressed once and written behind headers of different scaling; reading a file costs
    what reading any other does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bodies = _patterns(grid, min(brains, n), seed)
    paths = []
    for index in range(n):
        scale = 1 - 0.1 * index / max(1, n - 1)
        image = nib.Nifti1Image(np.broadcast_to(np.float32(0), grid.shape), grid.affine)
        header = image.header
        header.set_data_dtype(np.float32)
        header.set_xyzt_units("mm", "sec")
        header.set_slope_inter(scale, scale - 1)  # keeps the background at -1
        header["magic"], header["vox_offset"] = b"n+1", 352
        path = folder / f"brain-{index:04d}.nii.gz"
        # Two members of a gzip file are read as one stream.
        path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + bodies[index % len(bodies)])
        paths.append(path)
    return paths


@lru_cache(maxsize=2)
def _patterns(grid: Grid, brains: int, seed: int) -> list[bytes]:
    """Compressed voxels of each pattern."""
    bodies = []
    for index in range(brains):
        data = simulate.simulate_case(grid, seed, index).volume.data
        for shift in SHIFTS:
            moved = np.roll(data, shift, axis=(0, 1, 2)).astype("<f4")
            bodies.append(gzip.compress(moved.tobytes(order="F"), compresslevel=1))
    return bodies
