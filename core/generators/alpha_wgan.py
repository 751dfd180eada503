"""α-WGAN: an autoencoding GAN with a critic of volumes and a critic of codes, both Wasserstein with gradient penalty.

Networks and objective of Kwon et al. (MICCAI 2019, doi 10.1007/978-3-030-32248-9_14) as adapted to
144×192×144 by Wu et al. (MICCAI 2024, doi 10.1007/978-3-031-72117-5_28). Published files are
``G_iterN.pth``, ``E_…``, ``D_…`` and ``CD_…``; the first is enough to sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.generators.base import Averaging, Generator, Phase, normal, uniform
from core.generators.blocks import SETTLING, SLOPE, Critic, Decoder, Widths, measure_normalisation
from core.volume import Grid


@dataclass(frozen=True)
class Config:
    """Sizes and weights of the objective; the defaults are the published ones.

    Parameters
    ----------
    latent, code_units : int
        Length of the code, and of the layers that judge it.
    critic, decoder : tuple of int
        Channels of discriminator and encoder, and of the generator.
    base : tuple of int
        Grid on which the generator starts.
    rate, betas : float, tuple of float
        Learning rate of Adam, and how long it remembers.
    fidelity, penalty : float
        Weights of the absolute error of a reconstruction, and of the gradient penalty.
    normalised : bool
        Batch normalisation within both critics (published). The penalty is on the slope of one sample, and batch
        normalisation makes it depend on the others.
    critic_steps : int
        Steps of the discriminator for one of the others, each on new volumes.
    averaging : Averaging, optional
        Of the generator's weights; none was published.
    """

    latent: int = 1000
    code_units: int = 4096
    critic: Widths = (64, 128, 256, 512)
    decoder: Widths = (512, 256, 128, 64)
    base: tuple[int, int, int] = (4, 6, 4)
    rate: float = 2e-4
    fidelity: float = 10.0
    penalty: float = 10.0
    betas: tuple[float, float] = (0.9, 0.999)
    normalised: bool = True
    critic_steps: int = 1
    averaging: Averaging | None = None


CONFIGS = {
    "full": Config(),
    # What the penalty was made for: no batch normalisation, little momentum, a critic ahead of the generator.
    "half": Config(
        latent=128,
        code_units=256,
        critic=(32, 64, 128, 256),
        decoder=(256, 128, 64, 32),
        fidelity=50.0,
        betas=(0.5, 0.9),
        normalised=False,
        critic_steps=2,
        averaging=Averaging(0.995, start=100),
    ),
}


class Decoding(Decoder):
    """Maps a code to a volume."""

    def __init__(self, config: Config, grid: Grid) -> None:
        super().__init__(config.decoder, grid)
        self.tp_conv1 = nn.ConvTranspose3d(config.latent, config.decoder[0], config.base, bias=False)

    def forward(self, code: Tensor) -> Tensor:
        """Map (b, latent) to (b, 1, x, y, z) in [-1, 1]."""
        return self.volume(self.tp_conv1(code[:, :, None, None, None]))


class CodeCritic(nn.Module):
    """Scores a code; its batch normalisation needs two codes in training."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.l1 = _layer(config.latent, config.code_units, config.normalised)
        self.l2 = _layer(config.code_units, config.code_units, config.normalised)
        self.l3 = nn.Linear(config.code_units, 1)

    def forward(self, code: Tensor) -> Tensor:
        """Map (b, latent) to (b, 1)."""
        return self.l3(self.l2(self.l1(code)))


class AlphaWgan(Generator):
    """α-WGAN on a grid.

    Parameters
    ----------
    grid : Grid
        Grid of the volumes.
    config : Config, optional
        Sizes; those of `CONFIGS` for the grid without it.
    """

    name = "alpha-wgan"
    least_batch = 2
    batch = 4

    def __init__(self, grid: Grid, config: Config | None = None) -> None:
        super().__init__(grid)
        self.config = config or CONFIGS[grid.name]
        self.averaging = {"generator": self.config.averaging} if self.config.averaging else {}
        self.generator = Decoding(self.config, grid)
        self.encoder = Critic(self.config.critic, self.config.latent)
        self.discriminator = Critic(self.config.critic, normalised=self.config.normalised)
        self.code_discriminator = CodeCritic(self.config)

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
        """Return Adam, on the full grid with its default betas as published for all four."""
        return torch.optim.Adam(self.get_submodule(module).parameters(), self.config.rate, self.config.betas)

    def phases(self, progress: float) -> Sequence[Phase]:
        """Return the published order: encoder with generator, discriminator on new volumes, code discriminator."""
        judging = Phase("discriminator", ("discriminator",), self.discriminator_loss, new_batch=True)
        return (
            Phase("autoencoder", ("encoder", "generator"), self.autoencoder_loss),
            *[judging] * self.config.critic_steps,
            Phase("code discriminator", ("code_discriminator",), self.code_loss),
        )

    def autoencoder_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return the weighted error of reconstruction minus the scores of codes, reconstructions, random volumes."""
        code = self.encoder(batch)
        rebuilt, random = self.generator(code), self.generator(self._noise(len(batch), rng))
        scores = self.code_discriminator(code) + self.discriminator(rebuilt) + self.discriminator(random)
        return self.config.fidelity * F.l1_loss(rebuilt, batch) - scores.mean()

    def discriminator_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return score of what the generator made minus score of real volumes, with both gradient penalties."""
        rebuilt, random = self.generator(self.encoder(batch)), self.generator(self._noise(len(batch), rng))
        scores = self.discriminator(rebuilt) + self.discriminator(random) - 2 * self.discriminator(batch)
        return scores.mean() + sum(self._penalty(self.discriminator, batch, fake, rng) for fake in (random, rebuilt))

    def code_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        """Return score of codes of volumes minus score of codes drawn from N(0, 1), with the gradient penalty."""
        code, noise = self.encoder(batch), self._noise(len(batch), rng)
        scores = self.code_discriminator(code) - self.code_discriminator(noise)
        return scores.mean() + self._penalty(self.code_discriminator, code, noise, rng)

    def _noise(self, n: int, rng: torch.Generator) -> Tensor:
        return normal((n, self.config.latent), rng, self.device)

    def _penalty(self, critic: nn.Module, first: Tensor, second: Tensor, rng: torch.Generator) -> Tensor:
        return self.config.penalty * gradient_penalty(critic, first, second, rng)


def gradient_penalty(critic: nn.Module, first: Tensor, second: Tensor, rng: torch.Generator) -> Tensor:
    """Return how far the slope of a critic is from one, half-way between two batches (doi 10.48550/arXiv.1704.00028).

    Parameters
    ----------
    critic : Module
        Maps a batch to scores.
    first, second : Tensor, shape (b, …)
        Batches; every sample is mixed with its own weight from U(0, 1).
    rng : torch.Generator
        Where the weights come from.

    Returns
    -------
    Tensor
        Mean of (norm of the gradient - 1)².
    """
    alpha = uniform((len(first), *[1] * (first.ndim - 1)), rng, first.device)
    between = (alpha * first + (1 - alpha) * second).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = (slope.flatten(1).square() + 1e-15).sum(1).sqrt()
    return (norm - 1).square().mean()


def _layer(inputs: int, outputs: int, normalised: bool) -> nn.Sequential:
    norm = nn.BatchNorm1d(outputs) if normalised else nn.Identity()
    return nn.Sequential(nn.Linear(inputs, outputs), norm, nn.LeakyReLU(SLOPE))
