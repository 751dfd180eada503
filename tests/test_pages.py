"""Every page, headless: an empty workspace, a study with results, a broken study file."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from core import anatomy, jobs, readings
from core.encoders import ENCODERS
from core.generators import GENERATORS
from core.metrics import METRICS
from core.quality import QC_SCORES
from core.settings import from_environment
from core.store import write_csv, write_json
from core.study import PROVENANCE, read_study
from core.volume import HALF, Volume, save, template
from core.workflows import Results, known_studies, remember_study
from core.workflows.ranking import rank_scores
from core.workflows.results import CASE_COLUMNS, results_folder
from core.workflows.verdicts import TOPICS
from pages import form_parts, job_parts, reads, shared
from tests.test_page_viewer import sent

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.stem
    for path in (ROOT / "pages").glob("*.py")
    if path.stem not in ("shared", "reads", "look", "niivue", "selection", "access", "headers", "__init__")
    and not path.stem.endswith(("_parts", "_choices"))
)
NEEDS_STUDY = ("overview", "viewer", "similarity", "quality", "anatomy", "studies", "reading_room", "report")
CASES = {"real": ["r0", "r1", "r2"], "Alpha": ["a0", "a1", "a2"]}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


@pytest.fixture
def study(workspace):
    """A study of three real and three synthetic volumes, one rejected, with made-up results."""
    rng = np.random.default_rng(0)
    atlas = template(HALF)
    for cohort, cases in CASES.items():
        folder = workspace / "data" / cohort
        folder.mkdir(parents=True)
        for case in cases:
            noise = rng.normal(0, 0.02, atlas.data.shape) * (atlas.data > -1)
            data = np.clip(atlas.data + noise, -1, 1).astype(np.float32)
            save(Volume(data, atlas.affine, case), folder / f"{case}.nii.gz")
    path = workspace / "data" / "study.toml"
    path.write_text(
        'name = "Three and three"\ngrid = "half"\n[real]\nimages = "real/*.nii.gz"\n'
        '[synthetic."Alpha"]\nimages = "Alpha/*.nii.gz"\n',
        encoding="utf-8",
    )
    settings = from_environment()
    remember_study(settings, str(path))
    write_results(results_folder(settings, path), rng)
    return str(path)


def write_results(folder, rng):
    score = {"cohort": "Alpha", "metric": "fid", "encoder": "random-r50", "direction": "lower", "floor": 0.02}
    score |= {"n_real": 3, "n_synthetic": 3, "fingerprint": "abc123"}
    rows = [
        score | {"variant": "corrected", "value": 0.1234, "ci_low": 0.1, "ci_high": 0.15},
        score | {"variant": "published", "value": 0.2345, "ci_low": None, "ci_high": None},
    ]
    write_csv(pd.DataFrame(rows), folder / "metrics.csv")
    gate = {"n": 3, "failed_scores": 1, "failed_volumes": 1, "pass_rate": 2 / 3, "ci_low": 0.2, "ci_high": 0.9}
    gate |= {"threshold": 0.7, "reliable": False}
    good = gate | {"failed_scores": 0, "failed_volumes": 0, "pass_rate": 1.0, "reliable": True}
    write_csv(pd.DataFrame([{"cohort": "real"} | good, {"cohort": "Alpha"} | gate]), folder / "quality.csv")
    cells = [(cohort, case) for cohort, cases in CASES.items() for case in cases]
    qc = pd.DataFrame(rng.uniform(0.75, 0.95, (6, 8)), columns=list(QC_SCORES))
    qc.loc[3, "thalamus"] = 0.6
    columns = anatomy.volume_columns(True)
    volumes = pd.DataFrame(rng.uniform(900, 1100, (6, len(columns))), columns=columns)
    for name, table in (("qc.csv", qc), ("volumes.csv", volumes)):
        named = pd.DataFrame(cells, columns=["cohort", "subject"])
        write_csv(pd.concat([named, table], axis=1), folder / name)
    tables = [volumes.iloc[:3].set_axis(["x", "y", "z"]), volumes.iloc[3:].set_axis(["u", "v", "w"])]
    write_csv(anatomy.effect_sizes(*tables).assign(cohort="Alpha"), folder / "effect_sizes.csv")
    cases = pd.DataFrame([{"cohort": c, "case": n, "status": "ok"} for c, n in cells], columns=list(CASE_COLUMNS))
    bad = {"cohort": "Alpha", "case": "broken", "status": "rejected", "reason": "truncated gzip. Copy it again."}
    write_csv(pd.concat([cases, pd.DataFrame([bad])]), folder / "cases.csv")
    gaps = [{"cohort": "Alpha", "what": "kid random-r50", "reason": "too few volumes"}]
    provenance = {"complete": True, "gaps": gaps, "fingerprints": {"abc123": {"seed": 0, "encoder": "random-r50"}}}
    write_json(provenance, folder / PROVENANCE)


def show(page, study=""):
    app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=60)
    if study:
        app.session_state["study"] = study
    app.run()
    assert not app.exception, app.exception
    return app


def words(app):
    """Everything a reader can read: text, messages, cells."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success")
    parts = [str(element.value) for kind in kinds for element in getattr(app, kind)]
    parts += [table.value.to_string() for table in (*app.dataframe, *app.table)]
    return "\n".join(parts + [button.label for button in app.button])


@pytest.mark.parametrize("page", PAGES)
def test_a_new_workspace_says_what_will_come(page):
    app = show(page)
    assert app.title[0].value
    if page in NEEDS_STUDY:
        assert "The demo study has not been made yet." in words(app)
        assert "Make the demo study" in words(app)


@pytest.mark.parametrize("page", [page for page in PAGES if page in NEEDS_STUDY])
def test_a_study_without_results_offers_to_evaluate(page, study):
    folder = results_folder(from_environment(), Path(study))
    for file in folder.iterdir():
        file.unlink()
    app = show(page, study)
    assert "Evaluate" in words(app) or page in ("viewer", "reading_room")


@pytest.mark.parametrize("page", [page for page in PAGES if page in NEEDS_STUDY])
def test_a_broken_study_file_is_explained(page, study):
    Path(study).write_text('name = "broken', encoding="utf-8")
    app = show(page, study)
    assert "Not valid TOML" in words(app)
    assert study in words(app)
    assert "Correct the line named." in words(app)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (
            "overview",
            [
                "Alpha",
                "plausible in part, 2 of 3 volumes pass the gate",
                "1 of 3 volumes fail",
                "0.123 [0.1–0.15]",
                "View",
            ],
        ),
        ("viewer", ["r0", "a0", "the gate rejects below 0.700"]),
        ("similarity", ["0.123 [0.1 – 0.15], floor 0.02", "too few volumes", "lower is better"]),
        ("quality", ["a0", "thalamus", "0.6", "looks at the image and its segmentation"]),
        (
            "anatomy",
            ["Positive d: the real region is larger", "hippocampus", "undetermined", "cohorts fail the quality gate"],
        ),
        ("studies", ["truncated gzip", "**1** rejected", "**6** ok", "Three and three"]),
        ("paper", ["0.032", "HA-GAN", "MICCAI 2024", "real MRIs"]),
        ("jobs", ["No job yet."]),
    ],
)
def test_a_study_with_results_shows_its_numbers(page, expected, study):
    found = words(show(page, study))
    for text in expected:
        assert text in found, f"{text!r} is not on the page {page}"


def test_the_other_tables_of_the_paper_are_on_tabs():
    app = show("paper")
    app.segmented_control(key="paper_order").set_value("mmd").run()
    for tab, text in (("Table 2: quality", "0.65"), ("Table 3: anatomy", "pallidum")):
        app.session_state["paper_tab"] = tab
        app.run()
        assert not app.exception and text in words(app)
    app.session_state["paper_tab"] = "Table 1: similarity"
    app.run()
    assert app.segmented_control(key="paper_order").value == "mmd"


def test_a_page_shows_new_results_although_it_keeps_what_it_made_of_the_old(study):
    app = show("quality", study)
    assert "a0" in words(app) and "0.123" not in words(app)
    folder = results_folder(from_environment(), Path(study))
    qc = pd.read_csv(folder / "qc.csv")
    qc.loc[qc["subject"] == "a2", "brainstem"] = 0.1234
    write_csv(qc, folder / "qc.csv")
    app.run()
    assert not app.exception
    (chart,) = app.get("plotly_chart")
    assert "0.123" in words(app) and 0.1234 in scores_in(chart)  # in the list of volumes that fail, and drawn


def scores_in(chart):
    """The y values of the traces of a chart."""
    values = []
    for trace in json.loads(chart.proto.spec)["data"]:
        y = trace["y"]
        values += np.frombuffer(base64.b64decode(y["bdata"]), y["dtype"]).tolist() if isinstance(y, dict) else y
    return {round(value, 4) for value in values}


def test_what_is_kept_is_made_once_for_each_choice():
    made = []
    for of in (("a", 1), ("a", 1), ("a", 2)):
        reads.kept("test of kept", of, lambda: made.append(1))
    assert len(made) == 2


def test_new_files_of_a_study_are_seen(study):
    reads.files_changed.clear()
    version = reads.study_version(study)
    assert [case.case_id for case in reads.cached_study(study, version).real.cases] == CASES["real"]
    folder = Path(study).parent / "real"
    shutil.copy(folder / "r0.nii.gz", folder / "r3.nii.gz")
    reads.files_changed.clear()  # as LOOK_SECONDS later
    assert [case.case_id for case in reads.cached_study(study, version).real.cases][-1] == "r3"


def test_on_the_overview_every_reason_and_a_typical_brain_lead_on_and_scores_have_names(study):
    app = show("overview", study)
    keys = {button.key for button in app.button}
    assert {f"{topic}_Alpha" for topic in TOPICS} | {"typical_Alpha"} <= keys
    table = next(text.value for text in app.markdown if text.value.startswith("| Cohort and verdict"))
    assert table.splitlines()[2].count("|") == 7 and "**Alpha" in table.splitlines()[2]
    assert list(app.dataframe[0].value.columns) == ["cohort", "Untrained ResNet-50"]
    assert app.segmented_control[0].options == ["FID (Fréchet distance)"]


def test_every_reason_leads_to_a_part_of_a_page_that_is_there(study, monkeypatch):
    went, spots = [], set()
    monkeypatch.setattr(shared.st, "switch_page", lambda path, **_: went.append(Path(path).stem))
    for topic in TOPICS:
        app = show("overview", study)
        app.button(key=f"{topic}_Alpha").click().run()
        spots.add((went[-1], app.session_state["leads_to"][0]))
    assert (len(went), len(spots)) == (5, 4)  # similarity and diversity are in one place
    for page, spot in spots:
        assert spot in parts(show(page, study)._tree.root), (page, spot)


def parts(block):
    """Anchors and keys of the parts of a page."""
    found = {getattr(getattr(block, "proto", None), "id", "").rpartition("-")[2]}
    for child in getattr(block, "children", {}).values():
        words = re.sub(r"[^a-z0-9]+", "-", child.value.lower()) if child.type == "subheader" else ""
        found |= {words} | (parts(child) if hasattr(child, "children") else set())
    return found


def test_on_the_overview_brains_stand_by_cohort_and_a_click_opens_or_selects_one(study, monkeypatch):
    app = show("overview", study)
    data = sent(app, "synthscope_sheet")
    assert [heading.split(" · ")[1] for heading in data["groups"]] == ["3 volumes", "3 volumes"]
    shown = [(data["groups"][cell["group"]].split(" · ")[0], cell["case"]) for cell in data["cells"]]
    assert [case for _, case in shown] == ["r0", "r1", "r2", "a0", "a1", "a2"]
    assert len({cohort for cohort, _ in shown[:3]}) == 1 == len({cohort for cohort, _ in shown[3:]})
    assert shown[0][0] != shown[3][0]
    app.session_state["selected_cases"] = [("Alpha", "a1")]
    app.session_state["selected_study"] = study
    chosen = [cell["case"] for cell in sent(app.run(), "synthscope_sheet")["cells"] if cell["selected"]]
    assert chosen == ["a1"]


def test_every_page_is_tested():
    assert set(PAGES) == {*NEEDS_STUDY, "generators", "paper", "jobs"}


def test_the_viewer_shows_the_case_another_page_asks_for(study):
    app = AppTest.from_file(str(ROOT / "pages" / "viewer.py"), default_timeout=60)
    app.session_state["study"] = study
    app.session_state["selected_cohort"], app.session_state["selected_case"] = "Alpha", "a2"
    app.run()
    assert not app.exception
    assert app.selectbox(key="viewer_synthetic_Alpha").value == "a2"


def test_an_open_page_revives_a_dead_runner(study, monkeypatch):
    jobs.submit(from_environment(), "core.workflows:evaluate", {"study": study}, "Three and three")
    revived = []
    monkeypatch.setattr(jobs, "ensure_runner", revived.append)
    show("overview", study)
    assert revived


def test_the_report_is_made_in_the_background_and_offered(study):
    app = show("report", study)
    assert "quality scores of single volumes of the real cohorts" in words(app)
    assert "Makes, all at once: Report (HTML)" in words(app)
    app.toggle(key="report_drop").set_value(True).run()
    assert "No picture, case name" in words(app)
    next(b for b in app.button if b.label == "Make the report").click().run()
    assert not app.exception
    settings = from_environment()
    (job,) = jobs.list_jobs(settings, function="core.report:publish")
    assert job.arguments == {"study": study, "drop_individuals": True}
    jobs.run_pending(replace(settings, workers=0), idle_seconds=0.5)
    assert jobs.status(settings, job.id).state == "done", jobs.status(settings, job.id).error
    app.run()
    assert not app.exception
    assert {b.proto.label for b in app.get("download_button")} == {
        "Report (HTML)", "Slides (PPTX)", "Tables (CSV, LaTeX)", "Bundle (JSON)",
    }  # fmt: skip
    (present,) = [b.proto for b in app.get("link_button") if b.proto.label == "Present"]
    assert present.url.endswith(".html#present")
    write_results(results_folder(settings, Path(study)), np.random.default_rng(1))
    app.run()
    assert "results have changed" in words(app)
    app.toggle(key="report_drop").set_value(False).run()
    assert not app.get("download_button")  # the other report was never made
    next(b for b in app.button if b.label == "Make the report").click().run()
    job = jobs.list_jobs(settings, function="core.report:publish")[0]
    with jobs._database(settings) as db:
        db.execute("UPDATE jobs SET state = 'failed', error = 'no room on disk.' WHERE id = ?", (job.id,))
    app.run()
    assert "no room on disk. The log is on the page Jobs." in words(app)
    assert any(b.label == "Make the report" for b in app.button)


def test_what_fails_the_gate_is_marked_where_its_regions_are_first_told(study):
    app = show("anatomy", study)
    said = next(text.value for text in app.markdown if text.value.startswith("| Over all volumes |"))
    assert "\n| ✗ **Alpha** | " in said and any("✗: fails the quality gate" in note.value for note in app.caption)


def test_two_studies_of_one_name_are_told_apart(study, workspace):
    copy = workspace / "copied"
    shutil.copytree(Path(study).parent, copy)
    path = remember_study(from_environment(), str(copy))
    titles = known_studies(from_environment())  # a list of the browser goes by them
    assert len(set(titles.values())) == len(titles) == 3
    assert str(copy) in titles[path] and str(Path(study).parent) in titles[study]


def test_a_new_study_says_what_its_rows_lack():
    row = {"name": "A", "images": "a"}
    assert form_parts.lacking("n", "f", {"images": "r"}, [row]) == []
    said = form_parts.lacking("", "f", {"images": "r"}, [row, {"name": "B"}, {"images": "c"}, row])
    assert said == ["a name", "images of row 2", "name of row 3", "another name for a second row 'A'"]


def test_the_address_keeps_the_study(study, workspace):
    other = workspace / "data" / "other.toml"
    other.write_text(Path(study).read_text(encoding="utf-8").replace("Three and three", "Second"), encoding="utf-8")
    remember_study(from_environment(), str(other))
    names = {path: results_folder(from_environment(), Path(path)).name for path in (study, str(other))}
    app = show("overview", study)
    assert app.query_params["study"] == names[study]
    app.session_state["study"] = str(other)  # chosen on a page: the address follows
    app.run()
    assert app.query_params["study"] == names[str(other)]
    app.query_params["study"] = names[study]  # another address: the choice follows
    app.run()
    assert app.session_state["study"] == study
    fresh = AppTest.from_file(str(ROOT / "pages" / "quality.py"), default_timeout=60)
    fresh.query_params["study"] = names[str(other)]
    fresh.run()
    assert fresh.session_state["study"] == str(other)


def test_a_page_is_drawn_again_when_its_job_ends_but_not_at_every_step():
    running, next_step, ended = (("", "active"), "a", (), 0), (("", "active"), "b", (), 0), (("1", "done"), "", (), 0)
    assert not job_parts.is_due(running, running, 100)
    assert not job_parts.is_due(running, next_step, 5)
    assert job_parts.is_due(running, next_step, job_parts.REFRESH_SECONDS)
    assert job_parts.is_due(running, ended, 0.1)


def test_results_of_a_reading_are_closed_until_one_has_read(study):
    settings, plan_of = from_environment(), read_study(study)
    plan = readings.make_plan(plan_of, ["Alpha"], "rating", 4, 0, 0, "Ann")
    session = readings.start_session(settings, plan_of, "Ann", "rating", plan, 0)
    for position in range(len(plan)):
        known = readings.read_session(settings, session)
        readings.save_rating(settings, known, position, readings.Rating("real", 3, 3, 3))
    app = show("reading_room", study)
    assert "Closed until you have read" in words(app) and "Accuracy" not in words(app)
    app.text_input(key="reader_name").input("Bob").run()
    assert "Closed until you have read" in words(app)
    app.text_input(key="reader_name").input("Ann").run()
    assert "Closed" not in words(app) and app.dataframe
    scores = next(table.value for table in app.dataframe if "rho" in table.value)  # named as on the other pages
    assert set(scores["metric"]) == {
        METRICS["fid"].label,
        METRICS["fid/published"].label.removesuffix(", as published"),
    }
    assert set(scores["encoder"]) == {ENCODERS["random-r50"].label}
    assert set(scores["variant"]) == {"Corrected", "As published"}
    app = show("reading_room", study)
    app.toggle(key="will_not_read").set_value(True).run()
    assert not app.exception and app.dataframe
    assert "would no longer be blind" in words(app) and not app.text_input  # and no session begins here


def test_a_link_to_a_reading_that_is_not_there_is_answered(study):
    def follow(session):
        app = AppTest.from_file(str(ROOT / "pages" / "reading_room.py"), default_timeout=60)
        app.session_state["study"] = study
        app.query_params["reading"] = session
        app.run()
        assert not app.exception
        return [warning.value for warning in app.warning if "link asks for" in warning.value]

    (said,) = follow("no`such")
    assert "a session that you have not begun in this study: `no'such`" in said and "on *Read*" in said
    plan_of = read_study(study)
    plan = readings.make_plan(plan_of, ["Alpha"], "rating", 4, 0, 0, "Ann")
    assert not follow(readings.start_session(from_environment(), plan_of, "Ann", "rating", plan, 0))
    assert not follow("")


def test_evaluate_queues_one_job_and_jobs_shows_it(study):
    app = show("studies", study)
    next(button for button in app.button if button.label == "Evaluate").click().run()
    assert not app.exception
    (job,) = jobs.list_jobs(from_environment())
    assert job.arguments == {"study": study}
    page = show("jobs", study)
    assert "Evaluate Three and three" in words(page)
    page.button(key=f"cancel_{job.id}").click().run()
    assert jobs.status(from_environment(), job.id).state == "cancelled"


def test_a_study_is_created_and_opened(study, workspace):
    app = show("studies", study)
    app.text_input(key="new_name").input("Second")
    app.text_input(key="new_folder").input(str(workspace))
    app.text_input(key="new_real").input("data/real")
    next(button for button in app.button if button.label == "Create the study").click().run()
    assert not app.exception
    assert known_studies(from_environment())[str(workspace / "study.toml")] == "Second"
    app.text_input(key="open_path").input(str(workspace / "nothing")).run()
    next(button for button in app.button if button.label == "Open").click().run()
    assert "There is no such study file." in words(app)
    wrong = Path(study).with_name("wrong.toml")
    wrong.write_text(Path(study).read_text(encoding="utf-8") + '[settings]\nmetrics = ["fidd"]\n', encoding="utf-8")
    app.text_input(key="open_path").input(str(wrong)).run()
    next(button for button in app.button if button.label == "Open").click().run()
    assert "Unknown metric 'fidd'" in words(app) and str(wrong) not in known_studies(from_environment())


def test_a_cohort_is_split(study, workspace):
    rows = [f"p{i}\t{20 + i}\t{'FM'[i % 2]}\ts{i % 3}" for i in range(40)]
    table = workspace / "participants.tsv"
    table.write_text("participant_id\tage\tsex\tsite\n" + "\n".join(rows), encoding="utf-8")
    app = show("studies", study)
    app.text_input(key="split_path").input(str(table))
    app.number_input(key="split_n").set_value(10).run()
    assert not app.exception
    assert "Test: **10** scans. Training: **30** scans." in words(app)


def scores(*rows, direction="lower", fingerprints=None):
    """Results whose metrics.csv has these (cohort, low, high, floor, fingerprint)."""
    same = {"metric": "fid", "encoder": "e", "variant": "corrected", "direction": direction}
    table = pd.DataFrame(
        [
            same
            | {"cohort": c, "value": (low + high) / 2, "ci_low": low, "ci_high": high, "floor": f, "fingerprint": p}
            for c, low, high, f, p in rows
        ]
    )
    empty = pd.DataFrame()
    none = pd.DataFrame(columns=list(CASE_COLUMNS))
    return Results(table, empty, empty, none, empty, empty, {"fingerprints": fingerprints or {}})


def test_overlapping_intervals_share_a_place():
    ranked = rank_scores(scores(("a", 1, 2, 0, "x"), ("b", 5, 6, 0, "x"), ("c", 1.5, 3, 0, "x"))).set_index("cohort")
    assert ranked["rank"].to_dict() == {"a": 1, "b": 3, "c": 1}
    assert ranked["tie"].to_dict() == {"a": True, "b": False, "c": True}


def test_a_score_that_must_match_the_real_one_is_ranked_by_its_distance():
    rows = [("above", 0.95, 0.97, 0.8, "x"), ("below", 0.78, 0.79, 0.8, "x")]
    ranked = rank_scores(scores(*rows, direction="match real")).set_index("cohort")
    assert ranked["rank"].to_dict() == {"above": 2, "below": 1}


def test_different_fingerprints_are_not_ranked_together():
    known = {"x": {"synthetic N": 24, "seed": 0}, "y": {"synthetic N": 20, "seed": 0}}
    rows = [("a", 1, 2, 0, "x"), ("b", 5, 6, 0, "x"), ("c", 0, 1, 0, "y")]
    ranked = rank_scores(scores(*rows, fingerprints=known)).set_index("cohort")
    assert ranked["rank"].to_dict() == pytest.approx({"a": 1, "b": 2, "c": np.nan}, nan_ok=True)
    assert ranked.loc["c", "note"] == "computed differently: synthetic N 20 instead of 24"


def test_the_app_starts_the_demo_once(study):
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    assert not app.exception
    (job,) = jobs.list_jobs(from_environment())
    assert job.function == "core.workflows:demo"
    jobs.cancel(from_environment(), job.id)
    AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
    assert len(jobs.list_jobs(from_environment())) == 1


def test_what_sampling_costs_is_measured_when_asked_and_never_by_a_visit(study):
    app = AppTest.from_file(str(ROOT / "pages" / "generators.py"), default_timeout=60)
    app.session_state["study"], app.session_state["routed"] = study, True
    app.run()
    assert not app.exception and not jobs.list_jobs(from_environment())
    assert "makes one volume with random weights" in words(app) and "less than a minute" in words(app)
    app.button(key="measure").click().run()
    (job,) = jobs.list_jobs(from_environment())
    assert job.arguments == {"model": "vae-gan", "grid": "half", "steps": 0}
    assert "Measuring one sample" in words(app) and "measure" not in {button.key for button in app.button}
    jobs.cancel(from_environment(), job.id)
    app.run()
    assert app.button(key="measure")  # what was stopped can be asked for again
    assert not app.exception and len(jobs.list_jobs(from_environment())) == 1


def test_sampling_and_training_start_as_jobs_with_the_choices_made(study):
    app = AppTest.from_file(str(ROOT / "pages" / "generators.py"), default_timeout=60)
    app.session_state["study"] = study
    app.session_state["routed"] = True
    app.run()
    assert not app.exception
    assert app.selectbox(key="sample_model").options == [card.label for card in GENERATORS.values()]
    app.selectbox(key="sample_model").select("cdpm").run()
    app.radio[0].set_value("My own checkpoint").run()
    app.text_input(key="checkpoint_path").set_value("/weights/cdpm.pt").run()
    app.number_input(key="sample_n").set_value(3).run()
    app.number_input(key="sample_steps").set_value(4).run()
    next(b for b in app.button if b.label == "Sample and evaluate").click().run()
    (job,) = jobs.list_jobs(from_environment(), function="core.workflows:generate_for_study")
    assert (job.arguments["model"], job.arguments["n"], job.arguments["steps"]) == ("cdpm", 3, 4)
    assert (job.arguments["study"], job.arguments["checkpoint"]) == (study, "/weights/cdpm.pt")
    assert job.arguments["name"] == "cDPM seed 0, 4 steps"
    app.text_input(key="train_data").set_value("/data/train").run()
    app.number_input(key="train_steps").set_value(50).run()
    next(b for b in app.button if b.label == "Train, or go on").click().run()
    (job,) = jobs.list_jobs(from_environment(), function="core.workflows:train_generator")
    assert (job.arguments["data"], job.arguments["steps"], job.arguments["resume"]) == ("/data/train", 50, True)
    assert not app.exception


def test_an_error_begins_with_a_capital_and_a_key_stays_as_it_is_written():
    def page():
        from core.errors import InputError
        from pages import look

        look.show_error(InputError("the file is empty.", "a.csv", "Export it again."))
        look.show_error(InputError("settings.metrcs: unknown key.", "study.toml", "Remove it."))

    app = AppTest.from_function(page).run()
    assert [error.value.split("**")[1] for error in app.error] == [
        "The file is empty.",
        "settings.metrcs: unknown key.",
    ]


@pytest.mark.parametrize("changed", [False, True])
def test_what_is_missing_of_a_study_that_was_changed_is_said_to_wait_for_an_evaluation(study, monkeypatch, changed):
    monkeypatch.setattr(shared, "outdated", lambda study: ["Alpha, which was renamed"] * changed)
    (results_folder(from_environment(), read_study(study).path) / "metrics.csv").unlink()
    said = words(show("overview", study))
    assert "The order of the cohorts could not be computed. The reasons are listed below" in said
    assert ("below, or the study is to be evaluated again" in said) == changed
