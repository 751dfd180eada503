import numpy as np
import pytest

from core.errors import InputError
from core.metrics import kernels
from core.metrics.copies import copy_check, copy_check_distances


def cohort(n, d, seed, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale


def test_without_copying_half_are_nearer_to_the_training_cohort():
    results = [
        copy_check(cohort(60, 8, [s, 0]), cohort(80, 8, [s, 1]), cohort(80, 8, [s, 2]), seed=s) for s in range(120)
    ]
    assert np.mean([result.share for result in results]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([result.p_value < 0.05 for result in results]) < 0.1


@pytest.mark.parametrize(("n_training", "n_held_out"), [(200, 50), (50, 200)])
def test_a_larger_reference_is_no_advantage(n_training, n_held_out):
    arrays = [(cohort(60, 5, [s, 0]), cohort(n_training, 5, [s, 1]), cohort(n_held_out, 5, [s, 2])) for s in range(40)]
    results = [copy_check(*triple, seed=0) for triple in arrays]
    assert np.mean([result.share for result in results]) == pytest.approx(0.5, abs=0.05)
    assert {result.n_reference for result in results} == {50}


@pytest.mark.parametrize("shape", [(16,), (12, 14, 12)])
def test_injected_copies_are_the_worst_pairs(shape, monkeypatch):
    monkeypatch.setattr(kernels, "CELLS", 100)  # a few rows at a time
    d = int(np.prod(shape))  # features, or flattened volumes
    synthetic, training, held_out = cohort(40, d, 0), cohort(90, d, 1), cohort(50, d, 2)
    copied = {3: 80, 17: 5, 39: 33}
    for row, source in copied.items():
        synthetic[row] = training[source]
    synthetic[17] += 1e-3 * cohort(1, d, 3)[0]  # a copy with some noise
    result = copy_check(synthetic, training, held_out, seed=0)
    assert {pair.synthetic: pair.training for pair in result.worst[:3]} == copied
    assert [pair.ratio for pair in result.worst[:2]] == [0, 0]
    assert result.worst[2].ratio < 0.01 < 0.3 < result.worst[3].ratio
    assert len(result.worst) == 10 and result.n_synthetic == 40


def test_a_generator_that_only_copies_is_found():
    training, held_out = cohort(50, 10, 0), cohort(50, 10, 1)
    result = copy_check(training[::-1] + cohort(50, 10, 2, 0.05), training, held_out, seed=0)
    assert result.share == 1
    assert result.p_value == 1 / 10_000  # the least that 9999 permutations can give
    assert result.p_binomial == pytest.approx(0.5**50)
    swapped = copy_check(training[::-1] + cohort(50, 10, 2, 0.05), held_out, training, seed=0)
    assert swapped.share == 0 and swapped.p_value == swapped.p_binomial == 1


def test_p_is_the_share_of_ways_to_choose_the_training_side():
    places = np.arange(0.0, 60, 10)[:, None]  # six references, each nearest to one row
    result = copy_check(places[:3] + 1, places[:3], places[3:], seed=0)
    assert result.share == 1
    assert result.p_value == pytest.approx(1 / 20, abs=0.007)  # one of C(6, 3)


def test_look_alikes_are_no_copies():
    """All rows at one place have one nearest person: the binomial test is fooled half of the time, ours is not."""
    results = [
        copy_check(cohort(30, 8, [s, 0], 1e-3), cohort(40, 8, [s, 1]), cohort(40, 8, [s, 2]), seed=s) for s in range(60)
    ]
    assert np.mean([result.p_binomial < 0.05 for result in results]) == pytest.approx(0.5, abs=0.2)
    assert np.mean([result.p_value < 0.05 for result in results]) < 0.15


def test_ratio_by_hand_and_equal_distances_count_half():
    result = copy_check([[0.0], [4.0], [10.0]], [[1.0], [9.0]], [[-2.0], [9.0]], seed=0)
    # to training 1, 3, 1; to held-out 2, 5, 1
    assert result.share == pytest.approx(2.5 / 3)
    assert [(pair.synthetic, pair.training, pair.ratio) for pair in result.worst] == [
        (0, 0, 0.5),
        (1, 0, 0.6),
        (2, 1, 1.0),
    ]
    assert result.p_binomial == pytest.approx(0.25)


def test_seed_and_bad_input():
    arrays = cohort(20, 4, 0), cohort(60, 4, 1), cohort(30, 4, 2)
    assert copy_check(*arrays, seed=1) == copy_check(*arrays, seed=1)
    assert copy_check(*arrays, seed=1, worst=0).worst == ()
    with pytest.raises(InputError, match="width"):
        copy_check(arrays[0], arrays[1], arrays[2][:, :3], seed=0)
    with pytest.raises(InputError, match="NaN or Inf"):
        copy_check(arrays[0], arrays[1] * np.nan, arrays[2], seed=0)


@pytest.mark.parametrize(("n_training", "n_held_out"), [(30, 30), (50, 20), (20, 50)])
def test_known_distances_give_the_same_result_as_the_rows(n_training, n_held_out):
    synthetic, training, held_out = cohort(25, 6, 0), cohort(n_training, 6, 1), cohort(n_held_out, 6, 2)
    synthetic[4] = training[7]
    tables = [np.linalg.norm(synthetic[:, None] - other[None], axis=2) for other in (training, held_out)]
    expected = copy_check(synthetic, training, held_out, seed=3, worst=25)
    found = copy_check_distances(*tables, seed=3, worst=25)
    assert (found.share, found.p_value, found.n_reference) == (expected.share, expected.p_value, expected.n_reference)
    assert [(p.synthetic, p.training) for p in found.worst] == [(p.synthetic, p.training) for p in expected.worst]
    for pair in found.worst:
        assert pair.distance_training == tables[0][pair.synthetic].min() == tables[0][pair.synthetic, pair.training]
        assert pair.ratio * pair.distance_held_out == pytest.approx(pair.distance_training)


@pytest.mark.parametrize(
    ("to_training", "to_held_out", "what"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), "expected distances"),
        (np.ones((3, 4)), np.ones((3, 1)), "fewer than 2"),
        (np.full((3, 4), np.nan), np.ones((3, 4)), "NaN"),
        (np.ones((3, 4)), -np.ones((3, 4)), "negative"),
    ],
)
def test_distances_that_are_none_are_refused(to_training, to_held_out, what):
    with pytest.raises(InputError, match=what):
        copy_check_distances(to_training, to_held_out, seed=0)
