"""Simulated cohorts whose true anatomy is known, and control cohorts with one known defect each.

A case is the embedded template seen through a smooth invertible warp (`warp`), drawn and rendered like a person's scan
(`cases`), perhaps with a defect (`defects`). A person depends on (seed, index) alone: the same on both grids, and with
or without a defect, so control cohorts should use another seed than the cohort they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.errors import InputError
from core.simulate.cases import VERSION, Recipe, Simulated, draw_recipe, render
from core.simulate.defects import DEFECTS, Defect, check_defect, describe, parse_defect
from core.simulate.warp import atlas, change_volumes, make_warp, true_volumes
from core.volume import Grid, Volume

__all__ = [
    "DEFECTS",
    "VERSION",
    "Defect",
    "Recipe",
    "Simulated",
    "case_id",
    "check_defect",
    "describe",
    "parse_defect",
    "simulate",
    "simulate_case",
]


def simulate(grid: Grid, n: int, seed: int, *, defect: str = "", strength: float | None = None) -> Iterator[Simulated]:
    """Yield ``n`` cases one at a time; case i is `simulate_case` (grid, seed, i), whatever ``n`` is."""
    if n < 1:
        raise InputError(f"n is {n}; expected 1 or more.", "simulate", "Ask for at least one case.")
    for index in range(n):
        yield simulate_case(grid, seed, index, defect=defect, strength=strength)


def simulate_case(grid: Grid, seed: int, index: int, *, defect: str = "", strength: float | None = None) -> Simulated:
    """Simulate one person on a grid.

    Parameters
    ----------
    grid : Grid
        `core.volume.FULL` or `HALF`.
    seed, index : int
        Cohort and case, 0 or more.
    defect : str
        Key of `DEFECTS`, or "" for none.
    strength : float, optional
        In the unit of the defect; its default when None.

    Returns
    -------
    Simulated

    Raises
    ------
    InputError
        Unknown defect, strength out of range, negative seed or index.
    """
    defect, strength = check_defect(defect, strength)
    if seed < 0 or index < 0:
        raise InputError(f"seed {seed}, index {index}: expected 0 or more.", "simulate", "Choose another seed.")
    recipe = draw_recipe(np.random.default_rng([seed, index, 0]))
    known = DEFECTS.get(defect)
    if known and known.on_recipe:
        recipe = known.on_recipe(recipe, strength)
    warp = make_warp(recipe.log_size, recipe.growth, recipe.warp, np.random.default_rng([seed, index, 1]))
    if recipe.change:
        warp = change_volumes(recipe.change, warp)
    image, labels = render(recipe, warp, grid, np.random.default_rng([seed, index, 2]))
    case = Simulated(
        volume=Volume(image, grid.affine, case_id(seed, index, defect), (describe(defect, strength),)),
        labels=labels,
        volumes=true_volumes(warp),
        recipe=recipe,
        grid=grid.name,
        seed=seed,
        index=index,
        defect=defect,
        strength=strength,
        min_jacobian=float(warp.jacobian[atlas().brain].min()),
    )
    if known and known.on_image:
        case = known.on_image(case, strength, np.random.default_rng([seed, index, 3]))
    return case


def case_id(seed: int, index: int, defect: str = "") -> str:
    """Return the name of a case, such as "sim-s0001-0007" or "blur-s0001-0007"."""
    return f"{defect or 'sim'}-s{seed:04d}-{index:04d}"
