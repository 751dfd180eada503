"""Login and roles: what each role meets on every page, and what is refused when a button is pressed nevertheless."""

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core import audit, jobs, readings
from core.settings import from_environment
from core.study import read_study
from core.workflows import known_studies
from pages import access
from tests.test_pages import NEEDS_STUDY, PAGES, ROOT, study, words, workspace  # noqa: F401 - fixtures

ROLES = """
viewer = ["*@lab.org"]
reader = ["rita@lab.org"]
editor = ["ed@lab.org"]
"""
WHO = {"viewer": "vera@lab.org", "reader": "rita@lab.org", "editor": "ed@lab.org"}
# Buttons that change something, by page; all other buttons look, choose or leave.
ACTIONS = {
    "studies": {"Create the study", "Evaluate", "Save the changes"},
    "report": {"Make the report"},
    "generators": {"Train, or go on", "Sample and evaluate"},
    "jobs": {"Run again"},
}


@pytest.fixture(autouse=True)
def roles(workspace, monkeypatch):  # noqa: F811
    path = workspace / "roles.toml"
    path.write_text(ROLES, encoding="utf-8")
    monkeypatch.setenv("SYNTHSCOPE_ROLES", str(path))
    return path


def open_page(page, path="", email=None, **claims):
    app = AppTest.from_file(str(ROOT / ("app.py" if page == "app" else f"pages/{page}.py")), default_timeout=60)
    app.secrets = {"auth": {"redirect_uri": "http://localhost/oauth2callback", "cookie_secret": "x", "client_id": "y"}}
    app.user = {"is_logged_in": email is not None, **({"email": email} if email is not None else {}), **claims}
    if path:
        app.session_state["study"] = path
    app.run()
    assert not app.exception, app.exception
    return app


def submitted():
    return [job for job in jobs.list_jobs(from_environment()) if job.id != "old"]


def an_ended_job():
    settings = from_environment()
    jobs.list_jobs(settings)
    with jobs._database(settings) as db:
        db.execute(
            "INSERT INTO jobs (id, function, arguments, title, state, created) "
            "VALUES ('old', 'core.workflows:demo', '{}', 'Old', 'cancelled', 0)"
        )


def actions(app):
    """The buttons of a page that need more than the role viewer."""
    names = {name for group in ACTIONS.values() for name in group} | {"Evaluate this study", "Make the demo study"}
    return {button.label: button for button in app.button if button.label in names}


@pytest.fixture
def no_locks(monkeypatch):
    """Every button can be pressed, whoever looks: what is left are the checks of the actions themselves."""
    monkeypatch.setattr(access, "lock", lambda needed, disabled=False, help=None: {"disabled": disabled, "help": help})


@pytest.mark.parametrize("page", [*PAGES, "app"])
def test_every_page_asks_to_log_in_and_shows_nothing_before(page, study):  # noqa: F811
    app = open_page(page, study)
    assert [button.label for button in app.button] == ["Log in"]
    assert "Three and three" not in words(app) and study not in words(app)
    assert not submitted() and not app.dataframe and not app.get("download_button")


@pytest.mark.parametrize("page", [*PAGES, "app"])
@pytest.mark.parametrize(
    "claims", [{"email": "eve@else.org"}, {"email": ""}, {"email": WHO["editor"], "email_verified": False}]
)
def test_every_page_refuses_strangers_and_unverified_addresses(page, claims, study):  # noqa: F811
    app = open_page(page, study, **claims)
    assert "may not use this server" in words(app)
    assert [button.label for button in app.button] == ["Log out"]
    assert not submitted() and not app.dataframe


@pytest.mark.parametrize("role", ["viewer", "reader", "editor"])
@pytest.mark.parametrize("page", PAGES)
def test_on_every_page_only_editors_find_buttons_that_change_something(page, role, study):  # noqa: F811
    an_ended_job()
    app = open_page(page, study, WHO[role])
    found = actions(app)
    assert set(found) == ACTIONS.get(page, set())
    for label, button in found.items():
        missing = label in ("Sample and evaluate", "Train, or go on") and role == "editor"  # nothing is filled in yet
        assert button.disabled == (role != "editor") or missing, label
        assert ("Needs the role editor" in button.help) == (role != "editor"), label
    if role != "editor":
        assert not submitted()  # not even what a page starts by itself


@pytest.mark.parametrize("role", ["viewer", "reader"])
@pytest.mark.parametrize("page", sorted(ACTIONS))
def test_an_action_is_refused_even_when_its_button_is_pressed(page, role, study, workspace, no_locks):  # noqa: F811
    an_ended_job()
    before = known_studies(from_environment())
    for label in sorted(ACTIONS[page]):
        app = open_page(page, study, WHO[role])
        if page == "studies":
            app.text_input(key="new_name").input("Mine")
            app.text_input(key="new_folder").input(str(workspace))
            app.text_input(key="new_real").input("data/real")
        if page == "generators":
            app.text_input(key="train_data").input("/data").run()
        actions(app)[label].click().run()
        assert not app.exception
        assert "refused. Needs the role editor" in words(app), label
    assert not submitted() and jobs.status(from_environment(), "old").state == "cancelled"
    assert known_studies(from_environment()) == before and not (workspace / "study.toml").exists()
    records = audit.latest(from_environment(), 9)
    assert {(found["who"], found["action"]) for found in records} == {(WHO[role], "refused")}


def test_opening_a_study_needs_an_editor(study, workspace, no_locks):  # noqa: F811
    other = workspace / "data" / "other.toml"
    other.write_text(Path(study).read_text(encoding="utf-8").replace("Three and three", "Second"), encoding="utf-8")
    for role, known in (("reader", False), ("editor", True)):
        app = open_page("studies", study, WHO[role])
        app.text_input(key="open_path").input(str(other)).run()
        next(b for b in app.button if b.label == "Open").click().run()
        assert (str(other) in known_studies(from_environment())) is known
    assert "Needs the role editor" in words(open_page("studies", study, WHO["viewer"]))  # splitting reads any path


def test_an_editor_acts_and_is_recorded(study):  # noqa: F811
    app = open_page("studies", study, " ED@lab.org ")
    actions(app)["Evaluate"].click().run()
    (job,) = submitted()
    page = open_page("jobs", study, WHO["editor"])
    page.button(key=f"cancel_{job.id}").click().run()
    page.button(key=f"retry_{job.id}").click().run()
    assert [r["action"] for r in audit.latest(from_environment(), 9)] == ["retry a job", "cancel a job", "start a job"]
    assert "cancel a job" in words(page) and WHO["editor"] in words(page)
    for role in ("viewer", "reader"):
        page = open_page("jobs", study, WHO[role])
        assert page.button(key=f"cancel_{job.id}").disabled
        assert "retry a job" not in words(page) and not page.get("download_button")


def test_an_export_is_recorded_by_whoever_looks(study):  # noqa: F811
    app = open_page("quality", study, WHO["viewer"])
    app.get("download_button")[0].click().run()
    assert not app.exception
    (found,) = audit.latest(from_environment(), 9)
    assert (found["who"], found["action"], found["file"]) == (WHO["viewer"], "export", "failing_cases.csv")


def test_a_reader_reads_under_the_address_and_in_no_reading_of_others(study):  # noqa: F811
    app = open_page("reading_room", study, WHO["viewer"])
    assert next(b for b in app.button if b.label == "Begin").disabled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "lock", lambda needed: {})
        app = open_page("reading_room", study, WHO["viewer"])
        app.number_input(key="reading_n").set_value(4).run()
        next(b for b in app.button if b.label == "Begin").click().run()
    assert "refused. Needs the role reader" in words(app)
    assert not readings.list_sessions(from_environment(), read_study(study))
    app = open_page("reading_room", study, WHO["reader"])
    assert not app.text_input  # nobody chooses who they are
    app.number_input(key="reading_n").set_value(4).run()
    next(b for b in app.button if b.label == "Begin").click().run()
    (session,) = readings.list_sessions(from_environment(), read_study(study))
    assert session.reader == WHO["reader"]
    assert "case 1 of" in json.dumps([p.proto.text for p in app.get("progress")])
    other = open_page("reading_room", study, WHO["editor"])
    other.query_params["reading"] = session.id
    other.run()
    assert "Begin" in [b.label for b in other.button]  # a session of one's own instead


def test_roles_without_login_and_login_without_roles_let_nobody_in(study, roles, monkeypatch):  # noqa: F811
    app = AppTest.from_file(str(ROOT / "pages" / "jobs.py"), default_timeout=60).run()
    assert "roles but no login" in words(app)
    for problem in ("", str(roles.parent / "nothing.toml")):
        monkeypatch.setenv("SYNTHSCOPE_ROLES", problem)
        assert "nobody can use it" in words(open_page("jobs", study, WHO["editor"]))
    monkeypatch.setenv("SYNTHSCOPE_ROLES", str(roles))
    roles.write_text("editor = [", encoding="utf-8")
    assert "roles of this server cannot be read" in words(open_page("jobs", study, WHO["editor"]))


def test_secrets_that_cannot_be_read_let_nobody_in(study, tmp_path, monkeypatch):  # noqa: F811
    from streamlit.runtime.secrets import Secrets

    monkeypatch.delenv("SYNTHSCOPE_ROLES")
    broken = tmp_path / "secrets.toml"
    broken.write_text("[auth", encoding="utf-8")
    monkeypatch.setattr("streamlit.secrets", Secrets())
    options = {"secrets.files": [str(broken)]}
    from streamlit import config

    get = config.get_option
    monkeypatch.setattr(config, "get_option", lambda name: options.get(name) or get(name))
    monkeypatch.setattr("streamlit.get_option", lambda name: options.get(name) or get(name))
    app = AppTest.from_file(str(ROOT / "pages" / "jobs.py"), default_timeout=60).run()
    assert "nobody can log in" in words(app)


def test_a_laptop_has_no_login_and_everybody_edits(study, monkeypatch):  # noqa: F811
    monkeypatch.delenv("SYNTHSCOPE_ROLES")
    for page in PAGES:
        app = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=60)
        app.session_state["study"] = study
        app.run()
        assert not any(b.help and "Needs the role" in b.help for b in app.button)
        assert "Log in" not in words(app) and "Log out" not in words(app)
    assert set(PAGES) >= set(NEEDS_STUDY)
