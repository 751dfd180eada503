"""Figures of similarity scores."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.plots.style import MARK, Colours, cohort_colours, message_figure, one_legend_entry_each, styled

FLOOR = {
    "mode": "markers",
    "marker": {"symbol": "line-ns", "size": 18, "line": {"width": 2, "color": MARK}},
    "hovertemplate": "floor %{x:.4g}: real against real at the same N<extra></extra>",
}


def metric_dots(table: pd.DataFrame, *, colours: Colours | None = None) -> go.Figure:
    """Draw metric values with intervals and floor, one panel for each metric and encoder.

    Parameters
    ----------
    table : DataFrame
        Rows of metrics.csv: cohort, metric, encoder, variant, value, ci_low, ci_high, floor, n_real, n_synthetic,
        direction. Filled markers are corrected, open ones published; a vertical tick is the floor
        (real against real at the same N).
    """
    if table.empty:
        return message_figure("No metric has been computed yet.")
    table = table.fillna({"encoder": ""})
    colours = colours or cohort_colours(table["cohort"])
    names = [" · ".join(filter(None, pair)) for pair in zip(table["metric"], table["encoder"], strict=True)]
    panels = dict(list(table.groupby(names, sort=False)))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    titles = [f"{name}<br><sup>{_good_end(part['direction'].iloc[0])}</sup>" for name, part in panels.items()]
    height = 60 + rows * (110 + 30 * table["cohort"].nunique())
    gaps = {"horizontal_spacing": 0.06, "vertical_spacing": 90 / height}
    figure = make_subplots(rows, columns, shared_yaxes=True, subplot_titles=titles, **gaps)
    for number, part in enumerate(panels.values()):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for (cohort, variant), points in part.groupby(["cohort", "variant"], sort=False):
            figure.add_trace(_dots(points, str(cohort), str(variant), colours), **place)
        floors = part.dropna(subset=["floor"])
        figure.add_scatter(x=floors["floor"], y=floors["cohort"], name="floor", **FLOOR, **place)
    one_legend_entry_each(figure)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(rangemode="normal", nticks=5)
    return styled(figure, height, top=60)


def _good_end(direction: object) -> str:
    return f"{direction} is better" if direction in ("lower", "higher") else f"best: {direction}"


def _dots(points: pd.DataFrame, cohort: str, variant: str, colours: Colours) -> go.Scatter:
    symbol = "circle" if variant == "corrected" else "circle-open"
    return go.Scatter(
        x=points["value"],
        y=points["cohort"],
        mode="markers",
        name=variant,
        customdata=points[["n_real", "n_synthetic", "ci_low", "ci_high"]].to_numpy(),
        error_x_array=points["ci_high"] - points["value"],
        error_x_arrayminus=points["value"] - points["ci_low"],
        marker={"color": colours.get(cohort, MARK), "size": 10, "symbol": symbol},
        hovertemplate=f"{cohort}, {variant}: %{{x:.4g}} [%{{customdata[2]:.4g}}, %{{customdata[3]:.4g}}]"
        "<br>N = %{customdata[0]} real, %{customdata[1]} synthetic<extra></extra>",
    )
