"""A reader at the keyboard: ten cases with a reload in the middle, and a second tab."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core import readings
from core.settings import Settings
from core.study import read_study
from core.volume import load, save
from core.workflows import remember_study
from pages.shared import study_id
from tests.test_browser import Server, _settle, browser, page  # noqa: F401 - fixtures

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def server(tmp_path, write_brains):
    write_brains(tmp_path / "data" / "a", 6, prefix="secretreal")
    for fake in write_brains(tmp_path / "data" / "b", 6, seed=1, prefix="secretfake"):
        brain = load(fake)
        save(replace(brain, data=np.where(brain.data > -1, brain.data, -0.98).astype(np.float32)), fake)  # faint noise
    path = tmp_path / "data" / "study.toml"
    path.write_text(
        'name = "Reading"\ngrid = "half"\n[real]\nimages = "a/*.nii.gz"\n[synthetic.Hidden]\nimages = "b/*.nii.gz"\n'
    )
    settings = Settings(workspace=tmp_path / "workspace", workers=1, demo_cases=2)
    # An ended demo job of the workspace keeps the server from making the demo beside the reading.
    with readings._database(settings):
        pass
    from core import jobs

    with jobs._database(settings) as db:
        db.execute(
            "INSERT INTO jobs (id, function, arguments, title, state, created) VALUES ('x', 'core.workflows:demo', '{}', 'Demo study', 'cancelled', 0)"
        )
    remember_study(settings, str(path))
    server = Server(settings)
    server.study = read_study(path)
    server.start()
    yield server
    server.kill()


def _case(page, number, total):  # noqa: F811
    page.get_by_text(f"case {number} of {total}").wait_for(timeout=120_000)
    page.locator(f".reader[data-token$='-{number - 1}'] canvas").first.wait_for(timeout=120_000)
    assert "secret" not in page.content().lower()


def _rate(page, answer):  # noqa: F811
    for key in ("ArrowUp", "v", "ArrowDown", "m", answer, "4", "3", "2", "Enter"):
        page.keyboard.press(key)


def test_ten_cases_by_keyboard_with_a_reload_and_a_second_tab(server, page, browser):  # noqa: F811
    page.goto(f"{server.url}/reading_room")
    _settle(page)
    page.get_by_test_id("stSidebar").get_by_role("combobox").click()
    page.get_by_role("option", name="Reading").click()
    _settle(page)
    page.get_by_label("Reader", exact=True).fill("Ann")
    page.keyboard.press("Tab")
    page.get_by_label("Cases", exact=True).fill("8")
    page.keyboard.press("Tab")
    page.get_by_label("Hidden repeats (%)", exact=True).fill("25")
    page.keyboard.press("Tab")
    _settle(page)
    page.get_by_role("button", name="Begin").click()
    _case(page, 1, 10)
    page.locator(".reader canvas").first.click()  # looks; a double click marks
    page.keyboard.press("r")
    page.keyboard.press("Enter")
    said = page.locator(".reader [role=status]")
    assert said.inner_text() == "Still to say: realism, slice consistency, anatomy."
    page.locator(".reader canvas").first.dblclick()
    assert said.inner_text() == "1 mark"
    page.keyboard.press("u")
    assert said.inner_text() == ""
    for number in range(1, 6):
        _case(page, number, 10)
        _rate(page, "r")
    _case(page, 6, 10)
    page.keyboard.press("s")
    page.keyboard.press("5")
    page.keyboard.press("n")
    page.keyboard.type("r 1 2 cortex")  # keys are silent in the note
    page.keyboard.press("Escape")
    second = browser.new_page()
    page.reload()
    _case(page, 6, 10)
    assert page.locator(".reader textarea").input_value() == "r 1 2 cortex"
    assert page.locator(".reader button.chosen").all_inner_texts() == ["Synthetic (S)", "5"]
    second.goto(page.url)
    _case(second, 6, 10)
    for key in ("4", "3", "Enter"):
        page.keyboard.press(key)
    _case(page, 7, 10)
    _rate(second, "r")
    second.get_by_text("rating was kept").wait_for(timeout=120_000)
    second.close()
    for number in range(7, 11):
        _case(page, number, 10)
        _rate(page, "s")
    page.get_by_text("all 10 answers are saved").wait_for(timeout=120_000)
    page.get_by_text("Krippendorff").first.wait_for(state="attached", timeout=120_000)
    # An address below the root makes Streamlit probe for its server there: 404s in the console are its own.
    assert page.locator("[data-testid=stException]").count() == 0
    (session,) = readings.list_sessions(server.settings, server.study)
    assert session.complete
    kept = readings.read_ratings(server.settings, [session], server.study.real.name)
    assert kept["answer"].tolist() == ["real"] * 5 + ["synthetic"] * 5
    assert kept.loc[5, ["realism", "consistency", "anatomy"]].tolist() == [5, 4, 3]
    assert kept.loc[5, "note"] == "r 1 2 cortex"
    assert (kept["marks"] != "[]").sum() == 9


def test_a_mark_waits_for_the_choice_and_the_results_open_on_the_task_read(server, page):  # noqa: F811
    study, reader = server.study, "Bea"
    for mode in ("rating", "forced choice"):
        plan = readings.make_plan(study, ["Hidden"], mode, 2, 0, 0, reader)
        session = readings.start_session(server.settings, study, reader, mode, plan, 0)
        if mode == "rating":
            whole = readings.read_session(server.settings, session)
            for position in range(len(plan)):
                readings.save_rating(server.settings, whole, position, readings.Rating("real", 3, 3, 3))
    page.goto(f"{server.url}/reading_room?study={study_id(str(study.path))}&reading={session}")
    _case(page, 1, 2)
    said = page.locator(".reader [role=status]")
    page.keyboard.press("m")
    assert "First say which one is real" in said.inner_text()
    for number in (1, 2):
        _case(page, number, 2)
        for key in ("ArrowRight", "m", "Enter"):
            page.keyboard.press(key)
    page.get_by_text("all 2 answers are saved").wait_for(timeout=120_000)
    assert page.get_by_role("radio", name="Choose the real one of two").is_checked()
    kept = readings.read_ratings(server.settings, [readings.read_session(server.settings, session)], "real")
    assert [text.startswith('[["left"') for text in kept["marks"]] == [True, True]


def _begin(server, page, mode="rating"):  # noqa: F811
    """Open a session of four cases."""
    plan = readings.make_plan(server.study, ["Hidden"], mode, 4, 0, 0, "Cleo")
    session = readings.start_session(server.settings, server.study, "Cleo", mode, plan, 0)
    page.goto(f"{server.url}/reading_room?study={study_id(str(server.study.path))}&reading={session}")
    _case(page, 1, 4)


def _greys(page, index=2):  # noqa: F811
    """The greys of a plane, without the lines and letters over it."""
    script = """c => { const {data} = c.getContext("2d").getImageData(0, 0, c.width, c.height);
      return [c.width, Array.from(data).filter((_, i) => i % 4 === 2)]; }"""  # blue: the overlay has none
    width, values = page.locator(".reader canvas").nth(index).evaluate(script)
    image = np.array(values, dtype=float).reshape(-1, width)
    return np.concatenate([image[20 : len(image) // 2 - 12], image[len(image) // 2 + 12 :]])


def test_window_and_side_are_the_session_s_and_not_the_case_s(server, page):  # noqa: F811
    _begin(server, page)
    seen, first = page.locator(".reader .seen"), _greys(page)
    assert seen.inner_text() == "matched window; left is on the left"
    for _ in range(6):
        page.keyboard.press("Shift+ArrowUp")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("x")
    chosen = seen.inner_text()
    assert chosen == "width 67 %, level 31 %; left is on the right"
    brighter = _greys(page)
    assert brighter.mean() > 1.15 * first.mean()
    label = page.locator(".reader canvas").nth(2).get_attribute("aria-label")
    assert label == "axial plane, R on the left, L on the right"
    assert not page.locator(".reader button.chosen").filter(has_text="Real").count()
    _rate(page, "r")
    _case(page, 2, 4)
    assert seen.inner_text() == chosen and _greys(page).mean() == pytest.approx(brighter.mean(), rel=0.1)
    page.reload()
    _case(page, 2, 4)
    assert seen.inner_text() == chosen
    for number in range(2, 5):  # brighter as they are, the surroundings of scan and sample stay black
        _case(page, number, 4)
        assert _greys(page)[:20, :20].max() == 0
        if number < 4:
            _rate(page, "r")
    page.keyboard.press("w")
    page.keyboard.press("x")
    assert seen.inner_text() == "matched window; left is on the left"
    plain = _greys(page)
    page.keyboard.press("x")
    turned = _greys(page)
    assert np.abs(turned[:, ::-1] - plain).mean() < 0.5 * np.abs(turned - plain).mean()
    box = page.locator(".reader canvas").first.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 110, box["y"] + 40, steps=4)
    page.mouse.up()
    assert seen.inner_text() == "width 78 %, level 46 %; left is on the right"
    page.get_by_role("button", name="Reset window (W)").click()
    assert seen.inner_text() == "matched window; left is on the right"
    page.get_by_role("button", name="Radiological (X)").click()
    assert page.get_by_role("button", name="Radiological (X)").get_attribute("aria-pressed") == "false"
    page.keyboard.press("Enter")  # the button has not kept the focus
    assert "Still to say" in page.locator(".reader [role=status]").inner_text()


FITS = """() => [...document.querySelectorAll(".reader canvas, .reader button, .reader textarea, .reader .help, .reader .seen")]
  .map((e) => e.getBoundingClientRect()).every((box) => box.bottom <= innerHeight && box.right <= innerWidth && box.top >= 0)"""


LARGE = """least => Math.max(...[...document.querySelectorAll(".reader canvas")].map((c) => c.height)) > least"""


@pytest.mark.parametrize("mode", readings.MODES)
def test_a_case_can_be_finished_without_scrolling(server, page, mode):  # noqa: F811
    _begin(server, page, mode)
    for width, height, one, two in ((1280, 720, 300, 210), (1024, 768, 240, 165), (1920, 1080, 560, 380)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function(LARGE, arg=one if mode == "rating" else two)  # the brains use the window
        page.wait_for_function(FITS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_keys_work_wherever_the_focus_is_but_not_in_a_field(server, page):  # noqa: F811
    _begin(server, page)
    chosen = page.locator(".reader .rows button.chosen")
    places = (page.get_by_test_id("stSidebar").get_by_text("Study", exact=True), page.get_by_text("case 1 of 4"),
              page.locator(".reader .help"), page.locator(".reader canvas").first)  # fmt: skip
    for number, place in enumerate(places):
        place.click()
        page.keyboard.press("rs"[number % 2])
        assert chosen.all_inner_texts() == [["Real (R)", "Synthetic (S)"][number % 2]], number
    page.locator(".reader textarea").click()
    page.keyboard.type("r 1")
    page.get_by_test_id("stSidebar").get_by_role("combobox").click()
    page.keyboard.type("r 1")
    page.keyboard.press("Escape")
    assert chosen.all_inner_texts() == ["Synthetic (S)"]
    page.get_by_text("case 1 of 4").click()
    for key in ("r", "4", "3", "2", "Enter"):
        page.keyboard.press(key)
    _case(page, 2, 4)
