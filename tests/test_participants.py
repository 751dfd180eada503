from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from core.errors import InputError
from core.participants import read_participants, split_participants


def pooled(n: int, seed: int = 0, scans: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    people = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:04d}" for i in range(n)],
            "age": np.clip(rng.normal(45, 18, n), 18, 90).round(1),  # peaked, as pooled cohorts are
            "sex": rng.choice(["F", "M"], n, p=[0.35, 0.65]),
            "site": rng.choice(["A", "B", "C"], n),
        }
    )
    people = people.loc[people.index.repeat(scans)].reset_index(drop=True)
    people.insert(1, "session", [f"ses-{i % scans}" for i in range(len(people))])
    return people


def test_no_subject_is_on_both_sides_and_none_is_lost():
    table = pooled(1236)
    test, training = split_participants(table, 400, seed=1)
    assert len(test) == 400 == test["participant_id"].nunique()
    assert set(test["participant_id"]).isdisjoint(training["participant_id"])
    assert set(test["participant_id"]) | set(training["participant_id"]) == set(table["participant_id"])
    assert len(training) == 2 * (1236 - 400)


def test_half_are_female_and_ages_are_closer_to_uniform_than_the_pool():
    table = pooled(1236)
    test, _ = split_participants(table, 200, seed=1)
    assert (test["sex"] == "F").sum() == 100
    low, width = table["age"].min(), np.ptp(table["age"])

    def distance(ages: pd.Series) -> float:
        return float(stats.kstest(ages, "uniform", args=(low, width)).statistic)

    assert distance(test["age"]) < 0.5 * distance(table["age"])


def test_split_depends_on_the_seed_alone():
    table = pooled(300)
    first, second = split_participants(table, 60, 7)[0], split_participants(table, 60, 7)[0]
    pd.testing.assert_frame_equal(first, second)
    shuffled = table.sample(frac=1, random_state=1)
    assert set(split_participants(shuffled, 60, 7)[0]["participant_id"]) == set(first["participant_id"])
    assert set(split_participants(table, 60, 8)[0]["participant_id"]) != set(first["participant_id"])


def test_too_few_subjects_of_one_sex_is_said():
    with pytest.raises(InputError, match="need 200 subjects of sex F, found"):
        split_participants(pooled(100), 400, 0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("subject\tage\nA\t3\n", "participant_id is missing"),
        ("participant_id\tage\nA\t30\nA\t31\n", "duplicate subject A"),
        ("participant_id\tage\nA\t-5\n", "impossible age of A"),
        ("participant_id\tage\nA\tforty\n", "impossible age of A"),
    ],
)
def test_broken_tables_are_explained(tmp_path: Path, text: str, what: str):
    path = tmp_path / "participants.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=what):
        read_participants(path)


def test_missing_values_and_spellings_are_understood(tmp_path: Path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tage\tsex\nA\tn/a\tfemale\nB\t40\tM\nC\t\tn/a\n")
    table = read_participants(path)
    assert table["sex"].tolist() == ["F", "M", ""]
    assert np.isnan(table["age"][0])
    assert table["age"][1] == 40
