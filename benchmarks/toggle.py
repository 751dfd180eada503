"""How long a toggle of the Similarity page takes in a browser, from the click to the new answer.

    python -m benchmarks.toggle WORKSPACE [--rounds 6]

WORKSPACE holds the finished demo study. The answer at the top of the page holds the name of the encoder or metric, so
its change is seen by the page itself; the whole page is drawn when Streamlit says that nothing runs any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CLICK = """
async ([group, name]) => {
  const buttons = [...document.querySelectorAll('[data-testid=stButtonGroup]')]
    .find(g => g.innerText.includes(group)).querySelectorAll('button');
  const button = [...buttons].find(b => b.innerText.trim() === name);
  const answer = () => document.querySelector('[data-testid=stVerticalBlock] [data-testid=stMarkdown] p strong')
    .closest('[data-testid=stVerticalBlock]').innerText;
  const before = answer(), start = performance.now();
  button.click();
  const wait = condition => new Promise((done, fail) => {
    const check = () => condition() ? done(performance.now() - start)
      : performance.now() - start > 30000 ? fail(new Error('no answer')) : setTimeout(check, 5);
    check();
  });
  const answered = await wait(() => answer() !== before);
  const running = () => document.querySelector('[data-testid=stStatusWidget], [data-stale=true]');
  const drawn = await wait(() => !running());
  return [answered, drawn];
}
"""


def serve(workspace: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the app on a free port; return the process and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        "app.py",
        "--server.headless",
        "true",
        "--server.port",
        str(port),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "SYNTHSCOPE_WORKSPACE": str(workspace)}, stdout=subprocess.DEVNULL
    )
    return process, f"http://127.0.0.1:{port}"


def reach(page: Page, url: str) -> None:
    """Open an address of a server that may still be starting."""
    for _ in range(60):
        try:
            page.goto(url)
            return
        except Exception:
            time.sleep(1)


def open_page(page: Page, url: str) -> None:
    """Open Similarity and wait until it is drawn."""
    reach(page, f"{url}/similarity")
    page.get_by_role("tab", name="Map of all volumes").wait_for(timeout=120_000)
    page.wait_for_timeout(4000)
    running = "document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')"
    page.wait_for_function(f"!{running}", timeout=120_000)


def main(arguments: list[str] | None = None) -> None:
    """Toggle encoder and metric in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args(arguments)
    server, url = serve(options.workspace.resolve())
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
            open_page(page, url)
            for group, names in {
                "deepbet": ("deepbet", "untrained R50"),
                "FID (Fréchet distance)": ("MMD² (RBF)", "FID (Fréchet distance)"),
            }.items():
                times = [page.evaluate(CLICK, [group, name]) for _ in range(options.rounds) for name in names][
                    len(names) :
                ]  # the first round fills the cache
                answered, drawn = (statistics.median(t[i] for t in times) / 1000 for i in (0, 1))
                worst = max(t[0] for t in times) / 1000
                print(f"{group}: answer {answered:.2f} s (worst {worst:.2f} s), whole page {drawn:.2f} s")
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
