"""The viewer in a real browser: linked panes, regions, keys, permalink, contact sheet, and no WebGL."""

import io
import json
import shutil
from dataclasses import replace
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core import anatomy, jobs
from core.quality import QC_SCORES
from core.settings import Settings
from core.store import Store, write_csv, write_json
from core.study import CohortSpec, StudySpec, read_study, write_spec
from core.volume import HALF, Volume, resample, save, template
from core.workflows import demo_folder, remember_study, results_folder, tasks
from core.workflows.results import source_of
from pages import look
from tests.test_browser import CHROMIUM, Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WITH_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WITHOUT_GL = ["--disable-gpu", "--disable-3d-apis"]


def write_study(settings: Settings, folder, cases: dict[str, int], grid=HALF) -> str:
    """A study of slightly different brains, evaluated as far as the viewer looks: labels, volumes, QC, percentiles."""
    rng = np.random.default_rng(0)
    brain, rows = template(grid), []
    for cohort, count in cases.items():
        (folder / cohort).mkdir(parents=True)
        for index in range(count):
            data = brain.data + 0.05 * rng.standard_normal(grid.shape).astype(np.float32) * (brain.data > -1)
            save(Volume(np.clip(data, -1, 1), grid.affine), folder / cohort / f"{cohort}-{index:03d}.nii.gz")
            rows.append((cohort, f"{cohort}-{index:03d}"))
    synthetic = {name: CohortSpec(images=f"{name}/*.nii.gz") for name in cases if name != "real"}
    spec = StudySpec(name="brains", grid=grid.name, real=CohortSpec(images="real/*.nii.gz"), synthetic=synthetic)
    write_spec(spec, folder / "study.toml")
    study = read_study(folder / "study.toml")
    labels = resample(anatomy.atlas_labels(), grid.shape, grid.affine, order=0)
    store = Store(settings.workspace)
    for cohort, case in rows:
        source = source_of(settings, study, cohort, case)
        store.put("labels", tasks.segmentation_key(source, study.settings.segmenter), replace(labels, case_id=case))
    write_tables(results_folder(settings, study.path), rows, rng)
    return remember_study(settings, str(study.path))


def write_tables(folder, rows, rng):
    named = pd.DataFrame(rows, columns=["cohort", "subject"])
    columns = anatomy.volume_columns(True)
    volumes = pd.DataFrame(rng.uniform(900, 1100, (len(rows), len(columns))), columns=columns)
    write_csv(pd.concat([named, volumes], axis=1), folder / "volumes.csv")
    qc = pd.DataFrame(rng.uniform(0.8, 0.95, (len(rows), len(QC_SCORES))), columns=list(QC_SCORES))
    qc.loc[len(rows) - 2 :, "thalamus"] = 0.5  # the last two fail
    write_csv(pd.concat([named, qc], axis=1), folder / "qc.csv")
    gate = {"failed_scores": 0, "failed_volumes": 0, "pass_rate": 1.0, "ci_low": 0.5, "ci_high": 1.0}
    gate |= {"threshold": 0.7, "reliable": True}
    sizes = named.groupby("cohort", sort=False).size()
    write_csv(pd.DataFrame([{"cohort": name, "n": n, **gate} for name, n in sizes.items()]), folder / "quality.csv")
    regions = anatomy.regions()
    parts = [regions.assign(cohort=c, subject=s, volume=1000.0, z=0.0, percentile=42.0) for c, s in rows]
    write_csv(pd.concat(parts), folder / "percentiles.csv")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    settings = Settings(workspace=folder / "workspace", workers=1)
    study = write_study(settings, folder / "study", {"real": 3, "Alpha": 4})
    # A demo that counts as made, so that no job computes beside the browser.
    shutil.copytree(folder / "study", demo_folder(settings), dirs_exist_ok=True)
    write_json({"complete": True}, results_folder(settings, demo_folder(settings) / "study.toml") / "provenance.json")
    server = Server(settings)
    server.study = study
    server.start()
    yield server
    server.kill()


def launch(playwright, *flags):
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic", *flags])


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def page(server, playwright):
    browser = launch(playwright, *WITH_GL)
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, bypass_csp=True)  # for what the tests evaluate
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    visit(page, server)
    yield page
    assert not page.problems, page.problems
    browser.close()


def visit(page, server, **query):
    """Open the viewer on the study, as a link does."""
    study = results_folder(server.settings, read_study(server.study).path).name
    page.goto(server.url)  # the app once, so that its navigation leads
    page.get_by_role("heading").first.wait_for(timeout=180_000)  # a fresh server imports everything first
    page.goto(f"{server.url}/viewer?{urlencode({'study': study, 'cohort': 'Alpha', 'case': 'Alpha-000', **query})}")


def cases(page) -> list[str]:
    return page.locator(".pane").evaluate_all("panes => panes.map(pane => pane.dataset.case)")


def wait_for_case(page, name):
    page.locator(f".pane[data-case='{name}']").wait_for(timeout=120_000)


def facts(page) -> list[str]:
    return page.locator(".facts").all_inner_texts()


def pressed(page, name) -> bool:
    return page.get_by_role("button", name=name, exact=True).get_attribute("aria-pressed") == "true"


def colours(page, index) -> int:
    """Pixels of one pane that are coloured, not grey."""
    shot = page.locator(".pane canvas").nth(index).screenshot()
    data = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    return int((np.ptp(data, axis=2) > 60).sum())


def test_the_crosshair_is_linked_and_tells_the_region(page):
    wait_for_case(page, "Alpha-000")
    wait_for_case(page, "real-000")
    page.locator(".pane canvas").first.click(position={"x": 90, "y": 110})
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    first, second = facts(page)
    assert first.split("\n")[1].split(" mm")[0] == second.split("\n")[1].split(" mm")[0]
    assert "mm³ (atlas space)" in first and "percentile 42" in first
    assert "0, -15, 5 mm" not in first  # it moved from the middle


def test_a_reload_shows_the_same_and_no_step_of_the_history_is_added(page):
    page.get_by_text("Radiological", exact=True).click()
    page.wait_for_function("() => location.search.includes('radiological=1') && location.search.includes('view=')")
    steps, before, address = page.evaluate("() => history.length"), facts(page), page.url
    page.reload()
    wait_for_case(page, "Alpha-000")
    wait_for_case(page, "real-000")
    page.wait_for_timeout(500)
    assert page.get_by_role("switch", name="Radiological").is_checked() and facts(page) == before
    assert (page.url, page.evaluate("() => history.length")) == (address, steps)
    navigation = page.locator("[data-testid=stSidebarNavLink]")
    navigation.filter(has_text="Quality").click()
    page.get_by_role("heading", name="Scores of every volume").wait_for(timeout=120_000)
    assert page.evaluate("() => history.length") == steps + 1
    navigation.filter(has_text="Viewer").click()
    wait_for_case(page, "Alpha-000")
    page.wait_for_function("address => location.href === address", arg=address)
    assert page.evaluate("() => history.length") == steps + 2 and facts(page) == before
    page.get_by_text("Radiological", exact=True).click()
    page.wait_for_function("() => location.search.includes('radiological=0')")


def test_who_is_shown_and_what_the_gate_says_stand_on_the_screen_of_a_small_laptop(page):
    page.set_viewport_size({"width": 1280, "height": 720})
    head, below = page.locator(".pane header").first, page.locator(".pane .facts").first
    assert "real-000" in head.inner_text() and "QC passes · TIV 1 cm³ (atlas space)" in head.inner_text()
    fits = "e => e.getBoundingClientRect().bottom < innerHeight"
    page.wait_for_function(fits, arg=below.element_handle(), timeout=120_000)
    assert head.bounding_box()["y"] < 260 and head.bounding_box()["height"] < 50  # no line that says nothing
    page.set_viewport_size({"width": 1280, "height": 1000})


def test_swipe_shows_one_plane_of_both_brains(page):
    page.locator("[data-slice=planes]").click()
    page.locator("[data-do=swipe]").click()
    page.locator("[data-slice=axial][aria-pressed=true]").wait_for()
    assert "50%" in page.locator(".pane canvas").nth(1).evaluate("e => e.style.clipPath")
    page.locator("[data-do=swipe]").click()
    assert page.locator(".pane canvas").nth(1).evaluate("e => e.style.clipPath") == ""
    page.locator("[data-slice=planes]").click()


@pytest.mark.parametrize("scale", [1, 2])
def test_the_crosshair_is_wider_than_a_pixel(server, page, scale):
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 700}, device_scale_factor=scale)
    visit(other, server)
    wait_for_case(other, "real-000")
    other.wait_for_timeout(1000)
    shot = other.locator(".pane canvas").first.screenshot()
    data = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    line = (data[..., 0] > 150) & (data[..., 2] < 90) & (np.ptp(data, axis=2) > 80)
    widths = [np.diff(np.flatnonzero(np.diff(np.pad(row, 1).astype(int)))) for row in line]  # of runs and gaps
    assert np.median([row[0] for row in widths if len(row)]) >= 1.2 * scale
    other.close()


def test_letters_and_failed_scores_can_be_read(server, page):
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 720})
    visit(other, server, case="Alpha-003", panes="real|synthetic|template")
    wait_for_case(other, "Alpha-003")
    other.wait_for_timeout(1000)
    known = other.locator(".pane .known").nth(1)
    assert known.inner_text() == "QC fails 1 of 8 · TIV 1 cm³ (atlas space) · fails thalamus"
    assert known.evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight")
    tops = other.locator(".pane .stage").evaluate_all("es => es.map(e => Math.round(e.getBoundingClientRect().top))")
    assert len(set(tops)) == 1  # side by side, however long the words above are
    shot = other.locator(".pane canvas").first.screenshot()
    data = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    line = ((data[..., 0] > 150) & (data[..., 2] < 90) & (np.ptp(data, axis=2) > 80))[: len(data) // 2]
    column = line[:, line.sum(axis=0).argmax()]  # the crosshair of the upper planes, and a letter on top of it
    top = column[column.argmax() :][:14]
    assert not top.all()  # no line through the letter
    other.close()


def test_a_region_can_be_hidden(page):
    page.locator(".pane canvas").first.click(position={"x": 90, "y": 110})  # keys go where was clicked last
    page.keyboard.press(" ")
    page.wait_for_timeout(500)
    full = colours(page, 0)
    assert pressed(page, "Segmentation") and full > 3000
    page.get_by_role("button", name="Regions").click()
    page.get_by_label("Find a region").fill("hippocampus")
    assert page.locator(".list label").all_inner_texts() == ["left hippocampus", "right hippocampus"]
    page.get_by_role("button", name="Hide the 2 found").click()
    page.wait_for_timeout(500)
    without = colours(page, 0)
    page.get_by_label("Find a region").fill("")
    assert page.locator(".list input:checked").count() == page.locator(".list input").count() - 2
    page.get_by_role("button", name="Hide all").click()
    page.wait_for_timeout(500)
    assert colours(page, 0) < full / 3 < without < full
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="Regions").click()


def test_j_goes_on_and_typing_does_not(page):
    page.get_by_role("button", name="Regions").click()
    page.get_by_label("Find a region").fill("")
    page.get_by_label("Find a region").press("j")
    page.get_by_label("Find a region").press("3")
    page.get_by_role("button", name="Regions").click()
    page.wait_for_timeout(500)
    assert cases(page) == ["real-000", "Alpha-000"] and pressed(page, "All planes")
    page.locator(".pane header").nth(1).click()
    page.locator(".pane canvas").nth(1).click(position={"x": 90, "y": 110})
    page.keyboard.press("j")
    wait_for_case(page, "Alpha-001")
    page.keyboard.press("j")
    page.keyboard.press("j")
    wait_for_case(page, "Alpha-003")
    page.keyboard.press("k")
    wait_for_case(page, "Alpha-002")
    page.keyboard.press("3")
    assert pressed(page, "Axial") and cases(page)[0] == "real-000"
    assert page.get_by_text("Alpha-002", exact=True).count() >= 1


def test_what_is_wished_at_once_is_all_done(page):
    """Streamlit keeps the last of several triggers that come while a page is computed."""
    real, synthetic = (int(name[-3:]) for name in cases(page))
    page.locator(".pane canvas").evaluate_all("""panes => [0, 1, 0, 1, 1].forEach(index => {
        panes[index].dispatchEvent(new PointerEvent("pointerdown"));
        document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
    })""")
    wanted = [f"real-{(real + 2) % 3:03d}", f"Alpha-{(synthetic + 3) % 4:03d}"]
    page.wait_for_function("names => names.every(name => location.search.includes(name))", arg=wanted, timeout=60_000)
    for name in wanted:
        wait_for_case(page, name)


def test_a_link_restores_the_view(page, server):
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_function("() => window.copied")
    link, before = page.evaluate("() => window.copied"), facts(page)
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 1000})
    other.goto(link)
    for name in cases(page):
        wait_for_case(other, name)
    other.wait_for_timeout(1000)
    assert facts(other) == before
    assert pressed(other, "Axial") and pressed(other, "Segmentation")
    other.close()


def test_a_link_with_nonsense_opens_the_middle(server, page):
    view = json.dumps({"mm": "x", "low": "1e9", "hidden": [1e9, "a"], "slice": "<b>", "overlay": 1})
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 1000})
    visit(other, server, view=view)
    wait_for_case(other, "Alpha-000")
    assert pressed(other, "All planes") and not pressed(other, "Segmentation")
    other.close()


def test_the_contact_sheet_opens_a_brain(page):
    page.get_by_text("Contact sheet").click()
    page.locator(".sheet button").nth(5).wait_for(timeout=120_000)
    assert page.locator(".sheet button").count() == 7
    assert set(page.locator(".sheet i").all_inner_texts()) == {"L", "R"}
    page.locator(".sheet button").evaluate_all("""brains => {
        const click = new MouseEvent("click", {bubbles: true, ctrlKey: true});
        ["Alpha-000", "Alpha-001", "Alpha-002", "Alpha-001"].forEach(
            name => brains.find(brain => brain.dataset.case === name).dispatchEvent(click));
    }""")
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_text("2 cases selected").wait_for(timeout=60_000)
    assert page.locator(".sheet button[aria-pressed=true]").count() == 2
    sidebar.get_by_role("button", name="Clear").click()
    page.locator(".sheet button[aria-pressed=true]").first.wait_for(state="detached", timeout=60_000)
    page.locator(".sheet button[data-case='Alpha-003']").click()
    wait_for_case(page, "Alpha-003")


def test_long_names_are_shown_where_they_differ(page):
    script = look.asset("viewer/sheet.js").replace("export default function", "function show")
    script = f"(names) => {{ {script}; const cells = names.map((name) => ({{ cohort: 'a', case: name }})); return cells.map(shortNames({{ cells, size: 92 }}, '600 12px sans-serif')); }}"
    long = page.evaluate(script, [f"sub-HCPYA-{number}_ses-01_acq-mprage_T1w" for number in ("0042", "0043", "1042")])
    assert [number in name for number, name in zip(("0042", "0043", "1042"), long, strict=True)] == [True] * 3
    assert page.evaluate(script, ["a-1", "a-11"]) == ["a-1", "a-11"]
    assert page.evaluate(script, ["the_only_one_of_a_cohort_001"])[0].endswith("_001")


def test_selected_points_are_selected_everywhere_and_open_in_the_viewer(page):
    page.locator("[data-testid=stSidebarNavLink]").filter(has_text="Quality").click()
    points = page.locator(".scatterlayer .trace").nth(1).locator(".points path")  # of the synthetic cohort
    points.first.wait_for(timeout=120_000)
    points.nth(1).scroll_into_view_if_needed()
    box = points.nth(1).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.get_by_text("1 case selected").wait_for(timeout=60_000)
    name = sidebar.get_by_text("· Alpha").inner_text().split(" · ")[0].split()[-1]
    sidebar.get_by_role("button", name=f"Open {name} in the viewer").click()
    wait_for_case(page, name)
    page.locator("[data-testid=stMain]").get_by_text("Case list", exact=True).click()
    page.get_by_role("button", name=f"Open {name} in the viewer").nth(1).wait_for(timeout=60_000)  # its row is ticked
    table = page.get_by_test_id("stDataFrame")
    for _ in range(2):  # up, down
        table.click(position={"x": 150, "y": 17})
        page.wait_for_timeout(1000)
    row = page.locator("[data-testid=stDataFrame] [role=row][aria-selected=true]")
    assert row.count() == 1 and name in row.inner_text() and sidebar.get_by_text("1 case selected").is_visible()
    page.go_back()
    wait_for_case(page, name)
    page.go_back()
    page.get_by_role("heading", name="Scores of every volume").wait_for(timeout=60_000)
    assert sidebar.get_by_text("1 case selected").is_visible()
    sidebar.get_by_role("button", name="Clear").click()
    sidebar.get_by_text("1 case selected").wait_for(state="detached", timeout=60_000)


def test_a_reason_of_a_verdict_leads_to_the_chart_behind_it_and_stays_there(server, page):
    other = page.context.browser.new_page(viewport={"width": 1280, "height": 720})
    study = results_folder(server.settings, read_study(server.study).path).name
    other.goto(f"{server.url}/?study={study}")
    other.get_by_role("heading", name="Cases").wait_for(timeout=120_000)  # the page is drawn
    other.get_by_role("button", name="Gate →").click()
    heading = other.get_by_role("heading", name="Scores of every volume")
    heading.wait_for(timeout=120_000)
    there = "e => Math.abs(e.getBoundingClientRect().top - 64) < 2"
    other.wait_for_function(there, arg=heading.element_handle(), timeout=120_000)
    other.wait_for_timeout(3000)
    assert heading.evaluate(there)
    other.mouse.move(700, 400)
    other.mouse.wheel(0, -300)  # the user leads from now on
    other.wait_for_timeout(500)
    assert heading.evaluate("e => e.getBoundingClientRect().top") > 200
    other.close()


def test_without_webgl_the_slices_are_shown(server, playwright):
    browser = launch(playwright, *WITHOUT_GL)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    visit(page, server)
    page.get_by_text("This browser has no WebGL 2").wait_for(timeout=120_000)
    page.locator(".js-plotly-plot").nth(1).wait_for(timeout=120_000)
    assert not page.get_by_role("toolbar", name="View").is_visible() and not page.locator(".panes").is_visible()
    browser.close()


def test_looking_starts_no_job(server):
    assert not jobs.list_jobs(server.settings)
