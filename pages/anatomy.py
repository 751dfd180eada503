"""Anatomy: regional volumes of synthetic against real brains, region by region."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import plots
from core.study import Cohort, Study
from core.workflows import Results
from core.workflows.results import cohort_verdicts, regional_tables
from pages import shared

SIGN = (
    "Cohen's d compares the mean volume of a region after removing what total intracranial volume explains. "
    "**Positive d: the real region is larger** (the synthetic one is too small). Negative d: the synthetic region is "
    "too large. 0 is best; |d| above 0.8 is a large effect."
)
BLIND_SPOT = (
    "d compares means only: a generator that makes the same average brain every time scores 0. So look at the spread "
    "ratio too: log(SD synthetic / SD real), 0 is best, below 0 the generator lacks variety."
)
SORTS = ("as in the paper", "largest |d| first", "smallest |d| first", "by name")
EXTREMES = 3


def choose(study: Study, results: Results) -> pd.DataFrame:
    """Let the user choose cohorts, regions and order; unreliable cohorts are left out at first."""
    computed = results.effect_sizes["cohort"].unique()
    cohorts = [cohort for cohort in study.synthetic if cohort.name in computed]
    verdicts = cohort_verdicts(results, [cohort.name for cohort in cohorts])
    unreliable = [c for c in cohorts if verdicts.loc[c.name, "gated"] and not verdicts.loc[c.name, "reliable"]]
    first, second, third = st.columns([2, 2, 2], vertical_alignment="bottom")
    group = first.segmented_control("Regions", ["all", "subcortical", "cortical"], default="all", required=True)
    order = second.selectbox("Order", SORTS)
    everything = third.toggle("Show cohorts that fail the quality gate", value=True)
    if unreliable:
        names = ", ".join(cohort.label for cohort in unreliable)
        st.warning(
            f"Failing the quality gate: {names}. By the published rule they get no anatomical score: "
            "read theirs with care."
        )
    shown = [cohort.name for cohort in cohorts if everything or cohort not in unreliable]
    table = results.effect_sizes[results.effect_sizes["cohort"].isin(shown)]
    return _ordered(table if group == "all" else table[table["group"] == group], order)


def _ordered(table: pd.DataFrame, order: str) -> pd.DataFrame:
    if order == "as in the paper":
        return table
    if order == "by name":
        return table.sort_values("region", kind="stable")
    size = table["cohens_d"].abs().groupby(table["region"]).transform("max")
    return (
        table.assign(size=size).sort_values("size", ascending="smallest" in order, kind="stable").drop(columns="size")
    )


def show_effects(study: Study, table: pd.DataFrame) -> str:
    """Show the heatmap beside its table; return the region chosen in the table."""
    names = {cohort.name: shared.short_label(cohort) for cohort in study.synthetic}
    help_texts = {
        names[c.name]: f"{c.label}: Cohen's d. 0 is best; positive: the real region is larger." for c in study.synthetic
    }
    labelled = table.assign(cohort=table["cohort"].map(names))
    event = shared.show_effects(labelled, "effects", help_texts, on_select="rerun", selection_mode="single-row")
    st.caption("Right: the layout of the paper's Table 3. Choose a row to see the volumes behind it. " + BLIND_SPOT)
    rows = event["selection"]["rows"]
    return str(list(dict.fromkeys(table["region"]))[rows[0]]) if rows else ""


def show_region(study: Study, results: Results, table: pd.DataFrame, picked: str) -> None:
    """Show one region's volumes, real against one cohort, and its extreme cases."""
    regions = list(dict.fromkeys(table.dropna(subset=["cohens_d"])["region"]))
    if not regions:
        return
    cohorts = {cohort.name: cohort for cohort in study.synthetic if cohort.name in table["cohort"].unique()}
    st.subheader("Volumes behind the effect size")
    first, second, third = st.columns([2, 2, 2], vertical_alignment="bottom")
    largest = table.dropna(subset=["cohens_d"]).sort_values("cohens_d", key=abs, ascending=False, kind="stable")
    start = picked if picked in regions else largest["region"].iloc[0]
    region = first.selectbox("Region", regions, regions.index(start))
    strongest = largest.loc[largest["region"] == region, "cohort"].iloc[0]
    options = list(cohorts)
    name = second.selectbox(
        "Cohort", options, options.index(strongest), format_func=lambda n: cohorts[n].label, key=f"cohort_of_{region}"
    )
    adjusted = third.toggle("Adjusted for head size", value=True, help="As in the effect size; off: as measured.")
    tables = regional_tables(results, [study.real.name, name], adjusted=adjusted)
    names = shared.labels_of(study.cohorts)
    row = table[(table["region"] == region) & (table["cohort"] == name)].iloc[0]
    st.markdown(
        f"**{region}, {cohorts[name].label}**: d = {row['cohens_d']:+.2f} [95 % {row['ci_low']:+.2f} to "
        f"{row['ci_high']:+.2f}], log spread ratio {row['spread_ratio']:+.2f}, q = {row['q_value']:.2g}: "
        f"**{row['verdict']}**. N = {row['n_real']:.0f} real, {row['n_synthetic']:.0f} synthetic."
    )
    figure = plots.region_distribution(
        {names[cohort]: volumes for cohort, volumes in tables.items()}, region, colours=shared.colours_of(study)
    )
    event = shared.show_figure(figure, on_select="rerun", selection_mode="points", key="region_volumes")
    st.caption("Each point is one volume, left and right averaged. Click a point to choose its brain.")
    if point := shared.selected_point(event):
        cohort = next(key for key, label in names.items() if label == point[1])
        shared.viewer_button(cohort, str(point[0]), "open_volume")
    show_extremes(cohorts[name], tables[name][region])


def show_extremes(cohort: Cohort, volumes: pd.Series) -> None:
    """Offer the smallest and largest volumes of a region for a look."""
    st.markdown(f"Smallest and largest in {cohort.label}")
    ends = pd.concat([volumes.nsmallest(EXTREMES), volumes.nlargest(EXTREMES).iloc[::-1]])
    columns = st.columns(len(ends))
    for index, (case, volume) in enumerate(ends.items()):
        with columns[index]:
            st.caption(f"{volume:,.0f} mm³")
            if st.button(str(case), key=f"extreme_{index}", help="Open in the viewer", width="stretch"):
                shared.open_viewer(cohort.name, str(case))


study, results = shared.current_study("Anatomy", "Do the regions of synthetic brains have the volumes of real ones?")
if results.effect_sizes.empty:
    shared.still_computing("Regional volumes")
else:
    st.markdown(SIGN)
    chosen = choose(study, results)
    if chosen.empty:
        st.info("No cohort to show: all fail the quality gate. Switch them on above.")
    else:
        picked_region = show_effects(study, chosen)
        show_region(study, results, chosen, picked_region)
        with st.expander("All numbers: intervals, tests, verdicts"):
            names = shared.labels_of(study.cohorts)
            full = chosen.assign(cohort=chosen["cohort"].map(names))
            shared.show_table(full, shared.effect_columns())
            st.download_button("Download", full.to_csv(index=False), "effect_sizes.csv", "text/csv")
st.caption(shared.engine_note(study))
shared.show_gaps(study, results, "segmentation", "anatomy", "imported")
