"""Anatomy: regional volumes of synthetic against real brains, region by region."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.anatomy import MARGIN, MIN_CASES, in_words
from core.study import Cohort, Study
from core.tables import csv_text
from core.workflows import Results
from core.workflows.judging import gate_marks, gate_notes
from core.workflows.regional import at_gate, judged, most_extreme, noise_note, summary
from core.workflows.results import regional_tables
from pages import access, look, paper_parts, reads, selection, shared
from pages import anatomy_parts as parts

SIGN = (
    "Cohen's d compares the mean volume of a region after removing what total intracranial volume explains. "
    "**Positive d: the real region is larger.** Negative d: the synthetic region is larger. 0 is best; |d| above 0.8 "
    "is a large effect."
)
BLIND_SPOT = (
    "d compares means only: a generator that makes the same average brain every time scores 0. So look at the spread "
    "ratio too: log(SD synthetic / SD real), 0 is best, below 0 the generator lacks variety."
)
SORTS = ("largest |d| first", "as in the paper", "smallest |d| first", "by name")
EXTREMES = 3
MARGIN_HELP = "A region is equivalent when the 90 % interval of d lies within ± this margin (two one-sided tests, 5 %)."
GATES = ("all volumes", "only volumes that pass the gate")
HEAD = (
    "Over all volumes",
    "Regions that differ",
    f"Equivalent (±{MARGIN:g})",
    "Undetermined",
    "Largest effect: Cohen's d [95 %]",
)
ANCHOR = "volumes-behind-the-effect-size"  # of the heading
CLICKED = "anatomy_clicked"  # in this run, what leads to another part of the page
HEATMAP = "effects_heatmap"  # key
REGION = "anatomy_chosen_region"  # begins the keys of the choice of a region and its cohort


def show_answers(study: Study, results: Results) -> None:
    """Say of every cohort on one line what its regions show; first those that pass the gate."""
    effects, marks = results.effect_sizes, gate_marks(reads.counts_of(study, results))

    def say() -> list[tuple[str, ...]]:
        known = [cohort for cohort in study.synthetic if cohort.name in effects["cohort"].unique()]
        known.sort(key=lambda cohort: marks.get(cohort.name, ""))
        names = {c.name: f"{marks.get(c.name, '')}**{escape(look.short_label(c))}**" for c in known}
        return [HEAD, *((names[c.name], *summary(effects[effects["cohort"] == c.name])) for c in known)]

    look.show_words(reads.kept("answers of regions", reads.basis(study), say), len(HEAD) - 1)
    st.caption(" ".join(gate_notes(marks.values())))


def regional_rows(study: Study, results: Results) -> tuple[pd.DataFrame, bool]:
    """Let the user choose before or after the gate; return the rows and the choice."""
    gates = GATES if results.regional["gated"].any() else GATES[:1]
    choice = st.segmented_control("Compared", gates, default=gates[0], required=True, key="anatomy_gate")
    gated = choice == GATES[1]
    rows = reads.kept("regional", (*reads.basis(study), gated), lambda: at_gate(results.regional, gated))
    with st.container():  # also when empty: what stands below keeps its place, and is not drawn anew
        if gated:
            say_what_is_left_out(study, results)
    if rows.empty:
        st.info("These results have effect sizes alone. Evaluate the study again for all that stands beside them.")
        rows = results.effect_sizes
    return rows, gated


def say_what_is_left_out(study: Study, results: Results) -> None:
    """Name the cohorts of which too few volumes pass the gate, and say what the others' numbers are of."""
    every, left = (list(at_gate(results.regional, choice)["cohort"].unique()) for choice in (False, True))
    names = look.labels_of(study.cohorts)
    lost = ", ".join(names.get(name, name) for name in every if name not in left)
    if lost:
        st.warning(
            f"Too few volumes passed the gate to be compared, none at all or fewer than {MIN_CASES}: {lost}. Their "
            "brains cannot be segmented reliably; that is the result, and more volumes of the kind would not help."
        )
    st.caption(
        "Survivors only: a generator whose bad brains fail the gate looks better here than it is. Compare with "
        "all volumes."
    )


def choose(study: Study, results: Results, rows: pd.DataFrame, gated: bool) -> tuple[pd.DataFrame, tuple[Any, ...]]:
    """Let the user choose regions, order, margin, and leave unreliable cohorts out; return the rows and the choices."""
    cohorts = [cohort for cohort in study.synthetic if cohort.name in rows["cohort"].unique()]
    marks = gate_marks(reads.counts_of(study, results))
    failing = [cohort for cohort in cohorts if cohort.name in marks]
    first, second, third, fourth = st.columns([3, 2, 2, 2], vertical_alignment="bottom")
    group = first.segmented_control(
        "Regions", ["all", "subcortical", "cortical"], default="all", required=True, key="anatomy_chosen_group"
    )
    order = second.selectbox("Order", SORTS, key="anatomy_chosen_order")
    margin = third.slider("Equivalence margin of |d|", 0.05, 1.0, MARGIN, 0.05, key="margin", help=MARGIN_HELP)
    help_text = "Show cohorts that fail the quality gate."
    everything = fourth.toggle("Failing cohorts", value=True, help=help_text, key="anatomy_chosen_failing")
    if failing:
        st.warning(
            f"{len(failing)} of {len(cohorts)} cohorts fail the quality gate. By the published rule they get no "
            "anatomical score: read theirs with care, or leave them out."
        )
    shown = [cohort.name for cohort in cohorts if everything or cohort not in failing]

    def select() -> pd.DataFrame:
        table = rows[rows["cohort"].isin(shown)]
        table = judged(table, margin) if "tost_low" in table else table
        return _ordered(table if group == "all" else table[table["group"] == group], order)

    choices = (*reads.basis(study), gated, group, order, margin, everything)
    return reads.kept("chosen regions", choices, select), choices


def _ordered(table: pd.DataFrame, order: str) -> pd.DataFrame:
    if order == "as in the paper":
        return table
    if order == "by name":
        return table.sort_values("region", kind="stable")
    size = table["cohens_d"].abs().groupby(table["region"]).transform("max")
    return (
        table.assign(size=size).sort_values("size", ascending="smallest" in order, kind="stable").drop(columns="size")
    )


def show_effects(study: Study, results: Results, table: pd.DataFrame, choices: tuple[Any, ...]) -> str:
    """Show the heatmap beside its table; return the region chosen in the table."""
    names = {cohort.name: look.short_label(cohort) for cohort in study.synthetic}
    help_texts = {names[c.name]: f"{c.label}: Cohen's d. {look.SIGN}" for c in study.synthetic}
    marks = gate_marks(reads.counts_of(study, results))
    marked = {names[name]: mark for name, mark in marks.items() if name in names}
    labelled = table.assign(cohort=table["cohort"].map(names))
    select = {"on_select": _lead_to_volumes, "selection_mode": "single-row"}
    scale = float(results.effect_sizes["cohens_d"].abs().max())  # the same whichever regions and cohorts are shown
    event = paper_parts.show_effects(
        labelled, "effects", help_texts, choices, marked, _take_cell(names), scale=scale, **select
    )
    st.caption(
        f"The table is the paper's Table 3. Click a number in the heatmap, or choose a row of the table, to see "
        f"the volumes behind it. {BLIND_SPOT}"
    )
    lines, noise = reads.kept(
        "verdicts of regions", choices, lambda: (_verdict_lines(table, names, marks), noise_of(table))
    )
    gated, group, _, margin, everything = choices[-5:]
    if (gated, group, margin, everything) != (False, "all", MARGIN, True):  # else the page begins with the same
        st.markdown("\n".join(f"- {line}" for line in lines))
    if noise:
        st.caption(
            f"{noise} In brackets in the heatmap: within the cohort's own noise, which is said on hover; *± noise* in "
            "the table is the largest over the cohorts shown."
        )
    rows = event["selection"]["rows"]
    return str(list(dict.fromkeys(table["region"]))[rows[0]]) if rows else ""


def _lead_to_volumes() -> None:
    shared.lead_to(ANCHOR)
    st.session_state[CLICKED] = True


def _take_cell(names: Mapping[str, str]) -> Callable[[str, str], None]:
    """Return what shows the region and cohort of the cell clicked in the heatmap."""
    cohorts = {label: name for name, label in names.items()}

    def take(region: str, label: str) -> None:
        st.session_state[shared.ASKED] = (cohorts[label], region)
        st.session_state["effects_table"] = {"selection": {"rows": []}}  # its row would go before
        _lead_to_volumes()

    return take


def noise_of(table: pd.DataFrame) -> str:
    """Say how the differences stand to the engine's noise; "" where that was not asked."""
    return noise_note(table) if "noise_floor" in table else ""


def _verdict_lines(table: pd.DataFrame, names: Mapping[str, str], marks: Mapping[str, str]) -> list[str]:
    lines = []
    for name, verdicts in table.groupby("cohort", sort=False)["verdict"]:
        counts = verdicts.value_counts()
        words = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("equivalent", "different", "undetermined"))
        lines.append(f"{marks.get(str(name), '')}{names[str(name)]}: {words}")
    return lines


def show_region(study: Study, results: Results, table: pd.DataFrame, picked: str) -> None:
    """Show one region's volumes, real against one cohort, and its extreme cases."""
    regions = list(dict.fromkeys(table.dropna(subset=["cohens_d"])["region"]))
    if not regions:
        return
    cohorts = {cohort.name: cohort for cohort in study.synthetic if cohort.name in table["cohort"].unique()}
    heading, back = st.columns([5, 1], vertical_alignment="bottom")
    heading.subheader("Volumes behind the effect size")
    help_text = "To all regions and cohorts."
    if back.button("Heatmap", icon=":material/arrow_upward:", type="tertiary", help=help_text, key="anatomy_back"):
        shared.lead_to(HEATMAP)
        st.rerun()
    first, second, third = st.columns([2, 2, 2], vertical_alignment="bottom")
    largest = table.dropna(subset=["cohens_d"]).sort_values("cohens_d", key=abs, ascending=False, kind="stable")
    who, where = st.session_state.get(shared.ASKED) or ("", "")
    _, turn = st.session_state.get(shared.LANDING, ("", ""))  # asked again, the fields start anew
    start = next(name for name in (picked, where, largest["region"].iloc[0]) if name in regions)
    region = _choice(first, "Region", regions, start, f"{REGION}_{picked or who}{turn}", in_words)
    strongest = who if who in cohorts and not picked else largest.loc[largest["region"] == region, "cohort"].iloc[0]
    label = {name: cohort.label for name, cohort in cohorts.items()}.__getitem__
    name = _choice(second, "Cohort", list(cohorts), strongest, f"{REGION}_cohort_{region}_{who}{turn}", label)
    help_text = "As in the effect size; off: as measured."
    adjusted = third.toggle("Adjusted for head size", value=True, help=help_text, key="anatomy_chosen_adjusted")
    names = look.labels_of(study.cohorts)
    row = table[(table["region"] == region) & (table["cohort"] == name)].iloc[0]
    st.markdown(
        f"**{in_words(region)}, {cohorts[name].label}**: d = {row['cohens_d']:+.2f} [95 % {row['ci_low']:+.2f} to "
        f"{row['ci_high']:+.2f}], log spread ratio {row['spread_ratio']:+.2f}, q = {row['q_value']:.2g}: "
        f"**{row['verdict']}**. N = {row['n_real']:.0f} real, {row['n_synthetic']:.0f} synthetic." + _beside(row)
    )

    def draw(keep: Collection[selection.Pair]) -> Any:
        make = partial(regional_tables, results, [study.real.name, name], adjusted=adjusted)
        tables = reads.kept("volumes of regions", (*reads.basis(study), name, adjusted), make)
        labelled = {names[cohort]: volumes for cohort, volumes in tables.items()}
        return plots.region_distribution(labelled, region, colours=look.colours_of(study), keep=keep)

    selection.show_chart(study, draw, "region_volumes", (*reads.basis(study), region, name, adjusted))
    st.caption(f"Each point is one volume, left and right averaged. {selection.HOW}")
    make = partial(most_extreme, results.percentiles, name, region, EXTREMES)
    show_extremes(cohorts[name], reads.kept("extremes", (*reads.basis(study), name, region), make))


def _choice(place: Any, label: str, options: list[str], start: str, key: str, words: Callable[[str], str]) -> str:
    """Let the user choose one; a choice made before that is no longer there gives way to the first proposal."""
    if st.session_state.get(key, start) not in options:
        del st.session_state[key]
    return str(place.selectbox(label, options, options.index(start), key=key, format_func=words))


def _beside(row: pd.Series) -> str:
    """Say what stands beside an effect size, where it was computed."""
    if "wasserstein" not in row:
        return ""
    end = "less" if row["relative_difference"] > 0 else "more"
    noise = f"{row['noise_floor']:.2f}" if pd.notna(row["noise_floor"]) else "not known"
    return (
        f" Wasserstein {row['wasserstein']:.2f} SD (floor {row['wasserstein_floor']:.2f}), Hedges' g "
        f"{row['hedges_g']:+.2f}, {abs(row['relative_difference']):.1%} {end} than real; "
        f"the engine's own noise in d: {noise}."
    )


def show_extremes(cohort: Cohort, rows: pd.DataFrame) -> None:
    """Offer the brains of a cohort that are furthest from the real ones in a region."""
    if rows.empty:
        return
    st.markdown(f"The most extreme brains of {cohort.label}, by percentile at equal head size")
    for index, (column, row) in enumerate(zip(st.columns(len(rows)), rows.itertuples(), strict=True)):
        with column:
            where = f"z = {row.z:+.1f}, percentile {row.percentile:.0f} of the real people"
            st.caption(f"{row.volume:,.0f} mm³ as measured, {where}")
            if st.button(str(row.subject), key=f"extreme_{index}", help="Open in the viewer", width="stretch"):
                shared.open_viewer(cohort.name, str(row.subject))


def show_chosen(study: Study, results: Results, rows: pd.DataFrame, gated: bool) -> None:
    """Show the effect sizes of the regions and cohorts chosen, and the volumes behind one."""
    if st.session_state.pop(CLICKED, False):
        st.rerun()  # what brings the volumes into view stands outside this fragment
    chosen, choices = choose(study, results, rows, gated)
    if chosen.empty:
        st.info("No cohort to show: all fail the quality gate. Switch them on above.")
        return
    show_region(study, results, chosen, show_effects(study, results, chosen, choices))
    with st.expander("All numbers: intervals, tests, verdicts"):
        full = chosen.assign(cohort=chosen["cohort"].map(look.labels_of(study.cohorts)))
        look.show_table(full, paper_parts.effect_columns())
        access.download("Download", lambda: csv_text(full), "regional.csv", "text/csv")


@st.fragment
def show_tabs(study: Study, results: Results) -> None:
    """Show what can be said about the regions; beside each tab, how the keys of its choices begin."""
    rows, gated = regional_rows(study, results)
    look.show_tabs(
        {
            "Effect sizes": (
                lambda: show_chosen(study, results, rows, gated),
                ("anatomy_chosen", "margin", "effects_table", "effects_numbers"),
            ),
            "On the atlas": (lambda: parts.show_atlas(study, rows, gated), ("atlas_",)),
            "Correlation": (lambda: parts.show_correlation(study, results, gated), ("correlation_cohort",)),
            "Asymmetry": (
                lambda: parts.show_asymmetry(study, results, gated),
                ("asymmetry_cohort", "asymmetry_region"),
            ),
            "Age and sex": (lambda: parts.show_slopes(study, results, gated), ("slopes_cohort", "slopes_term")),
            "Exclusion list": (lambda: parts.show_exclusions(study, rows, gated), ("exclusion_bound",)),
            "The paper's Table 3": (lambda: paper_parts.show_table_3("anatomy_paper"), ()),
        },
        "anatomy_tab",
    )


study, results = shared.current_study("Anatomy", "Do the regions of synthetic brains have the volumes of real ones?")
if results.effect_sizes.empty:
    shared.still_computing("Regional volumes")
    with st.expander("The paper's Table 3, in the same form"):
        paper_parts.show_table_3("anatomy_paper")
else:
    show_answers(study, results)
    st.markdown(SIGN)
    show_tabs(study, results)
st.caption(shared.engine_note(study))
shared.show_gaps(study, results, "segmentation", "anatomy", "imported", "regional", "age and sex")
