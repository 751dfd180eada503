"""cDPM: a conditional diffusion model that makes a volume in groups of slices, each given slices already made.

Peng et al., MICCAI 2023, doi 10.1007/978-3-031-43993-3_2. The network is the video U-Net of flexible diffusion
modelling (Harvey et al. 2022, arXiv 2205.11495) on axial slices; parameter names are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import checkpoint
from core.errors import InputError
from core.generators import diffusion
from core.generators.base import BACKGROUND, Averaging, Generator, LoadReport, Phase, normal
from core.volume import Grid

WIDTHS = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 144: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}


@dataclass(frozen=True)
class CDPMConfig:
    """Sizes and settings; the defaults are published.

    Parameters
    ----------
    channels, multipliers, blocks, heads, groups : int or tuple of int
        Of the U-Net: width, factors of it by level, residual blocks a level, attention heads, normalisation groups.
    attention : tuple of int
        Downsampling factors with attention; the middle always has it. The published rule, image size // 16 and // 8,
        gives factors at 144 that no level has.
    rows, slices : tuple of int
        First index and number along y and z of the voxels that the model makes; others are background.
    frames, advance : int
        Slices seen at once, and how many of them are new in a stage of sampling.
    betas : tuple of float
        First and last of the linear schedule.
    predict_clean : bool
        Predict the clean slices instead of the noise (published); the noise needs long training and many steps.
    ancestral : bool
        Draw noise in every sampling step (published), or none (DDIM, better with few steps).
    steps : int
        Sampling steps a stage.
    averaging : Averaging
        Of the weights.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = WIDTHS[144]
    blocks: int = 2
    heads: int = 4
    groups: int = 32
    attention: tuple[int, ...] = (9, 18)
    rows: tuple[int, int] = (8, 176)
    slices: tuple[int, int] = (7, 130)
    frames: int = 20
    advance: int = 10
    betas: tuple[float, float] = (1e-4, 0.02)
    predict_clean: bool = False
    ancestral: bool = True
    steps: int = 1000
    rate: float = 1e-4
    averaging: Averaging = field(default=Averaging(0.9999))


HALF = CDPMConfig(
    channels=16,
    multipliers=(1, 2, 2),
    blocks=1,
    groups=8,
    attention=(),
    rows=(4, 88),
    slices=(3, 66),
    frames=10,
    advance=8,
    predict_clean=True,
    ancestral=False,
    steps=6,
    rate=5e-4,
    averaging=Averaging(0.98, start=100),
)


@dataclass(frozen=True)
class Context:
    """What every layer of the network may look at: time (b·t, e), real slices (b, t), slice indices (b, t)."""

    time: Tensor
    real: Tensor
    indices: Tensor


class ResBlock(nn.Module):
    """Two convolutions; the time scales and shifts what lies between them."""

    def __init__(self, inputs: int, outputs: int, time: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, 1, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * outputs))
        last = _zeroed(nn.Conv2d(outputs, outputs, 3, 1, 1))
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, outputs), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (b·t, inputs, h, w) to (b·t, outputs, h, w)."""
        scale, shift = self.emb_layers(context.time)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


class RelativePosition(nn.Module):
    """Vectors of the distance between two slices and the time, one for each pair and head."""

    def __init__(self, channels: int, heads: int, time: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed_distances = nn.Linear(3, channels)
        self.embed_diffusion_time = nn.Linear(time, channels)
        self.out = _zeroed(nn.Linear(channels, channels))

    def forward(self, context: Context) -> Tensor:
        """Return (b, t, t, heads, channels / heads)."""
        distance = context.indices[:, :, None] - context.indices[:, None, :]  # (b, t, t)
        parts = (distance.clamp(min=0).log1p(), (-distance).clamp(min=0).log1p(), (distance == 0).to(distance.dtype))
        time = self.embed_diffusion_time(context.time).unflatten(0, distance.shape[:2])[:, :, None]
        return self.out(F.silu(time + self.embed_distances(torch.stack(parts, -1)))).unflatten(-1, (self.heads, -1))


class Attention(nn.Module):
    """Self-attention of tokens; the residual starts from the normalised input, as published."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (b, d, t, c), attending along t, to the same shape."""
        x = self.norm(x.flatten(0, 1).mT).mT.reshape(x.shape)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (b, d, heads, t, f) each
        return x + self.proj_out(self.mix(q, k, v, context).transpose(2, 3).flatten(3))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Return attended values (b, d, heads, t, f)."""
        # The fast kernel takes four axes.
        return F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).reshape(v.shape)


class SliceAttention(Attention):
    """Attention between slices, told how far apart they are; padding slices keep to themselves."""

    def __init__(self, channels: int, heads: int, groups: int, time: int) -> None:
        super().__init__(channels, heads, groups)
        for name in ("rpe_q", "rpe_k", "rpe_v"):
            self.add_module(name, nn.ModuleDict({"rpe_net": RelativePosition(channels, heads, time)}))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Return attended values (b, d, heads, t, f)."""
        of_q, of_k, of_v = (self.get_submodule(f"{name}.rpe_net")(context) for name in ("rpe_q", "rpe_k", "rpe_v"))
        weights = q @ k.mT + torch.einsum("bdhtf,btshf->bdhts", q, of_k) + torch.einsum("bdhsf,bsthf->bdhts", k, of_q)
        apart = context.real[:, :, None] != context.real[:, None, :]
        weights = weights / math.sqrt(q.shape[-1])
        weights = weights.masked_fill(apart[:, None, None], -torch.inf).softmax(-1)
        return weights @ v + torch.einsum("bdhts,btshf->bdhtf", weights, of_v)


class AttentionBlock(nn.Module):
    """Attention over the slices at each pixel, then over the pixels of each slice."""

    def __init__(self, channels: int, heads: int, groups: int, time: int) -> None:
        super().__init__()
        self.temporal_attention = SliceAttention(channels, heads, groups, time)
        self.spatial_attention = Attention(channels, heads, groups)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (b·t, c, h, w) to the same shape."""
        tokens = x.flatten(2).mT.unflatten(0, context.real.shape)  # (b, t, h·w, c)
        tokens = self.temporal_attention(tokens.transpose(1, 2), context).transpose(1, 2)
        return self.spatial_attention(tokens, context).flatten(0, 1).mT.reshape(x.shape)


class Downsample(nn.Module):
    """Halve height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c, h / 2, w / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0))


class SliceUNet(nn.Module):
    """U-Net on 2D slices that attend to each other; predicts their noise, or them without it."""

    def __init__(self, config: CDPMConfig) -> None:
        super().__init__()
        self.width = config.channels
        time = 4 * config.channels
        self.time_embed = nn.Sequential(nn.Linear(config.channels, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks, skips = _encoder(config, time)
        deepest = config.channels * config.multipliers[-1]
        self.middle_block = nn.ModuleList(
            [
                ResBlock(deepest, deepest, time, config.groups),
                AttentionBlock(deepest, config.heads, config.groups, time),
                ResBlock(deepest, deepest, time, config.groups),
            ]
        )
        self.output_blocks = _decoder(config, time, skips)
        width = config.channels * config.multipliers[0]
        last = _zeroed(nn.Conv2d(config.channels, 1, 3, 1, 1))
        self.out = nn.Sequential(nn.GroupNorm(config.groups, width), nn.SiLU(), last)

    def forward(
        self, noisy: Tensor, clean: Tensor, observed: Tensor, target: Tensor, time: Tensor, indices: Tensor
    ) -> Tensor:
        """Return the prediction (b, t, 1, h, w).

        Parameters
        ----------
        noisy, clean : Tensor, shape (b, t, 1, h, w)
            Slices; where observed, the clean ones are seen.
        observed, target : Tensor, shape (b, t)
            1 or 0; slices that are neither are padding.
        time : Tensor, shape (b,)
            0 to 1000.
        indices : Tensor, shape (b, t)
            Where the slices are in the volume.
        """
        b, t = observed.shape
        seen = observed[:, :, None, None, None].to(noisy.dtype)
        h = torch.cat([noisy * (1 - seen) + clean * seen, seen.expand_as(noisy)], 2).flatten(0, 1)  # (b·t, 2, h, w)
        emb = self.time_embed(_sinusoids(time, self.width)).repeat_interleave(t, 0)
        context = Context(emb, (observed + target).clamp(max=1), indices.to(noisy.dtype))
        skips = []
        for block in self.input_blocks:
            h = _through(block, h, context)
            skips.append(h)
        h = _through(self.middle_block, h, context)
        for block in self.output_blocks:
            h = _through(block, torch.cat([h, skips.pop()], 1), context)
        return self.out(h).unflatten(0, (b, t))


class CDPM(Generator):
    """Conditional diffusion on groups of slices; volumes are made from below, each stage given the last slices."""

    name = "cdpm"
    sampling = ("denoiser",)

    def __init__(self, grid: Grid, config: CDPMConfig | None = None) -> None:
        super().__init__(grid)
        self.config = config or (CDPMConfig() if grid.name == "full" else HALF)
        self.steps = self.config.steps
        self.averaging = {"denoiser": self.config.averaging}
        self.alphabar = diffusion.linear_alphabar(*self.config.betas)
        self.denoiser = SliceUNet(self.config)

    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return AdamW without decay."""
        return torch.optim.AdamW(self.denoiser.parameters(), lr=self.config.rate, weight_decay=0.0)

    def phases(self, progress: float) -> list[Phase]:
        """Return the one phase."""
        return [Phase("denoiser", ("denoiser",), self._loss)]

    def stages(self) -> list[tuple[list[int], list[int]]]:
        """Return observed and new slices of every stage; slice 0 is the blank one below the volume."""
        total, seen = self.config.slices[1] + 1, self.config.frames - self.config.advance
        starts = range(1, total, self.config.advance)
        return [(list(range(max(0, s - seen), s)), list(range(s, min(s + self.config.advance, total)))) for s in starts]

    def calls(self, steps: int | None) -> int:
        """Return steps times stages."""
        return (steps or self.config.steps) * len(self.stages())

    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z)."""
        times = diffusion.spread_times(steps or self.config.steps)
        height, width = self.config.rows[1], self.grid.shape[0]
        stack = torch.full((1, self.config.slices[1] + 1, 1, height, width), BACKGROUND, device=self.device)
        for observed, new in self.stages():
            stack[:, new] = self._make(stack[:, observed], observed, new, times, rng)
        return self._unstack(stack[0, 1:, 0])

    def files(self, folder: Path) -> list[Path]:
        """Return the latest averaged weights of a published folder, or what else there is."""
        averaged = sorted(folder.glob("ema_*.pt"))
        return averaged[-1:] or super().files(folder)

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Fill the network, after rebuilding it as the file's ``config`` says where it has one; see the base."""
        before = self.config, self.denoiser
        self.config = self._as_trained(Path(path))
        if self.config != before[0]:
            self.denoiser = SliceUNet(self.config).to(self.device)
        try:
            return super().load_checkpoint(path)
        except InputError:
            self.config, self.denoiser = before
            raise

    def _as_trained(self, path: Path) -> CDPMConfig:
        files = self.files(path) if path.is_dir() else [path]
        known = self.grid.name == "full" and files and files[-1].is_file()  # published files are of the full grid
        settings = checkpoint.read_settings(files[-1]) if known else {}
        return _published_config(settings, self.config, path)

    def _loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        stacks = self._stack(batch)  # (b, slices, 1, y, x)
        clean, observed, target, indices = draw_slices(stacks, self.config.frames, rng)
        time = torch.randint(0, diffusion.TRAINING_STEPS, (len(batch),), generator=rng)
        noise = normal(clean.shape, rng, batch.device)
        noisy = diffusion.noised(clean, noise, self.alphabar[time])
        predicted = self.denoiser(noisy, clean, observed, target, time.to(batch.device), indices)
        counts = (1 - observed)[:, :, None, None, None]
        goal = clean if self.config.predict_clean else noise
        return ((predicted - goal).square() * counts).mean()

    def _make(
        self, given: Tensor, observed: list[int], new: list[int], times: list[int], rng: torch.Generator
    ) -> Tensor:
        """Denoise new slices given others; (1, new, 1, y, x)."""
        seen, shape = len(observed), (1, len(new), *given.shape[2:])
        mask = torch.tensor([[1.0] * seen + [0.0] * len(new)], device=given.device)
        indices = torch.tensor([observed + new], device=given.device)
        x = normal(shape, rng, given.device)
        for time, alphabar, before in diffusion.pairs(self.alphabar, times):
            both = torch.cat([given, x], 1)
            at = torch.tensor([time], device=given.device)
            clean = self.denoiser(both, both, mask, 1 - mask, at, indices)[:, seen:]
            if not self.config.predict_clean:
                clean = diffusion.without_noise(x, clean, alphabar)
            clean = clean.clamp(-1, 1)
            if self.config.ancestral:
                x = diffusion.ancestral_step(x, clean, alphabar, before, normal(shape, rng, given.device))
            else:
                x = diffusion.ddim_step(x, clean, alphabar, before)
        return x

    def _stack(self, batch: Tensor) -> Tensor:
        """Turn volumes (b, 1, x, y, z) into slices (b, 1 + z, 1, y, x), a blank one first."""
        (row, rows), (first, count) = self.config.rows, self.config.slices
        slices = batch[:, :, :, row : row + rows, first : first + count].permute(0, 4, 1, 3, 2)
        return F.pad(slices, (0, 0, 0, 0, 0, 0, 1, 0), value=BACKGROUND)

    def _unstack(self, slices: Tensor) -> Tensor:
        """Put slices (z, y, x) back into a volume of background."""
        (row, rows), (first, count) = self.config.rows, self.config.slices
        volume = torch.full(self.grid.shape, BACKGROUND, device=slices.device)
        volume[:, row : row + rows, first : first + count] = slices.permute(2, 1, 0)
        return volume


def draw_indices(total: int, frames: int, rng: torch.Generator) -> list[int]:
    """Draw 1 to ``frames`` slice indices below ``total`` at an even spacing, itself drawn on a logarithmic scale."""
    count = int(torch.randint(1, frames + 1, (1,), generator=rng))
    u, v = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
    spacing = math.exp(u * math.log(total / (count - 0.999)))
    while spacing * (count - 1) >= total:  # rounding alone can lead here
        spacing *= 0.999
    start = v * (total - spacing * (count - 1))
    return [int(start + i * spacing) for i in range(count)]


def draw_roles(total: int, frames: int, rng: torch.Generator) -> tuple[list[int], list[int]]:
    """Draw which slices are observed and which are targets, together at most ``frames``."""
    roles: tuple[list[int], list[int]] = ([], list(dict.fromkeys(draw_indices(total, frames, rng))))
    while True:
        role = roles[int(torch.randint(0, 2, (1,), generator=rng))]
        new = [i for i in dict.fromkeys(draw_indices(total, frames, rng)) if i not in roles[0] and i not in roles[1]]
        if len(roles[0]) + len(roles[1]) + len(new) > frames:
            return roles
        role += new


def draw_slices(stacks: Tensor, frames: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the slices of a training step from stacks (b, slices, …).

    Returns
    -------
    tuple of Tensor
        Slices (b, frames, …); whether observed, whether target, and the index, each (b, frames). Places left over are
        filled with slices of the next stack of the batch, neither observed nor target.
    """
    total = stacks.shape[1]
    clean, observed, target = [], torch.zeros(len(stacks), frames), torch.zeros(len(stacks), frames)
    indices = torch.randint(0, total, (len(stacks), frames), generator=rng)
    for i, stack in enumerate(stacks):
        given, wanted = draw_roles(total, frames, rng)
        own = len(given) + len(wanted)
        indices[i, :own] = torch.tensor(given + wanted)
        observed[i, : len(given)] = 1
        target[i, len(given) : own] = 1
        other = stacks[(i + 1) % len(stacks)]
        clean.append(torch.cat([stack[indices[i, :own]], other[indices[i, own:]]]))
    device = stacks.device
    return torch.stack(clean), observed.to(device), target.to(device), indices.to(device)


def _published_config(settings: Mapping[str, object], ours: CDPMConfig, path: Path) -> CDPMConfig:
    """Return our configuration with the sizes of a published one."""
    if not settings:
        return ours
    try:
        size = int(str(settings["image_size"]))
        frames = int(str(settings.get("max_frames", ours.frames)))
        factors = tuple(size // int(part) for part in str(settings["attention_resolutions"]).split(","))
        return replace(
            ours,
            channels=int(str(settings["num_channels"])),
            multipliers=WIDTHS[size],
            blocks=int(str(settings["num_res_blocks"])),
            heads=int(str(settings["num_heads"])),
            groups=CDPMConfig.groups,
            attention=factors,
            frames=frames,
            advance=frames // 2,
            predict_clean=bool(settings.get("predict_xstart", False)),
        )
    except (KeyError, ValueError, ZeroDivisionError) as error:
        what = f"its config does not describe a cDPM network ({error})."
        raise InputError(what, str(path), "Choose the model the file belongs to, or the file of this model.") from error


def _encoder(config: CDPMConfig, time: int) -> tuple[nn.ModuleList, list[int]]:
    """Return the way down, and the widths of what it leaves for the way up."""
    width = config.channels
    blocks, skips = [nn.ModuleList([nn.Conv2d(2, width, 3, 1, 1)])], [width]
    for level, multiplier in enumerate(config.multipliers):
        for _ in range(config.blocks):
            blocks.append(_level(width, config.channels * multiplier, level, config, time))
            width = config.channels * multiplier
            skips.append(width)
        if level < len(config.multipliers) - 1:
            blocks.append(nn.ModuleList([Downsample(width)]))
            skips.append(width)
    return nn.ModuleList(blocks), skips


def _decoder(config: CDPMConfig, time: int, skips: list[int]) -> nn.ModuleList:
    width, blocks = skips[-1], []
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for _ in range(config.blocks + 1):
            blocks.append(_level(width + skips.pop(), config.channels * multiplier, level, config, time))
            width = config.channels * multiplier
        if level:
            blocks[-1].append(Upsample(width))
    return nn.ModuleList(blocks)


def _level(inputs: int, outputs: int, level: int, config: CDPMConfig, time: int) -> nn.ModuleList:
    layers: list[nn.Module] = [ResBlock(inputs, outputs, time, config.groups)]
    if 2**level in config.attention:
        layers.append(AttentionBlock(outputs, config.heads, config.groups, time))
    return nn.ModuleList(layers)


def _through(layers: nn.Module, x: Tensor, context: Context) -> Tensor:
    for layer in layers.children():
        x = layer(x, context) if isinstance(layer, ResBlock | AttentionBlock) else layer(x)
    return x


def _sinusoids(time: Tensor, width: int) -> Tensor:
    """Return (b, width): cosines, then sines."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=time.device))
    angles = time[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
