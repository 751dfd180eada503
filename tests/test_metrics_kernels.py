import numpy as np
import pytest
from scipy import stats

from core.metrics import features, kernels, neighbours, resampling
from core.metrics.features import evaluate_frechet, evaluate_kid, evaluate_mmd2_rbf, mmd2
from core.metrics.neighbours import SHARES, evaluate_share
from core.metrics.resampling import permutation_p


def cohort(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def numbers(score):
    points = [(point.n, point.value, point.ci_low, point.ci_high) for point in score.curve]
    return np.array([score.value, score.ci_low, score.ci_high, score.floor, *np.ravel(points)], dtype=float)


@pytest.mark.parametrize("evaluate", [evaluate_mmd2_rbf, evaluate_kid])
def test_p_is_uniform_without_a_difference_and_small_with_one(evaluate, monkeypatch):
    monkeypatch.setattr(features, "PERMUTATIONS", 99)
    found = [evaluate(cohort(14, 5, [s, 0]), cohort(11, 5, [s, 1]), seed=s, n_boot=0).p_value for s in range(200)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    shifted = [evaluate(cohort(14, 5, [s, 0]), cohort(11, 5, [s, 1], 2), seed=s, n_boot=0) for s in range(20)]
    assert max(score.p_value for score in shifted) <= 0.05
    assert min(score.p_value for score in shifted) == pytest.approx(1 / 100)
    assert shifted[0].settings["permutations"] == 99


def test_permutation_p_counts_the_observed_value_and_ties():
    assert permutation_p(2.0, np.array([1.0, 2.0, 3.0])) == 3 / 4
    assert permutation_p(9.0, np.zeros(999)) == 1 / 1000
    assert permutation_p(-1.0, np.zeros(9)) == 1


def test_p_of_few_volumes_has_its_smallest_value():
    # 2 against 2: a third of all divisions is the observed one, however far apart the cohorts are
    score = evaluate_kid(cohort(2, 3, 0), cohort(2, 3, 1, 50), seed=0, n_boot=0)
    assert score.p_value == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("kernel", ["rbf", "polynomial", "linear"])
def test_mmd2_in_blocks_is_the_same_number(kernel, monkeypatch):
    real, synthetic = cohort(40, 9, 0), cohort(33, 9, 1, 0.3)
    whole = mmd2(real, synthetic, kernel=kernel, bandwidth=2.0)
    monkeypatch.setattr(features, "TABLE_ROWS", 10)
    monkeypatch.setattr(kernels, "CELLS", 7 * 73)  # 7 rows at a time
    assert mmd2(real, synthetic, kernel=kernel, bandwidth=2.0) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("evaluate", [evaluate_mmd2_rbf, evaluate_kid])
def test_scores_in_blocks_keep_interval_floor_p_and_curve(evaluate, monkeypatch):
    real, synthetic = cohort(40, 9, 0), cohort(33, 9, 1, 0.3)
    whole = evaluate(real, synthetic, seed=1, n_boot=30)
    monkeypatch.setattr(features, "TABLE_ROWS", 10)
    monkeypatch.setattr(kernels, "CELLS", 7 * 73)  # 7 rows, or draws, at a time
    parts = evaluate(real, synthetic, seed=1, n_boot=30)
    np.testing.assert_allclose(numbers(parts), numbers(whole), rtol=1e-9, atol=1e-14)
    assert parts.p_value == whole.p_value


@pytest.mark.parametrize("share", SHARES)
def test_neighbours_in_blocks_keep_value_interval_and_floor(share, monkeypatch):
    real, synthetic = cohort(60, 6, 0), 0.7 * cohort(50, 6, 1)
    whole = evaluate_share(real, synthetic, seed=1, n_boot=20, share=share)
    monkeypatch.setattr(neighbours, "TABLE_ROWS", 10)
    monkeypatch.setattr(kernels, "CELLS", 13 * 110)  # 13 rows at a time
    monkeypatch.setattr(neighbours, "NEAREST", 7)  # the fifth nearest of a half-sample is often further away
    parts = evaluate_share(real, synthetic, seed=1, n_boot=20, share=share)
    np.testing.assert_allclose(numbers(parts), numbers(whole), rtol=1e-12)


def test_many_rows_take_fewer_draws_and_say_so(monkeypatch):
    monkeypatch.setattr(resampling, "TABLE_ROWS", 10)
    monkeypatch.setattr(features, "LARGE_DRAWS", 12)
    score = evaluate_kid(cohort(20, 3, 0), cohort(20, 3, 1), seed=0, n_boot=500)
    assert "12 half-samples" in score.settings["interval"]
    assert score.settings["permutations"] == 12


def test_the_median_distance_of_many_rows_is_that_of_some(monkeypatch):
    rows = cohort(500, 8, 0)
    whole = kernels.median_distance(rows)
    monkeypatch.setattr(kernels, "TABLE_ROWS", 100)
    monkeypatch.setattr(kernels, "MEDIAN_ROWS", 90)
    some = kernels.median_distance(rows)
    assert some == kernels.median_distance(rows)
    assert some != whole
    assert some == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("evaluate", [evaluate_frechet, evaluate_kid, evaluate_mmd2_rbf])
def test_curve_holds_the_estimate_at_growing_sizes(evaluate):
    real, synthetic = cohort(64, 8, 0), cohort(64, 8, 1, 0.4)
    score = evaluate(real, synthetic, seed=0, n_boot=0)
    assert [point.n for point in score.curve] == [8, 16, 32, 48, 64]
    assert score.curve[-1].value == pytest.approx(score.value, rel=1e-12)
    assert score.curve[-1].ci_low is None
    assert all(point.ci_low < point.value < point.ci_high for point in score.curve[:-1])
    widths = [point.ci_high - point.ci_low for point in score.curve[:-1]]
    assert widths[0] > 1.5 * widths[-1]


def test_curve_of_a_biased_estimate_falls_and_of_an_unbiased_one_stays():
    real, synthetic = cohort(64, 32, 0), cohort(64, 32, 1, 0.4)
    fid = [point.value for point in evaluate_frechet(real, synthetic, seed=0, n_boot=0).curve]
    assert fid[0] > 1.5 * fid[-1]
    assert np.all(np.diff(fid) < 0)
    kid = evaluate_kid(real, synthetic, seed=0, n_boot=0).curve
    assert kid[1].ci_low < kid[-1].value < kid[1].ci_high


def test_curve_of_unequal_cohorts_ends_at_the_smaller_one():
    score = evaluate_kid(cohort(40, 4, 0), cohort(20, 4, 1), seed=0, n_boot=0)
    assert score.curve[-1].n == 20
    assert score.curve[-1].ci_low is not None  # the larger cohort is still drawn from
