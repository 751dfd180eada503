"""Show which metrics each control cohort moves: simulate them, evaluate them as one study, draw the response.

The response is the difference from the floor in units of the interval of a cohort without defect: |1| is what chance
alone reaches in one of twenty comparisons. Resumes where it stopped; needs Chromium for the picture.

    python -m docs.make_control_picture WORKSPACE [--n 24] [--encoder random-r50 ...] [--draw-only]
"""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from core import metrics, settings, simulate, workflows
from core.cluster import open_pool
from core.pools import Context
from core.study import CohortSpec, StudySettings, StudySpec, write_spec
from docs.make_screenshots import chromium_page

DOCS = Path(__file__).parent
TABLE, PICTURE = DOCS / "control_response.csv", DOCS / "images" / "control_response.png"
REAL_SEED, CLEAN_SEED = 100, 150
CLEAN = "no defect"
COHORTS = {  # name: defect and seed
    CLEAN: ("", CLEAN_SEED),
    "blur": ("blur:1.5", 200),
    "noise": ("noise", 600),
    "collapse": ("collapse", 300),
    "shrunken-hippocampus": ("shrunken-hippocampus:0.3", 400),
    "large-ventricles": ("large-ventricles", 700),
    "background-artefact": ("background-artefact", 800),
    "left-right-flip": ("left-right-flip", 900),
}
SHOWN = 10.0  # response at which the colour is full


def evaluate(workspace: Path, n: int, encoders: list[str], workers: int) -> pd.DataFrame:
    """Simulate and evaluate the cohorts; return metrics.csv with the largest effect size of each cohort added."""
    own = replace(settings.from_environment(), workspace=workspace, workers=workers)
    folder = workspace / "control"
    with open_pool(own) as pool:
        context = Context(own, pool, report=lambda fraction, message: sys.stderr.write(f"{message}\n"))
        workflows.simulate_cohort(context, str(folder / "real"), n, REAL_SEED, "half", "")
        for name, (defect, seed) in COHORTS.items():
            workflows.simulate_cohort(context, str(folder / name), n, seed, "half", defect)
        names = ("real", *COHORTS)
        specs = {name: CohortSpec(images=f"{name}/*.nii.gz", volumes=f"{name}/true_volumes.csv") for name in names}
        plan = StudySettings(encoders=tuple(encoders))
        real = specs.pop("real")
        write_spec(
            StudySpec(name="controls", grid="half", real=real, synthetic=specs, settings=plan), folder / "study.toml"
        )
        workflows.evaluate(context, str(folder / "study.toml"), str(folder / "out"))
    scores = pd.read_csv(folder / "out" / "metrics.csv")
    effects = pd.read_csv(folder / "out" / "effect_sizes.csv")
    return pd.concat([scores, largest_effects(effects)], ignore_index=True)


def largest_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """Rows in the form of metrics.csv for the region with the largest difference, and its interval."""
    rows = effects.loc[effects.groupby("cohort")["cohens_d"].apply(lambda d: d.abs().idxmax())]
    sign = np.sign(rows["cohens_d"])
    low, high = (rows[c] * sign for c in ("ci_low", "ci_high"))
    return pd.DataFrame(
        {
            "cohort": rows["cohort"],
            "metric": "largest |d|, true volumes",
            "encoder": "",
            "variant": "corrected",
            "value": rows["cohens_d"].abs(),
            "ci_low": np.minimum(low, high),
            "ci_high": np.maximum(low, high),
            "direction": "lower",
            "floor": effects[effects["cohort"] == CLEAN]["cohens_d"].abs().max(),
        }
    )


def responses(scores: pd.DataFrame) -> pd.DataFrame:
    """Response of every metric to every cohort: (value − floor) / half the interval of the cohort without defect."""
    scores = scores.assign(encoder=scores["encoder"].fillna(""))
    keys = ["metric", "variant", "encoder"]
    clean = scores[scores["cohort"] == CLEAN].set_index(keys)
    scores = scores.set_index(keys)
    half = ((clean["ci_high"] - clean["ci_low"]) / 2).reindex(scores.index)
    half = half.where(half > 0)  # a share that is 1 in every half-sample has no interval to measure by
    out = scores.assign(response=(scores["value"] - scores["floor"]) / half).reset_index()
    return out[["cohort", *keys, "direction", "value", "floor", "response"]]


def figure(table: pd.DataFrame) -> go.Figure:
    """Draw cohorts by metrics; positive is above the floor."""
    order = {name: i for i, name in enumerate(dict.fromkeys(metric.name for metric in metrics.METRICS.values()))}
    names = zip(table["metric"], table["variant"], table["encoder"], strict=True)
    table = table.assign(place=table["metric"].map(order).fillna(len(order)), row=[_row_name(*row) for row in names])
    table = table.sort_values(["variant", "place", "encoder"], kind="stable")
    grid = table.pivot_table(values="response", index="row", columns="cohort", sort=False)
    grid = grid.reindex(columns=list(COHORTS))
    labels = [COHORTS[name][0] and simulate.describe(*simulate.parse_defect(COHORTS[name][0])) for name in grid.columns]
    labels = [label.removeprefix("control: ") or CLEAN for label in labels]
    labels = [textwrap.fill(label, 16).replace("\n", "<br>") for label in labels]
    chart = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(), x=labels, y=list(grid.index), zmin=-SHOWN, zmax=SHOWN, xgap=2, ygap=2,
            colorscale="RdBu_r", texttemplate="%{z:.1f}", colorbar={"title": "response", "thickness": 14},
        )
    )  # fmt: skip
    title = "Simulated control cohorts: distance from the floor, in half intervals of the cohort without defect"
    chart.update_layout(title={"text": title, "font_size": 15}, width=1180, height=150 + 25 * len(grid),
                        margin={"l": 10, "r": 10, "t": 110, "b": 10}, plot_bgcolor="white")  # fmt: skip
    chart.update_yaxes(autorange="reversed", automargin=True)
    return chart.update_xaxes(side="top", automargin=True, tickangle=0)


def draw(chart: go.Figure, path: Path) -> None:
    """Write a figure as a small PNG."""
    with chromium_page(int(chart.layout.width), int(chart.layout.height)) as page:
        page.set_content(chart.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.wait_for_timeout(2000)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path.parent.mkdir(exist_ok=True)
    picture.quantize(128, kmeans=1).save(path, optimize=True)


def main() -> None:
    """Compute the responses and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--encoder", nargs="+", default=["random-r50", "deepbet"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--draw-only", action="store_true", help=f"draw {TABLE.name} as it is")
    options = parser.parse_args()
    if not options.draw_only:
        scores = evaluate(options.workspace.resolve(), options.n, options.encoder, options.workers)
        responses(scores).to_csv(TABLE, index=False, float_format="%.5g")
    draw(figure(pd.read_csv(TABLE).fillna({"encoder": ""})), PICTURE)


def _row_name(metric: str, variant: str, encoder: str) -> str:
    name = metric if variant == "corrected" else f"{metric}, as published"
    return f"{name} · {encoder}" if encoder else name


if __name__ == "__main__":
    main()
