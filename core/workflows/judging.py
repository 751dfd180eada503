"""What gate, regions, images and copy check say of a cohort, and the cases that show it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core import anatomy, quality
from core.volume import NO_BRAIN
from core.workflows import regional
from core.workflows.ranking import image_failures
from core.workflows.results import Results, qc_of

SHOWN = 4  # brains behind a number
FAILS, BY_CHANCE = "✗ ", "(✗) "  # marks of a cohort that fails the quality gate
GATE_NOTES = {
    FAILS: "✗: fails the quality gate; its effect sizes are not to be relied upon.",
    BY_CHANCE: "(✗): fails the quality gate by no more than chance; read its effect sizes with care.",
}


def cohort_verdicts(results: Results, names: Sequence[str]) -> pd.DataFrame:
    """Count for each cohort what the gate and the comparison of regions say.

    Returns
    -------
    DataFrame
        One row for each of ``names``: ``gated``, ``reliable``, ``certain`` (the interval of the pass rate lies on one
        side of the gate), ``n``, ``failed_volumes``, ``failed_checks`` (those of them that the image checks refused,
        see `image_failures`), ``shapeless`` (cases that are no brain in any orientation), ``ci_low`` and ``ci_high`` of
        the pass rate, ``threshold``, ``images`` and ``unlike`` (how many images were looked at, and are unlike the real
        ones), ``compared`` (regions with an effect size), ``findings`` (the regions that differ, largest effect first),
        ``large`` (how many of them by a large effect), ``n_real`` and ``n_synthetic`` of the comparison, ``different``,
        ``equivalent``, ``undetermined``, ``spread`` (median over the regions of SD synthetic / SD real; 1 is best),
        ``copies`` (in how many spaces of the copy check the cohort is suspicious, see `suspicious_copies`), ``used``,
        ``rejected``.
    """
    rows = []
    suspicious = suspicious_copies(results)
    allowed = 1 - float(results.provenance.get("settings", {}).get("qc_fail_rate", 0.05))
    for name in names:
        gate = results.quality[results.quality["cohort"] == name].head(1)
        effects = results.effect_sizes[results.effect_sizes["cohort"] == name].dropna(subset=["cohens_d"])
        cases = results.cases[results.cases["cohort"] == name]
        status, notes = cases["status"], cases["notes"].astype(str)
        row: dict[str, Any] = {"cohort": name, "gated": len(gate) > 0, "compared": len(effects)}
        row |= {"shapeless": int(notes.str.contains(NO_BRAIN, regex=False).sum())}
        row |= {"reliable": bool(gate["reliable"].all()) and len(gate) > 0}
        row |= {column: int(gate[column].sum()) for column in ("n", "failed_volumes")}
        row |= {column: float(gate[column].sum()) for column in ("ci_low", "ci_high", "threshold")}
        row["failed_checks"] = 0 if name == quality.REAL else image_failures(results, name)[0]
        if row["failed_checks"] and row["gated"]:  # refused before they could be segmented: they fail the gate too
            row |= {column: row[column] + row["failed_checks"] for column in ("n", "failed_volumes")}
            passed = row["n"] - row["failed_volumes"]
            row["ci_low"], row["ci_high"] = quality.pass_interval(passed, row["n"])
            row["reliable"] = row["reliable"] and passed / row["n"] >= allowed
        row["certain"] = not row["ci_low"] < allowed < row["ci_high"]
        images = results.image_checks.loc[results.image_checks["cohort"] == name, "unlike"]
        row |= {"images": len(images), "unlike": int((images != "").sum())}
        found = effects[effects["verdict"] == "different"].sort_values("cohens_d", key=abs, ascending=False)
        row["findings"] = [regional.effect_words(effect) for effect in found.to_dict("records")]
        row["large"] = int((found["cohens_d"].abs() > anatomy.LARGE_EFFECT).sum())
        row |= {size: int(effects[size].max()) if len(effects) else 0 for size in ("n_real", "n_synthetic")}
        row |= {kind: int((effects["verdict"] == kind).sum()) for kind in ("different", "equivalent", "undetermined")}
        row["spread"] = float(np.exp(effects["spread_ratio"].median())) if len(effects) else np.nan
        row["copies"] = int((suspicious["cohort"] == name).sum())
        rows.append(row | {"used": int((status == "ok").sum()), "rejected": int((status == "rejected").sum())})
    return pd.DataFrame(rows).set_index("cohort") if rows else pd.DataFrame()


def gate_marks(facts: pd.DataFrame) -> dict[str, str]:
    """Return the mark of each cohort that fails the quality gate; ``facts``: `cohort_verdicts`."""
    failing = facts[(facts["gated"] & ~facts["reliable"]).astype(bool)] if len(facts) else facts
    return {str(name): FAILS if row["certain"] else BY_CHANCE for name, row in failing.iterrows()}


def gate_notes(marks: Collection[str]) -> list[str]:
    """Say what the marks that are used stand for."""
    return [note for mark, note in GATE_NOTES.items() if mark in marks]


def suspicious_copies(results: Results, level: float = 0.05) -> pd.DataFrame:
    """Return the rows of the copy check whose p, times the number of spaces a cohort is judged in, is below a level."""
    checks = results.copy_check
    spaces = checks.groupby("cohort")["space"].transform("size")
    return checks[checks["p_value"] * spaces < level]


def judge_copies(results: Results) -> pd.DataFrame:
    """Return the copy check with ``finding``: "suspicious", "unclear" or "none".

    Suspicious as in `suspicious_copies`. Unclear: the permutation test finds nothing, but the 95 % interval of the
    share lies above one half. That interval takes volumes as independent, which look-alikes are not.
    """
    checks, found = results.copy_check, suspicious_copies(results).index
    shares = zip(checks["share"], checks["n_synthetic"], strict=True)
    above = [quality.pass_interval(round(share * n), int(n))[0] > 0.5 for share, n in shares]
    finding = pd.Series(np.where(above, "unclear", "none"), checks.index, dtype=object)
    return checks.assign(finding=finding.mask(checks.index.isin(found), "suspicious"))


def by_weight(checks: pd.DataFrame) -> pd.DataFrame:
    """Sort rows of `judge_copies`: what says most of a cohort first."""
    order = checks.assign(place=checks["finding"].map({"suspicious": 0, "unclear": 1, "none": 2}))
    return order.sort_values(["place", "p_value"], kind="stable").drop(columns="place")


def copies_behind(results: Results, cohort: str) -> pd.DataFrame:
    """Return the pairs of a cohort in the space that says most of it, worst first."""
    checks = judge_copies(results)
    spaces = by_weight(checks[checks["cohort"] == cohort])["space"].tolist()
    pairs = results.copies[results.copies["cohort"] == cohort].sort_values("ratio", kind="stable")
    return pairs[pairs["space"] == spaces[0]] if spaces else pairs


def typical_case(results: Results, cohort: str) -> str:
    """Return the case whose lowest QC score, the one that decides at the gate, is the median; "" without scores."""
    lowest = qc_of(results, cohort).min(axis=1).sort_values(kind="stable")
    return str(lowest.index[(len(lowest) - 1) // 2]) if len(lowest) else ""


def cases_behind(results: Results, cohort: str, topic: str) -> list[tuple[str, str]]:
    """Return the (cohort, case) that show best what a reason of the verdict on a cohort rests on.

    Those that fail the gate, worst first; the extremes of the region that differs most; the synthetic and training
    cases nearest to each other; else typical ones.
    """
    scores = qc_of(results, cohort)
    if topic == "gate" and len(scores) and len(results.quality):
        cases = quality.failing_cases(scores, float(results.quality["threshold"].iloc[0]))["subject"].tolist()
        if cases:
            return [(cohort, str(case)) for case in cases[:SHOWN]]
    if topic == "anatomy" and (region := worst_region(results, cohort)):
        return [(cohort, str(c)) for c in regional.most_extreme(results.percentiles, cohort, region, SHOWN)["subject"]]
    if topic == "copies":
        pairs = copies_behind(results, cohort)
        if len(pairs):
            return [(cohort, str(pairs["case"].iloc[0])), ("training", str(pairs["nearest_training"].iloc[0]))]
    lowest = scores.min(axis=1)
    near = (lowest - lowest.median()).abs().sort_values(kind="stable").index[:SHOWN]
    return [(cohort, str(case)) for case in near]


def worst_region(results: Results, cohort: str) -> str:
    """Return the region with the largest effect; "" without one."""
    effects = results.effect_sizes[results.effect_sizes["cohort"] == cohort].dropna(subset=["cohens_d"])
    order = effects.sort_values("cohens_d", key=abs, ascending=False, kind="stable")
    return str(order["region"].iloc[0]) if len(order) else ""
