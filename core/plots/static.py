"""A plotly figure as a picture, drawn without a browser: for slides and print.

Draws what the figures of this package hold: markers and lines with intervals, heatmaps, panels, rules, notes. The
plotly figure stays the one description of what is shown.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

DPI = 150
INK = "#1B1F24"
SYMBOLS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P", "x": "X",
    "star": "*", "pentagon": "p", "line-ns": "|",
}  # fmt: skip
PIXEL = 0.75  # points


def picture(figure: go.Figure, *, width: float = 12.0, height: float = 5.6, font: float = 11.0) -> bytes:
    """Draw a figure as PNG.

    Parameters
    ----------
    figure : Figure
        Of this package. Traces of another kind than scatter and heatmap are left out.
    width, height : float
        Inches.
    font : float
        Points.
    """
    with mpl.rc_context({"font.size": font, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#9AA3AB"}):
        canvas = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(canvas)
        layout = figure.layout
        names = sorted({(t.xaxis or "x", t.yaxis or "y") for t in figure.data}, key=_number)
        panels = {pair: _panel(canvas, layout, *pair) for pair in names or [("x", "y")]}
        shown: dict[str, Any] = {}
        for trace in figure.data:
            axes = panels[trace.xaxis or "x", trace.yaxis or "y"]
            if trace.type == "heatmap":
                _heatmap(canvas, axes, trace)
            elif trace.type in ("scatter", "scattergl"):
                handle = _scatter(axes, trace)
                if trace.name and trace.showlegend is not False:
                    shown.setdefault(_plain(trace.name), handle)
        for pair, axes in panels.items():
            _finish(axes, layout, *pair)
        for shape in layout.shapes:
            _rule(panels, shape)
        for note in layout.annotations:
            _note(canvas, panels, note)
        if len(shown) > 1:
            canvas.legend(
                list(shown.values()),
                list(shown),
                loc="upper center",
                bbox_to_anchor=(0.5, -0.1),
                ncols=min(len(shown), 4),
                frameon=False,
            )
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1, facecolor="white")
    return buffer.getvalue()


def _number(pair: tuple[str, str]) -> int:
    return int(pair[0][1:] or 1)


def _axis(layout: Any, name: str) -> Any:
    return layout[f"{name[0]}axis{name[1:]}"]


def _panel(canvas: Figure, layout: Any, x: str, y: str) -> Axes:
    (left, right), (low, high) = _axis(layout, x).domain or (0, 1), _axis(layout, y).domain or (0, 1)
    axes = canvas.add_axes((left, low, right - left, high - low))
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def _finish(axes: Axes, layout: Any, x: str, y: str) -> None:
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        made = _axis(layout, name)
        if made.visible is False:
            axes.set_axis_off()
            return
        if made.showgrid is not False:
            axis.grid(color="#DDE2E6", linewidth=0.6)
        if made.tickvals is not None:
            axis.set_ticks(list(made.tickvals), [_plain(text) for text in made.ticktext])
        if made.title.text:
            axis.set_label_text(_plain(made.title.text))
        if made.side == "top":
            axes.xaxis.tick_top()
        if made.showticklabels is False:
            axis.set_tick_params(labelleft=False)
    made = _axis(layout, y)
    if made.type == "category" and not axes.images:
        axes.margins(y=0.12)
    if made.autorange == "reversed" and axes.get_ylim()[0] < axes.get_ylim()[1]:
        axes.invert_yaxis()


def _scatter(axes: Axes, trace: Any) -> Any:
    x, y = _values(trace.x), _values(trace.y)
    mode, marker = trace.mode or "lines", trace.marker
    symbol = str(marker.symbol or "circle")
    # One colour a trace, or one a point
    colour: Any = (
        [_colour(c) for c in marker.color] if isinstance(marker.color, tuple | list) else _colour(marker.color)
    )
    if symbol == "line-ns":
        colour = _colour(marker.line.color)
    handle: Any = None
    if "lines" in mode:
        (handle,) = axes.plot(x, y, color=_colour(trace.line.color), linewidth=(trace.line.width or 2) * PIXEL)
    error = trace.error_x
    if error.array is not None:
        low = error.array if error.arrayminus is None else error.arrayminus
        widths = [np.nan_to_num(_values(low).astype(float)).clip(0), np.nan_to_num(_values(error.array)).clip(0)]
        axes.errorbar(x, y, xerr=np.array(widths), fmt="none", ecolor=colour, elinewidth=1.4, capsize=3)
    if "markers" in mode:
        size = ((marker.size if isinstance(marker.size, int | float) else 6) * PIXEL) ** 2
        style = {"facecolors": "none", "edgecolors": colour} if symbol.endswith("-open") else {"color": colour}
        kind = SYMBOLS.get(symbol.removesuffix("-open"), "o")
        opacity = marker.opacity if isinstance(marker.opacity, int | float) else 1.0
        handle = axes.scatter(x, y, s=size, marker=kind, alpha=opacity, linewidths=1.4 if kind == "|" else 0.8, **style)
    return handle


def _heatmap(canvas: Figure, axes: Axes, trace: Any) -> None:
    z = np.asarray(trace.z, float)
    stops = [(float(at), _colour(colour)) for at, colour in trace.colorscale]
    colours = LinearSegmentedColormap.from_list("scale", stops)
    norm = Normalize(trace.zmin, trace.zmax)
    image = axes.imshow(z, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    axes.set_xticks(range(z.shape[1]), [_plain(name) for name in trace.x])
    axes.set_yticks(range(z.shape[0]), [_plain(name) for name in trace.y])
    for (i, j), value in np.ndenumerate(z):
        if trace.text is not None and np.isfinite(value):
            shade = sum(np.array(colours(norm(value))[:3]) * (0.299, 0.587, 0.114))
            axes.text(j, i, trace.text[i][j], ha="center", va="center", color=INK if shade > 0.5 else "white")
    bar = canvas.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label(_plain(trace.colorbar.title.text or "").replace("\n", " "))


def _rule(panels: dict[tuple[str, str], Axes], shape: Any) -> None:
    axes = panels.get(_names(shape))
    if axes is None or shape.type != "line":
        return
    style = {"color": _colour(shape.line.color), "linewidth": (shape.line.width or 1.5) * PIXEL}
    style["linestyle"] = "--" if shape.line.dash else "-"
    if shape.y0 == shape.y1:
        axes.axhline(shape.y0, **style)
    elif shape.x0 == shape.x1:
        axes.axvline(shape.x0, **style)


def _note(canvas: Figure, panels: dict[tuple[str, str], Axes], note: Any) -> None:
    x_name, y_name = _names(note)
    across = {"left": "left", "right": "right"}.get(note.xanchor or "", "center")
    along = {"top": "top", "bottom": "bottom"}.get(note.yanchor or "", "center")
    if note.xref == "paper" or note.yref == "paper":
        canvas.text(note.x, note.y, _plain(note.text), ha=across, va=along)
        return
    axes = panels.get((x_name, y_name))
    if axes is None:
        return
    if str(note.xref).endswith("domain"):
        axes.text(note.x, note.y, _plain(note.text), ha=across, va=along, transform=axes.get_yaxis_transform())
    else:
        axes.text(_place(axes.xaxis, note.x), _place(axes.yaxis, note.y), _plain(note.text), ha="center", va="center")


def _place(axis: Any, value: Any) -> Any:
    """Return where a category of a heatmap stands; a number stays."""
    if not isinstance(value, str):
        return value
    labels = [label.get_text() for label in axis.get_ticklabels()]
    return axis.get_ticklocs()[labels.index(_plain(value))] if _plain(value) in labels else 0


def _names(item: Any) -> tuple[str, str]:
    return str(item.xref or "x").partition(" ")[0], str(item.yref or "y").partition(" ")[0]


def _values(values: Any) -> np.ndarray:
    array = np.asarray([] if values is None else values)
    return np.array([_plain(v) for v in array]) if array.dtype.kind in "OUS" and _texts(array) else array.astype(float)


def _texts(array: np.ndarray) -> bool:
    return any(isinstance(value, str) for value in array.ravel())


def _plain(text: Any) -> str:
    """Return a label without markup; $ would begin a formula."""
    lines = re.sub(r"<br\s*/?>", "\n", str(text))
    return re.sub(r"</?(sup|sub|b|i)>", "", lines).replace("$", r"\$")


def _colour(colour: Any) -> Any:
    if not isinstance(colour, str) or not colour:
        return "#7a7a7a"
    if numbers := re.fullmatch(r"rgba?\(([^)]*)\)", colour):
        parts = [float(part) for part in numbers[1].split(",")]
        return tuple([p / 255 for p in parts[:3]] + parts[3:])
    return colour
