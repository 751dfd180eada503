"""Time the inner products behind the image metrics: one pass over the files of two cohorts (processor seconds).

python -m benchmarks.image_mmd [--n 100 200 400] [--grid full] [--memory 2e9]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.volumes import write_files
from core import metrics
from core.metrics.gram import gram_matrix
from core.volume import grid_named, load_on_grid


def main() -> None:
    """Print one row for each cohort size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, nargs="+", default=[50, 100], help="volumes of each of the two cohorts")
    parser.add_argument("--grid", default="full", choices=["full", "half"])
    parser.add_argument("--memory", type=float, default=2e9, help="bytes")
    options = parser.parse_args()
    grid = grid_named(options.grid)
    measure.print_machine()
    head = ("volumes", "files", "reading alone", "products, reading included", "peak", "reads of a file")
    measure.print_head(*head, "all image scores from them")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for n in options.n:
            paths = write_files(Path(folder) / "volumes", 2 * n, grid)
            reads = dict.fromkeys(paths, 0)

            def volumes(paths: list[Path] = paths, reads: dict[Path, int] = reads) -> Iterator[np.ndarray]:
                for path in paths:
                    reads[path] += 1
                    yield load_on_grid(path, grid, rule="maximum", checked=True).data

            start = time.process_time()
            for path in paths[:20]:
                load_on_grid(path, grid, rule="maximum", checked=True)
            reading = (time.process_time() - start) / min(20, len(paths)) * len(paths)
            products, took, peak = measure.measured(
                lambda v=volumes, n=n: gram_matrix(v(), 2 * n, scratch=Path(folder), memory_bytes=int(options.memory))
            )
            seconds.append(took)
            start = time.process_time()
            for entry in metrics.METRICS.values():
                if isinstance(entry, metrics.GramMetric):
                    entry.evaluate(products, n, seed=0, n_boot=1000)
            scoring = time.process_time() - start
            size = sum(path.stat().st_size for path in paths) / 1e9
            times = (f"{reading:.0f} s", f"{took:.0f} s", measure.mib(peak))
            measure.print_row(f"{n} + {n}", f"{size:.1f} GB", *times, str(max(reads.values())), f"{scoring:.1f} s")
    if len(options.n) > 1:
        print(f"\ntime grows with N to the power {measure.exponent(options.n, seconds):.2f}")


if __name__ == "__main__":
    main()
