"""Report: one offline file of a study, slides, tables and a bundle, made in the background; presenter mode."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import streamlit as st

from core import jobs
from core.jobs import Job
from core.report import Published, contents, read_published
from core.study import Study
from core.workflows import Results
from pages import access, job_parts, look, niivue, reads, shared

REPORT_JOB = "core.report:publish"
DROP_HELP = "Leaves out every picture, point, name and hash of a single real or training scan; aggregates stay."
PRESENT_HELP = (
    "Opens the report in a new tab, one section a step, as large as the window: arrow keys, Space and Page keys go on "
    "and back, Home and End to the ends, Esc ends."
)
FILES = {
    "html": ("Report (HTML)", "text/html", "Opens in any browser without network; prints to PDF from there."),
    "slides": (
        "Slides (PPTX)",
        "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "A slide for each figure, as a picture; the tables can be edited.",
    ),
    "tables": ("Tables (CSV, LaTeX)", "application/zip", "The paper's Tables 1 to 3 made for this study, and the "
               "numbers behind them."),
    "bundle": ("Bundle (JSON)", "application/json", "study.toml, versions, settings and hashes: "
               "`python -m core rerun` evaluates again and says what is not the same."),
}  # fmt: skip


def newest_job(path: str, drop: bool) -> Job | None:
    """Return the newest job that makes, or made, this report."""
    found = jobs.list_jobs(shared.settings(), function=REPORT_JOB, study=path, drop_individuals=drop)
    return next(iter(found), None)


def show_job(path: str, drop: bool) -> None:
    """Show how far the report is; draw the page again when it has ended."""
    job = newest_job(path, drop)
    if job and job.active:
        jobs.ensure_runner(shared.settings())
        words = "waiting for a worker" if job.state == "queued" else job.message or "begun"
        st.progress(min(max(job.progress, 0.0), 1.0), text=f"Making the report: {words}")
    elif st.session_state.pop("report_waits", False):
        st.rerun()


def make(study: Study, drop: bool) -> None:
    """Queue the report."""
    arguments = {"study": str(study.path), "drop_individuals": drop}
    without = " without individuals" if drop else ""
    access.submit(shared.settings(), REPORT_JOB, arguments, f"Report of {study.name}{without}")


def show_state(study: Study, results: Results, drop: bool, made: Published | None) -> None:
    """Say whether the report is there and up to date; offer to make it."""
    path, job = str(study.path), newest_job(str(study.path), drop)
    if job and job.active:
        st.session_state["report_waits"] = True
        st.fragment(show_job, run_every=job_parts.POLL_SECONDS)(path, drop)
        return
    if job and job.state == "failed":
        st.error(f"The report could not be made. {job.error} The log is on the page Jobs.", icon=":material/error:")
    if made and made.stamp != reads.results_stamp(path):
        st.warning("The results have changed since this report was made.", icon=":material/update:")
    elif made and not made.complete:
        st.warning("The evaluation had not ended when this report was made.", icon=":material/hourglass_top:")
    elif made is None and not results.provenance.get("complete"):
        st.info("The evaluation goes on: a report made now says what is missing.", icon=":material/hourglass_top:")
    label = "Make it again" if made else "Make the report"
    lock = access.lock("editor", help="About half a minute, in the background: you may leave this page.")
    if st.button(label, type="secondary" if made else "primary", **lock):
        with st.spinner("Making the report"):
            make(study, drop)
        st.rerun()
    if made is None:
        st.caption(f"Makes, all at once: {', '.join(label for label, _, _ in FILES.values())}.")


@st.cache_data(max_entries=16, show_spinner=False)
def cached_file(path: str, made: float) -> bytes:
    """Read a file of the report; ``made`` makes a new one be read again."""
    del made
    return Path(path).read_bytes()


def show_files(study: Study, drop: bool, made: Published) -> None:
    """Offer the report to open, to present and to keep."""
    html = cached_file(str(made.html), made.made)
    address = niivue.serve(html, "text/html", f"report.{drop}")
    first, second, _ = st.columns([1, 1, 2])
    first.link_button("Present", f"{address}#present", type="primary", icon=":material/slideshow:", help=PRESENT_HELP,
                      width="stretch")  # fmt: skip
    second.link_button("Open", address, icon=":material/open_in_new:", help="Opens in a new tab.", width="stretch")
    name = re.sub(r"\W+", "-", study.name).strip("-") or "study"
    name += "-without-individuals" if drop else ""
    for column, (kind, (label, mimetype, meaning)) in zip(st.columns(len(FILES)), FILES.items(), strict=True):
        path: Path = getattr(made, kind)
        content = cached_file(str(path), made.made)
        file = f"{name}{'-bundle' if kind == 'bundle' else '-tables' if kind == 'tables' else ''}{path.suffix}"
        size = f"{len(content) / 1e6:.1f} MB" if len(content) > 1e5 else f"{len(content) / 1e3:.0f} kB"
        get = partial(cached_file, str(path), made.made)  # on a click; bytes are hashed in every run
        access.download(label, get, file, mimetype, place=column, icon=":material/download:", width="stretch",
                        key=f"download_{kind}")  # fmt: skip
        column.caption(f"{size}. {meaning}")
    st.caption(f"Made {look.clock(made.made)} in {look.span(made.seconds)}.")


study, results = shared.current_study(
    "Report", "The study for others: an offline file, slides, tables, a bundle that runs it again."
)
if not results.provenance:
    shared.still_computing("The report")
    st.stop()
drop = st.toggle("Leave individual scans out", key="report_drop", help=DROP_HELP)
st.markdown("**What the files hold of single people**")
st.markdown("\n".join(f"- {line}" for line in contents(study, results, drop)))
published = read_published(shared.settings(), str(study.path), drop)
show_state(study, results, drop, published)
if published:
    show_files(study, drop, published)
