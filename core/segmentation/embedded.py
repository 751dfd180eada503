"""The embedded engine: this project's own network, for stripped T1w-like volumes on an atlas grid.

Volumes are sums of posteriors, so they do not depend on counting voxels. One weight file serves both grids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from core.errors import MissingAsset
from core.segmentation import ASSETS, QC_GROUPS, Segmentation, check, qc_groups, volume_row
from core.segmentation.embedded_qc import measure, predict_dice
from core.segmentation.labelmaps import CORTEX, PARCELS, STRUCTURES
from core.segmentation.network import FEATURES, N_PARCELS, N_STRUCTURES, PARTS, SegmentationNet, load_weights
from core.volume import HALF, Grid, Volume

WEIGHTS = "embedded.safetensors"
ROWS = 20_000  # 2 mm voxels answered at a time: keeps the posteriors small
CORTEX_CHANCE = 1e-3  # parcels are asked for where cortex is at least this likely


@dataclass
class Posteriors:
    """Sums over a volume of what the network finds likely.

    Parameters
    ----------
    structures : ndarray, shape (33,)
        Sum of each structure's posterior over voxels.
    parcels : ndarray, shape (2, 34)
        Sum of each parcel's posterior, left and right.
    agreement : ndarray, shape (33,)
        Sum of the posterior of each voxel's own QC group over the voxels labelled with a structure.
    counts : ndarray, shape (33,)
        Voxels labelled with each structure.
    features : ndarray, shape (2, 9, 32)
        Sums of the network's features at 2 mm and of their squares, over the voxels of background and each QC group.
    sizes : ndarray, shape (9,)
        2 mm voxels of background and each QC group.
    """

    structures: NDArray[np.float64]
    parcels: NDArray[np.float64]
    agreement: NDArray[np.float64]
    counts: NDArray[np.float64]
    features: NDArray[np.float64]
    sizes: NDArray[np.float64]


def segment(volume: Volume, *, weights: Path = ASSETS) -> Segmentation:
    """Segment one volume.

    Parameters
    ----------
    volume : Volume
        On the full or the half grid, in [-1, 1], skull-stripped, background -1.
    weights : path
        Folder with ``embedded.safetensors`` and ``embedded_qc.safetensors``.

    Returns
    -------
    Segmentation
        ``qc`` is the Dice predicted from segmentation and image (`core.segmentation.embedded_qc`).

    Raises
    ------
    InputError
        As `core.segmentation.check`.
    MissingAsset
        The weights are not installed.
    """
    sizes, labels, measures = examine(volume, weights)
    return Segmentation(
        labels=Volume(labels, volume.affine, volume.case_id),
        volumes=volume_row(sizes),
        qc=predict_dice(measures, weights),
    )


def examine(volume: Volume, weights: Path = ASSETS) -> tuple[dict[int, float], NDArray[np.int32], NDArray[np.float32]]:
    """Return mm³ of each FreeSurfer id, the labels, and the measures for quality control (8, n)."""
    grid = check(volume)
    labels, posteriors = infer(network(weights), volume.data, grid)
    measures = measure(volume.data, labels, _expected_dice(posteriors), _features(posteriors))
    return _sizes(posteriors, grid.spacing**3), labels, measures


def infer(net: SegmentationNet, data: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.int32], Posteriors]:
    """Return FreeSurfer ids on the grid, cortex as parcels, and the summed posteriors of one volume."""
    image = torch.from_numpy(np.ascontiguousarray(data, np.float32))[None, None]
    parts = 1 if grid == HALF else PARTS
    whole = torch.zeros(int(np.prod(HALF.shape)), parts, dtype=torch.int32)
    groups = _group_of_structure()
    n = len(QC_GROUPS) + 1
    shapes = (N_STRUCTURES, (2, N_PARCELS), N_STRUCTURES, N_STRUCTURES, (2, n, FEATURES), n)
    sums = Posteriors(*(np.zeros(shape) for shape in shapes))
    with torch.inference_mode():
        coarse, fine = net.features(image)
        for rows in torch.arange(len(net.region)).split(ROWS):
            answer = net.coarse_logits(coarse, rows)
            if fine is not None:
                answer = net.fine_logits(answer, fine, rows).flatten(0, 1)
            ids, group = _add(answer, sums, groups)
            whole[net.region[rows]] = ids.view(len(rows), parts)
            shares = one_hot(group, n).float().view(len(rows), parts, n).mean(1)
            found = coarse[0].flatten(1)[:, net.region[rows]]  # (32, rows)
            sums.features += torch.stack([(found @ shares).T, (found**2 @ shares).T]).double().numpy()
            sums.sizes += shares.sum(0).double().numpy()
    if parts == 1:
        return whole.view(HALF.shape).numpy(), sums
    x, y, z = HALF.shape
    labels = whole.view(x, y, z, 2, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(grid.shape)
    return labels.numpy(), sums


def _add(answer: Tensor, sums: Posteriors, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Add the posteriors of some voxels (n, 67) to the sums; return their FreeSurfer ids and QC groups."""
    chances = answer[:, :N_STRUCTURES].softmax(1)
    chosen = chances.argmax(1)
    sums.structures += chances.sum(0).double().numpy()
    sums.counts += torch.bincount(chosen, minlength=N_STRUCTURES).numpy()
    per_group = chances @ one_hot(groups).float()  # (n, groups)
    own = per_group.gather(1, groups[chosen][:, None])[:, 0].double()
    sums.agreement += torch.zeros(N_STRUCTURES, dtype=torch.float64).index_add_(0, chosen, own).numpy()
    near = (chances[:, list(CORTEX)].sum(1) > CORTEX_CHANCE).nonzero()[:, 0]
    parcels = answer[near, N_STRUCTURES:].softmax(1)
    sums.parcels += (chances[near][:, list(CORTEX)].T @ parcels).double().numpy()
    ids = torch.tensor(STRUCTURES, dtype=torch.int32)[chosen]
    for first, channel in zip((1000, 2000), CORTEX, strict=True):
        here = chosen[near] == channel
        ids[near[here]] = first + torch.tensor(PARCELS, dtype=torch.int32)[parcels[here].argmax(1)]
    return ids, groups[chosen]


@lru_cache(maxsize=2)
def network(folder: Path) -> SegmentationNet:
    """Return the network; raises MissingAsset when its weights are not installed."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingAsset(
            "the weights of the embedded segmentation network are not installed.",
            str(path),
            "Install the product again, or train them with `python -m core.segmentation.train`.",
        )
    return load_weights(path)


def _group_of_structure() -> Tensor:
    """QC group of each structure, 0 for background."""
    groups = qc_groups()
    return torch.tensor([QC_GROUPS.index(groups[k]) + 1 if k in groups else 0 for k in STRUCTURES])


def _features(posteriors: Posteriors) -> NDArray[np.float32]:
    """Mean and deviation of the network's features inside each QC group, shape (8, 64); zeros where it is absent."""
    mean, square = posteriors.features[:, 1:] / np.maximum(posteriors.sizes[1:, None], 1)
    return np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))], 1).astype(np.float32)


def _sizes(posteriors: Posteriors, voxel: float) -> dict[int, float]:
    """Return mm³ of each FreeSurfer id, cortex as parcels, from posteriors."""
    sums = (posteriors.structures * voxel).tolist()
    sizes = {label: size for label, size in zip(STRUCTURES, sums, strict=True) if label not in (0, 3, 42)}
    for first, side in zip((1000, 2000), posteriors.parcels * voxel, strict=True):
        sizes |= {first + k: size for k, size in zip(PARCELS, side.tolist(), strict=True)}
    return sizes


def _expected_dice(posteriors: Posteriors) -> dict[str, float]:
    """Dice of the labels with the posteriors themselves, per QC group; 0 for a group that is absent."""
    group = _group_of_structure().numpy()
    result = {}
    for number, name in enumerate(QC_GROUPS, start=1):
        mine = group == number
        total = float(posteriors.structures[mine].sum() + posteriors.counts[mine].sum())
        result[name] = 2 * float(posteriors.agreement[mine].sum()) / total if total else 0.0
    return result
