import tracemalloc

import numpy as np
import pytest

from core.errors import InputError
from core.metrics.features import frechet_distance
from core.metrics.moments import Moments, frechet_distance_moments


def cohort(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1) ** -0.5 + shift


def moments(rows, batches):
    found = Moments(rows.shape[1])
    for batch in np.array_split(rows, batches):
        found.update(batch)
    return found


@pytest.mark.parametrize("batches", [1, 7, 90])
def test_moments_are_those_of_all_rows(batches):
    rows = cohort(90, 12, 0, shift=1e3)  # a mean far beside the spread
    found = moments(rows, batches)
    assert found.count == 90
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), atol=1e-10)


def test_merged_parts_are_the_whole():
    rows = cohort(50, 6, 0)
    found, rest = moments(rows[:20], 3), moments(rows[20:], 2)
    found.merge(rest)
    found.merge(Moments(6))  # nothing
    np.testing.assert_allclose(found.scatter, moments(rows, 1).scatter, rtol=1e-12, atol=1e-12)
    assert found.count == 50


@pytest.mark.parametrize(("n", "m", "d"), [(400, 300, 24), (60, 45, 40), (20, 30, 64)])
def test_distance_is_that_of_the_rows(n, m, d):
    real, synthetic = cohort(n, d, 0, 3.0), cohort(m, d, 1, 3.2)
    found = frechet_distance_moments(moments(real, 5), moments(synthetic, 4))
    assert found == pytest.approx(frechet_distance(real, synthetic), rel=1e-8)


def test_equal_and_constant_cohorts():
    rows = cohort(30, 5, 0)
    assert frechet_distance_moments(moments(rows, 1), moments(rows[::-1], 4)) == pytest.approx(0, abs=1e-10)
    constant = frechet_distance_moments(moments(np.zeros((4, 5)), 1), moments(rows, 1))
    assert constant == pytest.approx(frechet_distance(np.zeros((4, 5)), rows), rel=1e-10)


def test_memory_does_not_grow_with_the_cohort():
    peaks = []
    for n in (5, 100):
        tracemalloc.start()
        found = Moments(64)
        for seed in range(n):
            found.update(cohort(50, 64, seed))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_bad_batches_are_refused():
    found = Moments(3)
    with pytest.raises(InputError, match="expected \\(volumes, 3\\), found shape \\(2, 4\\)"):
        found.update(np.zeros((2, 4)))
    with pytest.raises(InputError, match="NaN"):
        found.update(np.full((2, 3), np.nan))
    found.update(np.zeros((1, 3)))
    with pytest.raises(InputError, match="1 volume"):
        frechet_distance_moments(found, found)
    with pytest.raises(InputError, match="width 3, synthetic features 4"):
        frechet_distance_moments(found, Moments(4))
    with pytest.raises(InputError, match="widths 3 and 4"):
        found.merge(Moments(4))
    with pytest.raises(InputError, match="1 feature or more"):
        Moments(0)
