"""Latent diffusion: an autoencoder with a KL term, and a diffusion model on its latent maps.

Pinaya et al., DGM4MICCAI 2022, doi 10.1007/978-3-031-18576-2_12. The networks are MONAI's, on the full grid those of
the published brain bundle (UK Biobank), whose files load. Its recipe is not published; training follows MONAI's
tutorial of 3D latent diffusion, on crops. The tutorial's perceptual loss is left out, because the network it needs is
a download.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from torch import Tensor

from core.generators import diffusion
from core.generators.base import BACKGROUND, Generator, Phase, normal, random_crops, uniform
from core.volume import Grid


@dataclass(frozen=True)
class LDMConfig:
    """Sizes and settings; the defaults are those of the bundle, and of the tutorial for training.

    Parameters
    ----------
    image, image_blocks, image_groups, latent : int or tuple of int
        Autoencoder: widths by level, residual blocks a level, normalisation groups, latent channels.
    widths, blocks, groups, attention, heads : int or tuple
        Denoiser: widths by level, residual blocks a level, normalisation groups, which levels have attention, and the
        channels of an attention head there.
    conditions : int
        Numbers between 0 and 1 that the denoiser is told, as constant planes and by attention; 0 for none.
    patch : tuple of int
        Width and layers of the discriminator.
    crop : tuple of int
        What of a volume the autoencoder sees in a training step; each side a multiple of the autoencoder's factor.
    betas : tuple of float
        First and last of the schedule.
    predict_clean : bool
        Predict the clean latent maps instead of the noise (published); the noise needs long training and many steps.
    kl, adversarial : float
        Weights of the losses beside L1.
    share, warm_up : float
        Part of the training that is the autoencoder's, and part of that without the discriminator.
    """

    image: tuple[int, ...] = (64, 128, 128, 128)
    image_blocks: int = 2
    image_groups: int = 32
    latent: int = 3
    widths: tuple[int, ...] = (256, 512, 768)
    blocks: int = 2
    groups: int = 32
    attention: tuple[bool, ...] = (False, True, True)
    heads: tuple[int, ...] = (0, 512, 768)
    conditions: int = 4
    patch: tuple[int, int] = (32, 3)
    crop: tuple[int, int, int] = (112, 112, 80)
    betas: tuple[float, float] = (0.0015, 0.0205)
    predict_clean: bool = False
    kl: float = 1e-6
    adversarial: float = 0.01
    share: float = 0.4
    warm_up: float = 0.05
    rate: float = 1e-4
    steps: int = 50


HALF = LDMConfig(
    image=(16, 32, 32),
    image_blocks=1,
    image_groups=4,
    latent=4,
    widths=(48, 48, 64),
    blocks=1,
    groups=8,
    attention=(False, False, True),
    heads=(0, 0, 32),
    conditions=0,
    patch=(8, 2),
    crop=(40, 48, 40),
    predict_clean=True,
    kl=1e-7,
    rate=5e-4,
    steps=10,
)


class Autoencoder(AutoencoderKL):
    """MONAI's, with its noise given from outside."""

    def __init__(self, config: LDMConfig) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=config.image,
            num_res_blocks=config.image_blocks,
            attention_levels=[False] * len(config.image),
            latent_channels=config.latent,
            norm_num_groups=config.image_groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    def forward(self, x: Tensor, noise: Tensor | None = None, decode: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction of (b, 1, x, y, z), or without ``decode`` the latent; its mean; its deviation."""
        mean, deviation = self.encode(x)
        latent = mean if noise is None else mean + deviation * noise
        return (self.decode(latent) if decode else latent), mean, deviation


class Denoiser(DiffusionModelUNet):
    """MONAI's U-Net, with the factor that brings latent maps to unit variance; 0 until the first batch gives it."""

    scale: Tensor

    def __init__(self, config: LDMConfig) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=config.latent + config.conditions,
            out_channels=config.latent,
            channels=config.widths,
            num_res_blocks=config.blocks,
            attention_levels=config.attention,
            num_head_channels=config.heads,
            norm_num_groups=config.groups,
            resblock_updown=True,
            with_conditioning=config.conditions > 0,
            cross_attention_dim=config.conditions or None,
            upcast_attention=config.conditions > 0,
        )
        self.register_buffer("scale", torch.zeros(()))


class MonaiLDM(Generator):
    """Latent diffusion; the autoencoder is trained first, then the denoiser on its frozen latent maps.

    The bundle's denoiser is told sex, age, ventricular and brain volume of the person. For a sample they are drawn
    uniformly from the seed, sex as 0 or 1, so that a cohort spans what the bundle can make. Training knows none of
    them: they are drawn the same way, independent of the volume, and mean nothing. On the half grid there are none.
    """

    name = "monai-ldm"
    sampling = ("autoencoder", "denoiser")

    def __init__(self, grid: Grid, config: LDMConfig | None = None) -> None:
        super().__init__(grid)
        self.config = config or (LDMConfig() if grid.name == "full" else HALF)
        self.steps = self.config.steps
        self.alphabar = diffusion.linear_alphabar(*self.config.betas, scaled=True)
        self.autoencoder = Autoencoder(self.config)
        self.denoiser = Denoiser(self.config)
        self.discriminator = PatchDiscriminator(
            spatial_dims=3, in_channels=1, channels=self.config.patch[0], num_layers_d=self.config.patch[1]
        )

    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.get_submodule(module).parameters(), lr=self.config.rate)

    def phases(self, progress: float) -> list[Phase]:
        """Return the phases of the autoencoder, or after its share of the training that of the denoiser."""
        if progress >= self.config.share:
            return [Phase("denoiser", ("denoiser",), self._denoiser_loss)]
        if progress < self.config.share * self.config.warm_up:
            return [Phase("autoencoder", ("autoencoder",), self._plain_loss)]
        return [
            Phase("autoencoder", ("autoencoder",), self._image_loss),
            Phase("discriminator", ("discriminator",), self._patch_loss),
        ]

    def calls(self, steps: int | None) -> int:
        """Return the sampling steps; decoding comes on top."""
        return steps or self.config.steps

    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z)."""
        times = diffusion.strided_times(steps or self.config.steps)
        latent = normal((1, self.config.latent, *self._padded), rng, self.device)
        conditions = self._conditions(1, rng)
        for time, alphabar, before in diffusion.pairs(self.alphabar, times):
            clean = self._predict(latent, torch.tensor([time], device=self.device), conditions)
            if not self.config.predict_clean:
                clean = diffusion.without_noise(latent, clean, alphabar)
            latent = diffusion.ddim_step(latent, clean, alphabar, before)
        scale = self.denoiser.scale if self.denoiser.scale else 1.0
        image = self.autoencoder.decode(self._cropped(latent) / scale)
        return (2 * image[0, 0] - 1).clamp(BACKGROUND, 1.0)

    def translate(self, module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring the names of MONAI Generative Models to those of MONAI; files without a factor used none."""
        known = self.get_submodule(module).state_dict()
        found = {k if k in known else _renamed(k): v for k, v in tensors.items()}
        if module == "denoiser":
            found.setdefault("scale", torch.ones(()))
        return found

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the autoencoder's latent maps."""
        return tuple(n // 2 ** (len(self.config.image) - 1) for n in self.grid.shape)

    @property
    def _padded(self) -> tuple[int, ...]:
        """Shape the denoiser works on: its levels halve it without remainder."""
        multiple = 2 ** (len(self.config.widths) - 1)
        return tuple(-(-n // multiple) * multiple for n in self._shape)

    def _plain_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        return self._reconstruct(batch, rng)[2]

    def _image_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        _, rebuilt, loss = self._reconstruct(batch, rng)
        return loss + self.config.adversarial * self._judged(rebuilt, 1.0)

    def _patch_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            image, rebuilt, _ = self._reconstruct(batch, rng)
        return self.config.adversarial * 0.5 * (self._judged(rebuilt, 0.0) + self._judged(image, 1.0))

    def _reconstruct(self, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return crops in [0, 1], their reconstructions, and the loss without the discriminator."""
        image = (random_crops(batch, self.config.crop, rng) + 1) / 2
        sides = [n // 2 ** (len(self.config.image) - 1) for n in self.config.crop]
        noise = normal((len(batch), self.config.latent, *sides), rng, batch.device)
        rebuilt, mean, deviation = self.autoencoder(image, noise)
        return image, rebuilt, F.l1_loss(rebuilt, image) + self.config.kl * divergence(mean, deviation)

    def _judged(self, image: Tensor, goal: float) -> Tensor:
        """Return the least-squares loss of the discriminator's opinion."""
        opinion = F.leaky_relu(self.discriminator(image)[-1], 0.05)
        return F.mse_loss(opinion, torch.full_like(opinion, goal))

    def _denoiser_loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            noise = normal((len(batch), self.config.latent, *self._shape), rng, batch.device)
            latent = self.autoencoder((batch + 1) / 2, noise, decode=False)[0]
            if self.denoiser.scale == 0:
                self.denoiser.scale.copy_(1 / latent.std())
            clean = self._enlarged(latent * self.denoiser.scale)
        time = torch.randint(0, diffusion.TRAINING_STEPS, (len(batch),), generator=rng)
        noise = normal(clean.shape, rng, batch.device)
        noisy = diffusion.noised(clean, noise, self.alphabar[time])
        predicted = self._predict(noisy, time.to(batch.device), self._conditions(len(batch), rng))
        return F.mse_loss(predicted, clean if self.config.predict_clean else noise)

    def _predict(self, latent: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        """Return what the denoiser says of latent maps; conditions (b, conditions)."""
        if not self.config.conditions:
            return self.denoiser(latent, time)
        planes = conditions[:, :, None, None, None].expand(-1, -1, *latent.shape[2:])
        return self.denoiser(torch.cat([latent, planes], 1), time, conditions[:, None])

    def _conditions(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw what the denoiser is told, (n, conditions)."""
        drawn = uniform((n, self.config.conditions), rng, self.device)
        drawn[:, :1] = drawn[:, :1].round()
        return drawn

    def _enlarged(self, latent: Tensor) -> Tensor:
        margins = [p - n for n, p in zip(self._shape, self._padded, strict=True)]
        return F.pad(latent, [side for m in reversed(margins) for side in (m // 2, m - m // 2)])

    def _cropped(self, latent: Tensor) -> Tensor:
        for axis, (n, p) in enumerate(zip(self._shape, self._padded, strict=True), start=2):
            latent = latent.narrow(axis, (p - n) // 2, n)
        return latent


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the KL divergence of latent normals from N(0, 1), summed over each volume, averaged over the batch."""
    terms = mean.square() + deviation.square() - 2 * deviation.log() - 1
    return 0.5 * terms.flatten(1).sum(1).mean()


RENAMED = (
    (r"\.to_out\.0\.", ".out_proj."),
    (r"^(decoder\.blocks\.\d+)\.conv\.conv\.", r"\1.postconv.conv."),
    (r"(attentions\.\d+|attention|blocks\.\d+)\.(to_[qkv])\.", r"\1.attn.\2."),
    (r"\.proj_attn\.", ".attn.out_proj."),
)


def _renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name
