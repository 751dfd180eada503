"""Figures of similarity scores."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.metrics import badness
from core.plots.style import (
    GRID,
    LEGEND,
    MANY_POINTS,
    MARK,
    Colours,
    case_data,
    cohort_colours,
    message_figure,
    one_legend_entry_each,
    outside,
    styled,
    thinned,
)

MAP_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down", "pentagon")
TITLE_LETTERS = 26  # of an encoder's name on one line above a panel
FLOOR = {
    "mode": "markers",
    "marker": {"symbol": "line-ns", "size": 11, "line": {"width": 2, "color": MARK}},
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
    titles = [_title(part.iloc[0]) for part in panels.values()]
    above = 26 + 18 * max(title.count("<br>") + 1 for title in titles)  # pixels
    height = above + rows * (110 + 30 * table["cohort"].nunique())
    gaps = {"horizontal_spacing": 0.06, "vertical_spacing": (above + 30) / height}
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
    return styled(figure, height, top=above)


def _title(row: pd.Series) -> str:
    """Return the lines above a panel: metric, encoder, which end is good."""
    below = [*textwrap.wrap(row["encoder"], TITLE_LETTERS), _good_end(row["direction"])]
    return "<br>".join([row["metric"], *(f"<sup>{words}</sup>" for words in below)])


def _good_end(direction: object) -> str:
    return f"{direction} is better" if direction in ("lower", "higher") else f"best: {direction}"


def _dots(points: pd.DataFrame, cohort: str, variant: str, colours: Colours) -> go.Scatter:
    symbol = "circle" if variant == "corrected" else "circle-open"
    return go.Scatter(
        x=points["value"],
        y=points["cohort"],
        mode="markers+text",
        text=[f"{value:.3g}" for value in points["value"]],  # near zero beside a large one, dots alone tell little
        textposition="top center",
        textfont_size=10,
        cliponaxis=False,
        name=variant,
        customdata=points[["n_real", "n_synthetic", "ci_low", "ci_high"]].to_numpy(),
        error_x_array=points["ci_high"] - points["value"],
        error_x_arrayminus=points["value"] - points["ci_low"],
        marker={"color": colours.get(cohort, MARK), "size": 10, "symbol": symbol},
        hovertemplate=f"{cohort}, {variant}: %{{x:.4g}} [%{{customdata[2]:.4g}}, %{{customdata[3]:.4g}}]"
        "<br>N = %{customdata[0]} real, %{customdata[1]} synthetic<extra></extra>",
    )


def rank_bump(
    places: pd.DataFrame, scores: pd.DataFrame, *, names: Mapping[str, str], colours: Colours | None = None
) -> go.Figure:
    """Draw the order of the cohorts under each encoder; tied cohorts stand in one capsule and share a place.

    Parameters
    ----------
    places : DataFrame, cohort × encoder
        As `core.workflows.comparisons.Agreement.places`; a cohort without place is a gap in its line.
    scores : DataFrame
        Rows of metrics.csv behind the places, for the hover and the order within a tie: cohort, encoder, value,
        direction, floor, ci_low, ci_high, n_real, n_synthetic.
    names : mapping of str to str
        Encoder to the name on the axis.
    """
    if not places.notna().any(axis=None):
        return message_figure("No order yet: no score has a place.")
    colours = colours or cohort_colours(places.index)
    known = {(row["cohort"], row["encoder"]): row for _, row in scores.iterrows()}
    bad = {key: badness(row["value"], row["value"], row["direction"], row["floor"])[0] for key, row in known.items()}
    slots = pd.DataFrame({encoder: _slots(places[encoder], bad) for encoder in places}, index=places.index)
    figure, count, size, unplaced = go.Figure(), len(places.columns), len(places), 0
    for position, encoder in enumerate(places):
        for _, tied in slots[encoder].groupby(places[encoder]):
            if len(tied) > 1:
                figure.add_shape(**_capsule(position, tied.min(), tied.max()))
    for cohort in places.index:
        shown = places.loc[cohort]
        figure.add_scatter(
            x=list(range(count)),
            y=slots.loc[cohort],
            mode="lines+markers+text",
            name=cohort,
            text=["" if pd.isna(place) else f"{place:.0f}" for place in shown],
            textfont={"color": "white", "size": 12},
            marker={"color": colours.get(str(cohort), MARK), "size": 24},
            line={"color": colours.get(str(cohort), MARK), "width": 3},
            customdata=[[cohort, _score_hover(known.get((cohort, encoder)))] for encoder in places],
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
        )
        height, note = slots.loc[cohort].iloc[-1], ""
        if pd.isna(height):  # named below those that have a place
            unplaced += 1
            height, note = slots.iloc[:, -1].count() + unplaced, "<br>(no place)"
        at = {"x": count - 1, "y": height, "xanchor": "left", "xshift": 24}
        figure.add_annotation(text=f"{cohort}{note}", showarrow=False, align="left", **at)
    figure.update_xaxes(
        tickvals=list(range(count)), ticktext=[names.get(str(e), str(e)) for e in places], showgrid=False
    )
    figure.update_xaxes(range=[-0.3, count - 0.7 + 0.35 * count], side="top", zeroline=False)
    ends = {"tickvals": [1, size], "ticktext": ["closest", "farthest"] if size > 1 else ["closest", ""]}
    figure.update_yaxes(range=[size + 0.6, 0.4], showgrid=False, zeroline=False, **ends)
    figure.update_layout(showlegend=False)
    return styled(figure, 90 + 52 * size, top=50)


def score_curve(
    points: pd.DataFrame,
    floors: pd.Series,
    *,
    title: str,
    width: int | None = None,
    colours: Colours | None = None,
    log: bool = False,
) -> go.Figure:
    """Draw a score against the number of volumes it is computed from.

    Parameters
    ----------
    points : DataFrame
        cohort, n, value, ci_low, ci_high: mean and spread over random subsets of n volumes of each cohort.
    floors : Series
        Floor at full size by cohort, NaN where there is none.
    title : str
        Name and unit of the score.
    width : int, optional
        Number of features: left of it, covariances are singular.
    log : bool
        Draw the score on a logarithmic axis.
    """
    if points.empty:
        return message_figure("No curve: this score was not computed at several N.")
    colours = colours or cohort_colours(points["cohort"])
    figure = go.Figure()
    for cohort, part in points.sort_values("n").groupby("cohort", sort=False):
        figure.add_scatter(
            x=part["n"],
            y=part["value"],
            name=cohort,
            mode="lines+markers",
            marker={"color": colours.get(str(cohort), MARK), "size": 6},
            error_y={
                "array": part["ci_high"] - part["value"],
                "arrayminus": part["value"] - part["ci_low"],
                "thickness": 1,
                "width": 2,
            },
            customdata=part[["ci_low", "ci_high"]].to_numpy(),
            hovertemplate=f"{cohort}<br>N = %{{x}}: %{{y:.4g}}"
            "<br>subsets: %{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>",
        )
    for floor in sorted(set(floors.dropna())):
        figure.add_hline(floor, line_dash="dot", line_color=MARK)
    if floors.notna().any():
        note = {"showarrow": False, "xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom"}  # no points there
        height = float(floors.max())
        figure.add_annotation(text="floor", y=math.log10(height) if log else height, **note)
    most = int(points["n"].max())
    if width is not None and width <= 4 * most:
        mark = {"annotation_text": f"d = {width}", "annotation_position": "top left"}
        figure.add_vline(width, line_dash="dash", line_color=MARK, **mark)
    elif width is not None:
        right = {"xref": "paper", "yref": "paper", "x": 1, "y": 1, "xanchor": "right", "yanchor": "bottom"}
        figure.add_annotation(text=f"d = {width} lies far to the right →", showarrow=False, **right)
    figure.update_xaxes(title="N volumes of each cohort", rangemode="tozero")
    figure.update_xaxes(title_standoff=8)
    figure.update_yaxes(type="log" if log else None)
    figure.update_layout(title={"text": title, "font_size": 14, "x": 0.5, "xanchor": "center"})
    figure.update_layout(legend=LEGEND)
    return styled(figure, 380, top=60)


def joint_map(
    points: pd.DataFrame, *, colours: Colours | None = None, keep: Collection[tuple[str, str]] = ()
) -> go.Figure:
    """Draw all volumes on one map fitted to all cohorts together; one colour and symbol for each cohort.

    Parameters
    ----------
    points : DataFrame
        Rows of map.csv of one encoder and method: cohort, case, x, y, method, share_x, share_y (explained
        variance, NaN where the method has none). Each point's customdata is [case, cohort].
    keep : collection of (case, cohort)
        Drawn in any case. Of a large cohort an even sample is drawn beside these and the outliers of each axis.
    """
    if points.empty:
        return message_figure("No map yet: it needs the features of two cohorts.")
    colours = colours or cohort_colours(points["cohort"])
    drawn = {str(name): _drawn(part, str(name), keep) for name, part in points.groupby("cohort", sort=False)}
    kind = go.Scattergl if sum(len(part) for part, _ in drawn.values()) > MANY_POINTS else go.Scatter
    figure = go.Figure()
    for number, (cohort, (part, words)) in enumerate(drawn.items()):
        symbol = MAP_SYMBOLS[number % len(MAP_SYMBOLS)]
        figure.add_trace(
            kind(
                x=part["x"],
                y=part["y"],
                mode="markers",
                name=f"{cohort} ({words})",
                customdata=case_data(part["case"], cohort),
                marker={"color": colours.get(cohort, MARK), "size": 9, "symbol": symbol, "opacity": 0.8},
                hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
            )
        )
    for axis, update in (("x", figure.update_xaxes), ("y", figure.update_yaxes)):
        share = points[f"share_{axis}"].iloc[0]
        name = f"{points['method'].iloc[0].upper()} {1 if axis == 'x' else 2}"
        update(title=f"{name} ({share:.0%} of the variance)" if pd.notna(share) else f"{name} (no unit)")
    figure.update_layout(legend=LEGEND)
    return styled(figure, 480, top=14)


def _drawn(part: pd.DataFrame, cohort: str, keep: Collection[tuple[str, str]]) -> tuple[pd.DataFrame, str]:
    """Return the rows of a cohort that are drawn, and how many they are in words."""
    odd = outside(part["x"].to_numpy()) | outside(part["y"].to_numpy())
    shown = thinned(list(part["case"]), cohort, odd, keep)
    return part[shown.rows], shown.words


def _slots(places: pd.Series, bad: Mapping[tuple[str, str], float]) -> pd.Series:
    """Heights of the cohorts: each has its own, in the order of places, within a tie in that of the scores."""
    order = sorted(places.dropna().index, key=lambda cohort: (places[cohort], bad[cohort, str(places.name)]))
    return pd.Series(range(1, len(order) + 1), index=order, dtype=float).reindex(places.index)


def _capsule(position: int, low: float, high: float) -> dict[str, object]:
    """Return a frame around tied cohorts."""
    box = {"x0": position - 0.09, "x1": position + 0.09, "y0": low - 0.38, "y1": high + 0.38}
    return {"type": "rect", "layer": "below", "fillcolor": GRID, "line": {"color": MARK, "width": 1}, **box}


def _score_hover(row: pd.Series | None) -> str:
    if row is None or pd.isna(row["value"]):
        return "not computed"
    known = pd.notna(row["ci_low"]) and row["ci_low"] < row["ci_high"]
    interval = f" [{row['ci_low']:.4g}, {row['ci_high']:.4g}]" if known else ""
    return f"{row['value']:.4g}{interval}<br>N = {row['n_real']:.0f} real, {row['n_synthetic']:.0f} synthetic"
