"""Order of cohorts: ties, Kendall's τ, unlike fingerprints; the layout of Table 1."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from core.workflows.comparisons import (
    PAPER_ENCODERS,
    REAL,
    closest,
    curve_points,
    kendall_tau,
    order_sentence,
    paper_scores,
    rank_agreement,
    select,
    table_one,
    table_one_csv,
    wilson_interval,
)
from core.workflows.ranking import rank_table


def ranked(values: dict[str, dict[str, float]], half: float = 0.0, *, metric: str = "fid", **changes) -> pd.DataFrame:
    """Scores of {encoder: {cohort: value}} with intervals of one width."""
    same = {"metric": metric, "variant": "corrected", "direction": "lower", "floor": np.nan, "fingerprint": "x"}
    same |= {"n_real": 24, "n_synthetic": 24, **changes}
    rows = [
        same | {"encoder": encoder, "cohort": c, "value": v, "ci_low": v - half, "ci_high": v + half}
        for encoder, cohorts in values.items()
        for c, v in cohorts.items()
    ]
    return rank_table(pd.DataFrame(rows), {})


def orders(*orders: str) -> dict[str, dict[str, float]]:
    """Encoder e0, e1, ... with the cohorts (letters) in this order, one apart."""
    return {f"e{i}": {cohort: order.index(cohort) for cohort in sorted(order)} for i, order in enumerate(orders)}


# order under two encoders


def test_equal_orders_agree_and_reversed_ones_disagree():
    same = rank_agreement(ranked(orders("abcd", "abcd")), "fid", "corrected")
    assert same.tau.loc["e0", "e1"] == 1 and not same.reversals
    turned = rank_agreement(ranked(orders("abcd", "dcba")), "fid", "corrected")
    assert turned.tau.loc["e0", "e1"] == -1 and len(turned.reversals) == 6


def test_tau_is_symmetric_one_with_itself_and_that_of_scipy():
    rng = np.random.default_rng(0)
    values = {f"e{i}": dict(zip("abcdefg", rng.integers(0, 5, 7).astype(float), strict=True)) for i in range(4)}
    agreement = rank_agreement(ranked(values), "fid", "corrected")
    for a, b in ((a, b) for a in values for b in values):
        expected = stats.kendalltau(list(values[a].values()), list(values[b].values())).statistic
        assert agreement.tau.loc[a, b] == pytest.approx(expected)
    assert np.allclose(agreement.tau, agreement.tau.T) and np.allclose(np.diag(agreement.tau), 1)


def test_tau_does_not_depend_on_the_units_of_an_encoder():
    values = orders("abcd", "badc")
    scaled = values | {"e1": {cohort: np.exp(value) for cohort, value in values["e1"].items()}}
    first, second = (rank_agreement(ranked(v), "fid", "corrected").tau for v in (values, scaled))
    pd.testing.assert_frame_equal(first, second)


def test_a_swap_within_the_intervals_is_no_reversal():
    values = orders("abc", "bac")
    sure, unsure = (rank_agreement(ranked(values, half), "fid", "corrected") for half in (0.1, 0.6))
    assert sure.reversals == (("e0", "e1", "a", "b"),)
    assert not unsure.reversals
    # neighbours overlap: e0 separates only a from c, e1 only b from c, so they share no separated pair
    assert unsure.tau.loc["e0", "e1"] == 0
    assert unsure.places["e0"].to_dict() == {"a": 1, "b": 1, "c": 2}


def test_an_encoder_that_separates_nothing_has_no_tau():
    agreement = rank_agreement(ranked(orders("abc", "cba"), half=5), "fid", "corrected")
    assert agreement.tau.isna().all(axis=None) and agreement.lowest() is None
    assert order_sentence(agreement, {}, {}).startswith("Order undecided")


def test_unlike_fingerprints_are_not_compared():
    table = ranked(orders("abc", "cab"))
    assert len(rank_agreement(table, "fid", "corrected").reversals) == 2
    unlike = table.assign(fingerprint=["x"] * 5 + ["y"])  # c under e1
    agreement = rank_agreement(rank_table(unlike, {}), "fid", "corrected")
    assert np.isnan(agreement.places.loc["c", "e1"])
    assert not agreement.reversals and agreement.tau.loc["e0", "e1"] == 1


def test_a_cohort_that_lacks_volumes_by_its_own_fault_is_the_last_under_every_encoder():
    table = ranked(orders("abc", "cab"))
    failed = rank_table(
        table.assign(fingerprint=table["fingerprint"].mask(table["cohort"] == "c", "y")), {}, {"c": "last"}
    )
    places = rank_agreement(failed, "fid", "corrected").places
    assert places.loc["c"].tolist() == [3, 3] and places.loc["a"].tolist() == [1, 1]
    assert failed.loc[failed["cohort"] == "c", "note"].tolist() == ["last", "last"]
    assert not rank_agreement(failed, "fid", "corrected").reversals  # its flattering score under e1 counts for nothing
    assert not closest(select(failed, "fid", "corrected", "e0")).unranked


def test_sentence_of_each_state():
    names = {"e0": "R50", "e1": "R101"}
    cohorts = {"a": "A", "b": "B"}
    said = [
        order_sentence(rank_agreement(ranked(values, half), "fid", "corrected"), names, cohorts)
        for values, half in (
            (orders("abc"), 0),
            (orders("abc", "abc"), 0),
            (orders("abc", "bac"), 0),
            ({"e0": {"a": 0, "b": 9, "c": 10}, "e1": {"a": 0, "b": 1, "c": 2}}, 0.6),
        )
    ]
    assert said[0] == "Order under one encoder only: its stability cannot be judged."
    assert said[1].startswith("Order stable")
    assert said[2] == "Order not stable: τ = 0.33 between R50 and R101. R50 puts A before B, R101 behind it."
    assert said[3].startswith("Order only partly confirmed: τ = 0.71 between R50 and R101.")


def test_kendall_tau_leaves_out_pairs_that_are_not_compared():
    order = np.array([[0, -1, -1], [1, 0, -1], [1, 1, 0]], dtype=float)
    hidden = order.copy()
    hidden[2, :] = hidden[:, 2] = np.nan
    assert kendall_tau(order, hidden) == 1
    assert np.isnan(kendall_tau(order, np.full((3, 3), np.nan)))


# closest


def test_who_is_not_beaten_is_closest():
    found = closest(ranked({"e": {"a": 1.0, "b": 1.5, "c": 9.0}}, 0.5))
    assert found.cohorts == ("a", "b") and found.ranked == 3 and not found.at_floor


@pytest.mark.parametrize(("direction", "expected"), [("lower", "a"), ("higher", "c"), ("match real", "b")])
def test_direction_decides_who_is_closest_and_who_reaches_the_floor(direction: str, expected: str):
    table = ranked({"e": {"a": 1.0, "b": 2.0, "c": 3.0}}, 0.1, direction=direction, floor=2.05)
    found = closest(table)
    assert found.cohorts == found.at_floor == (expected,)


def test_a_score_without_interval_has_no_place():
    table = ranked({"e": {"a": 1.0, "b": 2.0}})
    table["ci_low"] = [np.nan, 2.0]
    found = closest(rank_table(table.drop(columns=["rank", "tie", "note"]), {}))
    assert found.cohorts == ("b",) and found.unranked == (("a", "no interval: too few volumes"),)


# Table 1


def test_table_1_has_every_cell_and_marks_the_best():
    table = pd.concat([ranked({"e": {"a": 1.0, "b": 2.0}}, floor=0.5), ranked({"": {"a": 5.0}}, metric="image-mmd")])
    cells = table_one(table, ["a", "b"], ["e", "other"], "corrected")
    assert len(cells) == 3 * (2 * 2 + 2)
    cell = cells.set_index(["cohort", "encoder", "column"])
    assert cell.loc[("a", "e", "FID"), "best"] and not cell.loc[("b", "e", "FID"), "best"]
    assert cell.loc[(REAL, "e", "FID"), "value"] == 0.5
    assert cell.loc[("a", "other", "FID"), "note"] == "not computed"
    assert np.isnan(cell.loc[("b", "", "Image MMD"), "value"])


def test_floors_of_cohorts_of_different_size_are_a_range():
    table = ranked({"e": {"a": 1.0, "b": 2.0}}).assign(floor=[0.5, 0.7])
    cell = table_one(table, ["a", "b"], ["e"], "corrected").set_index(["cohort", "column"]).loc[(REAL, "FID")]
    assert np.isnan(cell["value"]) and (cell["ci_low"], cell["ci_high"]) == (0.5, 0.7)


def test_csv_gives_the_numbers_back():
    table = ranked({"e": {"a": 1.25, "b": 2.0}}, 0.5, floor=0.1)
    back = pd.read_csv(io.StringIO(table_one_csv(table_one(table, ["a", "b"], ["e"], "corrected")))).set_index("cohort")
    assert list(back.index) == ["a", "b", REAL]
    assert back.loc["a", ["e FID", "e FID ci_low", "e FID ci_high", "e FID floor"]].tolist() == [1.25, 0.75, 1.75, 0.1]
    assert back.loc[REAL, "e FID"] == 0.1


def test_the_paper_s_order_depends_on_the_encoder():
    paper = paper_scores()
    agreement = rank_agreement(paper, "fid", "published")
    first, second, tau = agreement.lowest()
    assert (first, second) == (PAPER_ENCODERS["r101"], PAPER_ENCODERS["r50_23"])
    assert tau == pytest.approx(0.414, abs=5e-4)  # scipy.stats.kendalltau of the printed columns
    assert agreement.places.loc["VAE-GAN", PAPER_ENCODERS["r101"]] == 3  # 0.032 like α-WGAN: a tie
    assert agreement.places.loc["α-WGAN", PAPER_ENCODERS["r101"]] == 3
    assert closest(select(paper, "ms-ssim", "published")).cohorts == ("α-WGAN", "MedSyn")  # 0.88, as real MRIs


# details


def test_curve_points_are_those_of_one_score():
    point = {"n": 6, "value": 1.0, "ci_low": 0.5, "ci_high": 2.0}
    detail = {"cohort": "a", "metric": "fid", "variant": "corrected", "encoder": "e", "curve": [point]}
    others = [detail | {key: "other"} for key in ("metric", "variant", "encoder")]
    found = curve_points([detail, *others, detail | {"cohort": "b", "curve": []}], "fid", "corrected", "e")
    assert found.to_dict("records") == [{"cohort": "a", **point}]
    assert curve_points([], "fid", "corrected", "e").empty


@pytest.mark.parametrize(("k", "n"), [(0, 24), (12, 24), (23, 24), (395, 400)])
def test_interval_of_a_share_is_scipy_s(k: int, n: int):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
