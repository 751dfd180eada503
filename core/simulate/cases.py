"""One simulated person: what is drawn, how the image is rendered, and what is known about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from core.simulate.warp import Array, Labels, Warp, atlas, points, pull_back, sample
from core.volume import Grid, Volume, normalise_percentile

VERSION = "2"
MEAN_AGE = 52.5
# Ids of each structure that varies on its own: SD of log volume shared by both sides, SD of one side, change per year.
# The SDs are what the deformation model and age leave to be desired against 14 people, where a smooth field can give it
# (`benchmarks.deformation_variation`); thin fluid spaces answer little and are limited to 0.6.
GROWTH: dict[tuple[int, ...], tuple[float, float, float]] = {
    (4, 43): (0.0, 0.0, 0.012),
    (5, 44): (0.5, 0.3, 0.012),
    (14,): (0.6, 0.0, 0.010),
    (15,): (0.45, 0.0, 0.002),
    (7, 46, 8, 47): (0.065, 0.015, -0.001),
    (10, 49): (0.0, 0.0, -0.0025),
    (11, 50): (0.0, 0.0, -0.001),
    (12, 51): (0.1, 0.0, -0.003),
    (13, 52): (0.17, 0.03, -0.002),
    (16,): (0.0, 0.0, -0.0005),
    (17, 53): (0.25, 0.0, -0.003),
    (18, 54): (0.25, 0.1, -0.002),
    (26, 58): (0.28, 0.28, -0.003),
    (28, 60): (0.04, 0.0, -0.001),
}
PARCEL_GROWTH = (0.12, 0.145, -0.0025)
# People are not symmetric on average, and a flip shows only by this: divergence of left minus right, some two thirds of
# which arrive as log ratio of the volumes (transverse temporal: 0.156 in the 14 people).
ASYMMETRY = {(1034, 2034): 0.24, (1018, 2018): 0.10, (1030, 2030): 0.06, (1031, 2031): 0.06, (1001, 2001): 0.08}
ASYMMETRY |= {(1008, 2008): -0.10, (1032, 2032): -0.12, (1015, 2015): -0.06, (4, 43): 0.08, (17, 53): -0.05}
ASYMMETRY |= {(18, 54): -0.05, (26, 58): 0.06, (12, 51): 0.03}
SITES = {"site-1": (0.29, 0.62, 1.0), "site-2": (0.26, 0.58, 0.8), "site-3": (0.33, 0.66, 1.4)}  # csf, grey, noise
TEMPLATE_TISSUE = (0.30, 0.66, 0.845)  # csf, grey and white matter of the template, medians over its labels


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one person's image, before rendering.

    ``growth`` maps ids to the divergence asked for (about the log change of volume), ``tissue`` holds the intensities
    of csf and grey matter where white matter is 1, ``noise`` is Rician sigma in the same unit, ``bias`` the
    coefficients of a quadratic log field, ``warp`` multiplies the draw from the deformation model, ``change`` the
    volumes of single structures of the template.
    """

    age: float
    sex: str
    site: str
    log_size: float
    growth: dict[int, float]
    tissue: tuple[float, float]
    noise: float
    bias: tuple[float, ...]
    warp: float = 1.0
    change: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulated:
    """One simulated case with its truth.

    Parameters
    ----------
    volume : Volume
        Image in [-1, 1], background exactly -1 (but for the defect ``background-artefact``).
    labels : ndarray, int32, shape of the grid
        True FreeSurfer ids; cortex as parcels.
    volumes : dict
        True volumes in mm³ under SynthSeg's column names, parcels included.
    recipe : Recipe
        The person: age in years, sex "F" or "M", site, and the parameters of anatomy and contrast.
    grid, seed, index, defect, strength
        What was asked for; ``defect`` is "" for none.
    min_jacobian : float
        Smallest determinant of the warp inside the brain; positive when the warp is invertible.
    """

    volume: Volume
    labels: Labels
    volumes: dict[str, float]
    recipe: Recipe
    grid: str
    seed: int
    index: int
    defect: str
    strength: float
    min_jacobian: float
    flipped: bool = False

    @property
    def participant(self) -> dict[str, str | float]:
        """Facts of a participants table: age, sex, site."""
        return {"age": self.recipe.age, "sex": self.recipe.sex, "site": self.recipe.site}

    def provenance(self) -> dict[str, Any]:
        """Return what is needed to make this case again, as plain JSON types."""
        recipe = asdict(self.recipe)
        recipe |= {"tissue": list(self.recipe.tissue), "bias": list(self.recipe.bias)}
        recipe |= {k: {str(label): v for label, v in recipe[k].items()} for k in ("growth", "change")}
        keys = ("grid", "seed", "index", "defect", "strength", "min_jacobian", "flipped")
        return {"operation": "simulate", "version": VERSION} | {k: getattr(self, k) for k in keys} | {"recipe": recipe}


def draw_recipe(rng: np.random.Generator) -> Recipe:
    """Draw one person: age uniform in 20 to 85 years, men's heads larger by 12 %, ventricles that grow with age."""
    age = round(float(rng.uniform(20, 85)), 1)
    sex = "FM"[int(rng.integers(2))]
    site = list(SITES)[int(rng.integers(len(SITES)))]
    # Clipped at ±18 %, where the brain reaches the border of the field of view.
    log_size = float(np.clip((0.06 if sex == "M" else -0.06) + rng.normal(0, 0.065), -0.18, 0.18))
    parcels = {(1000 + k, 2000 + k): PARCEL_GROWTH for k in range(1, 36) if k != 4}
    growth: dict[int, float] = {}
    for ids, (shared, own, yearly) in (GROWTH | parcels).items():
        common = rng.normal(0, shared) + yearly * (age - MEAN_AGE)
        growth |= {label: float(common + rng.normal(0, own)) for label in ids}
    for (left, right), ratio in ASYMMETRY.items():
        growth[left] += ratio / 2
        growth[right] -= ratio / 2
    csf, grey, noise = SITES[site]
    grey += 0.0006 * (age - MEAN_AGE)  # contrast between grey and white matter fades with age
    tissue = (float(csf + rng.normal(0, 0.02)), float(grey + rng.normal(0, 0.02)))
    bias = tuple(float(b) for b in rng.normal(0, 0.035, 9))
    return Recipe(age, sex, site, log_size, growth, tissue, float(noise * rng.uniform(0.015, 0.025)), bias)


def render(recipe: Recipe, warp: Warp, grid: Grid, rng: np.random.Generator) -> tuple[Array, Labels]:
    """Return the image in [-1, 1] (background exactly -1) and the labels of one person."""
    source, labels = pull_back(warp, grid)
    brain = labels > 0
    raw = sample(atlas().images[grid.name], source)[0].numpy()[brain]
    signal = np.interp(raw, (0, *TEMPLATE_TISSUE, 1), (0, *recipe.tissue, 1, 1.15))
    x, y, z = points(grid)[torch.from_numpy(brain)].numpy().T
    signal *= np.exp(np.array(recipe.bias) @ np.stack([x, y, z, x * y, y * z, x * z, x * x, y * y, z * z]))
    error = rng.standard_normal((2, len(signal)), dtype=np.float32) * np.float32(recipe.noise)
    image = np.zeros(grid.shape, np.float32)
    image[brain] = np.hypot(signal + error[0], error[1])
    return normalise_percentile(image), labels
