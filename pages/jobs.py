"""Jobs: what is computed in the background, how far it is, and what went wrong."""

from __future__ import annotations

import time

import streamlit as st

from core import jobs
from core.jobs import Job
from pages import job_parts, shared

STATES = {
    "queued": ("waiting", "gray", ":material/schedule:"),
    "running": ("running", "blue", ":material/play_circle:"),
    "done": ("done", "green", ":material/check_circle:"),
    "failed": ("failed", "red", ":material/error:"),
    "cancelled": ("cancelled", "orange", ":material/cancel:"),
}


def duration(job: Job) -> str:
    """Return how long the job has worked."""
    if job.started is None:
        return ""
    seconds = (job.finished or time.time()) - job.started
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def show_job(job: Job) -> None:
    """Show one job with its progress, error, log and buttons."""
    label, colour, icon = STATES[job.state]
    with st.container(border=True):
        title, button = st.columns([5, 1], vertical_alignment="center")
        title.markdown(f"**{job.title}** :{colour}-badge[{icon} {label}]")
        facts = [f"submitted {shared.clock(job.created)}", duration(job)]
        facts += [f"attempt {job.attempts}"] if job.attempts > 1 else []
        facts += [f"{key}: {value}" for key, value in job.result.items() if isinstance(value, int) and key != "memory"]
        title.caption(" · ".join(fact for fact in facts if fact))
        if job.active and button.button("Cancel", key=f"cancel_{job.id}", width="stretch"):
            jobs.cancel(shared.settings(), job.id)
            st.rerun(scope="app")
        if not job.active and button.button("Run again", key=f"retry_{job.id}", width="stretch"):
            jobs.retry(shared.settings(), job.id)
            st.rerun(scope="app")
        if job.active:
            st.progress(min(max(job.progress, 0.0), 1.0), text=job.message or "waiting to start")
        if job.error:
            st.error(job.error)
        lines = jobs.read_log(shared.settings(), job.id)
        if lines:
            with st.expander("Log"):
                st.code("\n".join(f"{shared.clock(when)}  {line}" for when, line in lines), language=None, height=300)


@st.fragment(run_every=job_parts.POLL_SECONDS)
def show_jobs() -> None:
    """Show all jobs, newest first, and keep them up to date."""
    found = jobs.list_jobs(shared.settings())
    if not found:
        st.info("No job yet. Evaluate a study on the page *Studies*.")
    for job in found:
        show_job(job)


shared.show_heading(
    "Jobs", "Jobs go on when this page, or the browser, is closed. What is finished is never computed a second time."
)
show_jobs()
