"""Studies: make, change or open one, see its cases and what was rejected, evaluate it, split a pooled cohort."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.encoders import label_named
from core.errors import InputError, SynthScopeError
from core.participants import read_participants, split_participants
from core.settings import refuse_outside
from core.study import Study, StudySpec, make_spec, read_spec, renamed, same_spec
from core.tables import csv_text
from core.workflows import Results, known_studies, why_fixed
from pages import access, look, reads, selection, shared
from pages import form_parts as form

FORMER = "former_study"  # (path, spec, keys of the fields) that the form of a change started from
SAID = "study_said"  # what was done, to be said in the next run
GRID_HELP = "full: 1 mm. half: 2 mm, eight times faster."
CASE_COLUMNS = {
    "cohort": look.text("Cohort", width=look.COHORT_WIDTH),
    "case": look.text("Case", width="medium"),
    "status": look.text("Status"),
    "reason": look.text("Why rejected, and what to do", width="large"),
    "notes": look.text("What was changed while reading"),
    "age": look.number("Age (years)", fmt="%.0f"),
}


def show_create() -> None:
    """Make a study from folders."""
    first, second, third = st.columns([2, 3, 1])
    name = first.text_input("Name of the study", key="new_name")
    folder = second.text_input("Folder for study.toml", key="new_folder", help="Relative paths start from here.")
    grid = third.selectbox("Grid", ["full", "half"], help=GRID_HELP)
    asked = form.study_fields(form.NEW, "new")
    if st.button("Create the study", type="primary", **access.lock("editor")):
        try:
            spec = spec_of(name, grid, asked, folder)
            st.session_state[shared.STUDY] = access.create_study(shared.settings(), folder, spec)
            first = "" if spec.synthetic else " It has no synthetic cohort yet."
            st.session_state[SAID] = f"{name} was made and is chosen.{first} Evaluate it in the first tab."
        except SynthScopeError as error:
            look.show_error(error)
        else:
            st.rerun()


def spec_of(name: str, grid: str, asked: dict[str, Any], folder: str) -> StudySpec:
    """Return what a form asks for.

    Raises
    ------
    InputError
        Fields that are not filled in; wrong values, all problems at once.
    """
    where = folder or "the form"
    if missing := form.lacking(name, folder, asked["real"], asked["synthetic"], asked["training"]):
        raise InputError(f"still missing: {', '.join(missing)}.", where, "Fill it in.")
    return make_spec({"name": name, "grid": grid, **asked, "synthetic": form.by_name(asked["synthetic"])}, where)


def show_change(study: Study) -> None:
    """Change the cohorts and settings of the chosen study, or save the change as another study."""
    show_head(study, "change")
    path, settings = str(study.path), shared.settings()
    fixed, now = why_fixed(settings, path), read_spec(path)
    if st.session_state.get(FORMER, ("",))[0] != path:
        hold(path, now)
    _, former, turn = st.session_state[FORMER]
    shown = former.model_copy(update={"name": f"Copy of {former.name}"}) if fixed else former
    first, second, third = st.columns([2, 3, 1])
    name = first.text_input("Name of the study", shown.name, key=f"{turn}_name")
    grids = ["full", "half"]
    grid = third.selectbox("Grid", grids, grids.index(shown.grid), help=GRID_HELP, key=f"{turn}_grid")
    folder = str(study.path.parent)
    if fixed:
        st.info(f"{fixed} What you change here becomes a study of its own, of the same files.", icon=":material/lock:")
        folder = second.text_input("Folder for the study.toml of the copy", key=f"{turn}_folder")
    asked = form.study_fields(shown, turn)
    if not same_spec(now, former):
        with suppress(InputError):
            if same_spec(spec_of(name, grid, asked, path), shown):  # nothing was changed here: nothing is lost
                hold(path, now)
                st.rerun()
        st.warning(
            "The study was changed meanwhile, in another tab or by an editor. This form began with the earlier one."
        )
        if st.button("Load it again: what is changed here is lost", key=f"{turn}_again"):
            hold(path, now)
            st.rerun()
    job = shared.job_of(path)
    label = "Save as a study of its own" if fixed else "Save the changes"
    working = bool(job and job.active)
    if working:
        st.caption("A job works on this study: wait until it has ended, or cancel it on the page *Jobs*.")
    lock = access.lock("editor", disabled=working, help="No file is deleted.")
    if st.button(label, type="primary", **lock):
        try:
            spec = spec_of(name, grid, asked, folder)
            if fixed:
                st.session_state[shared.STUDY] = access.copy_study(settings, path, spec, folder)
            else:
                access.change_study(settings, path, former, spec)
                selection.rename(renamed(former, spec))
                hold(path, spec)
            st.session_state[SAID] = "Saved. What was computed before is kept."
        except SynthScopeError as error:
            look.show_error(error)
        else:
            st.rerun()


def hold(path: str, spec: StudySpec) -> None:
    """Have the form start from this study; its fields get new keys, so that they hold what it says."""
    turn = int(st.session_state.get(FORMER, ("", None, "change_0"))[2].rpartition("_")[2])
    st.session_state[FORMER] = (path, spec, f"change_{turn + 1}")


def show_open() -> None:
    """Open a study file."""
    path = st.text_input("Path of a study.toml, or of its folder", key="open_path")
    if st.button("Open", **access.lock("editor", disabled=not path)):
        try:
            st.session_state[shared.STUDY] = access.open_study(shared.settings(), path)
            st.session_state[SAID] = "The study is opened and chosen. Its cases are in the first tab."
        except SynthScopeError as error:
            look.show_error(error)
        else:
            st.rerun()


def cases_of(study: Study, results: Results) -> pd.DataFrame:
    """Return every case with its status: "not checked" before an evaluation, "gone" after it was deleted."""
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
    there = {(row["cohort"], row["case"]) for row in rows}
    former = results.cases.to_dict("records")
    gone = {"status": "gone", "reason": "Its file was deleted, moved or renamed since the evaluation."}
    listed = [
        row if row["status"] == "rejected" or (row["cohort"], row["case"]) in there else row | gone for row in former
    ]
    table = pd.DataFrame([*listed, *waiting], columns=list(results.cases.columns))
    return table.assign(cohort=table["cohort"].map(look.labels_of(study.cohorts)))


def filled_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that say something."""
    return [name for name in table if not table[name].isin(["", None]).all() and not table[name].isna().all()]


def show_cases(study: Study, results: Results) -> None:
    """Show every case, with what was rejected and why."""
    table = reads.kept_of_files("cases", study, lambda: cases_of(study, results))
    rejected = table["status"] == "rejected"
    counts = table["status"].value_counts()
    st.markdown(", ".join(f"**{count}** {status}" for status, count in counts.items()) + f", of {len(table)} cases.")
    for cohort in study.cohorts:
        for note in shared.notes_of(cohort, str(study.path)):
            st.warning(f"{cohort.label}: {note}")
    only = st.toggle(f"Only rejected ({rejected.sum()})", value=bool(rejected.any()), disabled=not rejected.any())
    shown = table[rejected] if only and rejected.any() else table
    filled = reads.kept_of_files(f"filled columns, {only}", study, lambda: filled_columns(shown))
    look.show_table(shown[filled], CASE_COLUMNS, row_height=look.TALL_ROW if "reason" in filled else None)
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
        look.show_error(error)
        return
    st.markdown(f"Test: **{len(test)}** scans. Training: **{len(training)}** scans.")
    columns = st.columns(2)
    for column, (name, table) in zip(columns, {"test": test, "training": training}.items(), strict=True):
        content = csv_text(table, tabs=True, na_rep="n/a")
        access.download(f"Download {name}.tsv", content, f"{name}.tsv", "text/tab-separated-values", place=column)
    look.show_figure(plots.age_sex_histogram({"test": test, "training": training}), key="split_sets")
    sites = {f"site {site}": rows for site, rows in pooled.groupby("site") if site}
    if sites:
        with st.expander(f"Age and sex at each of {len(sites)} sites"):
            look.show_figure(plots.age_sex_histogram(sites), key="split_sites")


def read_uploaded(content: bytes) -> pd.DataFrame:
    """Read an uploaded participants table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "participants.tsv"
        path.write_bytes(content)
        return read_participants(path)


def show_head(study: Study, key: str) -> None:
    """Show which study it is and what an evaluation has to compute; offer to evaluate it."""
    title, button = st.columns([4, 1], vertical_alignment="center")
    title.subheader(study.name)
    encoders = map(label_named, study.settings.encoders)
    title.caption(f"`{study.path}` · grid {study.grid.name} · encoders: {', '.join(encoders)}")
    job = shared.job_of(str(study.path))
    working = bool(job and job.active)
    lock = access.lock("editor", disabled=working, help="What is finished is kept.")
    if button.button("Evaluate", type="primary", width="stretch", key=f"evaluate_{key}", **lock):
        shared.evaluate(str(study.path), known_studies(shared.settings()).get(str(study.path), study.name))
        st.rerun()
    if lines := shared.outdated(study):
        heading = "**To be computed by *Evaluate***; all else comes from the cache.\n\n"
        st.info(heading + "\n".join(f"- {line}" for line in lines), icon=":material/update:")


def show_study(study: Study, results: Results) -> None:
    """Show the chosen study's cases, and evaluate it."""
    show_head(study, "cases")
    show_cases(study, results)


shared.show_heading("Studies", "A study holds a real cohort and the synthetic cohorts judged against it.")
names = ["This study's cases", "Change this study", "New study", "Open a study", "Split a cohort"]
this, change, create, known, split = st.tabs(names)
if said := st.session_state.pop(SAID, ""):
    st.toast(said, icon=":material/check:")
with create:
    show_create()
with known:
    show_open()
with split:
    show_split()
path = shared.study_path()
try:
    reads.cached_study(path, reads.study_version(path))
except InputError as error:  # the first tab says more
    with change:
        if shared.is_demo(path):
            st.info("The demo study is not there yet. When it is, it can be changed as a copy.")
        else:
            look.show_error(error)
with this:  # last, since a study that cannot be read stops the page
    chosen, found = shared.load_study()
    show_study(chosen, found)
with change:
    show_change(chosen)
