"""The app as a user meets it: a real server, a real browser, the demo with fewer brains, and processes that are killed meanwhile."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from core import jobs, workflows
from core.settings import Settings, child_environment
from core.study import PROVENANCE, CohortSpec, StudySettings, StudySpec, write_spec

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next((path for n in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(n))), None)
DEMO_SECONDS = 25 * 60
# What headless Chromium says of its software renderer is not an error of the page.
HARMLESS = ("GPU stall", "WebGL", "GroupMarkerNotSet", "favicon")

pytestmark = [pytest.mark.browser, pytest.mark.slow]


class Server:
    """A Streamlit server on a free port of this machine."""

    def __init__(self, settings: Settings, *options: str) -> None:
        self.settings, self.options = settings, options
        self.process: subprocess.Popen | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--server.port", str(self.port), "--server.headless", "true", "--server.address", "127.0.0.1"]
        options += self.options
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app.py", *options],
            cwd=ROOT,
            env=child_environment(self.settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail("the server did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    settings = Settings(workspace=tmp_path_factory.mktemp("browser") / "workspace", workers=2, demo_cases=3)
    server = Server(settings)
    server.start()
    yield server
    server.kill()
    for process in _runner_processes(settings):
        process.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    yield page
    page.close()


def _runner_processes(settings: Settings) -> list[psutil.Process]:
    """The runner of this workspace and its children (the Dask workers)."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("SYNTHSCOPE_WORKSPACE") == str(settings.workspace)
            if ours and "core.jobs" in process.cmdline():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [child for runner in found for child in (runner, *runner.children(recursive=True))]


def _artefacts(settings: Settings) -> dict[str, tuple[int, int]]:
    """Finished results by name, with what changes when one is written again."""
    folders = (settings.workspace / "artefacts", settings.workspace / "demo")
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    files = [f for f in files if not f.name.startswith(".tmp-") and f.suffix in (".npz", ".gz", ".json")]
    return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.name != PROVENANCE}


def _demo_job(settings: Settings) -> jobs.Job | None:
    return next(iter(jobs.list_jobs(settings, function="core.workflows:demo")), None)


def _wait(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting: {what}"
        time.sleep(0.3)


def _settle(page) -> None:
    """Wait until the script of the page has run to its end."""
    page.wait_for_selector("[data-testid=stApp]", timeout=60_000)
    page.wait_for_timeout(300)
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]')?.getAttribute('data-test-script-state') !== 'running'",
        timeout=60_000,
    )


def _check(page) -> None:
    assert page.locator("[data-testid=stException]").count() == 0, page.locator(
        "[data-testid=stException]"
    ).inner_text()
    problems = [text for text in page.problems if not any(word in text for word in HARMLESS)]
    assert not problems, problems


def test_first_page_shows_the_demo_at_work(server: Server, page):
    start = time.monotonic()
    page.goto(server.url)
    page.get_by_role("heading").first.wait_for(timeout=60_000)
    assert time.monotonic() - start < 60
    _wait(lambda: (job := _demo_job(server.settings)) and job.state == "running", 60, "the demo job starts")
    _settle(page)
    _check(page)


def test_killed_worker_web_server_and_runner_lose_nothing(server: Server, page):
    settings = server.settings
    _wait(lambda: len(_artefacts(settings)) > 60, 300, "some cases are finished")
    before = _artefacts(settings)
    workers = [p for p in _runner_processes(settings) if "spawn_main" in " ".join(p.cmdline())]
    assert workers
    workers[-1].send_signal(signal.SIGKILL)
    server.kill()
    _wait(lambda: len(_artefacts(settings)) > len(before) + 10, 300, "the job goes on without the web server")
    before = _artefacts(settings) | before
    for process in _runner_processes(settings):
        if process.is_running() and "core.jobs" in process.cmdline():
            process.send_signal(signal.SIGKILL)
    _wait(lambda: not jobs.runner_alive(settings), 30, "the runner is gone")
    server.start()
    page.goto(server.url)
    _settle(page)
    _wait(lambda: (job := _demo_job(settings)) and job.state == "running" and job.attempts > 1, 90, "the job resumes")
    _wait(lambda: not _demo_job(settings).active, DEMO_SECONDS, "the demo is complete")
    job = _demo_job(settings)
    assert job.state == "done", job.error
    assert job.result["failed"] == 0
    after = _artefacts(settings)
    again = [name for name, stamp in before.items() if after.get(name) != stamp]
    assert not again, f"computed again: {again[:3]}"
    assert not list((settings.workspace / "artefacts").rglob(".tmp-*"))[1:], "more than the killed write was left"


def test_every_page_opens_without_an_error(server: Server, page):
    page.goto(server.url)
    _settle(page)
    links = page.locator("[data-testid=stSidebarNavLink]")
    assert links.count() >= 8
    for index in range(links.count()):
        links.nth(index).click()
        _settle(page)
        page.get_by_role("heading").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        _check(page)


def test_shell_and_app_give_identical_tables(server: Server, tmp_path: Path):
    """A second workspace: the shell computes a part of the demo again, from the same images."""
    folder = workflows.demo_folder(server.settings)
    names = ("real", "training", "blurred", "vae-gan")
    real, training, blurred, sampled = (CohortSpec(images=str(folder / name / "*.nii.gz")) for name in names)
    plan = StudySettings(encoders=("random-r50", "deepbet", "embedded"), segmenter="embedded")
    cohorts = {"real": real, "training": training, "synthetic": {"Blurred": blurred, "VAE-GAN": sampled}}
    study = tmp_path / "study.toml"
    write_spec(StudySpec(name="part of the demo", grid="half", settings=plan, **cohorts), study)
    jobs.submit(server.settings, "core.workflows:evaluate", {"study": str(study)}, "Part of the demo")
    evaluated = "core.workflows:evaluate"
    _wait(lambda: not jobs.list_jobs(server.settings, function=evaluated)[0].active, DEMO_SECONDS, "the app evaluates")
    settings = replace(server.settings, workspace=tmp_path / "other")
    command = [sys.executable, "-m", "core", "evaluate", str(study), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, env=child_environment(settings), capture_output=True, text=True)
    assert result.returncode == 3, result.stderr  # eight cases are too few for regional correlations: labelled gaps
    assert "failed 0" in result.stdout + result.stderr
    app = workflows.results_folder(server.settings, study)
    for name in ("metrics.csv", "quality.csv", "effect_sizes.csv", "copy_check.csv", "copies.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (app / name).read_bytes()
        assert len((app / name).read_text(encoding="utf-8").splitlines()) > 3
    assert os.path.getsize(app / "metrics.csv") > 1000
