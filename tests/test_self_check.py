"""Each control cohort moves the measures that should see its defect, and not the others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from core import anatomy, metrics, simulate
from core.metrics.copies import copy_check_distances
from core.metrics.gram import gram_matrix
from core.simulate.expectations import EXPECTED, IMAGE_METRICS, MEASURES, REGIONS
from core.volume import HALF

N = 10
# Ten volumes can only show what is more than one SD of people (hippocampus 0.26, ventricles 0.72 in log volume).
STRENGTH = {"shrunken-hippocampus": 0.4, "large-ventricles": 1.5}
REAL, SYNTHETIC, TRAINING = 100, 200, 300  # seeds
Reading = tuple[float, float, float]  # value and interval
# The most asymmetric region of ten such people (transverse temporal, 0.17 ± 0.18) moves by 0.7 SD, its interval is ± 0.95.
UNSEEN = pytest.mark.xfail(reason="ten people are too few to show a flip by their asymmetry", strict=True)
CASES = [pytest.param(name, marks=[UNSEEN] if name == "left-right-flip" else []) for name in EXPECTED]


def cohort(seed: int, defect: str = "") -> list[simulate.Simulated]:
    return list(simulate.simulate(HALF, N, seed, defect=defect, strength=STRENGTH.get(defect)))


def read_images(real: list[np.ndarray], synthetic: list[np.ndarray], products: np.ndarray) -> dict[str, Reading]:
    """Score with every metric of the table, as the workflow does."""
    found, sides = {}, {"real": real, "synthetic": synthetic}
    for name in IMAGE_METRICS:
        metric = metrics.METRICS[name]
        if isinstance(metric, metrics.GramMetric):
            score = metric.evaluate(products, N, seed=0, n_boot=100)
        else:
            assert isinstance(metric, metrics.VolumeMetric)
            groups = metric.plan(N, N, seed=0)
            values = [metric.measure(*(sides[r][i] for r, i in g), cohorts=[r for r, _ in g]) for g in groups]
            score = metric.summarise(groups, values, n_real=N, n_synthetic=N, seed=0, n_boot=100)
        found[name] = (score.value, score.ci_low, score.ci_high)
    return found


def read_anatomy(real: list[simulate.Simulated], synthetic: list[simulate.Simulated]) -> dict[str, Reading]:
    """Compare true volumes."""
    tables = [
        pd.DataFrame(
            [case.volumes for case in cases], index=pd.Index([c.volume.case_id for c in cases], name="subject")
        )
        for cases in (real, synthetic)
    ]
    effects = anatomy.effect_sizes(*tables, n_boot=200).set_index("region")
    found = {name: tuple(effects.loc[name, ["cohens_d", "ci_low", "ci_high"]]) for name in REGIONS}
    spread = float(effects["spread_ratio"].median())
    sampling = stats.norm.ppf(0.975) / np.sqrt(N - 1)  # of the log ratio of two standard deviations
    found["spread"] = (spread, spread - sampling, spread + sampling)
    sides = anatomy.compare_asymmetry(*tables, seed=0, n_boot=200).set_index("region").dropna(subset=["cohens_d"])
    largest = (sides["mean_real"].abs() / sides["sd_real"]).idxmax()
    found["asymmetry"] = tuple(sides.loc[largest, ["cohens_d", "ci_low", "ci_high"]])
    return found


def read_copies(products: np.ndarray) -> Reading:
    """Copy check in image space; rows are real, synthetic, training."""
    norms = np.diag(products)
    distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * products, 0))
    synthetic = distances[N : 2 * N]
    share = copy_check_distances(synthetic[:, 2 * N :], synthetic[:, :N], seed=0).share
    interval = stats.binomtest(round(share * N), N).proportion_ci(method="wilson")
    return share, interval.low, interval.high


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    real, training = cohort(REAL), cohort(TRAINING)

    def reading(synthetic: list[simulate.Simulated]) -> dict[str, Reading]:
        volumes = [[case.volume.data for case in cases] for cases in (real, synthetic, training)]
        scratch: Path = tmp_path_factory.mktemp("scratch")
        products = gram_matrix([v for part in volumes for v in part], 3 * N, scratch=scratch)
        images = read_images(volumes[0], volumes[1], products[: 2 * N, : 2 * N])
        return images | read_anatomy(real, synthetic) | {"copies": read_copies(products)}

    return reading


@pytest.fixture(scope="module")
def without_defect(read) -> dict[str, Reading]:
    return read(cohort(SYNTHETIC))


@pytest.mark.parametrize("defect", CASES)
def test_a_defect_moves_the_measures_that_should_see_it_and_not_the_others(defect, read, without_defect):
    found = read(cohort(TRAINING if defect == "memorised" else SYNTHETIC, defect))
    moved = {name for name, (_, low, high) in without_defect.items() if not low <= found[name][0] <= high}
    assert set(EXPECTED[defect].moves) <= moved
    assert moved.isdisjoint(EXPECTED[defect].stays)


def test_the_table_names_every_defect_and_measures_that_exist():
    assert set(EXPECTED) == set(simulate.DEFECTS)
    assert set(IMAGE_METRICS) <= set(metrics.METRICS)
    for expectation in EXPECTED.values():
        assert set(expectation.moves + expectation.stays) <= set(MEASURES)
        assert not set(expectation.moves) & set(expectation.stays)
