"""Time all metrics of features for a whole study: one real and six synthetic cohorts, with intervals and floors.

python -m benchmarks.cohorts [--cohorts 6] [--n 400] [--d 2048] [--n-boot 1000] [--metric NAME ...] [--processes N]

With --processes every metric of every cohort is one task, as in an evaluation, and the wall time of all is printed.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from benchmarks import measure
from core import metrics


def cohort(number: int, n: int, d: int) -> np.ndarray:
    """Return the features of one cohort; 0 is the real one, the others differ more and more."""
    scale, shift = np.arange(1, d + 1) ** -0.5, 0.02 * max(0, number - 1)
    return np.random.default_rng(number).normal(size=(n, d)) * scale * (1 + shift) + shift * scale


def evaluate(name: str, number: int, n: int, d: int, n_boot: int) -> float:
    """Score one cohort by one metric."""
    entry = metrics.METRICS[name]
    assert isinstance(entry, metrics.FeatureMetric)
    score = entry.evaluate(cohort(0, n, d), cohort(number, n, d), seed=0, n_boot=n_boot)
    assert score.ci_low is not None and score.floor is not None
    return float(score.value or 0)


def time_study(options: argparse.Namespace) -> None:
    """Print the wall time of all tasks on several processes."""
    size = (options.n, options.d, options.n_boot)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for task in [pool.submit(evaluate, "mmd/published", 1, 10, 4, 10) for _ in range(2 * options.processes)]:
            task.result()  # imports are done before the clock starts
        start = time.perf_counter()
        tasks = [
            pool.submit(evaluate, name, k, *size) for name in options.metric for k in range(1, options.cohorts + 1)
        ]
        for task in tasks:
            task.result()
        took = time.perf_counter() - start
    print(f"\n{len(tasks)} scores on {options.processes} processes: {took:.1f} s")


def main() -> None:
    """Print the seconds of each metric over all cohorts, and their sum."""
    names = [key for key, metric in metrics.METRICS.items() if metric.inputs == "features"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cohorts", type=int, default=6, help="synthetic ones")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--metric", nargs="+", default=names, choices=names)
    parser.add_argument("--processes", type=int, default=0, help="time the whole study on so many processes")
    options = parser.parse_args()
    if options.processes:
        time_study(options)
        return
    real, *others = (cohort(k, options.n, options.d) for k in range(options.cohorts + 1))
    measure.print_machine()
    measure.print_head("metric", "processor time, all cohorts", "wall time", "peak", "value of the last")
    total = wall = 0.0
    for name in options.metric:
        entry = metrics.METRICS[name]
        assert isinstance(entry, metrics.FeatureMetric)
        start = time.perf_counter()
        scores, seconds, peak = measure.measured(
            lambda e=entry: [e.evaluate(real, other, seed=0, n_boot=options.n_boot) for other in others]
        )
        took = time.perf_counter() - start
        total, wall = total + seconds, wall + took
        last = scores[-1]
        value = f"{last.value:.4g} [{last.ci_low:.4g}, {last.ci_high:.4g}], floor {last.floor:.4g}"
        measure.print_row(name, f"{seconds:.1f} s", f"{took:.1f} s", measure.mib(peak), value)
    measure.print_row("**all**", f"{total:.1f} s", f"{wall:.1f} s", "", "")


if __name__ == "__main__":
    main()
