"""VAE-GAN: a variational autoencoder whose volumes also have to pass a discriminator.

Networks and objective of Kwon et al. (MICCAI 2019, doi 10.1007/978-3-030-32248-9_14) as adapted to
144×192×144 by Wu et al. (MICCAI 2024, doi 10.1007/978-3-031-72117-5_28). Published files are
``G_VG_ep_N.pth``, ``E_…`` and ``D_…``; the first is enough to sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generators.base import Averaging, Generator, Phase, normal
from core.generators.blocks import SETTLING, Critic, Decoder, Trunk, Widths, measure_normalisation
from core.volume import Grid


@dataclass(frozen=True)
class Config:
    """Sizes and weights of the objective; the defaults are the published ones.

    Parameters
    ----------
    latent, hidden : int
        Length of the code, and of the layer before it.
    critic, decoder : tuple of int
        Channels of discriminator and encoder, and of the generator.
    base : tuple of int
        Grid on which the generator starts.
    pooled : int
        Side of the map the encoder's code is computed from.
    rate, discriminator_rate, betas : float, float, tuple of float
        Learning rates of Adam, and how long it remembers.
    generator_fidelity, encoder_fidelity : float
        Weights of the squared error of a reconstruction.
    averaging : Averaging, optional
        Of the generator's weights; none was published.
    """

    latent: int = 1000
    hidden: int = 2048
    critic: Widths = (64, 128, 256, 512)
    decoder: Widths = (512, 256, 128, 64)
    base: tuple[int, int, int] = (4, 6, 4)
    pooled: int = 4
    rate: float = 1e-4
    generator_fidelity: float = 20.0
    encoder_fidelity: float = 10.0
    discriminator_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    averaging: Averaging | None = None


CONFIGS = {
    "full": Config(),
    # A short run needs the error of reconstruction to lead: with ten times the published rate and the published weights
    # the discriminator had won before the generator had a shape, and the samples were boxes.
    "half": Config(
        latent=128,
        hidden=256,
        critic=(32, 64, 128, 256),
        decoder=(256, 128, 64, 32),
        rate=2e-4,
        discriminator_rate=5e-5,
        generator_fidelity=100.0,
        encoder_fidelity=50.0,
        betas=(0.5, 0.999),
        averaging=Averaging(0.995, start=100),
    ),
}


class Encoder(Trunk):
    """Maps a volume to mean and log-variance of its code."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.critic)
        self.pool = nn.AdaptiveAvgPool3d(config.pooled)
        self.mean = _head(config)
        self.logvar = _head(config)

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, 1, x, y, z) to mean (b, latent) and log-variance (b, latent)."""
        h = self.pool(self.features(volume)).flatten(1)
        return self.mean(h), self.logvar(h)


class Decoding(Decoder):
    """Maps a code to a volume."""

    def __init__(self, config: Config, grid: Grid) -> None:
        super().__init__(config.decoder, grid)
        self.start = (config.decoder[0], *config.base)
        self.fc = nn.Linear(config.latent, math.prod(self.start))

    def forward(self, code: Tensor) -> Tensor:
        """Map (b, latent) to (b, 1, x, y, z) in [-1, 1]."""
        return self.volume(self.fc(code).unflatten(1, self.start))


class VaeGan(Generator):
    """VAE-GAN on a grid.

    Parameters
    ----------
    grid : Grid
        Grid of the volumes.
    config : Config, optional
        Sizes; those of `CONFIGS` for the grid without it.
    """

    name = "vae-gan"
    batch = 4

    def __init__(self, grid: Grid, config: Config | None = None) -> None:
        super().__init__(grid)
        self.config = config or CONFIGS[grid.name]
        self.averaging = {"generator": self.config.averaging} if self.config.averaging else {}
        self.generator = Decoding(self.config, grid)
        self.encoder = Encoder(self.config)
        self.discriminator = Critic(self.config.critic)

    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z) in [-1, 1]."""
        return self.generator(self._noise(1, rng))[0, 0]

    def settle(self, rng: torch.Generator) -> None:
        """Measure batch normalisation on random codes.

        In training it also saw the codes of volumes, and of averaged weights only averages; samples come from neither.
        """
        batches, codes = SETTLING
        measure_normalisation(self.generator, [self._noise(codes, rng) for _ in range(batches)])

    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return Adam, on the full grid with its default betas as published for all three."""
        rate = self.config.discriminator_rate if module == "discriminator" else self.config.rate
        return torch.optim.Adam(self.get_submodule(module).parameters(), rate, self.config.betas)

    def phases(self, progress: float) -> Sequence[Phase]:
        """Return the published order: discriminator, generator, encoder."""
        return (
            Phase("discriminator", ("discriminator",), self.discriminator_loss),
            Phase("generator", ("generator",), self.generator_loss),
            Phase("encoder", ("encoder",), self.encoder_loss),
        )

    def discriminator_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the cross-entropy of telling volumes from reconstructions and from random volumes."""
        fakes = self._reconstruction(batch, rng), self.generator(self._noise(len(batch), rng))
        real = F.softplus(-self.discriminator(batch)).mean()
        return real + self._unmasked(*fakes)

    def generator_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the weighted error of reconstruction minus the discriminator's loss on what the generator made.

        The published loss also subtracts the term of the real volumes, which does not depend on the generator.
        """
        rebuilt, random = self._reconstruction(batch, rng), self.generator(self._noise(len(batch), rng))
        return self.config.generator_fidelity * F.mse_loss(rebuilt, batch) - self._unmasked(rebuilt, random)

    def encoder_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the divergence from N(0, 1), mean over the code, plus the weighted error of reconstruction."""
        mean, logvar = self.encoder(batch)
        divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).mean()
        rebuilt = self.generator(_drawn(mean, logvar, rng))
        return divergence + self.config.encoder_fidelity * F.mse_loss(rebuilt, batch)

    def _noise(self, n: int, rng: torch.Generator) -> Tensor:
        return normal((n, self.config.latent), rng, self.device)

    def _reconstruction(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        mean, logvar = self.encoder(batch)
        return self.generator(_drawn(mean, logvar, rng))

    def _unmasked(self, rebuilt: Tensor, random: Tensor) -> Tensor:
        """Return the cross-entropy of calling both unreal, from logits: the published sigmoid saturates."""
        return F.softplus(self.discriminator(rebuilt)).mean() + F.softplus(self.discriminator(random)).mean()


def _head(config: Config) -> nn.Sequential:
    pooled = config.critic[3] * config.pooled**3
    return nn.Sequential(nn.Linear(pooled, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.latent))


def _drawn(mean: Tensor, logvar: Tensor, rng: torch.Generator) -> Tensor:
    return mean + (logvar / 2).exp() * normal(mean.shape, rng, mean.device)
