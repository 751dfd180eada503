"""Quality: segmentation quality control, the gate, and the volumes that fail it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.image_checks import CHECKS
from core.quality import briefly, failing_cases
from core.study import Study
from core.tables import csv_text
from core.workflows import Results
from core.workflows.ranking import image_failures
from core.workflows.regional import what_if_gate
from core.workflows.results import qc_caveats, qc_of
from pages import access, look, paper_parts, reads, selection, shared

ALL = "all cohorts"
FAILING_ANCHOR = "volumes-that-fail"  # where a link to this page leads, when there are some
FAILING_COLUMNS = {
    "cohort": look.text("Cohort", width=170),  # all columns fit beside the sidebar on a small screen
    "subject": look.text("Case", width=190),
    "failed": look.text("Scores below the threshold", width=400),
    "lowest": look.number("Lowest score", "0 to 1; higher is better.", "%.3f", 90),
}
IMAGE_COLUMNS = {
    "cohort": look.text("Cohort", width=look.COHORT_WIDTH),
    "subject": look.text("Case", width="medium"),
    "n": look.number("N", "Volumes looked at.", "%d"),
    "unlike": look.text("Unlike the real ones", "How many volumes, or in what.", "medium"),
    **{name: look.number(name.capitalize(), meaning) for name, meaning in CHECKS.items()},
}


def show_gate(study: Study, results: Results) -> None:
    """Show the verdict of the gate in the layout of the paper's Table 2."""
    labels = look.labels_of(study.cohorts)
    names = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    refused = results.quality.loc[~results.quality["reliable"], "cohort"]
    facts = reads.counts_of(study, results)
    chance = [name for name in refused if name in facts.index and not facts.loc[name, "certain"]]
    failed = [labels.get(name, name) + ("*" if name in chance else "") for name in refused]
    table = results.quality.assign(cohort=results.quality["cohort"].map(names).fillna(results.quality["cohort"]))
    allowed = f"{study.settings.qc_fail_rate:.0%}"
    if failed:
        st.warning(
            f"Too unreliable for an anatomical assessment, over {allowed} of the volumes fail: {', '.join(failed)}."
            + ("  \n\\* by no more than chance: the interval of its pass rate holds what is allowed." if chance else "")
        )
    else:
        st.success(f"All cohorts pass the gate: at most {allowed} of their volumes fail.")
    paper_parts.show_quality(table, "gate")
    counts = {cohort.label: image_failures(results, cohort.name) for cohort in study.synthetic}
    if unsegmented := ", ".join(f"{label} {bad} of {n}" for label, (bad, n) in counts.items() if bad):
        st.caption(f"Not in the table, and failing too: volumes that the image checks refused before ({unsegmented}).")
    st.caption(
        "A volume fails when any of its eight scores is below the threshold. The threshold is one for all scores, "
        + (
            "set in the study file."
            if study.settings.qc_threshold is not None
            else f"set so that at most {allowed} of the real volumes fail."
        )
    )


def choose_threshold(study: Study, results: Results) -> float:
    """Let the user move the threshold; return it. The study's own threshold is where it starts."""
    own = float(results.quality["threshold"].dropna().iloc[0])
    chosen = st.slider("Threshold", 0.0, 1.0, round(own, 3), 0.005, "%.3f", key="what_if_threshold")
    if abs(chosen - own) < 5e-4:
        st.caption(f"The study's threshold is {own:.3f}. Move it to see what another one would let through.")
        return own
    scores = {cohort.name: qc_of(results, cohort.name) for cohort in study.cohorts}
    table = what_if_gate(scores, study.real.name, chosen, study.settings.qc_fail_rate)
    names = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    table["cohort"] = table["cohort"].map(names).fillna(names[study.real.name])
    st.info(
        f"**What if** the threshold were {chosen:.3f}? The study's own, {own:.3f}, and its results stay as they are."
    )
    paper_parts.show_quality(table, "what_if_table")
    return chosen


def show_strips(study: Study, results: Results, threshold: float | None) -> None:
    """Show every score of every volume; selecting points selects their cases."""

    def draw(keep: Collection[selection.Pair]) -> Any:
        tables = {look.short_label(cohort): qc_of(results, cohort.name) for cohort in study.cohorts}
        return plots.qc_scatter(tables, threshold, colours=look.colours_of(study), keep=keep)

    selection.show_chart(study, draw, "qc_strips", (*reads.basis(study), threshold))
    st.caption(f"Each point is one volume. {selection.HOW} The dashed line is the threshold above.")


def show_failing(study: Study, results: Results, threshold: float) -> None:
    """List the volumes that fail, worst first; ticking rows selects their cases."""

    def list_failing() -> pd.DataFrame:
        scores = {cohort: qc_of(results, cohort.name) for cohort in study.cohorts}
        parts = [
            failing_cases(qc, threshold).assign(name=cohort.name, cohort=cohort.label)
            for cohort, qc in scores.items()
            if len(qc)
        ]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        return table.sort_values("lowest", kind="stable", ignore_index=True) if len(table) else table

    table = reads.kept("failing", (*reads.basis(study), threshold), list_failing)
    st.caption(f"At the threshold {threshold:.3f}, worst first. Tick rows to select their cases.")
    if table.empty:
        st.info("No volume fails.")
        return
    table = choose_cohort(study, table)
    pairs = list(zip(table["name"], table["subject"], strict=True))
    names = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    shown = table.assign(cohort=table["name"].map(names), failed=table["failed"].map(briefly))
    selection.show_cases(shown[list(FAILING_COLUMNS)], FAILING_COLUMNS, pairs, "failing")
    access.download("Download the list", lambda: csv_text(table), "failing_cases.csv", "text/csv")


def choose_cohort(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Let the user choose whose failing volumes are listed: at first those of the cohort that a link is about."""
    labels = {ALL: ALL} | {c.name: look.short_label(c) for c in study.cohorts if c.name in set(table["name"])}
    _, turn = st.session_state.get(shared.LANDING, ("", ""))
    start = who if (who := shared.asked_at(FAILING_ANCHOR)) in labels else ALL
    # Asked again by a link, the choice starts anew.
    key, words = f"failing_of_{turn}", labels.__getitem__
    if st.session_state.get(key, start) not in labels:  # another threshold: its volumes fail no longer
        del st.session_state[key]
    chosen = st.segmented_control("Of", list(labels), default=start, required=True, key=key, format_func=words)
    return table if chosen == ALL else table[table["name"] == chosen].reset_index(drop=True)


def show_image_checks(study: Study, results: Results) -> None:
    """Show what the images say beside their segmentation; ticking rows selects their cases."""
    st.subheader("The images themselves")
    names, checks = look.labels_of(study.cohorts), results.image_checks

    def find_medians() -> pd.DataFrame:
        medians = checks.groupby("cohort", sort=False)[list(CHECKS)].median()
        medians.insert(0, "unlike", checks.assign(unlike=checks["unlike"] != "").groupby("cohort")["unlike"].sum())
        medians.insert(0, "n", checks.groupby("cohort").size())
        return medians

    medians = reads.kept("medians", reads.basis(study), find_medians)
    short = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    look.show_table(medians.rename(index=short).reset_index(), IMAGE_COLUMNS)
    st.caption(
        "Medians of each cohort. A segmentation can look fine on a hazy or blurred image, so these look at the image: "
        "a volume is unlike the real ones when a value lies more than five robust deviations from the real median."
    )
    odd = checks[checks["unlike"] != ""].reset_index(drop=True)
    if odd.empty:
        return
    shown = odd.assign(cohort=odd["cohort"].map(names))
    pairs = list(zip(odd["cohort"], odd["subject"], strict=True))
    selection.show_cases(shown, IMAGE_COLUMNS, pairs, "odd_images")


study, results = shared.current_study("Quality", "Can the synthetic brains be segmented as reliably as real ones?")
st.caption(f"What the gate cannot see: {' '.join(qc_caveats(study))}")
if results.qc.empty:
    shared.still_computing("Segmentation quality")
else:
    line = None
    if results.quality.empty:
        shared.still_computing("The quality gate")
    else:
        st.subheader("The gate")
        show_gate(study, results)
    st.subheader("Scores of every volume")
    if len(results.quality):
        line = choose_threshold(study, results)
    show_strips(study, results, line)
    if line is not None:
        st.subheader("Volumes that fail")
        show_failing(study, results, line)
if len(results.image_checks):
    show_image_checks(study, results)
with st.expander("The paper's Table 2, in the same form"):
    paper_parts.show_table_2()
st.caption(shared.engine_note(study))
shared.show_gaps(study, results, "segmentation", "anatomy", "imported")
