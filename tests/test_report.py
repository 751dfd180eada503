"""The report of a small study in all its forms: what it holds, what it leaves out, what runs it again."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.font_manager import findfont as get_font
from PIL import Image, ImageFont
from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE

from core import __version__, anatomy, report, workflows
from core.errors import InputError
from core.pools import Context, InProcessPool
from core.report import slides
from core.settings import Settings
from core.store import Store
from core.study import CohortSpec, StudySettings, StudySpec, read_study, write_spec
from core.volume import resample
from core.workflows import results_folder, tasks
from core.workflows.judging import typical_case
from core.workflows.results import source_of
from core.workflows.verdicts import TOPICS, verdicts
from tests.test_browser import CHROMIUM, HARMLESS
from tests.test_workflows import write_qc

N = 4
NASTY = r"50% & <b>α</b> \x_1"  # a name that HTML, LaTeX and CSV would each take for a command
LIMIT = 25e6


def write_study(folder: Path) -> Path:
    """Two small simulated cohorts, the real one with names that must not leak."""
    context = Context(Settings(workspace=folder / "workspace", workers=0), InProcessPool())
    for name, seed, defect in (("people", 1, ""), ("gen", 2, "shrunken-hippocampus:0.5")):
        workflows.simulate_cohort(context, str(folder / name), N, seed, "half", defect)
        (folder / name / "provenance.json").unlink()  # then they count as data of others
    for path in sorted((folder / "people").glob("*.nii.gz")):
        path.rename(path.with_name(f"secret-{path.name}"))
    for name, prefix in (("people", "secret-"), ("gen", "")):
        table = pd.read_csv(folder / name / "true_volumes.csv", index_col=0)
        table.index = [f"{prefix}{case}" for case in table.index]
        anatomy.write_volumes(table, folder / name / "volumes.csv")
        write_qc(folder / name / "qc.csv", list(table.index), seed=len(prefix))
    cohorts = {
        name: CohortSpec(images=f"{name}/*.nii.gz", volumes=f"{name}/volumes.csv", qc=f"{name}/qc.csv")
        for name in ("people", "gen")
    }
    settings = StudySettings(encoders=("deepbet",), n_boot=20)
    spec = StudySpec(
        name="Small & <nice>", grid="half", real=cohorts["people"], synthetic={NASTY: cohorts["gen"]}, settings=settings
    )
    write_spec(spec, folder / "study.toml")
    return folder / "study.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluated study with labels, and both reports of it."""
    folder = tmp_path_factory.mktemp("report")
    path = write_study(folder / "data")
    settings = Settings(workspace=folder / "workspace", workers=0)
    context = Context(settings, InProcessPool())
    workflows.evaluate(context, str(path), str(folder / "results"))
    study = read_study(path)
    labels = resample(anatomy.atlas_labels(), study.grid.shape, study.grid.affine, order=0)
    for cohort in study.cohorts:
        for case in cohort.cases:
            source = source_of(settings, study, cohort.name, case.case_id)
            key = tasks.segmentation_key(source, study.settings.segmenter)
            Store(settings.workspace).put("labels", key, replace(labels, case_id=case.case_id))
    for drop in (False, True):
        report.publish(context, str(path), drop)
    return folder, path, context


def published(made, drop=False):
    _, path, context = made
    return report.read_published(context.settings, str(path), drop)


def test_the_html_is_one_small_file_with_every_section(made):
    html = published(made).html.read_text("utf-8")
    assert len(html.encode()) < LIMIT
    for title in (
        "In short",
        "Table 1",
        "Table 2",
        "Table 3",
        "Methods",
        "Limits",
        "What this file holds",
        "References",
    ):
        assert title in html
    for number in range(1, 5):
        assert f"Figure {number}: " in html
    assert html.count('class="with"') == 4 and html.count("data:image/webp") == 8  # two brains a cohort
    assert "lowest QC score" in html
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', html[html.index("<body>") :])


def test_names_are_escaped_in_the_html(made):
    html = published(made).html.read_text("utf-8")
    body = html[html.index("<body>") :]
    assert "<b>α</b>" not in body and "&lt;b&gt;α&lt;/b&gt;" in body
    assert "<nice>" not in html and "Small &amp; &lt;nice&gt;" in html


def test_dropping_individuals_leaves_no_trace_of_a_real_scan(made):
    files = published(made, drop=True)
    record = published(made)
    assert b"secret" in record.html.read_bytes() and b"secret" in record.bundle.read_bytes()
    hidden = json.loads(record.bundle.read_text(encoding="utf-8"))["provenance"]["inputs"]
    hashes = [sha for name, sha in hidden.items() if name.startswith("real/")]
    assert len(hashes) == N
    texts = [files.html.read_text("utf-8"), files.bundle.read_text("utf-8")]
    with zipfile.ZipFile(files.tables) as archive:
        texts += [archive.read(name).decode() for name in archive.namelist()]
    texts += [words_of(Presentation(files.slides))]
    for text in texts:
        # The folder of study.toml and the cohort's pattern stay; no case does.
        assert "secret" not in text
        assert not [sha for sha in hashes if sha in text]
    assert texts[0].count("data:image/webp") == 4  # the synthetic ones alone
    assert "real MRIs" in texts[0] or "real" in texts[0]
    pictures = [s for slide in Presentation(files.slides).slides for s in slide.shapes if is_picture(s)]
    assert len(pictures) == len(pictures_of(record)) - 3  # two brains and, on the first slide, the typical one


def test_a_gap_that_names_a_person_is_left_out_too(made):
    _, path, context = made
    study, results = read_study(path), workflows.read_results(context.settings, path)
    person = study.real.cases[0].case_id
    gaps = [
        {"cohort": NASTY, "what": "case a", "reason": f"the same volume as {person}."},
        {"cohort": NASTY, "what": "kid", "reason": "too few volumes"},
        {"cohort": "real", "what": "anatomy of x", "reason": "empty"},
    ]
    record = replace(results, provenance={**results.provenance, "gaps": gaps})
    kept = report.words.without_people(study, record)
    assert [gap["what"] for gap in kept["gaps"]] == ["kid"]
    assert not any(person in line for line in report.words.limits(study, record, True))
    assert any(person in line for line in report.words.limits(study, record, False))


def words_of(deck) -> str:
    found = [shape.name for slide in deck.slides for shape in slide.shapes]
    for slide in deck.slides:
        for shape in slide.shapes:
            if shape.has_text_frame:
                found.append(shape.text_frame.text)
            if shape.has_table:
                found += [cell.text for row in shape.table.rows for cell in row.cells]
    return "\n".join(found)


def is_picture(shape) -> bool:
    return shape.shape_type == MSO_SHAPE_TYPE.PICTURE


def pictures_of(files) -> list:
    return [shape for slide in Presentation(files.slides).slides for shape in slide.shapes if is_picture(shape)]


def test_the_slides_open_and_hold_a_picture_a_figure(made):
    deck = Presentation(published(made).slides)
    by_title = {slide.shapes.title.text: slide for slide in deck.slides}
    assert len(by_title) == len(deck.slides)  # an outline, or a screen reader, tells them apart
    for title in ("Figure 1: brains, segmentation, quality", "Figure 2: similarity, FID (Fréchet distance)",
                  "Figure 3: quality scores", "Figure 4: effect sizes, subcortical", "Figure 4: effect sizes, cortical (1 of 2)"):  # fmt: skip
        found = [shape for shape in by_title[title].shapes if is_picture(shape)]
        assert len(found) == (4 if "Figure 1" in title else 1)
        for shape in found:
            image = Image.open(io.BytesIO(shape.image.blob)).convert("L")
            assert image.width > 600 and np.asarray(image).std() > 5  # not blank
            assert len(shape._element.nvPicPr.cNvPr.get("descr")) > 20
    assert any(shape.has_table for shape in by_title["Table 2: segmentation quality"].shapes)
    assert NASTY in words_of(deck)
    check_room(deck)


def test_the_first_slide_answers(made):
    slide = Presentation(published(made).slides).slides[0]
    words = "\n".join(shape.text_frame.text for shape in slide.shapes if shape.has_text_frame)
    study, results = read_study(made[1]), workflows.read_results(made[2].settings, made[1])
    (verdict,) = verdicts(study, results)
    assert study.name in words and time.strftime("%Y-") in words and f"SynthScope {__version__}" in words
    assert f"The reference, N = {N}." in words
    assert f"{NASTY}\n{verdict.answer[:1].upper()}{verdict.answer[1:]}." in words
    texts = [shape._element.nvPicPr.cNvPr.get("descr") for shape in slide.shapes if is_picture(shape)]
    typical = [typical_case(results, cohort.name) for cohort in study.cohorts]
    assert len(texts) == 2 and all(case in text for case, text in zip(typical, texts, strict=True))


@pytest.mark.parametrize("count", [2, 3, 5, 9, 10, 12, 40])
def test_the_first_slide_has_room_for_every_cohort(made, tmp_path, count):
    found = report._collect(made[2], str(made[1]), False)
    longest = "Not plausible, 1000 of 1000 volumes cannot be segmented reliably."
    label = "A rather long generator (sampled, 1000 steps)"
    faces = [replace(found.portraits[n % 2], label=f"{label} {n}", words=longest) for n in range(count)]
    path = tmp_path / "first.pptx"
    slides.write_slides(path, ("A name " * 12, "SynthScope", faces), [], [], [], [], [])
    deck = Presentation(path)
    check_room(deck)
    boxes = [(s.left, s.top, s.left + s.width, s.top + s.height, is_picture(s)) for s in deck.slides[0].shapes]
    for a in boxes[2:]:
        for b in boxes[2:]:
            apart = a[2] <= b[0] + 9 or b[2] <= a[0] + 9 or a[3] <= b[1] + 9 or b[3] <= a[1] + 9  # rounded
            assert a is b or apart, "two shapes overlap"
    pictures = [box for box in boxes if box[4]]
    assert len(pictures) == min(count, slides.MOST_COHORTS) and all(box[3] - box[1] > 0.8 * 914400 for box in pictures)
    assert ("more cohorts" in words_of(deck)) is (count > slides.MOST_COHORTS)


def check_room(deck) -> None:
    """No shape reaches beyond its slide, and no text, as it is measured in a wide font, beyond its shape."""
    for slide in deck.slides:
        for shape in slide.shapes:
            assert shape.left >= 0 and shape.left + shape.width <= deck.slide_width
            assert shape.top >= 0 and shape.top + shape.height <= deck.slide_height
            if shape.has_text_frame and shape.text_frame.text:
                texts = [paragraph.text for paragraph in shape.text_frame.paragraphs]
                size = shape.text_frame.paragraphs[0].runs[0].font.size.pt
                assert text_height(texts, size, shape.width / 914400) <= shape.height / 914400 + 0.2, texts


def text_height(texts: list[str], size: float, width: float) -> float:
    font = ImageFont.truetype(get_font("DejaVu Sans"), 100)
    lines = sum(-(-font.getlength(text) * size / 100 // (72 * (width - 0.2))) for text in texts)
    return lines * size * 1.17 / 72


def test_long_slides_are_split_and_limits_cut(tmp_path):
    long = [f"{number}: " + "a rather long line of words that goes on and on " * 4 for number in range(60)]
    rows = tuple(
        (f"cohort {n} (sampled, 10 steps)", *("0.0463 ☆ [0.0342, 0.0593]" for _ in range(8))) for n in range(40)
    )
    table = report.tables.Table(
        "t", "Table 1: similarity", ("cohort", *(f"an encoder {n} FID ↓" for n in range(8))), rows, "N."
    )
    path = tmp_path / "long.pptx"
    count = slides.write_slides(path, ("A name " * 20, "below", []), long[:20], [], [], [table], [("Limits", long)])
    deck = Presentation(path)
    titles = [slide.shapes.title.text for slide in deck.slides]
    assert len(titles) == count == len(set(titles))
    assert [title for title in titles if "Limits" in title] == ["Limits (1 of 2)", "Limits (2 of 2)"]
    words = words_of(deck)
    assert all(line.strip() in words for line in long[:20]) and "more are in the report" in words
    tables_ = [shape.table for slide in deck.slides for shape in slide.shapes if shape.has_table]
    assert len(tables_) > 1 and sum(len(t.rows) - 1 for t in tables_) == 40
    assert all(t.cell(0, 0).text == "cohort" for t in tables_)
    check_room(deck)


@pytest.mark.parametrize("n", [*range(1, 14), 40])
def test_no_slide_holds_a_single_row_or_line_left_over(tmp_path, n):
    rows = tuple(
        (f"cohort {i} (sampled, 10 steps)", *("0.0463 ☆ [0.0342, 0.0593]" for _ in range(8))) for i in range(n)
    )
    table = report.tables.Table(
        "t", "Table 1: similarity", ("cohort", *(f"an encoder {i} FID ↓" for i in range(8))), rows, "N. " * 100
    )
    lines = [f"cohort {i}: " + "plausible for most of its regions " * 9 for i in range(n)]
    slides.write_slides(tmp_path / "s.pptx", ("A", "b", []), lines, [], [], [table], [])
    deck = Presentation(tmp_path / "s.pptx")
    check_room(deck)
    counts = [len(shape.table.rows) - 1 for slide in deck.slides for shape in slide.shapes if shape.has_table]
    told = [s.placeholders[1].text_frame.paragraphs for s in deck.slides if s.shapes.title.text.startswith("In short")]
    for found in (counts, [len(paragraphs) for paragraphs in told]):
        assert sum(found) == n and max(found) - min(found) <= 1
        assert n == 1 or min(found) > 1
    assert min(paragraphs[0].runs[0].font.size.pt for paragraphs in told) >= 12
    cells = [cell for slide in deck.slides for s in slide.shapes if s.has_table for cell in s.table.iter_cells()]
    assert min(cell.text_frame.paragraphs[0].runs[0].font.size.pt for cell in cells) >= (14 if n < 5 else 9)


def test_failing_cohorts_are_marked_and_the_noise_is_there(made):
    study, results = read_study(made[1]), workflows.read_results(made[2].settings, made[1])
    for reliable in (True, False):
        gate = results.quality.assign(reliable=reliable, ci_low=0.1, ci_high=0.5)
        regional = results.regional.assign(noise_floor=0.5)
        found = replace(results, quality=gate, regional=regional)
        chart, table = report.figures.anatomy(study, found), report.tables.table_three(study, found)
        assert all(name.startswith("✗ ") is not reliable for name in chart.figure.data[0].x)
        assert ("✗: fails the quality gate" in chart.note) is not reliable
        assert table.headings[2] == ("" if reliable else "✗ ") + NASTY and table.columns[2] == NASTY
        assert {row[1] for row in table.rows} == {"0.50"} and "In brackets" in chart.note
    shown = [piece.data[0] for _, piece in chart.pieces]
    assert max(len(trace.y) for trace in shown) <= 18 and len({trace.zmax for trace in shown}) == 1
    assert sorted(region for trace in shown for region in trace.y) == sorted(chart.figure.data[0].y)
    spoken, written = {row[0] for row in table.body}, {row[0] for row in table.rows}
    assert "caudal anterior cingulate" in spoken - written and "caudalanteriorcingulate" in written - spoken
    gate = results.quality.assign(reliable=False, ci_low=0.9, ci_high=0.99)  # 5 % may fail
    chart = report.figures.anatomy(study, replace(results, quality=gate))
    assert all(name.startswith("(✗) ") for name in chart.figure.data[0].x) and "no more than chance" in chart.note
    assert not [s for s in chart.figure.layout.shapes if s.type == "path"]  # hatched are those that surely fail
    answers = {row[-1] for row in report.tables.table_two(study, replace(results, quality=gate)).rows}
    assert answers == {"no, may be chance"}
    unknown = replace(results, regional=results.regional.iloc[:0])
    assert {row[1] for row in report.tables.table_three(study, unknown).rows} == {"–"}
    assert "In brackets" not in report.figures.anatomy(study, unknown).note


def test_limits_that_say_the_same_are_one_line(made):
    study, results = read_study(made[1]), workflows.read_results(made[2].settings, made[1])
    gaps = [{"cohort": name, "what": "kid", "reason": "too few."} for name in ("a", "b")]
    warnings = [{"cohort": "a", "what": "fid", "reason": f"N = {n} is small"} for n in (22, 24, 24)]
    lines = report.words.limits(study, replace(results, provenance={"gaps": gaps, "warnings": warnings}), False)
    assert lines[:2] == ["a, b: kid: too few.", "N = 22 is small (and 1 more, of other N or width)"]


def test_the_latex_tables_are_balanced_and_escaped(made):
    with zipfile.ZipFile(published(made).tables) as archive:
        names = archive.namelist()
        assert {"table_1.csv", "table_2.csv", "table_3.csv", "metrics.csv", "quality.csv"} <= set(names)
        for number in (1, 2, 3):
            rows = list(csv.reader(io.StringIO(archive.read(f"table_{number}.csv").decode())))
            assert len({len(row) for row in rows}) == 1 and len(rows) > 1
            check_latex(archive.read(f"table_{number}.tex").decode(), rows)


def check_latex(text: str, rows: list[list[str]]) -> None:
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", code):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    bare = re.sub(r"\\[{}]", "", code)
    assert bare.count("{") == bare.count("}")
    body = code[code.index(r"\toprule") : code.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(rows)
    columns = re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", code)[1]
    for line in lines:
        cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
        assert len(cells) == len(columns) == len(rows[0])
        assert not re.search(r"(?<!\\)[%#_]", line)
        assert not line.lstrip().startswith("[")  # an argument of the line before
    assert code.count("$") % 2 == 0


def test_escaping_of_latex():
    assert report.tables.escape_latex(NASTY) == (
        r"50\% \& \textless{}b\textgreater{}$\alpha$\textless{}/b\textgreater{} \textbackslash{}x\_1"
    )
    assert report.tables.escape_latex("[1, 2] ~ ^ | {}\n$") == (
        r"{[}1, 2{]} \textasciitilde{} \textasciicircum{} \textbar{} \{\} \$"
    )


def test_the_bundle_runs_again_to_the_same_bytes(made, tmp_path):
    folder, path, _ = made
    data = tmp_path / "moved"
    shutil.copytree(path.parent, data, ignore=shutil.ignore_patterns("workspace", "study.toml"))
    other = Context(Settings(workspace=tmp_path / "other", workers=0), InProcessPool())
    out = tmp_path / "again"
    summary = report.rerun(other, str(published(made).bundle), str(data), str(out))
    assert summary["failures"] == [] and summary["same"] >= 8
    for name in ("metrics.csv", "quality.csv", "effect_sizes.csv", "volumes.csv", "qc.csv", "details.json"):
        assert (out / name).read_bytes() == (folder / "results" / name).read_bytes(), name


def test_a_bundle_tells_changed_inputs_and_tables(made, tmp_path):
    record = json.loads(published(made).bundle.read_text(encoding="utf-8"))
    data = published(made).bundle.parent / "nowhere"
    with pytest.raises(InputError, match="no such table"):
        report.rerun(made[2], str(published(made).bundle), str(data), str(tmp_path / "a"))
    record["provenance"]["inputs"]["real/ghost"] = "0" * 64
    record["tables"]["metrics.csv"] = "0" * 64
    changed = tmp_path / "bundle.json"
    changed.write_text(json.dumps(record))
    summary = report.rerun(made[2], str(changed), str(made[1].parent), str(tmp_path / "b"))
    assert [(f["case"], f["error"]) for f in summary["failures"]] == [
        ("real/ghost", "not found"),
        ("metrics.csv", "differs from the bundle's"),
    ]
    assert summary["failed"] == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 9, "study.toml": "", "tables": {}, "provenance": {}, "version": "1"}']
)
def test_what_is_no_bundle_is_refused(made, tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bundle|format"):
        report.rerun(made[2], str(path), str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_study_without_results_has_no_report(made, tmp_path, settings):
    with pytest.raises(InputError, match="no results yet"):
        report.make_report(Context(settings, InProcessPool()), str(made[1]), str(tmp_path / "r.html"))
    assert not (tmp_path / "r.html").exists()


def test_the_verb_writes_all_forms(made, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from core.__main__ import app

    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(made[2].settings.workspace))
    options = ["--tables", tmp_path / "t", "--bundle", tmp_path / "b.json", "--pptx", tmp_path / "s.pptx"]
    command = ["report", made[1], "--out", tmp_path / "r.html", *options, "--drop-individuals"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert results_folder(made[2].settings, made[1]).is_dir()
    assert {p.name for p in tmp_path.iterdir()} == {"r.html", "t", "b.json", "s.pptx"}
    assert "secret" not in (tmp_path / "r.html").read_text("utf-8")
    command[3:] = [tmp_path / "r.pptx"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 2 and "--slides" in result.output and not (tmp_path / "r.pptx").exists()


def test_a_verdict_is_one_sentence_with_five_reasons(made):
    study, results = read_study(made[1]), workflows.read_results(made[2].settings, made[1])
    (verdict,) = verdicts(study, results)
    assert tuple(reason.topic for reason in verdict.reasons) == TOPICS
    assert verdict.sentence.startswith(f"{NASTY}: ") and verdict.sentence.endswith(".")
    for reason in verdict.reasons:
        assert reason.meaning and reason.text
    gate, anatomy_, similarity, diversity, copies = (reason.text for reason in verdict.reasons)
    assert f"of {N} volumes fail; pass rate" in gate
    assert f"N = {N} real, {N} synthetic" in anatomy_
    assert "FID" in similarity and f"N = {N} real" in similarity
    assert "MS-SSIM" in diversity and "no training cohort" in copies


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page without network that notes what it asked for and what went wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.asked, page.problems = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    yield page
    problems = [text for text in page.problems if not any(word in text for word in HARMLESS)]
    assert not problems
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("drop", [False, True])
def test_the_report_opens_offline(made, page, drop):
    page.goto(published(made, drop).html.as_uri())
    page.wait_for_function("() => document.querySelectorAll('.plot .main-svg').length >= 3")
    pictures = page.locator(".montage img:visible")
    assert pictures.count() == (2 if drop else 4)
    assert pictures.evaluate_all("images => images.every(image => image.naturalWidth > 600)")
    wide = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    page.get_by_label("Grey matter in colour").uncheck()
    assert page.locator(".montage img.with:visible").count() == 0
    assert page.locator(".montage img.without:visible").count() == pictures.count()


def place_of(page) -> tuple[int, int]:
    step, total = page.locator("#place").inner_text().split(" · ")[0].split(" / ")
    return int(step), int(total)


@pytest.mark.browser
@pytest.mark.slow
def test_presenting_by_keyboard(made, page):
    page.goto(published(made).html.as_uri() + "#present")
    assert page.locator("body > section.long h2").all_inner_texts() == ["Table 3: anatomy"]  # Figure 4 shows it
    total = place_of(page)[1]
    assert total >= page.locator("body > section:not(.long)").count()
    seen = []
    for _ in range(total):
        seen.append(page.locator("body > section:visible").locator("h1, h2").first.inner_text())
        page.keyboard.press("ArrowRight")
    assert "Figure 3: quality scores" in seen and place_of(page)[0] == total
    for key, step in (("ArrowLeft", total - 1), ("Home", 1), ("PageDown", 2), (" ", 3), ("PageUp", 2), ("End", total),
                      ("Shift+Space", total - 1), ("ArrowDown", total), ("ArrowUp", total - 1)):  # fmt: skip
        page.keyboard.press(key)
        assert place_of(page) == (step, total), key
    assert page.locator("body > section:visible").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("body > section:visible").count() == page.locator("body > section").count()
    assert page.locator("tr:visible").count() == page.locator("tr").count()
    page.keyboard.press("p")
    page.keyboard.press("ArrowRight")
    assert page.locator("body > section:visible").count() == 1


# What of the slide lies outside the window, under the counter, or needs scrolling.
OUTSIDE = """() => {
  const slide = document.querySelector("section.shown"), place = document.getElementById("place").getBoundingClientRect();
  const boxes = [...slide.querySelectorAll("h1, h2, p, li, td, th, img, figcaption, .plot, .plot text")]
    .filter((e) => e.getClientRects().length).map((e) => [e.textContent || e.alt || e.className, e.getBoundingClientRect()]);
  const out = ([, b]) => b.left < -1 || b.top < -1 || b.right > innerWidth + 1 || b.bottom > place.top + 1;
  const scrolls = [slide, document.documentElement].some((e) => e.scrollHeight > e.clientHeight || e.scrollWidth > e.clientWidth);
  const plot = slide.querySelector(".plot .main-svg")?.getBoundingClientRect().width;
  return [boxes.filter(out).map(([text]) => text), scrolls, plot ? plot / innerWidth : 1];
}"""


@pytest.mark.browser
@pytest.mark.slow
def test_every_slide_fits_every_window(many, page):
    page.goto(many.as_uri() + "#present")
    for width, height in ((1024, 768), (1280, 720), (1280, 900), (1920, 1080)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(300)
        page.keyboard.press("Home")
        for step in range(place_of(page)[1]):
            page.wait_for_timeout(100)
            outside, scrolls, wide = page.evaluate(OUTSIDE)
            assert not outside and not scrolls and wide > 0.9, (width, height, step, outside)
            page.keyboard.press("ArrowRight")


# Sections in parts whose letters could be larger in as many parts.
TOO_SMALL = """() => {
  const found = [];
  for (const section of new Set(steps.filter((s) => s.words && !s.section.querySelector("figure, .plot")).map((s) => s.section))) {
    const parts = steps.filter((s) => s.section === section), now = parseFloat(section.style.fontSize);
    sections.forEach((other) => other.classList.toggle("shown", other === section));
    section.style.fontSize = `${now + 1.5 * zoom()}px`;
    const roomy = parts.every(({ from, to }) => { part(section, from, to); return fits(section); });
    if (roomy && now < 27 * zoom()) found.push([section.querySelector("h2").textContent, now]);
    section.style.fontSize = `${now}px`;
  }
  return [found, steps.filter((s) => s.words).length];
}"""


@pytest.mark.browser
@pytest.mark.slow
def test_letters_of_a_slide_in_parts_are_as_large_as_fit(many, page):
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(many.as_uri() + "#present")
    counted = []
    for _ in range(5):  # with more and more limits
        found, parts = page.evaluate(TOO_SMALL)
        assert not found
        counted.append(parts)
        page.evaluate("""() => {
          const limits = sections.find((section) => section.querySelector("h2").textContent === "Limits");
          const list = limits.querySelector("ul");
          for (const line of [...list.children].slice(0, 8)) list.append(line.cloneNode(true));
          prepare();
        }""")
    assert counted[-1] > counted[0]


@pytest.fixture(scope="module")
def many(made):
    """The report of a study with nine cohorts and a long list of limits."""
    _, path, context = made
    study, results = read_study(path), workflows.read_results(context.settings, path)
    found = report._collect(context, str(path), False)
    names = [f"Generator {n} (sampled, {n} steps)" for n in range(9)]
    (fake,) = study.synthetic
    gaps = [{"cohort": "gen", "what": f"case {n}", "reason": "the file is empty or damaged. " * 4} for n in range(20)]
    effects, scores = results.effect_sizes, results.metrics
    results = replace(
        results,
        effect_sizes=pd.concat([effects.assign(cohort=name) for name in names]),
        metrics=pd.concat([scores.assign(cohort=name) for name in names]),
        quality=pd.concat([results.quality.tail(1).assign(cohort=name) for name in names]),
        provenance={**results.provenance, "gaps": gaps},
    )
    study = replace(study, synthetic=tuple(replace(fake, name=name) for name in names))
    (verdict,) = found.verdicts
    found = replace(
        found, study=study, results=results, tables=report.all_tables(study, results), brains=found.brains * 5,
        charts=report.charts(study, results, False), verdicts=[replace(verdict, label=name) for name in names],
    )  # fmt: skip
    target = path.parent / "many.html"
    target.write_text(report.render(found), encoding="utf-8")
    return target


@pytest.mark.browser
@pytest.mark.slow
def test_on_paper_tables_are_readable_and_whole(many, page):
    page.set_viewport_size({"width": 1032, "height": 700})  # A4 across, less its margins
    page.goto(many.as_uri())
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('td, th, .note')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 8 * 96 / 72
    style = "(e, name) => getComputedStyle(e)[name]"
    assert page.locator("thead").first.evaluate(style, "display") == "table-header-group"
    assert page.locator("tr").first.evaluate(style, "breakInside") == "avoid"
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1032  # wider, and all would be shrunk
    assert page.locator("#present").is_hidden()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
