"""Generators: train one of the six, watch it, sample from it, and have the samples evaluated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import streamlit as st

from core import jobs, plots
from core.errors import SynthScopeError
from core.generators import GENERATORS
from core.jobs import Job
from core.study import Study, read_study
from core.workflows import case_name, curve_of, demo_checkpoint, previews_of, samples_folder
from pages import access, job_parts, look, shared

ESTIMATE_JOB = "core.workflows:estimate_generation"
SAMPLE_JOB = "core.workflows:generate_for_study"
TRAIN_JOB = "core.workflows:train_generator"
DEMO = "Trained by this project for the demo (half grid)"
OWN = "My own checkpoint"


def pick_model(key: str) -> str:
    """Let the user choose a generator; say how it works and who published it."""
    model: str = st.selectbox("Generator", list(GENERATORS), format_func=lambda n: GENERATORS[n].label, key=key)
    card = GENERATORS[model]
    st.caption(f"{card.card} {card.reference}")
    return model


def pick_checkpoint(model: str, study: Study) -> str:
    """Ask for weights: those that come with the installation, or a file or folder of one's own."""
    ready = demo_checkpoint(model) if study.grid.name == "half" else None
    choice = st.radio("Checkpoint", [DEMO, OWN] if ready else [OWN], horizontal=True, key=f"checkpoint_{bool(ready)}")
    if choice == DEMO:
        return str(ready)
    help_text = "A weight file, or a folder with the files of all parts: safetensors, .pt, .pth, .bin."
    return st.text_input("Path of the checkpoint", key="checkpoint_path", help=help_text).strip()


def newest(function: str, **arguments: Any) -> Job | None:
    """Return the newest job of a function whose arguments include these."""
    return next(iter(jobs.list_jobs(shared.settings(), function=function, **arguments)), None)


@st.fragment(run_every=job_parts.POLL_SECONDS)
def show_estimate(model: str, grid: str, steps: int, n: int) -> None:
    """Say what the samples will cost, from one sample measured on this machine; measure it when asked."""
    arguments = {"model": model, "grid": grid, "steps": steps}
    job = newest(ESTIMATE_JOB, **arguments)
    if job and job.active:
        st.caption("Measuring one sample on this machine …")
        return
    if job and job.state == "done":
        workers = max(1, shared.settings().workers)
        seconds = job.result["seconds"]
        whole = look.span(seconds * -(-n // workers))
        memory = job.result["memory"] * workers / 2**30
        st.markdown(
            f"About **{whole}** for {n} volumes ({look.span(seconds)} a volume, {workers} at a time) and "
            f"**{memory:.1f} GB** of memory, measured on this machine; start and evaluation come on top."
        )
        return
    if job and job.error:
        st.warning(f"The cost could not be measured. {job.error}")
    button, words = st.columns([1, 3], vertical_alignment="center")
    words.caption(
        "What the samples cost is not known yet. This makes one volume with random weights in the background and notes "
        f"its time and memory: {how_long(model, grid)}. The page *Jobs* can stop it."
    )
    if button.button("Measure the cost", key="measure", icon=":material/timer:", **access.lock("editor")):
        access.submit(shared.settings(), ESTIMATE_JOB, arguments, f"Measuring {GENERATORS[model].label}")
        st.rerun()


def how_long(model: str, grid: str) -> str:
    """Say how long one volume takes, before it is known of this machine."""
    quick = grid == "half" or GENERATORS[model].one_pass
    return "less than a minute" if quick else "minutes on a graphics card, maybe hours without one"


def show_sampling(study: Study) -> None:
    """Ask what to sample, and start it."""
    model = pick_model("sample_model")
    checkpoint = pick_checkpoint(model, study)
    one_pass = GENERATORS[model].one_pass
    columns = st.columns(3 if one_pass else 4)
    n = int(columns[0].number_input("Volumes", 1, 10_000, 24, key="sample_n"))
    seed = int(columns[1].number_input("Seed", 0, value=0, key="sample_seed", help="Same seed, same volumes."))
    help_text = "Sampling steps; 0 takes the model's own number."
    steps = 0 if one_pass else int(columns[2].number_input("Steps", 0, 1000, 0, key="sample_steps", help=help_text))
    label = f"{GENERATORS[model].label} seed {seed}" + (f", {steps} steps" if steps else "")
    name = columns[-1].text_input("Name of the cohort", label, key=f"sample_name_{label}").strip()
    show_estimate(model, study.grid.name, steps, n)
    ready = bool(checkpoint and name)
    lock = access.lock("editor", disabled=not ready, help=None if ready else "Name a checkpoint.")
    if st.button("Sample and evaluate", type="primary", **lock):
        arguments = {"study": str(study.path), "name": name, "model": model, "checkpoint": checkpoint}
        arguments |= {"n": n, "seed": seed, "steps": steps}
        access.submit(shared.settings(), SAMPLE_JOB, arguments, f"{name}: {n} samples")
        st.rerun()


def show_training(study: Study) -> None:
    """Ask what to train, and start it."""
    model = pick_model("train_model")
    first, second = st.columns(2)
    own = str(study.path) if study.training else ""
    data = first.text_input("Training volumes", own, key="train_data", help="A folder, or a study with such a cohort.")
    name = re.sub(r"\W+", "-", study.name).strip("-").lower()
    suggestion = str(Path.home() / f"synthscope-{name}-{model}")
    out = second.text_input(
        "Folder of the run", suggestion, key=f"train_out_{name}_{model}", help="Checkpoint, curve, previews."
    )
    columns = st.columns(4)
    grid = columns[0].selectbox("Grid", ["half", "full"], key="train_grid", help="full: the published network, 1 mm.")
    steps = int(columns[1].number_input("Steps", 1, 10_000_000, 1000, key="train_steps"))
    seed = int(columns[2].number_input("Seed", 0, value=0, key="train_seed"))
    batch = int(columns[3].number_input("Batch", 0, value=0, key="train_batch", help="0 takes the model's own."))
    if st.button("Train, or go on", type="primary", **access.lock("editor", disabled=not (data and out))):
        arguments = {"model": model, "data": data, "out": out, "grid": grid, "steps": steps, "seed": seed}
        arguments |= {"batch": batch, "resume": True, "preview_every": max(1, steps // 20)}
        access.submit(shared.settings(), TRAIN_JOB, arguments, f"Training {GENERATORS[model].label}")
        st.rerun()


def show_samples(job: Job) -> None:
    """Go to the viewer and show the first sample of a finished job."""
    arguments = job.arguments
    st.session_state[shared.STUDY] = arguments["study"]
    first = case_name(arguments["model"], arguments["seed"], 0)
    shared.open_viewer(arguments["name"], first)


def show_run(job: Job) -> None:
    """Show one training or sampling job: how far it is, its losses, its newest brains."""
    training = job.function == TRAIN_JOB
    with st.container(border=True):
        title, button = st.columns([5, 1], vertical_alignment="center")
        title.markdown(f"**{job.title}** · {job.state} · {look.clock(job.created)}")
        about = "Ends after the step it is at. Everything done so far is kept."
        lock = access.lock("editor", disabled=job.active and job.cancelled, help=about)
        if job.active:
            word = "Stopping" if job.cancelled else "Stop"
            if button.button(word, key=f"stop_{job.id}", width="stretch", **lock):
                access.cancel(shared.settings(), job.id)
            st.progress(min(max(job.progress, 0.0), 1.0), text=job.message or "waiting to start")
        elif job.state != "done" and button.button("Go on", key=f"again_{job.id}", width="stretch", **lock):
            access.retry(shared.settings(), job.id)
        if job.state == "done" and not training and button.button("View", key=f"view_{job.id}", width="stretch"):
            show_samples(job)
        if job.error:
            st.error(job.error)
        place = job.arguments["out"] if training else ""
        place = place or samples_folder(shared.settings(), job.arguments["study"], job.arguments["name"])
        rows = curve_of(place) if training else []
        if rows:
            look.show_figure(plots.loss_curves(rows), key=f"losses_{job.id}")
        pictures = previews_of(place, 3)
        for column, (caption, picture) in zip(st.columns(3), pictures, strict=False):
            column.image(picture, caption=caption, width="stretch")


@st.fragment(run_every=job_parts.POLL_SECONDS)
def show_runs() -> None:
    """Show training and sampling, newest first, and keep it up to date."""
    found = [job for job in jobs.list_jobs(shared.settings()) if job.function in (TRAIN_JOB, SAMPLE_JOB)]
    if not found:
        st.info("Nothing was trained or sampled here yet.", icon=":material/info:")
    for job in found[:10]:
        show_run(job)


shared.show_heading(
    "Generators",
    "Train a generator, sample from it, and have the samples judged. Work goes on when the page is closed.",
)
try:
    chosen = read_study(shared.study_path())
except SynthScopeError as problem:
    look.show_error(problem)
    st.stop()
sampling, training_tab = st.tabs(["Sample", "Train"])
with sampling:
    show_sampling(chosen)
with training_tab:
    show_training(chosen)
st.subheader("Runs")
show_runs()
