"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from core.plots.style import PALETTE, message_figure, styled


def loss_curves(rows: Sequence[dict[str, str]]) -> go.Figure:
    """Draw every loss of a training run against the step, each on its own scale.

    Parameters
    ----------
    rows : sequence of dict
        Rows of the run's curve.csv: step, seconds, one column a loss.
    """
    names = [name for name in (rows[-1] if rows else {}) if name not in ("step", "seconds")]
    if not names:
        return message_figure("No curve yet: the first steps are being taken.")
    figure = make_subplots(1, len(names), subplot_titles=names, horizontal_spacing=0.06)
    for column, name in enumerate(names, start=1):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        line = {"color": PALETTE[(column - 1) % len(PALETTE)], "width": 1.5}
        mode = "lines+markers" if len(points) < 20 else "lines"  # a line of one point cannot be seen
        x, y = [x for x, _ in points], [y for _, y in points]
        figure.add_scatter(x=x, y=y, mode=mode, name=name, line=line, row=1, col=column)
    figure.update_xaxes(title_text="step")
    figure.update_layout(showlegend=False)
    return styled(figure, 260)
