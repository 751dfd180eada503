import numpy as np
import pytest

from core.errors import InputError
from core.metrics import published
from core.metrics.features import median_distance, mmd2
from core.metrics.gram import gram_matrix
from core.metrics.image_mmd import evaluate_image_mmd2, evaluate_published, image_mmd2

SHAPE = (6, 7, 8)


def volumes(n, seed, level=0.0):
    data = np.random.default_rng(seed).uniform(-1, 1, size=(n, *SHAPE)) * 0.5 + level
    return np.clip(data, -1, 1).astype(np.float32)


def products(real, synthetic, folder):
    both = np.concatenate([real, synthetic])
    return gram_matrix(both, len(both), scratch=folder)


@pytest.mark.parametrize(("n", "m", "seed"), [(5, 4, 3), (9, 12, 0), (2, 2, 1)])
def test_published_score_is_that_of_the_function_which_reads_the_volumes(tmp_path, n, m, seed):
    real, synthetic = volumes(n, 0), volumes(m, 1, 0.2)
    score = evaluate_published(products(real, synthetic, tmp_path), n, seed=seed, n_boot=10)
    assert score.value == pytest.approx(published.image_mmd(real, synthetic, seed=seed), rel=1e-6)
    assert score.settings["passes"] == 5
    groups = [group for group in published.plan_image_mmd(n, m, seed=seed) if group[0][0] == "real"]
    blocks = [published.measure_image_mmd(*(real[i] for _, i in g), cohorts=["real"] * 4) for g in groups]
    assert score.floor == (pytest.approx(np.mean(blocks), rel=1e-6) if groups else None)


def test_published_score_of_equal_cohorts_and_by_hand(tmp_path):
    real = np.stack([np.full(SHAPE, v) for v in (-0.5, 0.5)])
    synthetic = np.stack([np.full(SHAPE, v) for v in (0.0, 1.0)])
    size = np.prod(SHAPE)
    by_hand = evaluate_published(products(real, synthetic, tmp_path), 2, seed=0, n_boot=0)
    assert by_hand.value == pytest.approx(size * 0.5**2)
    assert evaluate_published(products(real, real, tmp_path), 2, seed=0, n_boot=0).value == pytest.approx(0, abs=1e-9)


def test_corrected_value_is_the_mmd_of_flattened_volumes(tmp_path):
    real, synthetic = volumes(11, 0), volumes(8, 1, 0.05)
    flat, other = (v.reshape(len(v), -1).astype(np.float64) for v in (real, synthetic))
    table = products(real, synthetic, tmp_path)
    expected = mmd2(flat, other, kernel="rbf", bandwidth=median_distance(flat))
    assert image_mmd2(table, 11) == pytest.approx(expected, rel=1e-6)
    assert image_mmd2(table, 11, bandwidth=3.0) == pytest.approx(mmd2(flat, other, kernel="rbf", bandwidth=3.0), 1e-6)
    score = evaluate_image_mmd2(table, 11, seed=0, n_boot=20)
    assert score.value == image_mmd2(table, 11)
    assert score.settings["bandwidth"] == pytest.approx(median_distance(flat), rel=1e-6)


def test_corrected_score_sees_a_shift_and_nothing_without_one(tmp_path):
    real, equal, far = volumes(24, 0), volumes(24, 1), volumes(24, 2, 0.15)
    same = evaluate_image_mmd2(products(real, equal, tmp_path), 24, seed=0, n_boot=50)
    other = evaluate_image_mmd2(products(real, far, tmp_path), 24, seed=0, n_boot=50)
    assert same.p_value > 0.05
    assert same.ci_low < 0 < same.ci_high
    assert other.p_value < 0.01
    assert other.ci_low > max(same.ci_high, other.floor)
    assert [point.n for point in other.curve] == [6, 12, 18, 24]


def test_two_volumes_give_a_value_and_no_interval_or_floor(tmp_path):
    score = evaluate_image_mmd2(products(volumes(2, 0), volumes(2, 1), tmp_path), 2, seed=0, n_boot=50)
    assert score.value is not None
    assert score.ci_low is score.floor is None


def test_bad_products_are_refused(tmp_path):
    table = products(volumes(4, 0), volumes(4, 1), tmp_path)
    for evaluate in (evaluate_published, evaluate_image_mmd2):
        with pytest.raises(InputError, match=r"real cohort: 1 volume"):
            evaluate(table, 1, seed=0, n_boot=5)
        with pytest.raises(InputError, match="synthetic cohort: 1 volume"):
            evaluate(table, 7, seed=0, n_boot=5)
        with pytest.raises(InputError, match="square"):
            evaluate(table[:5], 3, seed=0, n_boot=5)
        with pytest.raises(InputError, match="NaN"):
            evaluate(table * np.where(np.eye(8), np.nan, 1), 4, seed=0, n_boot=5)
        with pytest.raises(InputError, match="not symmetric"):
            evaluate(np.triu(table), 4, seed=0, n_boot=5)
    repeated = volumes(1, 0).repeat(4, axis=0)
    with pytest.raises(InputError, match="between real volumes is 0"):
        evaluate_image_mmd2(products(repeated, volumes(4, 1), tmp_path), 4, seed=0, n_boot=5)
