"""MedSyn: a diffusion model of small volumes, and one of super-resolution given those.

Xu et al., IEEE TMI 2024, doi 10.1109/TMI.2024.3415032, as MRIAnatEval (Wu et al., MICCAI 2024,
doi 10.1007/978-3-031-72117-5_28) made it one of brains: no text, one channel, low resolution by thirds within sagittal
slices. How the two stages were joined is not published; here the small volume is resized to the grid by nearest
neighbours and the second stage runs over the whole volume.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generators import diffusion
from core.generators.base import Averaging, Generator, Phase, normal, random_crops, uniform
from core.volume import Grid

HEAD = 32  # channels of an attention head


@dataclass(frozen=True)
class UNetConfig:
    """One of the two U-Nets.

    Parameters
    ----------
    width, multipliers, inputs, heads, groups, kernel : int or tuple of int
        First width, factors of it by level, channels in, attention heads, normalisation groups, first kernel.
    middles : int
        Blocks in the middle; they share one attention, each with its own normalisation.
    low_res : bool
        Layout of the low-resolution network: it halves all three axes, and does so between the two blocks of a level.
    upsample_last : bool
        Upsample at the end of a level instead of after its first block. Two published scripts for sampling do so;
        training does not.
    """

    width: int
    multipliers: tuple[int, ...]
    inputs: int
    heads: int
    middles: int
    low_res: bool
    groups: int = 8
    kernel: int = 7
    upsample_last: bool = False


@dataclass(frozen=True)
class MedSynConfig:
    """Both stages; the defaults are those of MRIAnatEval.

    Parameters
    ----------
    low_res, super_res : UNetConfig
        The networks.
    shrink, degrade : tuple of int
        Factors from the grid to the small volume, and of the degradation that super-resolution learns to undo.
    crop, crops : tuple of int, int
        Size of the crops that super-resolution is trained on, and how many of each volume.
    clamps : tuple of float
        How far alphabar stays from 0 and 1, by stage.
    steps : tuple of int
        Network evaluations by stage.
    least_weight : float
        Smallest weight of the error in the loss of the low-resolution network, which falls as the noise grows; 1 weighs
        all times alike, as the model of chest CT does.
    blur : float
        Largest share of noise in what super-resolution is given in training.
    """

    low_res: UNetConfig = UNetConfig(64, (1, 2, 4, 8, 16), 1, heads=8, middles=4, low_res=True)
    super_res: UNetConfig = UNetConfig(56, (1, 2, 4, 8), 2, heads=4, middles=1, low_res=False)
    shrink: tuple[int, int, int] = (1, 3, 3)
    degrade: tuple[int, int, int] = (4, 4, 4)
    crop: tuple[int, int, int] = (48, 64, 48)
    crops: int = 2
    clamps: tuple[float, float] = (0.0, 1e-4)
    steps: tuple[int, int] = (51, 31)
    least_weight: float = 0.1
    blur: float = 0.4
    rate: float = 1e-4
    averaging: tuple[Averaging, Averaging] = field(
        default=(Averaging(0.995, every=2, start=10000), Averaging(0.995, every=10, start=10000))
    )


HALF = MedSynConfig(
    low_res=UNetConfig(32, (1, 2, 3), 1, heads=2, middles=1, low_res=True, kernel=3),
    super_res=UNetConfig(8, (1, 2, 4), 2, heads=2, middles=1, low_res=False, groups=4, kernel=3),
    shrink=(2, 2, 2),
    degrade=(2, 2, 2),
    crop=(24, 32, 24),
    crops=4,
    steps=(10, 4),
    least_weight=1.0,  # a short run must learn the shape of a brain first, which is decided in the noise
    rate=5e-4,
    averaging=(Averaging(0.998, start=100), Averaging(0.998, start=100)),
)


class Block(nn.Module):
    """Convolution, normalisation, scale and shift, activation."""

    def __init__(self, inputs: int, outputs: int, groups: int, depth: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(inputs, outputs, (depth, 3, 3), padding=(depth // 2, 1, 1))
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Map (b, inputs, x, y, z) to (b, outputs, x, y, z)."""
        x = self.norm(self.proj(x))
        return F.silu(x if scale is None or shift is None else x * (scale + 1) + shift)


class ResnetBlock(nn.Module):
    """Two blocks and a shortcut, in each slice (``depth`` 1) or across them (3); the time acts within the first."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, depth: int = 1, timed: bool = True) -> None:
        super().__init__()
        time = 4 * config.width
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * outputs)) if timed else None
        self.block1 = Block(inputs, outputs, config.groups, depth)
        self.block2 = Block(outputs, outputs, config.groups, depth)
        self.res_conv = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (b, inputs, x, y, z) to (b, outputs, x, y, z)."""
        moves = self.mlp(time)[:, :, None, None, None].chunk(2, 1) if self.mlp is not None else ()
        return self.block2(self.block1(x, *moves)) + self.res_conv(x)


class ChannelNorm(nn.Module):
    """Normalisation over the channels of each voxel, with a gain alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, c, x, y, z)."""
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.gamma


class SliceAttention(nn.Module):
    """Self-attention within each sagittal slice."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(channels, 3 * heads * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, c, x, y, z)."""
        tokens = x.flatten(3).permute(0, 2, 3, 1).flatten(0, 1)  # (b·x, y·z, c)
        q, k, v = self.to_qkv(tokens).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)  # (b·x, heads, y·z, HEAD)
        mixed = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed.unflatten(0, (len(x), -1)).permute(0, 3, 1, 2).reshape(x.shape)


class Level(nn.Module):
    """What one level of the U-Net holds, on the way down or up; ``change`` halves or doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig, change: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.block1 = ResnetBlock(inputs, outputs, config)
        self.block2 = ResnetBlock(outputs, outputs, config)
        self.volume = ResnetBlock(outputs, outputs, config, depth=3)
        self.change = change


class Down(Level):
    """A level on the way down."""

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return what goes on to the next level, and what is left for the way up."""
        x = self.block1(x, time)
        if self.config.low_res:
            return self.volume(self.block2(self.change(x), time), time), x
        x = self.block2(x, time)
        return self.volume(self.change(x), time), x


class Up(Level):
    """A level on the way up."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return what goes on to the next level."""
        x = self.block1(x, time)
        if self.config.upsample_last:
            return self.change(self.volume(self.block2(x, time), time))
        return self.volume(self.block2(self.change(x), time), time)


class UNet(nn.Module):
    """U-Net of convolutions within slices, with one block across them a level; predicts the clean volume."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width, *(config.width * m for m in config.multipliers)]
        time = 4 * config.width
        steps, deepest = list(pairwise(widths)), widths[-1]
        self.init_conv = nn.Conv3d(config.inputs, config.width, config.kernel, padding=config.kernel // 2)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(config.width, time), nn.GELU(), nn.Linear(time, time))
        changes = [_down(outputs, config) for _, outputs in steps[:-1]]
        self.downs = nn.ModuleList(
            Down(*pair, config, change) for pair, change in zip(steps, [*changes, nn.Identity()], strict=True)
        )
        self.mid_block1 = ResnetBlock(deepest, deepest, config)
        self.mid_attention = SliceAttention(deepest, config.heads)
        self.mid_norms = nn.ModuleList(ChannelNorm(deepest) for _ in range(config.middles))
        self.mid_volumes = nn.ModuleList(ResnetBlock(deepest, deepest, config, depth=3) for _ in range(config.middles))
        self.mid_block2 = ResnetBlock(deepest, deepest, config)
        changes = [_up(inputs, config) for inputs, _ in reversed(steps[1:])]
        self.ups = nn.ModuleList(
            Up(2 * outputs, inputs, config, change)
            for (inputs, outputs), change in zip(reversed(steps), [*changes, nn.Identity()], strict=True)
        )
        depth = 3 if config.low_res else 1
        self.final_block = ResnetBlock(2 * config.width, config.width, config, depth, timed=config.low_res)
        self.final_conv = nn.Conv3d(config.width, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (b, inputs, x, y, z) and times (b,) in 0 to 1000 to (b, 1, x, y, z)."""
        emb = self.time_mlp(_sinusoids(time, self.config.width))
        first = x = self.init_conv(x)
        skips: list[Tensor] = []
        for level in self.downs:
            x, skip = level(x, emb)
            skips.append(skip)
        x = self.mid_block1(x, emb)
        for norm, volume in zip(self.mid_norms, self.mid_volumes, strict=True):
            x = volume(x + self.mid_attention(norm(x)), emb)
        x = self.mid_block2(x, emb)
        for level in self.ups:
            x = level(torch.cat([x, skips.pop()], 1), emb)
        x = self.final_block(torch.cat([x, first], 1), emb)
        return self.final_conv(F.gelu(x) if self.config.low_res else x)


class MedSyn(Generator):
    """Two diffusion models that predict the clean volume: a small one, then the detail given it."""

    name = "medsyn"
    sampling = ("low_res", "super_res")

    def __init__(self, grid: Grid, config: MedSynConfig | None = None) -> None:
        super().__init__(grid)
        self.config = config or (MedSynConfig() if grid.name == "full" else HALF)
        self.steps = self.config.steps[0]
        self.averaging = dict(zip(self.sampling, self.config.averaging, strict=True))
        self.low_res = UNet(self.config.low_res)
        self.super_res = UNet(self.config.super_res)

    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return AdamW as published."""
        parameters = self.get_submodule(module).parameters()
        return torch.optim.AdamW(parameters, lr=self.config.rate, betas=(0.9, 0.999), weight_decay=0.01)

    def phases(self, progress: float) -> list[Phase]:
        """Return a phase for each stage; they are trained side by side."""
        return [
            Phase("low_res", ("low_res",), self._low_res_loss, clip=1.0),
            Phase("super_res", ("super_res",), self._super_res_loss, clip=1.0),
        ]

    def calls(self, steps: int | None) -> int:
        """Return the steps of both stages together."""
        return sum(steps or default for default in self.config.steps)

    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z); without ``steps`` each stage takes its published number."""
        low_steps, high_steps = (steps or default for default in self.config.steps)
        low_clamp, high_clamp = self.config.clamps
        small = self._chain(self.low_res, self._small, low_steps, low_clamp, rng)
        given = F.interpolate(small, self.grid.shape)

        def detail(x: Tensor, time: Tensor) -> Tensor:
            return self.super_res(torch.cat([given, x], 1), time)

        return self._chain(detail, self.grid.shape, high_steps, high_clamp, rng)[0, 0]

    def translate(self, module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the published names of both networks to ours, and drop the schedule some files hold beside them."""
        inner = {k.removeprefix(WRAPPER): v for k, v in tensors.items() if k.startswith(WRAPPER)} or tensors
        found: dict[str, Tensor] = {}
        for name, tensor in inner.items():
            ours = _renamed(name, module)
            # The middle blocks share one attention, of which files hold a copy for each.
            same = ours in found and torch.equal(found[ours], tensor)
            found[name if ours in found and not same else ours] = tensor
        return found

    def files(self, folder: Path) -> list[Path]:
        """Return the weights in an accelerate folder, raw before averaged, so that the averaged ones stay."""
        return [p for p in super().files(folder) if p.stem.startswith(("pytorch_model", "model", "low_res"))]

    @property
    def _small(self) -> tuple[int, ...]:
        return tuple(side // factor for side, factor in zip(self.grid.shape, self.config.shrink, strict=True))

    def _low_res_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        clean = F.interpolate(batch, self._small)
        time, noisy, alphabar = self._noised(clean, self.config.clamps[0], rng)
        weight = (
            (alphabar / (1 - alphabar)).sqrt().clamp(self.config.least_weight, 1.0).to(clean)[:, None, None, None, None]
        )
        return (weight * (self.low_res(noisy, time) - clean)).square().mean()

    def _super_res_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        clean = random_crops(batch.repeat_interleave(self.config.crops, 0), self.config.crop, rng)
        small = F.interpolate(clean, [n // k for n, k in zip(self.config.crop, self.config.degrade, strict=True)])
        given = F.interpolate(small, self.config.crop)
        share = self.config.blur * uniform((len(clean), 1, 1, 1, 1), rng, batch.device)
        given = (1 - share) * given + share * normal(given.shape, rng, batch.device)
        time, noisy, _ = self._noised(clean, self.config.clamps[1], rng)
        return F.mse_loss(self.super_res(torch.cat([given, noisy], 1), time), clean)

    def _noised(self, clean: Tensor, clamp: float, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a time for each volume; return it for the network, the noisy volumes, and alphabar."""
        time = torch.rand(len(clean), generator=rng)
        alphabar = diffusion.cosine_alphabar(time, clamp)
        noisy = diffusion.noised(clean, normal(clean.shape, rng, clean.device), alphabar)
        return (diffusion.TRAINING_STEPS * time).to(clean.device), noisy, alphabar

    def _chain(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        shape: Sequence[int],
        steps: int,
        clamp: float,
        rng: torch.Generator,
    ) -> Tensor:
        """Denoise (1, 1, *shape) from noise by DDIM; the last evaluation is the result."""
        times = diffusion.continuous_times(steps)
        alphabars = diffusion.cosine_alphabar(torch.tensor(times, dtype=torch.float64), clamp).tolist()
        x = normal((1, 1, *shape), rng, self.device)
        for time, alphabar, before in zip(times, alphabars, [*alphabars[1:], 1.0], strict=True):
            at = torch.tensor([diffusion.TRAINING_STEPS * time], dtype=x.dtype, device=x.device)
            x = diffusion.ddim_step(x, network(x, at).clamp(-1, 1), alphabar, before)
        return x


WRAPPER = "denoise_fn."
# Slots of a level in the published lists.
SLOTS = {
    "low_res": {"0": "block1", "1": "change", "2": "block2", "3": "volume"},
    "super_res": {"0": "block1", "1": "block2", "4": "volume", "5": "change"},
}
RENAMED = (
    (r"\.fn\b", ""),
    (r"^mid_spatial_attn\.", "mid_spatial_attn1."),
    (r"^mid_spatial_attn\d\.(to_qkv|to_out)", r"mid_attention.\1"),
    (r"^mid_temporal_conv\.", "mid_temporal_attn1."),
    (r"^init_conv0\.", "init_conv."),
    (r"^(final_conv_0|final_conv0\.0)\.", "final_block."),
    (r"^(final_conv_1|final_conv0)\.1\.", "final_conv."),
)


def _renamed(name: str, module: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    name = re.sub(r"^mid_temporal_attn(\d)\.", lambda m: f"mid_volumes.{int(m[1]) - 1}.", name)
    name = re.sub(r"^mid_spatial_attn(\d)\.norm\.", lambda m: f"mid_norms.{int(m[1]) - 1}.", name)
    return re.sub(r"^((?:downs|ups)\.\d+)\.(\d)\.", lambda m: f"{m[1]}.{SLOTS[module].get(m[2], m[2])}.", name)


def _down(channels: int, config: UNetConfig) -> nn.Module:
    if config.low_res:
        return nn.Conv3d(channels, channels, 4, 2, 1)
    return nn.Conv3d(channels, channels, (1, 4, 4), (1, 2, 2), (0, 1, 1))


def _up(channels: int, config: UNetConfig) -> nn.Module:
    if config.low_res:
        return nn.ConvTranspose3d(channels, channels, 4, 2, 1)
    return nn.ConvTranspose3d(channels, channels, (1, 4, 4), (1, 2, 2), (0, 1, 1))


def _sinusoids(time: Tensor, width: int) -> Tensor:
    """Return (b, width): sines, then cosines."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, device=time.device))
    angles = time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
