import numpy as np
import pytest

from core.errors import InputError
from core.metrics.extrapolation import evaluate_extrapolated, frechet_extrapolated
from core.metrics.features import frechet_distance


def cohort(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def test_bias_of_a_finite_cohort_is_removed():
    d, shift = 10, 0.3
    pairs = [(cohort(200, d, 2 * s), cohort(200, d, 2 * s + 1, shift)) for s in range(120)]
    values = [frechet_extrapolated(*pair).value for pair in pairs]
    plain = [frechet_distance(*pair) for pair in pairs]
    expected = d * shift**2
    assert np.mean(plain) > 1.25 * expected
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / np.sqrt(len(values))


def test_curve_falls_and_ends_at_the_plain_distance():
    real, synthetic = cohort(120, 20, 0), cohort(100, 20, 1, 0.3)
    found = frechet_extrapolated(real, synthetic)
    assert len(found.sizes) == len(found.distances) == 5
    assert np.all(np.diff(found.sizes) > 0) and np.all(np.diff(found.distances) < 0)
    assert found.distances[-1] == pytest.approx(frechet_distance(real, synthetic), rel=1e-9)
    assert found.value < found.distances[-1]
    assert frechet_extrapolated(real, synthetic) == found != frechet_extrapolated(real, synthetic, seed=1)


def test_symmetry_units_and_growth():
    real, synthetic = cohort(60, 5, 0), cohort(60, 5, 1)
    values = [frechet_extrapolated(real, synthetic + shift).value for shift in (0, 0.5, 1, 2)]
    assert np.all(np.diff(values) > 0)
    assert frechet_extrapolated(3 * real, 3 * synthetic).value == pytest.approx(9 * values[0], rel=1e-8)
    assert frechet_extrapolated(real, real[::-1]).value < 0.1  # subsets differ although the cohorts do not


def test_score_holds_the_curve_and_a_small_cohort_is_marked():
    score = evaluate_extrapolated(cohort(24, 40, 0), cohort(24, 40, 1), seed=0, n_boot=5)
    assert [point.n for point in score.curve] == [12, 15, 18, 21, 24]
    line = frechet_extrapolated(cohort(24, 40, 0), cohort(24, 40, 1))
    assert [point.value for point in score.curve] == pytest.approx(line.distances, rel=1e-9)
    assert all(point.ci_low < point.value < point.ci_high for point in score.curve[:-1])
    assert score.curve[-1].ci_low is None  # all rows: nothing spreads
    assert any("N = 24 is small beside the feature width 40" in warning for warning in score.warnings)
    large = evaluate_extrapolated(cohort(30, 4, 0), cohort(30, 4, 1), seed=0, n_boot=0)
    assert not any("small beside" in warning for warning in large.warnings)


def test_few_rows_are_refused():
    with pytest.raises(InputError, match="7 real and 9 synthetic rows: the curve needs 8"):
        frechet_extrapolated(cohort(7, 2, 0), cohort(9, 2, 1))
