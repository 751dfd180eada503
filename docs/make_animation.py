"""Make the animation of the README from a running app: ``python -m docs.make_animation http://localhost:8501``.

From a number to the brains behind it: points of the quality page, their brains, a region, the sheet of all brains.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from docs.make_screenshots import chromium_page, settle

TARGET = Path(__file__).parent / "images" / "tour.gif"
SIZE, SHOWN, COLOURS = (1280, 860), (960, 645), 96


class Film:
    """Frames of a page, each with its time on screen."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def shoot(self, milliseconds: int) -> None:
        """Add what is on screen."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB").resize(SHOWN, Image.Resampling.LANCZOS)
        self.frames.append(picture.quantize(COLOURS, dither=Image.Dither.NONE))
        self.times.append(milliseconds)

    def save(self, path: Path) -> None:
        """Write the frames as one GIF that goes round."""
        self.frames[0].save(path, save_all=True, append_images=self.frames[1:], duration=self.times, loop=0)


def go(page: Page, name: str) -> None:
    """Open a page and wait until it is drawn."""
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text=name).click()
    page.get_by_role("heading", name=name, exact=True).first.wait_for()
    page.wait_for_timeout(6000)


def play(page: Page, film: Film) -> None:
    """Walk through the product."""
    go(page, "Overview")
    film.shoot(2000)
    go(page, "Quality")
    page.get_by_role("heading", name="Scores of every volume").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    film.shoot(1600)
    for number in (1, 4):  # a volume of a generator, one of another
        points = page.locator(".scatterlayer .trace").nth(number).locator(".points path")
        points.nth(3).scroll_into_view_if_needed()
        box = points.nth(3).bounding_box()
        assert box
        if number > 1:
            page.keyboard.down("Shift")
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.keyboard.up("Shift")
        page.wait_for_timeout(4000)
        film.shoot(1500)
    page.get_by_test_id("stSidebar").get_by_role("button", name="in the viewer").click()
    page.locator(".pane canvas").first.wait_for()
    page.wait_for_timeout(9000)
    film.shoot(1800)
    page.locator(".pane canvas").first.click(position={"x": 95, "y": 72})
    page.wait_for_timeout(1000)
    film.shoot(1200)
    page.keyboard.press(" ")
    page.wait_for_timeout(1500)
    film.shoot(1800)
    page.keyboard.press("3")
    page.wait_for_timeout(1500)
    film.shoot(1500)
    page.get_by_test_id("stMain").get_by_text("Contact sheet", exact=True).click()
    page.locator(".sheet button").nth(20).wait_for()
    page.wait_for_timeout(2500)
    film.shoot(2000)
    go(page, "Anatomy")
    page.get_by_text("Equivalence margin").scroll_into_view_if_needed()
    page.mouse.move(SIZE[0] / 2, SIZE[1] / 2)
    page.mouse.wheel(0, 700)
    page.wait_for_timeout(2500)
    film.shoot(2200)
    go(page, "Similarity")
    film.shoot(1600)
    page.get_by_role("button", name="deepbet").or_(page.get_by_text("deepbet", exact=True)).first.click()
    page.wait_for_timeout(3000)
    film.shoot(2000)


def main(url: str) -> None:
    """Write the animation."""
    with chromium_page(*SIZE) as page:
        page.goto(url)
        settle(page)
        film = Film(page)
        play(page, film)
        film.save(TARGET)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8501")
