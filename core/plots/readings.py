"""What readers said."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.plots.style import LEGEND, message_figure, styled

VALUE_COLOURS = ("#B2182B", "#EF8A62", "#BDBDBD", "#67A9CF", "#2166AC")  # ColorBrewer RdBu, colour-blind safe
SCALE_NAMES = {"realism": "Realism", "consistency": "Slice consistency", "anatomy": "Anatomy"}


def likert_bars(shares: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """Draw how often each value from 1 to 5 was given, one bar a cohort, one panel a scale.

    Parameters
    ----------
    shares : DataFrame
        ``cohort``, ``scale``, ``value``, ``count``, ``share``.
    names : mapping
        Name shown for each cohort.
    """
    if shares.empty:
        return message_figure("No Likert ratings.")
    titles = [SCALE_NAMES[scale] for scale in SCALE_NAMES]
    figure = make_subplots(1, len(titles), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.02)
    for column, scale in enumerate(SCALE_NAMES, 1):
        for value, colour in enumerate(VALUE_COLOURS, 1):
            part = shares[(shares["scale"] == scale) & (shares["value"] == value)]
            labels = [names.get(cohort, cohort) for cohort in part["cohort"]]
            figure.add_trace(
                go.Bar(
                    x=part["share"],
                    y=labels,
                    orientation="h",
                    name=str(value),
                    marker_color=colour,
                    legendgroup=str(value),
                    showlegend=column == 1,
                    customdata=part["count"],
                    hovertemplate="%{y}<br>%{customdata} ratings of " + str(value) + " (%{x:.0%})<extra></extra>",
                ),
                1,
                column,
            )
    figure.update_layout(barmode="stack", legend=LEGEND)
    figure.update_xaxes(tickformat=".0%", range=[0, 1], tickvals=[0.25, 0.5, 0.75])  # ends would meet the next panel's
    figure.update_yaxes(autorange="reversed")
    return styled(figure, 130 + 34 * shares["cohort"].nunique())
