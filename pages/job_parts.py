"""The job of a study beside its page: found, said in words, followed without drawing the page again all the time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import streamlit as st

from core import jobs
from core.jobs import Job
from core.settings import Settings
from core.workflows import demo_folder
from core.workflows.results import results_stamp
from pages import access

SEEN = "seen"  # what the page shows, to notice when it is out of date
SEEN_AT = "seen_at"  # when it was drawn, seconds of a steady clock

DEMO_JOB = "core.workflows:demo"
EVALUATE_JOB = "core.workflows:evaluate"
THUMBNAIL_JOB = "core.workflows:draw_thumbnails"
EVALUATING = (EVALUATE_JOB, "core.workflows:generate_for_study")
POLL_SECONDS = 2.0  # between two looks at a job: one line of the sidebar
REFRESH_SECONDS = 15.0  # at least, between two drawings of a whole page while a job works
BRAINS_A_REFRESH = 6  # a page shows new brains of the demo by sixes


def is_demo(settings: Settings, path: str) -> bool:
    """Tell whether a study is the demo study."""
    return Path(path) == demo_folder(settings) / "study.toml"


def job_of(settings: Settings, path: str) -> Job | None:
    """Return the newest job that works, or worked, on a study."""
    demo = is_demo(settings, path)
    for job in jobs.list_jobs(settings):
        if job.function == DEMO_JOB and demo:
            return job
        if job.function in EVALUATING and job.arguments.get("study") == path:
            return job
    return None


def evaluate(settings: Settings, path: str, name: str) -> None:
    """Queue the evaluation of a study; the demo study is made first when needed."""
    if is_demo(settings, path):
        access.submit(settings, DEMO_JOB, {}, "Demo study")
    else:
        access.submit(settings, EVALUATE_JOB, {"study": path}, f"Evaluate {name}")


def job_line(job: Job) -> str:
    """Return what a job does at the moment, in words."""
    if job.state == "queued":
        return f"{job.title}: waiting to start"
    return f"Still computing: {job.message or 'starting'}"


def follow_job(settings: Settings, path: str) -> None:
    """Show how far the study's job is, in the sidebar; draw the page again when there is something new to show."""
    job = job_of(settings, path)
    st.session_state[SEEN], st.session_state[SEEN_AT] = _state(settings, path, job), time.monotonic()
    with st.sidebar:
        st.fragment(_follow, run_every=POLL_SECONDS if job and job.active else None)(settings, path)


def _follow(settings: Settings, path: str) -> None:
    job = job_of(settings, path)
    if job and job.active:
        jobs.ensure_runner(settings)  # an open page revives a runner that was killed
        st.progress(min(max(job.progress, 0.0), 1.0), text=job_line(job))
    elif job and job.state == "failed":
        st.error("The last evaluation failed. See the page *Jobs*.", icon=":material/error:")
    elif job and job.state == "cancelled":
        st.warning("The last evaluation was cancelled. Run it again on the page *Jobs*.", icon=":material/cancel:")
    state = _state(settings, path, job)
    if is_due(st.session_state.get(SEEN, state), state, time.monotonic() - st.session_state.get(SEEN_AT, 0.0)):
        st.session_state[SEEN] = state
        st.rerun()


def is_due(seen: tuple[Any, ...], state: tuple[Any, ...], age: float) -> bool:
    """Tell whether a page is to be drawn again: at once when its job began or ended, else not too often.

    Parameters
    ----------
    seen, state : tuple
        What the page shows, and what there is: whether a job works first.
    age : float
        Seconds since it was drawn.
    """
    return seen != state and (seen[0] != state[0] or age >= REFRESH_SECONDS)


def _state(settings: Settings, path: str, job: Job | None) -> tuple[Any, ...]:
    """Return what makes a page out of date: a job that began or ended, its step, results, brains of the demo."""
    brains = 0
    if job and job.active and job.function == DEMO_JOB:
        brains = len(list(Path(path).parent.glob("*/*.nii.gz"))) // BRAINS_A_REFRESH
    step = job.message.partition(":")[0] if job else ""
    ended = (job.id, job.state) if job and not job.active else ("", "active" if job else "")
    return ended, step, results_stamp(settings, path), brains
