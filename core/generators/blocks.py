"""Networks of Kwon et al. (MICCAI 2019, doi 10.1007/978-3-030-32248-9_14) that VAE-GAN and α-WGAN share.

The attributes bear the names of the published checkpoints, at the sizes Wu et al. (MICCAI 2024) gave them for 144×192×144.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.volume import Grid

Widths = tuple[int, int, int, int]
SLOPE = 0.2  # of every LeakyReLU


def halving(inputs: int, outputs: int) -> nn.Conv3d:
    """Return the convolution that halves each side."""
    return nn.Conv3d(inputs, outputs, kernel_size=4, stride=2, padding=1)


class Trunk(nn.Module):
    """Four halving convolutions; the first has no normalisation."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.conv1 = halving(1, widths[0])
        self.conv2 = halving(widths[0], widths[1])
        self.conv3 = halving(widths[1], widths[2])
        self.conv4 = halving(widths[2], widths[3])
        self.bn2 = nn.BatchNorm3d(widths[1])
        self.bn3 = nn.BatchNorm3d(widths[2])
        self.bn4 = nn.BatchNorm3d(widths[3])

    def features(self, volume: Tensor) -> Tensor:
        """Map (b, 1, x, y, z) to (b, widths[3], x/16, y/16, z/16)."""
        h = F.leaky_relu(self.conv1(volume), SLOPE)
        h = F.leaky_relu(self.bn2(self.conv2(h)), SLOPE)
        h = F.leaky_relu(self.bn3(self.conv3(h)), SLOPE)
        return F.leaky_relu(self.bn4(self.conv4(h)), SLOPE)


class Critic(Trunk):
    """Maps a volume to ``outputs`` numbers without bounds: a logit, a score or a code."""

    def __init__(self, widths: Widths, outputs: int = 1) -> None:
        super().__init__(widths)
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
        self.tp_conv2 = _smoothing(widths[0], widths[1])
        self.bn2 = nn.BatchNorm3d(widths[1])
        self.tp_conv3 = _smoothing(widths[1], widths[2])
        self.bn3 = nn.BatchNorm3d(widths[2])
        self.tp_conv4 = _smoothing(widths[2], widths[3])
        self.bn4 = nn.BatchNorm3d(widths[3])
        self.tp_conv5 = _smoothing(widths[3], 1)

    def volume(self, start: Tensor) -> Tensor:
        """Map (b, widths[0], *base) to (b, 1, x, y, z) in [-1, 1]."""
        h = F.relu(self.bn1(start))
        h = F.relu(self.bn2(self.tp_conv2(_doubled(h))))
        h = F.relu(self.bn3(self.tp_conv3(_doubled(h))))
        h = F.relu(self.bn4(self.tp_conv4(_doubled(h))))
        h = self.tp_conv5(_doubled(h))
        # As published, no layer follows the last upsampling: the true resolution is 16 times the base.
        return torch.tanh(F.interpolate(h, size=self.shape))


def _smoothing(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel_size=3, padding=1, bias=False)


def _doubled(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2.0)
