"""Bottleneck features of deepbet's brain finder, which comes with the installation.

Fisch et al. (2023), doi:10.48550/arXiv.2308.07003; package deepbet, MIT licence. The
packaged network is a traced LinkNet; its encoder is run here from the stored weights, because
traced modules allow no access to inner tensors. Of the two packaged networks this is the one
that looks at the whole head at 2 mm, so that the atlas grids need no magnification.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import MissingAsset

SHAPE = (72, 96, 72)  # 2 mm: the resolution of a whole head in the 128³ voxels it was trained on
QUANTILES = (0.005, 0.995)
MEAN, SD = 0.449, 0.226
STAGES = 4


class Bottleneck(nn.Module):
    """Encoder half of deepbet's LinkNet with global average pooling: (b, 1, x, y, z) to (b, 128)."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.convolutions = nn.ParameterDict(
            {key.replace(".", "/"): nn.Parameter(value, requires_grad=False) for key, value in tensors.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (b, 128)."""
        if tuple(x.shape[2:]) != SHAPE:  # from the full grid this is the mean of 2x2x2 blocks
            x = F.interpolate(x, SHAPE, mode="trilinear", align_corners=False)
        return self.bottleneck(normalise(x)).double().mean(dim=(2, 3, 4)).float()

    def bottleneck(self, x: Tensor) -> Tensor:
        """Return the deepest tensor of the network (b, 128, x/32, y/32, z/32) for a normalised input."""
        x = F.relu(self._convolve(x, "init.0", stride=2))
        x = F.max_pool3d(x, 3, stride=2, padding=1)
        for stage in range(STAGES):
            for block in ("block1", "block2"):
                x = self._residual(x, f"down{stage}.{block}", stride=2 if stage > 0 and block == "block1" else 1)
        return x

    def _residual(self, x: Tensor, name: str, stride: int) -> Tensor:
        inner = F.relu(self._convolve(x, f"{name}.double_conv.0", stride))
        inner = self._convolve(inner, f"{name}.double_conv.3", 1)
        projected = stride > 1
        return F.relu(inner + (self._convolve(x, f"{name}.downsample.0", stride) if projected else x))

    def _convolve(self, x: Tensor, name: str, stride: int) -> Tensor:
        weight = self.convolutions[f"{name}.weight".replace(".", "/")]
        return F.instance_norm(F.conv3d(x, weight, stride=stride, padding=weight.shape[-1] // 2))


def normalise(x: Tensor) -> Tensor:
    """Scale each volume as deepbet does: quantiles to [0, 1], clip, then fixed mean and SD.

    Parameters
    ----------
    x : Tensor, shape (b, 1, x, y, z)
        Any linear intensity scale.

    Returns
    -------
    Tensor
        Same shape; every volume has mean 0.449 and SD 0.226.
    """
    flat = x.flatten(1)  # (b, voxels)
    low, high = torch.quantile(flat, torch.tensor(QUANTILES, device=x.device, dtype=x.dtype), dim=1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny  # a constant volume stays finite
    flat = ((flat - low) / (high - low).clamp(min=tiny)).clamp(0, 1)
    exact = flat.double()  # sums in single precision would depend on the number of threads
    mean, sd = exact.mean(1, keepdim=True).to(x.dtype), exact.std(1, keepdim=True).to(x.dtype)
    return ((flat - mean) / sd.clamp(min=tiny) * SD + MEAN).reshape(x.shape)


def load(weights: Path) -> nn.Module:
    """Return the encoder with the weights of the packaged network.

    Raises
    ------
    MissingAsset
        When the installed package holds another network than the one this was written for.
    """
    try:
        stored = torch.jit.load(str(weights), map_location="cpu").state_dict()
        network = Bottleneck({k: v.detach().clone() for k, v in stored.items() if k.startswith(("init.", "down"))})
        network(torch.zeros(1, 1, *SHAPE))
    except (RuntimeError, KeyError) as error:
        raise MissingAsset(
            "the packaged network is not the expected one.",
            str(weights),
            "Run `pip install --force-reinstall deepbet==1.0.2`.",
        ) from error
    return network
