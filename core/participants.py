"""The participants table and the split of a pooled cohort into test and training subjects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import InputError
from core.tables import restored

AGE_BINS = 8  # strata of the age range in the cohort split


def read_participants(path: Path | str) -> pd.DataFrame:
    """Read a BIDS participants table.

    Parameters
    ----------
    path : path
        Tab-separated; needs ``participant_id``; knows session, age, sex, site.

    Returns
    -------
    DataFrame
        Columns participant_id, session, age (float, years), sex ("F", "M" or ""), site.

    Raises
    ------
    InputError
        Missing file or column, no table, duplicate subject, impossible age.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such participants table.", str(path), "Check the path.")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (ValueError, OSError, MemoryError) as error:  # no text, ragged, empty
        what = f"not a table of text ({' '.join(str(error).split())[:160]})."
        raise InputError(what, str(path), "Save it tab-separated, as UTF-8.") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError("rows have more cells than the header.", str(path), "Export it again.")
    table = table.map(restored).rename(columns={"session_id": "session", "gender": "sex"})
    if len(table.columns) == 1 and "," in table.columns[0]:
        raise InputError("the columns are separated by commas, not tabs.", str(path), "Save it tab-separated.")
    if "participant_id" not in table:
        raise InputError(
            f"column participant_id is missing; found: {', '.join(table.columns)}.", str(path), "Use BIDS column names."
        )
    for column in ("session", "age", "sex", "site"):
        if column not in table:
            table[column] = ""
    repeated = table[table.duplicated(["participant_id", "session"])]["participant_id"]
    if len(repeated):
        raise InputError(
            f"duplicate subject {', '.join(sorted(set(repeated))[:5])}.", str(path), "Keep one row per scan."
        )
    age = pd.to_numeric(table["age"].replace({"n/a": "", "NA": ""}), errors="coerce")
    wrong = (age < 0) | (age > 120) | (age.isna() & ~table["age"].isin(["", "n/a", "NA"]))
    if wrong.any():
        who = ", ".join(table.loc[wrong, "participant_id"].head(5))
        raise InputError(f"impossible age of {who}.", str(path), "Give years, or n/a.")
    table["age"] = age
    table["sex"] = table["sex"].str.strip().str[:1].str.upper().where(lambda s: s.isin(["F", "M"]), "")
    return table[["participant_id", "session", "age", "sex", "site"]]


def split_participants(table: pd.DataFrame, n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a test set uniform over age and half female; all other subjects train.

    The age range is cut into equal bins; each bin and sex gives the same number of subjects.
    Where a bin has too few, the shortfall is drawn from the nearest ages of the same sex. One scan
    is drawn for each test subject, and none of that subject's scans is left for training
    (Wu et al., MICCAI 2024: 400 of 1,236 subjects).

    Parameters
    ----------
    table : DataFrame
        From `read_participants`: one row per scan.
    n : int
        Subjects in the test set.
    seed : int
        Seed of the draw.

    Returns
    -------
    test, training : DataFrame
        Rows of ``table``; no subject on both sides.

    Raises
    ------
    InputError
        Missing age or sex, or fewer subjects of one sex than needed.
    """
    for column, known in (("age", table["age"].notna()), ("sex", table["sex"] != "")):
        if not known.any():
            raise InputError(
                f"column {column} is missing or empty.", "participants", f"Give the {column} of each subject."
            )
    incomplete = table[table["age"].isna() | (table["sex"] == "")]["participant_id"].unique()
    usable = table[~table["participant_id"].isin(incomplete)]
    subjects = usable.groupby("participant_id", sort=True).agg(age=("age", "mean"), sex=("sex", "first")).reset_index()
    wanted = {"F": (n + 1) // 2, "M": n // 2}
    for sex, count in wanted.items():
        have = int((subjects["sex"] == sex).sum())
        if n < 1 or have < count:
            raise InputError(
                f"need {count} subjects of sex {sex}, found {have} ({len(incomplete)} subjects lack age or sex).",
                "participants",
                "Choose a smaller N or complete the table.",
            )
    rng = np.random.default_rng(seed)
    edges = np.linspace(subjects["age"].min(), subjects["age"].max(), AGE_BINS + 1)
    chosen: list[str] = []
    for sex, count in wanted.items():
        group = subjects[subjects["sex"] == sex].sample(frac=1, random_state=int(rng.integers(2**31)))
        chosen += _uniform_over_age(group, count, edges)
    scans = usable[usable["participant_id"].isin(chosen)]
    order = rng.permutation(len(scans))
    test = scans.iloc[order].drop_duplicates("participant_id").sort_values("participant_id")
    training = table[~table["participant_id"].isin(chosen)]
    return test.reset_index(drop=True), training.reset_index(drop=True)


def _uniform_over_age(group: pd.DataFrame, count: int, edges: np.ndarray) -> list[str]:
    """Take equal numbers per age bin; fill what a bin lacks from the nearest ages left."""
    bins = np.clip(np.digitize(group["age"], edges) - 1, 0, len(edges) - 2)
    share = np.full(len(edges) - 1, count // (len(edges) - 1))
    share[np.linspace(0, len(share) - 1, count - int(share.sum())).round().astype(int)] += 1
    taken: list[str] = []
    centres_lacking: list[float] = []
    for index, quota in enumerate(share):
        here = group[bins == index]["participant_id"].head(int(quota)).tolist()
        taken += here
        centres_lacking += [float(edges[index : index + 2].mean())] * (int(quota) - len(here))
    for centre in centres_lacking:
        left = group[~group["participant_id"].isin(taken)]
        taken.append(str(left.iloc[int((left["age"] - centre).abs().to_numpy().argmin())]["participant_id"]))
    return taken
