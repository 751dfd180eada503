"""The embedded engine: this project's own network, for stripped T1w-like volumes on an atlas grid.

Volumes are sums of posteriors, so they do not depend on counting voxels. A volume on the full grid is answered by the
full-grid network where its weights are installed, otherwise by the half-grid network, whose logits are interpolated.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import MissingAsset
from core.segmentation import QC_GROUPS, Segmentation, qc_groups, volume_row
from core.segmentation.atlas import check
from core.segmentation.labelmaps import CORTEX, PARCELS, STRUCTURES
from core.segmentation.network import SegmentationNet, load_weights
from core.volume import FULL, HALF, Grid, Volume, block_mean

ASSETS = Path(__file__).parents[2] / "assets"


def segment(volume: Volume, *, weights: Path = ASSETS) -> Segmentation:
    """Segment one volume.

    Parameters
    ----------
    volume : Volume
        On the full or the half grid, in [-1, 1], skull-stripped, background -1.
    weights : path
        Folder with ``embedded_half.safetensors`` and perhaps ``embedded_full.safetensors``.

    Returns
    -------
    Segmentation
        ``qc`` is the Dice that the network expects of itself: that of its labels with its own posteriors.

    Raises
    ------
    InputError
        As `core.segmentation.atlas.check`.
    MissingAsset
        The weights are not installed.
    """
    grid = check(volume)
    net = _network(weights, grid)
    data = volume.data if net.grid == grid else block_mean(volume.data)
    image = torch.from_numpy(np.ascontiguousarray(data, np.float32))[None, None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        structures, parcels = net(image)
    chances, chosen = structures.softmax(1), structures.argmax(1)
    if net.grid == grid:
        labels = _labels(net, chosen, parcels.argmax(1))
    else:
        fine = [_enlarged_choice(net, logits) for logits in (structures, parcels)]
        labels = _ids(fine[0], fine[1]).reshape(grid.shape)
    sizes = _sizes(chances, parcels.softmax(1), net.grid.spacing**3)
    return Segmentation(
        labels=Volume(labels.numpy().astype(np.int32), volume.affine, volume.case_id),
        volumes=volume_row(sizes),
        qc=_expected_dice(chances, chosen),
    )


def _network(folder: Path, grid: Grid) -> SegmentationNet:
    for name in (grid.name, HALF.name):
        path = folder / f"embedded_{name}.safetensors"
        if path.is_file():
            return _loaded(path)
    raise MissingAsset(
        "the weights of the embedded segmentation network are not installed.",
        str(folder / "embedded_half.safetensors"),
        "Install the product again, or train them with `python -m core.segmentation.train`.",
    )


@lru_cache(maxsize=2)
def _loaded(path: Path) -> SegmentationNet:
    return load_weights(path)


def _labels(net: SegmentationNet, structures: Tensor, parcels: Tensor) -> Tensor:
    """FreeSurfer ids on the network's grid from channels at its region."""
    whole = torch.zeros(int(np.prod(net.grid.shape)), dtype=torch.long)
    whole[net.region] = _ids(structures, parcels)
    return whole.reshape(net.grid.shape)


def _ids(structures: Tensor, parcels: Tensor) -> Tensor:
    """FreeSurfer ids of channels; cortex as parcels."""
    ids = torch.tensor(STRUCTURES)[structures]
    named = torch.tensor(PARCELS)[parcels]
    for first, channel in zip((1000, 2000), CORTEX, strict=True):
        ids = torch.where(structures == channel, first + named, ids)
    return ids


def _enlarged_choice(net: SegmentationNet, logits: Tensor) -> Tensor:
    """Channel with the largest logit at every voxel of the full grid; one channel at a time, to spare memory."""
    best = torch.full(FULL.shape, -torch.inf)
    choice = torch.zeros(FULL.shape, dtype=torch.long)
    for channel in range(logits.shape[1]):
        outside = 0.0 if channel == 0 else -20.0  # beyond the region everything is background, channel 0
        whole = torch.full((int(np.prod(HALF.shape)),), outside)
        whole[net.region] = logits[:, channel].float()
        fine = F.interpolate(whole.reshape(1, 1, *HALF.shape), scale_factor=2.0, mode="trilinear")[0, 0]
        better = fine > best
        best = torch.where(better, fine, best)
        choice[better] = channel
    return choice.flatten()


def _sizes(chances: Tensor, parcels: Tensor, voxel: float) -> dict[int, float]:
    """Return mm³ of each FreeSurfer id, cortex as parcels, from posteriors."""
    sums = (chances.sum(0, dtype=torch.float64) * voxel).tolist()
    sizes = {label: size for label, size in zip(STRUCTURES, sums, strict=True) if label not in (0, 3, 42)}
    for first, channel in zip((1000, 2000), CORTEX, strict=True):
        shares = (chances[:, channel : channel + 1].double() * parcels.double()).sum(0) * voxel
        sizes |= {first + k: size for k, size in zip(PARCELS, shares.tolist(), strict=True)}
    return sizes


def _expected_dice(chances: Tensor, chosen: Tensor) -> dict[str, float]:
    """Dice of the labels with the posteriors themselves, per QC group; 0 for a group that is absent."""
    groups, result = qc_groups(), {}
    for group in QC_GROUPS:
        channels = torch.tensor([c for c, label in enumerate(STRUCTURES) if groups.get(label) == group])
        soft, hard = chances[:, channels].sum(1), torch.isin(chosen, channels)
        total = float(soft.sum() + hard.sum())
        result[group] = 2 * float(soft[hard].sum()) / total if bool(hard.any()) else 0.0
    return result
