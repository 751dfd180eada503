"""Make ``assets/deformation_model.safetensors``: how the brains of 14 people differ from the embedded template.

Usage, from the root of the repository (about 40 s a person on one core; registrations are kept in the work folder, so
a run that was stopped goes on):

    python -m benchmarks.fit_deformation --labels DIR --work DIR

DIR holds whole-head label maps (those published with SynthSeg). Each is aligned to the atlas grid, the template is
registered to it with a stationary velocity field, and the fields and their mirror images go through a principal
component analysis. To each registered field a gradient field is added that brings the volumes of all regions, which a
smooth registration of rendered labels only nears, to those of the person. The mean field is left out: it is how the
template differs from people, not how people differ.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy import ndimage

from core.segmentation import labelmaps
from core.segmentation.labelmaps import STRUCTURES, Person
from core.simulate import deformation
from core.simulate.warp import FILLING, atlas, exponential, growth_velocity
from core.volume import HALF, block_mean

Array = NDArray[np.float32]

COMPONENTS = 20
CORRECTIONS = 6  # rounds in which a field's regional volumes are brought to the person's
LARGEST_STEP = 0.3  # of a round, in log volume
EXPONENT = 6  # greedy's root is the field over 2 to this
# A second image beside the tissue contrast, in which every structure stands out from its neighbours.
TONES = {2: 0.5, 3: 0.5, 24: 0.5, 0: 0.5, 4: 0.0, 5: 0.0, 14: 0.0, 15: 0.0, 7: 0.9, 8: 0.7, 16: 0.8, 28: 0.2}
TONES |= {10: 1.0, 11: 0.9, 12: 0.9, 13: 0.2, 17: 1.0, 18: 0.2, 26: 0.2}


def main() -> None:
    """Register, fit, write, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder of whole-head label maps")
    parser.add_argument("--work", type=Path, required=True, help="folder for aligned maps and registrations")
    options = parser.parse_args()
    people = labelmaps.prepare(options.labels, options.work / "people")
    registered = fields(people, options.work / "velocities")
    wanted = np.stack([log_shares(voxels(person)) for person in people])
    corrected = with_volumes(registered, wanted, options.work / "corrected.npz")
    rows = samples(corrected)
    components, sd = principal_components(rows, COMPONENTS)
    rest = rows - rows.mean(axis=0)
    total = float((rest**2).sum())
    rest = rest - (rest @ components.T) @ components
    report = {
        "people": len(people),
        "explained": round(1 - float((rest**2).sum()) / total, 4),
        "left_out_rms_mm": left_out(rows),
    }
    print(json.dumps(report))
    write(components * sd[:, None], rest_of(rest, len(rows) - 1), report)


def voxels(person: Person) -> Array:
    """Return how many voxels of the person each label of the atlas has."""
    counts = np.bincount(labelmaps.id_of_code()[person.codes].ravel(), minlength=int(atlas().ids.max()) + 1)
    return counts[atlas().ids].astype(np.float32)


def log_shares(volumes: NDArray[Any]) -> Array:
    """Return the log of each label's share of the brain without its outer fluid; volumes in the order of the atlas."""
    return np.asarray(np.log(np.maximum(volumes, 1) / volumes[atlas().ids != 24].sum()), np.float32)


def with_volumes(velocities: Array, wanted: Array, cache: Path) -> Array:
    """Add to each field what makes regional volumes differ between the fields as they differ between the people.

    Parameters
    ----------
    velocities : ndarray, shape (people, 3, x, y, z)
        In mm on the half grid.
    wanted : ndarray, shape (people, labels)
        Log shares of the people; only their differences from the mean count.
    cache : path
        The result is kept here.
    """
    if cache.exists():
        with np.load(cache) as stored:
            return np.asarray(stored["velocities"])
    start = np.stack([reached(v) for v in velocities])
    target = wanted - wanted.mean(axis=0) + start.mean(axis=0)
    held = ~np.isin(atlas().ids, FILLING)
    corrected = []
    for velocity, shares, goal in zip(velocities, start, target, strict=True):
        growth, field = np.zeros(len(goal)), velocity
        for _ in range(CORRECTIONS):
            growth[held] += np.clip(goal - shares, -LARGEST_STEP, LARGEST_STEP)[held]
            field = velocity + growth_velocity(dict(zip(atlas().ids.tolist(), growth.tolist(), strict=True)))
            shares = reached(field)
        print(f"log volumes off by {np.abs(goal - shares)[held].mean():.3f} on average")
        corrected.append(field)
    np.savez(cache, velocities=np.stack(corrected))
    return np.stack(corrected)


def reached(velocity: Array) -> Array:
    """Return the log shares of the template's labels under a field."""
    return log_shares(atlas().shares @ exponential(velocity)[1].ravel())


def samples(velocities: Array) -> Array:
    """Return the fields on the model's grid and their mirror images, shape (2 people, values)."""
    coarse = np.stack([[block_mean(part) for part in velocity] for velocity in velocities])
    mirrored = coarse[:, :, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None, None]
    return np.concatenate([coarse, mirrored]).reshape(2 * len(velocities), -1)


def principal_components(rows: Array, count: int) -> tuple[Array, Array]:
    """Return orthonormal components (count, values) and the SD along each."""
    _, values, components = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    return components[:count], values[:count] / np.float32(np.sqrt(len(rows) - 1))


def left_out(rows: Array) -> dict[str, float]:
    """Return RMS length in mm of a person's difference from the mean of the others, and of what their model misses."""
    people = len(rows) // 2
    brain = np.broadcast_to(block_mean(atlas().brain.astype(np.float32)) > 0.5, (3, *deformation.SHAPE)).ravel()
    squares = []
    for k in range(people):
        others = np.delete(rows, (k, k + people), axis=0)
        components, _ = principal_components(others, COMPONENTS)
        difference = rows[k] - others.mean(axis=0)
        missed = difference - (difference @ components.T) @ components
        squares.append([3 * np.mean(part[brain] ** 2) for part in (difference, missed)])
    return dict(zip(("difference", "missed"), np.sqrt(np.mean(squares, axis=0)).round(3).tolist(), strict=True))


def rest_of(rest: Array, degrees: int) -> Array:
    """Return SD and smoothness (sigma of a Gaussian), both in mm, of what the components leave out."""
    fields = rest.reshape(-1, *deformation.SHAPE)
    brain = block_mean(atlas().brain.astype(np.float32)) > 0.5
    # White noise smoothed by a Gaussian has SD of the gradient = SD / (sqrt(2) sigma) along each axis.
    slopes = [np.gradient(fields, deformation.SPACING, axis=axis)[:, brain] for axis in (1, 2, 3)]
    sd, slope = np.std(fields[:, brain]), np.sqrt(np.mean(np.square(slopes)))
    return np.array([sd * np.sqrt(len(rest) / degrees), sd / (np.sqrt(2) * slope)], np.float32)


def write(fields: Array, rest: Array, report: dict[str, Any]) -> None:
    """Write the fields at one SD, in bytes with one scale each."""
    scale = np.abs(fields).max(axis=1) / 127
    bytes_ = np.rint(fields / scale[:, None]).astype(np.int8).reshape(-1, 3, *deformation.SHAPE)
    about = {"made_by": "benchmarks/fit_deformation.py", "report": json.dumps(report)}
    save_file({"components": bytes_, "scale": scale.astype(np.float32), "rest": rest}, deformation.WEIGHTS, about)
    print(f"{deformation.WEIGHTS.name}: {deformation.WEIGHTS.stat().st_size / 1e6:.2f} MB, rest {rest}")


def fields(people: list[Person], cache: Path) -> Array:
    """Return the velocity in mm from the template to each person on the half grid, shape (people, 3, x, y, z)."""
    cache.mkdir(parents=True, exist_ok=True)
    found = []
    for person in people:
        file = cache / f"{person.name}.npy"
        if not file.exists():
            np.save(file, register(person))
        found.append(np.load(file))
    return np.stack(found)


def register(person: Person) -> Array:
    """Return the velocity in mm whose exponential takes the template to a person, shape (3, x, y, z), half grid."""
    from picsl_greedy import Greedy3D

    template = labelmaps.template_person()
    images: dict[str, Any] = {"warp": None, "root": None}
    for name, one in (("fixed", template), ("moving", person)):
        images[f"{name}_tissue"] = _image(labelmaps.tissue_image(one.codes, one.depth))
        images[f"{name}_parts"] = _image(_parts_image(one))
    greedy = Greedy3D()
    greedy.execute(
        f"-i fixed_tissue moving_tissue -i fixed_parts moving_parts -m NCC 2x2x2 -n 60x50x40 -s 2vox 0.7vox -sv "
        f"-exp {EXPONENT} -threads 1 -seed 1 -V 0 -o warp -oroot root",
        out=io.StringIO(),
        err=io.StringIO(),
        **images,
    )
    root = sitk.GetArrayFromImage(greedy["root"])  # (z, y, x, 3)
    return np.asarray(root.transpose(3, 2, 1, 0) * 2**EXPONENT, np.float32)


def _parts_image(person: Person) -> Array:
    tones = np.full(labelmaps.N_CODES, 0.5, np.float32)
    for label, tone in TONES.items():
        tones[STRUCTURES.index(label)] = tone
    tones = np.where(np.arange(len(tones)) < labelmaps.FIRST_PARCEL, tones, np.float32(0.5))
    mirrored = labelmaps.mirror_of_code()
    left = {STRUCTURES.index(k) for k in labelmaps.LEFT}
    for code in left:
        tones[mirrored[code]] = tones[code]
    return np.asarray(ndimage.gaussian_filter(tones[person.codes], 0.6), np.float32)


def _image(data: Array) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(block_mean(data).T))  # (z, y, x)
    image.SetSpacing([HALF.spacing] * 3)
    return image


if __name__ == "__main__":
    main()
