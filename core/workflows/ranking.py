"""The order of the cohorts by each score: places, ties, and why a score has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.metrics import badness
from core.volume import AXES_FAULT, CONTENT_FAULTS
from core.workflows.results import Results


def rank_scores(results: Results) -> pd.DataFrame:
    """Rank the cohorts of each metric, encoder and variant; see `rank_table`."""
    failures = {
        name: f"last, because {bad} of its {n} volumes failed the image checks"
        for name in results.metrics["cohort"].unique()
        for bad, n in [image_failures(results, name)]
        if bad
    }
    return rank_table(results.metrics, results.provenance.get("fingerprints", {}), failures)


def image_failures(results: Results, cohort: str) -> tuple[int, int]:
    """Count the volumes of a generated cohort that were refused for what they show, and these with those that are used.

    A file that cannot be read is nobody's failure. Nor is a cohort that contradicts its headers as a whole: there the
    headers are wrong.
    """
    cases = results.cases[results.cases["cohort"] == cohort]
    reasons = cases.loc[cases["status"] == "rejected", "reason"].astype(str)
    bad = [reason for reason in reasons if any(fault in reason for fault in CONTENT_FAULTS)]
    turned = sum(AXES_FAULT in reason for reason in bad)
    bad_volumes = len(bad) - (turned if turned > len(cases) / 2 else 0)
    return bad_volumes, bad_volumes + int((cases["status"] == "ok").sum())


def rank_table(
    scores: pd.DataFrame, fingerprints: Mapping[str, dict[str, Any]], failures: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Rank the cohorts of each metric, encoder and variant.

    Parameters
    ----------
    scores : DataFrame
        In the form of metrics.csv.
    fingerprints : mapping of str to dict
        What each fingerprint stands for.
    failures : mapping of str to str
        Cohorts that lack volumes by their own fault, and what to say of it: their scores flatter them, for they are
        those of the better volumes, so they come behind all others.

    Returns
    -------
    DataFrame
        metrics.csv with three more columns. ``rank`` is 1 plus the number of cohorts that are better by a whole
        interval, so that ties share a place; NaN when the score cannot be ranked. ``tie``: the interval overlaps
        that of another cohort. ``note``: why there is no rank, or why it is the last; scores with different
        fingerprints are never ranked together, and the item that differs is named.
    """
    table, failures = scores.assign(rank=np.nan, tie=False, note=""), failures or {}
    for _, everybody in table.groupby(["metric", "encoder", "variant"], sort=False, dropna=False):
        failed = everybody[everybody["cohort"].isin(list(failures)) & everybody["value"].notna()]
        group = everybody.drop(index=failed.index)
        scored = group.dropna(subset=["value", "ci_low", "ci_high"])
        scored = scored[(scored["direction"] != "match real") | scored["floor"].notna()]
        main = scored["fingerprint"].value_counts().index[:1].tolist()
        intervals = {i: badness_of(row) for i, row in scored[scored["fingerprint"].isin(main)].iterrows()}
        for index, row in group.iterrows():
            if index not in intervals:
                table.loc[index, "note"] = _why_unranked(row, main, fingerprints)
                continue
            low, high = intervals[index]
            others = [interval for other, interval in intervals.items() if other != index]
            table.loc[index, "rank"] = 1 + sum(h < low for _, h in others)
            table.loc[index, "tie"] = any(a <= high and h >= low for a, h in others)
        table.loc[failed.index, "rank"] = 1 + len(intervals)
        table.loc[failed.index, "tie"] = len(failed) > 1
        table.loc[failed.index, "note"] = failed["cohort"].map(failures)
    return table


def badness_of(row: pd.Series) -> tuple[float, float]:
    """Return the interval of how bad a score in the form of metrics.csv is, see `core.metrics.badness`."""
    return badness(float(row["ci_low"]), float(row["ci_high"]), row["direction"], row["floor"])


def _why_unranked(row: pd.Series, main: Sequence[str], fingerprints: Mapping[str, dict[str, Any]]) -> str:
    if not np.isfinite(row["value"]):
        return "not computed"
    if not (np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"])):
        return "no interval: too few volumes"
    if row["direction"] == "match real" and not np.isfinite(row["floor"]):
        return "no real value to match"
    own, other = fingerprints.get(row["fingerprint"], {}), fingerprints.get(main[0], {})
    items = [f"{key} {own.get(key)} instead of {other.get(key)}" for key in own if own.get(key) != other.get(key)]
    return "computed differently: " + ("; ".join(items) or "no record of how")
