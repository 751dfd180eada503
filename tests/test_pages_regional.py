"""The quality and anatomy pages in their states: results of every kind, another gate, margin, bound or threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from core import anatomy
from core.quality import QC_SCORES, quality_table
from core.settings import from_environment
from core.store import write_csv
from core.workflows import regional
from core.workflows.results import results_folder
from pages import heatmap_parts, shared
from tests.test_anatomy import aged, cohort
from tests.test_pages import ROOT, show, study, words, workspace

__all__ = ["study", "workspace"]  # fixtures
N = 14


@pytest.fixture
def compared(study):
    """The study of three and three with results as if of 14 and 14: a small hippocampus, three volumes that fail."""
    real, people = aged(N, 0, yearly=-0.004)
    volumes = {
        "real": real.set_axis([f"r{i}" for i in range(N)]),
        "Alpha": cohort(N, 1).set_axis([f"a{i}" for i in range(N)]),
    }
    volumes["Alpha"][["left hippocampus", "right hippocampus"]] *= 0.6
    qc = {name: pd.DataFrame(0.9, index=t.index, columns=list(QC_SCORES)) for name, t in volumes.items()}
    qc["Alpha"].iloc[:3, 5] = 0.5
    people.index = volumes["real"].index
    nobody = pd.DataFrame({"participant": "", "age": np.nan, "sex": ""}, index=volumes["Alpha"].index)
    sides = [regional.Side(volumes[n], qc[n], p) for n, p in (("real", people), ("Alpha", nobody))]
    comparison = regional.compare(*sides, threshold=0.65, engine="atlas", seed=0)
    folder = results_folder(from_environment(), Path(study))
    tables = regional.stack({"Alpha": comparison, "real": regional.norms_of_real(sides[0])})
    for name, table in tables.items():
        write_csv(table, folder / f"{name}.csv")
    before = regional.at_gate(tables["regional"], False)
    write_csv(before[["cohort", *anatomy.EFFECT_COLUMNS]], folder / "effect_sizes.csv")
    write_csv(quality_table(qc["real"], {"Alpha": qc["Alpha"]}, threshold=0.65), folder / "quality.csv")
    for name, parts in (("volumes.csv", volumes), ("qc.csv", qc)):
        stacked = pd.concat({k: t.rename_axis("subject") for k, t in parts.items()}, names=["cohort"]).reset_index()
        write_csv(stacked, folder / name)
    return study


def page(name: str, study: str) -> AppTest:
    return show(name, study)


def test_quality_moves_the_threshold_as_a_what_if(compared):
    app = page("quality", compared)
    found = words(app)
    assert "Move it to see" in found and "What if" not in found
    assert "looks at the image and its segmentation" in found and "α-WGAN" in found  # the caveat, and the paper's table
    failing = app.dataframe[1].value
    assert failing["subject"].tolist() == ["a0", "a1", "a2"]
    app.slider(key="what_if_threshold").set_value(0.4).run()
    assert not app.exception
    found = words(app)
    assert "**What if** the threshold were 0.400?" in found and "0.650" in found and "No volume fails." in found
    study_gate, what_if = app.dataframe[0].value, app.dataframe[1].value
    assert study_gate["failed_volumes"].tolist() == [0, 3] and what_if["failed_volumes"].tolist() == [0, 0]


def tab(app: AppTest, name: str) -> str:
    """What the Anatomy page says once a tab is open."""
    app.session_state["anatomy_tab"] = name
    app.run()
    assert not app.exception
    return words(app)


def test_anatomy_shows_all_that_stands_beside_an_effect(compared):
    app = page("anatomy", compared)
    for text in ("hippocampus", "Wasserstein", "the engine's own noise in d", "within the engine's own noise",
                 "percentile", "Hedges' g"):  # fmt: skip
        assert text in words(app), text
    assert "the real slopes stand alone" in tab(app, "Age and sex")
    assert "Pairs that differ most" in tab(app, "Correlation")
    assert "Mean ± SD over people" in tab(app, "Asymmetry")
    assert "both sides of a region have its value" in tab(app, "On the atlas")
    found = tab(app, "The paper's Table 3")
    assert "cDPM 37, MedSyn 9, HA-GAN 3" in found and "HA-GAN 19" in found and "38 (cDPM)" in found


def test_anatomy_after_the_gate_and_at_other_margins_and_bounds(compared):
    app = page("anatomy", compared)
    assert "14 synthetic" in words(app)
    app.segmented_control(key="anatomy_gate").set_value("only volumes that pass the gate").run()
    assert not app.exception
    assert "11 synthetic" in words(app) and "Survivors only" in words(app)
    app.slider(key="margin").set_value(0.05).run()
    assert "0 equivalent, " in words(app)
    app.slider(key="margin").set_value(1.0).run()
    many = words(app)
    assert not app.exception
    tab(app, "Exclusion list")
    app.slider(key="exclusion_bound").set_value(2.0).run()
    assert not app.exception
    assert " equivalent, " in many and "0 equivalent, " not in many
    assert " equivalent, " not in words(page("anatomy", compared))  # its first table says so
    assert "d| above 2.00" in words(app)


def test_anatomy_draws_the_open_tab_alone_and_keeps_the_choices_of_the_others(compared):
    app = page("anatomy", compared)
    charts = ("plotly_chart", "bidi_component")
    assert {chart.proto.id.rsplit("-", 1)[-1] for kind in charts for chart in app.get(kind)} >= {
        "effects_heatmap", "region_volumes"
    }  # fmt: skip
    app.selectbox(key="anatomy_chosen_order").select("by name").run()
    app.slider(key="margin").set_value(0.5).run()
    app.selectbox(key="anatomy_chosen_region_").select("cuneus").run()
    tab(app, "On the atlas")
    assert [chart.proto.id.rsplit("-", 1)[-1] for chart in app.get("plotly_chart")] == ["atlas_effects"]
    app.slider(key="atlas_x").set_value(10).run()
    tab(app, "Effect sizes")
    assert not any("Session State" in warning.value for warning in app.warning)
    assert app.selectbox(key="anatomy_chosen_order").value == "by name" and app.slider(key="margin").value == 0.5
    assert app.selectbox(key="anatomy_chosen_region_").value == "cuneus"
    app.session_state["effects_table"] = {"selection": {"rows": [3]}}
    app.run()
    picked = app.selectbox[1].value
    tab(app, "On the atlas")
    tab(app, "Effect sizes")
    assert app.selectbox[1].value == picked != "cuneus"
    tab(app, "On the atlas")
    assert app.slider(key="atlas_x").value == 10


def test_anatomy_shows_the_volumes_behind_a_cell_of_the_heatmap(compared, monkeypatch):
    clicked, draw = [], heatmap_parts.show

    def click(cells, key, on_cell):  # AppTest cannot click components
        if clicked:
            on_cell(*clicked.pop())
        draw(cells, key, on_cell)

    monkeypatch.setattr(heatmap_parts, "show", click)
    app = page("anatomy", compared)
    app.session_state["effects_table"] = {"selection": {"rows": [3]}}
    app.run()
    for region in ("cuneus", "putamen"):
        clicked.append((region, "Alpha"))
        app.run()
        assert not app.exception and f"**{region}, Alpha**: d =" in words(app)
        assert app.session_state[shared.LANDING][0] == "volumes-behind-the-effect-size"
        app.run()
        assert f"**{region}, Alpha**: d =" in words(app)
    app.button(key="anatomy_back").click().run()
    assert not app.exception and app.session_state[shared.LANDING][0] == "effects_heatmap"


def test_anatomy_of_results_without_regional_tables_says_so(study):
    app = show("anatomy", study)
    assert "These results have effect sizes alone." in words(app) and "hippocampus" in words(app)
    assert "they need at least 10 volumes" in tab(app, "Correlation")
    assert "Age and sex are not known" in tab(app, "Age and sex")


def test_quality_lists_first_what_the_link_to_it_is_about(compared):
    def listed(**state: object) -> tuple[AppTest, list[str]]:
        app = AppTest.from_file(str(ROOT / "pages/quality.py"), default_timeout=60)
        for key, value in ({"study": compared} | state).items():
            app.session_state[key] = value
        app.run()
        assert not app.exception
        return app, app.dataframe[1].value["cohort"].unique().tolist()

    folder = results_folder(from_environment(), Path(compared))
    qc = pd.read_csv(folder / "qc.csv")
    qc.loc[(qc["cohort"] == "real") & (qc["subject"] == "r1"), QC_SCORES[0]] = 0.1  # the worst of all
    write_csv(qc, folder / "qc.csv")
    assert listed()[1] == ["real", "Alpha"]
    led = {shared.LANDING: ("volumes-that-fail", 1.0), shared.ASKED: ("Alpha", "")}
    app, cohorts = listed(**led)
    assert cohorts == ["Alpha"] and app.segmented_control(key="failing_of_1.0").value == "Alpha"
    app.segmented_control(key="failing_of_1.0").set_value("all cohorts").run()
    assert app.dataframe[1].value["cohort"].unique().tolist() == ["real", "Alpha"]
    app.slider(key="what_if_threshold").set_value(0.2).run()  # no volume of Alpha fails there
    assert not app.exception and app.dataframe[2].value["cohort"].unique().tolist() == ["real"]
    assert listed(**led | {shared.LANDING: ("elsewhere", 2.0)})[1] == ["real", "Alpha"]
