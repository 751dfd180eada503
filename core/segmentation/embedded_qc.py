"""Quality control of the embedded engine: Dice predicted from the segmentation and the image together.

Measures of each QC group at 2 mm go into a few small networks a group, which was fitted on degraded volumes with known
labels (``benchmarks/calibrate_embedded_qc.py``). SynthSeg's own QC sees the label map alone; this one the image too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from core import checkpoint
from core.errors import MissingAsset
from core.segmentation import QC_GROUPS
from core.segmentation.intensities import FIRST_PARCEL, WHITE, explained, favoured_groups, group_map
from core.segmentation.network import FEATURES
from core.volume import HALF, block_mean

WEIGHTS = "embedded_qc.safetensors"
HIDDEN, MEMBERS = 32, 5
HIDDEN_SHARE = 0.2
LEAST_VOXELS = 20
# Of a group; what of them each means is said in `measure`.
OWN = (
    "expected",
    "fit",
    "favoured",
    "contrast",
    "boundary",
    "sharpness",
    "roughness",
    "size",
    "sides",
    "surface",
    "whole",
)
# Of the volume, beside the expected Dice of all eight groups.
SHARED = ("tissue", "haze", "brain", "edges")
N_FEATURES = len(OWN) + len(QC_GROUPS) + len(SHARED) + 2 * FEATURES


def measure(
    data: NDArray[np.float32],
    labels: NDArray[np.int32],
    expected: Mapping[str, float],
    features: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Measure how well image and labels agree, for each QC group.

    Parameters
    ----------
    data : array, shape of an atlas grid
        In [-1, 1], background -1.
    labels : array, same shape
        FreeSurfer ids, cortex as parcels.
    expected : dict
        Dice that the network expects of each group.
    features : array, shape (8, 64)
        Mean and deviation, inside each group, of what the network sees there.

    Returns
    -------
    ndarray, shape (8, 87)
        Of the group: expected Dice (logit); correlation of the image with what the labels explain of it; Dice with the
        labels that intensities favour; contrast to the surroundings over the spread within; slope of the image on the
        boundary over that inside; slope nearby and unevenness inside, over the white-grey contrast; volume; difference
        between the sides; surface for its volume; share of the two largest pieces. Then the expected Dice of all
        groups, the white-grey contrast, haze outside, volume of the brain and slope within it. Logarithms where a
        ratio is meant. Last the features.
    """
    if data.shape != HALF.shape:
        data, labels = block_mean(data), labels[1::2, 1::2, 1::2]
    brain, group = labels > 0, group_map()[labels]
    guess = explained(data, labels)
    favoured = favoured_groups(data, labels)
    slope = ndimage.gaussian_gradient_magnitude(data, 0.7)
    uneven = np.abs(data - ndimage.uniform_filter(data, 3))
    unit = _tissue_contrast(data, labels)
    hopes = [_logit(expected[name]) for name in QC_GROUPS]
    outside = ~ndimage.binary_dilation(brain, iterations=2)
    shared = [
        np.log(unit),
        float(np.log(np.sqrt(np.mean(np.square(data[outside] + 1))) + 1e-3)) if outside.any() else 0.0,
        float(np.log(brain.sum() + 1)),
        float(np.log(slope[brain].mean() + 1e-3)) if brain.any() else -7.0,
    ]
    rows = np.zeros((len(QC_GROUPS), N_FEATURES), np.float32)
    maps = (data, guess, slope, uneven)
    for number in range(1, len(QC_GROUPS) + 1):
        own = _of_group(number, group, favoured, maps, unit)
        rows[number - 1] = [hopes[number - 1], *own, *hopes, *shared, *features[number - 1]]
    return rows


def _of_group(
    number: int, group: NDArray[np.int8], favoured: NDArray[np.int8], maps: tuple[NDArray[np.float32], ...], unit: float
) -> list[float]:
    """Return the measures of one group, all but the first; zeros for a group that is hardly there."""
    found = ndimage.find_objects((group == number).astype(np.int8))
    if not found:
        return [0.0] * (len(OWN) - 1)
    box = tuple(slice(max(0, part.start - 3), part.stop + 3) for part in found[0])
    mask, brain = group[box] == number, group[box] > 0
    data, guess, slope, uneven = (m[box] for m in maps)
    near = ndimage.binary_dilation(mask, iterations=2)
    ring = near & ~mask & brain
    inner = ndimage.binary_erosion(mask)
    edge = mask & ~inner
    if mask.sum() < LEAST_VOXELS or ring.sum() < LEAST_VOXELS or inner.sum() < 1:
        return [0.0] * (len(OWN) - 1)
    middle = group.shape[0] // 2 - box[0].start
    left, right = mask[: max(0, middle)].sum(), mask[max(0, middle) :].sum()
    pieces = np.bincount(ndimage.label(mask)[0].ravel())[1:]
    return [
        _correlation(data[near], guess[near]),
        2 * float(np.sum(mask & (favoured[box] == number))) / float(mask.sum() + np.sum(favoured == number)),
        float(np.log((abs(data[mask].mean() - data[ring].mean()) + 0.01) / (data[mask].std() + 0.01))),
        float(np.log((slope[edge].mean() + 1e-3) / (slope[inner].mean() + 1e-3))),
        float(np.log(slope[near].mean() / unit + 1e-3)),
        float(np.log(uneven[mask].mean() / unit + 1e-3)),
        float(np.log(mask.sum())),
        float(abs(np.log((left + 1) / (right + 1)))),
        float(np.log(edge.sum() / mask.sum() ** (2 / 3))),
        float(np.sort(pieces)[-2:].sum() / mask.sum()),  # paired structures have two
    ]


def _tissue_contrast(data: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Difference of the white matter's median and the cortex's, not less than 0.02."""
    white, grey = np.isin(labels, WHITE), labels > FIRST_PARCEL
    if not white.any() or not grey.any():
        return 0.02
    return max(abs(float(np.median(data[white]) - np.median(data[grey]))), 0.02)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _logit(share: float) -> float:
    kept = min(max(share, 1e-3), 1 - 1e-3)
    return float(np.log(kept / (1 - kept)))


class DiceRegressor(nn.Module):
    """For each QC group the mean of small networks: measures (n, 8, 87) to predicted Dice (n, 8)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        groups = len(QC_GROUPS)
        self.register_buffer("mean", torch.zeros(groups, N_FEATURES))
        self.register_buffer("deviation", torch.ones(groups, N_FEATURES))
        self.first = nn.Parameter(torch.randn(MEMBERS, groups, N_FEATURES, HIDDEN) / N_FEATURES**0.5)
        self.second = nn.Parameter(torch.randn(MEMBERS, groups, HIDDEN, HIDDEN) / HIDDEN**0.5)
        self.offsets = nn.Parameter(torch.zeros(2, MEMBERS, groups, HIDDEN))
        self.outer = nn.Parameter(torch.randn(MEMBERS, groups, HIDDEN) / HIDDEN**0.5)
        self.level = nn.Parameter(torch.full((MEMBERS, groups), 1.5))

    def members(self, measures: Tensor) -> Tensor:
        """Return the Dice that each network predicts (n, members, 8); in training a fifth of the measures is hidden."""
        z = ((measures - self.mean) / self.deviation).clamp(-4, 4)  # far outside the fit is not extrapolated
        z = nn.functional.dropout(z, HIDDEN_SHARE, self.training)
        hidden = torch.tanh(torch.einsum("ngf,mgfh->nmgh", z, self.first) + self.offsets[0])
        hidden = hidden + torch.tanh(torch.einsum("nmgf,mgfh->nmgh", hidden, self.second) + self.offsets[1])
        return torch.sigmoid(torch.einsum("nmgh,mgh->nmg", hidden, self.outer) + self.level)

    def forward(self, measures: Tensor) -> Tensor:
        """Return predicted Dice (n, 8)."""
        return self.members(measures).mean(1)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        checkpoint.write({k: v.detach().half().contiguous() for k, v in self.state_dict().items()}, path)


def predict_dice(measures: NDArray[np.float32], folder: Path) -> dict[str, float]:
    """Return the predicted Dice of each QC group from the measures of one volume.

    Raises
    ------
    MissingAsset
        The regressor's weights are not in the folder.
    """
    with torch.inference_mode():
        scores = regressor(folder)(torch.from_numpy(measures)[None])[0]
    return dict(zip(QC_GROUPS, scores.tolist(), strict=True))


@lru_cache(maxsize=2)
def regressor(folder: Path) -> DiceRegressor:
    """Return the fitted regressor; raises MissingAsset when its weights are not installed."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingAsset("the weights of the quality control are not installed.", str(path), "Install again.")
    network, tensors = DiceRegressor(), checkpoint.read(path)
    checkpoint.refuse_misfits(network, tensors, path, "the embedded engine's quality control")
    checkpoint.load(network, tensors)
    return network.eval()
