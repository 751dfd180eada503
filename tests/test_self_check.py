"""Each control cohort moves the metrics that should see its defect, and not the others."""

from pathlib import Path

import numpy as np
import pytest

from core import metrics, simulate
from core.metrics.gram import gram_matrix
from core.simulate.expectations import EXPECTED
from core.volume import HALF

N = 10
REAL, SYNTHETIC = 100, 200  # seeds
NAMES = ("sharpness", "ms-ssim", "image-mmd")


def volumes(seed: int, defect: str = "") -> list[np.ndarray]:
    return [case.volume.data for case in simulate.simulate(HALF, N, seed, defect=defect)]


def scores(real: list[np.ndarray], synthetic: list[np.ndarray], scratch: Path) -> dict[str, metrics.Score]:
    """Score with every metric of the table, as the workflow does."""
    found, sides = {}, {"real": real, "synthetic": synthetic}
    for name in NAMES:
        metric = metrics.METRICS[name]
        if isinstance(metric, metrics.GramMetric):
            products = gram_matrix([*real, *synthetic], 2 * N, scratch=scratch)
            found[name] = metric.evaluate(products, N, seed=0, n_boot=100)
            continue
        assert isinstance(metric, metrics.VolumeMetric)
        groups = metric.plan(N, N, seed=0)
        values = [metric.measure(*(sides[r][i] for r, i in g), cohorts=[r for r, _ in g]) for g in groups]
        found[name] = metric.summarise(groups, values, n_real=N, n_synthetic=N, seed=0, n_boot=100)
    return found


@pytest.fixture(scope="module")
def real() -> list[np.ndarray]:
    return volumes(REAL)


@pytest.fixture(scope="module")
def without_defect(real, tmp_path_factory) -> dict[str, metrics.Score]:
    return scores(real, volumes(SYNTHETIC), tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("defect", EXPECTED)
def test_a_defect_moves_the_metrics_that_should_see_it_and_not_the_others(defect, real, without_defect, tmp_path):
    found = scores(real, volumes(SYNTHETIC, defect), tmp_path)
    moved = {
        name for name in NAMES if not without_defect[name].ci_low <= found[name].value <= without_defect[name].ci_high
    }
    assert set(EXPECTED[defect].moves) <= moved
    assert moved.isdisjoint(EXPECTED[defect].stays)


def test_the_table_names_defects_and_metrics_that_exist():
    assert set(EXPECTED) <= set(simulate.DEFECTS)
    for expectation in EXPECTED.values():
        assert set(expectation.moves + expectation.stays) <= set(NAMES) <= set(metrics.METRICS)
        assert not set(expectation.moves) & set(expectation.stays)
