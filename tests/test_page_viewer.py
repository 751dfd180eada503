"""The viewer page without a browser: choices, addresses, what is gone, the sheet and the list."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from core import jobs
from core.settings import from_environment
from core.study import CohortSpec, StudySpec, write_spec
from core.workflows import remember_study, results_folder
from pages import reads, sheet_parts, viewer_choices
from tests.test_viewer_browser import write_tables

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


def kept(app):
    """What the page keeps in its address."""
    return sent(app, "synthscope_address")["link"]


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
    link = kept(viewer(study, cohort="Alpha", case="a-02"))
    assert link["synthetic_case"] == "a-02" and link["radiological"] == "0"
    link |= {"panes": "synthetic|template|Alpha\na-01", "radiological": "1", "view": '{"mm":[1,2,3]}'}
    app = AppTest.from_file(str(ROOT / "pages" / "viewer.py"), default_timeout=60)
    for name, value in link.items():  # a session that never chose the study
        app.query_params[name] = value
    data = sent(run(app))
    assert [pane["case"] for pane in data["panes"]] == ["a-02", "ICBM152, scaled", "a-01"]
    assert data["radiological"] is True and json.loads(data["view"]) == {"mm": [1, 2, 3]}
    assert kept(app) == link


@pytest.mark.parametrize("show", viewer_choices.FORMS)
def test_every_form_is_restored_by_its_address(study, show):
    app = viewer(study, cohort="Alpha", case="a-02")
    app.segmented_control(key="viewer_show").select(show)
    app.toggle(key="viewer_radiological").set_value(True)
    run(app)
    if show == "Contact sheet":
        app.multiselect(key="viewer_cohorts").set_value(["Alpha"])
        app.selectbox(key="viewer_sort").select("case name")
        run(app)
    if show == "Slices for print":
        app.slider(key="viewer_x").set_value(4.0)
        run(app)
    link = kept(app)
    assert link["show"] == show and link["radiological"] == "1" and link["synthetic_case"] == "a-02"
    assert kept(viewer(study, **link)) == link


def test_once_open_the_choices_lead_not_the_address(study):
    app = viewer(study, cohort="Alpha", case="a-02", radiological="1")
    app.selectbox(key="viewer_synthetic_Alpha").select("a-01")
    app.toggle(key="viewer_radiological").set_value(False)
    link = kept(run(app))
    assert link["synthetic_case"] == "a-01" and link["radiological"] == "0"


def test_an_address_with_nonsense_is_left_out(study):
    link = {"show": "x", "plane": "x", "sort": "x", "down": "x", "position": "nan,1e999,x", "radiological": "x"}
    app = viewer(study, **link, panes="x|x\ny", cohorts="x", selected="x|y\nz")
    assert [pane["case"] for pane in sent(app)["panes"]] == ["r-00", "a-00"]
    assert "no cohort 'x'" in app.warning[0].value


def test_selectors_show_what_the_panes_show(study):
    app = viewer(study)
    opened = {"selected_cohort": "Alpha", "selected_case": "a-02"}
    for key, value in (opened | {"selected_beside": [("real", "r-01"), ("Alpha", "a-01")]}).items():
        app.session_state[key] = value
    assert [pane["case"] for pane in sent(run(app))["panes"]] == ["a-02", "r-01", "a-01"]
    assert (app.selectbox(key="viewer_real_real").value, app.selectbox(key="viewer_synthetic_Alpha").value) == (
        "r-01",
        "a-02",
    )
    for key, value in (opened | {"selected_beside": [("Alpha", "a-01")]}).items():
        app.session_state[key] = value
    assert [pane["case"] for pane in sent(run(app))["panes"]] == ["a-02", "a-01"]
    assert "viewer_real_real" not in [box.key for box in app.selectbox]  # no pane shows it
    app.session_state["selected_cohort"], app.session_state["selected_case"] = "real", "r-01"
    assert [pane["case"] for pane in sent(run(app))["panes"]] == ["r-01", "a-02"]


def test_panes_and_lists_say_what_the_gate_says_and_in_which_space_volumes_are(study):
    rows = [("real", "r-00"), ("real", "r-01"), ("Alpha", "a-00"), ("Alpha", "a-01")]
    write_tables(results_folder(from_environment(), Path(study)), rows, np.random.default_rng(0))  # the last two fail
    app = viewer(study)
    real, synthetic = sent(app)["panes"]
    assert (real["verdict"], synthetic["verdict"]) == ("QC passes", "QC fails 1 of 8") and synthetic["fails"]
    assert synthetic["known"][1] == "fails thalamus"
    assert "cm³ (atlas space)" in real["known"][0] and "native space" in real["meaning"]
    assert "0.500 ✗ fails" in app.dataframe[0].value.iloc[:, 2].tolist()
    app.segmented_control(key="viewer_show").select("Contact sheet")
    cells = sent(run(app), "synthscope_sheet")["cells"]
    assert [cell["verdict"] for cell in cells][:2] == ["fails 1 of 8: thalamus"] * 2
    app.segmented_control(key="viewer_show").select("Case list")
    assert run(app).dataframe[0].value["verdict"].tolist() == ["fails 1 of 8: thalamus"] * 2 + ["passes"] * 2 + [""]


def test_a_link_to_what_is_gone_is_explained(study):
    app = viewer(study, cohort="Alpha", case="a-99")
    assert "no case 'a-99' in 'Alpha'" in app.warning[0].value
    assert "no cohort 'Beta'" in (words := viewer(study, cohort="Beta", case="a-00").warning[0].value)
    assert "Its cohorts are: real, Alpha." in words
    assert [pane["case"] for pane in sent(app)["panes"]] == ["r-00", "a-00"]
    assert "does not know" in viewer(study, study="0123456789abcdef").warning[0].value


def test_a_volume_that_vanishes_or_breaks_is_explained(study):
    app = viewer(study, cohort="Alpha", case="a-02")
    folder = Path(study).parent / "alpha"
    (folder / "a-02.nii.gz").unlink()
    (folder / "a-00.nii.gz").write_bytes(b"broken")
    reads.files_changed.clear()  # as LOOK_SECONDS later
    run(app)
    assert any("no case 'a-02'" in warning.value for warning in app.warning)
    real, synthetic = sent(app)["panes"]
    assert not real["error"] and "a-00" in synthetic["error"]


def test_a_pane_whose_file_is_gone_says_so_above_what_was_known_of_it(study, monkeypatch):
    rows = [("Alpha", "a-00"), ("real", "r-00"), ("real", "r-01"), ("Alpha", "a-02")]
    write_tables(results_folder(from_environment(), Path(study)), rows, np.random.default_rng(0))  # the last two fail
    monkeypatch.setattr(reads, "files_changed", lambda *_: False)  # the study was read a moment before
    app = viewer(study, panes="synthetic|Alpha\na-00|Alpha\na-01", cohort="Alpha", case="a-02")
    assert [pane["verdict"] for pane in sent(app)["panes"]] == ["QC fails 1 of 8", "QC passes", "QC unknown yet"]
    folder = Path(study).parent / "alpha"
    (folder / "a-02.nii.gz").unlink()
    (folder / "a-00.nii.gz").write_bytes(b"broken")
    (folder / "a-01.nii.gz").unlink()
    gone, broken, unknown = sent(run(app))["panes"]
    assert [pane["verdict"] for pane in (gone, broken, unknown)] == [
        "File is gone",
        "File cannot be used",
        "File is gone",
    ]
    assert gone["known"][0] == "from the last evaluation: QC fails 1 of 8" and "TIV" in gone["known"][1]
    assert broken["known"][0] == "from the last evaluation: QC passes" and broken["fails"]
    assert unknown["known"] == [] and "a-01" in unknown["error"]


@pytest.fixture
def two(study, write_brains):
    """The study with a second synthetic cohort, before the other one."""
    folder = Path(study).parent
    write_brains(folder / "first", 2, seed=2, prefix="b")
    text = (folder / "study.toml").read_text(encoding="utf-8")
    first = '[synthetic.First]\nimages = "first/*.nii.gz"\n\n'
    (folder / "study.toml").write_text(text.replace("[synthetic.", f"{first}[synthetic.", 1))
    return study


def delete(study, *names):
    for name in names:
        (Path(study).parent / "alpha" / f"{name}.nii.gz").unlink()
    reads.files_changed.clear()  # as LOOK_SECONDS later


@pytest.mark.parametrize("query", [
    {"cohort": "Alpha", "case": "a-01"}, {"synthetic_cohort": "Alpha", "synthetic_case": "a-01"}, {"panes": "Alpha\na-01"},
])  # fmt: skip
@pytest.mark.parametrize("late", [True, False])
def test_a_case_that_is_gone_gives_way_to_one_of_its_cohort(two, query, late):
    delete(two, *([] if late else ["a-01"]))
    app = viewer(two, **query)
    if late:
        delete(two, "a-01")
        run(app)
    for _ in range(2):  # the browser's wish for neighbours runs the page again: the words stay
        assert sent(app)["panes"][-1]["case"] == "a-02"
        assert "no case 'a-01' in 'Alpha'" in app.warning[0].value and "a-02 of the same cohort" in app.warning[0].value
        assert not app.get("popover")[0].warning  # which hides what is in it
        run(app)
    delete(two, "a-00", "a-02")
    run(app)
    assert "b-00" not in [pane["case"] for pane in sent(app)["panes"]]
    assert any("Alpha has no volume" in warning.value for warning in app.warning)
    assert app.selectbox(key="viewer_synthetic_cohort").value == "Alpha"
    assert kept(app)["synthetic_cohort"] == "Alpha"


def test_words_of_a_case_that_is_gone_end_with_another_choice(two):
    app = viewer(two, cohort="Alpha", case="a-99")
    app.selectbox(key="viewer_synthetic_Alpha").select("a-01")
    assert not run(app).warning
    app.selectbox(key="viewer_synthetic_Alpha").select("a-00")
    assert not run(app).warning


def test_an_empty_cohort_leaves_nothing_to_compare_sizes_with(two):
    app = viewer(two, panes="synthetic|nearest", cohort="Alpha", case="a-00")
    delete(two, "a-00", "a-01", "a-02")
    (pane,) = sent(run(app))["panes"]
    assert "No case is chosen" in pane["error"]
    app.segmented_control(key="viewer_show").select("Slices for print")
    run(app)


def test_cases_chosen_in_another_study_are_not_missed_in_this_one(two, tmp_path):
    other = Path(shutil.copytree(Path(two).parent, tmp_path / "other"))
    (other / "alpha" / "a-01.nii.gz").unlink()
    app = viewer(two, cohort="Alpha", case="a-01")
    app.session_state["study"] = remember_study(from_environment(), str(other))
    assert not run(app).warning
    assert [pane["case"] for pane in sent(app)["panes"]] == ["r-00", "b-00"]


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


@pytest.mark.parametrize("show", viewer_choices.SHEETS)
def test_many_brains_are_shown_a_part_at_a_time_in_one_order(study, show, monkeypatch):
    monkeypatch.setattr(sheet_parts, "AT_A_TIME", {"sheet": 2, "list": 2})
    app = viewer(study)
    app.segmented_control(key="viewer_show").select(show)
    run(app)
    app.selectbox(key="viewer_sort").select("case name")

    def parts():
        for part in (1, 2, 3):
            app.session_state["part of 5 by 2, case name, False"] = part
            run(app)
            sheet = show == "Contact sheet"
            cells = sent(app, "synthscope_sheet")["cells"] if sheet else app.dataframe[0].value.to_dict("records")
            yield [cell["case"] for cell in cells], app.caption[-1].value

    found, words = zip(*parts(), strict=True)
    assert found == (["a-00", "a-01"], ["a-02", "r-00"], ["r-01"])
    assert words[0].startswith("1–2 of 5") and words[2].startswith("5–5 of 5")
    app.toggle(key="viewer_down").set_value(True)  # others come first now
    assert run(app).caption[-1].value.startswith("1–2 of 5")
    app.multiselect(key="viewer_cohorts").set_value(["real"])
    assert run(app).caption[-1].value.startswith("2 ")
