"""The heatmap of effect sizes in a real browser: hover, keys, a click, and a narrow window."""

import shutil
from pathlib import Path

import pytest

from core.settings import from_environment
from core.store import write_json
from core.study import read_study
from core.workflows import demo_folder, results_folder
from tests.test_browser import Server
from tests.test_pages import study, workspace
from tests.test_pages_regional import compared
from tests.test_viewer_browser import launch, playwright

__all__ = ["compared", "playwright", "study", "workspace"]  # fixtures
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_cell_says_what_it_holds_and_leads_to_its_volumes_by_mouse_and_keys(compared, playwright):
    settings = from_environment()
    # A demo that counts as made, so that no job computes beside the browser.
    shutil.copytree(Path(compared).parent, demo_folder(settings), dirs_exist_ok=True)
    write_json({"complete": True}, results_folder(settings, demo_folder(settings) / "study.toml") / "provenance.json")
    server = Server(settings)
    server.start()
    browser = launch(playwright)
    page, problems = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(server.url)
        page.get_by_role("heading").first.wait_for(timeout=180_000)
        name = results_folder(server.settings, read_study(compared).path).name
        page.goto(f"{server.url}/anatomy?study={name}")
        grid = page.get_by_role("grid", name="Cohen's d by region and cohort")
        grid.wait_for(timeout=120_000)
        assert grid.locator("tbody tr").count() == 49
        of = {said: grid.locator("tr", has=page.get_by_role("rowheader", name=said, exact=True)).locator("td")
              for said in ("hippocampus", "banks of superior temporal sulcus")}  # fmt: skip
        behind = page.locator("[data-testid=stMarkdown] strong")
        hint = page.locator(".hint")

        of["hippocampus"].hover()
        for text in ("hippocampus, Alpha", "d = -", "95 % [", "N = 14 real, 14 synthetic"):
            assert text in hint.inner_text(), text
        of["banks of superior temporal sulcus"].hover()
        assert "(bankssts)" in hint.inner_text()
        page.get_by_role("heading").first.hover()
        hint.wait_for(state="hidden")

        of["banks of superior temporal sulcus"].click()
        behind.filter(has_text="banks of superior temporal sulcus, Alpha").wait_for(timeout=60_000)

        first = grid.locator("td").first  # the one that Tab reaches
        assert grid.locator("td[tabindex='0']").count() == 1 and first.get_attribute("tabindex") == "0"
        first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")  # there is but one cohort
        region = grid.locator("tbody tr").nth(2).locator("th").inner_text()
        assert hint.inner_text().startswith(region)
        page.keyboard.press("Enter")
        behind.filter(has_text=f"{region}, Alpha").wait_for(timeout=60_000)
        assert grid.locator("td[tabindex='0']").count() == 1

        page.set_viewport_size({"width": 420, "height": 800})
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
        assert not problems
    finally:
        browser.close()
        server.kill()
