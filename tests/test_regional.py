"""Regional comparison of a study: before and after the gate, files and what pages ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import anatomy
from core.errors import InputError
from core.pools import Context
from core.quality import QC_SCORES, write_qc
from core.settings import Settings
from core.study import PROVENANCE, Case, Cohort, CohortSpec, StudySettings, StudySpec, write_spec
from core.workflows import evaluate, read_results, regional
from tests.test_anatomy import aged, cohort


def side(volumes: pd.DataFrame, *, failing: int = 0, people: pd.DataFrame | None = None) -> regional.Side:
    """A cohort whose first volumes fail the gate at 0.65."""
    qc = pd.DataFrame(0.9, index=volumes.index, columns=list(QC_SCORES))
    qc.iloc[:failing, 0] = 0.4
    blank = pd.DataFrame({"participant": "", "age": np.nan, "sex": ""}, index=volumes.index)
    return regional.Side(volumes, qc, blank if people is None else people)


def compare(real: regional.Side, synthetic: regional.Side, threshold: float | None = 0.65) -> regional.Comparison:
    return regional.compare(real, synthetic, threshold=threshold, engine="none", seed=0)


def d_of(table: pd.DataFrame, region: str, gated: bool) -> float:
    return float(table.query("region == @region and gated == @gated")["cohens_d"].iloc[0])


def test_survivors_alone_look_better_and_both_tables_say_so():
    synthetic = cohort(60, 1)
    synthetic.iloc[:20, synthetic.columns.get_indexer(["left hippocampus", "right hippocampus"])] *= 0.5
    table = compare(side(cohort(60, 0)), side(synthetic, failing=20)).tables["regional"]
    assert d_of(table, "hippocampus", False) > 0.5 > abs(d_of(table, "hippocampus", True))
    assert set(table.query("gated")["n_synthetic"]) == {40} and set(table.query("not gated")["n_synthetic"]) == {60}


def test_without_failures_the_gate_changes_nothing_and_without_gate_there_is_no_second_table():
    table = compare(side(cohort(15, 0)), side(cohort(15, 1))).tables["regional"]
    parts = [table[table["gated"] == gated].drop(columns="gated") for gated in (False, True)]
    pd.testing.assert_frame_equal(*parts)
    assert not compare(side(cohort(15, 0)), side(cohort(15, 1)), None).tables["regional"]["gated"].any()


def test_a_gate_that_leaves_two_volumes_is_a_gap():
    result = compare(side(cohort(15, 0)), side(cohort(12, 1), failing=10))
    assert not result.tables["regional"]["gated"].any()
    (reason,) = [reason for what, reason in result.gaps if what == "anatomy after the gate"]
    assert reason.startswith("2 of the 12 synthetic volumes passed the gate, so their anatomy cannot be judged")


def test_a_gate_that_nobody_passes_is_said_to_be_a_result_and_asks_for_no_volumes():
    result = compare(side(cohort(15, 0)), side(cohort(12, 1), failing=12))
    (reason,) = [reason for what, reason in result.gaps if what == "anatomy after the gate"]
    assert reason.startswith("none of the 12 synthetic volumes passed the gate") and "Add volumes" not in reason


def test_small_cohorts_leave_labelled_gaps():
    result = compare(side(cohort(15, 0)), side(cohort(5, 1)))
    assert "correlation" not in result.tables
    assert any(what == "regional correlation" and "at least 10" in reason for what, reason in result.gaps)
    assert any("no verdict" in reason for _, reason in result.warnings)
    with pytest.raises(InputError, match="at least 3"):
        compare(side(cohort(15, 0)), side(cohort(2, 1)))


def test_noise_is_joined_by_engine(monkeypatch):
    floor = anatomy.regions()[["region"]].assign(relative_sd=0.05)
    monkeypatch.setattr(anatomy, "read_noise_floor", lambda engine: floor if engine == "known" else None)
    sides = side(cohort(15, 0)), side(cohort(15, 1))
    known = regional.compare(*sides, threshold=None, engine="known", seed=0).tables["regional"]
    np.testing.assert_allclose(known["noise_floor"] * known["pooled_cv"], 0.05)
    unknown = regional.compare(*sides, threshold=None, engine="other", seed=0).tables["regional"]
    assert unknown["noise_floor"].isna().all()
    assert "not known" in regional.noise_note(unknown)
    within = int((known["cohens_d"].abs() <= known["noise_floor"]).sum())
    assert f"{within} of 49 differences" in regional.noise_note(known) and regional.noise_note(known.head(0)) == ""


def test_slopes_come_with_known_people_only():
    volumes, people = aged(30, 0, yearly=-0.005)
    assert "slopes" not in compare(side(volumes), side(cohort(15, 1))).tables
    alone = compare(side(volumes, people=people), side(cohort(15, 1)))
    assert alone.tables["slopes"]["synthetic"].isna().all() and alone.tables["slopes"]["real"].notna().all()
    assert not alone.gaps and not alone.warnings  # generators without age are the rule, not a problem
    both = compare(side(volumes, people=people), side(cohort(15, 1), people=people.set_axis(["x"] * 30).head(0)))
    assert both.tables["slopes"]["synthetic"].isna().all()


def test_people_come_from_the_cases():
    cases = (Case("a", Path("a.nii"), "p1", "", 40.0, "F"), Case("b", Path("b.nii"), "p1"), Case("c", Path("c.nii")))
    people = regional.people_of(Cohort("real", "real", cases))
    assert people.loc["a", "age"] == 40 and people["age"].isna().tolist() == [False, True, True]
    assert replace(side(cohort(3, 0)), people=people).participants == {"a": "p1", "b": "p1"}
    assert regional.people_of(Cohort("real", "real", ())).empty


def test_tables_of_all_cohorts_have_their_columns():
    comparisons = {
        "A": compare(side(cohort(15, 0)), side(cohort(15, 1))),
        "B": regional.norms_of_real(side(cohort(9, 2))),
    }
    tables = regional.stack(comparisons)
    assert {name: tuple(table.columns) for name, table in tables.items()} == regional.TABLES
    assert tables["percentiles"].groupby("cohort")["subject"].nunique().to_dict() == {"A": 15, "B": 9}
    assert set(tables["regional"]["cohort"]) == {"A"} and tables["slopes"].empty
    empty = regional.stack({})
    assert (
        all(table.empty for table in empty.values()) and tuple(empty["regional"].columns) == regional.REGIONAL_COLUMNS
    )


def test_pages_get_other_margins_thresholds_and_matrices():
    result = compare(side(cohort(30, 0)), side(cohort(30, 1), failing=3))
    table = regional.at_gate(result.tables["regional"], True)
    assert "gated" not in table and len(table) == 49
    assert set(regional.judged(table, 3.0)["verdict"]) == {"equivalent"}
    qc = {"real": side(cohort(30, 0)).qc, "A": side(cohort(30, 1), failing=3).qc}
    rates = [
        regional.what_if_gate(qc, "real", cut, 0.05).set_index("cohort")["pass_rate"].to_dict() for cut in (0.3, 0.65)
    ]
    assert rates == [{"real": 1.0, "A": 1.0}, {"real": 1.0, "A": 0.9}]
    matrix = regional.difference_matrix(result.tables["correlation_pairs"].query("not gated"))
    assert matrix.shape == (49, 49) and np.allclose(matrix, matrix.T) and (np.diag(matrix) == 0).all()
    assert matrix.columns.tolist() == anatomy.regions()["region"].tolist()
    painted = regional.label_values(table)
    d = table.set_index("region")["cohens_d"]
    assert painted[17] == painted[53] == d["hippocampus"] and 28 not in painted


@pytest.fixture
def tables_study(tmp_path: Path, write_brains) -> Path:
    """A study with imported tables: 12 real and 12 synthetic volumes."""
    for index, name in enumerate(("real", "gen")):
        paths = write_brains(tmp_path / name, 12, seed=index, prefix=name)
        subjects = [path.name.removesuffix(".nii.gz") for path in paths]
        volumes = cohort(12, index).set_axis(subjects)
        anatomy.write_volumes(volumes, tmp_path / f"{name}_volumes.csv")
        write_qc(side(volumes, failing=2 * index).qc, tmp_path / f"{name}_qc.csv")
    specs = {
        name: CohortSpec(images=f"{name}/*.nii.gz", volumes=f"{name}_volumes.csv", qc=f"{name}_qc.csv")
        for name in ("real", "gen")
    }
    settings = StudySettings(encoders=("random-r50",), n_boot=10, qc_threshold=0.65)
    write_spec(
        StudySpec(name="t", grid="half", real=specs["real"], synthetic={"Gen": specs["gen"]}, settings=settings),
        tmp_path / "study.toml",
    )
    return tmp_path / "study.toml"


def test_a_study_writes_and_reads_every_table(tables_study, context: Context, settings: Settings, monkeypatch):
    monkeypatch.setattr("core.workflows.scoring.Scoring.score_features", lambda self: None)
    monkeypatch.setattr("core.workflows.scoring.Scoring.score_volumes", lambda self: None)
    evaluate(context, str(tables_study), str(tables_study.parent / "out"))
    results = read_results(settings, tables_study)
    for name, columns in regional.TABLES.items():
        assert (tables_study.parent / "out" / f"{name}.csv").is_file()
        assert tuple(getattr(results, name).columns) == columns
    before = regional.at_gate(results.regional, False)
    pd.testing.assert_frame_equal(before[["cohort", *anatomy.EFFECT_COLUMNS]], results.effect_sizes, check_dtype=False)
    assert set(regional.at_gate(results.regional, True)["n_synthetic"]) == {10}
    assert results.regional["noise_floor"].isna().all()  # imported tables: nobody knows the engine
    assert results.percentiles.groupby("cohort")["subject"].nunique().to_dict() == {"real": 12, "Gen": 12}
    assert results.exclusions["certain"].dtype == bool


def test_rows_that_match_no_case_are_a_gap(tables_study, context, monkeypatch):
    monkeypatch.setattr("core.workflows.scoring.Scoring.score_features", lambda self: None)
    monkeypatch.setattr("core.workflows.scoring.Scoring.score_volumes", lambda self: None)
    path = tables_study.parent / "gen_volumes.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("gen-00", "other").replace("gen-01", "another"))
    evaluate(context, str(tables_study), str(tables_study.parent / "out"))
    gaps = json.loads((tables_study.parent / "out" / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    reasons = " ".join(gap["reason"] for gap in gaps)
    assert "2 cases have no row: gen-00, gen-01" in reasons and "2 rows match no case: another, other" in reasons
    effects = pd.read_csv(tables_study.parent / "out" / "effect_sizes.csv")
    assert set(effects["n_synthetic"]) == {10}


def test_the_summary_counts_the_regions_and_names_the_largest_effect():
    rows = pd.DataFrame(
        {
            "region": ["hippocampus", "thalamus", "insula"],
            "cohens_d": [1.5, -0.9, 0.1],
            "ci_low": [1.0, -1.3, -0.3],
            "ci_high": [2.0, -0.5, 0.5],
            "verdict": ["different", "different", "undetermined"],
        }
    )
    assert regional.summary(rows) == ("2 of 3", "0", "1", "hippocampus: +1.50 [+1.00, +2.00]")
    assert regional.summary(rows.iloc[1:])[3].startswith("thalamus: -0.90")
    assert regional.summary(rows.assign(cohens_d=np.nan)) == ("–", "–", "–", "no region could be compared")
