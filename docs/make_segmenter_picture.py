"""Draw the pictures of the embedded engine's model card: segmentations, training curve, calibration of its scores.

    python -m docs.make_segmenter_picture [--t1 SCAN]

``--t1`` adds a real head scan, preprocessed first. Needs Chromium for the plots. Writes docs/images/segmenter.png,
segmenter_curve.png and segmenter_qc.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from plotly.subplots import make_subplots

from core import anatomy, preprocess, simulate
from core.segmentation import QC_GROUPS, embedded
from core.volume import FULL, HALF, Volume
from docs.make_control_picture import draw

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
CURVES = {
    "structures": "structures, full grid",
    "hard": "structures, every fault",
    "half": "structures, half grid",
    "parcels": "cortical parcels",
}
CONTROLS = (
    "", "blur:2", "noise", "collapse", "shrunken-hippocampus:0.3", "large-ventricles", "background-artefact",
)  # fmt: skip
SEED, OPACITY, HEIGHT, TITLE = 3, 0.45, 192, 24


def main() -> None:
    """Write the three pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--t1", type=Path)
    options = parser.parse_args()
    panels = []
    if options.t1:
        panels.append(panel(preprocess.preprocess(options.t1, FULL).volume, "real scan, preprocessed"))
    for control in CONTROLS:
        defect, strength = simulate.parse_defect(control)
        case = simulate.simulate_case(HALF, SEED, 0, defect=defect, strength=strength)
        what = simulate.describe(defect, strength) if defect else "no defect"
        panels.append(panel(case.volume, f"simulated, {what}"))
    if len(panels) % 2:
        panels.append(np.zeros_like(panels[0]))
    columns = [np.vstack(panels[start::2]) for start in (0, 1)]
    Image.fromarray(np.hstack(columns)).quantize(200).save(IMAGES / "segmenter.png", optimize=True)
    draw(curves(), IMAGES / "segmenter_curve.png")
    draw(calibration(pd.read_csv(DOCS / "embedded_qc.csv")), IMAGES / "segmenter_qc.png")


def panel(volume: Volume, title: str) -> NDArray[np.uint8]:
    """Return three planes of a brain and, beside each, its segmentation, under a title with its QC scores."""
    found = embedded.segment(volume)
    colours = np.zeros((3000, 3), np.float32)
    table = anatomy.structures()
    colours[table["id"]] = table[["r", "g", "b"]]
    grey = np.repeat(((np.clip(volume.data, -1, 1) + 1) * 127.5)[..., None], 3, axis=-1)
    labels = found.labels.data[..., None]
    mixed = np.where(labels > 0, (1 - OPACITY) * grey + OPACITY * colours[found.labels.data], grey)
    x, y, z = (n // 2 for n in volume.data.shape)
    x -= volume.data.shape[0] // 10  # beside the midline, where there is something to see
    strips = [np.flipud(a.swapaxes(0, 1)) for m in (grey, mixed) for a in (m[x], m[:, y], m[:, :, z])]
    pictures = [Image.fromarray(strip.astype(np.uint8)) for strip in strips]
    scaled = [p.resize((round(p.width * HEIGHT / p.height), HEIGHT), Image.Resampling.BICUBIC) for p in pictures]
    whole = Image.new("RGB", (sum(p.width for p in scaled), HEIGHT + TITLE))
    left = 0
    for picture in scaled:
        whole.paste(picture, (left, TITLE))
        left += picture.width
    text = f"{title}   lowest QC {min(found.qc.values()):.2f}"
    ImageDraw.Draw(whole).text((6, 3), text, fill="white", font=ImageFont.load_default(15))
    return np.asarray(whole)


def curves() -> go.Figure:
    """Draw Dice of the held-out people against training steps."""
    figure, table = go.Figure(), pd.read_csv(DOCS / "embedded_training.csv")
    for column, name in CURVES.items():
        figure.add_scatter(x=table["step"], y=table[column], mode="lines+markers", name=name)
    figure.update_layout(width=900, height=380, margin={"l": 60, "r": 10, "t": 30, "b": 50}, plot_bgcolor="white")
    figure.update_xaxes(title="training step", gridcolor="#ddd")
    return figure.update_yaxes(title="mean Dice, held-out people", gridcolor="#ddd")


def calibration(table: pd.DataFrame) -> go.Figure:
    """Draw predicted against true Dice of the held-out degraded volumes, one panel a group."""
    figure = make_subplots(2, 4, subplot_titles=QC_GROUPS, horizontal_spacing=0.05, vertical_spacing=0.14)
    for number, name in enumerate(QC_GROUPS):
        rows = table[table["group"] == name]
        place = {"row": number // 4 + 1, "col": number % 4 + 1}
        figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": "#999", "width": 1}, **place)
        figure.add_scatter(
            x=rows["true"], y=rows["predicted"], mode="markers", marker={"size": 5, "color": "#005A9C"}, **place
        )
    figure.update_layout(
        width=1100, height=560, showlegend=False, margin={"l": 50, "r": 10, "t": 40, "b": 50}, plot_bgcolor="white"
    )
    figure.update_xaxes(range=[0, 1], gridcolor="#ddd", title="true Dice", row=2)
    figure.update_xaxes(range=[0, 1], gridcolor="#ddd", row=1)
    return figure.update_yaxes(range=[0, 1], gridcolor="#ddd").update_yaxes(title="predicted", col=1)


if __name__ == "__main__":
    main()
