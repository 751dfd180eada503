"""Measure the noise floor of a segmentation engine: the same simulated anatomy, rendered again and again.

Usage, from the root of the repository (about 4 s a rendering for the engine ``atlas`` on one core):

    python -m benchmarks.noise_floor --engine atlas --anatomies 8 --renderings 3

Every anatomy is one warp of the template; its renderings differ in tissue contrast, bias field and noise, drawn as for
different people. Writes ``data/noise_floor_<engine>.csv``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from core import anatomy, segmentation
from core.simulate.cases import draw_recipe, render
from core.simulate.warp import make_warp
from core.volume import GRIDS, Grid, Volume

SEED = 7001


def main() -> None:
    """Render, segment, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="atlas")
    parser.add_argument("--anatomies", type=int, default=8)
    parser.add_argument("--renderings", type=int, default=3)
    parser.add_argument("--grid", choices=list(GRIDS), default="half")
    options = parser.parse_args()
    torch.set_num_threads(1)
    segment, rows, names, start = segmentation.build(options.engine), [], [], time.perf_counter()
    for index in range(options.anatomies):
        for again in range(options.renderings):
            rows.append(segment(rendering(GRIDS[options.grid], index, again)).volumes)
            names.append(f"anatomy-{index}")
        print(f"{index + 1} of {options.anatomies}, {time.perf_counter() - start:.0f} s", flush=True)
    subjects = pd.Index([f"{name}-{i}" for i, name in enumerate(names)], name="subject")
    floor = anatomy.noise_floor(pd.DataFrame(rows, index=subjects), names)
    path = anatomy.DATA / f"noise_floor_{options.engine}.csv"
    floor.to_csv(path, index=False, float_format="%.5g")
    print(floor.sort_values("relative_sd", ascending=False).head(8).to_string(index=False))
    print(f"median relative SD {floor['relative_sd'].median():.4f}; written: {path.name}")


def rendering(grid: Grid, index: int, again: int) -> Volume:
    """Return one rendering of one anatomy: the warp depends on ``index`` alone, contrast and noise on both."""
    person = draw_recipe(np.random.default_rng([SEED, index, 0]))
    look = draw_recipe(np.random.default_rng([SEED, index, 10 + again]))
    recipe = replace(person, site=look.site, tissue=look.tissue, noise=look.noise, bias=look.bias)
    warp = make_warp(person.log_size, person.growth, person.warp, np.random.default_rng([SEED, index, 1]))
    image, _ = render(recipe, warp, grid, np.random.default_rng([SEED, index, 100 + again]))
    return Volume(image, grid.affine, f"anatomy-{index}-{again}")


if __name__ == "__main__":
    main()
