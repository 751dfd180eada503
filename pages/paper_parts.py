"""The paper's Tables 2 and 3 in the form of the study's own."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core.anatomy import LARGE_EFFECT, count_effects, paper_table
from pages import shared

RENAMED = {"failed_rois": "failed_scores", "failed_mris": "failed_volumes", "passing_rate": "pass_rate"}
TEXT_OF_PAPER = "The paper's text says 38 (cDPM), 9 (MedSyn) and 2 (HA-GAN), and 14 large effects for HA-GAN."


def show_table_2() -> None:
    """Show the quality gate."""
    table = paper_table(2).rename(columns=RENAMED)
    table["reliable"] = table["failed_volumes"] <= 0.05 * table["n"]
    shared.show_table(table, shared.quality_columns())
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
    long, counts = shared.kept("paper's effects", (), effects_and_counts)
    help_text = f"Cohen's d, N = 400 each. {shared.SIGN}"
    shared.show_effects(long, key, dict.fromkeys(long["cohort"], help_text), ("the paper",))
    best = ", ".join(f"{name} {row['best']:.0f}" for name, row in counts.iterrows())
    beyond = ", ".join(f"{name} {row['beyond']:.0f}" for name, row in counts.iterrows())
    st.markdown(
        f"**Counted in this table:** smallest |d| in {best} regions; |d| > {LARGE_EFFECT} in {beyond} regions. "
        f"{TEXT_OF_PAPER} The tool shows what the table gives."
    )
    st.caption(f"As printed, Wu et al. (MICCAI 2024), without intervals. Cohen's d: {shared.SIGN}")
