import dataclasses
import json

import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import pdist

from core.errors import InputError
from core.metrics import METRICS, FeatureMetric
from core.metrics.features import (
    evaluate_frechet,
    evaluate_kid,
    evaluate_mmd2_rbf,
    frechet_distance,
    frechet_estimate,
    median_distance,
    mmd2,
)
from core.metrics.resampling import half_draws, one_by_one

KERNELS = ("rbf", "polynomial", "linear")
FEATURE_METRICS = [metric for metric in METRICS.values() if isinstance(metric, FeatureMetric)]


def cohort(n, d, seed, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * scale * np.arange(1, d + 1) ** -0.5 + shift


def plain_frechet(real, synthetic):
    a, b = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    gap = real.mean(0) - synthetic.mean(0)
    return gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b)).real


def plain_mmd2(real, synthetic, kernel):
    n, m = len(real), len(synthetic)
    within = [
        sum(kernel(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j)
        for rows in (real, synthetic)
    ]
    between = sum(kernel(x, y) for x in real for y in synthetic)
    return within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * between / (n * m)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 45, 12), (30, 30, 29), (20, 25, 64), (30, 20, 25)])
def test_frechet_equals_the_matrix_root(n, m, d):
    real, synthetic = cohort(n, d, 0), cohort(m, d, 1, shift=0.2, scale=1.3)
    assert frechet_distance(real, synthetic) == pytest.approx(plain_frechet(real, synthetic), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (20, 300)])
def test_frechet_identity_symmetry_and_rotation(n, d):
    real, synthetic = cohort(n, d, 0), cohort(n + 7, d, 1, shift=0.3)
    value = frechet_distance(real, synthetic)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(d, d)))[0]
    assert frechet_distance(real, real[::-1]) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(synthetic, real) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(real @ rotation + 5, synthetic @ rotation + 5) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (20, 300)])
def test_frechet_closed_forms(n, d):
    real = cohort(n, d, 0)
    shift = np.random.default_rng(1).normal(size=d)
    spread = real.var(axis=0, ddof=1).sum()
    wider = real.mean(0) + 3 * (real - real.mean(0))
    assert frechet_distance(real, real + shift) == pytest.approx(shift @ shift, rel=1e-9)
    assert frechet_distance(real, wider) == pytest.approx((3 - 1) ** 2 * spread, rel=1e-9)
    assert frechet_distance(real, np.zeros((5, d))) == pytest.approx(real.mean(0) @ real.mean(0) + spread, rel=1e-9)


def test_frechet_by_hand():
    # means 1 and 2, variances 2 and 8: 1 + 2 + 8 - 2 * 4
    assert frechet_distance([[0.0], [2.0]], [[0.0], [4.0]]) == pytest.approx(3.0)


def test_frechet_of_large_samples_reaches_the_distance_of_the_gaussians():
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(40000, 3)), 2 * rng.normal(size=(30000, 3)) + [1, 0, 0]
    assert frechet_distance(real, synthetic) == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.02)


def test_frechet_grows_with_the_shift_and_ignores_empty_features():
    real, synthetic = cohort(40, 16, 0), cohort(40, 16, 1)
    values = [frechet_distance(real, synthetic + shift) for shift in (0.5, 1.0, 2.0, 4.0)]
    assert np.all(np.diff(values) > 0)
    wide = [np.pad(rows, ((0, 0), (0, 100))) for rows in (real, synthetic)]  # n > d becomes n < d
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(real, synthetic), rel=1e-9)


def test_frechet_equals_monai():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    real, synthetic = cohort(80, 32, 0), cohort(60, 32, 1, shift=0.1)
    expected = float(monai.FIDMetric()(torch.from_numpy(synthetic), torch.from_numpy(real)))
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(40, 8), (20, 300)])
def test_frechet_from_the_table_of_products_is_the_same_number(n, d):
    real, synthetic = cohort(n, d, 0, shift=50.0), cohort(n + 3, d, 1, shift=50.2)
    estimate = frechet_estimate(real, synthetic)
    i, j = np.array([0, 3, 5, 5, 9, 11]), np.array([1, 2, 8, 4, 4])
    assert estimate([(i, n + j)])[0] == pytest.approx(frechet_distance(real[i], synthetic[j]), rel=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd2_equals_sums_of_scikit_learn_kernels(kernel):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    real, synthetic = cohort(30, 10, 0), cohort(22, 10, 1, shift=0.3)
    h = float(np.median(pdist(np.vstack([real, synthetic]))))
    kernels = {
        "rbf": lambda a, b: pairwise.rbf_kernel(a, b, gamma=1 / (2 * h * h)),
        "polynomial": lambda a, b: pairwise.polynomial_kernel(a, b, degree=3, gamma=1 / 10, coef0=1),
        "linear": pairwise.linear_kernel,
    }
    k = kernels[kernel]
    within = [(k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1)) for a in (real, synthetic)]
    expected = sum(within) - 2 * k(real, synthetic).mean()
    assert mmd2(real, synthetic, kernel=kernel) == pytest.approx(expected, rel=1e-9)


def test_mmd2_by_hand():
    real, synthetic = np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])
    assert mmd2(real, synthetic, kernel="linear") == pytest.approx(0 + 3 - 2 * (0 + 0 + 2 + 6) / 4)
    assert mmd2(real, synthetic, kernel="polynomial") == pytest.approx(1 + 4**3 - 2 * (1 + 1 + 27 + 343) / 4)
    expected = 2 * np.exp(-2) - 2 * (3 * np.exp(-0.5) + np.exp(-4.5)) / 4
    assert mmd2(real, synthetic, kernel="rbf", bandwidth=1.0) == pytest.approx(expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd2_symmetry_monotone_and_plain_sum(kernel):
    real, synthetic = cohort(12, 6, 0), cohort(9, 6, 1)
    functions = {
        "rbf": lambda x, y: np.exp(-((x - y) ** 2).sum() / 8),
        "polynomial": lambda x, y: (x @ y / 6 + 1) ** 3,
        "linear": lambda x, y: x @ y,
    }
    value = mmd2(real, synthetic, kernel=kernel, bandwidth=2.0)
    assert value == pytest.approx(plain_mmd2(real, synthetic, functions[kernel]), rel=1e-9)
    assert mmd2(synthetic, real, kernel=kernel, bandwidth=2.0) == pytest.approx(value, rel=1e-9)
    shifted = [mmd2(real, synthetic + shift, kernel=kernel, bandwidth=2.0) for shift in (0.5, 1, 2, 4)]
    assert np.all(np.diff(shifted) > 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd2_is_unbiased(kernel):
    values = [mmd2(cohort(6, 4, 2 * s), cohort(9, 4, 2 * s + 1), kernel=kernel, bandwidth=1.0) for s in range(600)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    biased = [mmd2(cohort(6, 4, 2 * s), cohort(9, 4, 2 * s + 1, 0.5), kernel=kernel, bandwidth=1.0) for s in range(60)]
    assert np.mean(biased) > 8 * np.std(values) / np.sqrt(len(biased))


def test_rbf_does_not_change_with_rotation_or_a_common_shift():
    real, synthetic = cohort(20, 5, 0), cohort(20, 5, 1, shift=0.5)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    moved = mmd2(real @ rotation + 1e4, synthetic @ rotation + 1e4, kernel="rbf")
    assert moved == pytest.approx(mmd2(real, synthetic, kernel="rbf"), rel=1e-6)


def test_half_samples_of_a_mean_have_its_standard_error():
    rows = np.random.default_rng(0).normal(size=(50, 1))
    pooled = np.vstack([rows, 3 * rows[:40]])

    def gap(i, j):
        return float(pooled[i].mean() - pooled[j].mean())

    draws = one_by_one(gap)(half_draws(50, 40, rng=np.random.default_rng(1), n_boot=6000))
    expected = np.sqrt(rows.var(ddof=1) / 50 + 9 * rows[:40].var(ddof=1) / 40)
    assert draws.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("evaluate", [evaluate_frechet, evaluate_kid])
def test_intervals_cover_the_expected_value(evaluate):
    scores = [evaluate(cohort(24, 96, 2 * s), cohort(24, 96, 2 * s + 1, 0.25), seed=s, n_boot=80) for s in range(80)]
    expected = np.mean([score.value for score in scores])
    covered = np.mean([score.ci_low <= expected <= score.ci_high for score in scores])
    ratio = np.mean([score.ci_high - score.ci_low for score in scores]) / np.std([score.value for score in scores])
    assert covered >= 0.88
    assert ratio < 1.6 * 2 * 1.96  # not wide for the sake of covering


@pytest.mark.parametrize(("n", "d"), [(24, 512), (64, 16)])
def test_floor_is_what_a_perfect_generator_scores(n, d):
    scores = [evaluate_frechet(cohort(n, d, 2 * s), cohort(n, d, 2 * s + 1), seed=s, n_boot=0) for s in range(25)]
    value, floor = (np.mean([getattr(score, name) for score in scores]) for name in ("value", "floor"))
    at_split = np.mean([score.settings["floor_at_split"] for score in scores])
    assert floor == pytest.approx(value, rel=0.12)
    assert at_split > 1.15 * value  # the split alone would excuse a bad generator


def test_floor_uses_the_synthetic_size_when_the_real_cohort_is_large():
    score = evaluate_frechet(cohort(90, 40, 0), cohort(20, 40, 1), seed=0, n_boot=0)
    assert (score.settings["floor_n_real"], score.settings["floor_n_synthetic"]) == (70, 20)
    assert any("different N: 90 real and 20 synthetic" in warning for warning in score.warnings)


def test_floor_of_an_unbiased_estimate_is_zero_and_the_same_for_every_generator():
    real = cohort(40, 30, 0)
    first = evaluate_mmd2_rbf(real, cohort(40, 30, 1), seed=3, n_boot=20)
    second = evaluate_mmd2_rbf(real, cohort(40, 30, 2, shift=1.0), seed=3, n_boot=20)
    assert first.floor == pytest.approx(second.floor, rel=1e-9)
    assert first.settings["bandwidth"] == second.settings["bandwidth"] == median_distance(real)
    assert abs(first.floor) < 0.05 * second.value


@pytest.mark.parametrize("metric", FEATURE_METRICS, ids=lambda metric: metric.key)
def test_every_feature_metric(metric):
    real, equal, far = cohort(24, 40, 0), cohort(24, 40, 1), cohort(24, 40, 2, shift=1.0)
    score = metric.evaluate(real, equal, seed=0, n_boot=50)
    again = metric.evaluate(real, equal, seed=0, n_boot=50)
    assert score == again
    other = metric.evaluate(real, equal, seed=1, n_boot=50)
    assert other.value == score.value and other.ci_low != score.ci_low
    assert metric.range[0] <= score.ci_low <= score.value <= score.ci_high <= metric.range[1]
    worse = metric.evaluate(real, far, seed=0, n_boot=50)
    if metric.direction == "higher":
        assert worse.ci_high < min(score.ci_low, score.floor)
    else:
        assert worse.ci_low > max(score.ci_high, score.floor)
    assert json.loads(json.dumps(score.to_dict())) == score.to_dict()
    without = metric.evaluate(real, equal, seed=0, n_boot=0)
    assert (without.ci_low, without.ci_high, without.value) == (None, None, score.value)


@pytest.mark.parametrize("metric", FEATURE_METRICS, ids=lambda metric: metric.key)
def test_two_rows_give_a_number_without_interval_or_floor(metric):
    score = metric.evaluate(cohort(2, 5, 0), cohort(2, 5, 1), seed=0, n_boot=50)
    assert score.ci_low is score.ci_high is score.floor is None
    if metric.least_n > 2:
        assert score.value is None
        assert any(f"needs {metric.least_n} of each" in warning for warning in score.warnings)
        return
    assert np.isfinite(score.value)
    assert sum("fewer than 4" in warning for warning in score.warnings) == 2


@pytest.mark.parametrize(("key", "metric"), METRICS.items())
def test_registry_describes_every_metric(key, metric):
    assert key == metric.key
    assert all(
        getattr(metric, field.name) not in (None, "") for field in dataclasses.fields(metric) if field.name != "unit"
    )
    assert metric.direction in {"lower", "higher", "match real"}
    assert metric.range[0] < metric.range[1] and metric.least_n >= 2 and metric.version >= 1
    assert any(mark in metric.reference for mark in ("doi:", "arXiv:", "JMLR", "MICCAI"))


def test_small_cohorts_and_constant_features_are_marked():
    score = evaluate_frechet(cohort(24, 2048, 0), cohort(24, 2048, 1), seed=0, n_boot=0)
    assert any("N = 24 is not larger than the feature width 2048" in warning for warning in score.warnings)
    constant = evaluate_frechet(cohort(24, 4, 0), np.ones((24, 4)), seed=0, n_boot=10)
    assert any("all synthetic features are constant" in warning for warning in constant.warnings)
    assert not any("real features are constant" in warning for warning in constant.warnings)


GOOD = cohort(6, 3, 0)
HOLED = np.where(np.arange(18).reshape(6, 3) == 7, np.nan, GOOD)
BAD = [
    (GOOD[:1], GOOD, "real features: 1 volume"),
    (GOOD, GOOD[:0], "synthetic features: 0 volume"),
    (GOOD, GOOD[:, :2], "width 3, synthetic features 2"),
    (GOOD, HOLED, r"synthetic features: 1 of 6 rows hold NaN or Inf \(rows 2\)"),
    (GOOD * np.inf, GOOD, "real features: 6 of 6 rows"),
    (GOOD[0], GOOD, r"found shape \(3,\)"),
    ([["a", "b"]], GOOD, "not a table of numbers"),
]


@pytest.mark.parametrize(("real", "synthetic", "message"), BAD)
def test_bad_features_are_refused(real, synthetic, message):
    with pytest.raises(InputError, match=message) as error:
        frechet_distance(real, synthetic)
    assert error.value.remedy
    for kernel in KERNELS:
        with pytest.raises(InputError, match=message):
            mmd2(real, synthetic, kernel=kernel)
    for metric in FEATURE_METRICS:
        with pytest.raises(InputError, match=message):
            metric.evaluate(real, synthetic, seed=0, n_boot=5)


def test_kernels_without_a_scale_are_refused():
    with pytest.raises(InputError, match="median distance between feature rows is 0"):
        mmd2(np.full((5, 3), 0.1), np.full((4, 3), 0.1), kernel="rbf")
    with pytest.raises(InputError, match="bandwidth > 0"):
        mmd2(GOOD, GOOD + 1, kernel="rbf", bandwidth=0.0)
    with pytest.raises(InputError, match="Choose one of: rbf, polynomial, linear"):
        mmd2(GOOD, GOOD + 1, kernel="cubic")
    with pytest.raises(InputError, match="too large"), np.errstate(over="ignore", invalid="ignore"):
        evaluate_kid(GOOD * 1e120, GOOD, seed=0, n_boot=5)


@pytest.mark.parametrize("metric", FEATURE_METRICS, ids=lambda metric: metric.key)
def test_the_floor_is_of_the_real_volumes_alone(metric):
    real = cohort(40, 8, 0)
    floors = [metric.evaluate(real, cohort(30, 8, s, shift=s, scale=s), seed=0, n_boot=0).floor for s in (1, 4)]
    assert floors[0] == pytest.approx(floors[1], rel=1e-9)
