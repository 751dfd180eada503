"""What all pages share: session keys, the chosen study and its guard, addresses, ways to other pages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import streamlit as st
from streamlit.errors import StreamlitAPIException

from core import jobs
from core.errors import InputError, SynthScopeError
from core.jobs import Job
from core.segmentation import SEGMENTERS
from core.settings import Settings, from_environment
from core.study import Cohort, Study
from core.workflows import Results, demo_folder, known_studies, read_results, to_compute
from core.workflows.results import results_folder
from pages import access, job_parts, look, niivue, reads
from pages.job_parts import DEMO_JOB

# session keys
STUDY = "study"  # path of the chosen study.toml
PICKER = "study_picker"  # the widget that chooses it
SELECTED_COHORT = "selected_cohort"  # what another page asks the viewer to show
SELECTED_CASE = "selected_case"
SELECTED_BESIDE = "selected_beside"  # (cohort, case) of those to show beside it
ASKED = "asked_region"  # (cohort, region) that another page asks the page Anatomy to show
LANDING = "leads_to"  # anchor or key of what another page leads to, and a number that tells it from the last one
DEMO_CHECKED = "demo_checked"
LOST = "lost_study"  # path of a chosen study that disappeared
ROUTED = "routed"  # app.py has run, so its navigation leads
WANTED = "wanted"  # page and query of an address that was opened before app.py had run
ADDRESS = "study_in_address"  # short name of the study that the address held when it was last looked at
UNKNOWN = "unknown_study"  # the address named a study that the workspace does not know


# -- settings and study ------------------------------------------------------------------------------------------------


def settings() -> Settings:
    """Return the settings, or show what is wrong with them and stop."""
    try:
        return from_environment()
    except SynthScopeError as error:
        look.show_error(error)
        st.stop()


def arrive() -> None:
    """Note that the navigation leads; go on to the page whose address was opened before it did."""
    st.session_state[ROUTED] = True
    if wanted := st.session_state.pop(WANTED, None):
        st.switch_page(f"pages/{wanted[0]}.py", query_params=wanted[1])


def _leave_for_app() -> None:
    """Until app.py has run once, a server runs the page of an address by itself: start from app.py then."""
    if st.session_state.get(ROUTED):
        return
    page = urlsplit(st.context.url or "").path.rpartition("/")[2]
    if page:
        st.session_state[WANTED] = (page, st.query_params.to_dict())
        with suppress(StreamlitAPIException):
            st.switch_page("app.py")


def start_demo_once(settings: Settings) -> None:
    """Queue the demo study unless it was made, or tried, before."""
    if st.session_state.get(DEMO_CHECKED):
        return
    st.session_state[DEMO_CHECKED] = True
    complete = read_results(settings, demo_folder(settings) / "study.toml").provenance.get("complete")
    tried = any(job.state != "done" for job in jobs.list_jobs(settings, function=DEMO_JOB))
    if not complete and not tried and access.may("editor"):
        access.submit(settings, DEMO_JOB, {}, "Demo study")


def pick_study(settings: Settings) -> None:
    """Let the user choose among the known studies, in the sidebar; the address keeps the choice."""
    follow_address()
    studies = known_studies(settings)
    st.session_state[PICKER] = st.session_state[STUDY]
    with st.sidebar:
        st.selectbox("Study", list(studies), key=PICKER, format_func=lambda path: studies[path], on_change=_picked)


def _picked() -> None:
    st.session_state[STUDY] = st.session_state[PICKER]


def name_study() -> None:
    """Have the address name the study before another page is there, which is two steps of the history else."""
    if STUDY not in st.query_params and (known := st.session_state.get(ADDRESS)):
        st.query_params[STUDY] = known


def follow_address() -> None:
    """Go to the study that the address names, and have it name the chosen one: a reload or a copied link keeps it.

    An address is followed when it is new; else the choice made on the page leads.
    """
    wanted, chosen = st.query_params.get(STUDY, ""), study_path()
    if wanted and wanted not in (st.session_state.get(ADDRESS), study_id(chosen)):
        path = study_with_id(wanted)
        st.session_state[STUDY] = chosen = path or chosen
        st.session_state[UNKNOWN] = path is None
    st.session_state[ADDRESS] = study_id(chosen)
    if wanted != st.session_state[ADDRESS]:
        st.query_params[STUDY] = st.session_state[ADDRESS]


def clear_address() -> None:
    """Take everything out of the address but the study."""
    for key in set(st.query_params) - {STUDY}:  # each change is a step of the browser's history
        del st.query_params[key]


def current_study(title: str, caption: str) -> tuple[Study, Results]:
    """Show the page's heading and return the chosen study with its results so far; see `load_study`."""
    show_heading(title, caption)
    return load_study()


def show_heading(title: str, caption: str) -> None:
    """Show the page's title, and in the sidebar how far the study's job is."""
    _leave_for_app()
    access.require(settings())
    follow_address()
    st.title(title)
    if caption:
        st.caption(caption)
    path = study_path()
    if st.session_state.pop(UNKNOWN, False):
        st.warning(
            "The link belongs to a study that this workspace does not know: it was renamed, moved or made elsewhere. "
            "Open its study.toml on the page *Studies*, then the link again.",
            icon=":material/link_off:",
        )
    if lost := st.session_state.pop(LOST, None):
        st.warning(
            f"The study `{lost}` is no longer there: it was renamed, moved or deleted. Another is shown. Nothing "
            "computed is lost: open it from its new place on the page *Studies*; known volumes are not computed again.",
            icon=":material/link_off:",
        )
    job_parts.follow_job(settings(), path)


def load_study() -> tuple[Study, Results]:
    """Return the chosen study with its results so far.

    A study that cannot be read, or is still being made, is explained and the page stops.
    """
    path = study_path()
    try:
        study = reads.cached_study(path, reads.study_version(path))
    except InputError as error:
        if is_demo(path):
            _explain_demo(job_of(path))
        else:
            look.show_error(error)
            st.caption("Choose another study in the sidebar, or correct this one's study.toml.")
        st.stop()
    return study, reads.cached_results(path, reads.results_stamp(path))


def outdated(study: Study) -> list[str]:
    """Return what an evaluation of a study has to compute, see `core.workflows.to_compute`; nothing while one runs."""
    lines: list[str] = reads.kept_of_files("to compute", study, lambda: to_compute(settings(), study))
    job = job_of(str(study.path)) if lines else None
    return [] if job and job.active else lines


def study_path() -> str:
    """Return the path of the chosen study.toml; the first known study when none was chosen."""
    _stay_with_known(known_studies(settings()))
    return str(st.session_state[STUDY])


def _stay_with_known(studies: Mapping[str, str]) -> None:
    """Go to the first known study when the chosen one has disappeared, and have the page say so."""
    chosen = st.session_state.get(STUDY)
    if chosen not in studies:
        st.session_state[STUDY] = next(iter(studies))
        if chosen:
            st.session_state[LOST] = chosen


def study_id(path: str) -> str:
    """Return a short name of a study for addresses; it tells nothing about the path."""
    return results_folder(settings(), Path(path)).name


def study_with_id(name: str) -> str | None:
    """Return the path of the known study with this short name; None when there is none."""
    return next((path for path in known_studies(settings()) if study_id(path) == name), None)


def is_demo(path: str) -> bool:
    """Tell whether a study is the demo study."""
    return job_parts.is_demo(settings(), path)


def evaluate(path: str, name: str) -> None:
    """Queue the evaluation of a study; the demo study is made first when needed."""
    job_parts.evaluate(settings(), path, name)


def job_of(path: str) -> Job | None:
    """Return the newest job that works, or worked, on a study."""
    return job_parts.job_of(settings(), path)


def _explain_demo(job: Job | None) -> None:
    if job and job.active:
        st.info(
            f"**The demo study is being made.** {settings().demo_cases} simulated brains stand for the real cohort, "
            "six generators were trained on others, and two control cohorts have one known defect each. The first "
            "brains appear here within a minute; all results take about half an hour on two cores. You "
            "can look around meanwhile.",
            icon=":material/hourglass_top:",
        )
        return
    if job and job.error:
        st.error(f"The demo study could not be made. {job.error}")
    else:
        st.info("The demo study has not been made yet.")
    if st.button("Make the demo study", type="primary", **access.lock("editor")):
        evaluate(study_path(), "demo")
        st.rerun()


def still_computing(what: str) -> None:
    """Say why there is nothing to show yet, and what to do about it."""
    path = study_path()
    job = job_of(path)
    if job and job.active:
        st.info(f"{what} will appear here. {job_parts.job_line(job)}.", icon=":material/hourglass_top:")
    elif reads.cached_results(path, reads.results_stamp(path)).provenance.get("complete"):
        changed = outdated(reads.cached_study(path, reads.study_version(path)))
        again = ", or the study is to be evaluated again: it was changed since" if changed else ""
        st.warning(f"{what} could not be computed. The reasons are listed below{again}.", icon=":material/warning:")
    else:
        st.info(f"{what} will appear here once the study has been evaluated.", icon=":material/info:")
        if st.button("Evaluate this study", type="primary", key=f"evaluate_{what}", **access.lock("editor")):
            evaluate(path, Path(path).parent.name)
            st.rerun()


def show_gaps(study: Study, results: Results, *words: str) -> None:
    """List what could not be computed, and why; ``words`` choose the gaps by what they concern."""
    gaps = [g for g in results.provenance.get("gaps", []) if not words or any(w in g["what"] for w in words)]
    if gaps:
        with st.expander(f"{len(gaps)} not computed, or computed with a warning"):
            table = pd.DataFrame(gaps)[["cohort", "what", "reason"]].replace({"cohort": look.labels_of(study.cohorts)})
            columns = {
                "cohort": look.text("Cohort", width=look.COHORT_WIDTH),
                "reason": look.text("Why", width="large"),
            }
            look.show_table(table, columns, row_height=look.TALL_ROW)


# -- cohorts, and ways to other pages ----------------------------------------------------------------------------------


def engine_note(study: Study) -> str:
    """Say where regional volumes and QC scores come from."""
    engine = SEGMENTERS.get(study.settings.segmenter)
    own = [cohort.label for cohort in study.cohorts if not cohort.volumes]
    parts = [f"Segmented with {engine.label}. {engine.card}"] if own and engine else []
    imported = [cohort.label for cohort in study.cohorts if cohort.volumes]
    return " ".join([*parts, f"Imported tables: {', '.join(imported)}." if imported else ""]).strip()


def notes_of(cohort: Cohort, path: str) -> tuple[str, ...]:
    """Return what does not match in a cohort; a cohort of the demo that is still being made has nothing to match."""
    if not cohort.cases and is_demo(path) and (job := job_of(path)) and job.active:
        return ("Being simulated.",)
    return cohort.notes


def open_viewer(cohort: str, case: str, beside: Sequence[tuple[str, str]] = ()) -> None:
    """Go to the viewer and show this case, beside others, of (cohort, case); the address keeps the study."""
    st.session_state[SELECTED_COHORT], st.session_state[SELECTED_CASE] = cohort, case
    st.session_state[SELECTED_BESIDE] = list(beside)
    go_to("viewer")


def go_to(page: str, spot: str = "", choices: Mapping[str, str] | None = None) -> None:
    """Go to a page, and there to a part of it; the address keeps study and choices, so that back is one step."""
    lead_to(spot)
    st.switch_page(f"pages/{page}.py", query_params={STUDY: study_id(study_path()), **(choices or {})})


def lead_to(spot: str) -> None:
    """Have the next run bring a part of its page into view, see `land`."""
    st.session_state[LANDING] = (spot, time.time())


def asked_at(spot: str) -> str:
    """Return the cohort that a link to this part of a page is about; "" when none led here."""
    led, _ = st.session_state.get(LANDING, ("", 0.0))
    who, _ = st.session_state.get(ASKED) or ("", "")
    return who if led == spot else ""


def land(page: str) -> None:
    """Bring what another page leads to into view, or where this was left; in the sidebar, where it takes no room."""
    with st.sidebar:
        niivue.land(page, *st.session_state.get(LANDING, ("", 0)))


def viewer_button(cohort: str, case: str, key: str, beside: tuple[str, str] | None = None) -> None:
    """Show a button that opens a case in the viewer, beside a (cohort, case) when given."""
    what = f"{case} beside {beside[1]}" if beside else case
    if st.button(f"Open {what} in the viewer", key=key, icon=":material/view_in_ar:", type="primary"):
        open_viewer(cohort, case, [beside] if beside else [])
