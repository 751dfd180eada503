"""Every page for people who see less or use no mouse: axe-core's checks of WCAG 2 A and AA, light and dark."""

import pytest

from tests.test_viewer_browser import launch, page, playwright, server, visit, wait_for_case  # noqa: F401  fixtures

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = ("Overview", "Viewer", "Similarity", "Quality", "Anatomy", "Reading room", "Report", "The paper's tables",
         "Generators", "Studies", "Jobs")  # fmt: skip
RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]},
    "rules": {"list": {"enabled": False}, "listitem": {"enabled": False}},  # Streamlit's own navigation breaks them
}
QUIET = (
    "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
    " && !document.querySelector('[data-stale=true]')"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_breaks_the_rules(server, playwright, scheme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    browser = launch(playwright)
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme, bypass_csp=True)  # noqa: F811
    visit(page, server)
    broken = []
    for name in PAGES:
        page.locator("[data-testid=stSidebarNavLink]").filter(has_text=name).click()
        page.get_by_role("heading", name=name, exact=True).first.wait_for(timeout=120_000)
        page.wait_for_function(QUIET, timeout=120_000)
        page.wait_for_timeout(700)  # fades end
        for rule in Axe().run(page, options=RULES).response["violations"]:
            for node in rule["nodes"]:
                broken.append((name, rule["id"], node["html"][:160], node["any"][0]["message"] if node["any"] else ""))
    browser.close()
    assert not broken, "\n".join(map(str, broken))


def test_panes_are_chosen_by_keyboard(page):  # noqa: F811
    wait_for_case(page, "Alpha-000")
    page.get_by_role("combobox", name="Synthetic case").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    chooser = page.get_by_role("combobox", name="Shown side by side")
    page.wait_for_function("e => e === document.activeElement", arg=chooser.element_handle(), timeout=120_000)
    page.keyboard.insert_text("Template")
    page.keyboard.press("Enter")
    wait_for_case(page, "ICBM152, scaled")
    page.keyboard.press("Backspace")  # takes it out again
    page.locator(".pane").nth(2).wait_for(state="detached", timeout=60_000)
    while chooser.count():
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)
    assert page.get_by_role("button", name="Panes").evaluate("e => e === document.activeElement")
