"""MedicalNet's 3D ResNets as feature encoders, written from their published description.

Chen, Ma & Zheng (2019), doi:10.48550/arXiv.1904.00625. Layers 3 and 4 keep the resolution of
layer 2 and widen their view by dilation instead, so the output stride is 8, not 32. Parameter
names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core import checkpoint

R50 = (3, 4, 6, 3)
R101 = (3, 4, 23, 3)
STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))  # inner channels, stride, dilation
EXPANSION = 4
RANDOM_SEED = 0


class Bottleneck(nn.Module):
    """Residual block of 1³, 3³ and 1³ convolutions; ``downsample`` projects the shortcut (type B)."""

    def __init__(self, channels: int, inner: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        outer = inner * EXPANSION
        self.conv1 = nn.Conv3d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if project:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, outer, 1, stride=stride, bias=False), nn.BatchNorm3d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved input to its shortcut."""
        shortcut = self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        out: Tensor = self.relu(x)
        return out


class MedicalNet(nn.Module):
    """3D ResNet of bottleneck blocks with global average pooling: (b, 1, x, y, z) to (b, 2048).

    Parameters
    ----------
    depths : tuple of int
        Blocks in each of the four layers: `R50` or `R101`.
    """

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        channels = 64
        for number, (depth, (inner, stride, dilation)) in enumerate(zip(depths, STAGES, strict=True), start=1):
            first = Bottleneck(channels, inner, stride, dilation, project=True)
            channels = inner * EXPANSION
            rest = [Bottleneck(channels, inner, 1, dilation, project=False) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (b, 2048)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (b, 64, x/4, y/4, z/4)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)  # (b, 2048, x/8, y/8, z/8) after the last
        return x.mean(dim=(2, 3, 4))


def load_r50(weights: Path) -> nn.Module:
    """Return ResNet-50 with the weights of a checkpoint; raises InputError when they do not fit."""
    return _load(R50, weights, "MedicalNet ResNet-50")


def load_r101(weights: Path) -> nn.Module:
    """Return ResNet-101 with the weights of a checkpoint; raises InputError when they do not fit."""
    return _load(R101, weights, "MedicalNet ResNet-101")


def load_random_r50(weights: None = None) -> nn.Module:
    """Return ResNet-50 with fixed random weights: He-uniform convolutions, identity normalisation."""
    network = _empty(R50)
    set_random(network, RANDOM_SEED)
    # Every residual block doubles the variance. Without biases the network is homogeneous, so a factor at the input
    # is the same factor at the output: it brings the features to the order of one, where kernels are made for.
    network.conv1.weight.data *= 2.0**-7
    return for_inference(network)


def set_random(network: nn.Module, seed: int) -> None:
    """Draw all convolution weights uniformly with variance 2 / fan-in, the same bits on every machine.

    Source: He et al. (2015), doi:10.1109/ICCV.2015.123.
    """
    # Raw PCG64 words are the only random stream NumPy promises never to change; torch's differ between processors.
    words = np.random.PCG64(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            raw = words.random_raw(module.weight.numel()) >> np.uint64(40)  # 24 bits: exact in float32
            unit = raw.astype(np.float32) * np.float32(2**-23) - np.float32(1 - 2**-24)  # symmetric in (-1, 1)
            bound = np.float32(math.sqrt(6 / module.weight[0].numel()))
            module.weight.data = torch.from_numpy(unit * bound).reshape(module.weight.shape)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            module.reset_running_stats()


def for_inference(network: nn.Module) -> nn.Module:
    """Fold each normalisation into its convolution and store channels last: same features, about 30 % faster."""
    network.eval().requires_grad_(False)
    for block in [module for module in network.modules() if isinstance(module, (Bottleneck, MedicalNet))]:
        for number in ("1", "2", "3"):
            if hasattr(block, f"bn{number}"):
                _fold(getattr(block, f"conv{number}"), getattr(block, f"bn{number}"))
                setattr(block, f"bn{number}", nn.Identity())
        if isinstance(block, Bottleneck) and isinstance(block.downsample, nn.Sequential):
            convolution, norm = block.downsample
            _fold(convolution, norm)
            block.downsample = convolution
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = convolution.weight.double() * scale[:, None, None, None, None]
    convolution.weight = nn.Parameter(weight.float(), requires_grad=False)
    convolution.bias = nn.Parameter(shift.float(), requires_grad=False)


def _empty(depths: tuple[int, int, int, int]) -> MedicalNet:
    # On the meta device first: the default initialisation would cost a second and be overwritten.
    with torch.device("meta"):
        network = MedicalNet(depths)
    return network.to_empty(device="cpu")


def fill(network: nn.Module, weights: Path, title: str) -> None:
    """Load a weight file, strictly, but for the segmentation head that the published files hold too.

    Raises
    ------
    InputError
        See `core.checkpoint.read` and `refuse_misfits`.
    """
    tensors = {k: v for k, v in checkpoint.read(weights).items() if not k.startswith("conv_seg.")}
    checkpoint.refuse_misfits(network, tensors, weights, title)
    checkpoint.load(network, tensors)


def _load(depths: tuple[int, int, int, int], weights: Path, title: str) -> nn.Module:
    network = _empty(depths)
    fill(network, weights, title)
    return for_inference(network)
