import numpy as np
import pytest

from core.errors import InputError
from core.metrics import kernels, neighbours
from core.metrics.neighbours import NeighbourShares, evaluate_share, neighbour_shares


def cohort(n, d, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def plain(real, synthetic, k):
    """The definitions, one distance after another."""

    def distance(x, y):
        return np.sqrt(((x - y) ** 2).sum())

    def radius(rows, i):
        return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    balls = [(x, radius(real, i)) for i, x in enumerate(real)]
    synthetic_balls = [(x, radius(synthetic, i)) for i, x in enumerate(synthetic)]
    return NeighbourShares(
        precision=np.mean([any(distance(x, y) < r for x, r in balls) for y in synthetic]),
        recall=np.mean([any(distance(x, y) < r for y, r in synthetic_balls) for x in real]),
        density=sum(distance(x, y) < r for x, r in balls for y in synthetic) / k / len(synthetic),
        coverage=np.mean([any(distance(x, y) < r for y in synthetic) for x, r in balls]),
    )


@pytest.mark.parametrize(("n", "m", "k"), [(30, 22, 5), (12, 12, 1), (9, 25, 8)])
def test_equals_the_definition(n, m, k, monkeypatch):
    monkeypatch.setattr(kernels, "CELLS", 100)  # a few rows at a time
    real, synthetic = cohort(n, 4, 0), cohort(m, 4, 1, shift=1.0, scale=0.8)
    found, expected = neighbour_shares(real, synthetic, k=k), plain(real, synthetic, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        (expected.precision, expected.recall, expected.density, expected.coverage)
    )


# compute_prdc(nearest_k=5) of the prdc package, version 0.2, on the arrays below
PRDC = [
    ((200, 150, 16, 0.5, 0.9), (0.8133333333333334, 0.565, 1.0146666666666666, 0.74)),
    ((60, 90, 8, 0.3, 1.2), (0.7555555555555555, 0.95, 0.7355555555555555, 0.9833333333333333)),
]


@pytest.mark.parametrize(("case", "expected"), PRDC)
def test_equals_the_prdc_package(case, expected):
    n, m, d, shift, scale = case
    found = neighbour_shares(cohort(n, d, 0), cohort(m, d, 1, shift, scale), k=5)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    real, synthetic = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [2.5], [10.0], [11.0]])
    # real balls: (-1, 1), (0, 2), (1, 5); synthetic balls: (-1.5, 2.5), (0.5, 4.5), (9, 11), (10, 12)
    found = neighbour_shares(real, synthetic, k=1)
    assert found == NeighbourShares(precision=2 / 4, recall=3 / 3, density=3 / 4, coverage=1.0)


def test_identity_distance_and_invariance():
    real = cohort(80, 6, 0)
    same = neighbour_shares(real, real[::-1])
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx((5 - 1 + 1) / 5)  # its own ball and those of four inner neighbours
    apart = neighbour_shares(real, real + 100)
    assert apart == NeighbourShares(0.0, 0.0, 0.0, 0.0)
    other = cohort(70, 6, 1, shift=0.5)
    rotation = np.linalg.qr(cohort(6, 6, 2))[0]
    assert neighbour_shares(real @ rotation + 1e4, other @ rotation + 1e4) == neighbour_shares(real, other)


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
    real, good = cohort(300, 3, 0), cohort(300, 3, 1)
    collapsed = cohort(300, 3, 2, scale=0.1)
    before, after = neighbour_shares(real, good), neighbour_shares(real, collapsed)
    assert after.precision >= before.precision
    assert after.recall < 0.1 < before.recall
    assert after.coverage < 0.2 < before.coverage
    assert neighbour_shares(cohort(300, 8, 0), cohort(300, 8, 1, scale=0.6)).density > 1.5  # keeps to the typical
    assert before.density == pytest.approx(1, abs=0.15)
    assert before.coverage == pytest.approx(1 - 2**-5, abs=0.04)  # of equal cohorts, whatever their distribution


@pytest.mark.parametrize("share", neighbours.SHARES)
def test_falls_as_the_cohorts_part(share):
    real, synthetic = cohort(150, 4, 0), cohort(150, 4, 1)
    values = [getattr(neighbour_shares(real, synthetic + shift), share) for shift in (0, 0.7, 1.4, 2.8)]
    assert np.all(np.diff(values) < 0)


@pytest.mark.parametrize("share", neighbours.SHARES)
def test_the_score_is_the_same_with_and_without_the_table_of_distances(share, monkeypatch):
    real, synthetic = cohort(40, 5, 0), cohort(30, 5, 1, shift=0.5)
    score = evaluate_share(real, synthetic, seed=0, n_boot=20, share=share)
    monkeypatch.setattr(neighbours, "TABLE_ROWS", 0)
    assert evaluate_share(real, synthetic, seed=0, n_boot=20, share=share) == score
    assert score.value == getattr(neighbour_shares(real, synthetic), share)
    assert score.settings["k"] == 5


def test_few_volumes_are_a_gap_and_not_a_number():
    score = evaluate_share(cohort(5, 3, 0), cohort(40, 3, 1), seed=0, n_boot=20, share="recall")
    assert score.value is score.ci_low is score.floor is None
    assert "5 real and 40 synthetic volumes: this metric needs 6 of each" in score.warnings
    short = evaluate_share(cohort(11, 3, 0), cohort(11, 3, 1), seed=0, n_boot=20, share="recall")
    assert short.value is not None and short.ci_low is short.floor is None
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k = {k} with 5 real"):
            neighbour_shares(cohort(5, 3, 0), cohort(40, 3, 1), k=k)
