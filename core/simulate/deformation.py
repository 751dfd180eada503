"""How people's brains differ from the template: principal components of stationary velocity fields.

The components were fitted on label maps of 14 people and their mirror images (``benchmarks/fit_deformation.py``):
linear statistics on the logarithms of diffeomorphisms (Arsigny et al., MICCAI 2006, doi:10.1007/11866565_113). What
they leave out returns as a smooth random field of the same size, so that no two people share all detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from scipy import fft

from core.volume import HALF

Array = NDArray[np.float32]

WEIGHTS = Path(__file__).parents[2] / "assets" / "deformation_model.safetensors"
SPACING = 2 * HALF.spacing  # of the fields, mm: voxels are 2x2x2 blocks of the half grid
SHAPE = tuple(n // 2 for n in HALF.shape)
CLIP = 3.0  # SD; nobody is further away along one component


@dataclass(frozen=True)
class Model:
    """Components at one SD, shape (k, 3, x, y, z) in mm; SD and smoothness (Gaussian sigma) of the rest, both in mm."""

    components: torch.Tensor
    rest_sd: float
    rest_sigma: float


@lru_cache(maxsize=1)
def model() -> Model:
    """Return the fitted model; read once."""
    with safe_open(WEIGHTS, framework="pt") as file:
        scale = file.get_tensor("scale")[:, None, None, None, None]
        rest_sd, rest_sigma = file.get_tensor("rest").tolist()
        return Model(file.get_tensor("components").float() * scale, rest_sd, rest_sigma)


def draw_velocity(amount: float, rng: np.random.Generator) -> Array:
    """Draw how one person differs.

    Parameters
    ----------
    amount : float
        Multiplies the field; 1 varies as people do.

    Returns
    -------
    ndarray, shape (3, x, y, z) of the half grid, float32
        Velocity in mm; its exponential takes the template to the person.
    """
    fitted = model()
    weights = np.clip(rng.standard_normal(len(fitted.components), dtype=np.float32), -CLIP, CLIP)
    field = torch.tensordot(torch.from_numpy(weights), fitted.components, dims=1).numpy() + _rest(fitted, rng)
    return upsample(np.float32(amount) * field)


def upsample(field: Array) -> Array:
    """Return a field (3, x, y, z) of the model's grid on the half grid."""
    fine = torch.nn.functional.interpolate(
        torch.from_numpy(field)[None], size=HALF.shape, mode="trilinear", align_corners=False
    )
    return np.asarray(fine[0].numpy())


def _rest(fitted: Model, rng: np.random.Generator) -> Array:
    """Draw what the components leave out: white noise, smoothed."""
    noise = rng.standard_normal((3, *SHAPE), dtype=np.float32)
    smooth = fft.rfftn(noise, axes=(1, 2, 3)) * _gain(fitted.rest_sigma)
    return np.asarray(fft.irfftn(smooth, s=SHAPE, axes=(1, 2, 3)) * fitted.rest_sd, np.float32)


@lru_cache(maxsize=1)
def _gain(sigma: float) -> Array:
    """Return the Fourier transform of a Gaussian that keeps the SD of white noise at 1."""
    axes = [2 * np.pi * fft.fftfreq(n, SPACING) for n in SHAPE]
    axes[2] = 2 * np.pi * fft.rfftfreq(SHAPE[2], SPACING)
    square = sum(k**2 for k in np.meshgrid(*axes, indexing="ij"))
    return np.asarray((2 * np.sqrt(np.pi) * sigma / SPACING) ** 1.5 * np.exp(-square * sigma**2 / 2), np.float32)
