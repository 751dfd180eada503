"""Reader statistics: closed forms, published worked examples, external values."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from core import agreement

# Four observers, twelve units: the worked example of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011).
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_of_the_published_example(level, published):
    assert agreement.krippendorff_alpha(np.array(EXAMPLE, dtype=float), level) == pytest.approx(published, abs=5e-4)


def test_alpha_is_one_for_agreement_negative_for_contradiction_and_nan_for_nothing():
    assert agreement.krippendorff_alpha([[1, 2, 5], [1, 2, 5]], "ordinal") == pytest.approx(1)
    assert agreement.krippendorff_alpha([[0, 1, 0, 1], [1, 0, 1, 0]], "nominal") < 0
    assert np.isnan(agreement.krippendorff_alpha([[3, 3], [3, 3]], "ordinal"))
    assert np.isnan(agreement.krippendorff_alpha([[1, np.nan], [np.nan, 2]], "nominal"))


@pytest.mark.parametrize("weights", ["", "quadratic"])
def test_kappa_agrees_with_scikit_learn(weights):
    rng = np.random.default_rng(0)
    first, noise = rng.integers(1, 6, 60), rng.integers(-1, 2, 60)
    second = np.clip(first + noise, 1, 5)
    expected = cohen_kappa_score(first, second, weights=weights or None)
    assert agreement.cohen_kappa(first.tolist(), second.tolist(), weights=weights) == pytest.approx(expected)


def test_wilson_of_a_textbook_value_and_clusters_only_widen_it():
    right = np.array([True] * 8 + [False] * 2)
    found = agreement.wilson(right)
    assert (found.value, found.n) == (0.8, 10)
    assert found.ci_low == pytest.approx(0.4902, abs=1e-4)  # R: binom::binom.confint(8, 10, methods = "wilson")
    assert found.ci_high == pytest.approx(0.9433, abs=1e-4)
    doubled = np.repeat(right, 2)
    clustered = agreement.wilson(doubled, np.repeat(np.arange(10), 2).tolist())
    plain = agreement.wilson(doubled)
    assert clustered.ci_high - clustered.ci_low > plain.ci_high - plain.ci_low
    assert agreement.design_effect(doubled.astype(float), np.repeat(np.arange(10), 2)) == pytest.approx(20 / 9)


def test_d_prime_closed_forms():
    z = NormalDist().inv_cdf
    found = agreement.d_prime(18, 20, 5, 20)
    assert found.value == pytest.approx(z(18.5 / 21) - z(5.5 / 21))
    assert agreement.d_prime(10, 20, 10, 20).value == pytest.approx(0)
    perfect = agreement.d_prime(20, 20, 0, 20)
    assert np.isfinite([perfect.value, perfect.ci_low, perfect.ci_high]).all()
    assert perfect.value > found.value > found.ci_low > 0
    assert np.isnan(agreement.d_prime(3, 5, 0, 0).value)


def test_forced_choice_d_prime():
    z = NormalDist().inv_cdf
    accuracy = agreement.wilson([True] * 15 + [False] * 5)
    found = agreement.d_prime_forced_choice(accuracy)
    assert found.value == pytest.approx(np.sqrt(2) * z(15.5 / 21))
    assert found.ci_low < found.value < found.ci_high
    assert agreement.d_prime_forced_choice(agreement.wilson([True, False])).value == pytest.approx(0)


def test_rank_correlation_is_exact_for_few_and_close_for_more():
    rho, p, tau, n = agreement.rank_correlation([1, 2, 3, 4], [10, 20, 30, 40], seed=0)
    assert (rho, tau, n) == (pytest.approx(1), pytest.approx(1), 4)
    assert p == pytest.approx(2 / 24)  # the order itself and its reverse
    rng = np.random.default_rng(1)
    x = rng.standard_normal(30)
    y = x + rng.standard_normal(30)
    from scipy.stats import spearmanr

    rho, p, _, _ = agreement.rank_correlation(x, y, seed=0)
    reference = spearmanr(x, y)
    assert rho == pytest.approx(reference.statistic)
    assert p == pytest.approx(reference.pvalue, abs=2e-3)
    assert np.isnan(agreement.rank_correlation([1, 2], [1, 2], seed=0)[0])
    assert np.isnan(agreement.rank_correlation([1, 1, 1], [1, 2, 3], seed=0)[0])
