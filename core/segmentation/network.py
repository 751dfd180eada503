"""The embedded segmentation network: a small U-Net that knows where in the atlas each structure usually lies.

Volumes are atlas-aligned, so the network's logits are added to the logarithm of prior maps (how often each class was
seen at each place among the training anatomies); it only has to learn how an image moves that expectation. The
half-grid network works at 2 mm. The full-grid network wraps the same body between one more level at 1 mm, so it starts
from half-grid weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError
from core.segmentation.labelmaps import CSF, FIRST_PARCEL, PARCELS
from core.volume import FULL, HALF, Grid, grid_named

N_STRUCTURES, N_PARCELS = FIRST_PARCEL, len(PARCELS)
PRIOR_SHAPE = tuple(n // 2 for n in HALF.shape)  # 4 mm
WIDTHS = (16, 32, 64, 128)
FEATURES = 32
FINE = 8
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

    def forward(self, image: Tensor, prior: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features at 2 mm and the bottleneck (b, 128, 9, 12, 9)."""
        skips = [self.stem(image, extra)]
        places = [self.place[0](prior), self.place[1](F.interpolate(prior, scale_factor=0.5, mode="area")), None]
        x = skips[0]
        for down, level, place in zip(self.down, self.level, places, strict=True):
            x = level(down(x, place))
            skips.append(x)
        bottleneck = x
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        return x, bottleneck


class Outer(nn.Module):
    """The level at 1 mm around the body, used on the full grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(1, FINE)
        self.down = nn.Conv3d(FINE, WIDTHS[0], 3, stride=2, padding=1)
        nn.init.zeros_(self.down.weight)  # the body then starts as it was trained at 2 mm
        nn.init.zeros_(cast(Tensor, self.down.bias))
        self.fine = nn.Sequential(Convolution(2 * FINE, 2 * FINE), Convolution(2 * FINE, FEATURES))
        self.narrow = nn.Conv3d(FEATURES, FINE, 1)
        self.last = nn.Conv3d(FEATURES, FEATURES, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def refine(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return features at 1 mm: the body's, enlarged, plus a correction that starts at zero."""
        narrow = F.interpolate(self.narrow(coarse), scale_factor=2.0, mode="nearest")
        correction = self.last(self.fine(torch.cat([narrow, fine], 1)))
        return F.interpolate(coarse, scale_factor=2.0, mode="nearest") + correction


class SegmentationNet(nn.Module):
    """Image to logits of structures and of cortical parcels, at the voxels of a fixed region around the brain.

    Parameters
    ----------
    grid : Grid
        `core.volume.HALF` or `FULL`.
    prior : tensor, shape (67, 36, 48, 36), optional
        Frequency of every structure (33) and, inside the cortex, of every parcel (34) at 4 mm; zeros when the weights
        are loaded afterwards.
    """

    prior: Tensor

    def __init__(self, grid: Grid, prior: Tensor | None = None) -> None:
        super().__init__()
        classes = N_STRUCTURES + N_PARCELS
        self.grid = grid
        self.body = Body()
        self.outer = Outer() if grid == FULL else None
        self.head = nn.Linear(FEATURES, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.trust = nn.Parameter(torch.ones(2))
        self.register_buffer("prior", torch.zeros(classes, *PRIOR_SHAPE) if prior is None else prior.float())
        self._region: Tensor | None = None
        self._log_prior: Tensor | None = None

    @property
    def region(self) -> Tensor:
        """Flat indices of the voxels that can be brain, shape (n,); everything else is background."""
        if self._region is None:
            inside = (self.prior[1:CSF].sum(0) > REGION_PRIOR).float()[None, None]
            inside = F.max_pool3d(inside, 2 * REGION_MARGIN + 1, 1, REGION_MARGIN)
            inside = F.interpolate(inside, size=self.grid.shape, mode="nearest")
            self._region = inside.flatten().nonzero()[:, 0]
        return self._region

    @property
    def log_prior(self) -> Tensor:
        """Logarithm of the prior at the voxels of the region, shape (n, 67), half precision on the full grid."""
        if self._log_prior is None:
            kept = torch.float32 if self.grid == HALF else torch.bfloat16
            rows = torch.empty(len(self.region), len(self.prior), dtype=kept, device=self.prior.device)
            for channel, known in enumerate(self.prior):
                whole = F.interpolate(
                    known[None, None], size=self.grid.shape, mode="trilinear", align_corners=False
                ).flatten()
                rows[:, channel] = whole[self.region].clamp_min(LEAST_PRIOR).log().to(kept)
            self._log_prior = rows
        return self._log_prior

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return features on the grid and the bottleneck of images (b, 1, x, y, z) in [-1, 1]."""
        prior = self.prior[None]
        if self.outer is None:
            found: tuple[Tensor, Tensor] = self.body(image, prior)
            return found
        fine = self.outer.stem(image)
        coarse, bottleneck = self.body(F.avg_pool3d(image, 2), prior, self.outer.down(fine))
        return self.outer.refine(coarse, fine), bottleneck

    def forward(self, image: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits of structures (n, 33) and of parcels (n, 34) at the voxels of `region`.

        Parameters
        ----------
        image : tensor, shape (1, 1, x, y, z)
            One volume on the grid, in [-1, 1], background -1.
        rows : tensor, optional
            Positions in `region` to answer for; all when None.
        """
        maps, _ = self.features(image)
        return self.logits(maps, rows)

    def logits(self, maps: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, from the features of one image."""
        voxels = self.region if rows is None else self.region[rows]
        known = self.log_prior if rows is None else self.log_prior[rows]
        found = self.head(maps[0].flatten(1)[:, voxels].T.float())
        structures = found[:, :N_STRUCTURES] + self.trust[0] * known[:, :N_STRUCTURES].float()
        return structures, found[:, N_STRUCTURES:] + self.trust[1] * known[:, N_STRUCTURES:].float()


def save_weights(net: SegmentationNet, path: Path, **facts: str) -> None:
    """Write weights and prior in half precision as safetensors, atomically; ``facts`` go into the header."""
    tensors = {k: v.detach().half().contiguous() for k, v in net.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {"grid": net.grid.name, "facts": json.dumps(facts)})
    partial.replace(path)


def load_weights(path: Path) -> SegmentationNet:
    """Read a network back for use.

    Raises
    ------
    InputError
        The file is missing, or does not hold this network.
    """
    if not path.is_file():
        raise InputError("there is no such weight file.", str(path), "Reinstall, or train it again.")
    try:
        with safe_open(path, "pt") as stored:
            grid = grid_named(stored.metadata()["grid"])
            tensors = {k: stored.get_tensor(k).float() for k in stored.keys()}  # noqa: SIM118 - not a dict
        net = SegmentationNet(grid)
        net.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise InputError(f"not the weights of this network ({error}).", str(path), "Reinstall, or train.") from error
    return net.eval()
