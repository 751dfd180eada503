"""Overview: the answer for every cohort, the brains behind it, and what is still missing."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from core.errors import InputError
from core.study import Cohort, Study
from core.workflows import Results
from core.workflows.results import cohort_verdicts
from core.workflows.verdicts import column_help
from core.workflows.viewing import PLANES
from pages import shared

SAMPLES = 6  # brains of each cohort
MAIN_METRICS = ("fid", "mmd2-rbf", "ms-ssim")
STATES = {
    "good": (":material/check_circle:", "green"),
    "bad": (":material/cancel:", "red"),
    "open": (":material/help:", "orange"),
}
ORDER_ROW = 46  # pixels: place above value
HOW_TO_READ = (
    "Place, value [95 % interval]. 1 is best. Tie: the interval overlaps that of another cohort. No place: computed "
    "from other numbers of volumes, or otherwise unlike the rest; *Similarity* says how. Floor: "
    f"{shared.FLOOR_HELP}"
)


def show_answer(study: Study, results: Results) -> None:
    """Show the verdict on each synthetic cohort, with its reasons below it."""
    if not study.synthetic:
        st.info("The study has no synthetic cohort yet. Add one on the page *Studies*.")
    colours = shared.colours_of(study)
    path = str(study.path)
    judged = shared.cached_verdicts(path, shared.results_stamp(path), shared.study_version(path))
    for cohort, verdict in zip(study.synthetic, judged, strict=True):
        with st.container(border=True):
            square = f"<span style='color:{colours[cohort.label]}'>■</span>"
            # The name and its explanation come from the study file: only the square is HTML.
            st.markdown(
                f"{square} **{escape(cohort.label)}: {escape(verdict.answer)}**: {escape(verdict.because)}.",
                unsafe_allow_html=True,
            )
            for column, reason in zip(st.columns(len(verdict.reasons)), verdict.reasons, strict=True):
                icon, colour = STATES[reason.state]
                details = reason.text.replace("\n", "\n\n")
                topic = column.container(gap=None)
                topic.markdown(
                    f":{colour}[{icon}] **{reason.topic.capitalize()}**", help=f"{details}\n\n*{reason.meaning}*"
                )
                topic.markdown(f":small[{reason.headline}]")
            for note in shared.notes_of(cohort, str(study.path)):
                st.caption(note)


def show_order(study: Study, results: Results) -> None:
    """Show the place of each cohort by the main metrics, corrected."""
    path = str(study.path)
    ranked = shared.cached_ranks(path, shared.results_stamp(path))
    ranked = ranked[(ranked["variant"] == "corrected") & ranked["metric"].isin(MAIN_METRICS)]
    if ranked.empty:
        shared.still_computing("The order of the cohorts")
        return
    table, columns = shared.kept("order", shared.basis(study), lambda: order_table(study, ranked))
    shared.show_table(table, columns, row_height=ORDER_ROW, key="order", alt="Place of each cohort by the main scores")
    st.caption(f"{HOW_TO_READ} All metrics, *as published* too: page *Similarity*.")


def order_table(study: Study, ranked: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the places by each score, and what its columns are."""
    names = shared.labels_of(study.cohorts)
    rows = [*(c.label for c in study.synthetic), "Floor", "N real / synthetic"]
    table, columns = pd.DataFrame({"cohort": rows}), {"cohort": shared.text("Cohort", width=shared.COHORT_WIDTH)}
    for (metric, encoder), group in ranked.groupby(["metric", "encoder"], sort=False):
        title = f"{metric}{' · ' + encoder if encoder else ''}"
        cells = {names.get(row["cohort"], row["cohort"]): place(row) for _, row in group.iterrows()}
        floors = group["floor"].dropna()
        cells["Floor"] = shared.brief(floors.iloc[0]) if len(floors) else "–"
        cells["N real / synthetic"] = f"{group['n_real'].iloc[0]:.0f} / {group['n_synthetic'].iloc[0]:.0f}"
        table[title] = table["cohort"].map(cells).fillna("still computing")
        arrow = shared.GOOD_END[group["direction"].iloc[0]].partition(" ")[0]
        columns[title] = shared.text(f"{title} {arrow}", f"{column_help(str(metric))} {HOW_TO_READ}", 170)
    return table, columns


def place(row: pd.Series) -> str:
    """Return a score's place, value and interval, or why there is no place."""
    if pd.isna(row["value"]):
        return "not computed"
    value = f"{shared.brief(row['value'])} [{shared.brief(row['ci_low'])} – {shared.brief(row['ci_high'])}]"
    if pd.isna(row["rank"]):
        return f"No place\n{shared.brief(row['value'])}"
    return f"Place {row['rank']:.0f}{' (tie)' if row['tie'] else ''}\n{value}"


@st.fragment
def show_brains(study: Study, results: Results) -> None:
    """Show middle slices of a few cases of every cohort."""
    plane = st.segmented_control("Plane", PLANES, default="axial", required=True, key="overview_plane")
    for cohort in study.cohorts:
        st.markdown(f"**{cohort.label}** · {len(cohort.cases)} volumes")
        show_samples(study, results, cohort, str(plane))
    st.caption("Middle slices at one scale. The patient's left is on the left; sagittal slices face right.")


def show_samples(study: Study, results: Results, cohort: Cohort, plane: str) -> None:
    """Show one row of brains, each with a way to the viewer."""
    if not cohort.cases:
        st.caption("No volume yet.")
        return
    columns = st.columns(SAMPLES)
    for column, case in zip(columns, cohort.cases, strict=False):
        with column:
            try:
                version = shared.case_version(study, results, cohort.name, case.case_id)
                planes = shared.cached_planes(str(study.path), cohort.name, case.case_id, version)
            except InputError as error:
                st.warning(f"{case.case_id}: {error.what}")
                continue
            image = planes[plane]
            st.image(image, case.case_id, width="stretch", output_format="PNG", alt=f"{plane} slice of {case.case_id}")
            if st.button("View", key=f"open_{cohort.name}_{case.case_id}", help="Open in the viewer", width="stretch"):
                shared.open_viewer(cohort.name, case.case_id)


def show_counts(study: Study, results: Results) -> None:
    """Show how many cases were found, used and rejected."""
    names = [cohort.name for cohort in study.cohorts]
    counts = shared.kept("counts", shared.basis(study), lambda: cohort_verdicts(results, names))
    table = pd.DataFrame(
        {
            "cohort": [cohort.label for cohort in study.cohorts],
            "found": [len(cohort.cases) + len(cohort.rejected) for cohort in study.cohorts],
            "used": counts["used"].to_list(),
            "rejected": counts["rejected"].to_list(),
        }
    )
    table["waiting"] = (table["found"] - table["used"] - table["rejected"]).clip(lower=0)
    columns = {
        "cohort": shared.text("Cohort", width="large"),
        "found": shared.number("Found", "Files found by the study.", "%d"),
        "used": shared.number("Used", "Volumes that passed all checks.", "%d"),
        "rejected": shared.number("Rejected", "See the page Studies for each case and the reason.", "%d"),
        "waiting": shared.number("Not checked yet", fmt="%d"),
    }
    shared.show_table(table, columns)
    shared.show_gaps(study, results)


study, results = shared.current_study("Overview", "Are the synthetic brains anatomically plausible?")
st.subheader(study.name)
show_answer(study, results)
st.subheader("Place of each cohort by similarity to the real one")
show_order(study, results)
st.subheader("The brains")
show_brains(study, results)
st.subheader("Cases")
show_counts(study, results)
