"""Planes through a volume."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image
from plotly.subplots import make_subplots

from core.plots.style import message_figure, styled

CROSS = "rgba(230,159,0,0.8)"
LETTER = {"color": "#E69F00", "size": 13}  # on the image, whose background is black in every theme
# axis across and up of each plane, the fixed axis, and the letters at its left, right, bottom and top
PLANES = (("sagittal", 1, 2, 0, "PAIS"), ("coronal", 0, 2, 1, "LRIS"), ("axial", 0, 1, 2, "LRPA"))

LabelColours = Mapping[int, tuple[int, int, int]]


def triplanar(
    data: NDArray[np.generic],
    affine: NDArray[np.floating],
    position: Sequence[float],
    *,
    labels: NDArray[np.integer] | None = None,
    label_colours: LabelColours | None = None,
    opacity: float = 0.45,
    window: tuple[float, float] = (-1.0, 1.0),
    radiological: bool = False,
    title: str = "",
    height: int = 330,
) -> go.Figure:
    """Draw the sagittal, coronal and axial plane through a position, side by side, at one scale.

    Parameters
    ----------
    data : ndarray, shape (x, y, z)
        Intensities in RAS+ axis order.
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
    radiological : bool
        Show the patient's left on the right; else on the left.

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
        ends = letters[1::-1] + letters[2:] if radiological and across == 0 else letters
        annotations += _letters(suffix, f"{name}, {'xyz'[fixed]} = {at[fixed]:.0f} mm", ends)
        one_scale = {"visible": False, "constrain": "domain", "scaleanchor": "x" if suffix else None}
        mirrored = radiological and across == 0
        figure.layout[f"xaxis{suffix}"].update(one_scale, range=corners[across][:: -1 if mirrored else 1])
        figure.layout[f"yaxis{suffix}"].update(one_scale, range=corners[up], scaleanchor="x", constraintoward="top")
    figure.update_layout(title={"text": title, "x": 0.05} if title else None, shapes=shapes, annotations=annotations)
    return styled(figure, height, top=60 if title else 30)


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
