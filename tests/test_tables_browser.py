"""Tables in a real browser: the heatmap of effect sizes by mouse and keys, and cases ticked in one of several tables."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from core.image_checks import CHECKS
from core.settings import from_environment
from core.store import write_csv, write_json
from core.study import read_study
from core.workflows import demo_folder, results_folder
from tests.test_browser import Server
from tests.test_pages import study, workspace
from tests.test_pages_regional import compared
from tests.test_viewer_browser import launch, playwright

__all__ = ["compared", "playwright", "study", "workspace"]  # fixtures
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def opened(compared, playwright):
    """A page of the browser on a served study, and how to open one of the app's pages."""
    settings = from_environment()
    # A demo that counts as made, so that no job computes beside the browser.
    shutil.copytree(Path(compared).parent, demo_folder(settings), dirs_exist_ok=True)
    write_json({"complete": True}, results_folder(settings, demo_folder(settings) / "study.toml") / "provenance.json")
    server = Server(settings)
    server.start()
    browser = launch(playwright)
    page, problems = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True), []
    page.on("pageerror", lambda error: problems.append(str(error)))

    def go(name: str) -> None:
        page.goto(server.url)
        page.get_by_role("heading").first.wait_for(timeout=180_000)
        page.goto(f"{server.url}/{name}?study={results_folder(settings, read_study(compared).path).name}")

    yield page, go
    browser.close()
    server.kill()
    assert not problems


def test_a_cell_says_what_it_holds_and_leads_to_its_volumes_by_mouse_and_keys(opened):
    page, go = opened
    go("anatomy")
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

    top = "document.querySelector('[data-testid=stMain]').getBoundingClientRect().top"
    page.get_by_role("button", name="Heatmap").click()
    page.wait_for_function(
        f"document.querySelector('.st-key-effects_heatmap').getBoundingClientRect().top - {top} < 80"
    )

    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


def test_back_comes_to_the_place_where_a_page_was_left(opened):
    page, go = opened
    go("")
    place = "document.querySelector('[data-testid=stMain]').scrollTop"
    page.get_by_role("heading", name="Cases", exact=True).wait_for(timeout=120_000)
    page.mouse.move(640, 450)
    page.mouse.wheel(0, 5000)
    page.wait_for_function(f"{place} > 200")
    page.get_by_role("heading", name="Cases", exact=True).click()
    left = page.evaluate(place)
    page.get_by_role("link", name="Quality").click()
    page.get_by_role("heading", name="The gate", exact=True).wait_for()
    page.go_back()
    page.get_by_role("heading", name="Cases", exact=True).wait_for()
    page.wait_for_function(f"Math.abs({place} - {left}) < 3")


def test_cases_are_ticked_one_after_the_other_where_another_table_lists_them_too(compared, opened):
    page, go = opened
    found = [
        {"cohort": "Alpha", "subject": f"a{i}", "unlike": "sharpness", **dict.fromkeys(CHECKS, 0.5)} for i in range(6)
    ]
    write_csv(pd.DataFrame(found), results_folder(from_environment(), Path(compared)) / "image_checks.csv")
    go("quality")
    table = page.locator(".st-key-failing [data-testid=stDataFrame]")
    for row, words in enumerate(("1 case selected", "2 cases selected", "3 cases selected")):
        page.wait_for_function("document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'")
        page.wait_for_timeout(1000)  # the table is drawn
        table.click(position={"x": 14, "y": 52 + 35 * row})
        page.get_by_test_id("stSidebar").get_by_text(words).wait_for(timeout=30_000)
