"""Every page on a projector and on a small laptop: nothing beyond the window, no label cut."""

import pytest

from tests.test_accessibility import PAGES, QUIET
from tests.test_viewer_browser import launch, playwright, server, visit  # noqa: F401  fixtures

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# What reaches beyond the window, and which words of a control or heading are cut.
OUTSIDE = """() => {
  const main = document.querySelector("[data-testid=stMain]"), named = (e) => (e.dataset.testid || e.className) + ": " + e.textContent.slice(0, 60);
  const all = [...document.querySelectorAll("[data-testid=stMain] *, [data-testid=stSidebar] *")].filter((e) => e.getClientRects().length);
  const inside = (e) => e.closest("[data-testid=stDataFrame], pre, .viewer canvas, [role=tablist], .js-plotly-plot");
  const beyond = all.filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !inside(e));
  const words = [...document.querySelectorAll("h1, h2, h3, [data-testid=stMain] button p, [data-testid=stWidgetLabel] p, [data-testid=stMain] label p, [data-testid=stSidebarNavLink] span")];
  const cut = words.filter((e) => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1 && getComputedStyle(e).overflowX !== "visible");
  return [...(main.scrollWidth > main.clientWidth + 1 ? ["the page scrolls sideways"] : []), ...beyond.map(named), ...cut.map(named)];
}"""


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (1280, 720)])
def test_nothing_is_cut_in_a_small_window(server, playwright, width, height):  # noqa: F811
    browser = launch(playwright)
    page = browser.new_page(viewport={"width": width, "height": height}, bypass_csp=True)
    visit(page, server)
    wrong = []
    for name in PAGES:
        page.locator("[data-testid=stSidebarNavLink]").filter(has_text=name).click()
        page.get_by_role("heading", name=name, exact=True).first.wait_for(timeout=120_000)
        page.wait_for_function(QUIET, timeout=120_000)
        page.wait_for_timeout(700)
        wrong += [(name, text) for text in page.evaluate(OUTSIDE)]
    browser.close()
    assert not wrong, "\n".join(map(str, wrong))
