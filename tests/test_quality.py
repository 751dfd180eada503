"""QC gate: SynthSeg's CSV in and out, the threshold from the real cohort, counts and intervals, wrong input."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import quality
from core.errors import InputError
from core.quality import QC_SCORES


def scores(n: int, seed: int, low: float = 0.6) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    index = pd.Index([f"case-{seed}-{i}" for i in range(n)], name="subject")
    return pd.DataFrame(rng.uniform(low, 0.95, (n, 8)).round(4), columns=list(QC_SCORES), index=index)


def failing(n: int, failed: int, seed: int = 0) -> pd.DataFrame:
    """A table of scores above 0.65 in which ``failed`` volumes have one score below it."""
    table = scores(n, seed, low=0.7)
    table.iloc[:failed, 3] = 0.5
    return table


# the gate


@pytest.mark.parametrize("fail_rate", [0.0, 0.02, 0.05, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("n", [2, 19, 20, 24, 400])
def test_threshold_is_the_largest_that_fails_at_most_the_rate(n: int, fail_rate: float):
    table = scores(n, n)
    threshold = quality.threshold_from_real(table, fail_rate)

    def failed(cut: float) -> float:
        return (table.min(axis=1) < cut).mean()

    assert failed(threshold) <= fail_rate + 1e-9 < failed(np.nextafter(threshold, 1)) + 1e-9


def test_threshold_with_ties_stays_on_the_safe_side():
    table = scores(40, 0, low=0.7)
    table.iloc[:5, 0] = 0.5  # five equal lowest scores, two may fail: none does
    threshold = quality.threshold_from_real(table, 0.05)
    assert threshold == 0.5 and quality.gate(table, threshold, max_fail_rate=0.05).failed_volumes == 0


def test_gate_counts_scores_and_volumes():
    table = scores(10, 0, low=0.7)
    table.iloc[0, :3] = 0.1
    table.iloc[1, 7] = 0.1
    result = quality.gate(table, 0.65, max_fail_rate=0.05)
    assert (result.n, result.failed_scores, result.failed_volumes, result.pass_rate) == (10, 4, 2, 0.8)
    assert not result.reliable


def test_a_score_on_the_threshold_passes():
    table = scores(3, 0, low=0.7)
    table.iloc[0, 0] = 0.65
    assert quality.gate(table, 0.65, max_fail_rate=0.05).failed_volumes == 0


def test_wilson_interval_of_the_paper_s_real_cohort():
    result = quality.gate(failing(400, 19), 0.65, max_fail_rate=0.05)
    assert 1 - result.ci_high == pytest.approx(0.031, abs=5e-4) and 1 - result.ci_low == pytest.approx(0.073, abs=5e-4)


@pytest.mark.parametrize(("failed", "n"), [(0, 24), (3, 24), (24, 24)])
def test_wilson_interval_by_its_formula(failed: int, n: int):
    z, p = 1.959963984540054, 1 - failed / n
    centre, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    result = quality.gate(failing(n, failed), 0.65, max_fail_rate=0.05)
    assert (result.ci_low, result.ci_high) == pytest.approx((centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize(("failed", "reliable"), [(19, True), (20, True), (21, False)])
def test_reliable_up_to_the_allowed_rate(failed: int, reliable: bool):
    assert quality.gate(failing(400, failed), 0.65, max_fail_rate=0.05).reliable is reliable


def test_table_has_the_real_cohort_first_and_one_threshold():
    table = quality.quality_table(scores(40, 0), {"good": scores(24, 1, low=0.8), "bad": scores(24, 2, low=0.2)})
    assert table.columns.tolist() == [
        *("cohort", "n", "failed_scores", "failed_volumes", "pass_rate", "ci_low", "ci_high", "threshold", "reliable")
    ]
    assert table["cohort"].tolist() == ["real", "good", "bad"] and table["n"].tolist() == [40, 24, 24]
    assert len(set(table["threshold"])) == 1 and table["failed_volumes"].iloc[0] == 2
    assert table["reliable"].tolist() == [True, True, False]


def test_table_with_a_fixed_threshold():
    table = quality.quality_table(failing(400, 19), {"HA-GAN": failing(400, 0, 1)}, threshold=0.65)
    assert table["pass_rate"].tolist() == [0.9525, 1.0] and set(table["threshold"]) == {0.65}


def test_failing_cases_are_listed_worst_first():
    table = scores(5, 0, low=0.7)
    table.iloc[3, [0, 5]] = 0.3, 0.4
    table.iloc[1, 2] = 0.1
    listed = quality.failing_cases(table, 0.65)
    assert listed["subject"].tolist() == ["case-0-1", "case-0-3"] and listed["lowest"].tolist() == [0.1, 0.3]
    assert listed["failed"].tolist() == ["general csf", "general white matter, thalamus"]
    assert quality.failing_cases(table, 0.0).empty
    assert [quality.briefly(failed) for failed in listed["failed"]] == ["CSF", "white matter, thalamus"]
    assert quality.briefly(", ".join(quality.QC_SCORES[:-1])) == "all but hippocampus+amygdala"
    assert quality.briefly(", ".join(quality.QC_SCORES)) == "all 8"


def test_inputs_stay_as_they_are():
    table = scores(5, 0)
    copy = table.copy()
    quality.quality_table(table, {"a": table})
    quality.failing_cases(table, 0.7)
    pd.testing.assert_frame_equal(table, copy)


# SynthSeg's CSV


def test_round_trip_and_bytes(tmp_path: Path):
    table = scores(4, 0)
    table.iloc[0, 0] = 1.0
    quality.write_qc(table, tmp_path / "qc.csv")
    lines = (tmp_path / "qc.csv").read_bytes().decode().split("\r\n")
    assert lines[0] == (
        "subject,general white matter,general grey matter,general csf,cerebellum,brainstem,thalamus,"
        "putamen+pallidum,hippocampus+amygdala"
    )
    assert lines[1].startswith("case-0-0,1.0000,")
    pd.testing.assert_frame_equal(quality.read_qc(tmp_path / "qc.csv"), table)


def test_reading_is_tolerant_of_spaces_blank_header_and_suffix(tmp_path: Path):
    text = ", ".join(["", *QC_SCORES]) + "\nscan.nii.gz, " + ", ".join(["0.9000"] * 8) + "\n"
    (tmp_path / "qc.csv").write_text(text)
    table = quality.read_qc(tmp_path / "qc.csv")
    assert table.index.tolist() == ["scan"] and (table == 0.9).all(axis=None)


def test_other_spellings_are_understood(tmp_path: Path):
    table = scores(3, 0)
    names = {"general grey matter": "General-Gray-Matter", "brainstem": "Brain_Stem", "thalamus": "Thalamus"}
    table.rename(columns=names).to_csv(tmp_path / "qc.csv")
    pd.testing.assert_frame_equal(quality.read_qc(tmp_path / "qc.csv"), table)


def _drop_column(rows):
    for row in rows:
        del row[4]


def _set(row, column, value):
    return lambda rows: rows[row].__setitem__(column, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_drop_column, "missing columns: cerebellum"),
        (_set(0, 4, "cerebelum"), "unknown columns or regions: cerebelum"),
        (_set(2, 0, "case-0-0"), "duplicate subjects: case-0-0"),
        (_set(1, 4, "good"), "case-0-0 / cerebellum = 'good'"),
        (_set(1, 4, "1.01"), "not a score in [0, 1]"),
        (_set(1, 4, "-0.1"), "not a score in [0, 1]"),
        (_set(1, 4, "nan"), "not a score in [0, 1]"),
        (_set(0, 0, "id"), "expected 'subject'"),
        (lambda rows: rows.__delitem__(slice(1, None)), "no rows"),
        (lambda rows: rows.clear(), "no rows"),
        (lambda rows: rows[1].pop(), "rows without a subject"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, edit, message: str):
    path = tmp_path / "qc.csv"
    quality.write_qc(scores(3, 0), path)
    rows = list(csv.reader(path.open(newline="")))
    edit(rows)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with pytest.raises(InputError) as caught:
        quality.read_qc(path)
    assert message in caught.value.what and caught.value.where == str(path) and caught.value.remedy


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        quality.read_qc(tmp_path / "absent.csv")
    (tmp_path / "image.csv").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(InputError, match="not a CSV"):
        quality.read_qc(tmp_path / "image.csv")


def test_options_out_of_range():
    with pytest.raises(InputError, match="not in"):
        quality.threshold_from_real(scores(5, 0), 1.0)
    with pytest.raises(InputError, match="single volume"):
        quality.threshold_from_real(scores(1, 0), 0.05)
    with pytest.raises(InputError, match="not in"):
        quality.gate(scores(5, 0), 65, max_fail_rate=0.05)
    with pytest.raises(InputError, match="another name"):
        quality.quality_table(scores(5, 0), {"real": scores(5, 1)})
