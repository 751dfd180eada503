"""Whole-head label maps brought to the atlas grid: what the embedded segmentation network is trained on.

A map is merged to the classes of the published table, stripped of everything outside the brain, aligned to the atlas
by a 12-parameter affine, and its cortex is divided into Desikan–Killiany parcels: the atlas is registered deformably
and every cortical voxel takes the nearest parcel of its side. Registration is greedy's
(https://github.com/pyushkevich/greedy); the images that drive it are rendered from the labels.

Voxels are stored as one-byte *codes*: 0 background, 1 to 32 structures, then 34 left and 34 right parcels, and
`UNNAMED` for tissue inside the brain that belongs to no class (vessels, optic chiasm).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from core.errors import InputError
from core.volume import FULL, SUFFIXES, Volume, case_name, load_labels, resample, template

Codes = NDArray[np.uint8]

# Both lists are the order of the network's output channels: changing them makes trained weights useless.
LEFT = (2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 26, 28)
RIGHT = (41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
STRUCTURES = (0, *LEFT, *RIGHT, 14, 15, 16, 24)
PARCELS = tuple(k for k in range(1, 36) if k != 4)
CORTEX = (STRUCTURES.index(3), STRUCTURES.index(42))
CSF = STRUCTURES.index(24)
FIRST_PARCEL = len(STRUCTURES)
UNNAMED = FIRST_PARCEL + 2 * len(PARCELS)
N_CODES = UNNAMED + 1
NO_PARCEL = 255

# The published table of merged labels (Billot et al., SynthSeg); what is not named here or above is background.
MERGED = {25: 2, 57: 41, 136: 4, 137: 5, 163: 43, 164: 44}
UNNAMED_IDS = (30, 62, 72, 85)
DEPTH_UNIT = 0.25  # mm
CLOSING_MM = 7.0
# Intensity of each structure in the images that drive registration, as in the template: white matter, grey, fluid.
_TONES = {2: 0.85, 7: 0.82, 10: 0.76, 12: 0.74, 13: 0.82, 16: 0.78, 28: 0.8, 4: 0.3, 5: 0.35, 14: 0.3, 15: 0.3, 24: 0.3}


@dataclass(frozen=True)
class Person:
    """One anatomy on the full atlas grid.

    Parameters
    ----------
    name : str
        Name of the file it came from, "template" for the atlas itself.
    codes : ndarray, shape (144, 192, 144), uint8
        See the module's description.
    depth : ndarray, int8
        Signed distance in units of 0.25 mm outwards from the closed brain without its outer fluid.
    texture : ndarray or None
        A real T1w image of this anatomy in parts of white matter, where there is one.
    """

    name: str
    codes: Codes
    depth: NDArray[np.int8]
    texture: NDArray[np.float32] | None = None


def structure_of_code() -> NDArray[np.uint8]:
    """Return the structure channel of every code, shape (N_CODES,)."""
    table = np.zeros(N_CODES, np.uint8)
    table[:FIRST_PARCEL] = np.arange(FIRST_PARCEL)
    for side, channel in enumerate(CORTEX):
        table[FIRST_PARCEL + side * len(PARCELS) :][: len(PARCELS)] = channel
    return table


def parcel_of_code() -> NDArray[np.uint8]:
    """Return the parcel channel of every code, `NO_PARCEL` outside the cortex, shape (N_CODES,)."""
    table = np.full(N_CODES, NO_PARCEL, np.uint8)
    for side in range(2):
        table[FIRST_PARCEL + side * len(PARCELS) :][: len(PARCELS)] = np.arange(len(PARCELS))
    return table


def mirror_of_code() -> NDArray[np.uint8]:
    """Return the code of the same tissue on the other side, shape (N_CODES,)."""
    table = np.arange(N_CODES, dtype=np.uint8)
    pairs = [(STRUCTURES.index(a), STRUCTURES.index(b)) for a, b in zip(LEFT, RIGHT, strict=True)]
    pairs += [(FIRST_PARCEL + p, FIRST_PARCEL + len(PARCELS) + p) for p in range(len(PARCELS))]
    for left, right in pairs:
        table[left], table[right] = right, left
    return table


def id_of_code() -> NDArray[np.int32]:
    """Return the FreeSurfer id of every code, shape (N_CODES,)."""
    ids = [*STRUCTURES, *(1000 + k for k in PARCELS), *(2000 + k for k in PARCELS), 0]
    return np.array(ids, np.int32)


def encode(labels: NDArray[np.int32]) -> Codes:
    """Merge FreeSurfer ids as the published table says and return codes; unknown ids are background."""
    ids = id_of_code()
    table = np.zeros(max(int(labels.max()), int(ids.max())) + 1, np.uint8)
    table[ids[:-1]] = np.arange(N_CODES - 1)
    table[list(UNNAMED_IDS)] = UNNAMED
    for merged, kept in MERGED.items():
        table[merged] = table[kept]
    table[0] = 0
    return np.asarray(table[np.maximum(labels, 0)])


def signed_depth(codes: Codes) -> NDArray[np.int8]:
    """Return the signed distance from the closed brain without its outer fluid, in units of 0.25 mm."""
    tissue = (codes != 0) & (codes != CSF)
    tissue = np.pad(tissue, 16)
    near = ndimage.distance_transform_edt(~tissue) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(near) > CLOSING_MM
    closed |= tissue
    signed = ndimage.distance_transform_edt(~closed) - ndimage.distance_transform_edt(closed)
    inner = signed[16:-16, 16:-16, 16:-16]
    return np.asarray(np.clip(np.rint(inner / DEPTH_UNIT), -127, 127), np.int8)


def tissue_image(codes: Codes, depth: NDArray[np.int8]) -> NDArray[np.float32]:
    """Render a T1w-like image from codes, cut 2 mm outside the brain as brain extraction does."""
    tones = np.full(N_CODES, 0.66, np.float32)
    for left_id, tone in _TONES.items():
        tones[STRUCTURES.index(left_id)] = tone
    tones = np.minimum(tones, 1)
    mirrored = mirror_of_code()
    tones[mirrored[:FIRST_PARCEL]] = tones[:FIRST_PARCEL]
    tones[0] = 0.3
    image = ndimage.gaussian_filter(tones[codes], 0.6)
    return np.where(depth <= 2 / DEPTH_UNIT, image, 0).astype(np.float32)


def template_person() -> Person:
    """Return the atlas with its own labels and image."""
    folder = Path(__file__).parents[2] / "data"
    codes = encode(load_labels(folder / "atlas_labels.nii.gz").data.astype(np.int32))
    image = (template(FULL).data + 1) / 2
    sharp = np.clip(image + 0.6 * (image - ndimage.gaussian_filter(image, 1.5)), 0.02, 1.2)
    return Person("template", codes, signed_depth(codes), sharp.astype(np.float32))


def align(path: Path) -> Person:
    """Bring one whole-head label map to the atlas grid and divide its cortex into parcels.

    Parameters
    ----------
    path : path
        Label map with FreeSurfer ids, any orientation.

    Returns
    -------
    Person

    Raises
    ------
    InputError
        The map lacks a structure that every brain has.
    """
    head = load_labels(path)
    codes = encode(head.data.astype(np.int32))
    missing = [STRUCTURES[k] for k in range(1, FIRST_PARCEL) if not (codes == k).any()]
    if missing:
        raise InputError(f"the label map has no voxel of ids {missing}.", str(path), "Remove it from the folder.")
    box = ndimage.find_objects((codes > 0).astype(np.uint8))[0]
    codes = np.pad(codes[box], 4)
    shift = np.eye(4)
    shift[:3, 3] = [part.start - 4 for part in box]
    native = Volume(codes, head.affine @ shift, case_name(path))
    image = replace(native, data=tissue_image(codes, signed_depth(codes)))
    to_atlas = _affine_to_template(image)
    moved = resample(replace(native, affine=to_atlas @ native.affine), FULL.shape, FULL.affine, order=0).data
    moved = np.asarray(moved, np.uint8)
    depth = signed_depth(moved)
    return Person(native.case_id, _with_parcels(moved, tissue_image(moved, depth)), depth)


def prepare(folder: Path, cache: Path) -> list[Person]:
    """Align every label map of a folder, or read the aligned ones back from the cache.

    Parameters
    ----------
    folder : path
        Holds NIfTI or MGH label maps.
    cache : path
        Aligned maps are kept here, one ``.npz`` each.

    Returns
    -------
    list of Person
        Sorted by name.

    Raises
    ------
    InputError
        There is no label map in the folder.
    """
    paths = sorted(p for p in folder.glob("*") if p.name.lower().endswith(SUFFIXES))
    if not paths:
        raise InputError("no label map found.", str(folder), "Give a folder of whole-head label maps (.nii.gz, .mgz).")
    cache.mkdir(parents=True, exist_ok=True)
    people = []
    for path in paths:
        file = cache / f"{case_name(path)}.npz"
        if not file.exists():
            person = align(path)
            partial = file.with_name(f"{file.stem}.partial.npz")
            np.savez_compressed(partial, codes=person.codes, depth=person.depth)
            partial.replace(file)
        with np.load(file) as stored:
            people.append(Person(case_name(path), stored["codes"], stored["depth"]))
    return people


def _affine_to_template(image: Volume) -> NDArray[np.float64]:
    """Return world mm of a stripped image to world mm of the atlas."""
    from picsl_greedy import Greedy3D

    fixed = template(FULL)
    fixed = replace(fixed, data=fixed.data + 1)
    start = np.eye(4)
    start[:3, 3] = _centre(image) - _centre(fixed)
    # The start is put in the header: greedy takes no transform from memory as initial value.
    moving = replace(image, affine=np.linalg.inv(start) @ image.affine)
    greedy = Greedy3D()
    greedy.execute(
        "-i fixed moving -a -dof 12 -ia-identity -m NCC 4x4x4 -n 100x50x0 -jitter 0 -seed 1 -threads 1 -o found -V 0",
        out=io.StringIO(),
        fixed=_to_sitk(fixed),
        moving=_to_sitk(moving),
        found=None,
    )
    return np.asarray(np.linalg.inv(start @ np.asarray(greedy["found"], dtype=np.float64)))


def _with_parcels(codes: Codes, image: NDArray[np.float32]) -> Codes:
    """Register the atlas deformably to one aligned anatomy and give each cortical voxel the nearest parcel."""
    from picsl_greedy import Greedy3D

    atlas = template_person()
    greedy = Greedy3D()
    greedy.execute(
        "-i fixed moving -m NCC 3x3x3 -n 80x50x0 -s 2.0vox 0.7vox -threads 1 -o warp -V 0",
        out=io.StringIO(),
        fixed=_to_sitk(Volume(image, FULL.affine)),
        moving=_to_sitk(Volume(template(FULL).data + 1, FULL.affine)),
        warp=None,
    )
    greedy.execute(
        "-rf fixed -ri NN -rm labels moved -r warp -threads 1 -V 0",
        out=io.StringIO(),
        labels=_to_sitk(Volume(atlas.codes.astype(np.float32), FULL.affine)),
        moved=None,
    )
    moved = np.rint(sitk.GetArrayFromImage(greedy["moved"]).T).astype(np.uint8)
    divided = codes.copy()
    for side, channel in enumerate(CORTEX):
        first = FIRST_PARCEL + side * len(PARCELS)
        known = (moved >= first) & (moved < first + len(PARCELS))
        nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        ribbon = codes == channel
        divided[ribbon] = moved[tuple(axis[ribbon] for axis in nearest)]
    return divided


def _centre(volume: Volume) -> NDArray[np.float64]:
    index = np.argwhere(volume.data > 0.4 * volume.data.max()).mean(axis=0)
    return np.asarray(volume.affine[:3, :3] @ index + volume.affine[:3, 3])


def _to_sitk(volume: Volume) -> sitk.Image:
    """Convert a volume in RAS world coordinates to a SimpleITK image in LPS."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    spacing: Sequence[float] = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))  # (z, y, x)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing)
    image.SetDirection((affine[:3, :3] / np.array(spacing)).ravel().tolist())
    return image
