"""All brains at a glance: the contact sheet and the case list, sorted by any score."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from core import jobs
from core.image_checks import CHECKS
from core.quality import QC_SCORES
from core.study import Study, read_study
from core.workflows import Results
from core.workflows.viewing import PLANES, SHEET_COLUMNS, Sheet, case_scores, contact_sheet, undrawn
from pages import access, job_parts, niivue, selection, shared, viewer_choices, viewer_parts

AT_ONCE = 60  # thumbnails drawn while the page waits; more are drawn by a job
NAME = "case name"
LOWEST = "lowest QC"
LIST_COLUMNS = (LOWEST, "verdict", *QC_SCORES, "TIV")
QC_HELP = "QC score of the segmentation, 0 to 1; higher is better."
TIV_HELP = "Total intracranial volume, measured on the images as aligned to the atlas, or from a cohort's own table."


def show_contact_sheet(study: Study, results: Results, radiological: bool) -> None:
    """Show one plane of every brain of the chosen cohorts; a click opens it."""
    names, plane, table = choose_brains(study, results)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    scores = [NAME, *table.columns[2:]]
    if st.session_state.get("viewer_sort") not in scores:
        st.session_state["viewer_sort"] = LOWEST
    sort = left.selectbox("Sort by", scores, key="viewer_sort", format_func=score_label)
    down = right.toggle("Highest first", key="viewer_down")
    sheets = {name: sheet_of(study, results, name, plane) for name in names}
    table["verdict"] = verdicts_of(study, results, table)
    cells = cells_of(table, sheets, sort, down, shared.labels_of(study.cohorts))
    sprites = {name: sprite_of(name, sheet, plane) for name, sheet in sheets.items() if sheet.image}
    letters = {"sagittal": "PA"}.get(plane, "RL" if radiological else "LR")
    mirrored = radiological and plane != "sagittal"
    niivue.show_sheet(cells, sprites, letters=letters, mirrored=mirrored, on_open=open_cell, on_mark=mark_cell)
    st.caption(
        f"{len(cells)} brains, middle {plane} slices at one scale. Click a brain to open it; with Ctrl, ⌘ or Shift, "
        "to select it. A red edge: the QC gate rejects it; the score it fails stands below."
    )
    show_missing(sheets)
    viewer_choices.keep(study)


def show_case_list(study: Study, results: Results, radiological: bool) -> None:
    """Show every case with its picture and scores, sortable by each column; a selected row can be opened."""
    names, plane, table = choose_brains(study, results)
    sheets = {name: sheet_of(study, results, name, plane) for name in names}
    mirrored = radiological and plane != "sagittal"
    pictures = {name: pictures_of(sheet, mirrored) for name, sheet in sheets.items()}
    table.insert(0, "picture", [pictures[c].get(k, "") for c, k in zip(table["cohort"], table["case"], strict=True)])
    labels = shared.labels_of(study.cohorts)
    table["verdict"] = verdicts_of(study, results, table)
    extra = [name for name in CHECKS if name in table] + [name for name in table if name.startswith("copy ratio")]
    shown = table[["picture", "case", "cohort", *LIST_COLUMNS, *extra]].replace({"cohort": labels})
    columns: dict[str, Any] = {name: shared.number(score_label(name), fmt="%.3g") for name in shown.columns[3:]}
    columns |= {name: shared.number(score_label(name), QC_HELP) for name in (LOWEST, *QC_SCORES)}
    columns |= {"TIV": shared.number("TIV (mm³)", TIV_HELP, "%.0f")}
    columns |= {"verdict": shared.text("QC gate", "Passes, the scores below the threshold, or why not judged.", 220)}
    columns |= {"picture": st.column_config.ImageColumn(plane.capitalize()), "cohort": shared.text("Cohort", width=180)}
    pairs = list(zip(table["cohort"], table["case"], strict=True))
    selection.show_cases(shown, columns, pairs, "case_list", height=640, row_height=84)
    st.caption(f"{len(shown)} cases. Click a heading to sort. {letters_note(plane, radiological)}")
    show_missing(sheets)
    viewer_choices.keep(study)


def choose_brains(study: Study, results: Results) -> tuple[list[str], str, pd.DataFrame]:
    """Let the user choose cohorts and a plane; return them with the scores of all cases."""
    cohorts = {cohort.name: cohort for cohort in study.cohorts if cohort.cases}
    left, right = st.columns([2, 1])
    key = "viewer_cohorts"
    first = [study.real.name, *(cohort.name for cohort in study.synthetic[:1])]
    st.session_state[key] = [name for name in st.session_state.get(key, first) if name in cohorts]
    names = left.multiselect("Cohorts", list(cohorts), key=key, format_func=lambda name: cohorts[name].label)
    st.session_state.setdefault("viewer_plane", "axial")
    plane = right.segmented_control("Plane", PLANES, key="viewer_plane", required=True)
    cases = {name: [case.case_id for case in cohorts[name].cases] for name in names}
    chosen = [pair for pair in selection.selected() if pair[0] in cohorts]
    if chosen and st.toggle(f"Only the selected ({len(chosen)})", key="viewer_only_selected"):
        names = list(dict.fromkeys(cohort for cohort, _ in chosen))
        cases = {name: [case for cohort, case in chosen if cohort == name] for name in names}
    table = case_scores(results, cases)
    return names, str(plane), table


def sheet_of(study: Study, results: Results, cohort: str, plane: str) -> Sheet:
    """Return a cohort's picture; when many thumbnails are not there yet, offer to draw them in the background."""
    stamp = tuple(shared.case_version(study, results, cohort, case.case_id) for case in study.cohort(cohort).cases)
    lacking = cached_undrawn(str(study.path), cohort, stamp)
    if lacking > AT_ONCE:
        offer_drawing(study, cohort, lacking)
        return Sheet(b"", (1, 1), (), {})
    return cached_sheet(str(study.path), cohort, plane, stamp)


def offer_drawing(study: Study, cohort: str, lacking: int) -> None:
    """Say that thumbnails are missing, and let the user have them drawn by a job."""
    found = jobs.list_jobs(shared.settings(), function=job_parts.THUMBNAIL_JOB)
    if any(job.active and job.arguments.get("study") == str(study.path) for job in found):
        st.info(f"The thumbnails of {cohort} are being drawn; see the page *Jobs*.")
    elif st.button(f"Draw the {lacking} missing thumbnails of {cohort}", key=f"draw_{cohort}", **access.lock("editor")):
        access.submit(
            shared.settings(), job_parts.THUMBNAIL_JOB, {"study": str(study.path)}, f"Thumbnails of {study.name}"
        )
        st.rerun()


@st.cache_data(max_entries=64, show_spinner=False)
def cached_undrawn(path: str, cohort: str, stamp: tuple[int, ...]) -> int:
    """Count the thumbnails a cohort lacks; ``stamp`` makes changed files count again."""
    del stamp
    return undrawn(shared.settings(), read_study(path), cohort)


@st.cache_data(max_entries=64, show_spinner="Drawing thumbnails")
def cached_sheet(path: str, cohort: str, plane: str, stamp: tuple[int, ...]) -> Sheet:
    """Draw a cohort's picture; ``stamp`` makes changed files be drawn again."""
    del stamp
    return contact_sheet(shared.settings(), read_study(path), cohort, plane)


@st.cache_data(max_entries=64, show_spinner=False)
def pictures_of(sheet: Sheet, mirrored: bool) -> dict[str, str]:
    """Return each brain of a sheet as the address of a small picture."""
    if not sheet.image:
        return {}
    whole, (width, height) = Image.open(io.BytesIO(sheet.image)), sheet.cell
    pictures = {}
    for place, case in enumerate(sheet.cases):
        row, column = divmod(place, SHEET_COLUMNS)
        part = whole.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        part.thumbnail((96, 96))
        buffer = io.BytesIO()
        (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part).save(buffer, "JPEG", quality=80)
        pictures[case] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return pictures


def sprite_of(cohort: str, sheet: Sheet, plane: str) -> dict[str, Any]:
    """Return where a sheet lies and how it is cut."""
    url = niivue.serve(sheet.image, "image/jpeg", f"sheet.{cohort}.{plane}")
    return {"url": url, "width": sheet.cell[0], "height": sheet.cell[1], "columns": SHEET_COLUMNS}


def cells_of(
    table: pd.DataFrame, sheets: dict[str, Sheet], sort: str, down: bool, labels: dict[str, str]
) -> list[dict[str, Any]]:
    """Return the brains in the order wanted; those without the score come last."""
    if sort != NAME:
        table = table.sort_values(sort, ascending=not down, na_position="last", kind="stable")
    else:
        table = table.sort_values(["case", "cohort"], ascending=not down, kind="stable")
    places = {(name, case): place for name, sheet in sheets.items() for place, case in enumerate(sheet.cases)}
    cells, chosen = [], set(selection.selected())
    values = table["case" if sort == NAME else sort]
    for cohort, case, value, verdict in zip(table["cohort"], table["case"], values, table["verdict"], strict=True):
        if (cohort, case) in places:
            words = labels[cohort] if sort == NAME else "–" if np.isnan(value) else shared.brief(value)
            item = {"cohort": cohort, "case": case, "label": labels[cohort], "caption": words, "verdict": verdict}
            cells.append(item | {"place": places[cohort, case], "selected": (cohort, case) in chosen})
    return cells


def score_label(name: str) -> str:
    """Return how a score is called."""
    if name in QC_SCORES:
        return f"QC {name}"
    return {LOWEST: "Lowest QC score", "TIV": "TIV (mm³)"}.get(name, CHECKS.get(name, name))


def verdicts_of(study: Study, results: Results, table: pd.DataFrame) -> list[str]:
    """Return what the gate says of each row's case."""
    verdicts, _ = viewer_parts.cached_known(results, str(study.path), shared.results_stamp(str(study.path)))
    return [verdicts.get(pair, "") for pair in zip(table["cohort"], table["case"], strict=True)]


def letters_note(plane: str, radiological: bool) -> str:
    """Say which side is which."""
    if plane == "sagittal":
        return "Anterior is on the right."
    return f"The patient's left is on the {'right' if radiological else 'left'}."


def show_missing(sheets: dict[str, Sheet]) -> None:
    """List the cases that cannot be shown, and why."""
    rows = [(case, reason) for sheet in sheets.values() for case, reason in sheet.missing.items()]
    if rows:
        with st.expander(f"{len(rows)} cases cannot be shown"):
            shared.show_table(pd.DataFrame(rows, columns=["case", "why"]), {"why": shared.text("Why", width="large")})


def mark_cell() -> None:
    """Select the brain that was clicked, or no longer."""
    if wish := st.session_state["sheet"].get("mark"):
        selection.switch((wish["cohort"], wish["case"]))


def open_cell() -> None:
    """Open the brain that was clicked."""
    wish = st.session_state["sheet"].get("open") or {}
    if wish:
        st.session_state[shared.SELECTED_COHORT], st.session_state[shared.SELECTED_CASE] = wish["cohort"], wish["case"]
