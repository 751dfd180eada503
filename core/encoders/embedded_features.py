"""Bottleneck features of this product's segmentation network: they know brain anatomy and need no download."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from core.segmentation.network import SegmentationNet, load_weights


class Bottleneck(nn.Module):
    """Encoder half of the network with global average pooling: (b, 1, x, y, z) to (b, 192)."""

    def __init__(self, network: SegmentationNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (b, 192) of volumes on an atlas grid; sums in float64 do not depend on threads."""
        return self.network.bottleneck(x).double().mean(dim=(2, 3, 4)).float()


def load(weights: Path) -> nn.Module:
    """Return the encoder with the weights of the embedded engine."""
    return Bottleneck(load_weights(weights))
