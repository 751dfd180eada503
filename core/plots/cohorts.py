"""Figures of whole cohorts: segmentation quality, regional volumes, age and sex."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from core.anatomy import in_words
from core.plots.style import (
    DIVERGING,
    LEGEND,
    MANY_POINTS,
    MARK,
    Colours,
    case_data,
    cohort_colours,
    diverging,
    message_figure,
    one_legend_entry_each,
    outside,
    styled,
    thinned,
)

STRIP = {"boxpoints": "all", "jitter": 0.5, "pointpos": 0, "fillcolor": "rgba(0,0,0,0)", "showlegend": False}
SEXES = {"F": ("female", ""), "M": ("male", "/"), "": ("sex unknown", ".")}


def qc_scatter(
    qc: Mapping[str, pd.DataFrame],
    threshold: float | None = None,
    *,
    colours: Colours | None = None,
    keep: Collection[tuple[str, str]] = (),
) -> go.Figure:
    """Draw the QC scores of every volume as strips, with the threshold (the paper's Figure 3).

    Parameters
    ----------
    qc : mapping of str to DataFrame
        QC table (index ``subject``) of each cohort. Each point's customdata is [subject, cohort, score name].
    threshold : float, optional
        Lowest score that passes.
    keep : collection of (subject, cohort)
        Drawn in any case. Of a large cohort an even sample is drawn beside these and the scores below the threshold.
    """
    tables = {name: table for name, table in qc.items() if not table.empty}
    if not tables:
        return message_figure("No QC scores yet: segment the cohorts, or give SynthSeg's QC table.")
    colours = colours or cohort_colours(qc)
    scores = list(next(iter(tables.values())).columns)
    shown = {name: _shown_scores(name, table, threshold, keep) for name, table in tables.items()}
    kind = go.Scattergl if sum(points.sum() for points, _ in shown.values()) > MANY_POINTS else go.Scatter
    figure, width = go.Figure(), 0.8 / len(tables)
    for strip, (cohort, table) in enumerate(tables.items()):
        n = len(table)
        jitter = ((np.arange(n) * 0.618034) % 1 - 0.5) * 0.8 * width  # golden ratio: even, and the same each time
        centres = np.arange(len(scores)) - 0.4 + width * (strip + 0.5)
        points, words = shown[cohort]
        kinds = np.broadcast_to(np.array(scores, dtype=object)[:, None], points.shape)
        cases = np.broadcast_to(np.array(table.index, dtype=object), points.shape)
        data = np.column_stack([cases[points], np.full(points.sum(), cohort, dtype=object), kinds[points]])
        figure.add_trace(
            kind(
                x=(centres[:, None] + jitter)[points],
                y=table[scores].to_numpy().T[points],
                customdata=data,
                mode="markers",
                name=f"{cohort} ({words})",
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
    figure.update_layout(legend=LEGEND)
    return styled(figure, 460, top=14, right=70)


def _shown_scores(
    cohort: str, table: pd.DataFrame, threshold: float | None, keep: Collection[tuple[str, str]]
) -> tuple[NDArray[np.bool_], str]:
    """Return the points that are drawn, score × volume, and how many volumes have all of them."""
    shown = thinned(list(table.index), cohort, np.zeros(len(table), bool), keep)
    points = np.broadcast_to(shown.rows, table.shape[::-1])
    if threshold is not None and not shown.all:
        points = points | (table < threshold).to_numpy().T
    return points, shown.words


@dataclass(frozen=True)
class EffectCells:
    """Effect sizes as cells: regions by cohorts."""

    regions: list[str]
    cohorts: list[str]
    d: NDArray[np.floating]  # NaN: a gap
    text: list[list[str]]
    hover: list[list[str]]  # lines between "<br>"
    most: float  # end of the colour scale
    rule: int  # row at which one group of regions ends and the other begins; 0: they are mixed, or there is one

    @property
    def words(self) -> list[str]:
        """How the regions are said on screen."""
        return list(map(in_words, self.regions))


def effect_cells(effects: pd.DataFrame, gated: Collection[str] = (), scale: float = 0.0) -> EffectCells:
    """Return Cohen's d as cells; parameters as those of `effect_heatmap`."""
    regions, cohorts = list(dict.fromkeys(effects["region"])), list(dict.fromkeys(effects["cohort"]))
    rows = {(row["region"], row["cohort"]): row for _, row in effects.iterrows()}
    d = np.array([[rows[r, c]["cohens_d"] if (r, c) in rows else np.nan for c in cohorts] for r in regions], float)
    notes = {c: "<br>not relied upon: the cohort fails the gate" if c in gated else "" for c in cohorts}
    groups = effects.drop_duplicates("region")["group"].to_numpy() if "group" in effects else np.array([])
    changes = np.flatnonzero(groups[1:] != groups[:-1]) + 1
    return EffectCells(
        regions,
        cohorts,
        d,
        [[_effect_text(rows.get((r, c))) for c in cohorts] for r in regions],
        [[_effect_hover(rows.get((r, c))) + notes[c] for c in cohorts] for r in regions],
        max(0.8, scale, float(np.abs(d[np.isfinite(d)]).max(initial=0.0))),
        int(changes[0]) if len(changes) == 1 else 0,
    )


def effect_colours(d: float, most: float) -> tuple[str, str]:
    """Return the colour of an effect size on a scale that ends at ``most``, and that of the text on it."""
    if not np.isfinite(d):
        return "transparent", "inherit"
    red, green, blue = diverging(d, most)
    luminance = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2
    return f"rgb({red}, {green}, {blue})", "#000000" if luminance > 0.179 else "#ffffff"  # both have contrast 4.6 there


def effect_heatmap(effects: pd.DataFrame, gated: Collection[str] = (), scale: float = 0.0) -> go.Figure:
    """Draw Cohen's d as a heatmap of regions by cohorts, diverging and symmetric around 0.

    Parameters
    ----------
    effects : DataFrame
        cohort, region and cohens_d; the other columns of effect_sizes.csv appear on hover when present. A value in
        brackets lies within ``noise_floor``, the noise of the segmentation engine, where that column is given.
        Rows and columns keep their order; a region without value is a labelled gap.
    gated : collection of str
        Cohorts that fail the quality gate: their columns are hatched, for their numbers are not relied upon.
    scale : float
        The colours reach to this |d|, to a larger one where there is one.
    """
    if effects.empty:
        return message_figure("No effect sizes yet: they need the regional volumes of both cohorts.")
    cells = effect_cells(effects, gated, scale)
    regions, cohorts = cells.words, cells.cohorts
    named = zip(regions, cells.hover, strict=True)
    figure = go.Figure(
        go.Heatmap(
            z=cells.d,
            x=cohorts,
            y=regions,
            text=cells.text,
            texttemplate="%{text}",
            customdata=[[[region, *pair] for pair in zip(cohorts, hover, strict=True)] for region, hover in named],
            hovertemplate="<b>%{customdata[0]}</b>, %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            colorscale=DIVERGING,
            zmin=-cells.most,
            zmax=cells.most,
            colorbar={
                "title": "Cohen's d<br>blue: larger<br>in real brains",
                "thickness": 10,
                "outlinewidth": 0,
                "ticks": "",
            },
        )
    )
    for i, j in np.argwhere(~np.isfinite(cells.d)):
        figure.add_annotation(x=cohorts[j], y=regions[i], text="no value", showarrow=False, font_size=10)
    if cells.rule:
        figure.add_hline(cells.rule - 0.5, line_color=MARK, line_width=2)  # between subcortical and cortical
    for j in [j for j, cohort in enumerate(cohorts) if cohort in gated]:
        edges = ((j - 0.5, j - 0.35), (j + 0.35, j + 0.5))  # the numbers stay free
        lines = (f"M{low},{i + 0.5}L{high},{i - 0.5}" for i in range(len(regions)) for low, high in edges)
        figure.add_shape(type="path", path="".join(lines), line={"color": MARK, "width": 1.5})
    figure.update_yaxes(autorange="reversed", showgrid=False, title="region")
    figure.update_xaxes(side="top", showgrid=False, type="category")
    return styled(figure, 110 + 19 * len(regions), top=60)


def region_distribution(
    volumes: Mapping[str, pd.DataFrame],
    region: str,
    *,
    unit: str = "mm³",
    colours: Colours | None = None,
    keep: Collection[tuple[str, str]] = (),
) -> go.Figure:
    """Draw one region's volume in every cohort: quartiles and each volume.

    Parameters
    ----------
    volumes : mapping of str to DataFrame
        Regional volumes in mm³ by cohort, the real one first; index ``subject`` is each point's customdata.
    region : str
        A column of the tables.
    unit : str
        Of the values, when they are something else than volumes.
    keep : collection of (subject, cohort)
        Drawn in any case. Of a large cohort an even sample is drawn beside these and the outliers; the quartiles are
        those of all.
    """
    shown = {name: table[region].dropna() for name, table in volumes.items() if region in table}
    shown = {name: values for name, values in shown.items() if len(values)}
    if not shown:
        return message_figure(f"No volumes of {region}.")
    colours = colours or cohort_colours(volumes)
    figure = go.Figure()
    for cohort, values in shown.items():
        y, cases = values.to_numpy(), values.index
        drawn = thinned(list(cases), cohort, outside(y), keep)
        name, strip = f"{cohort}<br>{drawn.words}", STRIP
        if not drawn.all:  # the quartiles stay those of all: a box without points below points without a box
            figure.add_box(y=y, name=name, boxpoints=False, showlegend=False, marker_color=colours.get(cohort, MARK))
            figure.update_layout(boxmode="overlay")
            y, cases, strip = y[drawn.rows], cases[drawn.rows], STRIP | {"line_width": 0, "hoveron": "points"}
        figure.add_box(
            y=y,
            name=name,
            customdata=case_data(cases, cohort),
            hovertemplate="%{customdata[0]}: "
            + (f"%{{y:,.0f}} {unit}" if unit == "mm³" else "%{y:.3f}")
            + "<extra></extra>",
            marker={"color": colours.get(cohort, MARK), "size": 4, "opacity": 0.6},
            **strip,
        )
    figure.update_yaxes(title=f"{in_words(region)} ({unit})")
    return styled(figure, 354, top=14)


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
    one_legend_entry_each(figure)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title="subjects")
    figure.update_xaxes(title="age (years)", row=len(known))
    return styled(figure, height)


def _effect_text(row: pd.Series | None) -> str:
    if row is None or not np.isfinite(row["cohens_d"]):
        return ""
    text = f"{row['cohens_d']:+.2f}"
    return f"({text})" if abs(row["cohens_d"]) <= row.get("noise_floor", np.nan) else text


def _effect_hover(row: pd.Series | None) -> str:
    if row is None or not np.isfinite(row["cohens_d"]):
        return "no value: no volumes, or no variance"
    lines = [f"d = {row['cohens_d']:+.3f}"]
    if "ci_low" in row:
        lines[0] += f", 95 % [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
        lines.append(f"log spread ratio {row['spread_ratio']:+.2f}")
        lines.append(f"q = {row['q_value']:.2g}: {row['verdict']}")
        if "noise_floor" in row:
            noise = row["noise_floor"]
            lines.append(f"engine's noise {noise:.2f}" if np.isfinite(noise) else "engine's noise not known")
        lines.append(f"N = {row['n_real']} real, {row['n_synthetic']} synthetic")
    return "<br>".join(lines)
