"""Plotly's toolbar in a real browser: it lies over no title, label or legend of a figure as pages show it."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from core import plots
from core.quality import QC_SCORES
from pages import look
from tests.test_viewer_browser import launch, playwright  # noqa: F401  the fixture

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAMES = [
    "VAE-GAN, seed 1",
    "α-WGAN, seed 1",
    "HA-GAN of the second try",
    "MONAI-LDM",
    "MedSyn, 50 steps",
    "cDPM",
    "Blur",
]
ROWS = [{"cohort": name, "n": n, "value": i + 1 / n} for i, name in enumerate(NAMES) for n in (4, 8)]
CASES = pd.DataFrame(
    {"cohort": np.repeat(NAMES, 3), "case": [f"c{i}" for i in range(21)], "x": range(21), "y": range(21)}
).assign(method="pca", share_x=0.4, share_y=0.2)
BELOW = """async ([figure, width]) => {
  const plot = document.querySelector("#plot");
  await Plotly.newPlot(plot, figure.data, { ...figure.layout, width }, { displaylogo: false });
  const bar = plot.querySelector(".modebar").getBoundingClientRect();
  const words = [...plot.querySelectorAll("svg text")].filter((text) => text.textContent.trim());
  const under = (box) => box.left < bar.right && box.right > bar.left && box.top < bar.bottom && box.bottom > bar.top;
  return [bar.height, words.length, words.filter((text) => under(text.getBoundingClientRect())).map((text) => text.textContent)];
}"""


def figures() -> dict[str, go.Figure]:
    scores = pd.DataFrame(0.9, index=["a", "b"], columns=list(QC_SCORES))
    curve = pd.DataFrame(ROWS).assign(ci_low=0.0, ci_high=9.0)
    dots = pd.DataFrame(ROWS[::2]).assign(metric="FID (Fréchet distance)", encoder="deepbet", variant="corrected")
    dots = dots.assign(direction="lower", floor=0.1, n_real=8, n_synthetic=8, ci_low=dots["value"], ci_high=9.0)
    title = "MMD² (RBF), of the features of a network (squared units)"
    return {
        "quality": plots.qc_scatter(dict.fromkeys(NAMES, scores), 0.7),
        "map": plots.joint_map(CASES),
        "curve": plots.score_curve(curve, pd.Series(0.5, index=NAMES), title=title, width=2048),
        "dots": plots.metric_dots(dots),
    }


def test_the_toolbar_of_a_figure_lies_over_none_of_its_words(playwright):  # noqa: F811
    browser = launch(playwright)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_content("<div id='plot'></div>")
    page.add_script_tag(content=get_plotlyjs())
    wrong = []
    for name, figure in figures().items():
        content = look.dressed(figure, "light").to_json(validate=False)
        for width in (446, 900):
            height, words, hidden = page.evaluate(f"(width) => ({BELOW})([{content}, width])", width)
            assert height > 10 and words > 3, name
            wrong += [(name, width, text) for text in hidden]
    browser.close()
    assert not wrong, "\n".join(map(str, wrong))
