"""Take the screenshots of the README from a running app: ``python docs/make_screenshots.py http://localhost:8501``."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent / "images"
PAGES = (
    "overview",
    "viewer",
    "similarity",
    "quality",
    "anatomy",
    "reading_room",
    "generators",
    "report",
    "paper",
    "studies",
    "jobs",
)
HEIGHT = {"overview": 1900, "similarity": 1500, "anatomy": 1500}
WIDTH, COLOURS = 1280, 256


def settle(page: Page) -> None:
    """Wait until the page has stopped computing and drawing."""
    page.get_by_role("heading").first.wait_for()
    page.wait_for_timeout(6000)


@contextmanager
def chromium_page(width: int, height: int) -> Iterator[Page]:
    """Launch headless Chromium, with WebGL in software, and yield a page of this size."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(90_000)
        yield page
        browser.close()


def main(url: str) -> None:
    """Write one small PNG a page."""
    with chromium_page(WIDTH, 900) as page:
        page.goto(url)
        settle(page)
        links = page.locator("[data-testid=stSidebarNavLink]")
        for index in range(links.count()):
            links.nth(index).click()
            settle(page)
            name = urlsplit(page.url).path.rstrip("/").rpartition("/")[2]
            name = name if name in PAGES else "overview"
            page.set_viewport_size({"width": WIDTH, "height": HEIGHT.get(name, 1100)})
            settle(page)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(COLOURS, kmeans=1).save(FOLDER / f"{name}.png", optimize=True)
            page.set_viewport_size({"width": WIDTH, "height": 900})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8501")
