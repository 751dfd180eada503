"""Classifier two-sample test: how well a linear classifier tells synthetic from real."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.features import Matrix, checked, feature_warnings
from core.metrics.resampling import Estimate, Rows, score
from core.metrics.threads import one_blas_thread

FOLDS = 5
FOLD_SEED = 0  # one assignment for all studies
PENALTY = 1.0


def classifier_accuracy(
    real: ArrayLike, synthetic: ArrayLike, *, seed: int = FOLD_SEED, folds: int = FOLDS, penalty: float = PENALTY
) -> float:
    """Cross-validated accuracy of telling synthetic from real features (C2ST). 0.5 is best.

    Parameters
    ----------
    real : array, shape (n, d)
    synthetic : array, shape (m, d)
    seed : int
        Seed of the folds.
    folds : int
        Stratified folds, fewer where a cohort has fewer rows.
    penalty : float
        Ridge penalty, in units of the feature width.

    Returns
    -------
    float
        Mean of the shares of real and of synthetic rows that are recognised (balanced accuracy).

    Raises
    ------
    InputError
        As `core.metrics.features.frechet_distance`; fewer than two folds, penalty not positive.

    Notes
    -----
    Ridge regression of the label on features of unit variance, thresholded midway between the training
    means of both cohorts: with cohorts of equal size scikit-learn's ``RidgeClassifier(alpha=penalty * d)``.
    All folds share one table of products, so the cost does not grow with d after it. Features are scaled
    over both cohorts together, without their labels.

    References
    ----------
    Lopez-Paz & Oquab, ICLR 2017, arXiv:1610.06545.
    """
    first, second = checked(real, synthetic)
    if folds < 2 or not (np.isfinite(penalty) and penalty > 0):
        raise InputError(
            f"expected 2 folds or more and a penalty > 0, found {folds} and {penalty}.", "classifier", "Use 5 and 1."
        )
    estimate = _estimate(first, second, seed, folds, penalty)
    return estimate(np.arange(len(first)), np.arange(len(first), len(first) + len(second)))


def evaluate_classifier(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int
) -> Score:
    """Cross-validated accuracy with half-sample interval and real-against-real floor."""
    first, second = checked(real, synthetic)
    return score(
        _estimate(first, second, FOLD_SEED, FOLDS, PENALTY),
        len(first),
        len(second),
        seed=seed,
        n_boot=n_boot,
        lower=0.0,
        upper=1.0,
        biased=False,
        settings={
            "width": first.shape[1],
            "classifier": "ridge on standardised features, balanced accuracy",
            "penalty": PENALTY,
            "folds": FOLDS,
            "fold_seed": FOLD_SEED,
        },
        warnings=feature_warnings(first, second, covariance=False),
    )


C2ST = FeatureMetric(
    name="c2st",
    label="Classifier accuracy",
    variant="corrected",
    unit="",
    direction="lower",
    range=(0.0, 1.0),
    least_n=2,
    reference="Lopez-Paz & Oquab, ICLR 2017, arXiv:1610.06545",
    meaning="How often a linear classifier tells an unseen synthetic brain from a real one: 0.5 is guessing, 1 always.",
    version=1,
    evaluate=evaluate_classifier,
)


def _estimate(real: Matrix, synthetic: Matrix, seed: int, folds: int, penalty: float) -> Estimate:
    pooled = np.vstack([real, synthetic])
    pooled -= pooled.mean(axis=0)
    spread = pooled.std(axis=0)
    varying = spread > 1e-12 * max(1.0, float(spread.max()))
    pooled = pooled[:, varying] / spread[varying]
    with one_blas_thread():
        products = pooled @ pooled.T / real.shape[1]
    place = np.random.default_rng(seed).permutation(len(pooled))  # so that file order does not matter

    def fold_of(rows: Rows, parts: int) -> NDArray[np.intp]:
        return np.argsort(np.argsort(place[rows])) % parts

    def estimate(i: Rows, j: Rows) -> float:
        rows, parts = np.concatenate([i, j]), min(folds, len(i), len(j))
        fold = np.concatenate([fold_of(i, parts), fold_of(j, parts)])
        label = np.repeat([-1.0, 1.0], [len(i), len(j)])
        table = products[np.ix_(rows, rows)]
        right = np.empty(len(rows))
        for part in range(parts):
            test = fold == part
            margin = _margins(table, ~test, test, label[~test], penalty)
            right[test] = (1 + np.sign(margin * label[test])) / 2  # undecided counts half
        return float((right[: len(i)].mean() + right[len(i) :].mean()) / 2)

    return estimate


def _margins(
    table: Matrix, train: NDArray[np.bool_], test: NDArray[np.bool_], label: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """Output of the classifier for the test rows, less its threshold: dual form of ridge regression."""
    within, across = table[np.ix_(train, train)], table[np.ix_(test, train)]
    means = within.mean(axis=0)
    across = across - means - across.mean(axis=1, keepdims=True) + means.mean()
    within = within - means - means[:, None] + means.mean()
    with one_blas_thread():
        ridge = within + penalty * np.eye(len(within))
        weights = linalg.solve(ridge, label - label.mean(), assume_a="pos", check_finite=False)
        fitted, margin = within @ weights, across @ weights
    margin -= (fitted[label > 0].mean() + fitted[label < 0].mean()) / 2
    return np.where(np.abs(margin) < 1e-12, 0.0, margin)
