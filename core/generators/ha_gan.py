"""HA-GAN: learns a coarse whole volume and one fine slab at a time from one latent map; sampling makes all of it.

Networks and objective of Sun et al. (IEEE JBHI 2022, doi 10.1109/JBHI.2022.3172976) as adapted to
144×192×144 by Wu et al. (MICCAI 2024, doi 10.1007/978-3-031-72117-5_28). Published files are
``G_iterN.pth``, ``D_…``, ``E_…`` and ``Sub_E_…``; the first is enough to sample. Generators published for 128³ and 256³
hold tensors of the same names and shapes, so a file does not tell its grid; of the files for 256³ the discriminator
and the encoder of latent maps do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generators.base import Averaging, Generator, Phase, normal
from core.generators.blocks import SLOPE, DoublingConv, halving
from core.volume import Grid

Sides = int | tuple[int, int, int]
RATIO = 4  # sides of volume to sides of latent map and of coarse volume
# Published layers are numbered by depth: models of smaller volumes leave out the first ones.
LAST_SUB = 4
DOUBLING = (2, 3, 6)  # layers of the generator before which each side doubles, and the last one
SLAB_LAYERS: dict[int, tuple[Sides, Sides, Sides]] = {  # kernel, stride, padding of the discriminator's layers
    2: (4, 2, 1),
    3: (4, 2, 1),
    4: ((2, 4, 4), 2, (0, 1, 1)),
    5: ((2, 4, 4), 2, (0, 1, 1)),
    6: ((1, 4, 4), (1, 2, 2), (0, 1, 1)),
}


@dataclass(frozen=True)
class Config:
    """Sizes and rates; the defaults are the published ones.

    Parameters
    ----------
    latent : int
        Length of the code.
    decoder : tuple of int
        Channels of the generator, from the fully connected layer to the last hidden one.
    critic : tuple of int
        Channels of the discriminator of slabs up to layer 6.
    sub_critic, sub_encoder : tuple of int
        Channels of the discriminator of coarse volumes and of the encoder of latent maps up to layer 4.
    base : tuple of int
        Grid on which the generator starts.
    groups : int
        Of every group normalisation.
    slab : int
        Thickness of a slab, left to right.
    position : int
        What the discriminator divides the first plane of the slab by. That of the published 128³ model was kept.
    rate, discriminator_rate : float
        Learning rates of Adam.
    averaging : Averaging, optional
        Of the generator's weights; none was published.
    """

    latent: int = 1024
    decoder: tuple[int, int, int, int, int, int, int] = (512, 512, 512, 256, 128, 64, 32)
    critic: tuple[int, ...] = (32, 64, 128, 256, 512)
    sub_critic: tuple[int, ...] = (64, 128, 256)
    sub_encoder: tuple[int, ...] = (64, 128, 256)
    base: tuple[int, int, int] = (4, 4, 4)
    groups: int = 8
    slab: int = 24
    position: int = 112
    rate: float = 1e-4
    discriminator_rate: float = 4e-4
    averaging: Averaging | None = None


CONFIGS = {
    "full": Config(),
    "half": Config(
        latent=128,
        decoder=(128, 128, 128, 128, 64, 64, 32),
        critic=(32, 64, 128, 256),
        sub_critic=(64, 128),
        sub_encoder=(64, 128),
        slab=12,
        position=60,
        rate=2e-4,
        averaging=Averaging(0.995, start=100),
    ),
}


class SpectralNorm(nn.Module):
    """Divides a layer's weight by its largest singular value, from one power iteration a call (arXiv 1802.05957).

    torch's own runs no iteration outside training and stores other tensors than the published files hold.
    """

    u0: Tensor
    sv0: Tensor

    def start(self, outputs: int) -> None:
        """Register the estimates of the singular vector and value."""
        self.register_buffer("u0", torch.randn(1, outputs))
        self.register_buffer("sv0", torch.ones(1))

    def divided(self, weight: Tensor) -> Tensor:
        """Return the weight with spectral norm about 1."""
        flat = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u0 @ flat)
            u = F.normalize(v @ flat.T)
        value = (v @ flat.T @ u.T).squeeze()
        if self.training:
            self.u0.copy_(u)
            self.sv0.fill_(value.detach())
        return weight / value


class NormedConv(nn.Conv3d, SpectralNorm):
    """3D convolution with spectral normalisation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sides,
        stride: Sides,
        padding: Sides,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding)
        self.start(outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Convolve with the divided weight."""
        return F.conv3d(h, self.divided(self.weight), self.bias, self.stride, self.padding)


class NormedLinear(nn.Linear, SpectralNorm):
    """Linear layer with spectral normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.start(outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Map with the divided weight."""
        return F.linear(h, self.divided(self.weight), self.bias)


class CoarseHead(nn.Module):
    """Maps the latent map to the coarse volume."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.decoder[5]
        self.tp_conv1 = _smoothing(width, width // 2)
        self.bn1 = nn.GroupNorm(config.groups, width // 2)
        self.tp_conv2 = _smoothing(width // 2, width // 4)
        self.bn2 = nn.GroupNorm(config.groups, width // 4)
        self.tp_conv3 = _smoothing(width // 4, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Map (b, c, x/4, y/4, z/4) to (b, 1, x/4, y/4, z/4) in [-1, 1]."""
        h = F.relu(self.bn1(self.tp_conv1(latent)))
        h = F.relu(self.bn2(self.tp_conv2(h)))
        return torch.tanh(self.tp_conv3(h))


class Decoding(nn.Module):
    """Maps a code to a whole volume, or to a slab of it and a coarse volume."""

    def __init__(self, config: Config, grid: Grid) -> None:
        super().__init__()
        self.start = (config.decoder[0], *config.base)
        self.latent_shape = _reduced(grid)
        self.thickness = config.slab // RATIO
        self.fc1 = nn.Linear(config.latent, math.prod(self.start))
        for number, (inputs, outputs) in enumerate(pairwise(config.decoder), start=1):
            layer = DoublingConv(inputs, outputs, bias=True) if number in DOUBLING else _smoothing(inputs, outputs)
            self.add_module(f"tp_conv{number}", layer)
            self.add_module(f"bn{number}", nn.GroupNorm(config.groups, outputs))
        self.tp_conv7 = DoublingConv(config.decoder[6], 1, bias=True)
        self.sub_G = CoarseHead(config)

    def forward(self, code: Tensor, plane: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Make volumes.

        Parameters
        ----------
        code : Tensor, shape (b, latent) or (b, c, x, y, z)
            Code; or a latent map, from which only the fine layers are run.
        plane : int, optional
            First plane of the slab; the whole volume without it.

        Returns
        -------
        tuple
            Volume or slab, and the coarse volume where a slab of a code was asked for.
        """
        if code.ndim != 2:
            return self._fine(code), None
        latent = self._latent(code)
        if plane is None:
            return self._fine(latent), None
        # The latent slab begins at a multiple of four planes, up to three before the slab itself: as published.
        return self._fine(latent.narrow(2, plane // RATIO, self.thickness)), self.sub_G(latent)

    def _latent(self, code: Tensor) -> Tensor:
        h = self._stage(1, self.fc1(code).unflatten(1, self.start))
        h = self._stage(3, self._stage(2, h))
        h = self._stage(4, F.interpolate(h, size=self.latent_shape))
        return self._stage(5, h)

    def _fine(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.tp_conv7(self._stage(6, latent)))

    def _stage(self, number: int, h: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f"bn{number}")(self.get_submodule(f"tp_conv{number}")(h)))


class CoarseCritic(nn.Module):
    """Maps a coarse volume to a logit."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.names = _numbered(config.sub_critic, LAST_SUB)
        for name, (inputs, outputs) in zip(self.names, pairwise((1, *config.sub_critic)), strict=True):
            self.add_module(name, NormedConv(inputs, outputs, 4, 2, 1))
        self.conv5 = NormedConv(config.sub_critic[-1], 1, 4, 1, 0)

    def forward(self, volume: Tensor) -> Tensor:
        """Map (b, 1, x/4, y/4, z/4) to (b, 1)."""
        for name in self.names:
            volume = F.leaky_relu(self.get_submodule(name)(volume), SLOPE)
        return self.conv5(volume).mean((2, 3, 4))


class Discriminator(nn.Module):
    """Maps slab, its position and coarse volume to a logit: the mean of one of each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.position = config.position
        widths = config.critic
        self.names = _numbered(widths, max(SLAB_LAYERS))
        for name, (inputs, outputs) in zip(self.names, pairwise((1, *widths)), strict=True):
            self.add_module(name, NormedConv(inputs, outputs, *SLAB_LAYERS[int(name[-1])]))
        self.conv7 = NormedConv(widths[-1], widths[-1] // 4, (1, 4, 4), 1, 0)
        self.fc1 = NormedLinear(widths[-1] // 4 + 1, widths[-1] // 8)
        self.fc2 = NormedLinear(widths[-1] // 8, 1)
        self.sub_D = CoarseCritic(config)

    def forward(self, slab: Tensor, coarse: Tensor, plane: int) -> Tensor:
        """Map (b, 1, slab, y, z), (b, 1, x/4, y/4, z/4) and the first plane to (b, 1)."""
        h = slab
        for name in (*self.names, "conv7"):
            h = F.leaky_relu(self.get_submodule(name)(h), SLOPE)
        h = F.pad(h.mean((2, 3, 4)), (0, 1), value=plane / self.position)
        fine = self.fc2(F.leaky_relu(self.fc1(h), SLOPE))
        return (fine + self.sub_D(coarse)) / 2


class Encoder(nn.Module):
    """Maps a slab to its part of the latent map."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.decoder[5]
        self.conv1 = halving(1, width // 2)
        self.bn1 = nn.GroupNorm(config.groups, width // 2)
        self.conv2 = _smoothing(width // 2, width // 2)
        self.bn2 = nn.GroupNorm(config.groups, width // 2)
        self.conv3 = halving(width // 2, width)
        self.bn3 = nn.GroupNorm(config.groups, width)

    def forward(self, slab: Tensor) -> Tensor:
        """Map (b, 1, slab, y, z) to (b, c, slab/4, y/4, z/4)."""
        h = F.relu(self.bn1(self.conv1(slab)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)))


class SubEncoder(nn.Module):
    """Maps a latent map to a code."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.sub_encoder
        self.names = _numbered(widths, LAST_SUB)
        for name, (inputs, outputs) in zip(self.names, pairwise((config.decoder[5], *widths)), strict=True):
            self.add_module(name, halving(inputs, outputs))
            self.add_module(name.replace("conv", "bn"), nn.GroupNorm(config.groups, outputs))
        self.conv5 = nn.Conv3d(widths[-1], config.latent, 4)

    def forward(self, latent: Tensor) -> Tensor:
        """Map (b, c, x/4, y/4, z/4) to (b, latent)."""
        for name in self.names:
            latent = F.relu(self.get_submodule(name.replace("conv", "bn"))(self.get_submodule(name)(latent)))
        return self.conv5(latent).mean((2, 3, 4))


class HaGan(Generator):
    """HA-GAN on a grid.

    Parameters
    ----------
    grid : Grid
        Grid of the volumes.
    config : Config, optional
        Sizes; those of `CONFIGS` for the grid without it.
    """

    name = "ha-gan"
    least_batch = 2
    batch = 4

    def __init__(self, grid: Grid, config: Config | None = None) -> None:
        super().__init__(grid)
        self.config = config or CONFIGS[grid.name]
        self.averaging = {"generator": self.config.averaging} if self.config.averaging else {}
        self.generator = Decoding(self.config, grid)
        self.discriminator = Discriminator(self.config)
        self.encoder = Encoder(self.config)
        self.sub_encoder = SubEncoder(self.config)

    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z) in [-1, 1]."""
        return self.generator(self._noise(1, rng))[0][0, 0]

    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return Adam without momentum, the discriminator's four times as fast as the others."""
        rate = self.config.discriminator_rate if module == "discriminator" else self.config.rate
        return torch.optim.Adam(self.get_submodule(module).parameters(), lr=rate, betas=(0.0, 0.999))

    def phases(self, progress: float) -> Sequence[Phase]:
        """Return the published order: discriminator, generator, encoder of slabs, encoder of latent maps."""
        return (
            Phase("discriminator", ("discriminator",), self.discriminator_loss),
            Phase("generator", ("generator",), self.generator_loss),
            Phase("encoder", ("encoder",), self.encoder_loss),
            Phase("sub-encoder", ("sub_encoder",), self.sub_encoder_loss),
        )

    def discriminator_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the cross-entropy of telling real from made, both as slab and as coarse volume."""
        plane = self._plane(rng)
        real = self.discriminator(self._slab(batch, plane), _coarse(batch), plane)
        made = self.discriminator(*self.generator(self._noise(len(batch), rng), plane), plane)
        return F.softplus(-real).mean() + F.softplus(made).mean()

    def generator_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the cross-entropy of calling what the generator made real."""
        plane = self._plane(rng)
        made = self.generator(self._noise(len(batch), rng), plane)
        return F.softplus(-self.discriminator(*made, plane)).mean()

    def encoder_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the absolute error of a slab that went through encoder and fine layers."""
        slab = self._slab(batch, self._plane(rng))
        return F.l1_loss(self.generator(self.encoder(slab))[0], slab)

    def sub_encoder_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the absolute error of slab and coarse volume that went through both encoders, mean of the two."""
        plane = self._plane(rng)
        latent = torch.cat([self.encoder(slab) for slab in batch.split(self.config.slab, dim=2)], dim=2)
        slab, coarse = self.generator(self.sub_encoder(latent), plane)
        return (F.l1_loss(slab, self._slab(batch, plane)) + F.l1_loss(coarse, _coarse(batch))) / 2

    def _noise(self, n: int, rng: torch.Generator) -> Tensor:
        return normal((n, self.config.latent), rng, self.device)

    def _plane(self, rng: torch.Generator) -> int:
        """Draw the first plane of a slab; the last possible one is never drawn, as published."""
        return int(torch.randint(self.grid.shape[0] - self.config.slab, (1,), generator=rng))

    def _slab(self, batch: Tensor, plane: int) -> Tensor:
        return batch.narrow(2, plane, self.config.slab)


def _coarse(batch: Tensor) -> Tensor:
    return batch[:, :, ::RATIO, ::RATIO, ::RATIO]


def _reduced(grid: Grid) -> tuple[int, int, int]:
    x, y, z = grid.shape
    return x // RATIO, y // RATIO, z // RATIO


def _numbered(widths: Sequence[int], last: int) -> list[str]:
    return [f"conv{number}" for number in range(last - len(widths) + 1, last + 1)]


def _smoothing(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
