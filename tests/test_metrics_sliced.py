import numpy as np
import pytest
from scipy import stats

from core.errors import InputError
from core.metrics.sliced import _estimate, _projected, evaluate_sliced, sliced_wasserstein


def cohort(n, d, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def test_identity_symmetry_and_seed():
    real, synthetic = cohort(30, 8, 0), cohort(30, 8, 1, shift=0.3)
    assert sliced_wasserstein(real, real[::-1]) == pytest.approx(0, abs=1e-20)
    value = sliced_wasserstein(real, synthetic)
    assert sliced_wasserstein(synthetic, real) == pytest.approx(value, rel=1e-12)
    assert sliced_wasserstein(real, synthetic) == value != sliced_wasserstein(real, synthetic, seed=1)
    assert sliced_wasserstein(real, synthetic, seed=1) == pytest.approx(value, rel=0.1)
    assert sliced_wasserstein(3 * real + 1e4, 3 * synthetic + 1e4) == pytest.approx(9 * value, rel=1e-8)


@pytest.mark.parametrize("d", [1, 6, 200])
def test_a_shift_costs_its_squared_length_over_the_width(d):
    real, shift = cohort(40, d, 0), cohort(1, d, 1)[0]
    value = sliced_wasserstein(real, real + shift, directions=20000)
    assert value == pytest.approx(shift @ shift / d, rel=0.05)
    assert sliced_wasserstein(real, real + shift) == pytest.approx(shift @ shift / d, rel=0.2)


def test_shifted_and_wider_gaussians_reach_the_closed_form():
    real, synthetic = cohort(20000, 4, 0), cohort(15000, 4, 1, shift=1.0, scale=1.5)
    expected = 4 / 4 + (1.5 - 1) ** 2  # along any direction: (θ·Δμ)² + (σr − σs)²
    assert sliced_wasserstein(real, synthetic, directions=400) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 5), (4, 9), (12, 8)])
def test_one_dimension_is_the_exact_transport_of_unequal_cohorts(n, m):
    real, synthetic = cohort(n, 1, 0), cohort(m, 1, 1, shift=0.5)
    repeated = np.sort(np.repeat(real[:, 0], m)), np.sort(np.repeat(synthetic[:, 0], n))  # nm values each
    assert sliced_wasserstein(real, synthetic) == pytest.approx(((repeated[0] - repeated[1]) ** 2).mean(), rel=1e-10)
    # W1 of the same coupling is SciPy's: the sorted coupling is optimal for both
    assert np.abs(repeated[0] - repeated[1]).mean() == pytest.approx(
        stats.wasserstein_distance(real[:, 0], synthetic[:, 0])
    )


def test_repeating_every_row_changes_nothing():
    real, synthetic = cohort(20, 5, 0), cohort(20, 5, 1, shift=0.4)
    value = sliced_wasserstein(real, synthetic)
    assert sliced_wasserstein(real, np.repeat(synthetic, 3, axis=0)) == pytest.approx(value, rel=1e-10)


def test_grows_with_the_shift():
    real, synthetic = cohort(50, 10, 0), cohort(40, 10, 1)
    values = [sliced_wasserstein(real, synthetic + shift) for shift in (0, 0.5, 1, 2)]
    assert np.all(np.diff(values) > 0)


def test_estimate_of_chosen_rows_is_the_distance_of_these_rows():
    real, synthetic = cohort(30, 6, 0), cohort(25, 6, 1, shift=0.4)
    estimate = _estimate(_projected(real, synthetic, 0, 1000), 30)
    i, j = np.array([9, 0, 4, 17]), np.array([3, 24, 7, 2, 11])
    assert estimate([(i, 30 + j)])[0] == pytest.approx(sliced_wasserstein(real[i], synthetic[j]), rel=1e-9)
    assert estimate([(i, j)])[0] == pytest.approx(sliced_wasserstein(real[i], real[j]), rel=1e-9)  # a split


def test_floor_is_what_a_perfect_generator_scores():
    scores = [evaluate_sliced(cohort(40, 64, 2 * s), cohort(40, 64, 2 * s + 1), seed=s, n_boot=0) for s in range(20)]
    value, floor = (np.mean([getattr(score, name) for score in scores]) for name in ("value", "floor"))
    assert floor == pytest.approx(value, rel=0.12)


def test_no_direction_is_refused():
    with pytest.raises(InputError, match="at least 1 direction, found 0"):
        sliced_wasserstein(cohort(5, 2, 0), cohort(5, 2, 1), directions=0)
