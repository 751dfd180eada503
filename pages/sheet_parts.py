"""All brains at a glance: the contact sheet and the case list, sorted by any score."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from core import jobs
from core.image_checks import CHECKS
from core.quality import QC_SCORES
from core.study import Study
from core.workflows import Results
from core.workflows.viewing import PLANES, SHEET_COLUMNS, Pair, Sheet, case_scores, contact_sheet, undrawn
from pages import access, job_parts, look, niivue, reads, selection, shared, viewer_choices, viewer_parts

AT_ONCE = 60  # thumbnails drawn while the page waits; more are drawn by a job
AT_A_TIME = {"sheet": 400, "list": 240}  # brains shown together
SEEN = "sheet_seen"  # number of the last click to select a brain that was answered
NAME = "case name"
LOWEST = "lowest QC"
LIST_COLUMNS = (LOWEST, "verdict", *QC_SCORES, "TIV")
QC_HELP = "QC score of the segmentation, 0 to 1; higher is better."
TIV_HELP = "Total intracranial volume, measured on the images as aligned to the atlas, or from a cohort's own table."


def show_contact_sheet(study: Study, results: Results, radiological: bool) -> None:
    """Show one plane of the brains of the chosen cohorts, in the order wanted; a click opens one."""
    page = choose_brains(study, results, AT_A_TIME["sheet"])
    sheet = sheet_of(study, page.pairs, page.plane)
    show_sheet(sheet, cells_of(page, sheet, look.labels_of(study.cohorts)), page.plane, radiological, open_cell)
    st.caption(
        f"{page.words} brains, middle {page.plane} slices at one scale. Click a brain to open it; with Ctrl, ⌘ or "
        "Shift, to select it. A red edge: the QC gate rejects it; the score it fails stands below."
    )
    show_missing(sheet)
    viewer_choices.keep(study)


def show_case_list(study: Study, results: Results, radiological: bool) -> None:
    """Show the cases with their pictures and scores, in the order wanted; a selected row can be opened."""
    page = choose_brains(study, results, AT_A_TIME["list"])
    sheet, table = sheet_of(study, page.pairs, page.plane), page.table
    pictures = pictures_of(sheet, radiological and page.plane != "sagittal")
    table.insert(0, "picture", [pictures.get(pair, "") for pair in page.pairs])
    extra = [name for name in CHECKS if name in table] + [name for name in table if name.startswith("copy ratio")]
    shown = table[["picture", "case", "cohort", *LIST_COLUMNS, *extra]].replace(
        {"cohort": look.labels_of(study.cohorts)}
    )
    columns: dict[str, Any] = {name: look.number(score_label(name), fmt="%.3g") for name in shown.columns[3:]}
    columns |= {name: look.number(score_label(name), QC_HELP) for name in (LOWEST, *QC_SCORES)}
    columns |= {"TIV": look.number("TIV (mm³)", TIV_HELP, "%.0f")}
    columns |= {"verdict": look.text("QC gate", "Passes, the scores below the threshold, or why not judged.", 220)}
    columns |= {"picture": st.column_config.ImageColumn(page.plane.capitalize())}
    columns |= {"cohort": look.text("Cohort", width=180)}
    selection.show_cases(shown, columns, page.pairs, "case_list", height=640, row_height=84)
    note = letters_note(page.plane, radiological)
    st.caption(f"{page.words} cases. A click on a heading sorts those shown, *Sort by* sorts all. {note}")
    show_missing(sheet)
    viewer_choices.keep(study)


@dataclass(frozen=True)
class Page:
    """The cases to show, of all that were chosen: with scores and verdict in ``table``, in the order wanted."""

    table: pd.DataFrame
    plane: str
    sort: str
    words: str  # how many are shown, of how many

    @property
    def pairs(self) -> list[Pair]:
        """Return the cases as (cohort, case)."""
        return list(zip(self.table["cohort"], self.table["case"], strict=True))


def choose_brains(study: Study, results: Results, most: int) -> Page:
    """Let the user choose cohorts, a plane, the order, and which part of more than ``most`` cases to see."""
    names, plane = choose_cohorts(study)
    cases = {cohort.name: [case.case_id for case in cohort.cases] for cohort in study.cohorts}
    known = hash(tuple(map(tuple, cases.values())))
    table = reads.kept("case scores", (*reads.basis(study), known), lambda: case_scores(results, cases))
    chosen = [pair for pair in selection.selected() if pair[0] in cases]
    if chosen and st.toggle(f"Only the selected ({len(chosen)})", key="viewer_only_selected"):
        rows = pd.MultiIndex.from_frame(table[["cohort", "case"]]).isin(chosen)
    else:
        rows = table["cohort"].isin(names)
    scores = [NAME, *table.columns[2:]]
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    if st.session_state.get("viewer_sort") not in scores:
        st.session_state["viewer_sort"] = LOWEST
    sort = left.selectbox("Sort by", scores, key="viewer_sort", format_func=score_label)
    down = right.toggle("Highest first", key="viewer_down")
    table = in_order(table[rows], sort, down)
    first = 0 if len(table) <= most else choose_part(len(table), most, f"{sort}, {down}")
    shown = table.iloc[first : first + most].reset_index(drop=True)
    words = f"{len(table):,}" if len(shown) == len(table) else f"{first + 1:,}–{first + len(shown):,} of {len(table):,}"
    pairs = zip(shown["cohort"], shown["case"], strict=True)
    return Page(shown.assign(verdict=verdicts_of(study, results, pairs)), plane, sort, words)


def choose_cohorts(study: Study) -> tuple[list[str], str]:
    """Let the user choose cohorts and a plane."""
    cohorts = {cohort.name: cohort for cohort in study.cohorts if cohort.cases}
    left, right = st.columns([2, 1])
    key = "viewer_cohorts"
    first = [study.real.name, *(cohort.name for cohort in study.synthetic[:1])]
    st.session_state[key] = [name for name in st.session_state.get(key, first) if name in cohorts]
    words = {name: cohort.label for name, cohort in cohorts.items()}.__getitem__
    names = left.multiselect("Cohorts", list(cohorts), key=key, format_func=words, on_change=viewer_choices.make_step)
    if st.session_state.get("viewer_plane") not in PLANES:  # a page that is left while it runs may leave None
        st.session_state["viewer_plane"] = "axial"
    return names, right.segmented_control("Plane", PLANES, key="viewer_plane", required=True) or "axial"


def choose_part(n: int, most: int, order: str) -> int:
    """Let the user choose which of many cases to see; return the place of the first. Each order has its own choice."""
    parts = -(-n // most)
    part = st.pagination(parts, key=f"part of {n} by {most}, {order}", persist_state="session")
    return most * (min(part, parts) - 1)


def in_order(table: pd.DataFrame, sort: str, down: bool) -> pd.DataFrame:
    """Return cases in the order wanted; those without the score come last."""
    columns = ["case", "cohort"] if sort == NAME else [sort]
    return table.sort_values(columns, ascending=not down, na_position="last", kind="stable")


def sheet_of(study: Study, pairs: Sequence[Pair], plane: str) -> Sheet:
    """Return the picture of cases; when many thumbnails are not there yet, offer to draw them in the background."""
    paths = {(cohort.name, case.case_id): case.path for cohort in study.cohorts for case in cohort.cases}
    stamp = tuple(paths[pair].stat().st_mtime_ns if paths[pair].exists() else 0 for pair in pairs)
    lacking = cached_undrawn(str(study.path), pairs, stamp)
    if lacking > AT_ONCE:
        offer_drawing(study, lacking)
        return Sheet(b"", (1, 1), {}, {})
    return cached_sheet(str(study.path), pairs, plane, stamp)


def offer_drawing(study: Study, lacking: int) -> None:
    """Say that thumbnails are missing, and let the user have them drawn by a job."""
    found = jobs.list_jobs(shared.settings(), function=job_parts.THUMBNAIL_JOB, study=str(study.path))
    if any(job.active for job in found):
        st.info("The thumbnails are being drawn; see the page *Jobs*.")
    elif st.button(f"Draw the thumbnails of the study, {lacking} of these are missing", **access.lock("editor")):
        access.submit(
            shared.settings(), job_parts.THUMBNAIL_JOB, {"study": str(study.path)}, f"Thumbnails of {study.name}"
        )
        st.rerun()


@st.cache_data(max_entries=64, show_spinner=False)
def cached_undrawn(path: str, pairs: Sequence[Pair], stamp: tuple[int, ...]) -> int:
    """Count the thumbnails that cases lack; ``stamp`` makes changed files count again."""
    del stamp
    return undrawn(shared.settings(), reads.cached_study(path, reads.study_version(path)), pairs)


@st.cache_data(max_entries=64, show_spinner="Drawing thumbnails")
def cached_sheet(path: str, pairs: Sequence[Pair], plane: str, stamp: tuple[int, ...]) -> Sheet:
    """Draw the picture of cases; ``stamp`` makes changed files be drawn again."""
    del stamp
    return contact_sheet(shared.settings(), reads.cached_study(path, reads.study_version(path)), pairs, plane)


@st.cache_data(max_entries=64, show_spinner=False)
def pictures_of(sheet: Sheet, mirrored: bool) -> dict[Pair, str]:
    """Return each brain of a sheet as the address of a small picture."""
    if not sheet.image:
        return {}
    whole, (width, height) = Image.open(io.BytesIO(sheet.image)), sheet.cell
    pictures = {}
    for pair, place in sheet.places.items():
        row, column = divmod(place, SHEET_COLUMNS)
        part = whole.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        part.thumbnail((96, 96))
        buffer = io.BytesIO()
        (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part).save(buffer, "JPEG", quality=80)
        pictures[pair] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return pictures


def show_sheet(
    sheet: Sheet,
    cells: Sequence[Mapping[str, Any]],
    plane: str,
    radiological: bool,
    on_open: Callable[[], None] = lambda: None,
    **options: Any,
) -> Mapping[str, Any]:
    """Show brains in one grid; return what was clicked."""
    letters = {"sagittal": "PA"}.get(plane, "RL" if radiological else "LR")
    mirrored = radiological and plane != "sagittal"
    picture = {}
    if sheet.image:
        url = niivue.serve(sheet.image, "image/jpeg", "sheet")
        picture = {"url": url, "width": sheet.cell[0], "height": sheet.cell[1], "columns": SHEET_COLUMNS}
    marks = {"seen": st.session_state.get(SEEN, 0), "on_open": on_open, "on_mark": mark_cells}
    return niivue.show_sheet(cells, picture, letters=letters, mirrored=mirrored, **marks, **options)


def cells_of(page: Page, sheet: Sheet, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the brains of a sheet in the order wanted, and what stands below them."""
    cells, chosen = [], set(selection.selected())
    values = page.table["case" if page.sort == NAME else page.sort]
    for pair, value, verdict in zip(page.pairs, values, page.table["verdict"], strict=True):
        if pair in sheet.places:
            label = labels[pair[0]]
            words = label if page.sort == NAME else "–" if np.isnan(value) else look.brief(value)
            cells.append(cell(pair, sheet, label, verdict, pair in chosen) | {"caption": words})
    return cells


def cell(pair: Pair, sheet: Sheet, label: str, verdict: str, chosen: bool) -> dict[str, Any]:
    """Return a brain of a sheet as the component shows it."""
    brain = {"cohort": pair[0], "case": pair[1], "label": label, "verdict": verdict, "caption": ""}
    return brain | {"place": sheet.places[pair], "selected": chosen}


def score_label(name: str) -> str:
    """Return how a score is called."""
    if name in QC_SCORES:
        return f"QC {name}"
    return {LOWEST: "Lowest QC score", "TIV": "TIV (mm³)"}.get(name, CHECKS.get(name, name))


def verdicts_of(study: Study, results: Results, pairs: Iterable[Pair]) -> list[str]:
    """Return what the gate says of each case."""
    verdicts, _ = viewer_parts.cached_known(results, str(study.path), reads.results_stamp(str(study.path)))
    return [verdicts.get(pair, "") for pair in pairs]


def letters_note(plane: str, radiological: bool) -> str:
    """Say which side is which."""
    if plane == "sagittal":
        return "Anterior is on the right."
    return f"The patient's left is on the {'right' if radiological else 'left'}."


def show_missing(sheet: Sheet) -> None:
    """List the cases that cannot be shown, and why."""
    rows = [(case, reason) for (_, case), reason in sheet.missing.items()]
    if rows:
        with st.expander(f"{len(rows)} cases cannot be shown"):
            look.show_table(pd.DataFrame(rows, columns=["case", "why"]), {"why": look.text("Why", width="large")})


def mark_cells() -> None:
    """Select the brains that were clicked, or no longer."""
    for click in st.session_state["sheet"].get("mark") or []:
        selection.mark((click["cohort"], click["case"]), click["selected"])
        st.session_state[SEEN] = click["number"]


def open_cell() -> None:
    """Open the brain that was clicked."""
    wish = st.session_state["sheet"].get("open") or {}
    if wish:
        st.session_state[shared.SELECTED_COHORT], st.session_state[shared.SELECTED_CASE] = wish["cohort"], wish["case"]
        viewer_choices.make_step()
