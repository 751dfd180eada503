"""Regional volumes: SynthSeg's CSV in and out, the published effect size, its inference, wrong input."""

from __future__ import annotations

import csv
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from core import anatomy
from core.anatomy import statistics
from core.errors import InputError

COLUMNS = anatomy.volume_columns(True)
REGIONS = anatomy.regions()["region"].tolist()


def cohort(n: int, seed: int, *, shift: float = 0.0, spread: float = 0.1) -> pd.DataFrame:
    """A volume table whose volumes follow TIV, with relative shift and spread of the rest."""
    rng = np.random.default_rng(seed)
    tiv = rng.normal(1.5e6, 1.4e5, n)
    base = np.linspace(500, 250_000, len(COLUMNS) - 1)
    volumes = base * (0.4 + 0.6 * tiv[:, None] / 1.5e6 + rng.normal(shift, spread, (n, len(base))))
    index = pd.Index([f"case-{seed}-{i}" for i in range(n)], name="subject")
    return pd.DataFrame(np.c_[tiv, volumes.clip(1)], columns=COLUMNS, index=index)


def effect(result: pd.DataFrame, region: str) -> pd.Series:
    return result.set_index("region").loc[region]


def with_region(table: pd.DataFrame, region: str, values: np.ndarray) -> pd.DataFrame:
    names = anatomy.structures().query("region == @region")["name"]
    return table.assign(**dict.fromkeys(names, values))


# label table


def test_label_table_has_all_structures_and_parcels_once():
    table = anatomy.structures()
    assert len(table) == 32 + 68
    assert table["id"].is_monotonic_increasing and table["id"].is_unique and table["name"].is_unique
    assert set(table["kind"]) == {"subcortical", "cortical"}
    assert table[["r", "g", "b"]].to_numpy().min() >= 0 and table[["r", "g", "b"]].to_numpy().max() <= 255


def test_label_table_pairs_left_with_right():
    table = anatomy.structures().query("side != ''")
    bare = table["name"].str.replace(r"^(left |right |ctx-[lr]h-)", "", regex=True)
    assert table.groupby(bare)["side"].agg(set).map(lambda sides: sides == {"left", "right"}).all()
    assert set(anatomy.structures().query("side == ''")["name"]) == {
        "3rd ventricle",
        "4th ventricle",
        "brain-stem",
        "csf",
    }


def test_regions_are_those_of_table_3():
    table = anatomy.structures()
    used = set(table["region"]) - {""}
    assert len(REGIONS) == 49 and used == set(REGIONS)
    left_out = set(table.loc[table["region"] == "", "name"].str.replace(r"^(left |right |ctx-[lr]h-)", "", regex=True))
    assert left_out == {"cerebral cortex", "ventral DC", "insula"}
    assert anatomy.regions()["group"].value_counts().to_dict() == {"cortical": 33, "subcortical": 16}


def test_volume_columns_follow_synthseg():
    assert COLUMNS[:4] == [
        "total intracranial",
        "left cerebral white matter",
        "left cerebral cortex",
        "left lateral ventricle",
    ]
    assert anatomy.volume_columns(False)[-1] == "right ventral DC" and len(anatomy.volume_columns(False)) == 33
    assert COLUMNS[33] == "ctx-lh-bankssts" and COLUMNS[67] == "ctx-rh-bankssts" and COLUMNS[-1] == "ctx-rh-insula"


# SynthSeg's CSV


def test_volumes_round_trip(tmp_path: Path):
    table = cohort(5, 0)
    anatomy.write_volumes(table, tmp_path / "volumes.csv")
    again = anatomy.read_volumes(tmp_path / "volumes.csv")
    pd.testing.assert_frame_equal(again, table, atol=5e-4, rtol=0)
    anatomy.write_volumes(again, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "volumes.csv").read_bytes()


def test_written_file_is_synthseg_s(tmp_path: Path):
    table = cohort(1, 0)
    table.iloc[0] = np.arange(len(COLUMNS)) + 0.12345
    anatomy.write_volumes(table, tmp_path / "v.csv")
    header, row = (tmp_path / "v.csv").read_bytes().decode().split("\r\n")[:2]
    assert header == "subject," + ",".join(COLUMNS)
    assert row.startswith("case-0-0,0.123,1.123,")


def test_reading_is_tolerant_of_spaces_blank_header_and_suffix(tmp_path: Path):
    table = cohort(2, 0).round(3)
    lines = [", ".join(["", *COLUMNS])]
    lines += [
        ", ".join([f"{name}.nii.gz", *map(str, row)]) for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    (tmp_path / "v.csv").write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    pd.testing.assert_frame_equal(anatomy.read_volumes(tmp_path / "v.csv"), table)


def test_absent_parcels_are_a_labelled_gap(tmp_path: Path):
    anatomy.write_volumes(cohort(12, 0)[anatomy.volume_columns(False)], tmp_path / "v.csv")
    table = anatomy.read_volumes(tmp_path / "v.csv")
    assert "parcels" in table.attrs["notes"][0]
    result = anatomy.effect_sizes(table, cohort(12, 1))
    cortical = result["group"] == "cortical"
    assert result.loc[cortical, "cohens_d"].isna().all() and set(result.loc[cortical, "verdict"]) == {"undetermined"}
    assert result.loc[~cortical, "q_value"].notna().all()
    assert any("parcels" in note for note in result.attrs["notes"])


def _edited(tmp_path: Path, edit) -> Path:
    path = tmp_path / "v.csv"
    anatomy.write_volumes(cohort(3, 0), path)
    rows = list(csv.reader(path.open(newline="")))
    edit(rows)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def _drop_column(rows):
    for row in rows:
        del row[5]


def _set(row, column, value):
    return lambda rows: rows[row].__setitem__(column, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop_column, "missing columns: left inferior lateral ventricle"),
        (_set(0, 9, "left thalamuss"), "unknown columns or regions: left thalamuss"),
        (_set(2, 0, "case-0-0.nii.gz"), "duplicate subjects: case-0-0"),
        (_set(2, 4, "n/a"), "case-0-1 / left lateral ventricle = 'n/a'"),
        (_set(2, 4, ""), "case-0-1 / left lateral ventricle = ''"),
        (_set(2, 4, "inf"), "not a volume"),
        (_set(1, 4, "-1.0"), "case-0-0 / left lateral ventricle = '-1.0'"),
        (_set(0, 0, "name"), "expected 'subject'"),
        (lambda rows: rows.__delitem__(slice(1, None)), "no rows"),
        (lambda rows: rows[2].pop(), "rows without a subject or with other than 102 cells: case-0-1"),
        (_set(0, 3, "left cerebral white matter"), "repeated columns"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, edit, message: str):
    path = _edited(tmp_path, edit)
    with pytest.raises(InputError) as caught:
        anatomy.read_volumes(path)
    assert message in caught.value.what and caught.value.where == str(path) and caught.value.remedy


def test_all_problems_are_told_at_once(tmp_path: Path):
    def edit(rows):
        _drop_column(rows)
        rows[0][8] = "left thalamuss"
        rows[2][0] = rows[1][0]

    with pytest.raises(InputError) as caught:
        anatomy.read_volumes(_edited(tmp_path, edit))
    assert all(word in str(caught.value) for word in ("missing", "unknown", "duplicate"))


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        anatomy.read_volumes(tmp_path / "absent.csv")
    (tmp_path / "image.csv").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(InputError, match="not a CSV"):
        anatomy.read_volumes(tmp_path / "image.csv")


# regional volumes


def test_left_and_right_are_averaged():
    table = cohort(3, 0).assign(**{"left thalamus": 7000.0, "right thalamus": 8000.0, "brain-stem": 20000.0})
    result = anatomy.regional_volumes(table.assign(**{"ctx-lh-cuneus": 1.0, "ctx-rh-cuneus": 2.0}))
    assert list(result.columns) == ["total intracranial", *REGIONS]
    assert (result[["thalamus", "brain-stem", "cuneus"]].to_numpy() == [7500, 20000, 1.5]).all()


# the published effect size


def test_d_by_hand():
    # within 1, 2, 3 against 3, 4, 5: means 2 and 4, both variances 2/3
    first, second = np.array([[1.0], [2], [3]]), np.array([[3.0], [4], [5]])
    assert anatomy.cohens_d(first, second) == pytest.approx([-2 / np.sqrt(2 / 3)])


def test_d_by_hand_with_tiv():
    # TIV 1, 2, 3 | 1, 2, 3 and volumes 2, 3, 7 | 1, 5, 6: pooled slope 2.5, mean TIV 2
    # residuals 4.5, 3, 4.5 | 3.5, 5, 3.5 : equal means, so d = 0; adding 1 to the real ones gives 1 / sqrt(1/2)
    real, synthetic = cohort(3, 0), cohort(3, 1)
    for table, shift, volumes in ((real, 1.0, [2.0, 3, 7]), (synthetic, 0.0, [1.0, 5, 6])):
        table["total intracranial"] = [1.0, 2, 3]
        table["brain-stem"] = np.array(volumes) + shift
    assert effect(anatomy.effect_sizes(real, synthetic), "brain-stem")["cohens_d"] == pytest.approx(np.sqrt(2))


def test_d_against_a_plain_implementation():
    real, synthetic = cohort(30, 0), cohort(40, 1, shift=0.05, spread=0.2)
    result = anatomy.effect_sizes(real, synthetic).set_index("region")["cohens_d"]
    for region, left, right in (
        ("caudate", "left caudate", "right caudate"),
        ("lingual", "ctx-lh-lingual", "ctx-rh-lingual"),
    ):
        both = pd.concat([real, synthetic])
        tiv, volume = both["total intracranial"], (both[left] + both[right]) / 2
        slope, _ = np.polyfit(tiv, volume, 1)
        residual = (volume - slope * (tiv - tiv.mean())).to_numpy()
        a, b = residual[:30], residual[30:]
        assert result[region] == pytest.approx((a.mean() - b.mean()) / np.sqrt((np.var(a) + np.var(b)) / 2), rel=1e-9)


def test_sign_positive_when_the_synthetic_region_is_too_small():
    real, synthetic = cohort(50, 0), cohort(50, 1)
    synthetic[["left hippocampus", "right hippocampus"]] *= 0.7
    assert effect(anatomy.effect_sizes(real, synthetic), "hippocampus")["cohens_d"] > 0.8


def test_d_does_not_depend_on_units():
    real, synthetic = cohort(20, 0), cohort(20, 1)
    mm3, ml = anatomy.effect_sizes(real, synthetic), anatomy.effect_sizes(real / 1000, synthetic / 1000)
    pd.testing.assert_frame_equal(mm3, ml, rtol=1e-6)


def test_swapping_the_cohorts_changes_the_sign_only():
    real, synthetic = cohort(20, 0), cohort(25, 1, shift=0.03)
    one, other = anatomy.effect_sizes(real, synthetic), anatomy.effect_sizes(synthetic, real)
    for column in ("cohens_d", "spread_ratio"):
        np.testing.assert_allclose(one[column], -other[column], rtol=1e-9)
    np.testing.assert_allclose(one["p_value"], other["p_value"], rtol=1e-9)


def test_identical_cohorts_have_no_effect():
    real = cohort(20, 0)
    result = anatomy.effect_sizes(real, real)
    np.testing.assert_allclose(result[["cohens_d", "spread_ratio"]], 0, atol=1e-12)


def test_a_pure_tiv_effect_is_removed_exactly():
    real, synthetic = cohort(20, 0), cohort(20, 1)
    before = anatomy.effect_sizes(real, synthetic)
    grown = [
        table.add(0.01 * table["total intracranial"], axis=0).assign(
            **{"total intracranial": table["total intracranial"]}
        )
        for table in (real, synthetic)
    ]
    after = anatomy.effect_sizes(*grown)
    numbers = ["cohens_d", "ci_low", "ci_high", "spread_ratio", "p_value", "q_value"]
    np.testing.assert_allclose(after[numbers], before[numbers], rtol=1e-6, atol=1e-9)


def test_constant_tiv_leaves_volumes_as_they_are():
    values = np.random.default_rng(0).normal(size=(6, 2))
    np.testing.assert_array_equal(anatomy.adjust_for_tiv(values, np.full(6, 1.5e6)), values)


# inference


def test_interval_redoes_the_regression_in_each_resample():
    real, synthetic = cohort(15, 0), cohort(15, 1, shift=0.05)
    result = effect(anatomy.effect_sizes(real, synthetic, n_boot=4000), "putamen")
    tables = [
        anatomy.regional_volumes(table)[["total intracranial", "putamen"]].to_numpy() for table in (real, synthetic)
    ]
    rng, draws = np.random.default_rng(1), []
    for _ in range(4000):
        rows = [table[rng.integers(0, 15, 15)] for table in tables]
        adjusted = anatomy.adjust_for_tiv(np.vstack(rows)[:, 1:], np.vstack(rows)[:, 0])
        draws.append(anatomy.cohens_d(adjusted[:15], adjusted[15:])[0])
    np.testing.assert_allclose([result["ci_low"], result["ci_high"]], np.quantile(draws, [0.025, 0.975]), atol=0.08)


def test_interval_width_with_400_against_400():
    # standard error of d near 0 is sqrt(2 / n): ±1.96 * 0.0707 = ±0.139
    result = anatomy.effect_sizes(cohort(400, 0), cohort(400, 1))
    assert (result["ci_high"] - result["ci_low"]).mean() / 2 == pytest.approx(0.139, abs=0.005)
    assert (result["verdict"] == "equivalent").mean() > 0.5


def test_same_seed_same_interval_and_other_seed_another():
    real, synthetic = cohort(12, 0), cohort(12, 1)
    one, again, other = (anatomy.effect_sizes(real, synthetic, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, again)
    assert not one["ci_low"].equals(other["ci_low"]) and one["cohens_d"].equals(other["cohens_d"])


def test_an_interval_drawn_in_blocks_is_the_same(monkeypatch):
    real, synthetic = cohort(12, 0), cohort(9, 1)
    whole = anatomy.effect_sizes(real, synthetic, n_boot=150)
    monkeypatch.setattr(statistics, "BLOCK", 21 * 40)  # 40 resamples of 21 subjects at a time
    pd.testing.assert_frame_equal(anatomy.effect_sizes(real, synthetic, n_boot=150), whole)


def test_p_is_welch_s_on_adjusted_volumes():
    real, synthetic = cohort(20, 0), cohort(30, 1, shift=0.05, spread=0.2)
    tables = pd.concat([anatomy.regional_volumes(real), anatomy.regional_volumes(synthetic)])
    adjusted = anatomy.adjust_for_tiv(tables[["pallidum"]].to_numpy(), tables["total intracranial"].to_numpy())[:, 0]
    a, b = adjusted[:20], adjusted[20:]
    ratio = np.array([a.var(ddof=1) / 20, b.var(ddof=1) / 30])
    freedom = ratio.sum() ** 2 / (ratio**2 / [19, 29]).sum()
    expected = 2 * stats.t.sf(abs(a.mean() - b.mean()) / np.sqrt(ratio.sum()), freedom)
    assert effect(anatomy.effect_sizes(real, synthetic), "pallidum")["p_value"] == pytest.approx(expected, rel=1e-9)


def test_q_is_benjamini_hochberg_s():
    result = anatomy.effect_sizes(cohort(20, 0), cohort(20, 1, shift=0.03))
    p = np.sort(result["p_value"].to_numpy())
    by_hand = np.minimum.accumulate((p * 49 / np.arange(1, 50))[::-1])[::-1].clip(max=1)
    np.testing.assert_allclose(np.sort(result["q_value"]), np.sort(by_hand), rtol=1e-12)


def test_verdicts():
    real = cohort(400, 0)
    shifted = with_region(cohort(400, 1), "thalamus", np.random.default_rng(2).normal(1e3, 30, 400))
    result = anatomy.effect_sizes(
        with_region(real, "thalamus", np.random.default_rng(3).normal(1.1e3, 30, 400)), shifted
    )
    assert effect(result, "thalamus")["verdict"] == "different"
    small = anatomy.effect_sizes(cohort(24, 0), cohort(24, 1))
    assert "equivalent" not in set(small["verdict"])  # 24 cases cannot show |d| < 0.2
    assert set(anatomy.effect_sizes(cohort(24, 0), cohort(24, 1), margin=3.0)["verdict"]) == {"equivalent"}


def test_collapse_is_seen_by_the_spread_not_by_d():
    result = anatomy.effect_sizes(cohort(200, 0, spread=0.1), cohort(200, 1, spread=0.01))
    assert result["cohens_d"].abs().median() < 0.15
    assert (result["spread_ratio"] < -1.5).all()


def test_region_without_variance_is_undetermined():
    real, synthetic = (with_region(cohort(12, seed), "amygdala", np.full(12, 1500.0)) for seed in (0, 1))
    result = anatomy.effect_sizes(real, synthetic)
    row = effect(result, "amygdala")
    assert row[["cohens_d", "ci_low", "ci_high", "spread_ratio", "p_value", "q_value"]].isna().all()
    assert row["verdict"] == "undetermined" and any("amygdala" in note for note in result.attrs["notes"])
    assert result["q_value"].notna().sum() == 48


def test_two_constants_that_differ_are_undetermined_too():
    real, synthetic = (with_region(cohort(12, seed), "amygdala", np.full(12, 1500.0 + seed)) for seed in (0, 1))
    for table in (real, synthetic):
        table["total intracranial"] = 1.5e6
    assert np.isnan(effect(anatomy.effect_sizes(real, synthetic), "amygdala")["cohens_d"])


def test_collapse_to_one_brain_keeps_d():
    synthetic = cohort(12, 1)
    synthetic[:] = synthetic.iloc[0].to_numpy()
    row = effect(anatomy.effect_sizes(cohort(12, 0), synthetic), "thalamus")
    assert np.isfinite(row["cohens_d"]) and row["spread_ratio"] == -np.inf


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_subjects(n: int):
    with pytest.raises(InputError, match="at least 3") as caught:
        anatomy.effect_sizes(cohort(5, 0), cohort(5, 1).iloc[:n])
    assert caught.value.where == "synthetic volumes"


def test_small_cohorts_get_numbers_but_no_verdict():
    result = anatomy.effect_sizes(cohort(5, 0), cohort(9, 1, shift=1.0))
    assert result[["cohens_d", "ci_low", "q_value"]].notna().all(axis=None)
    assert set(result["verdict"]) == {"undetermined"} and "fewer than 10" in result.attrs["notes"][-1]


def test_columns_and_counts():
    result = anatomy.effect_sizes(cohort(12, 0), cohort(14, 1))
    assert tuple(result.columns) == anatomy.EFFECT_COLUMNS and result["region"].tolist() == REGIONS
    assert set(result["n_real"]) == {12} and set(result["n_synthetic"]) == {14}


def test_inputs_stay_as_they_are_and_subject_may_be_a_column():
    real, synthetic = cohort(12, 0), cohort(12, 1)
    copies = real.copy(), synthetic.copy()
    by_column = anatomy.effect_sizes(real.reset_index(), synthetic.reset_index())
    pd.testing.assert_frame_equal(by_column, anatomy.effect_sizes(real, synthetic))
    pd.testing.assert_frame_equal(real, copies[0])
    pd.testing.assert_frame_equal(synthetic, copies[1])


def test_options_out_of_range():
    with pytest.raises(InputError, match="too small"):
        anatomy.effect_sizes(cohort(5, 0), cohort(5, 1), margin=0.0)


# beside the effect size


def test_repeated_scans_of_one_person_are_drawn_together():
    # each person scanned five times, almost alike: 12 people, not 60 volumes
    people = cohort(12, 0)
    again = pd.concat([people * (1 + 1e-4 * i) for i in range(5)])
    again.index = pd.Index([f"{s}-{i}" for i in range(5) for s in people.index], name="subject")
    who = {subject: subject.rsplit("-", 1)[0] for subject in again.index}
    synthetic = cohort(60, 1)

    def width(table: pd.DataFrame, participants: dict[str, str] | None = None) -> float:
        row = effect(anatomy.effect_sizes(table, synthetic, participants=participants), "putamen")
        return row["ci_high"] - row["ci_low"]

    assert width(again, who) == pytest.approx(width(people), rel=0.15)
    assert width(again) < 0.75 * width(again, who)


def test_p_counts_people_not_scans():
    people, synthetic = cohort(12, 0), cohort(12, 1, shift=0.05)
    twice = pd.concat([people, people])
    twice.index = [f"{s}-{i}" for i in "ab" for s in people.index]
    who = {s: s[:-2] for s in twice.index}
    first, second = (anatomy.regional_volumes(t)["putamen"].to_numpy()[:, None] for t in (twice, synthetic))
    codes = [statistics.participant_codes(list(t.index), p) for t, p in ((twice, who), (synthetic, None))]
    once = stats.ttest_ind(first[:12, 0], second[:, 0], equal_var=False).pvalue
    assert statistics.welch_p(first, second, codes) == pytest.approx([once], rel=1e-9)


def test_hedges_g_by_hand():
    # within 1, 2, 3 against 3, 4, 5: pooled SD 1, gap -2, exact correction for 4 degrees of freedom
    first, second = np.array([[1.0], [2], [3]]), np.array([[3.0], [4], [5]])
    correction = math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))
    assert anatomy.hedges_g(first, second) == pytest.approx([-2 * correction])
    many = np.random.default_rng(0).normal(size=(2, 500, 1))
    assert anatomy.hedges_g(*many) == pytest.approx(anatomy.cohens_d(*many), rel=0.01)


@pytest.mark.parametrize("margin", [0.2, 0.5, 0.9])
def test_tost_p_and_verdict_agree_at_every_margin(margin: float):
    result = anatomy.compare_regions(cohort(40, 0), cohort(40, 1), margin=margin)
    inside = (result["tost_low"] > -margin) & (result["tost_high"] < margin)
    assert ((result["tost_p"] < 0.05) == inside).all()
    assert ((result["verdict"] == "equivalent") == inside).all()
    wider = anatomy.compare_regions(cohort(40, 0), cohort(40, 1), margin=2 * margin)
    assert (wider["tost_p"] <= result["tost_p"]).all()
    pd.testing.assert_series_equal(anatomy.verdicts(result, 2 * margin), wider["verdict"], check_names=False)


def test_regional_table_holds_the_effect_sizes():
    real, synthetic = cohort(12, 0), cohort(14, 1)
    table = anatomy.compare_regions(real, synthetic)
    assert tuple(table.columns) == anatomy.REGIONAL_COLUMNS
    pd.testing.assert_frame_equal(table[list(anatomy.EFFECT_COLUMNS)], anatomy.effect_sizes(real, synthetic))


def test_wasserstein_is_the_shift_in_sd_and_its_floor_is_that_of_equal_cohorts():
    rng = np.random.default_rng(0)
    real = rng.normal(0, 2, (400, 1))
    assert statistics.wasserstein(real, real + 3) == pytest.approx(3 / real.std(axis=0))
    assert statistics.wasserstein(1000 * real, 1000 * (real + 3)) == pytest.approx(3 / real.std(axis=0))
    codes = np.arange(400)
    expected = np.mean([statistics.wasserstein(real, rng.normal(0, 2, (100, 1))) for _ in range(60)])
    assert statistics.wasserstein_floor(real, 100, codes, 0) == pytest.approx([expected], rel=0.25)


def test_relative_difference_and_the_sd_behind_d():
    real, synthetic = cohort(200, 0), cohort(200, 1)
    synthetic[["left hippocampus", "right hippocampus"]] *= 0.9
    row = effect(anatomy.compare_regions(real, synthetic), "hippocampus")
    assert row["relative_difference"] == pytest.approx(0.1, abs=0.02)
    assert row["cohens_d"] == pytest.approx(row["relative_difference"] / row["pooled_cv"], rel=1e-9)


# how regions go together


def correlated(n: int, seed: int, strength: float) -> pd.DataFrame:
    """A cohort whose thalamus and caudate share a factor of this strength."""
    table, rng = cohort(n, seed), np.random.default_rng(seed + 100)
    shared = strength * rng.normal(size=n)
    for region in ("thalamus", "caudate"):
        own = np.sqrt(1 - strength**2) * rng.normal(size=n)
        table = with_region(table, region, 5000 + 300 * (shared + own))
    return table


def test_a_lost_correlation_is_seen_in_its_pair_and_in_the_norm():
    lost = anatomy.correlation_difference(correlated(150, 0, 0.95), correlated(150, 1, 0.0), seed=0)
    kept = anatomy.correlation_difference(correlated(150, 0, 0.95), correlated(150, 1, 0.95), seed=0)
    pair = lost.pairs.set_index(["region_a", "region_b"]).loc[("thalamus", "caudate")]
    assert pair["r_real"] > 0.85 and abs(pair["r_synthetic"]) < 0.25 and pair["q_value"] < 1e-6
    assert (
        lost.pairs["q_value"].idxmin() == lost.pairs.query("region_a == 'thalamus' and region_b == 'caudate'").index[0]
    )
    assert lost.frobenius > kept.frobenius
    assert len(lost.pairs) == 49 * 48 // 2 and lost.n_regions == 49


def test_equal_cohorts_lie_at_the_floor_and_unequal_ones_above():
    same = anatomy.correlation_difference(cohort(80, 0), cohort(60, 1), seed=0)
    assert same.frobenius == pytest.approx(same.floor, rel=0.15) and same.p_value > 0.05
    factor = np.random.default_rng(5).normal(0, 0.1, (60, 1))
    other = cohort(60, 1)
    other.iloc[:, 1:] *= 1 + factor  # every region follows one factor
    result = anatomy.correlation_difference(cohort(80, 0), other, seed=0)
    assert result.frobenius > 1.5 * result.floor and result.p_value < 0.01


def test_correlation_needs_ten_subjects_and_ignores_units():
    with pytest.raises(InputError, match="9 subjects; correlations need at least 10") as caught:
        anatomy.correlation_difference(cohort(20, 0), cohort(9, 1), seed=0)
    assert caught.value.where == "synthetic volumes"
    one = anatomy.correlation_difference(cohort(20, 0), cohort(15, 1), seed=0)
    other = anatomy.correlation_difference(cohort(20, 0) / 1000, cohort(15, 1) / 1000, seed=0)
    assert one.frobenius == pytest.approx(other.frobenius) and one.p_value == other.p_value


def test_asymmetry_by_hand_and_its_sign():
    table = cohort(3, 0).assign(**{"left thalamus": 9000.0, "right thalamus": 7000.0})
    index = anatomy.asymmetry_index(table)
    assert index["thalamus"].tolist() == [0.25] * 3
    assert set(REGIONS) - set(index.columns) == {"3rd ventricle", "4th ventricle", "brain-stem", "csf"}
    mirrored = table.rename(columns={"left thalamus": "right thalamus", "right thalamus": "left thalamus"})
    assert anatomy.asymmetry_index(mirrored)["thalamus"].tolist() == [-0.25] * 3


def test_a_mirrored_generator_is_seen_by_asymmetry_and_not_by_d():
    real, synthetic = cohort(60, 0), cohort(60, 1)
    names = [("left hippocampus", "right hippocampus"), ("right hippocampus", "left hippocampus")]
    for table, (large, small) in zip((real, synthetic), names, strict=True):
        table[large] = 4200 * table["brain-stem"] / table["brain-stem"].mean()
        table[small] = 0.9 * table[large] * np.random.default_rng(len(large)).normal(1, 0.02, 60)
    row = effect(anatomy.compare_asymmetry(real, synthetic, seed=0), "hippocampus")
    assert row["mean_real"] == pytest.approx(0.105, abs=0.01) and row["mean_synthetic"] == pytest.approx(
        -0.105, abs=0.01
    )
    assert row["cohens_d"] > 3 and row["ci_low"] > 2 and row["q_value"] < 1e-6
    assert abs(effect(anatomy.effect_sizes(real, synthetic), "hippocampus")["cohens_d"]) < 0.6


def aged(
    n: int, seed: int, *, yearly: float, men: float = 0.0, noise: float = 0.02
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A cohort whose hippocampus loses a share a year; its people."""
    table, rng = cohort(n, seed), np.random.default_rng(seed + 50)
    people = pd.DataFrame({"age": rng.uniform(20, 80, n), "sex": rng.choice(["F", "M"], n)}, index=table.index)
    size = 1 + yearly * (people["age"] - 50) + men * ((people["sex"] == "M") - 0.5)
    values = 4000 * (size + 0.3 * (table["total intracranial"] / 1.5e6 - 1) + rng.normal(0, noise, n))
    return with_region(table, "hippocampus", values.to_numpy()), people.assign(participant="")


def slope(result: pd.DataFrame, term: str) -> pd.Series:
    return result.query("region == 'hippocampus' and term == @term").iloc[0]


def test_slopes_recover_what_was_put_in():
    real, synthetic = aged(200, 0, yearly=-0.005, men=0.04), aged(200, 1, yearly=0.0, men=0.04)
    result = anatomy.compare_slopes(*real, *synthetic)
    age, sex = slope(result, "age"), slope(result, "sex")
    assert age["real"] == pytest.approx(-5, abs=0.3) and age["synthetic"] == pytest.approx(0, abs=0.3)
    assert age["real_low"] < age["real"] < age["real_high"] and age["q_value"] < 1e-6
    assert sex["real"] == pytest.approx(4, abs=1) and sex["p_value"] > 0.01
    assert len(result) == 2 * 49 and tuple(result.columns) == anatomy.SLOPE_COLUMNS


def test_slope_intervals_hold_the_truth():
    held = []
    for seed in range(25):
        row = slope(anatomy.compare_slopes(*aged(40, seed, yearly=-0.004), None, None), "age")
        held.append(row["real_low"] <= -4 <= row["real_high"])
    assert np.mean(held) > 0.8


def test_slopes_of_repeated_scans_are_no_surer_than_of_people():
    volumes, people = aged(30, 0, yearly=-0.004)
    twice, both = pd.concat([volumes] * 4), pd.concat([people.assign(participant=people.index)] * 4)
    twice.index = both.index = pd.Index([f"{s}-{i}" for i in range(4) for s in volumes.index], name="subject")
    one = slope(anatomy.compare_slopes(volumes, people, None, None), "age")
    many = slope(anatomy.compare_slopes(twice, both, None, None), "age")
    assert many["real"] == pytest.approx(one["real"])
    assert many["real_high"] - many["real_low"] == pytest.approx(one["real_high"] - one["real_low"], rel=0.1)


def test_unknown_people_leave_blanks_with_the_reason():
    volumes, people = aged(20, 0, yearly=0.0)
    alone = anatomy.compare_slopes(volumes, people, None, None)
    assert alone["synthetic"].isna().all() and alone["real"].notna().all() and alone["n_synthetic"].eq(0).all()
    assert alone.attrs["notes"] == ("synthetic cohort: age and sex are not known",)
    few = anatomy.compare_slopes(volumes, people.assign(age=np.nan), volumes, people.assign(sex="F"))
    assert few["real"].isna().all() and "0 subjects with age and sex, 10 are needed" in few.attrs["notes"][0]
    assert few.query("term == 'sex'")["synthetic"].isna().all() and "sex does not vary" in few.attrs["notes"][1]


# single cases, exclusions, noise


def test_percentile_and_z_of_a_case():
    real = with_region(cohort(99, 0), "thalamus", np.arange(99.0) + 7000)
    real["total intracranial"] = 1.5e6
    case = with_region(real.iloc[[0]], "thalamus", np.array([7049.5])).set_axis(["new"])
    row = effect(anatomy.normative_percentiles(real, case), "thalamus")
    assert row["percentile"] == pytest.approx(100 * 50 / 99) and row["volume"] == 7049.5
    assert row["z"] == pytest.approx(0.5 / np.arange(99.0).std(ddof=1))


def test_head_size_alone_makes_no_case_extreme():
    real = cohort(200, 0, spread=0.05)
    case = real.iloc[[0]].set_axis(["large head"]) * 0 + real.mean()
    large = case.copy()
    large["total intracranial"] *= 1.15
    large.iloc[:, 1:] *= 0.4 + 0.6 * 1.15  # as the cohort's volumes follow head size
    z = anatomy.normative_percentiles(real, large)["z"]
    assert z.abs().max() < 1.5


def test_a_real_case_is_left_out_of_its_own_norm():
    real = cohort(12, 0)
    alone = anatomy.normative_percentiles(real.iloc[1:], real.iloc[[0]])
    among = anatomy.normative_percentiles(real, real)
    first = among[among["subject"] == real.index[0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, alone)
    assert among["subject"].drop_duplicates().tolist() == real.index.tolist()


def test_memory_of_percentiles_grows_with_the_cohort_and_not_its_square():
    real, many = cohort(800, 0), cohort(800, 1)
    tracemalloc.start()
    anatomy.normative_percentiles(real, many.set_axis([f"s{i}" for i in range(800)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 800 * 800 * 20  # a table of all pairs by region has 49 bytes for each pair


def test_exclusions_are_the_large_effects_and_follow_the_bound():
    real, synthetic = cohort(50, 0), cohort(50, 1)
    synthetic[["left hippocampus", "right hippocampus"]] *= 0.7
    synthetic[["left caudate", "right caudate"]] *= 1.15
    effects = anatomy.effect_sizes(real, synthetic)
    listed = anatomy.exclusions(effects)
    assert listed["region"].tolist()[0] == "hippocampus" and "caudate" in set(listed["region"])
    assert listed["cohens_d"].abs().is_monotonic_decreasing and (listed["cohens_d"].abs() > 0.8).all()
    assert listed["certain"].iloc[0] and tuple(listed.columns) == anatomy.EXCLUSION_COLUMNS
    assert len(anatomy.exclusions(effects, 5.0)) == 0
    counts = [len(anatomy.exclusions(effects, bound)) for bound in (0.1, 0.4, 0.8, 1.6)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    with pytest.raises(InputError, match="not above 0"):
        anatomy.exclusions(effects, 0.0)


def test_the_paper_s_table_counts_37_9_3_and_19_2_0():
    long = anatomy.paper_table(3).melt(["group", "region"], var_name="cohort", value_name="cohens_d")
    counts = anatomy.count_effects(long)
    assert counts["best"].to_dict() == {"HA-GAN": 3, "MedSyn": 9, "cDPM": 37}
    assert counts["beyond"].to_dict() == {"HA-GAN": 19, "MedSyn": 2, "cDPM": 0}


def test_noise_floor_recovers_the_noise_of_an_engine():
    rng, people = np.random.default_rng(0), cohort(30, 0, spread=0.1)
    names = [f"anatomy-{i}" for i in range(30) for _ in range(4)]
    rows = people.iloc[np.repeat(np.arange(30), 4)].copy()
    rows.iloc[:, 1:] *= 1 + rng.normal(0, 0.03, (120, rows.shape[1] - 1))
    rows.index = pd.Index([f"r{i}" for i in range(120)], name="subject")
    floor = anatomy.noise_floor(rows, names).set_index("region")
    assert floor.loc["brain-stem", "relative_sd"] == pytest.approx(0.03, rel=0.2)
    assert floor.loc["thalamus", "relative_sd"] == pytest.approx(0.03 / np.sqrt(2), rel=0.25)  # mean of two sides
    assert floor.loc["brain-stem", "sd_in_d_units"] == pytest.approx(0.3, rel=0.4)
    assert (floor[["n_anatomies", "n_renderings"]].drop_duplicates().to_numpy() == [[30, 120]]).all()
    still = anatomy.noise_floor(
        people.iloc[np.repeat(np.arange(30), 2)].set_axis([f"r{i}" for i in range(60)]), names[::2]
    )
    np.testing.assert_allclose(still["relative_sd"], 0, atol=1e-12)


def test_noise_needs_repeats_and_names():
    with pytest.raises(InputError, match="two renderings"):
        anatomy.noise_floor(cohort(3, 0), ["a", "b", "c"])
    with pytest.raises(InputError, match="3 volumes and 2 anatomies"):
        anatomy.noise_floor(cohort(3, 0), ["a", "b"])


def test_noise_of_an_engine_stands_beside_each_difference(tmp_path: Path):
    effects = anatomy.compare_regions(cohort(40, 0), cohort(40, 1))
    assert anatomy.read_noise_floor("none", tmp_path) is None and anatomy.noise_in_d(effects, None).isna().all()
    anatomy.regions()[["region"]].assign(relative_sd=0.02).to_csv(tmp_path / "noise_floor_mine.csv", index=False)
    noise = anatomy.noise_in_d(effects, anatomy.read_noise_floor("mine", tmp_path))
    # an engine that reads a region 2 % too large moves d by exactly this much
    np.testing.assert_allclose(noise * effects["pooled_cv"], 0.02)


def test_atlas_carries_both_sides_of_every_region():
    present = set(np.unique(anatomy.atlas_labels().data))
    named = anatomy.structures().query("region != ''")
    assert set(named["id"]) <= present


# other versions of SynthSeg


def test_other_spellings_are_understood(tmp_path: Path):
    table = cohort(3, 0).round(3)
    freesurfer = {name: name.title().replace(" ", "-") for name in COLUMNS[1:] if not name.startswith("ctx")}
    odd = {"left inferior lateral ventricle": "Left-Inf-Lat-Vent", "right ventral DC": "Right-VentralDC"}
    odd |= {"left thalamus": "Left-Thalamus-Proper", "ctx-lh-cuneus": "ctx_lh_cuneus", "brain-stem": "Brainstem"}
    odd["total intracranial"] = "total intracranial volume"
    table.rename(columns=freesurfer | odd).to_csv(tmp_path / "v.csv")
    pd.testing.assert_frame_equal(anatomy.read_volumes(tmp_path / "v.csv"), table)


def test_two_spellings_of_one_structure_are_refused(tmp_path: Path):
    table = cohort(3, 0)
    table.assign(**{"Left-Thalamus-Proper": 1.0}).to_csv(tmp_path / "v.csv")
    with pytest.raises(InputError, match="repeated columns: left thalamus"):
        anatomy.read_volumes(tmp_path / "v.csv")


def test_the_first_synthseg_has_no_csf_which_is_a_labelled_gap(tmp_path: Path):
    for seed in (0, 1):
        cohort(12, seed).drop(columns="csf").to_csv(tmp_path / f"v{seed}.csv")
    tables = [anatomy.read_volumes(tmp_path / f"v{seed}.csv") for seed in (0, 1)]
    assert tables[0]["csf"].isna().all() and "no csf" in tables[0].attrs["notes"][0]
    result = anatomy.effect_sizes(*tables)
    assert np.isnan(effect(result, "csf")["cohens_d"]) and effect(result, "csf")["verdict"] == "undetermined"
    assert result["cohens_d"].notna().sum() == 48 and any("no csf" in note for note in result.attrs["notes"])
    assert anatomy.correlation_difference(*tables, seed=0).n_regions == 48
    anatomy.write_volumes(tables[0], tmp_path / "again.csv")
    pd.testing.assert_frame_equal(anatomy.read_volumes(tmp_path / "again.csv"), tables[0], atol=1e-3)
    with pytest.raises(InputError, match="one cohort was segmented with csf"):
        anatomy.effect_sizes(tables[0], cohort(12, 1))
