"""Studies: make or open one, see its cases and what was rejected, evaluate it, split a pooled cohort."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from core import plots
from core.errors import SynthScopeError
from core.participants import read_participants, split_participants
from core.settings import refuse_outside
from core.study import Study, make_spec
from core.tables import csv_text
from core.workflows import Results, known_studies
from pages import access, shared
from pages import form_parts as form

CASE_COLUMNS = {
    "cohort": shared.text("Cohort", width=shared.COHORT_WIDTH),
    "case": shared.text("Case", width="medium"),
    "status": shared.text("Status"),
    "reason": shared.text("Why rejected, and what to do", width="large"),
    "notes": shared.text("What was changed while reading"),
    "age": shared.number("Age (years)", fmt="%.0f"),
}


def show_create() -> None:
    """Make a study from folders."""
    first, second, third = st.columns([2, 3, 1])
    name = first.text_input("Name of the study", key="new_name")
    folder = second.text_input("Folder for study.toml", key="new_folder", help="Relative paths start from here.")
    grid = third.selectbox("Grid", ["full", "half"], help="full: 1 mm. half: 2 mm, eight times faster.")
    real = form.real_fields()
    synthetic = form.synthetic_fields()
    options = form.setting_fields()
    if not st.button("Create the study", type="primary", **access.lock("editor")):
        return
    if missing := form.lacking(name, folder, real, synthetic):
        st.error(f"Still missing: {', '.join(missing)}.")
        return
    cohorts = {str(row["name"]).strip(): {key: row[key] for key in row if key != "name"} for row in synthetic}
    content = {"name": name, "grid": grid, "real": real, "synthetic": cohorts, "settings": options}
    try:
        spec = make_spec(content, "new study")
        st.session_state[shared.STUDY] = access.create_study(shared.settings(), folder, spec)
    except SynthScopeError as error:
        shared.show_error(error)
    else:
        st.rerun()


def show_open() -> None:
    """Open a study file."""
    path = st.text_input("Path of a study.toml, or of its folder", key="open_path")
    if st.button("Open", **access.lock("editor", disabled=not path)):
        try:
            st.session_state[shared.STUDY] = access.open_study(shared.settings(), path)
        except SynthScopeError as error:
            shared.show_error(error)
        else:
            st.rerun()


def cases_of(study: Study, results: Results) -> pd.DataFrame:
    """Return every case with its status; cases not looked at yet are "not checked"."""
    known = set(zip(results.cases["cohort"], results.cases["case"], strict=True))
    blank = dict.fromkeys(results.cases.columns, "") | {"age": None}
    rows = []
    for cohort in study.cohorts:
        for case in cohort.cases:
            facts = {"participant": case.participant, "age": case.age, "sex": case.sex, "site": case.site}
            rows.append(
                {"case": case.case_id, "status": "not checked", "path": str(case.path), "cohort": cohort.name} | facts
            )
        for item in cohort.rejected:
            facts = {"status": "rejected", "reason": item.reason, "path": item.path}
            rows.append({"case": item.case_id, "cohort": cohort.name} | facts)
    waiting = [blank | row for row in rows if (row["cohort"], row["case"]) not in known]
    table = pd.DataFrame([*results.cases.to_dict("records"), *waiting], columns=list(results.cases.columns))
    return table.assign(cohort=table["cohort"].map(shared.labels_of(study.cohorts)))


def filled_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that say something."""
    return [name for name in table if not table[name].isin(["", None]).all() and not table[name].isna().all()]


def show_cases(study: Study, results: Results) -> None:
    """Show every case, with what was rejected and why."""
    # Kept beside the study, whose id is then that of no other one: its files may change while the results do not.
    of = (*shared.basis(study), id(study))
    _, table = shared.kept("cases", of, lambda: (study, cases_of(study, results)))
    rejected = table["status"] == "rejected"
    counts = table["status"].value_counts()
    st.markdown(", ".join(f"**{count}** {status}" for status, count in counts.items()) + f", of {len(table)} cases.")
    for cohort in study.cohorts:
        for note in shared.notes_of(cohort, str(study.path)):
            st.warning(f"{cohort.label}: {note}")
    only = st.toggle(f"Only rejected ({rejected.sum()})", value=bool(rejected.any()), disabled=not rejected.any())
    shown = table[rejected] if only and rejected.any() else table
    filled = shared.kept("filled columns", (*of, only), lambda: filled_columns(shown))
    shared.show_table(shown[filled], CASE_COLUMNS, row_height=shared.TALL_ROW if "reason" in filled else None)
    access.download("Download all cases as CSV", lambda: csv_text(table), "cases.csv", "text/csv")


def show_split() -> None:
    """Draw a test set from a pooled cohort."""
    st.markdown(
        "Draws a test set that is uniform over the age range and half female, one scan for each subject. "
        "All scans of the other subjects are for training: no subject is on both sides."
    )
    if not access.may("editor"):  # a path names a file of the server
        st.info(access.NEED["editor"])
        return
    upload = st.file_uploader("participants.tsv of the pooled cohort", type=["tsv"], key="split_upload")
    path = st.text_input("or its path", key="split_path")
    first, second = st.columns(2)
    n = first.number_input("Subjects in the test set", 1, value=400, key="split_n")
    seed = second.number_input("Seed", 0, value=0, key="split_seed")
    if not upload and not path:
        st.info("Give a table with the columns participant_id, age, sex and, if known, session and site.")
        return
    try:
        if not upload:
            refuse_outside(path)
        pooled = read_uploaded(upload.getvalue()) if upload else read_participants(path)
        test, training = split_participants(pooled, int(n), int(seed))
    except SynthScopeError as error:
        shared.show_error(error)
        return
    st.markdown(f"Test: **{len(test)}** scans. Training: **{len(training)}** scans.")
    columns = st.columns(2)
    for column, (name, table) in zip(columns, {"test": test, "training": training}.items(), strict=True):
        content = csv_text(table, tabs=True, na_rep="n/a")
        access.download(f"Download {name}.tsv", content, f"{name}.tsv", "text/tab-separated-values", place=column)
    shared.show_figure(plots.age_sex_histogram({"test": test, "training": training}), key="split_sets")
    sites = {f"site {site}": rows for site, rows in pooled.groupby("site") if site}
    if sites:
        with st.expander(f"Age and sex at each of {len(sites)} sites"):
            shared.show_figure(plots.age_sex_histogram(sites), key="split_sites")


def read_uploaded(content: bytes) -> pd.DataFrame:
    """Read an uploaded participants table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "participants.tsv"
        path.write_bytes(content)
        return read_participants(path)


def show_study() -> None:
    """Show the chosen study's cases, and evaluate it."""
    study, results = shared.load_study()
    title, button = st.columns([4, 1], vertical_alignment="center")
    title.subheader(study.name)
    title.caption(f"`{study.path}` · grid {study.grid.name} · encoders {', '.join(study.settings.encoders)}")
    job = shared.job_of(str(study.path))
    working = bool(job and job.active)
    lock = access.lock("editor", disabled=working, help="What is finished is kept.")
    if button.button("Evaluate", type="primary", width="stretch", **lock):
        shared.evaluate(str(study.path), known_studies(shared.settings()).get(str(study.path), study.name))
        st.rerun()
    show_cases(study, results)


shared.show_heading("Studies", "A study holds a real cohort and the synthetic cohorts judged against it.")
this, create, known, split = st.tabs(["This study's cases", "New study", "Open a study", "Split a cohort"])
with create:
    show_create()
with known:
    show_open()
with split:
    show_split()
with this:  # last, since a study that cannot be read stops the page
    show_study()
