"""Layers the GANs share, and the networks of Kwon et al. (MICCAI 2019) that VAE-GAN and α-WGAN share.

The attributes bear the names of the published checkpoints (doi 10.1007/978-3-030-32248-9_14), at the sizes Wu et al.
(MICCAI 2024, doi 10.1007/978-3-031-72117-5_28) gave them for 144×192×144.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.volume import Grid

Widths = tuple[int, int, int, int]
SLOPE = 0.2  # of every LeakyReLU
SETTLING = (4, 8)  # batches, codes of each: from them statistics of normalisation are measured


def halving(inputs: int, outputs: int) -> nn.Conv3d:
    """Return the convolution that halves each side."""
    return nn.Conv3d(inputs, outputs, kernel_size=4, stride=2, padding=1)


class DoublingConv(nn.Conv3d):
    """3×3×3 convolution of a map whose voxels were repeated to double each side, without ever making that map.

    In the doubled map two of three taps along an axis meet the same voxel. So each of the eight voxels that replace one
    is a 2×2×2 convolution with sums of taps: equal numbers up to rounding, for a third of the multiplications.
    """

    taps: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, kernel_size=3, padding=1, bias=bias)
        # [place of the new voxel, old voxel it meets, tap]
        taps = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Map (b, inputs, x, y, z) to (b, outputs, 2x, 2y, 2z)."""
        weight = torch.einsum("oixyz,pax,qby,rcz->pqroiabc", self.weight, self.taps, self.taps, self.taps)
        bias = None if self.bias is None else self.bias.repeat(8)
        eight = F.conv3d(h, weight.flatten(0, 3), bias, padding=1).unflatten(1, (2, 2, 2, -1))
        x, y, z = h.shape[2:]
        places = product((0, 1), repeat=3)
        parts = [eight[:, p, q, r, :, p : p + x, q : q + y, r : r + z] for p, q, r in places]
        doubled = torch.stack(parts, 2).unflatten(2, (2, 2, 2))  # (b, outputs, 2, 2, 2, x, y, z)
        return doubled.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(len(h), -1, 2 * x, 2 * y, 2 * z)


def measure_normalisation(network: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Set the running statistics of batch normalisation to the mean over some batches."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for batch in inputs:
            network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Trunk(nn.Module):
    """Four halving convolutions; the first has no normalisation, the others batch normalisation unless told."""

    def __init__(self, widths: Widths, normalised: bool = True) -> None:
        super().__init__()
        self.conv1 = halving(1, widths[0])
        self.conv2 = halving(widths[0], widths[1])
        self.conv3 = halving(widths[1], widths[2])
        self.conv4 = halving(widths[2], widths[3])
        self.bn2 = nn.BatchNorm3d(widths[1]) if normalised else nn.Identity()
        self.bn3 = nn.BatchNorm3d(widths[2]) if normalised else nn.Identity()
        self.bn4 = nn.BatchNorm3d(widths[3]) if normalised else nn.Identity()

    def features(self, volume: Tensor) -> Tensor:
        """Map (b, 1, x, y, z) to (b, widths[3], x/16, y/16, z/16)."""
        h = F.leaky_relu(self.conv1(volume), SLOPE)
        h = F.leaky_relu(self.bn2(self.conv2(h)), SLOPE)
        h = F.leaky_relu(self.bn3(self.conv3(h)), SLOPE)
        return F.leaky_relu(self.bn4(self.conv4(h)), SLOPE)


class Critic(Trunk):
    """Maps a volume to ``outputs`` numbers without bounds: a logit, a score or a code."""

    def __init__(self, widths: Widths, outputs: int = 1, normalised: bool = True) -> None:
        super().__init__(widths, normalised)
        self.conv5 = halving(widths[3], outputs)

    def forward(self, volume: Tensor) -> Tensor:
        """Map (b, 1, x, y, z) to (b, outputs)."""
        return self.conv5(self.features(volume)).mean((2, 3, 4))


class Decoder(nn.Module):
    """Doubles a (b, widths[0], *base) map four times, then repeats voxels up to the grid."""

    def __init__(self, widths: Widths, grid: Grid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.bn1 = nn.BatchNorm3d(widths[0])
        self.tp_conv2 = DoublingConv(widths[0], widths[1])
        self.bn2 = nn.BatchNorm3d(widths[1])
        self.tp_conv3 = DoublingConv(widths[1], widths[2])
        self.bn3 = nn.BatchNorm3d(widths[2])
        self.tp_conv4 = DoublingConv(widths[2], widths[3])
        self.bn4 = nn.BatchNorm3d(widths[3])
        self.tp_conv5 = DoublingConv(widths[3], 1)

    def volume(self, start: Tensor) -> Tensor:
        """Map (b, widths[0], *base) to (b, 1, x, y, z) in [-1, 1]."""
        h = F.relu(self.bn1(start))
        h = F.relu(self.bn2(self.tp_conv2(h)))
        h = F.relu(self.bn3(self.tp_conv3(h)))
        h = F.relu(self.bn4(self.tp_conv4(h)))
        h = self.tp_conv5(h)
        # As published, no layer follows the last upsampling: the true resolution is 16 times the base.
        return torch.tanh(F.interpolate(h, size=self.shape))
