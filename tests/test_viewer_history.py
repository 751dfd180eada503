"""Back and Forward inside the viewer: what is a step of the browser's history, and what it leads back to."""

from urllib.parse import parse_qs, urlsplit

import pytest

from pages import viewer_choices
from tests.test_page_viewer import kept, run, sent, study, viewer  # noqa: F401  fixtures
from tests.test_viewer_browser import cases, facts, page, playwright, pressed, server, visit, wait_for_case  # noqa: F401


def steps(app) -> int:
    """How many steps of the history the page has asked for."""
    return sent(app, "synthscope_address")["step"]


def test_what_is_chosen_is_a_step_and_what_is_stepped_through_is_not(study):  # noqa: F811
    app = viewer(study, cohort="Alpha", case="a-00")
    assert steps(app) == 0 == steps(run(app))
    app.session_state["viewer_synthetic_Alpha"] = "a-02"  # as keys do
    assert steps(run(app)) == 0 and kept(app)["synthetic_case"] == "a-02"
    app.toggle(key="viewer_radiological").set_value(True)
    assert steps(run(app)) == 1
    app.selectbox(key="viewer_synthetic_Alpha").select("a-01")
    assert steps(run(app)) == 2
    app.multiselect(key="viewer_panes").set_value(["synthetic", "template"])
    assert steps(run(app)) == 3
    app.segmented_control(key="viewer_show").select("Contact sheet")
    assert steps(run(app)) == 4
    app.selectbox(key="viewer_sort").select("case name")
    app.segmented_control(key="viewer_plane").select("coronal")
    assert steps(run(app)) == 4
    app.multiselect(key="viewer_cohorts").set_value(["Alpha"])
    assert steps(run(app)) == 5
    app.session_state["selected_cohort"], app.session_state["selected_case"] = (
        "real",
        "r-01",
    )  # Streamlit makes the step
    assert steps(run(app)) == 5 == steps(run(app))


def test_back_leads_to_the_choices_and_the_view_of_the_address(study, monkeypatch):  # noqa: F811
    app = viewer(study, cohort="Alpha", case="a-00", view='{"mm":[1,2,3]}')
    before = kept(app)
    arrival = sent(app)["token"]
    app.selectbox(key="viewer_synthetic_Alpha").select("a-01")
    app.multiselect(key="viewer_panes").set_value(["synthetic"])
    app.toggle(key="viewer_radiological").set_value(True)
    after = kept(run(app))
    monkeypatch.setattr(viewer_choices, "went_back", lambda: True)
    for link, view in ((before, '{"mm":[1,2,3]}'), ({**after, "view": ""}, "")):
        app.query_params.clear()
        for name, value in link.items():
            if value:
                app.query_params[name] = value
        run(app)
        assert {name: value for name, value in kept(app).items() if name != "view"} == {
            name: value for name, value in link.items() if name != "view"
        }
        arrival += 1
        assert (sent(app)["view"], sent(app)["token"], steps(app)) == (view, arrival, 1)


def choice(page, name) -> str:  # noqa: F811
    """What the address says of a choice."""
    return parse_qs(urlsplit(page.url).query).get(name, [""])[0]


def choose(page, label, case):  # noqa: F811
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=case, exact=True).click()
    wait_for_case(page, case)


def history(page) -> int:  # noqa: F811
    page.wait_for_timeout(500)  # the address follows
    return page.evaluate("() => history.length")


@pytest.fixture
def opened(page, server):  # noqa: F811
    visit(page, server)
    wait_for_case(page, "Alpha-000")
    wait_for_case(page, "real-000")
    page.locator(".pane canvas").first.click(position={"x": 90, "y": 110})
    page.wait_for_function("() => location.search.includes('view=')")
    return page


@pytest.mark.browser
@pytest.mark.slow
def test_another_form_is_one_step_back_and_forward(opened):
    start, before = history(opened), facts(opened)
    opened.get_by_text("Contact sheet", exact=True).click()
    opened.locator(".sheet button").first.wait_for(timeout=60_000)
    assert history(opened) == start + 1
    opened.go_back()
    wait_for_case(opened, "Alpha-000")
    opened.locator(".sheet").wait_for(state="detached", timeout=60_000)
    opened.wait_for_timeout(500)
    assert facts(opened) == before and choice(opened, "show") == "Brains"
    opened.go_forward()
    opened.locator(".sheet button").first.wait_for(timeout=60_000)
    opened.locator(".sheet button[data-case='Alpha-003']").click()
    wait_for_case(opened, "Alpha-003")
    assert history(opened) == start + 2
    opened.go_back()
    opened.locator(".sheet button").first.wait_for(timeout=60_000)
    assert history(opened) == start + 2


@pytest.mark.browser
@pytest.mark.slow
def test_another_case_is_one_step_back_and_what_keys_reach_is_none(opened):
    start = history(opened)
    opened.keyboard.press("j")
    wait_for_case(opened, "real-001")
    opened.wait_for_function("() => location.search.includes('real-001')")
    assert history(opened) == start
    before = facts(opened)
    choose(opened, "Synthetic case", "Alpha-002")
    opened.keyboard.press("Escape")
    opened.locator("[data-slice=axial]").click()
    assert history(opened) == start + 1
    opened.go_back()
    wait_for_case(opened, "Alpha-000")
    opened.wait_for_function("() => !location.search.includes('axial')")
    opened.wait_for_timeout(500)
    assert cases(opened) == ["real-001", "Alpha-000"] and facts(opened) == before and pressed(opened, "All planes")
    opened.go_forward()
    wait_for_case(opened, "Alpha-002")
    opened.locator("[data-slice=axial][aria-pressed=true]").wait_for()
    assert history(opened) == start + 1


@pytest.mark.browser
@pytest.mark.slow
def test_another_page_is_one_step_and_back_shows_the_brains_as_they_were_left(opened):
    choose(opened, "Synthetic case", "Alpha-002")
    opened.wait_for_function("() => location.search.includes('Alpha-002')")
    start, address, before = history(opened), opened.url, facts(opened)
    opened.locator("[data-testid=stSidebarNavLink]").filter(has_text="Quality").click()
    opened.get_by_role("heading", name="Scores of every volume").wait_for(timeout=120_000)
    assert history(opened) == start + 1
    opened.evaluate("() => history.go(-2)")  # to the case that was shown before
    wait_for_case(opened, "Alpha-000")
    opened.wait_for_function("() => location.search.includes('Alpha-000')")
    opened.go_forward()
    wait_for_case(opened, "Alpha-002")
    opened.wait_for_timeout(500)
    assert (opened.url, facts(opened), history(opened)) == (address, before, start + 1)
    opened.go_forward()
    opened.get_by_role("heading", name="Scores of every volume").wait_for(timeout=120_000)
    opened.go_back()
    wait_for_case(opened, "Alpha-002")


@pytest.mark.browser
@pytest.mark.slow
def test_back_is_followed_though_a_pane_asks_for_its_neighbours_meanwhile(opened):
    choose(opened, "Synthetic case", "Alpha-002")
    opened.wait_for_function("() => location.search.includes('Alpha-002')")
    opened.locator(".viewer").evaluate(
        """box => {
            const viewer = synthscopeViewer.instances.get(box.parentNode);
            addEventListener("popstate", () => { for (let n = 0; n < 20; n++) setTimeout(() => viewer.wish(), 10 * n); }, { once: true });
            history.back();
        }"""
    )
    wait_for_case(opened, "Alpha-000")
    opened.wait_for_timeout(1500)
    assert cases(opened)[1] == "Alpha-000" == choice(opened, "synthetic_case")


@pytest.mark.browser
@pytest.mark.slow
def test_the_fields_name_the_case_that_is_shown_after_two_forms_without_them(opened):
    choose(opened, "Synthetic case", "Alpha-002")
    for form, there in (("Contact sheet", ".sheet"), ("Case list", "[data-testid=stDataFrame]")):
        opened.get_by_text(form, exact=True).click()
        opened.locator(there).first.wait_for(timeout=120_000)
        opened.wait_for_timeout(1000)
    opened.get_by_text("Slices for print", exact=True).click()
    opened.get_by_text("Alpha-002").first.wait_for(timeout=120_000)
    opened.wait_for_timeout(1000)
    assert opened.get_by_role("combobox", name="Synthetic case").input_value() == "Alpha-002"
