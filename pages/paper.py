"""The paper's own Tables 1 to 3, in the same form as the study's."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import plots
from core.anatomy import paper_table
from pages import shared

SOURCE = (
    "Wu, Peng, Li, Zhang, Pohl: *Evaluating the Quality of Brain MRI Generators*. MICCAI 2024. "
    "[arXiv:2409.08463](https://arxiv.org/abs/2409.08463). Numbers as printed; the paper gives no intervals."
)
ENCODER_NAMES = {"r101": "R101", "r50_23": "R50-23", "r50": "R50"}
N = 400  # volumes of each cohort in the paper
RENAMED = {"failed_rois": "failed_scores", "failed_mris": "failed_volumes", "passing_rate": "pass_rate"}


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return Table 1 in the form of metrics.csv."""
    real = table.set_index("model").loc["real MRIs", "ms_ssim"]
    rows = []
    for column in table.columns.drop("model"):
        encoder, _, metric = column.rpartition("_")
        encoder, metric = (encoder, metric) if encoder in ENCODER_NAMES else ("", column.replace("_", "-"))
        similar = metric == "ms-ssim"
        rows += [
            {
                "metric": metric,
                "encoder": ENCODER_NAMES.get(encoder, ""),
                "cohort": model,
                "value": value,
                "floor": real if similar else float("nan"),
                "direction": "match real" if similar else "lower",
            }
            for model, value in zip(table["model"], table[column], strict=True)
            if model != "real MRIs"
        ]
    blank = {"variant": "published", "ci_low": float("nan"), "ci_high": float("nan"), "n_real": N, "n_synthetic": N}
    return pd.DataFrame(rows).assign(**blank)


def show_table_1() -> None:
    """Show similarity."""
    table = paper_table(1)
    columns = {"model": shared.text("Cohort")}
    for column in table.columns.drop("model"):
        encoder, _, metric = column.rpartition("_")
        name = f"{ENCODER_NAMES[encoder]} {metric.upper()} ↓" if encoder in ENCODER_NAMES else "Image MMD ↓"
        name, fmt = ("MS-SSIM → real", "%.2f") if column == "ms_ssim" else (name, "%.3f")
        columns[column] = shared.number(name, "As printed, N = 400 each.", "%,d" if column == "image_mmd" else fmt)
    shared.show_table(table, columns)
    st.caption(
        "↓ lower is better; → real: closest to the value of real MRIs is best. MS-SSIM of synthetic volumes is taken "
        "against real volumes, that of real MRIs among themselves by another formula, so the two are not the same "
        "measure. R101, R50-23 and R50 are MedicalNet networks. Units: FID and MMD in squared feature units, Image MMD "
        "in squared intensity summed over voxels."
    )
    shared.show_figure(
        plots.metric_dots(scores(table), colours=plots.cohort_colours(table["model"])), key="paper_scores"
    )


def show_table_2() -> None:
    """Show the quality gate."""
    table = paper_table(2).rename(columns=RENAMED)
    table["reliable"] = table["failed_volumes"] <= 0.05 * table["n"]
    shared.show_table(table, shared.quality_columns())
    st.caption("The threshold of 0.65 fails 5 % of the real volumes. Cohorts that fail more often are not assessed.")


def show_table_3() -> None:
    """Show effect sizes."""
    table = paper_table(3)
    long = table.melt(["group", "region"], var_name="cohort", value_name="cohens_d")
    help_text = "Cohen's d, N = 400 each. 0 is best; positive: the real region is larger."
    shared.show_effects(long, "paper_effects", dict.fromkeys(long["cohort"], help_text))
    st.caption("Cohen's d, 0 is best. Positive: the real region is larger, so the synthetic one is too small.")


shared.show_heading("The paper's tables", "The published results, in the same form as those of your study.")
st.markdown(SOURCE)
one, two, three = st.tabs(["Table 1: similarity", "Table 2: quality", "Table 3: anatomy"])
with one:
    show_table_1()
with two:
    show_table_2()
with three:
    show_table_3()
