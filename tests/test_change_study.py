"""A known study changed by its form: what is written, what is refused, what has to be computed then."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from core import audit, jobs, workflows
from core.encoders import ENCODERS
from core.errors import InputError
from core.metrics import METRICS
from core.pools import Context
from core.segmentation import SEGMENTERS
from core.settings import Settings, from_environment
from core.study import CohortSpec, StudySettings, StudySpec, read_spec, read_study, renamed, write_spec
from core.workflows import demo_folder, known_studies, to_compute, why_fixed
from core.workflows.results import results_folder
from pages import access, form_parts, selection
from tests.test_pages import NEEDS_STUDY, ROOT, show, words, workspace  # noqa: F401 - the fixture
from tests.test_pages import study as page_study  # noqa: F401 - the fixture


@pytest.fixture(autouse=True)
def no_runner(monkeypatch):
    monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study of two synthetic cohorts, of brains that nobody reads."""
    for cohort in ("real", "a", "b", "more", "seen"):
        (tmp_path / cohort).mkdir()
        for number in range(3):
            (tmp_path / cohort / f"{cohort}{number}.nii.gz").touch()
    cohorts = {"A": CohortSpec(images="a"), "B": CohortSpec(images="b")}
    write_spec(
        StudySpec(name="s", grid="half", real=CohortSpec(images="real"), synthetic=cohorts), tmp_path / "study.toml"
    )
    return tmp_path / "study.toml"


def with_cohorts(spec: StudySpec, **cohorts: str) -> StudySpec:
    return spec.model_copy(update={"synthetic": {name: CohortSpec(images=images) for name, images in cohorts.items()}})


# -- what is written ---------------------------------------------------------------------------------------------------


def test_cohorts_and_settings_are_changed_and_no_file_of_a_cohort_is_touched(path: Path, settings: Settings):
    former = read_spec(path)
    files = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*.nii.gz")}
    spec = with_cohorts(former, Renamed="a", More="more").model_copy(
        update={"training": CohortSpec(images="seen"), "settings": StudySettings(n_boot=1000, metrics=("fid",))}
    )
    workflows.change_study(settings, str(path), former, spec)
    assert read_spec(path) == spec
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*.nii.gz")} == files


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"synthetic": {"A": CohortSpec(images="nothing")}}, "'A' has no image"),
        ({"training": CohortSpec(images="nothing")}, "'training' has no image"),
        ({"real": CohortSpec(images="nothing")}, "real cohort has no image"),
        ({"synthetic": {"real": CohortSpec(images="a")}}, "cannot be called 'real'"),
        ({"real": CohortSpec(images="real", volumes="no.csv")}, "no such table"),
        ({"settings": StudySettings(encoders=("r5O",))}, "r5O"),
        ({"settings": StudySettings(metrics=("fidd",))}, "fidd"),
    ],
)
def test_a_change_to_a_study_that_cannot_be_evaluated_is_refused(path: Path, settings: Settings, change, what: str):
    before = path.read_bytes()
    former = read_spec(path)
    with pytest.raises(InputError, match=what) as caught:
        workflows.change_study(settings, str(path), former, former.model_copy(update=change))
    assert caught.value.where and caught.value.remedy
    assert path.read_bytes() == before


def test_a_cohort_that_lost_its_images_does_not_forbid_another_change(path: Path, settings: Settings):
    for file in (path.parent / "b").iterdir():
        file.unlink()
    former = read_spec(path)
    workflows.change_study(settings, str(path), former, former.model_copy(update={"name": "other"}))
    assert read_spec(path).name == "other"


def test_a_study_changed_meanwhile_is_not_overwritten(path: Path, settings: Settings):
    former = read_spec(path)
    path.write_text(path.read_text(encoding="utf-8").replace('images = "b"', 'images = "more"'), encoding="utf-8")
    theirs = path.read_bytes()
    with pytest.raises(InputError, match="changed meanwhile"):
        workflows.change_study(settings, str(path), former, with_cohorts(former, A="a"))
    assert path.read_bytes() == theirs
    path.write_text("# a remark alone\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    workflows.change_study(settings, str(path), read_spec(path), with_cohorts(former, A="a"))
    assert path.read_text(encoding="utf-8").startswith("# a remark alone")


def test_a_study_is_not_changed_while_a_job_works_on_it(path: Path, settings: Settings):
    former = read_spec(path)
    other = jobs.submit(settings, "core.workflows:evaluate", {"study": "/another/study.toml"}, "Evaluate another")
    job = jobs.submit(settings, "core.report:publish", {"study": str(path)}, "Report of s")
    with pytest.raises(InputError, match=r"under way \(Report of s\)"):
        workflows.change_study(settings, str(path), former, with_cohorts(former, A="a"))
    jobs.cancel(settings, job)
    workflows.change_study(settings, str(path), former, with_cohorts(former, A="a"))
    assert jobs.status(settings, other).active and list(read_spec(path).synthetic) == ["A"]


def test_what_cannot_be_changed_is_saved_as_a_copy_of_the_same_files(path: Path, settings: Settings, monkeypatch):
    assert why_fixed(settings, str(path)) == ""
    assert "demo" in why_fixed(settings, str(demo_folder(settings) / "study.toml"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    former, before = read_spec(path), path.read_bytes()
    with pytest.raises(InputError, match="may not write"):
        workflows.change_study(settings, str(path), former, former.model_copy(update={"name": "mine"}))
    spec = with_cohorts(former, B="b").model_copy(update={"name": "mine"})
    made = workflows.copy_study(settings, str(path), spec, str(path.parent / "copy"))
    copy = read_study(made)
    assert copy.name == "mine" and path.read_bytes() == before
    of_former = read_study(path)
    assert copy.real.cases == of_former.real.cases and copy.synthetic == of_former.synthetic[1:]
    assert made in known_studies(settings)


# -- what has to be computed -------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(path: Path, settings: Settings, context: Context, monkeypatch) -> Path:
    """The study with the record of an evaluation, in which every volume was refused but one of the real ones."""
    run = workflows.evaluation.Evaluation(context, read_study(path), [results_folder(settings, path)])
    monkeypatch.setattr(workflows.cohorts.tasks, "check", lambda *_: {"sha": str(id(_)), "notes": []})
    run.prepare()
    run.write_provenance(complete=True)
    return path


def said(path: Path, settings: Settings) -> list[str]:
    return to_compute(settings, read_study(path))


def test_a_study_never_evaluated_needs_everything(path: Path, settings: Settings):
    assert said(path, settings) == ["Everything: the study has not been evaluated yet."]


def test_nothing_is_to_be_computed_after_an_evaluation(evaluated: Path, settings: Settings):
    assert said(evaluated, settings) == []
    spec = read_spec(evaluated)
    write_spec(spec.model_copy(update={"name": "another"}), evaluated)
    assert said(evaluated, settings) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"synthetic": {"A": "a", "B": "b", "C": "more"}}, ["C: 3 volumes of a new cohort."]),
        ({"synthetic": {"A": "a", "C": "b"}}, ["C: was called B; its volumes are known."]),
        ({"synthetic": {"A": "a"}}, ["B: left the study; its numbers go, its files and what is known of them stay."]),
        ({"synthetic": {"A": "a", "B": "more"}}, ["B: 3 volumes came, 3 went."]),
        ({"training": "seen"}, ["training: 3 volumes of a new cohort."]),
        ({"n_boot": 500}, ["Bootstrap samples 200 → 500: scores and intervals; features and segmentations are known."]),
        ({"metrics": ["fid"]}, ["Metrics all → FID (Fréchet distance): the scores that are new."]),
        (
            {"encoders": ["deepbet"]},
            [
                "Encoders Untrained ResNet-50, deepbet bottleneck, Embedded segmenter's bottleneck → deepbet "
                "bottleneck: features and scores under those that are new."
            ],
        ),
        (
            {"segmenter": "atlas"},
            [f"Segmentation Embedded network → {SEGMENTERS['atlas'].label}: every volume is segmented again."],
        ),
        ({"qc_threshold": 0.65}, ["QC threshold none → 0.65: the gate, and the effect sizes behind it."]),
        ({"grid": "full"}, ["Grid half → full: everything."]),
        ({"orientation": "LPS"}, ["real: read in another way, or with other tables."]),
        ({"participants": "p.tsv"}, ["real: read in another way, or with other tables."]),
    ],
)
def test_each_change_is_said_and_no_other(evaluated: Path, settings: Settings, change, expected):
    (evaluated.parent / "p.tsv").write_text("participant_id\tage\nreal0\t30\n", encoding="utf-8")
    spec = read_spec(evaluated)
    content = spec.model_dump(mode="json", exclude_none=True)
    for key, value in change.items():
        if key == "synthetic":
            content[key] = {name: {"images": images} for name, images in value.items()}
        elif key == "training":
            content[key] = {"images": value}
        elif key in ("orientation", "participants"):
            content["real"][key] = value
        else:
            (content if key == "grid" else content["settings"])[key] = value
    write_spec(StudySpec.model_validate(content), evaluated)
    assert said(evaluated, settings) == expected


@pytest.mark.parametrize(
    ("cohorts", "lost", "expected"),
    [
        ({"A": "a", "C": "b"}, ["b/b0"], ["C: was called B; 0 volumes came, 1 went."]),
        ({"A": "a", "C": "[bm]*"}, [], ["C: was called B; 3 volumes came, 0 went."]),  # half of them
        ({"A": "a", "C": "b"}, ["b/b0", "b/b1"], ["C: 1 volumes of a new cohort.", "B: left the study"]),
        ({"C": "b", "D": "a"}, ["b/b0"], ["C: was called B; 0 volumes came, 1 went.", "D: was called A; its volumes"]),
        ({"C": "[ab]", "D": "b"}, [], ["C: was called A; 3 volumes came, 0 went.", "D: was called B; its volumes"]),
        ({"B": "a", "A": "b"}, ["b/b0"], ["B: 3 volumes came, 3 went.", "A: 2 volumes came, 3 went."]),
    ],
)
def test_a_renamed_cohort_is_known_by_half_of_its_files(evaluated: Path, settings: Settings, cohorts, lost, expected):
    for name in lost:
        (evaluated.parent / f"{name}.nii.gz").unlink()
    cohorts = {name: f"{place}/*.nii.gz" for name, place in cohorts.items()}
    write_spec(with_cohorts(read_spec(evaluated), **cohorts), evaluated)
    lines = said(evaluated, settings)
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines


def test_a_renamed_cohort_that_is_read_in_another_way_is_said_to_be(evaluated: Path, settings: Settings):
    cohorts = {"A": CohortSpec(images="a"), "C": CohortSpec(images="b", orientation="LPS")}
    write_spec(read_spec(evaluated).model_copy(update={"synthetic": cohorts}), evaluated)
    assert said(evaluated, settings) == ["C: was called B; read in another way, or with other tables."]


def test_an_evaluation_that_did_not_end_is_said(evaluated: Path, settings: Settings):
    record = results_folder(settings, evaluated) / "provenance.json"
    record.write_text(
        json.dumps(json.loads(record.read_text(encoding="utf-8")) | {"complete": False}), encoding="utf-8"
    )
    assert said(evaluated, settings) == ["What is missing: the last evaluation did not end."]


# -- the form ----------------------------------------------------------------------------------------------------------


def edit(monkeypatch, change):
    """Have the tables of cohorts come back changed, as a browser sends them: AppTest cannot type into a table."""

    def editor(table: pd.DataFrame, **options):
        return table if options["key"] == "new_synthetic" else change(table)

    monkeypatch.setattr(form_parts.st, "data_editor", editor)


def field(app, kind: str, label: str, key: str = "change_"):
    return next(f for f in getattr(app, kind) if f.label == label and f.key.startswith(key))


def press(app, label: str):
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception, app.exception
    return app


def renamed_and_more(table: pd.DataFrame) -> pd.DataFrame:
    rows = [*table.replace({"name": {"Alpha": "Alpha, seed 1"}}).to_dict("records")]
    if not any(row["name"] == "Real again" for row in rows):
        rows.append({"name": "Real again", "images": "real/*.nii.gz", "raw": None, "orientation": None})
    return pd.DataFrame(rows, columns=table.columns)


def test_the_form_names_choices_as_the_rest_of_the_app(page_study):  # noqa: F811
    app = show("studies", page_study)
    metrics = field(app, "multiselect", "Metrics")
    assert {"MMD² (RBF)", "FID (Fréchet distance)", "MMD, as published"} <= set(metrics.options)
    assert not {metric.name for metric in METRICS.values()} & set(metrics.options)
    assert set(field(app, "multiselect", "Encoders").options) == {card.label for card in ENCODERS.values()}
    assert set(field(app, "selectbox", "Segmentation").options) == {card.label for card in SEGMENTERS.values()}
    assert any("encoders: " in caption.value and "random-r50" not in caption.value for caption in app.caption)


def test_the_form_changes_a_study_and_says_what_is_to_be_computed(page_study, workspace, monkeypatch):  # noqa: F811
    edit(monkeypatch, renamed_and_more)
    app = show("studies", page_study)
    field(app, "text_input", "Name of the study").input("Four")
    field(app, "number_input", "Bootstrap samples").set_value(500)
    field(app, "multiselect", "Metrics").set_value(["fid"])
    next(f for f in app.text_input if f.label == "Images" and f.key.endswith("_training")).input("Alpha").run()
    press(app, "Save the changes")
    spec = read_spec(page_study)
    assert (spec.name, spec.settings.n_boot, spec.settings.metrics) == ("Four", 500, ("fid",))
    assert list(spec.synthetic) == ["Alpha, seed 1", "Real again"] and spec.training == CohortSpec(images="Alpha")
    text = words(app)
    assert app.toast[0].value.startswith("Saved.") and "To be computed by *Evaluate*" in text
    assert "Real again: 3 volumes of a new cohort." in text and "Evaluate" in text
    assert field(app, "text_input", "Name of the study").value == "Four"
    assert audit.latest(from_environment(), 1)[0]["action"] == "change a study"
    press(app, "Evaluate")
    assert jobs.list_jobs(from_environment())[0].arguments == {"study": page_study}
    assert "To be computed" not in words(app)
    assert next(button for button in app.button if button.label == "Save the changes").disabled


def test_selected_cases_stay_selected_when_their_cohort_gets_another_name(page_study, monkeypatch):  # noqa: F811
    edit(monkeypatch, renamed_and_more)
    app = show("studies", page_study)
    app.session_state[selection.CASES], app.session_state[selection.OF_STUDY] = (
        [("Alpha", "a1"), ("real", "r0")],
        page_study,
    )
    press(app, "Save the changes")
    assert app.session_state[selection.CASES] == [("Alpha, seed 1", "a1"), ("real", "r0")]


def test_a_cohort_is_renamed_when_nothing_else_of_it_changed():
    spec = StudySpec(name="s", real=CohortSpec(images="r"))
    before = with_cohorts(spec, A="a", B="b", C="b")
    assert renamed(before, with_cohorts(spec, D="b", A="a", E="b", F="f")) == {"B": "D", "C": "E"}
    assert renamed(before, with_cohorts(spec, A="b", B="a", C="b")) == {}


def test_a_form_left_unchanged_writes_the_same_file(page_study):  # noqa: F811
    path = Path(page_study)
    path.write_text(
        path.read_text(encoding="utf-8")
        + "[settings]\nseed = 9007199254740993\nqc_fail_rate = 0.0333333333333  # odd\nn_boot = 70\n",
        encoding="utf-8",
    )
    before = path.read_text(encoding="utf-8")
    press(show("studies", page_study), "Save the changes")
    assert path.read_text(encoding="utf-8") == before


def test_what_lacks_in_the_form_is_said_and_nothing_written(page_study, monkeypatch):  # noqa: F811
    before = Path(page_study).read_bytes()
    edit(monkeypatch, lambda table: pd.concat([table, table, pd.DataFrame([{"images": "x"}])]))
    app = show("studies", page_study)
    field(app, "text_input", "Name of the study").input("").run()
    press(app, "Save the changes")
    said = words(app)
    for word in ("Still missing", "a name", "name of row 3", "another name for a second row 'Alpha'"):
        assert word in said
    assert Path(page_study).read_bytes() == before


def test_a_file_changed_meanwhile_is_loaded_unless_something_was_typed(page_study):  # noqa: F811
    path = Path(page_study)
    app = show("studies", page_study)
    path.write_text(path.read_text(encoding="utf-8").replace("Three and three", "Theirs"), encoding="utf-8")
    app.run()
    assert field(app, "text_input", "Name of the study").value == "Theirs" and "form began" not in words(app)
    field(app, "text_input", "Name of the study").input("Mine").run()
    path.write_text(path.read_text(encoding="utf-8").replace("Theirs", "Theirs again"), encoding="utf-8")
    press(app, "Save the changes")
    assert "changed meanwhile" in words(app) and read_spec(path).name == "Theirs again"
    press(app, "Load it again: what is changed here is lost")
    assert field(app, "text_input", "Name of the study").value == "Theirs again" and "form began" not in words(app)


def test_a_study_that_stays_as_it_is_becomes_another(page_study, workspace, monkeypatch):  # noqa: F811
    monkeypatch.setattr("core.workflows.library.demo_folder", lambda settings: Path(page_study).parent)
    before = Path(page_study).read_bytes()
    app = show("studies", page_study)
    assert "The demo study stays as it is." in words(app)
    press(app, "Save as a study of its own")
    assert "Still missing: a folder." in words(app)
    field(app, "text_input", "Folder for the study.toml of the copy").input(str(workspace / "mine"))
    press(app, "Save as a study of its own")
    assert app.session_state["study"] == str(workspace / "mine" / "study.toml")
    assert "Copy of Three and three" in words(app) and "Everything: the study has not been evaluated yet." in words(app)
    assert Path(page_study).read_bytes() == before


def test_a_new_study_has_the_advanced_choices(page_study, workspace):  # noqa: F811
    app = show("studies", page_study)
    for label, text in (("Name of the study", "Second"), ("Folder for study.toml", str(workspace))):
        field(app, "text_input", label, "new_").input(text)
    app.text_input(key="new_real").input("data/real")
    app.text_input(key="new_training_participants").input("people.tsv")
    assert app.number_input(key="new_boot").value == StudySettings().n_boot
    app.number_input(key="new_boot").set_value(1000)
    app.multiselect(key="new_metrics").set_value(["ms-ssim"]).run()
    press(app, "Create the study")
    assert "Still missing: training images." in words(app)
    app.text_input(key="new_training_participants").input("")
    app.text_input(key="new_training").input("data/Alpha")
    press(app, "Create the study")
    spec = read_spec(workspace / "study.toml")
    assert spec.settings == StudySettings(n_boot=1000, metrics=("ms-ssim",))
    assert spec.training == CohortSpec(images="data/Alpha")


def test_changing_a_study_needs_an_editor(page_study, monkeypatch):  # noqa: F811
    former, before = read_spec(page_study), Path(page_study).read_bytes()
    monkeypatch.setattr(access, "role", lambda settings: "reader")
    stopped = pytest.raises(RuntimeError, match="refused")

    def stop(message, error=None):
        raise RuntimeError(message)

    monkeypatch.setattr(access, "_stop", stop)
    with stopped:
        access.change_study(from_environment(), page_study, former, former.model_copy(update={"name": "x"}))
    with stopped:
        access.copy_study(from_environment(), page_study, former, str(Path(page_study).parent / "copy"))
    assert Path(page_study).read_bytes() == before and not (Path(page_study).parent / "copy").exists()


@pytest.mark.parametrize("page", NEEDS_STUDY)
def test_every_page_stands_a_study_changed_since_its_evaluation(page, page_study):  # noqa: F811
    spec = read_spec(page_study)
    gone = {"Beta": CohortSpec(images="Alpha/*.nii.gz"), "None": CohortSpec(images="nothing")}
    settings = StudySettings(encoders=("embedded",), metrics=("ms-ssim",))
    write_spec(spec.model_copy(update={"synthetic": gone, "settings": settings}), page_study)
    app = show(page, page_study)
    if page == "overview":
        assert "was changed since it was evaluated" in words(app)
        assert "**Beta:** not judged yet (new or renamed since the study was evaluated" in words(app)


def test_a_file_that_is_gone_is_said_to_be(page_study):  # noqa: F811
    case = read_study(page_study).cohort("Alpha").cases[0]
    case.path.unlink()
    app = show("studies", page_study)
    toggle = next(toggle for toggle in app.toggle if toggle.label.startswith("Only rejected"))
    table = toggle.set_value(False).run().dataframe[0].value.set_index("case")
    assert table["status"].to_dict()[case.case_id] == "gone" and "deleted" in table["reason"][case.case_id]


def test_a_study_that_cannot_be_read_is_explained_where_it_is_changed_too(page_study):  # noqa: F811
    Path(page_study).write_text("name = ")
    app = show("studies", page_study)
    assert [tab.label for tab in app.tabs if tab.error] == ["This study's cases", "Change this study"]


def test_a_demo_that_is_not_there_yet_leaves_no_tab_empty(workspace):  # noqa: F811
    app = show("studies")
    assert all(len(tab.children) for tab in app.tabs), [tab.label for tab in app.tabs if not tab.children]


def test_all_metrics_chosen_one_by_one_are_the_default(page_study):  # noqa: F811
    app = show("studies", page_study)
    metrics = field(app, "multiselect", "Metrics")
    metrics.set_value(metrics.options).run()
    field(app, "text_input", "Name of the study").input("Five").run()
    press(app, "Save the changes")
    assert (read_spec(page_study).name, read_spec(page_study).settings.metrics) == ("Five", ())
