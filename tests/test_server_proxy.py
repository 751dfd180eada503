"""The app behind the reverse proxy of docs/server.md, in a browser that comes by https; one process, and two."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from core import audit, jobs
from core.settings import Settings
from core.study import CohortSpec, StudySettings, StudySpec, write_spec
from tests.oidc_provider import Provider
from tests.proxy import HOST, Proxy, replaced, written
from tests.test_browser import HARMLESS, ROOT, Server, _settle, _wait, browser  # noqa: F401 - fixture
from tests.test_server_browser import a_study, open_studies
from tests.test_server_processes import runners


def behind(folder, settings: Settings, processes: int, *options: str) -> tuple[list[Server], Proxy]:
    """Make servers, not yet started, and the proxy before them; skip without nginx."""
    servers = [Server(settings, *options) for _ in range(processes)]
    try:
        return servers, Proxy(folder / "proxy", [server.port for server in servers])
    except FileNotFoundError as reason:
        pytest.skip(str(reason))


def visitor(browser, seat: str = ""):  # noqa: F811
    """Open an empty page of a browser of its own, that notes what goes wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, ignore_https_errors=True)
    page = context.new_page()
    context.set_default_timeout(60_000)
    page.problems, page.failed, page.sockets, page.volumes = [], [], [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("response", lambda answer: page.failed.append((answer.status, answer.url)) if is_refusal(answer) else None)
    page.on("response", lambda answer: page.volumes.append(answer.url) if is_volume(answer) else None)
    page.on("websocket", lambda found: page.sockets.append(found.url))
    return page


def is_refusal(answer) -> bool:
    """Tell whether a page lacks something; on a page's own address Streamlit first asks one that is not there."""
    return answer.status >= 400 and not re.search(r"/\w+/_stcore/(health|host-config)$", answer.url)


def is_volume(answer) -> bool:
    path = urlsplit(answer.url).path
    return answer.ok and path.startswith("/media/") and not path.endswith((".svg", ".png", ".jpg", ".jpeg", ".webp"))


def go_to(page, name: str) -> None:
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text=name).click()
    _settle(page)


def show_a_brain(page, come=None) -> None:
    """Open the viewer, or come there otherwise, and see that a volume is loaded."""
    page.volumes.clear()
    come() if come else go_to(page, "Viewer")
    page.locator("canvas").first.wait_for()
    deadline = time.monotonic() + 60
    while not page.volumes:
        assert time.monotonic() < deadline, "no volume came"
        page.wait_for_timeout(200)
    _settle(page)


def problems_of(page) -> list[str]:
    return [text for text in page.problems if not any(word in text for word in (*HARMLESS, "Failed to load resource"))]


@pytest.fixture
def guarded(tmp_path, write_brains) -> Iterator[tuple[Proxy, Settings]]:
    """One process with login and roles behind the proxy."""
    settings, _ = a_study(tmp_path, write_brains)
    roles, secrets = tmp_path / "roles.toml", tmp_path / "secrets.toml"
    roles.write_text('editor = ["ed@lab.org"]\n')
    settings = Settings(workspace=settings.workspace, workers=1, roles=str(roles))
    (server,), proxy = behind(tmp_path, settings, 1, "--secrets.files", str(secrets))
    provider = Provider()
    secrets.write_text(provider.secrets_toml(proxy.url))
    try:
        server.start()
        yield proxy, settings
    finally:
        server.kill()
        provider.shutdown()
        proxy.close()


@pytest.mark.browser
@pytest.mark.slow
def test_login_pictures_and_upload_work_through_the_proxy(guarded, browser):  # noqa: F811
    proxy, settings = guarded
    plain = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.plain).port)
    plain.request("GET", "/studies?a=b", headers={"Host": HOST})
    answer = plain.getresponse()
    assert (answer.status, answer.headers["Location"]) == (301, f"https://{HOST}/studies?a=b")
    page = visitor(browser)
    opened = page.goto(proxy.url)
    assert opened.headers["strict-transport-security"] == "max-age=31536000"
    assert "script-src 'self'" in opened.headers["content-security-policy"]
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("Address").fill("ed@lab.org")
    page.get_by_role("button", name="Go").click()
    page.wait_for_url(f"{proxy.url}/**")
    page.get_by_text("ed@lab.org · editor").wait_for()
    assert {url.partition("?")[0] for url in page.sockets} == {f"wss{proxy.url[5:]}/_stcore/stream"}
    kept = {cookie["name"]: cookie for cookie in page.context.cookies()}
    assert kept["_streamlit_user"]["httpOnly"]
    assert all(cookie["secure"] for cookie in kept.values()), kept
    open_studies(page)
    page.get_by_role("tab", name="Split a cohort").click()
    rows = "".join(f"sub-{n:05d}\t{20 + n % 60}\t{'MF'[n % 2]}\n" for n in range(100_000))
    table = {"name": "all.tsv", "mimeType": "text/plain", "buffer": f"participant_id\tage\tsex\n{rows}".encode()}
    assert 1.1e6 < len(table["buffer"]) < 5e6  # more than nginx takes unless it is told
    page.get_by_test_id("stFileUploader").locator("input").set_input_files(table)
    page.get_by_text("Training: 99600 scans").wait_for(timeout=120_000)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download test.tsv").click()
    assert len(saved.value.path().read_text(encoding="utf-8").splitlines()) == 401
    _wait(lambda: "export" in {line["action"] for line in audit.latest(settings, 1)}, 30, "the download is on record")
    show_a_brain(page)
    assert not problems_of(page), page.problems
    assert not page.failed


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path, write_brains) -> Iterator[tuple[list[Server], Proxy]]:
    """Two processes on one workspace behind the proxy, without login."""
    settings, _ = a_study(tmp_path, write_brains)
    servers, proxy = behind(tmp_path, settings, 2)
    try:
        for server in servers:
            server.start()
        yield servers, proxy
    finally:
        for server in servers:
            server.kill()
        proxy.close()
        for runner in runners(settings):
            runner.kill()


def ask(proxy: Proxy, path: str = "/", cookie: str = "") -> tuple[int, str]:
    """Return the status of an answer, and the seat it gives."""
    import ssl

    trusting = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection("127.0.0.1", urlsplit(proxy.url).port, context=trusting, timeout=20)
    connection.request("GET", path, headers={"Host": urlsplit(proxy.url).netloc, "Cookie": cookie})
    answer = connection.getresponse()
    found = re.match(
        r"seat=(\d+-[0-9a-f]+); Path=/; Secure; HttpOnly; SameSite=Lax", answer.headers["Set-Cookie"] or ""
    )
    connection.close()
    return answer.status, found[1] if found else ""


def seat_of(page) -> int:
    """Return the port of the process a browser sits at."""
    return next(int(c["value"].partition("-")[0]) for c in page.context.cookies() if c["name"] == "seat")


def add_study(folder, name: str) -> str:
    """Write a study of the brains that are there."""
    images = {"real": CohortSpec(images="../data/a"), "synthetic": {"Made": CohortSpec(images="../data/b")}}
    plan = StudySettings(encoders=("random-r50",), segmenter="embedded")
    (folder / name).mkdir()
    write_spec(StudySpec(name=name, grid="half", settings=plan, **images), folder / name / "study.toml")
    return str(folder / name)


@pytest.mark.browser
@pytest.mark.slow
def test_two_processes_share_their_people_and_see_each_others_work(two, browser, tmp_path):  # noqa: F811
    servers, proxy = two
    settings, ports = servers[0].settings, [server.port for server in servers]
    seats = [ask(proxy)[1] for _ in range(24)]
    assert {int(seat.partition("-")[0]) for seat in seats} == set(ports)  # who is new goes anywhere
    assert {ask(proxy, cookie=f"seat={seats[0]}") for _ in range(8)} == {(200, "")}  # who is known stays
    people = {}
    while set(people) != set(ports):
        page = visitor(browser)
        page.goto(proxy.url)
        people.setdefault(seat_of(page), page)
    ann, bob = (people[port] for port in ports)
    for page in (ann, bob):
        go_to(page, "Studies")
    # A study that one opens is there for the other.
    ann.get_by_role("tab", name="Open a study").click()
    ann.get_by_label("Path of a study.toml").fill(add_study(tmp_path, "Second"))
    ann.keyboard.press("Tab")
    ann.get_by_test_id("stTabs").get_by_role("button", name="Open", exact=True).click()
    chosen = ann.get_by_test_id("stSidebar").get_by_role("combobox")
    _wait(lambda: chosen.input_value() == "Second", 30, "the study is opened")
    bob.reload()
    _settle(bob)
    bob.get_by_test_id("stSidebar").get_by_role("combobox").click()
    bob.get_by_role("option", name="Second").click()
    bob.get_by_role("heading", name="Second").wait_for()
    # A job that the other starts is seen, and can be ended, by the first; there is one runner.
    bob.get_by_role("button", name="Evaluate").click()
    _wait(lambda: len(jobs.list_jobs(settings)) == 2, 20, "the job is queued")
    go_to(ann, "Jobs")
    ann.get_by_text("Evaluate Second").first.wait_for()
    _wait(lambda: len(runners(settings)) == 1, 20, "one runner works")
    jobs.cancel(settings, jobs.list_jobs(settings)[0].id)
    for page in (ann, bob):
        show_a_brain(page)
        assert not problems_of(page), page.problems
        assert not page.failed
    # One process is killed: its people go on in the other, and stay there when it is back.
    servers[0].kill()
    show_a_brain(ann, ann.reload)
    assert seat_of(ann) == ports[1]
    servers[0].start()
    _wait(lambda: ports[0] in {int(ask(proxy)[1].partition("-")[0]) for _ in range(8)}, 20, "the first is back")
    again = "address => fetch(address, {cache: 'no-store'}).then(answer => answer.status)"
    assert ann.evaluate(again, ann.volumes[-1]) == 200  # asked of the process in which the session is
    assert seat_of(ann) == ports[1]
    # That process hangs: the check of docs/server.md ends it, and not the other.
    servers[1].process.send_signal(signal.SIGSTOP)
    for server in servers:
        subprocess.run(["sh", "-c", check(server)], check=True, timeout=60)
    assert (servers[0].process.poll(), servers[1].process.wait(20)) == (None, -signal.SIGKILL)
    show_a_brain(ann, ann.reload)
    assert seat_of(ann) == ports[0]


def check(server: Server) -> str:
    """Return what the timer of docs/server.md runs, ending a process that systemd did not start."""
    unit = next(block for block in written("Several processes") if "ExecCondition" in block)
    command = re.search(r"ExecStart=/bin/sh -c '(.*)'\n", unit)[1]
    kill = ("systemctl kill --kill-whom=main -s KILL synthscope@%i", f"kill -KILL {server.process.pid}")
    return replaced(command, kill, ("%i", str(server.port)))


# -- units -------------------------------------------------------------------------------------------------------------


def test_the_unit_is_one_that_systemd_reads(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = next(block for block in written("Install") if "[Service]" in block)
    service, timer = (
        next(b for b in written("Several processes") if word in b) for word in ("ExecCondition", "[Timer]")
    )
    places = (("/srv/synthscope/app/.venv/bin/streamlit", shutil.which("true")), ("User=synthscope\n", ""))
    template = replaced(text, *places, ("--server.port 8501", "--server.port %i"))
    units = {
        "synthscope.service": replaced(text, *places),
        "synthscope@.service": template,
        "synthscope-check@.service": replaced(service, ("=systemctl", f"={shutil.which('systemctl')}")),
        "synthscope-check@.timer": timer,
    }
    for name, content in units.items():
        (tmp_path / name).write_text(content)
    for name in units:
        unit = name.replace("@", "@8502")
        found = subprocess.run(["systemd-analyze", "verify", str(tmp_path / unit)], capture_output=True, text=True)
        assert not [line for line in found.stderr.splitlines() if "synthscope" in line], found.stderr
