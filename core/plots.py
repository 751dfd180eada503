"""Results -> plotly figures; computes nothing scientific.

Backgrounds are transparent and no font colour is set, so that a figure follows the theme of the page it is on.
Every cohort keeps one colour: pages pass ``colours = cohort_colours(all cohorts of the study)`` to each figure;
without it the cohorts of that figure are coloured by position.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image
from plotly.subplots import make_subplots

REAL_COLOURS = {"real": "#7a7a7a", "real MRIs": "#7a7a7a", "training": "#b0b0b0"}
# Okabe & Ito (2008), the pale yellow last, then the darker half of Paul Tol's "muted" scheme
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"),
    *("#882255", "#44AA99", "#999933", "#332288", "#117733", "#AA4499"),
)
GRID = "rgba(128,128,128,0.25)"
MARK = "rgba(128,128,128,0.9)"
CROSS = "rgba(230,159,0,0.8)"
LETTER = {"color": "#E69F00", "size": 13}  # on the image, whose background is black in every theme
FLOOR = {
    "mode": "markers",
    "marker": {"symbol": "line-ns", "size": 18, "line": {"width": 2, "color": MARK}},
    "hovertemplate": "floor %{x:.4g}: real against real at the same N<extra></extra>",
}
STRIP = {"boxpoints": "all", "jitter": 0.5, "pointpos": 0, "fillcolor": "rgba(0,0,0,0)", "showlegend": False}
CLEAR = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
MANY_POINTS = 4000  # beyond this WebGL draws faster than SVG
SEXES = {"F": ("female", ""), "M": ("male", "/"), "": ("sex unknown", ".")}

# axis across and up of each plane, the fixed axis, and the letters at its left, right, bottom and top
PLANES = (("sagittal", 1, 2, 0, "PAIS"), ("coronal", 0, 2, 1, "LRIS"), ("axial", 0, 1, 2, "LRPA"))

Colours = Mapping[str, str]
LabelColours = Mapping[int, tuple[int, int, int]]
Floats = NDArray[np.float64]


def cohort_colours(names: Iterable[str]) -> dict[str, str]:
    """Return one colour for each cohort, by position: grey for real cohorts, colour-blind-safe for the others."""
    unique = list(dict.fromkeys(names))
    others = [name for name in unique if name not in REAL_COLOURS]
    extra = [colorsys.hls_to_rgb((0.13 + 0.618 * i) % 1, 0.35 + 0.3 * (i % 2), 0.6) for i in range(len(others))]
    palette = [*PALETTE, *("#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in extra)]
    chosen = REAL_COLOURS | dict(zip(others, palette, strict=False))
    return {name: chosen[name] for name in unique}


def message_figure(text: str, height: int = 240) -> go.Figure:
    """Return an empty figure that says why there is nothing to show."""
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5, font_size=15)
    figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    return _styled(figure, height)


def triplanar(
    data: NDArray[np.generic],
    affine: NDArray[np.floating],
    position: Sequence[float],
    *,
    labels: NDArray[np.integer] | None = None,
    label_colours: LabelColours | None = None,
    opacity: float = 0.45,
    window: tuple[float, float] = (-1.0, 1.0),
    title: str = "",
    height: int = 330,
) -> go.Figure:
    """Draw the sagittal, coronal and axial plane through a position, side by side, at one scale.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Intensities in RAS+ axis order. Neurological display: the patient's left is on the left.
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix, mm, without rotation.
    position : sequence of 3 float
        World coordinates in mm; clipped to the volume.
    labels : ndarray, shape (x, y, z), optional
        Label map drawn over the image; 0 is transparent.
    label_colours : mapping of int to (r, g, b), optional
        Colour of each label, 0 to 255; labels that are not in it are not drawn.
    opacity : float
        Of the labels.
    window : tuple of float
        Intensities shown black and white.

    Returns
    -------
    Figure
        Axes in mm; hovering tells position and intensity.
    """
    if data.ndim != 3 or data.size == 0:
        return message_figure("No volume to show.", height)
    spacing, origin = np.diag(affine)[:3].astype(float), np.asarray(affine, dtype=float)[:3, 3]
    index = np.clip(np.rint((np.asarray(position, dtype=float) - origin) / spacing), 0, np.array(data.shape) - 1)
    at = origin + index * spacing
    corners = np.stack([origin - spacing / 2, origin - spacing / 2 + np.array(data.shape) * spacing], axis=1)
    widths = [data.shape[across] * spacing[across] for _, across, *_ in PLANES]
    figure = make_subplots(1, 3, column_widths=widths, horizontal_spacing=0.02)
    shapes, annotations = [], []
    for suffix, (name, across, up, fixed, letters) in zip(("", "2", "3"), PLANES, strict=True):
        plane = np.moveaxis(data, fixed, 0)[int(index[fixed])].T  # (up, across), since across < up in every plane
        shades = _grey(plane, window)
        if labels is not None and label_colours:
            shades = _overlay(shades, np.moveaxis(labels, fixed, 0)[int(index[fixed])].T, label_colours, opacity)
        hover = f"{'xyz'[across]} %{{x:.0f}}, {'xyz'[up]} %{{y:.0f}} mm<br>intensity %{{customdata:.2f}}<extra></extra>"
        where = {"x0": origin[across], "dx": spacing[across], "y0": origin[up], "dy": spacing[up]}
        where |= {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        values = plane.astype(np.float32)
        figure.add_trace(go.Image(source=_png(shades), customdata=values, hovertemplate=hover, **where))
        shapes += _cross(suffix, at[across], at[up])
        annotations += _letters(suffix, f"{name}, {'xyz'[fixed]} = {at[fixed]:.0f} mm", letters)
        one_scale = {"visible": False, "constrain": "domain", "scaleanchor": "x" if suffix else None}
        figure.layout[f"xaxis{suffix}"].update(one_scale, range=corners[across])
        figure.layout[f"yaxis{suffix}"].update(one_scale, range=corners[up], scaleanchor="x")
    figure.update_layout(title=title or None, shapes=shapes, annotations=annotations)
    return _styled(figure, height, top=60 if title else 30)


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
    _one_legend_entry_each(figure)
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(rangemode="normal", nticks=5)
    return _styled(figure, height, top=60)


def qc_scatter(
    qc: Mapping[str, pd.DataFrame], threshold: float | None = None, *, colours: Colours | None = None
) -> go.Figure:
    """Draw the QC scores of every volume as strips, with the threshold (the paper's Figure 3).

    Parameters
    ----------
    qc : mapping of str to DataFrame
        QC table (index ``subject``) of each cohort. Each point's customdata is [subject, cohort, score name].
    threshold : float, optional
        Lowest score that passes.
    """
    tables = {name: table for name, table in qc.items() if not table.empty}
    if not tables:
        return message_figure("No QC scores yet: segment the cohorts, or give SynthSeg's QC table.")
    colours = colours or cohort_colours(qc)
    scores = list(next(iter(tables.values())).columns)
    kind = go.Scattergl if sum(table.size for table in tables.values()) > MANY_POINTS else go.Scatter
    figure, width = go.Figure(), 0.8 / len(tables)
    for strip, (cohort, table) in enumerate(tables.items()):
        n = len(table)
        jitter = ((np.arange(n) * 0.618034) % 1 - 0.5) * 0.8 * width  # golden ratio: even, and the same each time
        centres = np.arange(len(scores)) - 0.4 + width * (strip + 0.5)
        figure.add_trace(
            kind(
                x=(centres[:, None] + jitter).ravel(),
                y=table[scores].to_numpy().T.ravel(),
                customdata=[[case, cohort, score] for score in scores for case in table.index],
                mode="markers",
                name=f"{cohort} (N = {n})",
                marker={"color": colours.get(cohort, MARK), "size": 5, "opacity": 0.7},
                hovertemplate="%{customdata[0]}<br>%{customdata[1]}, %{customdata[2]}: %{y:.3f}<extra></extra>",
            )
        )
    if threshold is not None:
        note = {"annotation_text": f"threshold<br>{threshold:.3f}", "annotation_position": "right"}
        figure.add_hline(threshold, line_dash="dash", line_color=MARK, **note)
    names = [score.replace("+", "+<br>").replace("general ", "general<br>") for score in scores]
    figure.update_xaxes(tickvals=list(range(len(scores))), ticktext=names)
    figure.update_yaxes(title="QC score (predicted Dice, higher is better)")
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    return _styled(figure, 460, right=70)


def effect_heatmap(effects: pd.DataFrame) -> go.Figure:
    """Draw Cohen's d as a heatmap of regions by cohorts, diverging and symmetric around 0.

    Parameters
    ----------
    effects : DataFrame
        cohort, region and cohens_d; the other columns of effect_sizes.csv appear on hover when present.
        Rows and columns keep their order; a region without value is a labelled gap. Each cell's
        customdata[0] is the region.
    """
    if effects.empty:
        return message_figure("No effect sizes yet: they need the regional volumes of both cohorts.")
    regions, cohorts = list(dict.fromkeys(effects["region"])), list(dict.fromkeys(effects["cohort"]))
    cells = {(row["region"], row["cohort"]): row for _, row in effects.iterrows()}
    d = np.array([[cells[r, c]["cohens_d"] if (r, c) in cells else np.nan for c in cohorts] for r in regions], float)
    hover = [[[r, c, _effect_hover(cells.get((r, c)))] for c in cohorts] for r in regions]
    most = max(0.8, float(np.abs(d[np.isfinite(d)]).max(initial=0.0)))
    figure = go.Figure(
        go.Heatmap(
            z=d,
            x=cohorts,
            y=regions,
            text=[[f"{value:+.2f}" if np.isfinite(value) else "" for value in row] for row in d],
            texttemplate="%{text}",
            customdata=hover,
            hovertemplate="<b>%{customdata[0]}</b>, %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            colorscale="RdBu",
            zmin=-most,
            zmax=most,
            colorbar={"title": "Cohen's d<br>blue:<br>too small", "thickness": 10},
        )
    )
    for i, j in np.argwhere(~np.isfinite(d)):
        figure.add_annotation(x=cohorts[j], y=regions[i], text="no value", showarrow=False, font_size=10)
    if "group" in effects and effects["group"].iloc[0] != effects["group"].iloc[-1]:
        first = effects.drop_duplicates("region")["group"].eq(effects["group"].iloc[0]).sum()
        figure.add_hline(first - 0.5, line_color=MARK, line_width=2)  # between subcortical and cortical
    figure.update_yaxes(autorange="reversed", showgrid=False, title="region")
    figure.update_xaxes(side="top", showgrid=False, type="category")
    return _styled(figure, 110 + 19 * len(regions), top=60)


def region_distribution(
    volumes: Mapping[str, pd.DataFrame], region: str, *, colours: Colours | None = None
) -> go.Figure:
    """Draw one region's volume in every cohort: quartiles and each volume.

    Parameters
    ----------
    volumes : mapping of str to DataFrame
        Regional volumes in mm³ by cohort, the real one first; index ``subject`` is each point's customdata.
    region : str
        A column of the tables.
    """
    shown = {name: table[region].dropna() for name, table in volumes.items() if region in table}
    shown = {name: values for name, values in shown.items() if len(values)}
    if not shown:
        return message_figure(f"No volumes of {region}.")
    colours = colours or cohort_colours(volumes)
    figure = go.Figure()
    for cohort, values in shown.items():
        figure.add_box(
            y=values.to_numpy(),
            name=f"{cohort}<br>N = {len(values)}",
            customdata=[[case, cohort] for case in values.index],
            hovertemplate="%{customdata[0]}: %{y:,.0f} mm³<extra></extra>",
            marker={"color": colours.get(cohort, MARK), "size": 4, "opacity": 0.6},
            **STRIP,
        )
    figure.update_yaxes(title=f"{region} (mm³)")
    return _styled(figure, 380)


def age_sex_histogram(participants: Mapping[str, pd.DataFrame], *, colours: Colours | None = None) -> go.Figure:
    """Draw age histograms by sex, one panel for each set (or site), on one age axis.

    Parameters
    ----------
    participants : mapping of str to DataFrame
        Columns age (years) and sex ("F", "M" or ""); rows without age are counted in the panel's title.
    """
    known = {name: table.dropna(subset=["age"]) for name, table in participants.items()}
    if not any(len(table) for table in known.values()):
        return message_figure("No ages: the participants table has no usable column age.")
    colours = colours or cohort_colours(participants)
    titles = []
    for name, table in participants.items():
        without = len(table) - len(known[name])
        titles.append(f"{name} (N = {len(table)}{f', {without} without age' if without else ''})")
    height = 80 + 180 * len(known)
    figure = make_subplots(len(known), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=45 / height)
    for row, (name, table) in enumerate(known.items(), start=1):
        for sex, (label, pattern) in SEXES.items():
            ages = table.loc[table["sex"] == sex, "age"]
            if len(ages):
                colour = colours.get(name, MARK)  # repeated as pattern background, which page themes replace otherwise
                marker = {"color": colour, "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "white"}}
                hover = f"{label}, %{{x}} years: %{{y}}<extra>{name}</extra>"
                bins = {"start": 0, "end": 130, "size": 5}
                figure.add_histogram(x=ages, xbins=bins, name=label, marker=marker, hovertemplate=hover, row=row, col=1)
    _one_legend_entry_each(figure)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title="subjects")
    figure.update_xaxes(title="age (years)", row=len(known))
    return _styled(figure, height)


def _styled(figure: go.Figure, height: int, *, top: int = 40, right: int = 10) -> go.Figure:
    figure.update_layout(height=height, margin={"l": 10, "r": right, "t": top, "b": 10}, **CLEAR)
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    return figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)


def _grey(plane: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = window
    scaled = np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(np.nan_to_num(scaled * 255).astype(np.uint8)[..., None], 3, axis=2)


def _overlay(
    shades: NDArray[np.uint8], labels: NDArray[np.integer], colours: LabelColours, opacity: float
) -> NDArray[np.uint8]:
    present, inverse = np.unique(labels, return_inverse=True)
    table = np.array([colours.get(int(label), (0, 0, 0)) for label in present], dtype=np.float32)
    drawn = np.array([label != 0 and int(label) in colours for label in present])
    weight = (opacity * drawn)[inverse].reshape(labels.shape)[..., None]
    mixed = (1 - weight) * shades + weight * table[inverse].reshape(*labels.shape, 3)
    return np.rint(mixed).astype(np.uint8)


def _png(shades: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(shades).save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cross(suffix: str, across: float, up: float) -> list[dict[str, object]]:
    x, y = f"x{suffix}", f"y{suffix}"
    line = {"type": "line", "line": {"color": CROSS, "width": 1}}
    return [
        {**line, "xref": x, "yref": f"{y} domain", "x0": across, "x1": across, "y0": 0, "y1": 1},
        {**line, "xref": f"{x} domain", "yref": y, "x0": 0, "x1": 1, "y0": up, "y1": up},
    ]


def _letters(suffix: str, title: str, letters: str) -> list[dict[str, object]]:
    frame = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain", "showarrow": False}
    spots = zip(letters, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98)), strict=True)
    sides = [{**frame, "text": text, "x": x, "y": y, "font": LETTER} for text, (x, y) in spots]
    return [*sides, {**frame, "text": title, "x": 0.5, "y": 1, "yanchor": "bottom"}]


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


def _effect_hover(row: pd.Series | None) -> str:
    if row is None or not np.isfinite(row["cohens_d"]):
        return "no value: no volumes, or no variance"
    lines = [f"d = {row['cohens_d']:+.3f}"]
    if "ci_low" in row:
        lines[0] += f", 95 % [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
        lines.append(f"log spread ratio {row['spread_ratio']:+.2f}")
        lines.append(f"q = {row['q_value']:.2g}: {row['verdict']}")
        lines.append(f"N = {row['n_real']} real, {row['n_synthetic']} synthetic")
    return "<br>".join(lines)


def _one_legend_entry_each(figure: go.Figure) -> None:
    seen: set[str] = set()
    for trace in figure.data:
        trace.update(legendgroup=trace.name, showlegend=trace.name not in seen)
        seen.add(trace.name)
