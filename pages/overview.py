"""Overview: the answer for every cohort, the brains behind it, and what is still missing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from core.encoders import label_named
from core.errors import InputError
from core.metrics import METRICS
from core.study import Cohort, Study
from core.workflows import Results
from core.workflows.judging import cases_behind, copies_behind, typical_case, worst_region
from core.workflows.verdicts import ANSWERS, UNJUDGED, Verdict, best_first, column_help, is_control
from core.workflows.viewing import PLANES, Sheet
from pages import look, reads, selection, shared, sheet_parts, similarity_parts

SAMPLES = 6  # brains of each cohort
BRAIN = 120  # pixels: so many stand in a row at 1280
ORDER_COHORT, ORDER_WIDTH = 186, 188  # pixels: three encoders fit beside the cohorts
MAIN_METRICS = ("fid", "mmd2-rbf", "ms-ssim")
STATES = {
    "good": (":material/check_circle:", "green"),
    "bad": (":material/cancel:", "red"),
    "open": (":material/help:", "orange"),
}
PAGES = {  # of each reason, and the part of it that the reason is about
    "gate": ("quality", "volumes-that-fail"),
    "gate passed": ("quality", "scores-of-every-volume"),
    "anatomy": ("anatomy", "volumes-behind-the-effect-size"),
    "similarity": ("similarity", "similarity_focus"),
    "diversity": ("similarity", "similarity_focus"),
    "copies": ("similarity", similarity_parts.TABS),
}
METRIC_OF = {"similarity": "fid", "diversity": "ms-ssim"}  # to show on the page
REASONS_OF = "reasons_of"  # in the address too
LAST, START, LEFT = "reasons_of_last", "reasons_of_start", "reasons_of_left"  # outlive the page
COLUMNS = {  # of the verdicts
    "gate": "Gate, pass",
    "anatomy": "Anatomy, differ",
    "similarity": "Similarity, place",
    "diversity": "Diversity, MS-SSIM",
    "copies": "Copies, nearer",
}
VERDICTS_HELP = (
    "Tick: good. Cross: bad. Question mark: not known; with brackets, not relied upon. Gate: volumes that pass. "
    "Regions: how many differ in volume from the real ones. Place: by FID, under all encoders, 1 is best. MS-SSIM: how "
    "alike two brains are; best at the real value. Nearer: share of volumes nearer to a training person than to a "
    "held-out one, by the measure that finds most; 50 % is chance. Intervals and N: below."
)
TYPICAL = "A typical brain: its lowest QC score is the median of the cohort."
BEHIND = "Goes to the numbers on the page {page} and selects the brains behind them: open them from the sidebar."
HOW_TO_READ = (
    "Place: value [95 % interval]. 1 is best. Tie: the interval overlaps that of another cohort. Last: the score lacks "
    "volumes that failed the image checks, so it flatters, and the cohort comes behind all others. *As 1*: a control, "
    "brains with one known defect and no generator, that scores like that place. Floor, and its range where N differs: "
    f"{look.FLOOR_HELP}"
)


def show_answer(study: Study, results: Results) -> None:
    """Show the verdict on each synthetic cohort, and what one of them rests on."""
    if not study.synthetic:
        st.info("The study has no synthetic cohort yet. Add one on the page *Studies*.")
        return
    path = str(study.path)
    changed = bool(results.provenance.get("complete") and shared.outdated(study))
    if changed:
        st.info("The study was changed since it was evaluated: here is what was known then.", icon=":material/update:")
        if st.button("What is to be computed", key="outdated", icon=":material/folder_open:"):
            shared.go_to("studies")
    judged = best_first(reads.cached_verdicts(path, reads.results_stamp(path), reads.study_version(path)))
    show_verdicts(study, judged, changed=changed)
    show_reasons(study, results, judged)


def show_verdicts(study: Study, judged: Sequence[Verdict], *, changed: bool) -> None:
    """Show all answers in one table, with the state and the main number of each reason.

    A cohort without an answer in a study that was ``changed`` since waits for the next evaluation.
    """
    rows = [["Cohort and verdict", *COLUMNS.values()]]
    for verdict in judged:
        cohort = study.cohort(verdict.cohort)
        states = [f":{STATES[reason.state][1]}[{STATES[reason.state][0]}]" for reason in verdict.reasons]
        cells = [f"{state} {reason.brief}" for state, reason in zip(states, verdict.reasons, strict=True)]
        answer = f"{square_of(study, verdict)} **{escape(verdict.label)}:** {escape(verdict.answer)}"
        waits = "" if cohort.cases else " ".join(["", *shared.notes_of(cohort, str(study.path))])
        if changed and cohort.cases and verdict.answer == UNJUDGED:
            waits = " (new or renamed since the study was evaluated: evaluate it again)"
        rows.append([f"{answer}{escape(waits)}", *(cell.replace(" ", "\u00a0") for cell in cells)])
    look.show_words(rows, len(COLUMNS))
    st.caption(
        "Best first: volumes that pass, regions that differ, place; then what is nearly one brain or may hold copies; "
        "controls last. A cross beside a good place: farther from the real brains than these are from each other. "
        "What the columns say",
        help=VERDICTS_HELP,
    )


@st.fragment
def show_reasons(study: Study, results: Results, judged: Sequence[Verdict]) -> None:
    """Show what the verdict on one cohort rests on: a typical brain, the main finding, and the reasons."""
    labels = {verdict.cohort: look.short_label(study.cohort(verdict.cohort)) for verdict in judged}
    linked = st.query_params.get(REASONS_OF, "") if REASONS_OF not in st.session_state else ""
    if st.session_state.get(REASONS_OF) not in labels:  # chosen in another study
        st.session_state.pop(REASONS_OF, None)
    chosen = start if (start := first_reasons_of()) in labels else judged[0].cohort
    if len(labels) > 1:
        chosen = str(
            st.segmented_control(
                "Reasons of", list(labels), default=chosen, key=REASONS_OF, required=True, bind="query-params",
                format_func=labels.__getitem__,
            )
        )  # fmt: skip
    st.session_state[LAST] = chosen
    if linked and linked not in labels.values():
        st.warning(
            f"The link asks for a cohort that this study does not judge: `{linked}`.", icon=":material/link_off:"
        )
    cohort = study.cohort(chosen)
    with st.container(border=True):
        brain, words = st.columns([1, 6])
        with brain:
            show_typical(study, results, cohort)
        with words:
            show_verdict(study, results, next(verdict for verdict in judged if verdict.cohort == chosen))
            for note in shared.notes_of(cohort, str(study.path)):
                st.caption(note)


def first_reasons_of() -> str | None:
    """Return whose reasons are shown when the address names nobody: those shown when a link last led elsewhere.

    A link to another page first takes the choice out of this page's address, and Back comes to that.
    """
    left = st.session_state.get(shared.LANDING)
    if left and left != st.session_state.get(LEFT):
        st.session_state[LEFT], st.session_state[START] = left, st.session_state.get(LAST)
    start: str | None = st.session_state.get(START)
    return start


def square_of(study: Study, verdict: Verdict) -> str:
    """Return the colour of a cohort as HTML; what comes from the study file is escaped beside it."""
    return f"<span style='color:{look.colours_of(study)[verdict.label]}'>■</span>"


def show_verdict(study: Study, results: Results, verdict: Verdict) -> None:
    """Show the answer, the main finding, and the five reasons, each of which leads to what it rests on."""
    answer = f"{square_of(study, verdict)} **{escape(verdict.label)}: {escape(verdict.answer)}**"
    st.markdown(answer, unsafe_allow_html=True, help=ANSWERS)
    st.markdown(verdict.finding)
    rest = "; ".join(reason.short for reason in verdict.reasons if reason.topic in ("similarity", "diversity"))
    st.caption(f"{rest[:1].upper()}{rest[1:]}.")
    for column, reason in zip(st.columns(len(verdict.reasons)), verdict.reasons, strict=True):
        icon, colour = STATES[reason.state]
        page, spot = PAGES["gate passed" if (reason.topic, reason.state) == ("gate", "good") else reason.topic]
        details = reason.text.replace("\n", "\n\n")
        about = f"{details}\n\n*{reason.meaning}*\n\n{BEHIND.format(page=page.capitalize())}"
        label, key = f":{colour}[{icon}] **{reason.topic.capitalize()}** →", f"{reason.topic}_{verdict.cohort}"
        topic = column.container(gap=None)
        if topic.button(label, key=key, type="tertiary", help=about):
            selection.lead(cases_behind(results, verdict.cohort, reason.topic))
            st.session_state[shared.ASKED] = (verdict.cohort, worst_region(results, verdict.cohort))
            if reason.topic == "copies":
                st.session_state[similarity_parts.TAB] = similarity_parts.COPY_TAB
                space = copies_behind(results, verdict.cohort)["space"].head(1).tolist()
                for encoder in study.settings.encoders if space else ():  # whichever is chosen there
                    st.session_state[f"{similarity_parts.SPACE}{encoder}"] = space[0]
            metric = METRIC_OF.get(reason.topic, st.session_state.get("metric", "")) if page == "similarity" else ""
            if metric:
                st.session_state["metric"] = metric
            # the first one is shown unasked; what the page itself would write into its address is one more step back
            other = {"metric": similarity_parts.metric_label(metric)} if metric not in ("", next(iter(METRICS))) else {}
            shared.go_to(page, spot, other)
        topic.markdown(f":small[{reason.headline}]")


def show_typical(study: Study, results: Results, cohort: Cohort) -> None:
    """Show the middle slice of a cohort's typical brain, with the way to the viewer."""
    if not (case := typical_of(study, results, cohort)):
        return
    try:
        version = reads.case_version(study, results, cohort.name, case)
        planes = reads.cached_planes(str(study.path), cohort.name, case, version)
    except InputError as error:
        st.warning(f"{case}: {error.what}")
        return
    for plane in ("axial", "sagittal"):  # a generator of slices may fail across them
        caption = "typical" if plane == "sagittal" else None
        st.image(planes[plane], caption, width="stretch", output_format="PNG", alt=f"{plane} slice of {case}")
    about = f"{TYPICAL} Open {case} in the viewer."
    if st.button("View", key=f"typical_{cohort.name}", help=about, width="stretch"):
        shared.open_viewer(cohort.name, case)


def typical_of(study: Study, results: Results, cohort: Cohort) -> str:
    """Return a cohort's typical case, the first one while no score is known; "" without cases."""
    name = cohort.name
    found = reads.kept(f"typical {name}", reads.basis(study), lambda: typical_case(results, name))
    return found or next((case.case_id for case in cohort.cases), "")


def show_order(study: Study, results: Results) -> None:
    """Show the place of each cohort by one of the main metrics, corrected, under every encoder."""
    path = str(study.path)
    ranked = reads.cached_ranks(path, reads.results_stamp(path))
    ranked = ranked[(ranked["variant"] == "corrected") & ranked["metric"].isin(MAIN_METRICS)]
    if ranked.empty:
        shared.still_computing("The order of the cohorts")
        return
    known = list(dict.fromkeys(ranked["metric"]))
    names = {name: METRICS[name].label for name in known}
    metric = str(st.segmented_control("Score", known, default=known[0], required=True, format_func=names.__getitem__))
    st.caption(column_help(metric))
    scores = ranked[ranked["metric"] == metric]
    table, columns = reads.kept("order", (*reads.basis(study), metric), lambda: order_table(study, scores))
    pairs = [(c.name, typical_of(study, results, c)) for c in study.synthetic]
    selection.show_cases(table, columns, pairs, "order", alt=f"Place of each cohort by {names[metric]}")
    st.caption(f"{HOW_TO_READ} Tick a row to open the cohort's typical brain. All metrics: page *Similarity*.")


def order_table(study: Study, scores: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the places by one score under every encoder, and what the columns are."""
    rows = [*(c.name for c in study.synthetic), "Floor", "N real / synthetic"]
    labels = {c.name: look.short_label(c) for c in study.synthetic}
    controls = {c.name for c in study.synthetic if is_control(c)}
    table = pd.DataFrame({"cohort": [labels.get(row, row) for row in rows]})
    columns = {"cohort": look.text("Cohort", width=ORDER_COHORT)}
    for encoder, group in scores.groupby("encoder", sort=False):
        cells = {row["cohort"]: place(row, row["cohort"] in controls) for _, row in group.iterrows()}
        title = label_named(str(encoder)) or "volumes themselves"
        floors = sorted({look.brief(floor) for floor in group["floor"].dropna()})
        cells["Floor"] = " – ".join(floors[:: max(1, len(floors) - 1)]) or "–"
        sizes = zip(group["n_real"], group["n_synthetic"], strict=True)
        cells["N real / synthetic"] = ", ".join(sorted({f"{real:.0f} / {synthetic:.0f}" for real, synthetic in sizes}))
        table[title] = pd.Series(rows).map(cells).fillna("still computing")
        columns[title] = look.text(title, HOW_TO_READ, max(ORDER_WIDTH, 16 + round(6.5 * len(title))))
    return table, columns


def place(row: pd.Series, control: bool) -> str:
    """Return a score's place, value and interval, or why there is no place."""
    if pd.isna(row["value"]):
        return "not computed"
    value = look.brief(row["value"])
    if pd.isna(row["rank"]):
        return f"no place: {value}"
    words = [word for word, holds in (("last", row["note"]), ("tie", row["tie"])) if holds]
    marks = f" ({', '.join(words)})" if words else ""
    interval = f" [{look.bounds(row['ci_low'], row['ci_high'])}]" if pd.notna(row["ci_low"]) else ""
    return f"{'as ' if control else ''}{row['rank']:.0f}{marks}: {value}{interval}"


@st.fragment
def show_brains(study: Study, results: Results) -> None:
    """Show middle slices of a few cases of every cohort; a click opens one."""
    plane = str(st.segmented_control("Plane", PLANES, default="axial", required=True, key="overview_plane"))
    pairs = [(cohort.name, case.case_id) for cohort in study.cohorts for case in cohort.cases[:SAMPLES]]
    sheet = sheet_parts.sheet_of(study, pairs, plane)
    cells = cells_of(study, results, sheet, pairs)
    groups = [f"{cohort.label} · {len(cohort.cases)} volumes" for cohort in study.cohorts]
    clicked = sheet_parts.show_sheet(sheet, cells, plane, False, size=BRAIN, groups=groups)
    if brain := clicked.get("open"):
        shared.open_viewer(brain["cohort"], brain["case"])
    selection.follow()
    if lacking := [cohort.label for cohort in study.cohorts if not cohort.cases]:
        st.caption(f"No volume yet: {', '.join(lacking)}.")
    sheet_parts.show_missing(sheet)
    st.caption(
        "Middle slices at one scale, of the first volumes by name. The patient's left is on the left; sagittal slices "
        "face right. Click a brain to open it; with Ctrl, ⌘ or Shift, to select it. A red edge: the QC gate rejects it."
    )


def cells_of(study: Study, results: Results, sheet: Sheet, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the brains of a sheet, by cohort."""
    verdicts, chosen = sheet_parts.verdicts_of(study, results, pairs), set(selection.selected())
    places, labels = [cohort.name for cohort in study.cohorts], look.labels_of(study.cohorts)
    return [
        sheet_parts.cell(pair, sheet, labels[pair[0]], verdict, pair in chosen) | {"group": places.index(pair[0])}
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if pair in sheet.places
    ]


def show_counts(study: Study, results: Results) -> None:
    """Show how many cases were found, used and rejected."""
    counts = reads.counts_of(study, results)
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
        "cohort": look.text("Cohort", width="large"),
        "found": look.number("Found", "Files found by the study.", "%d"),
        "used": look.number("Used", "Volumes that passed all checks.", "%d"),
        "rejected": look.number("Rejected", "See the page Studies for each case and the reason.", "%d"),
        "waiting": look.number("Not checked yet", fmt="%d"),
    }
    look.show_table(table, columns)
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
