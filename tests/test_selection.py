"""One selection of cases, shown and changed by every chart, table and sheet."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from core import plots
from core.plots import style
from core.settings import from_environment
from core.workflows import read_results
from core.workflows.results import qc_of
from pages import selection
from tests.test_page_viewer import sent
from tests.test_pages import ROOT, show, study, workspace  # noqa: F401  fixtures

CHOSEN = [("Alpha", "a0"), ("real", "r2")]


def run(page, path, **state):
    app = AppTest.from_file(str(ROOT / page), default_timeout=60)
    for key, value in {"study": path, selection.OF_STUDY: path, selection.CASES: list(CHOSEN), **state}.items():
        app.session_state[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def marked(app, key):
    """The cases that stand out in a chart."""
    charts = [element for element in app.get("plotly_chart") if key in element.proto.id]
    traces = json.loads(charts[0].proto.spec)["data"]
    return {tuple(trace["customdata"][point][1::-1]) for trace in traces for point in trace.get("selectedpoints") or []}


@pytest.fixture
def scatter(study):  # noqa: F811
    results = read_results(from_environment(), study)
    return plots.qc_scatter({name: qc_of(results, name) for name in ("real", "Alpha")}, 0.7)


def test_the_points_of_a_figure_name_their_cases(scatter):
    assert plots.cases_of(scatter) == {(f"r{i}", "real") for i in range(3)} | {(f"a{i}", "Alpha") for i in range(3)}


def test_marking_cases_leaves_the_figure_as_it_was(scatter):
    before = json.loads(scatter.to_json())
    points = plots.mark_cases(scatter, {("a1", "Alpha")}).data
    assert json.loads(scatter.to_json()) == before
    assert len(points[0].selectedpoints) == 0  # the others are faint
    assert {points[1].customdata[i][0] for i in points[1].selectedpoints} == {"a1"}
    assert len(points[1].selectedpoints) == 8  # one for each score
    assert plots.mark_cases(scatter, set()).data[0].selectedpoints is None


@pytest.mark.parametrize(("page", "key"), [("pages/quality.py", "qc_strips"), ("pages/anatomy.py", "region_volumes")])
def test_charts_of_cases_show_what_is_selected_elsewhere(study, page, key):  # noqa: F811
    assert marked(run(page, study), key) == set(CHOSEN)


def test_a_selected_case_is_drawn_although_its_cohort_is_too_large_for_all(study, monkeypatch):  # noqa: F811
    monkeypatch.setattr(style, "MOST_SHOWN", 2)
    app = run("pages/quality.py", study, **{selection.CASES: [("Alpha", "a1")]})
    assert marked(app, "qc_strips") == {("Alpha", "a1")}
    app = run("pages/quality.py", study, **{selection.CASES: [("real", "r1")]})
    assert marked(app, "qc_strips") == {("real", "r1")}
    (chart,) = [element for element in app.get("plotly_chart") if "qc_strips" in element.proto.id]
    assert "real (shows 3 of N = 3)" in chart.proto.spec and "Alpha (shows 2 of N = 3)" in chart.proto.spec


def test_tables_of_cases_tick_what_is_selected_elsewhere(study):  # noqa: F811
    app = run("pages/quality.py", study)
    assert app.session_state["failing"]["selection"]["rows"] == [0]  # a0 is the one volume that fails
    app = run("pages/quality.py", study, **{selection.CASES: [("real", "r1")]})
    assert app.session_state["failing"]["selection"]["rows"] == []


@pytest.fixture
def state(monkeypatch):
    state = {"study": "here", selection.OF_STUDY: "here", selection.CASES: [*CHOSEN, ("Alpha", "a1")]}
    monkeypatch.setattr(selection.st, "session_state", state)
    return state


def test_ticking_rows_changes_only_the_cases_of_the_table(state):
    state["table"] = {"selection": {"rows": [1]}}
    selection._take_rows("table", [("Alpha", "a0"), ("Alpha", "a2")], [0])()
    assert selection.selected() == [("real", "r2"), ("Alpha", "a1"), ("Alpha", "a2")]
    before = selection.selected()
    state["other"] = {"selection": {"rows": [2, 0]}}  # told with the click above, as the page had ticked them
    selection._take_rows("other", [("real", "r2"), ("real", "r0"), ("Alpha", "a1")], [0, 2])()
    assert selection.selected() == before


def test_points_replace_the_selection_and_a_click_beside_them_keeps_it(state):
    points = [{"customdata": ["a2", "Alpha (control)", "thalamus"]}, {"customdata": {"0": "r0", "1": "real"}}, {}]
    state["chart"] = {"selection": {"points": points}}
    take = selection._take_points("chart", {"Alpha (control)": "Alpha"})
    take()
    assert selection.selected() == [("Alpha", "a2"), ("real", "r0")]
    state["chart"] = {"selection": {"points": []}}
    take()
    assert selection.selected() == [("Alpha", "a2"), ("real", "r0")]


def test_switching_adds_and_takes_away(state):
    selection.mark(("Alpha", "a1"), False)
    selection.mark(("Alpha", "a9"), True)
    assert selection.selected() == [*CHOSEN, ("Alpha", "a9")]


def test_the_sidebar_lists_opens_and_clears_it(study):  # noqa: F811
    app = run("app.py", study, demo_checked=True)
    words = " ".join(element.value for element in (*app.sidebar.markdown, *app.sidebar.caption))
    assert "2 cases selected" in words and "a0" in words and "r2" in words
    app.sidebar.button(key="clear_selected").click().run()
    assert app.session_state[selection.CASES] == []
    assert "selected" not in " ".join(element.value for element in app.sidebar.markdown)


def sidebar_of(app):
    assert not app.exception, app.exception
    words = " ".join(element.value for element in (*app.sidebar.markdown, *app.sidebar.caption))
    return words, {button.key: button.label for button in app.sidebar.button}


def test_a_reason_of_a_verdict_gives_the_selection_made_by_hand_back(study, monkeypatch):  # noqa: F811
    went = []
    monkeypatch.setattr(selection.shared.st, "switch_page", lambda path, **_: went.append(path))
    app = run("app.py", study, demo_checked=True)
    app.button(key="gate_Alpha").click().run()
    keys = (selection.CASES, selection.LINKED, selection.REPLACED, selection.TOLD)

    def again(app):  # AppTest leaves app.py out when it runs an app once more
        kept = {key: app.session_state[key] for key in keys if key in app.session_state}
        return run("app.py", study, demo_checked=True, **kept)

    app = again(app)
    words, buttons = sidebar_of(app)
    assert "1 case selected" in words and went[-1] == "pages/quality.py"  # a0 is the one volume that fails
    assert buttons["selected_before"] == "Back to your selection (2 cases)"
    assert "Yours is kept" in app.toast[0].value
    assert not again(app).toast  # said once
    app.sidebar.button(key="selected_before").click().run()
    assert app.session_state[selection.CASES] == CHOSEN
    words, buttons = sidebar_of(again(app))
    assert "2 cases selected" in words and "selected_before" not in buttons  # offered once


def test_synthetic_brains_are_opened_beside_a_real_one(study, monkeypatch):  # noqa: F811
    went = []
    monkeypatch.setattr(selection.shared.st, "switch_page", lambda path, **_: went.append(path))
    chosen = [("Alpha", "a0"), ("Alpha", "a1")]
    app = run("app.py", study, demo_checked=True, **{selection.CASES: chosen})
    assert sidebar_of(app)[1]["open_selected"] == "Open all 2 beside a real brain"
    app = run("pages/quality.py", study, **{selection.CASES: chosen})
    app.button(key="open_qc_strips").click().run()
    assert went == ["pages/viewer.py"]
    asked = {key: app.session_state[key] for key in ("selected_cohort", "selected_case", "selected_beside")}
    assert asked == {"selected_cohort": "real", "selected_case": "", "selected_beside": chosen}
    app = run("pages/viewer.py", study, **asked)
    assert app.session_state["viewer_panes"] == ["real", "synthetic", "Alpha\na1"]
    for pairs, words in (([*chosen, ("real", "r1")], "all 3 in the viewer"), (chosen[:1], "a0 in the viewer")):
        app = run("app.py", study, demo_checked=True, **{selection.CASES: pairs})
        assert sidebar_of(app)[1]["open_selected"] == f"Open {words}"


def test_one_link_after_another_keeps_the_selection_made_by_hand(state):
    by_hand = selection.selected()
    selection.lead([("real", "r0")])
    selection.lead([])
    assert selection.selected() == [] and selection.replaced() == by_hand
    selection.lead([("real", "r1")])
    selection.mark(("Alpha", "a1"), True)  # a selection of one's own again
    selection.lead([("real", "r0")])
    assert selection.replaced() == [("real", "r1"), ("Alpha", "a1")]
    selection.rename({"Alpha": "Beta"})
    assert selection.replaced() == [("real", "r1"), ("Beta", "a1")]
    state["study"] = "there"
    assert selection.replaced() == []


def test_the_sidebar_follows_a_part_of_the_page_that_runs_alone(study):  # noqa: F811
    def alone() -> None:
        import streamlit as st

        from pages import selection

        if not st.session_state.get("part"):  # a run of a fragment leaves out what stands before it
            selection.show_selected()
        if st.session_state.pop("part", False):
            selection.mark(("Alpha", "a1"), True)
            selection.follow()

    app = AppTest.from_function(alone, default_timeout=60)
    app.session_state["study"], app.session_state[selection.OF_STUDY] = study, study
    app.session_state[selection.CASES] = list(CHOSEN)
    app.run()
    app.session_state["part"] = True
    app.run()
    assert "3 cases selected" in " ".join(element.value for element in app.sidebar.markdown)


def test_another_study_has_its_own_selection(study):  # noqa: F811
    app = run("app.py", study, demo_checked=True, **{selection.OF_STUDY: "/elsewhere/study.toml"})
    assert "selected" not in " ".join(element.value for element in app.sidebar.markdown)


def test_the_sheet_frames_it_and_can_show_it_alone(study):  # noqa: F811
    app = run("pages/viewer.py", study, viewer_show="Contact sheet")
    cells = sent(app, "synthscope_sheet")["cells"]
    assert {(c["cohort"], c["case"]) for c in cells if c["selected"]} == set(CHOSEN) and len(cells) == 6
    app.toggle(key="viewer_only_selected").set_value(True).run()
    assert len(sent(app, "synthscope_sheet")["cells"]) == 2


def test_nothing_is_marked_before_anything_was_selected(study):  # noqa: F811
    app = show("quality", study)
    assert marked(app, "qc_strips") == set()
    for key in ("open_qc_strips", "open_failing"):  # in the room of the button that comes, so that nothing moves
        assert app.button(key=key).disabled
