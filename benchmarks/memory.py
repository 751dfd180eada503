"""Show how time and memory grow with the cohort size, 100 to 10 000 volumes, on random features.

Memory is the peak beside the features themselves. Exponents are the slope between the last three sizes.

    python -m benchmarks.memory [--n 100 316 1000 3162 10000] [--d 128] [--picture docs/images/memory.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks import measure
from core.metrics import features, moments, neighbours

Rows = NDArray[np.float32]
BLOCK = 50  # rows that arrive together, as from a feature extraction


def arriving(n: int, d: int, seed: int) -> Iterator[Rows]:
    """Yield random features in blocks, never all at once."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, BLOCK):
        yield rng.standard_normal((min(BLOCK, n - start), d), dtype=np.float32)


def frechet_streamed(n: int, d: int) -> float:
    """Fréchet distance from running moments of features that pass by."""
    real, synthetic = moments.Moments(d), moments.Moments(d)
    for first, second in zip(arriving(n, d, 0), arriving(n, d, 1), strict=True):
        real.update(first)
        synthetic.update(second)
    return moments.frechet_distance_moments(real, synthetic)


def computations(n: int, d: int) -> dict[str, Callable[[], ArrayLike]]:
    """Return what is measured at one size; features that must be held are made here."""
    real, synthetic = (np.concatenate(list(arriving(n, d, seed))) for seed in (0, 1))
    return {
        "FID, running moments": lambda: frechet_streamed(n, d),
        "FID, all rows": lambda: features.frechet_distance(real, synthetic),
        "KID": lambda: features.mmd2(real, synthetic, kernel="polynomial"),
        "MMD², RBF": lambda: features.mmd2(real, synthetic, kernel="rbf"),
        "precision, recall, density, coverage": lambda: neighbours.neighbour_shares(real, synthetic).coverage,
    }


def main() -> None:
    """Print the curves and their exponents."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, nargs="+", default=[100, 316, 1000, 3162, 10000])
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    measure.limit_threads(options.threads)
    measure.print_machine()
    print(f"width {options.d}; tables of all pairs would hold {(2 * max(options.n)) ** 2 * 8 / 2**30:.1f} GiB\n")
    measure.print_head("computation", *(f"N = {n}" for n in options.n), "time ∝ N^", "memory ∝ N^")
    runs: dict[str, list[measure.Run]] = {}
    for n in options.n:
        for name, compute in computations(n, options.d).items():
            runs.setdefault(name, []).append(measure.run(compute, repeats=2 if n < 3000 else 1))
    for name, found in runs.items():
        cells = [f"{run.seconds:.2f} s, {measure.mib(run.peak)}" for run in found]
        powers = [
            f"{measure.exponent(options.n[-3:], [max(a, 1e-3) for a in amounts[-3:]]):.2f}"
            for amounts in ([run.seconds for run in found], [run.peak for run in found])
        ]
        measure.print_row(name, *cells, *powers)
    if options.picture:
        draw(options.n, runs, options.picture)


def draw(sizes: list[int], runs: dict[str, list[measure.Run]], path: Path) -> None:
    """Draw memory and time against the cohort size."""
    from plotly.subplots import make_subplots

    from core.plots.style import PALETTE
    from docs.make_control_picture import draw as write_png

    chart = make_subplots(1, 2, subplot_titles=["peak memory beside the features, MiB", "time, s"])
    for colour, (name, found) in zip(PALETTE, runs.items(), strict=False):
        for column, amounts in ((1, [run.peak for run in found]), (2, [run.seconds for run in found])):
            line = {"color": colour, "width": 3 if name.startswith("FID, run") else 2}
            chart.add_scatter(x=sizes, y=amounts, name=name, line=line, showlegend=column == 1, row=1, col=column)
    pairs = [(2 * n) ** 2 * 8 / measure.MIB for n in sizes]
    dotted = {"color": "grey", "dash": "dot"}
    chart.add_scatter(x=sizes, y=pairs, name="a table of all pairs", line=dotted, mode="lines", row=1, col=1)
    chart.update_xaxes(type="log", title="volumes in each cohort").update_yaxes(type="log", dtick=1)
    chart.update_layout(width=1100, height=430, template="plotly_white", legend={"orientation": "h", "y": -0.25})
    write_png(chart, path)


if __name__ == "__main__":
    main()
