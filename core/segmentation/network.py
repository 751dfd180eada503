"""The embedded segmentation network: a small U-Net that knows where in the atlas each structure usually lies.

Volumes are atlas-aligned, so the network's logits are added to the logarithm of prior maps (how often each class was
seen at each place among the training anatomies); it only has to learn how an image moves that expectation. One network
serves both grids: it answers at 2 mm and, on the full grid, corrects the answer at 1 mm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import checkpoint
from core.segmentation.labelmaps import CSF, FIRST_PARCEL, PARCELS
from core.volume import HALF

N_STRUCTURES, N_PARCELS = FIRST_PARCEL, len(PARCELS)
PRIOR_SHAPE = tuple(n // 2 for n in HALF.shape)  # 4 mm
WIDTHS = (16, 32, 96, 192)
FEATURES = 32
FINE = 24
PARTS = 8  # 1 mm voxels in one of 2 mm
LEAST_PRIOR = 1e-4
REGION_PRIOR = 0.02
REGION_MARGIN = 1  # voxels of 4 mm; fluid farther out than that counts as background


class Convolution(nn.Module):
    """3x3x3 convolution, group normalisation, ReLU; the input is added when shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(max(1, outputs // 8), outputs)
        self.add = inputs == outputs and stride == 1

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return activations; ``extra`` is added before the normalisation."""
        y = self.conv(x)
        y = F.relu(self.norm(y if extra is None else y + extra))
        return y + x if self.add else y


class Up(nn.Module):
    """Narrow, enlarge twice, add what the encoder saw at this resolution, convolve twice."""

    def __init__(self, inputs: int, outputs: int, final: int | None = None) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(inputs, outputs, 1)
        self.blocks = nn.ModuleList([Convolution(outputs, outputs), Convolution(outputs, final or outputs)])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return features at the resolution of ``skip``."""
        x = F.interpolate(self.narrow(x), scale_factor=2.0, mode="nearest") + skip
        for block in self.blocks:
            x = block(x)
        return x


class Body(nn.Module):
    """The U-Net at 2 mm: (b, 1, 72, 96, 72) to (b, FEATURES, 72, 96, 72)."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        classes = N_STRUCTURES + N_PARCELS
        self.stem = Convolution(1, a)
        self.down = nn.ModuleList([Convolution(a, b, 2), Convolution(b, c, 2), Convolution(c, d, 2)])
        self.level = nn.ModuleList([Convolution(b, b), Convolution(c, c), Convolution(d, d)])
        self.place = nn.ModuleList([nn.Conv3d(classes, n, 1, bias=False) for n in (b, c)])
        self.up = nn.ModuleList([Up(d, c), Up(c, b), Up(b, a, FEATURES)])

    def forward(self, image: Tensor, prior: Tensor) -> Tensor:
        """Return features at 2 mm."""
        skips = self.contract(image, prior)
        x = skips[-1]
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        return x

    def contract(self, image: Tensor, prior: Tensor) -> list[Tensor]:
        """Return the features of the way down, at 2, 4, 8 and 16 mm."""
        skips = [self.stem(image)]
        places = [self.place[0](prior), self.place[1](F.interpolate(prior, scale_factor=0.5, mode="area")), None]
        for down, level, place in zip(self.down, self.level, places, strict=True):
            skips.append(level(down(skips[-1], place)))
        return skips


class Fine(nn.Module):
    """What 1 mm detail adds to the answer at 2 mm, computed at 2 mm: a voxel's eight parts are channels.

    Activations at 1 mm would cost four times the body; here they cost less than it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(PARTS, FINE)
        self.narrow = nn.Conv3d(FEATURES, FINE, 1)
        self.mix = Convolution(2 * FINE, 2 * FINE)
        self.head = nn.Linear(2 * FINE, PARTS * (N_STRUCTURES + N_PARCELS))
        nn.init.zeros_(self.head.weight)  # starts as the answer at 2 mm, repeated
        nn.init.zeros_(self.head.bias)

    def forward(self, parts: Tensor, coarse: Tensor) -> Tensor:
        """Return features (b, 2 FINE, 72, 96, 72) from parts (b, 8, 72, 96, 72) and the body's features."""
        detail = parts - parts.mean(1, keepdim=True)
        return cast(Tensor, self.mix(torch.cat([self.narrow(coarse), self.stem(detail)], 1)))


class SegmentationNet(nn.Module):
    """Image to logits of structures and of cortical parcels, at the voxels of a fixed region around the brain.

    One network serves both grids: the body answers at 2 mm; on the full grid `Fine` corrects each of the eight 1 mm
    parts of a 2 mm voxel.

    Parameters
    ----------
    prior : tensor, shape (67, 36, 48, 36), optional
        Frequency of every structure (33) and, inside the cortex, of every parcel (34) at 4 mm; zeros when the weights
        are loaded afterwards.
    """

    prior: Tensor

    def __init__(self, prior: Tensor | None = None) -> None:
        super().__init__()
        classes = N_STRUCTURES + N_PARCELS
        self.body = Body()
        self.fine = Fine()
        self.head = nn.Linear(FEATURES, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.trust = nn.Parameter(torch.ones(2))
        self.register_buffer("prior", torch.zeros(classes, *PRIOR_SHAPE) if prior is None else prior.float())
        self._region: Tensor | None = None
        self._log_prior: Tensor | None = None

    @property
    def region(self) -> Tensor:
        """Flat indices of the 2 mm voxels that can be brain, shape (n,); everything else is background."""
        if self._region is None:
            inside = (self.prior[1:CSF].sum(0) > REGION_PRIOR).float()[None, None]
            inside = F.max_pool3d(inside, 2 * REGION_MARGIN + 1, 1, REGION_MARGIN)
            inside = F.interpolate(inside, size=HALF.shape, mode="nearest")
            self._region = inside.flatten().nonzero()[:, 0]
        return self._region

    @property
    def log_prior(self) -> Tensor:
        """Logarithm of the prior at the voxels of the region, shape (n, 67)."""
        if self._log_prior is None:
            whole = F.interpolate(self.prior[None], size=HALF.shape, mode="trilinear", align_corners=False)[0]
            self._log_prior = whole.flatten(1)[:, self.region].T.clamp_min(LEAST_PRIOR).log().contiguous()
        return self._log_prior

    def features(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features at 2 mm and those of 1 mm detail of images (b, 1, x, y, z) in [-1, 1].

        On the half grid there is no detail: None.
        """
        if image.shape[2:] == HALF.shape:
            return self.body(image, self.prior[None]), None
        coarse = self.body(F.avg_pool3d(image, 2), self.prior[None])
        return coarse, self.fine(parts_of(image), coarse)

    def bottleneck(self, image: Tensor) -> Tensor:
        """Return the deepest features (b, 128, 9, 12, 9) of images (b, 1, x, y, z) in [-1, 1]."""
        coarse = image if image.shape[2:] == HALF.shape else F.avg_pool3d(image, 2)
        return self.body.contract(coarse, self.prior[None])[-1]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of structures and of parcels of one volume (1, 1, x, y, z) in [-1, 1], background -1.

        Returns
        -------
        tensor, shape (n, 33) or (n, 8, 33)
            At the voxels of `region`; on the full grid at each of their eight parts, in the order of `parts_of`.
        tensor, shape (n, 34) or (n, 8, 34)
        """
        coarse, fine = self.features(image)
        answer = self.coarse_logits(coarse)
        if fine is not None:
            answer = self.fine_logits(answer, fine)
        return answer[..., :N_STRUCTURES], answer[..., N_STRUCTURES:]

    def coarse_logits(self, coarse: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return all logits (n, 67) at 2 mm, at the voxels of `region` or at ``rows`` of it."""
        voxels = self.region if rows is None else self.region[rows]
        known = self.log_prior if rows is None else self.log_prior[rows]
        found = self.head(coarse[0].flatten(1)[:, voxels].T)
        trust = torch.cat([self.trust[:1].expand(N_STRUCTURES), self.trust[1:].expand(N_PARCELS)])
        return cast(Tensor, found + trust * known)

    def fine_logits(self, answer: Tensor, fine: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return all logits (n, 8, 67) at 1 mm from those at 2 mm."""
        voxels = self.region if rows is None else self.region[rows]
        correction = self.fine.head(fine[0].flatten(1)[:, voxels].T)
        return answer[:, None] + correction.view(len(voxels), PARTS, -1)


def parts_of(image: Tensor) -> Tensor:
    """Make the eight parts of each 2 mm voxel channels: (b, 1, 144, 192, 144) to (b, 8, 72, 96, 72)."""
    b, _, x, y, z = image.shape
    split = image.view(b, x // 2, 2, y // 2, 2, z // 2, 2)
    return split.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, PARTS, x // 2, y // 2, z // 2)


def save_weights(net: SegmentationNet, path: Path, **facts: str) -> None:
    """Write weights and prior in half precision as safetensors, atomically; ``facts`` go into the header."""
    tensors = {k: v.detach().half().contiguous() for k, v in net.state_dict().items()}
    checkpoint.write(tensors, path, {"facts": json.dumps(facts)})


def load_weights(path: Path) -> SegmentationNet:
    """Read a network back for use.

    Raises
    ------
    InputError
        The file is missing, or does not hold this network.
    """
    net, tensors = SegmentationNet(), checkpoint.read(path)
    checkpoint.refuse_misfits(net, tensors, path, "the embedded segmentation network")
    checkpoint.load(net, tensors)
    return net.eval()
