"""Tables 2 and 3 in the paper's layout: of a study, and as printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core.anatomy import LARGE_EFFECT, count_effects, in_words, paper_table
from core.workflows.judging import FAILS, gate_notes
from pages import heatmap_parts, look, reads

HEAD = 72  # pixels: of a table with two lines of head
RENAMED = {"failed_rois": "failed_scores", "failed_mris": "failed_volumes", "passing_rate": "pass_rate"}
TEXT_OF_PAPER = "The paper's text says 38 (cDPM), 9 (MedSyn) and 2 (HA-GAN), and 14 large effects for HA-GAN."


def show_table_2() -> None:
    """Show the quality gate."""
    table = paper_table(2).rename(columns=RENAMED)
    table["reliable"] = table["failed_volumes"] <= 0.05 * table["n"]
    look.show_table(table, quality_columns())
    st.caption(
        "As printed, Wu et al. (MICCAI 2024). The threshold of 0.65 fails 5 % of the real volumes. Cohorts that fail "
        "more often are not assessed."
    )


def effects_and_counts() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return Table 3 in the form of effect_sizes.csv, and what it counts."""
    long = paper_table(3).melt(["group", "region"], var_name="cohort", value_name="cohens_d")
    return long, count_effects(long).sort_values("best", ascending=False)


def show_table_3(key: str) -> None:
    """Show effect sizes, and what the table itself counts."""
    long, counts = reads.kept("paper's effects", (), effects_and_counts)
    help_text = f"Cohen's d, N = 400 each. {look.SIGN}"
    show_effects(long, key, dict.fromkeys(long["cohort"], help_text), ("the paper",), {})
    best = ", ".join(f"{name} {row['best']:.0f}" for name, row in counts.iterrows())
    beyond = ", ".join(f"{name} {row['beyond']:.0f}" for name, row in counts.iterrows())
    st.markdown(
        f"**Counted in this table:** smallest |d| in {best} regions; |d| > {LARGE_EFFECT} in {beyond} regions. "
        f"{TEXT_OF_PAPER} The tool shows what the table gives."
    )
    st.caption(f"As printed, Wu et al. (MICCAI 2024), without intervals. Cohen's d: {look.SIGN}")


def show_quality(table: pd.DataFrame, key: str) -> None:
    """Show the gate of each cohort, the interval of the pass rate in one column."""
    low, high = table["ci_low"].map("{:.0%}".format), table["ci_high"].map("{:.0%}".format)
    shown = table.assign(ci_low=low + " – " + high).drop(columns="ci_high")
    look.show_table(shown, quality_columns(), key=key, height="content")


def quality_columns() -> dict[str, Any]:
    """Describe the columns of the paper's Table 2."""
    return {
        "cohort": look.text("Cohort", width=215),
        "n": look.number("N", "Volumes judged.", "%d", 50),
        "failed_scores": look.number(
            "Failed scores", "Scores below the threshold, of eight for each volume.", "%d", 95
        ),
        "failed_volumes": look.number("Failed volumes", "Volumes with any score below the threshold.", "%d", 105),
        "pass_rate": look.number("Pass rate ↑", "Share of volumes that pass; higher is better.", "percent", 80),
        "ci_low": look.text("95 % interval", "Wilson interval of the pass rate.", 100),
        "threshold": look.number("Threshold", "Lowest score that passes, the same for all eight scores.", "%.3f", 80),
        "reliable": st.column_config.CheckboxColumn(
            "Reliable", help="Fails no more often than the gate allows.", width=75
        ),
    }


def effect_columns() -> dict[str, Any]:
    """Describe the columns of effect_sizes.csv."""
    return {
        "group": look.text("Group"),
        "region": look.text("Region"),
        "cohort": look.text("Cohort", width=look.COHORT_WIDTH),
        "cohens_d": look.number("Cohen's d", look.SIGN, "%+.2f"),
        "ci_low": look.number("95 % from", "Lower end of the 95 % bootstrap interval of d.", "%+.2f"),
        "ci_high": look.number("95 % to", "Upper end of the 95 % bootstrap interval of d.", "%+.2f"),
        "spread_ratio": look.number(
            "Spread ratio (log)", "log(SD synthetic / SD real). 0 is best; below 0 too little variety.", "%+.2f"
        ),
        "p_value": look.number("p", "Welch's t test.", "%.2g"),
        "q_value": look.number("q", "p after Benjamini-Hochberg over the regions.", "%.2g"),
        "verdict": look.text(
            "Verdict", "Equivalent: 90 % interval within ±0.2. Different: q < 0.05. Else undetermined."
        ),
        "tost_low": look.number("90 % from", "Lower end of the 90 % interval of d.", "%+.2f"),
        "tost_high": look.number("90 % to", "Upper end of the 90 % interval of d.", "%+.2f"),
        "tost_p": look.number("p (TOST)", "That d lies inside ±0.2: small means equivalent.", "%.2g"),
        "hedges_g": look.number("Hedges' g", "0 is best. As d, corrected for small samples.", "%+.2f"),
        "wasserstein": look.number(
            "Wasserstein", "Distance of the distributions in SD of the real cohort; 0 is best.", "%.2f"
        ),
        "wasserstein_floor": look.number("W floor", "Real against real at the same N.", "%.2f"),
        "relative_difference": look.number(
            "Less than real", "1 - mean synthetic / mean real, after adjustment. Negative: more than real.", "percent"
        ),
        "noise_floor": look.number("Engine's noise", look.NOISE_HELP, "%.2f"),
        "n_real": look.number("N real", fmt="%d"),
        "n_synthetic": look.number("N synthetic", fmt="%d"),
    }


def show_effects(
    effects: pd.DataFrame,
    key: str,
    help_texts: Mapping[str, str],
    of: tuple[Any, ...],
    marks: Mapping[str, str],
    on_cell: heatmap_parts.OnCell | None = None,
    scale: float = 0.0,
    **options: Any,
) -> Any:
    """Show effect sizes as a heatmap and as the paper's Table 3; row beside row where both fit.

    Parameters
    ----------
    effects : DataFrame
        In the form of effect_sizes.csv; ``cohort`` holds a short name.
    key : str
        Unique on the page.
    help_texts : mapping
        What each cohort's column holds, by short name.
    of : tuple
        What the effect sizes change with, see `kept`.
    marks : mapping
        Of the cohorts that fail the gate, by short name, see `core.workflows.judging.gate_marks`.
    on_cell : callable
        Called with region and cohort of a cell of the heatmap that was clicked.
    scale : float
        The colours reach to this |d|, to a larger one where there is one.
    **options
        Of the table.
    """
    many = effects["cohort"].nunique() > look.FEW_COHORTS
    left, right = (st.container(), None) if many else st.columns(2)
    with left:
        cells = reads.kept(f"{key}_heatmap", of, lambda: heatmap_parts.data_of(effects, marks, scale))
        heatmap_parts.show(cells, f"{key}_heatmap", on_cell)
        if notes := gate_notes(marks.values()):
            st.caption(f"{' '.join(notes)}{' Hatched: ✗.' if FAILS in marks.values() else ''}")
    if many:
        right = st.expander("Table 3: the same numbers", key=f"{key}_numbers", on_change="rerun")
        if not right.open:
            return {"selection": {"rows": []}}
    table, config = reads.kept(f"{key}_wide", of, lambda: _effects_side_by_side(effects, help_texts, marks))
    with right:
        return st.dataframe(
            table, column_config=config, hide_index=True, key=f"{key}_table", row_height=look.FLAT_ROW,
            height=len(table) * look.FLAT_ROW + HEAD, placeholder="–", **options,
        )  # fmt: skip


def _effects_side_by_side(
    effects: pd.DataFrame, help_texts: Mapping[str, str], marks: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[int, Any]]:
    """Return d as in the paper's Table 3, a row a region and a column a cohort, and what the columns are."""
    regions, names = (list(dict.fromkeys(effects[name])) for name in ("region", "cohort"))
    values = effects.pivot_table("cohens_d", "region", "cohort", sort=False, dropna=False)
    values = values.reindex(index=regions, columns=names)
    cells: dict[tuple[str, str], Any] = {("", "Region"): [in_words(region) for region in regions]}
    config = {1: look.text("Region", width=190)}  # by position, where 0 is the hidden index
    if "noise_floor" in effects and effects["noise_floor"].notna().any():
        cells["", "± noise"] = values.index.map(effects.groupby("region")["noise_floor"].max())
        config[2] = look.number("± noise", look.NOISE_HELP, "%.2f", 55)
    for name in names:
        plain, _, kind = name.removesuffix(")").rpartition(" (") if name.endswith(")") else (name, "", "")
        plain = f"{marks.get(name, '')}{plain}"
        cells[kind, plain] = values[name]
        about = " ".join([help_texts[name], *gate_notes([marks.get(name, "")])])
        config[len(cells)] = look.number(plain, about, "%+.2f", max(56, 16 + round(6.6 * len(plain))))
    return pd.DataFrame({column: list(found) for column, found in cells.items()}), config
