"""Figures of regional comparison: d on the atlas, correlation, asymmetry, slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from core.anatomy import in_words
from core.plots.style import DIVERGING, GRID, MARK, Colours, cohort_colours, diverging, message_figure, styled
from core.plots.volumes import PLANES, triplanar


def effect_planes(
    data: NDArray[np.floating],
    labels: NDArray[np.integer],
    affine: NDArray[np.floating],
    position: Sequence[float],
    values: Mapping[int, float],
    *,
    names: Mapping[int, str],
    limit: float,
    height: int = 360,
) -> go.Figure:
    """Paint one value a region on the three planes of the atlas, diverging and symmetric around 0.

    Parameters
    ----------
    data, labels : ndarray, shape (x, y, z)
        The template in [-1, 1], and its FreeSurfer ids.
    affine, position
        See `triplanar`.
    values : mapping of int to float
        Cohen's d by label; labels without value stay grey.
    names : mapping of int to str
        What hovering calls each label.
    limit : float
        |d| at the ends of the colour scale.
    """
    if not values:
        return message_figure("No effect size to paint.", height)
    colours = {}
    for label, value in values.items():
        colours[label] = diverging(value, limit)
    figure = triplanar(data, affine, position, labels=labels, label_colours=colours, opacity=0.8, height=height)
    origin, spacing = np.asarray(affine)[:3, 3], np.diag(affine)[:3]
    index = np.clip(np.rint((np.asarray(position) - origin) / spacing), 0, np.array(labels.shape) - 1).astype(int)
    words = {k: f"{name}<br>d = {values[k]:+.2f}" if k in values else name for k, name in names.items()}
    for trace, (_, _, _, fixed, _) in zip(figure.data, PLANES, strict=True):
        ids, inverse = np.unique(np.moveaxis(labels, fixed, 0)[index[fixed]].T, return_inverse=True)
        texts = np.array([words.get(int(k), "") for k in ids], dtype=object)[inverse].reshape(trace.customdata.shape)
        trace.update(customdata=texts, hovertemplate="%{customdata}<extra></extra>")
    bar = {"title": "Cohen's d<br>blue: larger<br>in real brains", "thickness": 10, "outlinewidth": 0, "ticks": ""}
    marker = {"color": [0.0], "colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": bar, "opacity": 0}
    hidden = {"x": [origin[1]], "y": [origin[2]], "mode": "markers", "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(marker=marker, **hidden)
    return figure


def correlation_matrix(difference: pd.DataFrame, *, first_group: int = 16, height: int = 620) -> go.Figure:
    """Draw the difference of two correlation matrices, regions in the order of the table.

    Parameters
    ----------
    difference : DataFrame
        Square, synthetic - real.
    first_group : int
        Regions before the line between subcortical and cortical.
    """
    if difference.empty:
        return message_figure("No correlations: they need at least 10 volumes in each cohort.")
    most = max(0.2, float(np.nanmax(np.abs(difference.to_numpy()))))
    figure = go.Figure(
        go.Heatmap(
            z=difference.to_numpy(),
            x=difference.columns,
            y=difference.index,
            colorscale="PuOr",
            zmin=-most,
            zmax=most,
            colorbar={"title": "r synthetic<br>− r real", "thickness": 10, "outlinewidth": 0, "ticks": ""},
            hovertemplate="%{y}, %{x}<br>difference of correlation %{z:+.2f}<extra></extra>",
        )
    )
    if first_group < len(difference):
        figure.add_hline(first_group - 0.5, line_color=MARK, line_width=1)
        figure.add_vline(first_group - 0.5, line_color=MARK, line_width=1)
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont_size=10, dtick=1)
    figure.update_xaxes(showgrid=False, tickfont_size=10, tickangle=-60, dtick=1)
    return styled(figure, height, top=20)


def paired_intervals(
    table: pd.DataFrame, columns: Mapping[str, Sequence[str]], unit: str, *, colours: Colours | None = None
) -> go.Figure:
    """Draw one value with its interval for each region and cohort, regions from top to bottom.

    Parameters
    ----------
    table : DataFrame
        Column ``region`` and those named below.
    columns : mapping of str to sequence of str
        Cohort shown, to the columns of its value, lower and upper end.
    unit : str
        Title of the axis.
    """
    shown = {name: names for name, names in columns.items() if table[names[0]].notna().any()}
    if not shown:
        return message_figure("No values to show.")
    colours = colours or cohort_colours(columns)
    figure = go.Figure()
    places, regions = np.arange(len(table)), table["region"].map(in_words)
    for index, (name, (value, low, high)) in enumerate(shown.items()):
        figure.add_scatter(
            x=table[value],
            y=places + 0.3 * (index - (len(shown) - 1) / 2),
            mode="markers",
            name=name,
            customdata=table.assign(region=regions)[["region", low, high]].to_numpy(),
            error_x={
                "type": "data", "symmetric": False, "thickness": 1, "width": 0,
                "array": table[high] - table[value], "arrayminus": table[value] - table[low],
            },
            marker={"color": colours.get(name, MARK), "size": 7},
            hovertemplate="%{customdata[0]}: %{x:.3g} [%{customdata[1]:.3g}, %{customdata[2]:.3g}]<extra></extra>",
        )  # fmt: skip
    figure.add_vline(0, line_color=MARK, line_width=1)
    figure.update_yaxes(
        tickvals=places,
        ticktext=regions,
        autorange="reversed",
        tickfont_size=11,
        gridcolor=GRID,
        zeroline=False,
    )
    figure.update_xaxes(title=unit)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return styled(figure, 110 + 19 * len(table), top=50)
