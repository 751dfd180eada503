"""Jobs: what is computed in the background, how far it is, and what went wrong."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import streamlit as st

from core import audit, jobs
from core.jobs import Job
from pages import access, job_parts, look, shared

SHOWN = 200  # records of what people did
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


def show_job(job: Job, lock: dict[str, Any]) -> None:
    """Show one job with its progress, error, log and buttons."""
    label, colour, icon = STATES[job.state]
    with st.container(border=True):
        title, button = st.columns([5, 1], vertical_alignment="center")
        title.markdown(f"**{job.title}** :{colour}-badge[{icon} {label}]")
        facts = [f"submitted {look.clock(job.created)}", duration(job)]
        facts += [f"attempt {job.attempts}"] if job.attempts > 1 else []
        facts += [f"{key}: {value}" for key, value in job.result.items() if isinstance(value, int) and key != "memory"]
        title.caption(" · ".join(fact for fact in facts if fact))
        if job.active and button.button("Cancel", key=f"cancel_{job.id}", width="stretch", **lock):
            access.cancel(shared.settings(), job.id)
            st.rerun(scope="app")
        if not job.active and button.button("Run again", key=f"retry_{job.id}", width="stretch", **lock):
            access.retry(shared.settings(), job.id)
            st.rerun(scope="app")
        if job.active:
            st.progress(min(max(job.progress, 0.0), 1.0), text=job.message or "waiting to start")
        if job.error:
            st.error(job.error)
        lines = jobs.read_log(shared.settings(), job.id)
        if lines:
            with st.expander("Log"):
                st.code("\n".join(f"{look.clock(when)}  {line}" for when, line in lines), language=None, height=300)


@st.fragment(run_every=job_parts.POLL_SECONDS)
def show_jobs() -> None:
    """Show all jobs, newest first, and keep them up to date."""
    found = jobs.list_jobs(shared.settings())
    if not found:
        st.info("No job yet. Evaluate a study on the page *Studies*.")
    lock = access.lock("editor")
    for job in found:
        show_job(job, lock)


def show_audit() -> None:
    """Show what people did, to editors."""
    found = audit.latest(shared.settings(), SHOWN)
    if not found:
        st.caption("Nothing was recorded yet.")
        return
    rows = [{name: record.pop(name, "") for name in ("when", "who", "action")} | {"what": record} for record in found]
    columns = {"when": look.text("When (UTC)"), "who": look.text("Who", "Empty without login.")}
    columns |= {"what": look.text("What", width="large")}
    table = pd.DataFrame(rows)
    table["what"] = [", ".join(f"{key}: {value}" for key, value in what.items()) for what in table["what"]]
    look.show_table(table, columns, key="audit")
    st.caption(f"The last {len(table)} of them; the file has all.")
    access.download(
        "Download the record", audit.audit_file(shared.settings()).read_bytes, "audit.jsonl", "application/jsonl"
    )


shared.show_heading(
    "Jobs", "Jobs go on when this page, or the browser, is closed. What is finished is never computed a second time."
)
show_jobs()
if access.may("editor"):
    with st.expander("Who did what", icon=":material/history:"):
        show_audit()
