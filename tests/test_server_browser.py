"""The app on a server: login at a real OpenID provider, roles in two browsers, headers, no request to other hosts."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from core import audit, jobs
from core.report import publish
from core.settings import Settings, child_environment
from core.workflows import remember_study
from tests.oidc_provider import Provider
from tests.test_browser import HARMLESS, ROOT, Server, _settle, _wait, browser  # noqa: F401 - fixture

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def a_study(folder, write_brains):
    """A study that is known to a workspace in which the demo is not made."""
    write_brains(folder / "data" / "a", 3)
    write_brains(folder / "data" / "b", 3, seed=1)
    path = folder / "data" / "study.toml"
    path.write_text(
        'name = "Small"\ngrid = "half"\n[real]\nimages = "a/*.nii.gz"\n[synthetic.Made]\nimages = "b/*.nii.gz"\n'
        '[settings]\nencoders = ["random-r50"]\nsegmenter = "embedded"\n'
    )
    settings = Settings(workspace=folder / "workspace", workers=1, demo_cases=2)
    jobs.list_jobs(settings)
    with jobs._database(settings) as db:
        db.execute(
            "INSERT INTO jobs (id, function, arguments, title, state, created) "
            "VALUES ('x', 'core.workflows:demo', '{}', 'Demo study', 'cancelled', 0)"
        )
    remember_study(settings, str(path))
    return settings, path


@pytest.fixture
def guarded(tmp_path, write_brains):
    """A server with login and roles, and its provider."""
    settings, _ = a_study(tmp_path, write_brains)
    roles = tmp_path / "roles.toml"
    roles.write_text('viewer = ["*@lab.org"]\neditor = ["ed@lab.org"]\n')
    provider, secrets = Provider(), tmp_path / "secrets.toml"
    server = Server(
        Settings(workspace=settings.workspace, workers=1, roles=str(roles)), "--secrets.files", str(secrets)
    )
    secrets.write_text(provider.secrets_toml(server.url))
    server.start()
    yield server, provider
    server.kill()
    provider.shutdown()


def log_in(browser, server, email):  # noqa: F811
    page, refused = browser.new_context(viewport={"width": 1280, "height": 900}).new_page(), []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status == 403 else None)
    page.goto(f"{server.url}/studies")
    page.get_by_role("button", name="Log in").wait_for()
    page.wait_for_load_state("networkidle")
    assert not refused, "the login lacks what it shows, as its fonts"
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("Address").fill(email)
    page.get_by_role("button", name="Go").click()
    page.wait_for_url(f"{server.url}/**")
    _settle(page)
    return page


def open_studies(page):
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text="Studies").click()
    page.get_by_test_id("stSidebar").get_by_role("combobox").click()
    page.get_by_role("option", name="Small").click()
    _settle(page)
    return page.get_by_role("button", name="Evaluate")


def started(server):
    return [record for record in audit.latest(server.settings, 99) if record["action"] == "start a job"]


def check_files(editor, viewer, others):
    """What the pages of one person load is given to those who may look, and to nobody else."""
    with editor.expect_request(lambda request: "/media/" in request.url and ".svg" not in request.url) as asked:
        editor.locator("[data-testid=stSidebarNavLink]").filter(has_text="Viewer").click()
    editor.locator("canvas").first.wait_for()
    assert viewer.request.get(asked.value.url).status == 200
    assert [page.request.get(asked.value.url).status for page in others] == [403, 403]


def test_a_viewer_cannot_start_a_job_and_an_editor_can(guarded, browser):  # noqa: F811
    server, provider = guarded
    stranger = log_in(browser, server, "eve@else.org")
    stranger.get_by_text("eve@else.org may not use this server").wait_for()
    assert stranger.get_by_text("Small").count() == 0
    viewer = log_in(browser, server, "vera@lab.org")
    viewer.get_by_text("vera@lab.org · viewer").wait_for()
    button = open_studies(viewer)
    assert button.is_disabled()
    button.hover(force=True)
    viewer.get_by_test_id("stTooltipContent").get_by_text("Needs the role editor").wait_for()
    button.evaluate("node => { node.disabled = false; node.click(); }")
    viewer.wait_for_timeout(1500)
    ended = [job.id for job in jobs.list_jobs(server.settings)]
    assert ended == ["x"], "a viewer started a job"
    editor = log_in(browser, server, "ed@lab.org")
    open_studies(editor).click()
    _wait(lambda: len(jobs.list_jobs(server.settings)) == 2, 30, "the editor's job is queued")
    job = jobs.list_jobs(server.settings)[0]
    _wait(lambda: started(server), 30, "the start is on record")  # which follows the queueing
    assert [(found["who"], found["job"]) for found in started(server)] == [("ed@lab.org", job.id)]
    jobs.cancel(server.settings, job.id)
    check_files(editor, viewer, [stranger, browser.new_page()])
    editor.get_by_role("button", name="Log out").click()
    editor.get_by_role("button", name="Log in").wait_for()
    assert "/logout" in provider.asked
    editor.goto(f"{server.url}/jobs")
    editor.get_by_role("button", name="Log in").wait_for()
    assert editor.get_by_text("Demo study").count() == 0
    _wait(lambda: not any(job.active for job in jobs.list_jobs(server.settings)), 120, "the cancelled job has ended")


def test_pages_work_under_the_headers_and_ask_no_other_host(tmp_path, write_brains, browser):  # noqa: F811
    settings, path = a_study(tmp_path, write_brains)
    jobs.submit(settings, "core.workflows:evaluate", {"study": str(path)}, "Evaluate Small")
    _wait(lambda: not jobs.list_jobs(settings)[0].active, 600, "the study is evaluated")
    jobs.submit(settings, f"core.report:{publish.__name__}", {"study": str(path), "drop_individuals": False}, "Report")
    _wait(lambda: not jobs.list_jobs(settings)[0].active, 300, "the report is made")
    server = Server(settings)
    server.start()
    try:
        headers = urllib.request.urlopen(server.url).headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "SAMEORIGIN"
        assert headers["Referrer-Policy"] == "same-origin" and "camera=()" in headers["Permissions-Policy"]
        scripts = headers["Content-Security-Policy"].partition("script-src")[2].partition(";")[0]
        assert "'unsafe-inline'" not in scripts and "'unsafe-eval'" not in scripts and "http" not in scripts
        visit_pages(server, browser)
    finally:
        server.kill()


def visit_pages(server, browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, problems, hosts = context.new_page(), [], set()
    for target in ("request", "websocket"):
        page.on(target, lambda asked: hosts.add(urlsplit(asked.url).netloc))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(server.url)
    open_studies(page)
    links = page.locator("[data-testid=stSidebarNavLink]")
    for name in [text.split("\n")[-1] for text in links.all_inner_texts()]:  # the icon comes first
        links.filter(has_text=name).first.click()
        _settle(page)
        page.wait_for_timeout(1500)
        if "Viewer" in name:
            page.locator("canvas").first.wait_for()
        if "Reading room" in name:
            page.get_by_label("Reader", exact=True).fill("Ann")
            page.keyboard.press("Tab")
            page.get_by_role("spinbutton", name="Cases").fill("4")
            page.keyboard.press("Tab")
            _settle(page)
            page.get_by_role("button", name="Begin").click()
            page.locator(".reader canvas").first.wait_for(timeout=120_000)
            page.get_by_role("button", name="Pause").click()
            _settle(page)
        if "Report" in name:
            with context.expect_page() as opened:
                page.get_by_role("link", name="Present").click()
            report = opened.value
            report.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            report.locator("body.presenting section").first.wait_for()
            report.keyboard.press("End")
            report.close()
    assert not [text for text in problems if not any(word in text for word in HARMLESS)], problems
    assert {host for host in hosts if host} == {urlsplit(server.url).netloc}


def test_the_server_listens_on_this_machine_alone_and_keeps_its_guards(tmp_path):
    """The app's own configuration, without an option on the command line but the port."""
    code = (
        "import json, streamlit as st; from streamlit import config; "
        "names = ['server.address', 'server.enableXsrfProtection', 'server.enableCORS', 'browser.gatherUsageStats', "
        "'server.maxUploadSize', 'client.showErrorDetails', 'server.enableStaticServing']; "
        "print(json.dumps([config.get_option(name) for name in names]))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '["localhost", true, true, false, 5, "none", false]'


def test_other_sites_and_hosts_get_no_connection(tmp_path, write_brains):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    settings, _ = a_study(tmp_path, write_brains)
    server = Server(settings)
    server.options = ("--server.address", "localhost")
    server.start()
    try:
        with pytest.raises(InvalidStatus, match="403"):
            connect(server.url.replace("http", "ws") + "/_stcore/stream", origin="http://evil.example").close()
        listening = [c for c in _connections(server) if c.status == "LISTEN"]
        assert listening and {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1"}
        upload = f"{server.url}/_stcore/upload_file/session/file"
        request = urllib.request.Request(upload, data=b"x", method="PUT")
        with pytest.raises(urllib.error.HTTPError, match="40"):
            urllib.request.urlopen(request)
    finally:
        server.kill()


def _connections(server):
    import psutil

    return psutil.Process(server.process.pid).net_connections("tcp")


def test_child_processes_know_the_roles(tmp_path):
    assert (
        child_environment(Settings(workspace=tmp_path, roles="/etc/roles.toml"))["SYNTHSCOPE_ROLES"]
        == "/etc/roles.toml"
    )
