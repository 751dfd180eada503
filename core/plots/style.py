"""What all figures share: colours of cohorts, lines, background, the empty figure."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale, unlabel_rgb

REAL_COLOURS = {"real": "#7a7a7a", "real MRIs": "#7a7a7a", "training": "#b0b0b0"}
# Okabe & Ito (2008), the pale yellow last, then the darker half of Paul Tol's "muted" scheme
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"),
    *("#882255", "#44AA99", "#999933", "#332288", "#117733", "#AA4499"),
)
DIVERGING = "RdBu"  # red: larger in synthetic brains, blue: larger in real ones
GRID = "rgba(128,128,128,0.25)"
MARK = "rgba(128,128,128,0.9)"
MOST_SHOWN = 200  # volumes of a cohort drawn one by one; of more, an even sample
MANY_POINTS = 4000  # beyond this WebGL draws faster than SVG
ARRAYS = ("x", "y", "z", "text", "customdata", *(f"error_{e}.array{s}" for e in "xy" for s in ("", "minus")))
PLAIN = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hoverlabel_align": "left"}
PLAIN |= {"autotypenumbers": "strict"}  # a name of digits is a name
# At the foot: above the panels, a legend of many lines grows under the toolbar of a page.
LEGEND = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
CLICKS = {"clickmode": "event+select", "dragmode": "pan"}  # as Streamlit sets them, which draws the figure again else

Colours = Mapping[str, str]


@dataclass(frozen=True)
class Shown:
    """Which volumes of a cohort a figure draws, and what its legend says of their number."""

    rows: NDArray[np.bool_]
    words: str

    @property
    def all(self) -> bool:
        """True when none is left out."""
        return bool(self.rows.all())


def cohort_colours(names: Iterable[str]) -> dict[str, str]:
    """Return one colour for each cohort, by position: grey for real cohorts, colour-blind-safe for the others."""
    unique = list(dict.fromkeys(names))
    others = [name for name in unique if name not in REAL_COLOURS]
    extra = [colorsys.hls_to_rgb((0.13 + 0.618 * i) % 1, 0.35 + 0.3 * (i % 2), 0.6) for i in range(len(others))]
    palette = [*PALETTE, *("#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in extra)]
    chosen = REAL_COLOURS | dict(zip(others, palette, strict=False))
    return {name: chosen[name] for name in unique}


def diverging(value: float, limit: float) -> tuple[int, int, int]:
    """Return the colour of a value on the diverging scale from -limit to limit: red, green, blue."""
    share = (np.clip(value / limit, -1, 1) + 1) / 2
    red, green, blue = (round(part) for part in unlabel_rgb(sample_colorscale(DIVERGING, [float(share)])[0]))
    return red, green, blue


def message_figure(text: str, height: int = 240) -> go.Figure:
    """Return an empty figure that says why there is nothing to show."""
    figure = go.Figure()
    figure.add_annotation(text=text, showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5, font_size=15)
    figure.update_layout(xaxis_visible=False, yaxis_visible=False)
    return styled(figure, height)


def styled(figure: go.Figure, height: int, *, top: int = 40, right: int = 10) -> go.Figure:
    """Give a figure its height, margins and the see-through background."""
    figure.update_layout(height=height, margin={"l": 10, "r": right, "t": top, "b": 10}, **PLAIN)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor=GRID, zerolinecolor=GRID, zerolinewidth=2, ticks="", automargin=True)
        update(title_standoff=15, selector=lambda axis: axis.title.standoff is None)
    return revised(figure)


def revised(figure: go.Figure) -> go.Figure:
    """Have plotly draw a figure once: a page gives it each figure twice, as equal objects that are not the same.

    It then draws again whatever has a template, or arrays of numbers, which go as bytes, or of an unknown revision.
    """
    figure.layout.template = None
    for trace in figure.data:
        for name in ARRAYS if trace.type != "image" else ():
            values = trace[name] if name.partition(".")[0] in trace else None
            if isinstance(values, np.ndarray) and values.dtype != object:
                trace[name] = None  # plotly keeps an array that holds the same
                trace[name] = values.astype(object)  # goes as a list
    return figure.update_layout(datarevision=zlib.crc32(figure.to_json(validate=False).encode()))


def thinned(cases: Sequence[str], cohort: str, odd: NDArray[np.bool_], keep: Collection[tuple[str, str]]) -> Shown:
    """Choose which volumes of a cohort are drawn: all of a few, else an even sample beside the odd and selected ones.

    Parameters
    ----------
    cases : sequence of str
        Of the cohort.
    cohort : str
        As the figure calls it.
    odd : ndarray of bool, shape (n,)
        Volumes drawn in any case.
    keep : collection of (case, cohort)
        Others drawn in any case.
    """
    n = len(cases)
    if n <= MOST_SHOWN:
        return Shown(np.ones(n, bool), f"N = {n}")
    drawn = odd | np.array([(case, cohort) in keep for case in cases])
    drawn[np.linspace(0, n - 1, MOST_SHOWN).astype(int)] = True
    return Shown(drawn, f"shows {drawn.sum():,} of N = {n:,}")


def outside(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tell which values lie beyond the whiskers of a box plot; NaN does not."""
    low, high = np.nanpercentile(values, [25, 75])
    reach = 1.5 * (high - low)
    return (values < low - reach) | (values > high + reach)


def case_data(cases: Iterable[str], cohort: str) -> NDArray[np.object_]:
    """Return the customdata of the points of a cohort, [case, cohort] each."""
    return np.array([[case, cohort] for case in cases], dtype=object).reshape(-1, 2)


def cases_of(figure: go.Figure) -> set[tuple[str, str]]:
    """Return the (case, cohort) pairs that the points of a figure stand for, from their customdata."""
    rows = [row for trace in figure.data for row in (trace.customdata if trace.customdata is not None else [])]
    return {(str(row[0]), str(row[1])) for row in rows if len(row) > 1}


def mark_cases(figure: go.Figure, cases: Collection[tuple[str, str]]) -> go.Figure:
    """Return a copy of a figure in which the points of these (case, cohort) stand out; itself if none is given."""
    if not cases:
        return figure
    figure = go.Figure(figure)
    for trace in figure.data:
        if trace.customdata is not None:
            points = [i for i, row in enumerate(trace.customdata) if (str(row[0]), str(row[1])) in cases]
            size = 2 + (trace.marker.size or 6)
            faint, strong = {"marker": {"opacity": 0.2}}, {"marker": {"opacity": 1, "size": size}}
            trace.update(selectedpoints=points, selected=strong, unselected=faint)
    return revised(figure)


def one_legend_entry_each(figure: go.Figure) -> None:
    """Let traces of one name share one entry of the legend, which switches them together."""
    seen: set[str] = set()
    for trace in figure.data:
        trace.update(legendgroup=trace.name, showlegend=trace.name not in seen)
        seen.add(trace.name)
