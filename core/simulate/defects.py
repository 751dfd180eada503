"""Control cohorts: known defects, each in one function and one line of `DEFECTS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from core.errors import InputError
from core.simulate.cases import SITES, Recipe, Simulated
from core.simulate.warp import Array, atlas, points, sample
from core.volume import grid_named

HIPPOCAMPUS, VENTRICLES = (17, 53), (4, 5, 43, 44)


@dataclass(frozen=True)
class Defect:
    """A known defect: what it is, its strength and range, and where it acts (on the person, or on the image).

    ``label`` is a format of the strength.
    """

    label: str
    meaning: str
    strength: float
    unit: str
    low: float
    high: float
    on_recipe: Callable[[Recipe, float], Recipe] | None = None
    on_image: Callable[[Simulated, float, np.random.Generator], Simulated] | None = None


def parse_defect(text: str) -> tuple[str, float]:
    """Read ``NAME[:STRENGTH]`` as given on the command line; "" means no defect.

    Raises
    ------
    InputError
        Unknown name, strength that is not a number or out of range.
    """
    name, _, number = text.strip().partition(":")
    try:
        strength = float(number) if number else None
    except ValueError:
        raise InputError(f"{number!r} is not a number.", f"defect {text!r}", f"Choose one of: {_choices()}.") from None
    return check_defect(name, strength)


def check_defect(name: str, strength: float | None) -> tuple[str, float]:
    """Return the defect and its strength, the default filled in; raises InputError as `parse_defect`."""
    if not name:
        return "", 0.0
    if name not in DEFECTS:
        raise InputError(f"unknown defect {name!r}.", "defect", f"Choose one of: {_choices()}.")
    known = DEFECTS[name]
    value = known.strength if strength is None else strength
    if not known.low <= value <= known.high:
        raise InputError(
            f"strength {value:g} is out of range.",
            f"defect {name}",
            f"Choose {known.low:g} to {known.high:g} ({known.unit}).",
        )
    return name, float(value)


def describe(defect: str, strength: float) -> str:
    """Say in words what a cohort is: "simulated", or "control: blur 1.5 mm"."""
    if not defect:
        return "simulated"
    known = DEFECTS[defect]
    return "control: " + known.label.format(strength)


def _choices() -> str:
    return ", ".join(f"{name}[:{d.low:g}..{d.high:g} {d.unit}]" for name, d in DEFECTS.items())


def _change(recipe: Recipe, labels: tuple[int, ...], ratio: float) -> Recipe:
    return replace(recipe, change=recipe.change | dict.fromkeys(labels, ratio))


def _collapse(recipe: Recipe, strength: float) -> Recipe:
    keep, mean = 1 - strength, SITES["site-1"]
    return replace(
        recipe,
        warp=keep,
        log_size=recipe.log_size * keep,
        growth={k: v * keep for k, v in recipe.growth.items()},
        tissue=(mean[0] + keep * (recipe.tissue[0] - mean[0]), mean[1] + keep * (recipe.tissue[1] - mean[1])),
        bias=tuple(keep * b for b in recipe.bias),
    )


def _blur(case: Simulated, strength: float, _: np.random.Generator) -> Simulated:
    """Smooth, and cut along the brain's border again."""
    spacing = float(case.volume.affine[0, 0])
    data = ndimage.gaussian_filter(case.volume.data, strength / spacing)
    return _with_image(case, np.where(case.labels > 0, data, np.float32(-1)))


def _haze(case: Simulated, strength: float, rng: np.random.Generator) -> Simulated:
    """Uneven haze with rings that fade with the distance from the brain."""
    spacing = float(case.volume.affine[0, 0])
    outside = case.labels == 0
    away = ndimage.distance_transform_edt(outside) * spacing
    noise = torch.from_numpy(rng.standard_normal((1, 9, 12, 9), dtype=np.float32))
    uneven = 1 / (1 + np.exp(-sample(noise, points(grid_named(case.grid)))[0].numpy()))
    pattern = uneven * np.exp(-away / 20) * (0.6 + 0.4 * np.cos(2 * np.pi * away / 8))
    haze = (-1 + strength * pattern).astype(np.float32)
    return _with_image(case, np.where(outside, haze, case.volume.data))


def _flip(case: Simulated, strength: float, rng: np.random.Generator) -> Simulated:
    """Mirror the brain; labels and volumes say what then lies on which side."""
    if rng.random() >= strength:
        return case
    names = atlas().names
    other = {n: n.replace("left ", "right ", 1).replace("ctx-lh-", "ctx-rh-", 1) for n in names}
    other |= {mirrored: name for name, mirrored in other.items() if mirrored != name}
    ids = np.arange(3000, dtype=np.int32)
    for name, numbers in names.items():
        if len(numbers) == 1:
            ids[numbers] = names[other[name]]
    case = replace(
        case, flipped=True, labels=ids[case.labels[::-1]], volumes={n: case.volumes[other[n]] for n in names}
    )
    return _with_image(case, np.ascontiguousarray(case.volume.data[::-1]))


def _memorise(case: Simulated, strength: float, rng: np.random.Generator) -> Simulated:
    """Change the intensities of the same brain a little: its contrast (a power of the signal) and some noise."""
    inside = case.volume.data > -1
    signal = (case.volume.data[inside] + 1) / 2
    signal = signal ** np.float32(np.exp(rng.normal(0, strength)))
    signal += np.float32(strength / 2) * rng.standard_normal(len(signal), dtype=np.float32)
    data = np.full_like(case.volume.data, -1)
    data[inside] = np.clip(2 * signal - 1, np.nextafter(np.float32(-1), np.float32(0)), 1)
    return _with_image(case, data)


def _with_image(case: Simulated, data: Array) -> Simulated:
    return replace(case, volume=replace(case.volume, data=data))


DEFECTS: dict[str, Defect] = {
    "blur": Defect("blur {:g} mm", "Smoothed by a Gaussian of this sigma.", 1.5, "mm", 0.1, 10, on_image=_blur),
    "noise": Defect(
        "noise {:g} of white matter",
        "Rician noise of this sigma, in parts of white matter.",
        0.1,
        "of white matter",
        0.01,
        1,
        on_recipe=lambda recipe, strength: replace(recipe, noise=float(np.hypot(recipe.noise, strength))),
    ),
    "collapse": Defect(
        "{:.0%} of the variety lost",
        "This share of all variation between people is lost.",
        0.8,
        "of the variety",
        0,
        1,
        on_recipe=_collapse,
    ),
    "shrunken-hippocampus": Defect(
        "hippocampus {:.0%} smaller",
        "Both hippocampi lose this share of their volume.",
        0.1,
        "of the volume",
        0,
        0.5,
        on_recipe=lambda recipe, strength: _change(recipe, HIPPOCAMPUS, 1 - strength),
    ),
    "large-ventricles": Defect(
        "ventricles {:.0%} larger",
        "The lateral ventricles gain this share of their volume.",
        0.5,
        "of the volume",
        0,
        1.5,
        on_recipe=lambda recipe, strength: _change(recipe, VENTRICLES, 1 + strength),
    ),
    "background-artefact": Defect(
        "background haze {:g}",
        "Haze and rings around the brain, this bright.",
        0.3,
        "above the background",
        0.01,
        1,
        on_image=_haze,
    ),
    "left-right-flip": Defect(
        "{:.0%} mirrored", "This share of the cases is mirrored.", 1.0, "of the cases", 0, 1, on_image=_flip
    ),
    "memorised": Defect(
        "people seen in training, intensities changed by {:.0%}",
        "The people of this seed once more, contrast and noise changed by this share: with the seed of a training "
        "cohort, what a generator makes that has memorised it.",
        0.05,
        "of the intensity",
        0,
        0.5,
        on_image=_memorise,
    ),
}
