"""Time all metrics of features for a whole study: one real and six synthetic cohorts, with intervals and floors.

python -m benchmarks.cohorts [--cohorts 6] [--n 400] [--d 2048] [--n-boot 1000] [--metric NAME ...]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks import measure
from core import metrics


def main() -> None:
    """Print the seconds of each metric over all cohorts, and their sum."""
    names = [key for key, metric in metrics.METRICS.items() if metric.inputs == "features"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cohorts", type=int, default=6, help="synthetic ones")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("--metric", nargs="+", default=names, choices=names)
    options = parser.parse_args()
    rng, scale = np.random.default_rng(0), np.arange(1, options.d + 1) ** -0.5
    real = rng.normal(size=(options.n, options.d)) * scale
    others = [rng.normal(size=real.shape) * scale * (1 + 0.02 * i) + 0.02 * i * scale for i in range(options.cohorts)]
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
