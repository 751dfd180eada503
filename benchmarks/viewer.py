"""How long the viewer takes in a browser: the next case, cold and warm, and the contact sheet.

    python -m benchmarks.viewer [--grid full] [--sheet 400] [--rounds 5]

Makes its own study: the template with a little noise, with the label map of the atlas. The key J is pressed as soon as
the last case is drawn (cold), or after the viewer has fetched its neighbours (warm). Times end when the new brain is
drawn. Chromium draws without a graphics card here, so a real one is faster.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.toggle import reach, serve
from core.pools import Context, InProcessPool
from core.settings import Settings
from core.store import write_json
from core.volume import HALF, grid_named
from core.workflows import demo_folder, draw_thumbnails, results_folder
from tests.test_viewer_browser import write_study

STEP = """
async name => {
  const root = [...document.querySelectorAll('*')].find(e => e.shadowRoot?.querySelector('.viewer')).shadowRoot;
  const start = performance.now();
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'j', bubbles: true, composed: true }));
  while (!root.querySelector(`.pane[data-case="${name}"]`)) {
    if (performance.now() - start > 60000) throw new Error(`no ${name}`);
    await new Promise(done => setTimeout(done, 5));
  }
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}
"""
SHEET = """
async count => {
  const start = performance.now();
  const forms = [...document.querySelectorAll('[data-testid=stButtonGroup] button')];
  forms.find(b => b.innerText === 'Contact sheet').click();
  const sheet = () => [...document.querySelectorAll('*')].find(e => e.shadowRoot?.querySelector('.sheet'))?.shadowRoot;
  while ((sheet()?.querySelectorAll('button').length ?? 0) < count) {
    if (performance.now() - start > 60000) throw new Error('no contact sheet');
    await new Promise(done => setTimeout(done, 10));
  }
  const address = sheet().querySelector('.picture').style.backgroundImage.slice(5, -2);
  await Object.assign(new Image(), { src: address }).decode();
  return performance.now() - start;
}
"""


def prepare(settings: Settings, folder: Path, cases: dict[str, int], grid: str) -> dict[str, str]:
    """Write a study with its thumbnails, and a demo that counts as made; return the study's address."""
    study = write_study(settings, folder / "study", cases, grid_named(grid))
    draw_thumbnails(Context(settings, InProcessPool()), study)
    shutil.copytree(folder / "study", demo_folder(settings), dirs_exist_ok=True)
    write_json({"complete": True}, results_folder(settings, demo_folder(settings) / "study.toml") / "provenance.json")
    return {"study": results_folder(settings, Path(study)).name, "cohort": "Alpha", "case": "Alpha-000"}


def open_viewer(browser: Browser, url: str, query: dict[str, str]) -> Page:
    """Open the viewer on its first case and wait until it is drawn."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    reach(page, url)
    page.wait_for_timeout(5000)
    page.goto(f"{url}/viewer?{urlencode(query)}")
    page.locator(".pane[data-case='Alpha-000']").wait_for(timeout=180_000)
    return page


def measure(what: str, cases: dict[str, int], grid: str, rounds: int) -> None:
    """Measure the steps through the cases, or the contact sheet; print medians."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        settings = Settings(workspace=Path(folder) / "workspace", workers=1)
        query = prepare(settings, Path(folder), cases, grid)
        server, url = serve(settings.workspace)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            page = open_viewer(browser, url, query)
            if what == "sheet":
                report(f"contact sheet of {sum(cases.values())}", [page.evaluate(SHEET, min(400, sum(cases.values())))])
                return
            cold = [page.evaluate(STEP, f"Alpha-{index:03d}") for index in range(1, rounds + 1)]
            warm = []
            for index in range(rounds + 1, 2 * rounds + 1):
                page.wait_for_timeout(6000)  # the neighbours arrive
                warm.append(page.evaluate(STEP, f"Alpha-{index:03d}"))
            report(f"next case on the {grid} grid, cold", cold)
            report(f"next case on the {grid} grid, warm", warm)
        finally:
            browser.close()
            server.terminate()
            server.wait()


def report(what: str, times: list[float]) -> None:
    """Print the median and the worst of times in ms."""
    print(
        f"{what}: {statistics.median(times) / 1000:.2f} s (worst of {len(times)}: {max(times) / 1000:.2f} s)",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="full", choices=("full", "half"))
    parser.add_argument("--sheet", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    measure("steps", {"real": 1, "Alpha": 2 * options.rounds + 2}, options.grid, options.rounds)
    measure("sheet", {"real": 1, "Alpha": options.sheet - 1}, HALF.name, options.rounds)


if __name__ == "__main__":
    main()
