"""Generators of 3D T1w brain volumes; the order of `GENERATORS` is the order on screen.

A generator is one file with a subclass of `Generator`, one line here and one test. Torch is imported by `build` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from core.errors import InputError
from core.volume import grid_named

if TYPE_CHECKING:
    from core.generators.base import Generator

__all__ = ["GENERATORS", "Card", "build", "card_named"]


@dataclass(frozen=True)
class Card:
    """What a generator says about itself.

    Parameters
    ----------
    label : str
        Name on screen, as in the paper.
    card : str
        How it works, in one sentence.
    reference : str
        Source with DOI.
    loader : str
        ``module:class``; the class takes a `Grid`.
    one_pass : bool
        Whether a volume takes one pass of the network, rather than sampling steps.
    """

    label: str
    card: str
    reference: str
    loader: str
    one_pass: bool = False


GENERATORS: dict[str, Card] = {
    "vae-gan": Card(
        "VAE-GAN",
        "A variational autoencoder whose decoder also has to convince a discriminator.",
        "Kwon et al. 2019, doi:10.1007/978-3-030-32248-9_14",
        "core.generators.vae_gan:VaeGan",
        one_pass=True,
    ),
    "alpha-wgan": Card(
        "α-WGAN",
        "An autoencoding Wasserstein GAN with a discriminator of images and one of codes.",
        "Kwon et al. 2019, doi:10.1007/978-3-030-32248-9_14",
        "core.generators.alpha_wgan:AlphaWgan",
        one_pass=True,
    ),
    "ha-gan": Card(
        "HA-GAN",
        "A GAN trained on the whole brain at low resolution and on one slab at full resolution.",
        "Sun et al. 2022, doi:10.1109/JBHI.2022.3172976",
        "core.generators.ha_gan:HaGan",
        one_pass=True,
    ),
    "monai-ldm": Card(
        "MONAI-LDM",
        "A diffusion model on the latent maps of a variational autoencoder.",
        "Pinaya et al. 2022, doi:10.1007/978-3-031-18576-2_12",
        "core.generators.monai_ldm:MonaiLDM",
    ),
    "medsyn": Card(
        "MedSyn",
        "A diffusion model of small volumes, then one that adds the detail.",
        "Xu et al. 2024, doi:10.1109/TMI.2024.3415032",
        "core.generators.medsyn:MedSyn",
    ),
    "cdpm": Card(
        "cDPM",
        "A diffusion model of slices that look at slices already made.",
        "Peng et al. 2023, doi:10.1007/978-3-031-43993-3_2",
        "core.generators.cdpm:CDPM",
    ),
}


def build(name: str, grid: str = "full") -> Generator:
    """Make a generator with random weights: the published network on the full grid, a smaller one on the half grid.

    Parameters
    ----------
    name : str
        Key of `GENERATORS`.
    grid : {"full", "half"}
        Grid of the volumes.

    Returns
    -------
    Generator
        With ``load_checkpoint(path)``, ``sample(n, seed, steps=None)`` and its torch modules: ``.generator`` of the
        GANs, ``.denoiser`` of cdpm, ``.autoencoder`` and ``.denoiser`` of monai-ldm, ``.low_res`` and ``.super_res``
        of medsyn.

    Raises
    ------
    InputError
        Unknown generator or grid.
    """
    module, kind = card_named(name).loader.split(":")
    generator: Generator = getattr(import_module(module), kind)(grid_named(grid))
    return generator


def card_named(name: str) -> Card:
    """Return the card of a generator; raises InputError when there is none."""
    if name not in GENERATORS:
        raise InputError(f"unknown generator {name!r}.", "generators", f"Choose of: {', '.join(GENERATORS)}.")
    return GENERATORS[name]
