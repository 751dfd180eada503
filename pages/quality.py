"""Quality: segmentation quality control, the gate, and the volumes that fail it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import plots
from core.quality import QC_CAVEAT, failing_cases
from core.study import Study
from core.workflows import Results
from core.workflows.results import qc_of
from pages import shared

FAILING_COLUMNS = {
    "cohort": shared.text("Cohort", width=shared.COHORT_WIDTH),
    "subject": shared.text("Case", width="medium"),
    "failed": shared.text("Scores below the threshold", width="large"),
    "lowest": shared.number("Lowest score", "0 to 1; higher is better.", "%.3f"),
}


def show_gate(study: Study, results: Results) -> None:
    """Show the verdict of the gate in the layout of the paper's Table 2."""
    names = shared.labels_of(study.cohorts)
    table = results.quality.assign(cohort=results.quality["cohort"].map(names).fillna(results.quality["cohort"]))
    failed = table.loc[~table["reliable"], "cohort"].tolist()
    allowed = f"{study.settings.qc_fail_rate:.0%}"
    if failed:
        st.warning(
            f"Too unreliable for an anatomical assessment, over {allowed} of the volumes fail: {', '.join(failed)}."
        )
    else:
        st.success(f"All cohorts pass the gate: at most {allowed} of their volumes fail.")
    shared.show_table(table, shared.quality_columns(), row_height=shared.TALL_ROW)
    st.caption(
        "A volume fails when any of its eight scores is below the threshold. The threshold is one for all scores, "
        + (
            "set in the study file."
            if study.settings.qc_threshold is not None
            else f"set so that at most {allowed} of the real volumes fail."
        )
    )


def show_strips(study: Study, results: Results) -> None:
    """Show every score of every volume; clicking a point leads to its brain."""
    names = shared.labels_of(study.cohorts)
    tables = {names[cohort.name]: qc_of(results, cohort.name) for cohort in study.cohorts}
    threshold = results.quality["threshold"].dropna().head(1).tolist()
    figure = plots.qc_scatter(tables, threshold[0] if threshold else None, colours=shared.colours_of(study))
    event = shared.show_figure(figure, on_select="rerun", selection_mode="points", key="qc_strips")
    st.caption("Each point is one volume. Click a point to choose its brain. The dashed line is the threshold.")
    if point := shared.selected_point(event):
        cohort = next(name for name, label in names.items() if label == point[1])
        shared.viewer_button(cohort, str(point[0]), "open_point")


def show_failing(study: Study, results: Results) -> None:
    """List the volumes that fail, worst first; choosing a row leads to its brain."""
    threshold = results.quality["threshold"].dropna().head(1).tolist()
    known = [cohort for cohort in study.cohorts if len(qc_of(results, cohort.name))]
    parts = [
        failing_cases(qc_of(results, cohort.name), threshold[0]).assign(name=cohort.name, cohort=cohort.label)
        for cohort in known
        if threshold
    ]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty:
        st.info("No volume fails.")
        return
    table = table.sort_values("lowest", kind="stable", ignore_index=True)
    event = shared.show_table(
        table[list(FAILING_COLUMNS)], FAILING_COLUMNS, on_select="rerun", selection_mode="single-row", key="failing"
    )
    st.download_button("Download the list", table.to_csv(index=False), "failing_cases.csv", "text/csv")
    if rows := event["selection"]["rows"]:
        shared.viewer_button(table["name"][rows[0]], table["subject"][rows[0]], "open_failing")


study, results = shared.current_study("Quality", "Can the synthetic brains be segmented as reliably as real ones?")
if results.qc.empty:
    shared.still_computing("Segmentation quality")
else:
    if results.quality.empty:
        shared.still_computing("The quality gate")
    else:
        st.subheader("The gate")
        show_gate(study, results)
    st.subheader("Scores of every volume")
    show_strips(study, results)
    if len(results.quality):
        st.subheader("Volumes that fail")
        show_failing(study, results)
st.caption(f"{shared.engine_note(study)} What the gate cannot see: {QC_CAVEAT}")
shared.show_gaps(study, results, "segmentation", "anatomy", "imported")
