"""Effect sizes as a table of coloured cells, a component of our own: a figure of plotly takes three times as long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.workflows.judging import FAILS
from pages import look

OnCell = Callable[[str, str], None]

_heatmap = st.components.v2.component(
    "synthscope_heatmap",
    js=look.asset("heatmap/heatmap.js"),
    css=look.asset("heatmap/heatmap.css"),
)


def data_of(effects: pd.DataFrame, marks: Mapping[str, str], scale: float = 0.0) -> dict[str, Any]:
    """Return what the component shows; parameters as those of `core.plots.effect_heatmap`.

    A row a region and a column a cohort, with its mark where it has one; the colours reach to ``scale``, or to the
    largest |d|. Each cell is its text, its colour, that of the text on it, and what is said of it on hover and focus.
    """
    gated = [name for name, mark in marks.items() if mark == FAILS]
    cells = plots.effect_cells(effects, gated, scale)
    return {
        "title": "Cohen's d by region and cohort",
        "rows": cells.regions,
        "words": cells.words,
        "columns": cells.cohorts,
        "heads": [f"{marks.get(cohort, '')}{cohort}" for cohort in cells.cohorts],
        "cells": [
            [
                [text or "–", *plots.effect_colours(d, cells.most), hover.replace("<br>", "\n")]
                for d, text, hover in zip(*row, strict=True)
            ]
            for row in zip(cells.d, cells.text, cells.hover, strict=True)
        ],
        "gated": [cohort in gated for cohort in cells.cohorts],
        "rule": cells.rule,
        "colours": [plots.effect_colours(d / 5 - 1, 1)[0] for d in range(11)],
        "most": f"{cells.most:.2g}",
        "ends": ["larger in synthetic brains", "larger in real brains"],
    }


def show(data: Mapping[str, Any], key: str, on_cell: OnCell | None = None) -> None:
    """Show the heatmap; where ``on_cell`` is given, a cell can be chosen, and it is called with region and cohort."""

    def take() -> None:
        cell = st.session_state[key].get("cell") or {}
        if on_cell and cell:
            on_cell(cell["region"], cell["cohort"])

    _heatmap(key=key, data={**data, "clickable": on_cell is not None}, on_cell_change=take)
