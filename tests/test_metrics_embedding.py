import numpy as np
import pytest

from core.errors import InputError
from core.metrics import embedding
from core.metrics.embedding import joint_map


def cohort(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1) ** -1.0 + shift


@pytest.mark.parametrize("d", [6, 90])
def test_pca_is_that_of_scikit_learn_on_all_rows(d):
    decomposition = pytest.importorskip("sklearn.decomposition")
    parts = [cohort(20, d, 0), cohort(11, d, 1, 0.3), cohort(16, d, 2, -0.2)]
    found = joint_map(parts[0], parts[1:], method="pca", seed=0)
    assert [rows.shape for rows in found.cohorts] == [(20, 2), (11, 2), (16, 2)]
    fitted = decomposition.PCA(2, svd_solver="full").fit(np.vstack(parts))
    expected = fitted.transform(np.vstack(parts))
    np.testing.assert_allclose(np.abs(np.vstack(found.cohorts)), np.abs(expected), atol=1e-8)
    assert found.shares == pytest.approx(fitted.explained_variance_ratio_)


def test_pca_of_a_plane_keeps_all_distances():
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    first, second = rng.normal(size=(9, 2)) @ plane, (rng.normal(size=(7, 2)) + 1) @ plane
    found = joint_map(first, [second], method="pca", seed=0)
    rows, flat = np.vstack([first, second]), np.vstack(found.cohorts)
    for i, j in ((0, 5), (3, 12), (15, 8)):
        assert np.linalg.norm(flat[i] - flat[j]) == pytest.approx(np.linalg.norm(rows[i] - rows[j]), rel=1e-9)
    assert sum(found.shares) == pytest.approx(1)


def test_a_single_feature_has_a_single_axis():
    found = joint_map(cohort(5, 1, 0), [cohort(4, 1, 1)], method="pca", seed=0)
    assert found.shares == pytest.approx((1, 0))
    assert not found.cohorts[0][:, 1].any()


@pytest.mark.slow  # the first UMAP of a process is compiled
def test_umap_is_fitted_jointly_repeats_and_keeps_neighbours():
    real, near, far = cohort(40, 20, 0), cohort(40, 20, 1), cohort(40, 20, 2, 3.0)
    found = joint_map(real, [near, far], method="umap", seed=3)
    again = joint_map(real, [near, far], method="umap", seed=3)
    assert found.shares is None
    assert all(np.array_equal(a, b) for a, b in zip(found.cohorts, again.cohorts, strict=True))
    centres = [rows.mean(axis=0) for rows in found.cohorts]
    assert np.linalg.norm(centres[2] - centres[0]) > 3 * np.linalg.norm(centres[1] - centres[0])


@pytest.mark.slow  # the first UMAP of a process is compiled
def test_rows_that_a_umap_is_not_fitted_on_are_placed_where_they_belong(monkeypatch):
    monkeypatch.setattr(embedding, "MOST_FOR_UMAP", 60)
    near, far = cohort(100, 20, 0), cohort(70, 20, 1, 3.0)
    found = joint_map(near, [far], method="umap", seed=3)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(found.cohorts, joint_map(near, [far], method="umap", seed=3).cohorts, strict=True)
    )
    centres = [np.median(rows, axis=0) for rows in found.cohorts]
    for own, rows in enumerate(found.cohorts):
        distances = [np.linalg.norm(rows - centre, axis=1) for centre in centres]
        assert (distances[own] < distances[1 - own]).all()


@pytest.mark.slow  # the first UMAP of a process is compiled
def test_few_rows_still_have_a_umap():
    found = joint_map(cohort(4, 5, 0), [cohort(3, 5, 1)], method="umap", seed=0)
    assert np.isfinite(np.vstack(found.cohorts)).all()


def test_bad_input_is_refused():
    good = cohort(6, 3, 0)
    with pytest.raises(InputError, match="no synthetic cohort"):
        joint_map(good, [], method="pca", seed=0)
    with pytest.raises(InputError, match="width 3, synthetic features 2"):
        joint_map(good, [good, good[:, :2]], method="pca", seed=0)
    with pytest.raises(InputError, match="NaN or Inf"):
        joint_map(good, [good * np.nan], method="umap", seed=0)
    with pytest.raises(InputError, match="look the same"):
        joint_map(np.ones((4, 3)), [np.ones((3, 3))], method="pca", seed=0)
    with pytest.raises(InputError, match="pca, umap"):
        joint_map(good, [good], method="tsne", seed=0)
    with pytest.raises(InputError, match="4 volumes in all: a UMAP needs 5"):
        joint_map(good[:2], [good[:2]], method="umap", seed=0)
