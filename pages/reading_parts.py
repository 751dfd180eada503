"""Parts of the reading room: the form of a session, the reading panel, what the ratings say."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import pandas as pd
import streamlit as st

from core import plots, readings
from core.encoders import label_named
from core.errors import SynthScopeError
from core.plots.readings import SCALE_NAMES
from core.readings import MODES, SCALES, Rating, Session
from core.study import Study
from core.tables import csv_text
from core.workflows import Results, reader_study
from pages import access, look, reads, selection, shared, similarity_parts, viewer_choices

SESSION = "reading"  # in the address, so that a reload goes on
UNBLINDED = "unblinded"  # fingerprints of the studies whose results were opened without reading
INTRODUCTION = """
You see brains without their names and say which are real. Everything goes by keyboard or mouse; each answer is saved at
once, a reload or a pause loses nothing, and nothing tells before the end whether you were right.

Enter a name to begin, or the name of an earlier session to go on with it.
"""
REPEATS_HELP = "So many cases come a second time, unannounced: how far a reader agrees with oneself."
MODE_NAMES = {"rating": "Rate one brain at a time", "forced choice": "Choose the real one of two"}


@cache
def panel() -> Any:
    """Register the reading panel once a process."""
    html, css, js = (look.asset(f"reader/panel.{kind}") for kind in ("html", "css", "js"))
    return st.components.v2.component("reading_panel", html=html, css=css, js=js, isolate_styles=False)


# -- a session: begin, go on -------------------------------------------------------------------------------------------


def say_unknown(session: str) -> None:
    """Say that the session of a link is not there, in the same words when it is another reader's."""
    shown = session[:40].replace("`", "'")
    st.warning(
        f"The link asks for a session that you have not begun in this study: `{shown}`. Enter your name on *Read* to "
        "go on with one of yours, or choose the study that the link was made in.",
        icon=":material/link_off:",
    )


def show_entry(study: Study, known: list[Session]) -> None:
    """Ask who reads and what; begin a session, or go on with one."""
    fakes = {cohort.name: cohort for cohort in study.synthetic if cohort.cases}
    if not fakes or not study.real.cases:
        st.info("A reading session needs a real and a synthetic cohort with volumes.", icon=":material/info:")
        return
    if readings.fingerprint(study) in st.session_state.get(UNBLINDED, ()):
        st.warning(
            "You have opened the results of this study, so a reading of yours would no longer be blind. Another reader "
            "begins in a browser window of their own.",
            icon=":material/visibility:",
        )
        return
    reader = access.user() or ask_reader()
    if not reader:
        st.markdown(INTRODUCTION)
        return
    mine = [session for session in known if session.reader == reader]
    if mine and not show_earlier(reader, mine):
        return
    show_form(study, list(fakes), reader)


def ask_reader() -> str:
    """Ask who reads; "" until there is a name."""
    first, second = st.columns(2)
    name = first.text_input("Reader", key="reader_name", help="Name or initials.")
    help_text = "Only when two readers have one name: anything that differs, for example the department."
    key = second.text_input("Key (optional)", key="reader_key", help=help_text)
    return readings.reader_name(name, key) if name.strip() else ""


def show_earlier(reader: str, mine: list[Session]) -> bool:
    """Ask whether this is the same reader; return whether a further session is wanted."""
    question = " Go on, or are you another reader of the same name?" if not access.user() else ""
    st.warning(f"**{reader}** has read this study before.{question}")
    for session in mine[:5]:
        state = "complete" if session.complete else f"{session.position} of {len(session.plan)} saved"
        label = f"{MODE_NAMES[session.mode]}, {look.clock(session.created)}: {state}"
        if st.button(("See the results: " if session.complete else "Go on: ") + label, key=f"go_{session.id}"):
            st.query_params[SESSION] = session.id
            st.rerun()
    choices = ["I read once more"] if access.user() else ["I am another reader", "I read once more"]
    choice = st.radio("Otherwise", choices, index=None, horizontal=True, key="who")
    if choice == "I am another reader":
        st.info("Enter a key above that tells you apart, for example your department.")
    return choice == "I read once more"


def show_form(study: Study, fakes: list[str], reader: str) -> None:
    """Ask what is read and begin."""
    names = look.labels_of(study.cohorts)
    mode = st.radio("Task", MODES, format_func=MODE_NAMES.__getitem__, horizontal=True, key="reading_mode")
    chosen = st.multiselect("Synthetic cohorts", fakes, fakes, format_func=names.__getitem__, key="reading_cohorts")
    columns = st.columns(3)
    n = int(columns[0].number_input("Cases", 2, 500, 20, key="reading_n", help="Half of them real, in rating."))
    share = columns[1].number_input("Hidden repeats (%)", 0, 100, 20, 5, key="reading_repeats", help=REPEATS_HELP)
    help_text = (
        "Readers with one seed see the same cases, each in an order of their own; only then can they be compared."
    )
    seed = int(columns[2].number_input("Seed", 0, value=study.settings.seed, key="reading_seed", help=help_text))
    if st.button("Begin", type="primary", **access.lock("reader")):
        try:
            plan = readings.make_plan(study, chosen, mode, n, share / 100, seed, reader)
        except SynthScopeError as error:
            look.show_error(error)
            return
        st.query_params[SESSION] = access.start_session(shared.settings(), study, reader, mode, plan, seed)
        st.rerun()


# -- reading -----------------------------------------------------------------------------------------------------------


@st.cache_data(max_entries=24, show_spinner=False)
def cached_volumes(path: str, study: Study, session: str, position: int) -> list[dict[str, Any]]:
    """Return the blinded volumes of a position."""
    del path
    return reader_study.blinded_volumes(
        shared.settings(), study, readings.read_session(shared.settings(), session), position
    )


def show_panel(study: Study, session: Session) -> None:
    """Show the next case, and save its rating as soon as it is given."""
    if session.study_name != study.name:
        st.info(
            f"This study was called “{session.study_name}” when the session began. Its name changed; "
            "the ratings belong to the session and are all kept."
        )
    if message := st.session_state.pop("reading_problem", None):
        st.warning(message[:1].upper() + message[1:], icon=":material/warning:")
    position, total = session.position, len(session.plan)
    left, right = st.columns([6, 1], vertical_alignment="bottom")
    left.progress(position / total, text=f"{session.reader} · case {position + 1} of {total}")
    if right.button("Pause", help="Everything saved is kept. Enter the same name to go on.", width="stretch"):
        shared.clear_address()
        st.rerun()
    token = f"{session.id}-{position}"
    try:
        volumes = cached_volumes(str(study.path), study, session.id, position)
    except SynthScopeError:
        # The message of the error would name the case, and so tell what it is.
        st.warning("This case can no longer be read: its file, or its cohort's name, changed since the session began.")
        if st.button("Leave it out and go on", type="primary"):
            save(session, position, {"answer": "skipped", "note": "file could not be read"})
            st.rerun()
        return
    # A rating that could not be saved is offered again, hence a new attempt.
    data = {"token": token, "mode": session.mode, "volumes": volumes, "radiological": viewer_choices.is_radiological()}
    data["attempt"] = st.session_state.get("reading_attempt", 0)
    given = panel()(data=data, key="reading_panel", on_rating_change=lambda: None).rating
    if given:  # its position is an earlier one when another tab has gone on: saving it says so
        save(session, int(given["token"].rpartition("-")[2]), given)
        st.rerun()
    if position + 1 < total:
        with suppress(SynthScopeError):  # the next case is read while this one is judged
            cached_volumes(str(study.path), study, session.id, position + 1)


def save(session: Session, position: int, given: dict[str, Any]) -> None:
    """Save a rating; what is wrong is shown above the next case."""
    scales = {name: given.get(name) for name in SCALES}
    marks = tuple(tuple(mark) for mark in given.get("marks", ()))
    rating = Rating(given["answer"], **scales, marks=marks, note=given.get("note", ""), seconds=given.get("seconds", 0))
    try:
        access.save_rating(shared.settings(), session, position, rating)
    except SynthScopeError as error:
        st.session_state["reading_problem"] = str(error)
        st.session_state["reading_attempt"] = st.session_state.get("reading_attempt", 0) + 1


# -- results -----------------------------------------------------------------------------------------------------------

SUMMARY_COLUMNS = {
    "reader": look.text("Reader"),
    "n": look.number("Cases", "First showings that were judged.", "%d"),
    "accuracy": look.number("Accuracy", "Share of right answers; 50 % is guessing.", "percent"),
    "ci_low": look.number("95 % from", "Wilson interval; over all readers with the cases as clusters.", "percent"),
    "ci_high": look.number("95 % to", "Wilson interval; over all readers with the cases as clusters.", "percent"),
    "d_prime": look.number("d′", "0: real and synthetic are not told apart. Log-linear correction.", "%.2f"),
    "d_low": look.number("d′ from", "Lower end of the 95 % interval.", "%.2f"),
    "d_high": look.number("d′ to", "Upper end of the 95 % interval.", "%.2f"),
    "repeats": look.number("Repeats", "Hidden repeats answered.", "%d"),
    "kappa_answer": look.number("κ answer", "Cohen's κ of a reader with oneself on hidden repeats.", "%.2f"),
    "kappa_realism": look.number("κ realism", "The same for realism, quadratic weights.", "%.2f"),
    "seconds": look.number("Seconds", "Median time a case.", "%.0f"),
}
CONFUSION_COLUMNS = {
    "cohort": look.text("Cohort", width=190),
    "n": look.number("Answers", "First showings, all readers.", "%d"),
    "called_real": look.number("Called real", "", "%d"),
    "called_synthetic": look.number("Called synthetic", "", "%d"),
    "right": look.number("Right", "", "%d"),
    "accuracy": look.number("Accuracy", "", "percent"),
    "ci_low": look.number("95 % from", "Wilson interval, cases as clusters.", "percent"),
    "ci_high": look.number("95 % to", "Wilson interval, cases as clusters.", "percent"),
    "skipped": look.number("Skipped", "Not judged.", "%d"),
}
CASE_COLUMNS = {
    "case": look.text("Case"),
    "cohort": look.text("Cohort", "What it is.", 180),
    "answer": look.text("Answer"),
    "correct": look.text("Was"),
    **{name: look.number(words, "1 worst, 5 best.", "%d") for name, words in SCALE_NAMES.items()},
    "note": look.text("Note"),
    "reader": look.text("Reader"),
}
AGREEMENT_COLUMNS = {
    "what": look.text("Rating", width=150),
    "alpha": look.number("Krippendorff's α", "1: agreement, 0: chance. Nominal answers, ordinal scales.", "%.2f"),
    "readers": look.number("Readers", "", "%d"),
    "cases": look.number("Cases", "Judged by two readers or more.", "%d"),
}
CORRELATION_COLUMNS = {
    "metric": look.text("Score", width=230),
    "encoder": look.text("Encoder", "The network that turns a volume into features.", 210),
    "variant": look.text("Variant", "Corrected, or computed as published.", 100),
    "rho": look.number("Spearman's ρ", "1: readers and score order the cohorts alike.", "%+.2f"),
    "p_value": look.number("p", "Permutation test; exact up to eight cohorts.", "%.2g"),
    "tau": look.number("Kendall's τ", "", "%+.2f"),
    "cohorts": look.number("Cohorts", "", "%d"),
}


def may_see_results(study: Study, known: list[Session], current: Session | None) -> bool:
    """Tell whether results may be shown: to who has read, or will not read; until then, ask."""
    opened = st.session_state.setdefault(UNBLINDED, set())
    name, key = (" ".join(str(st.session_state.get(field, "")).split()) for field in ("reader_name", "reader_key"))
    reader = access.user() or (readings.reader_name(name, key) if name else "")
    mine = [s for s in known if reader and s.reader == reader]
    done = bool(current and current.complete) or any(session.complete for session in mine)
    if done or readings.fingerprint(study) in opened or not any(session.complete for session in known):
        return True
    st.info(
        "**Closed until you have read.** What other readers said would colour your own answers. The results open when "
        "your session is complete; if it is already, enter your name on *Read*.",
        icon=":material/lock:",
    )
    if st.toggle("I will not read this study: open the results", key="will_not_read"):
        opened.add(readings.fingerprint(study))
        st.rerun()
    return False


def show_results(study: Study, results: Results, known: list[Session], current: Session | None) -> None:
    """Show what complete sessions say, one task at a time; first the one that was just read."""
    complete = [session for session in known if session.complete]
    if not complete:
        st.info("Results appear here when a session is complete; until then nothing is given away.")
        return
    modes = [mode for mode in MODES if any(session.mode == mode for session in complete)]
    start = modes.index(current.mode) if current else 0
    mode = st.radio("Task read", modes, start, format_func=MODE_NAMES.__getitem__, horizontal=True, key="results_mode")
    chosen = [session for session in complete if session.mode == mode]
    ratings = readings.read_ratings(shared.settings(), chosen, study.real.name)
    st.caption(f"Complete sessions: {len(chosen)}. A case that was left out counts nowhere.")
    of = (*reads.basis(study), mode, *(session.id for session in chosen))  # complete sessions do not change
    real = study.real.name
    summary = reads.kept("readers", of, lambda: reader_study.reader_summary(ratings, real))
    look.show_table(summary, SUMMARY_COLUMNS)
    show_by_cohort(study, ratings, mode, of)
    show_agreement(ratings, mode, of)
    show_correlation(study, results, ratings, of)
    show_each(study, ratings, mode)
    access.download("Download all ratings (CSV)", csv_text(ratings), "readings.csv", "text/csv")


def show_each(study: Study, ratings: pd.DataFrame, mode: str) -> None:
    """Show what was said of each case, mistakes first; ticked cases are selected and can be opened."""
    st.subheader("Case by case")
    known = {(cohort.name, case.case_id) for cohort in study.cohorts for case in cohort.cases}
    found = [pair in known for pair in zip(ratings["cohort"], ratings["case"], strict=True)]
    rows = ratings[found].sort_values(["correct", "cohort", "case"], kind="stable", na_position="last")
    pairs = list(zip(rows["cohort"], rows["case"], strict=True))
    right = rows["correct"].map({True: "right", False: "wrong"}).fillna("not judged")
    table = rows.assign(cohort=rows["cohort"].map(look.labels_of(study.cohorts)), correct=right)
    names = ["case", "cohort", "answer", "correct", *(SCALES if mode == "rating" else ()), "note", "reader"]
    selection.show_cases(table[names], CASE_COLUMNS, pairs, "readings_cases", height=290)


def show_by_cohort(study: Study, ratings: pd.DataFrame, mode: str, of: tuple[Any, ...]) -> None:
    """Show what each cohort was taken for, and how it was rated."""
    names, order = look.labels_of(study.cohorts), [cohort.name for cohort in study.cohorts]
    st.subheader("By cohort")
    table = reads.kept("confusion of readers", of, lambda: reader_study.confusion(ratings, order))
    table = table.assign(cohort=table["cohort"].map(names))
    if mode == "forced choice":
        table = table.drop(columns=["called_real", "called_synthetic"])
    wraps = table["cohort"].str.len().max() > look.LABEL_WIDTH
    look.show_table(table, CONFUSION_COLUMNS, row_height=look.TALL_ROW if wraps else None)
    if mode == "rating":
        wrapped = {name: look.wrapped(label) for name, label in names.items()}

        def draw() -> Any:
            return plots.likert_bars(reader_study.likert_shares(ratings, order), wrapped)

        look.show_kept("likert", of, draw)
        st.caption("Share of the ratings from 1 (worst) to 5 (best).")


def show_agreement(ratings: pd.DataFrame, mode: str, of: tuple[Any, ...]) -> None:
    """Show how far readers agree."""
    st.subheader("Between readers")
    table = reads.kept("agreement of readers", of, lambda: reader_study.reader_agreement(ratings))
    table = table.assign(what=table["what"].map({"answer": "Answer", **SCALE_NAMES}))
    look.show_table(table.head(1) if mode == "forced choice" else table, AGREEMENT_COLUMNS)
    if table["readers"].max() < 2:
        st.caption("One reader so far: agreement needs a second one with the same seed.")


def show_correlation(study: Study, results: Results, ratings: pd.DataFrame, of: tuple[Any, ...]) -> None:
    """Show which scores order the cohorts as the readers do."""
    st.subheader("Readers and scores")

    def correlate() -> pd.DataFrame:
        return in_words(reader_study.correlate_with_metrics(ratings, results, study.real.name, study.settings.seed))

    table = reads.kept("readers and scores", (*of, study.settings.seed), correlate)
    look.show_table(table, CORRELATION_COLUMNS, height=290)
    st.caption(
        "Order of the cohorts by readers against their order by each score, turned so that higher is better. With so "
        "few cohorts only strong correlations can be told from chance, and p is not corrected for the number of scores."
    )


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return scores with the names of the registries instead of their keys."""
    keys = table["metric"].where(table["variant"] == "corrected", table["metric"] + "/" + table["variant"])
    return table.assign(
        metric=keys.map(similarity_parts.metric_label),
        encoder=table["encoder"].map(label_named).replace("", "volumes themselves"),
        variant=table["variant"].map(similarity_parts.VARIANTS),
    )
