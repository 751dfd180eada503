"""The viewer page without a browser: choices, addresses, what is gone, the sheet and the list."""

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core import jobs
from core.settings import from_environment
from core.study import CohortSpec, StudySpec, write_spec
from core.workflows import remember_study, results_folder
from pages import shared

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def study(tmp_path, monkeypatch, write_brains):
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    folder = tmp_path / "study"
    write_brains(folder / "real", 2, prefix="r")
    write_brains(folder / "alpha", 3, seed=1, prefix="a")
    cohort = {"Alpha": CohortSpec(images="alpha/*.nii.gz")}
    spec = StudySpec(name="five", grid="half", real=CohortSpec(images="real/*.nii.gz"), synthetic=cohort)
    write_spec(spec, folder / "study.toml")
    return remember_study(from_environment(), str(folder / "study.toml"))


def viewer(path, **query):
    app = AppTest.from_file(str(ROOT / "pages" / "viewer.py"), default_timeout=60)
    app.session_state["study"] = path
    for name, value in query.items():
        app.query_params[name] = value
    return run(app)


def run(app):
    app.run()
    assert not app.exception, app.exception
    return app


def sent(app, name="synthscope_viewer"):
    """What the page sends to a component."""
    found = [e.proto for e in app.main if e.type == "bidi_component"] or list(_protos(app._tree.root))
    return json.loads(next(proto.json for proto in found if proto.component_name == name))


def _protos(block):
    for child in getattr(block, "children", {}).values():
        if getattr(child, "type", "") == "bidi_component":
            yield child.proto
        yield from _protos(child)


def test_panes_are_files_over_http(study):
    data = sent(viewer(study))
    assert [pane["case"] for pane in data["panes"]] == ["r-00", "a-00"]
    assert all("/media/" in pane["image"] and pane["labels"] is None for pane in data["panes"])
    assert "/media/" in data["library"]
    assert len(json.dumps(data)) < 20_000  # no volume inside the page


def test_a_link_restores_study_cases_panes_and_view(study):
    link = sent(viewer(study, cohort="Alpha", case="a-02"))["link"]
    assert link["synthetic_case"] == "a-02"
    link |= {"panes": "synthetic|template|Alpha\na-01", "radiological": "1", "view": '{"mm":[1,2,3]}'}
    app = AppTest.from_file(str(ROOT / "pages" / "viewer.py"), default_timeout=60)
    for name, value in link.items():  # a session that never chose the study
        app.query_params[name] = value
    data = sent(run(app))
    assert [pane["case"] for pane in data["panes"]] == ["a-02", "ICBM152, scaled", "a-01"]
    assert data["radiological"] is True and json.loads(data["view"]) == {"mm": [1, 2, 3]}
    assert {**data["link"], "view": link["view"]} == link


def test_a_link_to_what_is_gone_is_explained(study):
    app = viewer(study, cohort="Alpha", case="a-99")
    assert "no case 'a-99' in 'Alpha'" in app.warning[0].value
    assert [pane["case"] for pane in sent(app)["panes"]] == ["r-00", "a-00"]
    assert "does not know" in viewer(study, study="0123456789abcdef").warning[0].value


def test_a_volume_that_vanishes_or_breaks_is_explained(study):
    app = viewer(study, cohort="Alpha", case="a-02")
    folder = Path(study).parent / "alpha"
    (folder / "a-02.nii.gz").unlink()
    (folder / "a-00.nii.gz").write_bytes(b"broken")
    shared.files_changed.clear()  # as LOOK_SECONDS later
    run(app)
    assert any("a-02 is no longer there" in warning.value for warning in app.warning)
    real, synthetic = sent(app)["panes"]
    assert not real["error"] and "a-00" in synthetic["error"]


def test_a_study_that_is_renamed_while_open_is_explained(study):
    app = viewer(study)
    folder = Path(study).parent
    folder.rename(folder.with_name("elsewhere"))
    run(app)
    assert any("is no longer there" in warning.value and study in warning.value for warning in app.warning)


def test_choices_outlive_another_form(study):
    app = viewer(study, cohort="Alpha", case="a-01")
    app.segmented_control(key="viewer_show").select("Slices for print")
    run(app)
    assert app.selectbox(key="viewer_synthetic_Alpha").value == "a-01"
    app.segmented_control(key="viewer_show").select("Contact sheet")
    cells = sent(run(app), "synthscope_sheet")["cells"]
    assert sorted(cell["case"] for cell in cells) == ["a-00", "a-01", "a-02", "r-00", "r-01"]
    app.segmented_control(key="viewer_show").select("Brains")
    assert [pane["case"] for pane in sent(run(app))["panes"]] == ["r-00", "a-01"]


def test_the_sheet_sorts_and_mirrors(study):
    app = viewer(study)
    app.segmented_control(key="viewer_show").select("Contact sheet")
    run(app)
    app.selectbox(key="viewer_sort").select("case name")
    app.toggle(key="viewer_down").set_value(True)
    app.toggle(key="viewer_radiological").set_value(True)
    data = sent(run(app), "synthscope_sheet")
    assert [cell["case"] for cell in data["cells"]] == ["r-01", "r-00", "a-02", "a-01", "a-00"]
    assert data["letters"] == "RL" and data["mirrored"]


def test_the_case_list_shows_a_picture_of_every_case(study):
    app = viewer(study)
    app.segmented_control(key="viewer_show").select("Case list")
    table = run(app).dataframe[0].value
    assert sorted(table["case"]) == ["a-00", "a-01", "a-02", "r-00", "r-01"]
    assert table["picture"].str.startswith("data:image/jpeg;base64,").all()


def test_nearest_in_size_says_what_it_needs(study):
    shutil.rmtree(results_folder(from_environment(), Path(study)))
    app = viewer(study, panes="synthetic|nearest")
    assert "evaluate the study" in sent(app)["panes"][1]["error"]
