"""The paper's own Tables 1 to 3, in the same form as the study's."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from core import plots
from core.workflows import comparisons as compare
from pages import look, paper_parts, reads, shared, table_one_parts
from pages import similarity_parts as parts

SOURCE = (
    "Wu, Peng, Li, Zhang, Pohl: *Evaluating the Quality of Brain MRI Generators*. MICCAI 2024. "
    "[arXiv:2409.08463](https://arxiv.org/abs/2409.08463). Numbers as printed; the paper gives no intervals."
)


def show_table_1() -> None:
    """Show similarity: the table, the order of the generators under each encoder, every value."""
    table_one_parts.show_paper_table()
    ranked = table_one_parts.cached_paper()
    models = list(dict.fromkeys(ranked["cohort"]))
    names, colours = {name: name for name in models}, plots.cohort_colours(models)
    metric = st.segmented_control(
        "Order by", ["fid", "mmd"], default="fid", required=True, format_func=str.upper, key="paper_order"
    )
    find = partial(compare.rank_agreement, ranked, str(metric), "published")
    agreement = reads.kept("paper's agreement", (metric,), find)
    encoders = {name: parts.encoder_label(name) for name in agreement.tau.index}
    st.markdown(f"{compare.order_sentence(agreement, encoders, names)} The paper gives no intervals, so every "
                "difference counts here, however small.")  # fmt: skip
    focus = parts.Focus(str(metric), "published", "", ("the paper", ()))
    parts.show_order(agreement, compare.select(ranked, focus.metric, focus.variant), names, colours, focus)

    def draw() -> Any:
        named = {
            "metric": (ranked["metric"] + "/published").map(parts.metric_label),
            "encoder": ranked["encoder"].map(parts.encoder_label),
        }
        return plots.metric_dots(ranked.assign(**named, ci_low=np.nan, ci_high=np.nan), colours=colours)

    look.show_kept("paper_scores", (), draw, alt="Every value of Table 1")


shared.show_heading("The paper's tables", "The published results, in the same form as those of your study.")
st.markdown(SOURCE)
TABS = {
    "Table 1: similarity": (show_table_1, ("paper_order",)),
    "Table 2: quality": (paper_parts.show_table_2, ()),
    "Table 3: anatomy": (lambda: paper_parts.show_table_3("paper_effects"), ()),
}
look.show_tabs(TABS, "paper_tab")
