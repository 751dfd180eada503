"""How long the pages take in a browser: the first one, each page by its link, and an answer of each widget.

    python -m benchmarks.pages WORKSPACE [--rounds 5]

WORKSPACE holds the finished demo study. A time ends when Streamlit says that nothing runs and the page has drawn its
last change; the first round of each widget fills the cache and is not counted.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.toggle import reach, serve

# Page, and the words of two choices of one widget on it, clicked in turn.
WIDGETS = (
    ("Overview", "HA-GAN (sampled)", "VAE-GAN (sampled)"),
    ("Overview", "MMD² (RBF)", "FID (Fréchet distance)"),
    ("Overview", "coronal", "axial"),
    ("Viewer", "Radiological", "Radiological"),
    ("Similarity", "deepbet", "untrained R50"),
    ("Similarity", "As published", "Corrected"),
    ("Similarity", "KID", "FID (Fréchet distance)"),
    ("Anatomy", "only volumes that pass the gate", "all volumes"),
    ("Anatomy", "cortical", "all"),
    ("Anatomy", "Adjusted for head size", "Adjusted for head size"),
    ("Report", "Leave individual scans out", "Leave individual scans out"),
)
STATE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState"
QUIET = f"{STATE} === 'notRunning' && !document.querySelector('[data-stale=true]')"
CLICK = """
async name => {
  const app = document.querySelector('[data-testid=stApp]');
  const found = [...document.querySelectorAll('[data-testid=stMain] button, [data-testid=stMain] label')]
    .filter(e => e.innerText.trim() === name && e.offsetParent);
  if (!found.length) throw new Error('no ' + name);
  let ran = false, last = 0;
  const start = performance.now();
  const observer = new MutationObserver(() => {
    ran ||= app.dataset.testScriptState === 'running';
    last = performance.now();
  });
  observer.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  (found[0].querySelector('input') ?? found[0]).click(); // of a toggle, the label hears no click by script
  const runs = () => app.dataset.testScriptState !== 'notRunning' || document.querySelector('[data-stale=true]');
  const still = () => performance.now() - Math.max(start, last) > 2000; // a short run may be drawn without being shown
  while (runs() || !(ran || still())) {
    if (performance.now() - start > 60000) throw new Error('no answer to ' + name);
    await new Promise(done => setTimeout(done, 5));
  }
  observer.disconnect();
  return last - start;
}
"""


def first_page(browser: Browser, url: str) -> float:
    """Return the seconds from an address typed in a fresh browser to the whole first page."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    start = time.perf_counter()
    page.goto(url)
    page.get_by_role("heading", name="Overview").wait_for(timeout=120_000)
    page.wait_for_function(QUIET, timeout=120_000, polling=10)
    seconds = time.perf_counter() - start
    page.context.close()
    return seconds


def change_page(page: Page, name: str) -> float:
    """Return the seconds from a click in the navigation to the whole page."""
    link = page.locator("[data-testid=stSidebarNavLink]").filter(has_text=name)
    start = time.perf_counter()
    link.click()
    page.get_by_role("heading", name=name, exact=True).first.wait_for(timeout=120_000)
    page.wait_for_function(QUIET, timeout=120_000, polling=10)
    return time.perf_counter() - start


def report(what: str, seconds: list[float]) -> None:
    """Print the median and the worst."""
    print(f"{what}: {statistics.median(seconds):.2f} s (worst of {len(seconds)}: {max(seconds):.2f} s)", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    server, url = serve(options.workspace.resolve())
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=flags)
            page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
            reach(page, url)
            page.get_by_role("heading", name="Overview").wait_for(timeout=120_000)
            page.wait_for_function(QUIET, timeout=120_000)
            report("first page", [first_page(browser, url) for _ in range(options.rounds)])
            names = page.locator("[data-testid=stSidebarNavLink]").all_inner_texts()
            names = [name.splitlines()[-1] for name in names]
            rounds = [{name: change_page(page, name) for name in names} for _ in range(options.rounds + 1)][1:]
            for name in names:
                report(f"to {name}", [times[name] for times in rounds])
            for name, *choices in WIDGETS:
                change_page(page, name)
                page.wait_for_timeout(1500)
                times = [page.evaluate(CLICK, choice) / 1000 for _ in range(options.rounds + 1) for choice in choices]
                report(f"{name}, {' / '.join(dict.fromkeys(choices))}", times[len(choices) :])
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
