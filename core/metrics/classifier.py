"""Classifier two-sample test: how well a linear classifier tells synthetic from real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from core.errors import InputError
from core.metrics.base import FeatureMetric, Score
from core.metrics.features import Matrix, checked, feature_warnings
from core.metrics.resampling import Estimate, Rows, one_by_one, score
from core.metrics.threads import one_blas_thread

FOLDS = 5
FOLD_SEED = 0  # one assignment for all studies
MOST_DRAWS = 200  # a draw trains one classifier a fold, eight times the cost of a Fréchet distance
PENALTY = 1.0

# From row numbers, the fold of each and its label: the output for it of the classifier trained without its fold.
Margins = Callable[[Rows, Rows, NDArray[np.float64]], NDArray[np.float64]]


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
    All folds share one table of products, so the cost does not grow with d after it, or of features where there are
    many rows, so that it grows with n alone. Features are scaled over both cohorts together, without their labels;
    for the floor over the real cohort.

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
    return float(estimate([(np.arange(len(first)), np.arange(len(first), len(first) + len(second)))])[0])


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
        n_boot=min(n_boot, MOST_DRAWS),
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
    version=3,
    evaluate=evaluate_classifier,
)


def _estimate(real: Matrix, synthetic: Matrix, seed: int, folds: int, penalty: float) -> Estimate:
    whole = _ridge(np.vstack([real, synthetic]), penalty)
    within = _ridge(real, penalty)  # a floor that no synthetic volume scales: the same for every generator
    # So that file order does not matter.
    places = [np.random.default_rng([seed, i]).permutation(len(rows)) for i, rows in enumerate((real, synthetic))]
    place = np.concatenate(places)

    def fold_of(rows: Rows, parts: int) -> NDArray[np.intp]:
        return np.argsort(np.argsort(place[rows])) % parts

    def value(i: Rows, j: Rows) -> float:
        rows, parts = np.concatenate([i, j]), min(folds, len(i), len(j))
        fold = np.concatenate([fold_of(i, parts), fold_of(j, parts)])
        label = np.repeat([-1.0, 1.0], [len(i), len(j)])
        with one_blas_thread():
            margin = (within if j.max() < len(real) else whole)(rows, fold, label)
        margin[np.abs(margin) < 1e-12] = 0.0
        right = (1 + np.sign(margin * label)) / 2  # undecided counts half
        return float((right[: len(i)].mean() + right[len(i) :].mean()) / 2)

    return one_by_one(value)


def _ridge(features: Matrix, penalty: float) -> Margins:
    """Margins on features scaled to unit variance over all rows: (n, d)."""
    scaled = features - features.mean(axis=0)
    spread = scaled.std(axis=0)
    varying = spread > 1e-12 * max(1.0, float(spread.max()))
    scaled = scaled[:, varying] / (spread[varying] * np.sqrt(features.shape[1]))
    return (_of_columns if len(scaled) > 2 * scaled.shape[1] > 0 else _of_products)(scaled, penalty)


def _of_products(pooled: Matrix, penalty: float) -> Margins:
    """Margins from one table of products of all rows: (n, d) with n at most about d."""
    with one_blas_thread():
        products = pooled @ pooled.T
    return lambda rows, fold, label: _margins(products[rows[:, None], rows], fold, label, penalty)


def _of_columns(pooled: Matrix, penalty: float) -> Margins:
    """Margins from one table of features a fold: of many rows, cost and memory then grow with n and not its square."""

    def margins(rows: Rows, fold: Rows, label: NDArray[np.float64]) -> NDArray[np.float64]:
        chosen = pooled[rows]
        table, sums, towards = chosen.T @ chosen, chosen.sum(axis=0), label @ chosen
        margin = np.empty(len(rows))
        for part in range(int(fold.max()) + 1):
            train, test = fold != part, chosen[fold == part]
            n, centre = train.sum(), (sums - test.sum(axis=0)) / train.sum()
            within = table - test.T @ test - n * np.outer(centre, centre)
            within[np.diag_indices_from(within)] += penalty
            along = towards - label[~train] @ test - label[train].sum() * centre
            output = chosen @ linalg.solve(within, along, assume_a="pos")
            margin[~train] = (output - _midway(output, train, label))[~train]
        return margin

    return margins


def _midway(output: NDArray[np.float64], train: NDArray[np.bool_], label: NDArray[np.float64]) -> float:
    """Return the threshold midway between the mean outputs of both cohorts in training."""
    return float(output[train & (label > 0)].mean() + output[train & (label < 0)].mean()) / 2


def _margins(table: Matrix, fold: NDArray[np.intp], label: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Output of each fold's classifier for its test rows, less its threshold: (rows,).

    One inverse serves all folds: where R turns labels into residuals of the ridge regression of all rows,
    the residuals of fold F under the regression without F are the solution of R_FF e = (R y)_F, and the
    output of that regression is y − R (y − e at F), because it fits itself (Cook & Weisberg 1982).
    """
    n = len(table)
    means = table.mean(axis=0)
    table -= means
    table -= (means - means.mean())[:, None]
    table[np.diag_indices(n)] += penalty
    factor, failed = linalg.lapack.dpotrf(table, lower=1, overwrite_a=1)
    inverse, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("the ridge is not positive definite")
    leave = penalty * (np.tril(inverse) + np.tril(inverse, -1).T) - 1 / n  # R; the mean is fitted without penalty
    residual = leave @ label
    margin = np.empty(n)
    for part in range(int(fold.max()) + 1):
        test = np.flatnonzero(fold == part)
        _, error, _ = linalg.lapack.dposv(leave[test[:, None], test], residual[test], lower=1)
        output = label - residual + leave[:, test] @ error
        margin[test] = label[test] - error - _midway(output, fold != part, label)
    return margin
