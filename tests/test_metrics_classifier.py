import numpy as np
import pytest

from core.errors import InputError
from core.metrics.classifier import _of_columns, _of_products, classifier_accuracy, evaluate_classifier


def cohort(n, d, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


@pytest.mark.parametrize("form", [_of_columns, _of_products])
@pytest.mark.parametrize("d", [6, 200])
def test_classifier_is_the_one_of_scikit_learn(d, form):
    linear_model = pytest.importorskip("sklearn.linear_model")
    train = np.vstack([cohort(25, d, 0), cohort(25, d, 1, shift=0.4)])
    test = np.vstack([cohort(9, d, 2), cohort(9, d, 3, shift=0.4)])
    label = np.repeat([-1.0, 1.0], 25)
    expected = linear_model.RidgeClassifier(alpha=0.7 * d).fit(train, label).decision_function(test)
    rows = np.vstack([train, test])
    fold = (np.arange(len(rows)) < 50).astype(int)  # the first classifier leaves out the test rows
    labels = np.concatenate([label, np.repeat([-1.0, 1.0], 9)])
    found = form(rows / np.sqrt(d), 0.7)(np.arange(len(rows)), fold, labels)[50:]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_equal_cohorts_cannot_be_told_apart_and_distant_ones_always():
    values = [classifier_accuracy(cohort(40, 20, 2 * s), cohort(40, 20, 2 * s + 1)) for s in range(40)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)
    assert classifier_accuracy(cohort(40, 20, 0), cohort(40, 20, 1, shift=5)) == 1.0
    assert classifier_accuracy(np.ones((10, 4)), np.ones((8, 4))) == 0.5


def test_accuracy_reaches_that_of_the_best_rule():
    from scipy import stats

    real, synthetic = cohort(3000, 4, 0), cohort(2000, 4, 1, shift=0.5)
    best = stats.norm.cdf(np.sqrt(4 * 0.5**2) / 2)
    assert classifier_accuracy(real, synthetic) == pytest.approx(best, abs=0.02)


def test_grows_with_the_shift_and_ignores_units_and_order():
    real, synthetic = cohort(60, 10, 0), cohort(60, 10, 1)
    values = [classifier_accuracy(real, synthetic + shift) for shift in (0.2, 0.4, 0.8, 1.6)]
    assert np.all(np.diff(values) > 0)
    units = 10.0 ** np.arange(-5, 5)
    assert classifier_accuracy(real * units + 7, (synthetic + 0.4) * units + 7) == values[1]
    assert classifier_accuracy(synthetic + 0.4, real) == pytest.approx(values[1], abs=0.1)


def test_unequal_cohorts_are_not_decided_by_the_larger_one():
    values = [classifier_accuracy(cohort(90, 5, 2 * s), cohort(20, 5, 2 * s + 1)) for s in range(30)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_interval_lies_about_the_value_and_floor_about_a_half():
    score = evaluate_classifier(cohort(60, 30, 0), cohort(60, 30, 1, shift=0.3), seed=0, n_boot=100)
    assert 0.5 < score.ci_low < score.value < score.ci_high <= 1
    assert score.floor == pytest.approx(0.5, abs=0.06)
    assert score.settings["folds"] == 5


def test_settings_that_define_no_classifier_are_refused():
    for settings in ({"folds": 1}, {"penalty": 0.0}, {"penalty": np.nan}):
        with pytest.raises(InputError, match="2 folds or more and a penalty > 0"):
            classifier_accuracy(cohort(5, 2, 0), cohort(5, 2, 1), **settings)
