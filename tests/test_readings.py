"""Reading sessions: plan, saving, and what must survive."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import readings
from core.errors import InputError
from core.readings import Rating
from core.study import read_study
from core.volume import HALF
from core.workflows import Results, reader_study
from core.workflows.results import METRIC_COLUMNS

ROOT = Path(__file__).resolve().parent.parent
GOOD = Rating("real", 4, 5, 3, ((1.0, 2.0, -3.5),), "sulci", 12.5)


@pytest.fixture
def study(tmp_path, write_brains):
    write_brains(tmp_path / "data" / "real", 8, prefix="person")
    for seed, name in enumerate(("alpha", "beta"), 1):
        write_brains(tmp_path / "data" / name, 5, seed=seed, prefix=name)
    path = tmp_path / "data" / "study.toml"
    path.write_text(
        'name = "S"\ngrid = "half"\n[real]\nimages = "real/*.nii.gz"\n'
        '[synthetic.Alpha]\nimages = "alpha/*.nii.gz"\n[synthetic.Beta]\nimages = "beta/*.nii.gz"\n'
    )
    return read_study(path)


def begin(settings, study, reader="Ann", mode="rating", n=10, repeats=0.2):
    plan = readings.make_plan(study, ["Alpha", "Beta"], mode, n, repeats, 3, reader)
    return readings.read_session(settings, readings.start_session(settings, study, reader, mode, plan, 3))


def answer_all(settings, study, session, judge):
    for position, item in enumerate(session.plan):
        readings.save_rating(settings, session, position, judge(item))
    return readings.read_session(settings, session.id)


def test_plan_is_seeded_half_real_equal_by_cohort_with_distant_repeats(study):
    plan = readings.make_plan(study, ["Alpha", "Beta"], "rating", 12, 0.25, 7, "Ann")
    assert plan == readings.make_plan(study, ["Alpha", "Beta"], "rating", 12, 0.25, 7, "Ann")
    first = [item for item in plan if item.repeat_of < 0]
    counts = pd.Series([item.cohort for item in first]).value_counts()
    assert counts.to_dict() == {study.real.name: 6, "Alpha": 3, "Beta": 3}
    assert len({(item.cohort, item.case) for item in first}) == 12
    repeats = [(i, item) for i, item in enumerate(plan) if item.repeat_of >= 0]
    assert len(repeats) == 3
    for i, item in repeats:
        assert (plan[item.repeat_of].cohort, plan[item.repeat_of].case) == (item.cohort, item.case)
        assert plan[item.repeat_of].repeat_of < 0
        assert i - item.repeat_of >= readings.LEAST_GAP


def test_readers_of_one_seed_see_the_same_cases_in_their_own_order(study):
    plans = [readings.make_plan(study, ["Alpha"], "rating", 8, 0, 7, name) for name in ("Ann", "Bob")]
    cases = [[(item.cohort, item.case) for item in plan] for plan in plans]
    assert sorted(cases[0]) == sorted(cases[1])
    assert cases[0] != cases[1]


def test_forced_choice_has_a_real_one_on_either_side(study):
    plan = readings.make_plan(study, ["Alpha", "Beta"], "forced choice", 10, 0, 0, "Ann")
    assert {item.real_side for item in plan} == {"left", "right"}
    assert all(item.cohort in ("Alpha", "Beta") and item.real_case.startswith("person") for item in plan)


@pytest.mark.parametrize(
    ("cohorts", "n", "repeats"), [([], 4, 0), (["Alpha"], 1, 0), (["Alpha"], 4, 2), (["Alpha"], 40, 0)]
)
def test_impossible_plans_say_what_to_do(study, cohorts, n, repeats):
    with pytest.raises(InputError, match=r"Correct the form|fewer cases"):
        readings.make_plan(study, cohorts, "rating", n, repeats, 0, "Ann")


def test_a_rating_is_kept_as_given_and_the_session_goes_on_after_it(settings, study):
    session = begin(settings, study)
    readings.save_rating(settings, session, 0, GOOD)
    again = readings.read_session(settings, session.id)
    assert (again.position, again.complete) == (1, False)
    row = readings.read_ratings(settings, [again], study.real.name).iloc[0]
    assert (row["answer"], row["realism"], row["consistency"], row["anatomy"]) == ("real", 4, 5, 3)
    assert json.loads(row["marks"]) == [[1.0, 2.0, -3.5]]
    assert (row["note"], row["seconds"]) == ("sulci", 12.5)
    assert row["correct"] == (session.plan[0].cohort == study.real.name)


def test_a_second_tab_is_told_and_the_first_rating_stays(settings, study):
    session = begin(settings, study)
    readings.save_rating(settings, session, 0, GOOD)
    with pytest.raises(InputError, match="another tab"):
        readings.save_rating(settings, session, 0, replace(GOOD, answer="synthetic"))
    kept = readings.read_ratings(settings, [readings.read_session(settings, session.id)], study.real.name)
    assert kept["answer"].tolist() == ["real"]


def test_ratings_survive_a_process_killed_right_after_saving(settings, study):
    session = begin(settings, study)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom core import readings\nfrom core.settings import Settings\n"
        f"s = Settings(workspace=Path({str(settings.workspace)!r}), workers=0)\n"
        f"session = readings.read_session(s, {session.id!r})\n"
        f"for i in range(3):\n    readings.save_rating(s, session, i, readings.Rating(**{asdict(GOOD)!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert readings.read_session(settings, session.id).position == 3


@pytest.mark.parametrize(
    "rating", [Rating("maybe", 1, 1, 1), Rating("real", 1, 1), Rating("real", 6, 1, 1), Rating("left", 1, 1, 1)]
)
def test_incomplete_or_absurd_ratings_are_refused(settings, study, rating):
    session = begin(settings, study)
    with pytest.raises(InputError):
        readings.save_rating(settings, session, 0, rating)
    assert readings.read_session(settings, session.id).position == 0


def test_a_renamed_or_moved_study_finds_its_sessions(settings, study, tmp_path):
    session = begin(settings, study)
    moved = tmp_path / "elsewhere"
    study.path.parent.rename(moved)
    text = (moved / "study.toml").read_text(encoding="utf-8").replace('name = "S"', 'name = "T"')
    (moved / "study.toml").write_text(text)
    found = readings.list_sessions(settings, read_study(moved / "study.toml"))
    assert [s.id for s in found] == [session.id]
    assert found[0].study_name == "S"


def test_two_readers_of_one_name_are_told_apart_by_a_key():
    assert readings.reader_name(" Ann  Lee ", "B") == "Ann Lee (B)"
    assert readings.reader_name("Ann") != readings.reader_name("Ann", "B")
    with pytest.raises(InputError):
        readings.reader_name("  ")


def test_blinded_volumes_share_their_frame_and_name_nothing(settings, study):
    session = begin(settings, study)
    shown = [reader_study.blinded_volumes(settings, study, session, i)[0] for i in range(4)]
    assert len({json.dumps({k: v for k, v in item.items() if k != "data"}) for item in shown}) == 1
    assert set(shown[0]) == {"data", "shape", "spacing", "origin"}
    box = reader_study.reading_box(HALF)
    assert shown[0]["shape"] == [high - low for low, high in box]


def test_the_window_does_not_depend_on_scale():
    rng = np.random.default_rng(0)
    brain = np.where(rng.random((20, 20, 20)) > 0.5, rng.uniform(0, 0.6, (20, 20, 20)), -1).astype(np.float32)
    darker = (brain + 1) * 0.7 - 1
    gap = reader_study.window(brain).astype(int) - reader_study.window(darker)
    assert np.abs(gap).max() <= 1


def test_what_perfect_and_contrary_readers_get(settings, study):
    def perfect(item):
        return Rating(
            "real" if item.cohort == study.real.name else "synthetic", 5 if item.cohort != "Alpha" else 2, 3, 3
        )

    def contrary(item):
        return Rating("synthetic" if item.cohort == study.real.name else "real", 1, 3, 3)

    sessions = [
        answer_all(settings, study, begin(settings, study, name), judge)
        for name, judge in (("A", perfect), ("B", contrary))
    ]
    ratings = readings.read_ratings(settings, sessions, study.real.name)
    summary = reader_study.reader_summary(ratings, study.real.name).set_index("reader")
    assert summary["accuracy"].to_dict() == {"A": 1.0, "B": 0.0, reader_study.ALL_READERS: 0.5}
    assert summary.loc["A", "d_prime"] == pytest.approx(-summary.loc["B", "d_prime"])
    assert summary.loc["A", "n"] == 10
    assert summary.loc["A", "repeats"] == 2
    between = reader_study.reader_agreement(ratings).set_index("what")
    assert between.loc["answer", "alpha"] < -0.8
    assert between.loc["answer", "cases"] == 10
    table = reader_study.confusion(ratings, [c.name for c in study.cohorts]).set_index("cohort")
    assert table.loc[study.real.name, ["called_real", "called_synthetic"]].tolist() == [5, 5]
    shares = reader_study.likert_shares(ratings[ratings["reader"] == "A"], ["Alpha"])
    assert shares.query("scale == 'realism' and value == 2")["share"].item() == 1


def test_forced_choice_results_and_skipped_cases(settings, study):
    session = begin(settings, study, mode="forced choice", n=6, repeats=0.5)
    done = answer_all(settings, study, session, lambda item: Rating(item.real_side))
    ratings = readings.read_ratings(settings, [done], study.real.name)
    row = reader_study.reader_summary(ratings, study.real.name).iloc[0]
    assert (row["n"], row["accuracy"], row["repeats"]) == (6, 1.0, 3)
    other = begin(settings, study, "Bob", "forced choice", 4, 0)
    done = answer_all(settings, study, other, lambda item: Rating("skipped"))
    ratings = readings.read_ratings(settings, [done], study.real.name)
    assert reader_study.reader_summary(ratings, study.real.name)["n"].tolist() == [0]


def test_readers_correlate_with_scores_turned_to_higher_is_better():
    names = ["A", "B", "C", "D"]
    ratings = pd.DataFrame(
        [
            {"cohort": name, "case": f"{i}", "repeat_of": -1, "answer": "real", "correct": False, "realism": 1 + i}
            for i, name in enumerate(names)
        ]
    )
    rows = [
        {
            "cohort": n,
            "metric": m,
            "encoder": "e",
            "variant": "corrected",
            "value": v,
            "direction": d,
            "fingerprint": "f",
        }
        for m, d, values in (("fid", "lower", [4, 3, 2, 1]), ("recall", "higher", [4, 3, 2, 1]))
        for n, v in zip(names, values, strict=True)
    ]
    metrics = pd.DataFrame(rows, columns=list(METRIC_COLUMNS))
    empty = pd.DataFrame()
    results = Results(metrics, empty, empty, empty, empty, empty, {})
    table = reader_study.correlate_with_metrics(ratings, results, "real", 0).set_index("metric")
    assert table.loc["fid", "rho"] == pytest.approx(1)
    assert table.loc["recall", "rho"] == pytest.approx(-1)
    assert table.loc["fid", "p_value"] == pytest.approx(2 / 24)
