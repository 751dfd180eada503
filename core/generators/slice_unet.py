"""Network of cDPM: a U-Net on 2D slices that attend to each other; parameter names are the published ones.

It is the video U-Net of flexible diffusion modelling, Harvey et al. 2022, arXiv 2205.11495.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generators.base import Averaging

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
