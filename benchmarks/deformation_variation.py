"""Compare how regional volumes and local growth vary in simulated people and in the people behind the model.

Usage, from the root of the repository, after ``benchmarks.fit_deformation`` with the same folders (about 2 s a
simulated person on one core; they are kept in the work folder):

    python -m benchmarks.deformation_variation --labels DIR --work DIR --n 100 [--picture FILE]

Volumes are log shares of the brain without its outer fluid. For each structure the SD between people is split into what
both sides share and what each has on its own. The last columns are the SDs that ``core.simulate.cases.GROWTH`` should
hold, so that the deformation model, age and growth together vary as people do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.fit_deformation import log_shares, voxels
from core.segmentation import labelmaps
from core.segmentation.labelmaps import Person
from core.simulate.cases import GROWTH, PARCEL_GROWTH, Recipe, draw_recipe
from core.simulate.warp import Warp, atlas, exponential, make_warp, pull_back
from core.volume import FULL

Array = NDArray[np.float64]
SEED = 4004
AGE_SD = 65 / np.sqrt(12)  # uniform from 20 to 85
PARCELS = [(1000 + k, 2000 + k) for k in labelmaps.PARCELS]


def main() -> None:
    """Simulate, compare, print; perhaps draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder of whole-head label maps")
    parser.add_argument("--work", type=Path, required=True, help="work folder of benchmarks.fit_deformation")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--picture", type=Path, help="also draw label maps of 8 simulated and 4 real people")
    options = parser.parse_args()
    people = labelmaps.prepare(options.labels, options.work / "people")
    with np.load(options.work / "corrected.npz") as stored:
        jacobians = np.stack([exponential(velocity)[1] for velocity in stored["velocities"]])
    real = {"volumes": np.stack([log_shares(voxels(p)) for p in people]), "growth": local_growth(jacobians)}
    whole, alone = (simulated(options.n, growth, options.work) for growth in (True, False))
    report(real, whole, alone)
    if options.picture:
        picture(people[:4], options.picture)


def simulated(n: int, growth: bool, work: Path) -> dict[str, Array]:
    """Return log shares (n, labels), local growth (n, labels), growth asked for (n, labels), least Jacobian (n,)."""
    file = work / f"simulated-{'whole' if growth else 'alone'}-{n}.npz"
    if not file.exists():
        drawn = [_person(index, growth) for index in range(n)]
        jacobians = np.stack([warp.jacobian for _, warp in drawn])
        np.savez(
            file,
            volumes=[log_shares(atlas().shares @ j.ravel()) for j in jacobians],
            growth=local_growth(jacobians),
            asked=[[recipe.growth.get(int(k), 0.0) for k in atlas().ids] for recipe, _ in drawn],
            least=jacobians.min(axis=(1, 2, 3)),
        )
    with np.load(file) as stored:
        return dict(stored)


def _person(index: int, growth: bool) -> tuple[Recipe, Warp]:
    recipe = draw_recipe(np.random.default_rng([SEED, index, 0]))
    asked = recipe.growth if growth else {}
    return recipe, make_warp(recipe.log_size, asked, recipe.warp, np.random.default_rng([SEED, index, 1]))


def local_growth(jacobians: NDArray[np.float32]) -> Array:
    """Return the SD between people of the log Jacobian, root mean square over each label, shape (labels,)."""
    variance = np.log(np.maximum(jacobians, 0.01)).var(axis=0, ddof=1).ravel()
    sizes = np.asarray(atlas().shares.sum(axis=1)).ravel()
    return np.sqrt((atlas().shares @ variance) / sizes)


def split(volumes: Array, labels: tuple[int, ...]) -> tuple[float, float]:
    """Return the SD shared by both sides and the SD of one side alone; a midline structure shares everything."""
    values = volumes[:, np.searchsorted(atlas().ids, labels)]
    if len(labels) == 1:
        return float(values.std(ddof=1)), 0.0
    shared = float(np.cov(values.T)[0, 1])
    return np.sqrt(max(shared, 0.0)), float((values[:, 0] - values[:, 1]).std(ddof=1) / np.sqrt(2))


def report(real: dict[str, Array], whole: dict[str, Array], alone: dict[str, Array]) -> None:
    """Print the table, and the parcels in one line."""
    names = {ids[0]: name for name, ids in atlas().names.items() if len(ids) == 1}
    print(f"least Jacobian: median {np.median(whole['least']):.3f}, least {whole['least'].min():.3f}")
    print(
        "| structure | people: shared, own | simulated | model alone | log Jacobian: people, simulated | SDs to set |"
    )
    print("|---|---|---|---|---|---|")
    pairs = [ids for ids in [(2, 41), *_structures()] if ids[0] != 24]
    for ids in pairs:
        print(f"| {names[ids[0]].removeprefix('left ')} | {_row(ids, real, whole, alone)} |")
    rows = np.array([_numbers(ids, real, whole, alone) for ids in PARCELS])
    mean = np.sqrt(np.mean(rows**2, axis=0))
    print(f"| cortical parcels, root mean square | {_text(mean)} |")
    both = np.array([_numbers(ids, real, whole, alone) for ids in [*pairs, *PARCELS]])
    people, drawn = (np.hypot(both[:, k], both[:, k + 1]) for k in (0, 2))
    low, middle, high = np.quantile(drawn / people, (0.1, 0.5, 0.9))
    print(f"total SD, simulated over people: median {middle:.2f}, 10 to 90 % {low:.2f} to {high:.2f}", end="; ")
    print(f"correlation of log SDs {np.corrcoef(np.log(people), np.log(drawn))[0, 1]:.2f}")


def _structures() -> list[tuple[int, ...]]:
    """Return the keys of GROWTH, cortex and white matter of the cerebellum apart."""
    pairs = [ids[k : k + 2] for ids in GROWTH for k in range(0, len(ids), 2)]
    return [ids for ids in pairs if ids]


def _row(ids: tuple[int, ...], real: dict[str, Array], whole: dict[str, Array], alone: dict[str, Array]) -> str:
    return _text(_numbers(ids, real, whole, alone))


def _text(row: Array) -> str:
    pairs = [f"{a:.3f}, {b:.3f}" for a, b in zip(row[::2], row[1::2], strict=True)]
    return " | ".join(pairs)


def _numbers(ids: tuple[int, ...], real: dict[str, Array], whole: dict[str, Array], alone: dict[str, Array]) -> Array:
    where = np.searchsorted(atlas().ids, ids)
    people, both, model = (split(one["volumes"], ids) for one in (real, whole, alone))
    growth = [float(np.sqrt(np.mean(one["growth"][where] ** 2))) for one in (real, whole)]
    asked = whole["asked"][:, where] - whole["asked"][:, where].mean(axis=0)
    answer = whole["volumes"][:, where] - alone["volumes"][:, where]
    gain = float((asked * (answer - answer.mean(axis=0))).sum() / max((asked**2).sum(), 1e-9)) or 1.0
    yearly = next((v[2] for k, v in GROWTH.items() if ids[0] in k), PARCEL_GROWTH[2] if ids[0] > 1000 else 0.0)
    shared = people[0] ** 2 - model[0] ** 2 - (gain * yearly * AGE_SD) ** 2
    own = people[1] ** 2 - model[1] ** 2
    to_set = [np.sqrt(max(v, 0.0)) / gain for v in (shared, own)]
    return np.array([*people, *both, *model, *growth, *to_set])


def picture(people: list[Person], file: Path) -> None:
    """Draw a coronal and an axial section of the labels of four people and of eight simulated ones."""
    colours = np.random.default_rng(3).integers(60, 240, (3000, 3), dtype=np.uint8)
    colours[0], colours[[2, 41]], colours[24] = 255, 235, (200, 220, 245)
    colours[[4, 43, 5, 44, 14, 15]] = (50, 70, 190)
    maps = [(f"real {k + 1}", labelmaps.id_of_code()[p.codes]) for k, p in enumerate(people)]
    maps += [(f"simulated {k + 1}", pull_back(_person(k, True)[1], FULL)[1]) for k in range(8)]
    x, y, z = FULL.shape
    title = 14
    canvas = Image.new("RGB", (6 * x, 2 * (title + z + y)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (name, labels) in enumerate(maps):
        left, top = place % 6 * x, place // 6 * (title + z + y)
        draw.text((left + 8, top + 2), name, fill="black")
        for section, below in ((labels[:, 92], title), (labels[:, :, 78], title + z)):
            canvas.paste(Image.fromarray(colours[section.T[::-1]]), (left, top + below))
    canvas.save(file, optimize=True)


if __name__ == "__main__":
    main()
