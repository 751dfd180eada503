"""Parts of the Anatomy page: d on the atlas, correlation, asymmetry, age and sex, the exclusion list."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.anatomy import LARGE_EFFECT, atlas_labels, exclusions, in_words, structures
from core.study import Cohort, Study
from core.tables import csv_text
from core.volume import FULL, template
from core.workflows import Results
from core.workflows.regional import asymmetry_bars, asymmetry_tables, at_gate, difference_matrix, label_values
from pages import access, look, paper_parts, reads, selection

RANGES = {"x": (-65, 65, -24), "y": (-100, 70, -18), "z": (-60, 70, -6)}  # mm: ends and start, at the hippocampus
SIDES = {"x": "left to right", "y": "back to front", "z": "bottom to top"}
PAIRS_SHOWN = 12


def pick_cohort(study: Study, names: list[str], key: str) -> Cohort:
    """Let the user choose one of the cohorts that have rows."""
    cohorts = {cohort.name: cohort for cohort in study.synthetic if cohort.name in names}
    name = st.selectbox("Cohort", list(cohorts), format_func=lambda n: cohorts[n].label, key=key)
    return cohorts[name]


def show_atlas(study: Study, effects: pd.DataFrame, gated: bool) -> None:
    """Paint d of one cohort on the three planes of the atlas."""
    cohort = pick_cohort(study, list(effects["cohort"]), "atlas_cohort")
    columns = st.columns(3)
    position = [
        column.slider(f"{axis} (mm, {SIDES[axis]})", low, high, start, key=f"atlas_{axis}")
        for column, (axis, (low, high, start)) in zip(columns, RANGES.items(), strict=True)
    ]

    def draw() -> Any:
        table = effects[effects["cohort"] == cohort.name]
        labels = structures()
        return plots.effect_planes(
            template(FULL).data,
            atlas_labels().data,
            FULL.affine,
            position,
            label_values(table),
            names=dict(zip(labels["id"].tolist(), labels["words"], strict=True)),
            limit=max(LARGE_EFFECT, float(table["cohens_d"].abs().max())),
        )

    look.show_kept("atlas_effects", (*reads.basis(study), gated, cohort.name, *position), draw)
    st.caption(
        f"Cohen's d of {cohort.label} on the embedded atlas; both sides of a region have its value. Blue: "
        "larger in real brains; red: larger in synthetic brains. Grey: no value (insula and ventral diencephalon are "
        "not in the table). The colour scale is this cohort's."
    )


def show_correlation(study: Study, results: Results, gated: bool) -> None:
    """Show how the correlations between regions differ."""
    summary = at_gate(results.correlation, gated)
    if summary.empty:
        st.info("No correlations: they need at least 10 volumes in each cohort.")
        return
    names = look.labels_of(study.cohorts)
    columns = {
        "cohort": look.text("Cohort", width=look.COHORT_WIDTH),
        "frobenius": look.number("Difference ↓", "Frobenius norm of the difference of both matrices; 0 is best."),
        "floor": look.number("Floor", look.FLOOR_HELP),
        "p_value": look.number("p", "Share of 500 permutations that differ as much.", "%.2g"),
        "n_regions": look.number("Regions", fmt="%d"),
        "n_real": look.number("N real", fmt="%d"),
        "n_synthetic": look.number("N synthetic", fmt="%d"),
    }
    look.show_table(summary.assign(cohort=summary["cohort"].map(names)), columns)
    cohort = pick_cohort(study, summary["cohort"].tolist(), "correlation_cohort")
    of = (*reads.basis(study), gated, cohort.name)

    def pairs() -> pd.DataFrame:
        found = at_gate(results.correlation_pairs, gated)
        return found[found["cohort"] == cohort.name]

    chosen = reads.kept("correlation_pairs", of, pairs)
    look.show_kept("correlation_matrix", of, lambda: plots.correlation_matrix(difference_matrix(chosen)))
    st.caption(
        "Correlation over people, head size removed in each cohort. Orange and purple: pairs that go together less or "
        "more in the synthetic brains than in real ones. With few volumes much of the pattern is chance: compare "
        "with the floor."
    )
    st.markdown("Pairs that differ most")
    largest = chosen.sort_values("p_value", kind="stable").head(PAIRS_SHOWN).drop(columns="cohort")
    formats = {
        name: look.number(name.replace("_", " "), fmt="%+.2f") for name in ("r_real", "r_synthetic", "difference")
    }
    formats |= {name: look.number(name[0], fmt="%.2g") for name in ("p_value", "q_value")}
    look.show_table(largest, formats | {"region_a": look.text("Region"), "region_b": look.text("and")})


def show_asymmetry(study: Study, results: Results, gated: bool) -> None:
    """Show left against right, real and synthetic."""
    rows = at_gate(results.asymmetry, gated)
    if rows.empty:
        st.info("No asymmetry has been computed yet.")
        return
    cohort = pick_cohort(study, rows["cohort"].unique().tolist(), "asymmetry_cohort")
    table = rows[rows["cohort"] == cohort.name].reset_index(drop=True)
    names = look.labels_of(study.cohorts)
    colours = look.colours_of(study)
    sides = {
        names[study.real.name]: ("mean_real", "real_low", "real_high"),
        cohort.label: ("mean_synthetic", "synthetic_low", "synthetic_high"),
    }
    left, right = st.columns(2)
    with left:
        unit = "(left − right) / mean of both"
        look.show_kept(
            "asymmetry_means",
            (*reads.basis(study), gated, cohort.name),
            lambda: plots.paired_intervals(asymmetry_bars(table), sides, unit, colours=colours),
        )
        st.caption("Mean ± SD over people. Right of 0: the left side is larger. Not adjusted for head size.")
    with right:
        largest = table.sort_values("cohens_d", key=abs, ascending=False, kind="stable")["region"]
        regions, key = table["region"].tolist(), f"asymmetry_region_{cohort.name}"
        if st.session_state.get(key, regions[0]) not in regions:
            del st.session_state[key]
        region = st.selectbox("Region", regions, regions.index(largest.iloc[0]), format_func=in_words, key=key)

        def draw(keep: Collection[selection.Pair]) -> Any:
            make = partial(asymmetry_tables, results.volumes, [study.real.name, cohort.name])
            cases = reads.kept("asymmetry of cases", (*reads.basis(study), cohort.name), make)
            labelled = {names[name]: values for name, values in cases.items()}
            return plots.region_distribution(labelled, region, unit="asymmetry index", colours=colours, keep=keep)

        selection.show_chart(study, draw, "asymmetry_cases", (*reads.basis(study), cohort.name, region))
        row = table[table["region"] == region].iloc[0]
        st.markdown(
            f"**{in_words(region)}**: d = {row['cohens_d']:+.2f} [95 % {row['ci_low']:+.2f} to {row['ci_high']:+.2f}], "
            f"Wasserstein {row['wasserstein']:.2f} SD (floor {row['wasserstein_floor']:.2f}), q = {row['q_value']:.2g}."
            f" N = {row['n_real']:.0f} real, {row['n_synthetic']:.0f} synthetic."
        )


def show_slopes(study: Study, results: Results, gated: bool) -> None:
    """Show how regions change with age and differ between the sexes."""
    rows = at_gate(results.slopes, gated)
    if rows.empty:
        st.info("Age and sex are not known: give the real cohort a participants table in study.toml.")
        return
    cohort = pick_cohort(study, rows["cohort"].unique().tolist(), "slopes_cohort")
    term = st.segmented_control("Effect of", ["age", "sex"], default="age", required=True, key="slopes_term")
    table = rows[(rows["cohort"] == cohort.name) & (rows["term"] == term)].reset_index(drop=True)
    names = look.labels_of(study.cohorts)
    sides = {
        names[study.real.name]: ("real", "real_low", "real_high"),
        cohort.label: ("synthetic", "synthetic_low", "synthetic_high"),
    }
    if table["synthetic"].isna().all():
        st.info(f"{cohort.label}: age and sex of its cases are not known, so the real slopes stand alone.")
    look.show_kept(
        "slopes",
        (*reads.basis(study), gated, cohort.name, term),
        lambda: plots.paired_intervals(table, sides, str(table["unit"].iloc[0]), colours=look.colours_of(study)),
    )
    st.caption(
        f"At equal head size, with 95 % intervals. N = {table['n_real'].iloc[0]:.0f} real, "
        f"{table['n_synthetic'].iloc[0]:.0f} synthetic with age and sex."
    )


def show_exclusions(study: Study, effects: pd.DataFrame, gated: bool) -> None:
    """List the regions for which each generator's MRIs should not be used."""
    bound = st.slider("Bound of |d|", 0.2, 2.0, LARGE_EFFECT, 0.05, key="exclusion_bound")
    names = look.labels_of(study.cohorts)
    listed = reads.kept("exclusions", (*reads.basis(study), gated, bound), lambda: exclusions(effects, bound))
    st.caption(
        f"Regions with |d| above {bound:.2f}: for studies of these regions this generator's MRIs should not be used. "
        "The paper takes 0.8. Certain: the whole 95 % interval lies beyond the bound."
    )
    columns = paper_parts.effect_columns() | {
        "bound": look.number("Bound", fmt="%.2f"),
        "certain": st.column_config.CheckboxColumn("Certain", help="The whole interval lies beyond the bound."),
    }
    for name in dict.fromkeys(effects["cohort"]):
        table = listed[listed["cohort"] == name].drop(columns="cohort")
        st.markdown(f"**{names[name]}**: {len(table)} of {effects['cohort'].eq(name).sum()} regions")
        if len(table):
            look.show_table(table, columns)
        data = partial(_list_of, listed, name)
        access.download(f"Download the list of {name}", data, f"exclusions_{name}.csv", "text/csv", key=f"ex_{name}")


def _list_of(listed: pd.DataFrame, cohort: str) -> str:
    """Return the exclusion list of a cohort as it is downloaded."""
    return csv_text(listed[listed["cohort"] == cohort])
