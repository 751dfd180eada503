"""What all pages share: session keys, the study guard, cached reads, job status, tables and labels."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import streamlit as st
from streamlit.errors import StreamlitAPIException

from core import jobs, plots
from core.errors import InputError, SynthScopeError
from core.jobs import Job
from core.segmentation import SEGMENTERS
from core.settings import Settings, from_environment
from core.study import Cohort, Study, read_study, seen_of, times_of
from core.volume import Volume
from core.workflows import Results, demo_folder, known_studies, load_case, load_case_labels, read_results, to_compute
from core.workflows.results import cohort_verdicts, rank_scores, results_folder, source_of
from core.workflows.results import results_stamp as stamp_of
from core.workflows.verdicts import Verdict, verdicts
from core.workflows.viewing import case_files, png_file, thumbnail
from pages import access, job_parts, niivue
from pages.job_parts import DEMO_JOB

Stamp = tuple[tuple[str, int], ...]  # files and when they were written

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

LOOK_SECONDS = 2.0  # until new files of a study are seen
STUDY_SECONDS = 60.0  # until those are seen that come into a folder without cases
FEW_COHORTS = 4  # as many fit into half a page with their numbers
LABEL_WIDTH = 36  # characters of a cohort's label on one line of an axis
FLAT_ROW = 21  # pixels: about that of a heatmap row
TALL_ROW = 66  # pixels: above 64 long text wraps
COHORT_WIDTH = 260  # pixels of a table's cohort column
TEXT_COLOURS = {"light": "#0B0F14", "dark": "#E8EBEE"}  # those of .streamlit/config.toml
GOOD_END = {"lower": "↓ lower is better", "higher": "↑ higher is better", "match real": "→ closest to the floor"}
GATED = "Hatched, or headed *fails the gate*: segmentations too unreliable for an anatomical score, not relied upon."
SIGN = "0 is best. Positive: larger in real brains. Negative: larger in synthetic brains."
NOISE_HELP = (
    "How far the segmentation engine alone can move d: the same anatomy rendered again. The largest over the cohorts; "
    "a |d| below it may be the engine, not anatomy. –: not known for this engine."
)
FLOOR_HELP = "Real volumes against real volumes at the same N: what a perfect generator would score."


# -- settings and study ------------------------------------------------------------------------------------------------


def settings() -> Settings:
    """Return the settings, or show what is wrong with them and stop."""
    try:
        return from_environment()
    except SynthScopeError as error:
        show_error(error)
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
        study = cached_study(path, study_version(path))
    except InputError as error:
        if is_demo(path):
            _explain_demo(job_of(path))
        else:
            show_error(error)
            st.caption("Choose another study in the sidebar, or correct this one's study.toml.")
        st.stop()
    return study, cached_results(path, results_stamp(path))


def outdated(study: Study) -> list[str]:
    """Return what an evaluation of a study has to compute, see `core.workflows.to_compute`; nothing while one runs."""
    lines: list[str] = kept_of_files("to compute", study, lambda: to_compute(settings(), study))
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
            "brains appear here within a minute; all results take some minutes. You can look around meanwhile.",
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
    elif cached_results(path, results_stamp(path)).provenance.get("complete"):
        st.warning(f"{what} could not be computed. The reasons are listed below.", icon=":material/warning:")
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
            table = pd.DataFrame(gaps)[["cohort", "what", "reason"]].replace({"cohort": labels_of(study.cohorts)})
            columns = {"cohort": text("Cohort", width=COHORT_WIDTH), "reason": text("Why", width="large")}
            show_table(table, columns, row_height=TALL_ROW)


# -- cached reads ------------------------------------------------------------------------------------------------------


def results_stamp(path: str) -> Stamp:
    """Return the names and times of a study's result files, which change whenever a result does."""
    return stamp_of(settings(), path)


def study_version(path: str) -> int:
    """Return a number that changes with the study file."""
    file = Path(path)
    return file.stat().st_mtime_ns if file.exists() else 0


def cached_study(path: str, version: int) -> Study:
    """Read a study, which looks for the files of every cohort: again once files have come or gone."""
    study, seen, read = _known_study(path, version)
    if files_changed(path, read, seen):
        _known_study.clear(path, version)
        study, *_ = _known_study(path, version)
    return study


@st.cache_resource(max_entries=16, ttl=STUDY_SECONDS, show_spinner=False)
def _known_study(path: str, version: int) -> tuple[Study, Stamp, int]:
    del version
    begin = time.time_ns()
    study = read_study(path)
    seen = seen_of(study)
    return study, seen if all(changed < begin for _, changed in seen) else (), begin  # (): it changed meanwhile


@st.cache_resource(max_entries=16, ttl=LOOK_SECONDS, show_spinner=False)
def files_changed(path: str, read: int, _seen: Stamp) -> bool:
    """Look whether the folders of a study changed since it was ``read``: once for all who look within some seconds."""
    del path, read
    return not _seen or times_of(_seen) != _seen


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_ranks(path: str, stamp: Stamp) -> pd.DataFrame:
    """Rank the cohorts by every score."""
    return rank_scores(cached_results(path, stamp))


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_verdicts(path: str, stamp: Stamp, version: int) -> list[Verdict]:
    """Judge every synthetic cohort; ``version`` is that of the study file."""
    return verdicts(cached_study(path, version), cached_results(path, stamp))


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_results(path: str, stamp: Stamp) -> Results:
    """Read a study's results, not to be written into; ``stamp`` makes new files be read again."""
    del stamp
    return read_results(settings(), path)


@st.cache_resource(max_entries=512, show_spinner=False)
def kept(what: str, of: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    """Return what ``_make`` makes of the results and choices in ``of``: made once, and not to be written into.

    ``of`` begins with `basis` where it is made of results.
    """
    return _make()


def basis(study: Study) -> tuple[Any, ...]:
    """Return what tables and figures of a study change with: its results and the names of its cohorts."""
    path = str(study.path)
    return path, results_stamp(path), tuple(cohort.label for cohort in study.cohorts)


def kept_of_files(what: str, study: Study, make: Callable[[], Any]) -> Any:
    """Return what is made of a study's results and files, which may change while the results do not; see `kept`."""
    # Kept beside the study, whose id is then that of no other one.
    _, made = kept(what, (*basis(study), id(study)), lambda: (study, make()))
    return made


def counts_of(study: Study, results: Results) -> pd.DataFrame:
    """Return what `cohort_verdicts` counts for every cohort of the study, by name; not to be written into."""
    names = [cohort.name for cohort in study.cohorts]
    return kept("counts", basis(study), lambda: cohort_verdicts(results, names))


@st.cache_data(max_entries=12, show_spinner=False)
def cached_case(path: str, cohort: str, case: str, version: int) -> tuple[Volume, Volume | None]:
    """Load a volume and its label map; ``version`` makes a changed file be read again."""
    del version
    study = cached_study(path, study_version(path))
    return load_case(settings(), study, cohort, case), load_case_labels(settings(), study, cohort, case)


@st.cache_resource(max_entries=512, show_spinner=False)
def cached_planes(path: str, cohort: str, case: str, version: int) -> dict[str, bytes]:
    """Return the three middle planes of a case as PNG files."""
    del version
    planes = thumbnail(settings(), source_of(settings(), cached_study(path, study_version(path)), cohort, case))
    return {name: png_file(plane) for name, plane in planes.items()}


@st.cache_data(max_entries=64, show_spinner=False)
def cached_files(path: str, cohort: str, case: str, version: int) -> tuple[bytes, bytes | None]:
    """Return a case and its label map as the viewer's files."""
    del version
    return case_files(settings(), cached_study(path, study_version(path)), cohort, case)


def case_version(study: Study, results: Results, cohort: str, case: str) -> int:
    """Return a number that changes with the case's file, or when its segmentation is known."""
    files = [found.path for found in study.cohort(cohort).cases if found.case_id == case]
    changed = max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
    return changed + len(results.volumes)


# -- names and colours -------------------------------------------------------------------------------------------------


def labels_of(cohorts: Iterable[Cohort]) -> dict[str, str]:
    """Return the name shown for each cohort: simulated and control cohorts are always called so."""
    return {cohort.name: cohort.label for cohort in cohorts}


def short_label(cohort: Cohort) -> str:
    """Return a cohort's name and what kind it is, where there is no room for more."""
    kind = cohort.origin.partition(":")[0].partition(",")[0]
    return f"{cohort.name} ({kind})" if kind else cohort.name


def wrapped(label: str, width: int = LABEL_WIDTH) -> str:
    """Break a cohort's label into lines, for the axis of a figure."""
    return "<br>".join(textwrap.wrap(label, width))


def colours_of(study: Study) -> dict[str, str]:
    """Return the colour of each cohort of the study, by the name shown: whole, short, or wrapped."""
    names = labels_of(study.cohorts)
    colours = {names[name]: colour for name, colour in plots.cohort_colours(names).items()}
    short = {short_label(cohort): colours[cohort.label] for cohort in study.cohorts}
    return colours | {wrapped(label): colour for label, colour in colours.items()} | short


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


def go_to(page: str, spot: str = "") -> None:
    """Go to a page, and there to a part of it; the address keeps the study, so that back is one step."""
    st.session_state[LANDING] = (spot, time.time())
    st.switch_page(f"pages/{page}.py", query_params={STUDY: study_id(study_path())})


def land() -> None:
    """Bring what another page leads to into view; in the sidebar, where it takes no room of the page."""
    if LANDING in st.session_state:
        with st.sidebar:
            niivue.land(*st.session_state[LANDING])


def viewer_button(cohort: str, case: str, key: str, beside: tuple[str, str] | None = None) -> None:
    """Show a button that opens a case in the viewer, beside a (cohort, case) when given."""
    what = f"{case} beside {beside[1]}" if beside else case
    if st.button(f"Open {what} in the viewer", key=key, icon=":material/view_in_ar:", type="primary"):
        open_viewer(cohort, case, [beside] if beside else [])


def words_of(point: Mapping[str, Any]) -> list[Any]:
    """Return the customdata of a point chosen in a plotly chart."""
    data = point.get("customdata", [])
    return [data[key] for key in sorted(data)] if isinstance(data, Mapping) else list(data)


# -- tables and messages -----------------------------------------------------------------------------------------------


def show_error(error: SynthScopeError) -> None:
    """Show an error in its three parts: what is wrong, where, and what to do."""
    what = error.what[:1].upper() + error.what[1:]
    lines = [f"**{what}**", f"Where: `{error.where}`" if error.where else "", error.remedy]
    st.error("\n\n".join(line for line in lines if line))


def show_tabs(tabs: Mapping[str, tuple[Callable[[], None], tuple[str, ...]]], key: str) -> None:
    """Draw the open tab alone; choices made on the others, whose keys begin as said, are kept."""
    for tab, (show, keys) in zip(st.tabs(list(tabs), key=key, on_change="rerun"), tabs.values(), strict=True):
        if tab.open:
            with tab:
                show()
        else:
            for held in [name for name in st.session_state if str(name).startswith(keys)]:
                st.session_state[held] = st.session_state[held]


def number(label: str, help_text: str = "", fmt: str = "%.3g", width: Any = None) -> Any:
    """Describe a column of numbers."""
    return st.column_config.NumberColumn(label, help=help_text or None, format=fmt, width=width)


def text(label: str, help_text: str = "", width: Any = None) -> Any:
    """Describe a column of words."""
    return st.column_config.TextColumn(label, help=help_text or None, width=width)


def show_table(table: pd.DataFrame, columns: Mapping[str, Any], *, height: Any = "auto", **options: Any) -> Any:
    """Show a table without its index; ``columns`` describes headings, units, formats and help."""
    config = {name: columns.get(name, name.replace("_", " ").capitalize()) for name in table.columns}
    return st.dataframe(table, column_config=config, hide_index=True, height=height, placeholder="–", **options)


def show_figure(figure: Any, key: str, **options: Any) -> Any:
    """Show a figure in the text colour of the page's theme."""
    return show_dressed(dressed(figure, theme()), key, **options)


def show_kept(key: str, of: tuple[Any, ...], build: Callable[[], Any], **options: Any) -> Any:
    """Show a figure that is built once for the results and choices in ``of``, see `kept`."""
    return show_dressed(kept_figure(key, of, build), key, **options)


def kept_figure(key: str, of: tuple[Any, ...], build: Callable[[], Any]) -> Any:
    """Return a figure for the page's theme, built once, see `kept`."""
    colours = theme()
    return kept(key, (*of, colours), lambda: dressed(build(), colours))


def show_dressed(figure: Any, key: str, **options: Any) -> Any:
    """Show a figure as it is."""
    return st.plotly_chart(figure, theme=None, key=key, config={"displaylogo": False}, **options)


def theme() -> str:
    """Return the theme of the page, "dark" or "light"."""
    return "dark" if st.context.theme.type == "dark" else "light"


def dressed(figure: Any, theme: str) -> Any:
    """Give a figure the text colour of a theme."""
    colour = TEXT_COLOURS[theme]
    return figure.update_layout(
        font={"family": "'Source Sans', sans-serif", "color": colour, "size": 13},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": colour, "activecolor": colour},
    )


def brief(value: float) -> str:
    """Return a number with three digits, or all before the point of a large one."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def bounds(low: float, high: float, between: str = "–") -> str:
    """Return the ends of an interval with two digits, or all before the point."""
    return between.join(f"{end:.2g}" if abs(end) < 10 else f"{end:,.0f}" for end in (low, high))


def show_quality(table: pd.DataFrame, key: str) -> None:
    """Show the gate of each cohort, the interval of the pass rate in one column."""
    low, high = table["ci_low"].map("{:.0%}".format), table["ci_high"].map("{:.0%}".format)
    shown = table.assign(ci_low=low + " – " + high).drop(columns="ci_high")
    show_table(shown, quality_columns(), key=key, height="content")


def quality_columns() -> dict[str, Any]:
    """Describe the columns of the paper's Table 2."""
    return {
        "cohort": text("Cohort", width=215),
        "n": number("N", "Volumes judged.", "%d", 50),
        "failed_scores": number("Failed scores", "Scores below the threshold, of eight for each volume.", "%d", 95),
        "failed_volumes": number("Failed volumes", "Volumes with any score below the threshold.", "%d", 105),
        "pass_rate": number("Pass rate ↑", "Share of volumes that pass; higher is better.", "percent", 80),
        "ci_low": text("95 % interval", "Wilson interval of the pass rate.", 100),
        "threshold": number("Threshold", "Lowest score that passes, the same for all eight scores.", "%.3f", 80),
        "reliable": st.column_config.CheckboxColumn(
            "Reliable", help="Fails no more often than the gate allows.", width=75
        ),
    }


def effect_columns() -> dict[str, Any]:
    """Describe the columns of effect_sizes.csv."""
    return {
        "group": text("Group"),
        "region": text("Region"),
        "cohort": text("Cohort", width=COHORT_WIDTH),
        "cohens_d": number("Cohen's d", SIGN, "%+.2f"),
        "ci_low": number("95 % from", "Lower end of the 95 % bootstrap interval of d.", "%+.2f"),
        "ci_high": number("95 % to", "Upper end of the 95 % bootstrap interval of d.", "%+.2f"),
        "spread_ratio": number(
            "Spread ratio (log)", "log(SD synthetic / SD real). 0 is best; below 0 too little variety.", "%+.2f"
        ),
        "p_value": number("p", "Welch's t test.", "%.2g"),
        "q_value": number("q", "p after Benjamini-Hochberg over the regions.", "%.2g"),
        "verdict": text("Verdict", "Equivalent: 90 % interval within ±0.2. Different: q < 0.05. Else undetermined."),
        "tost_low": number("90 % from", "Lower end of the 90 % interval of d.", "%+.2f"),
        "tost_high": number("90 % to", "Upper end of the 90 % interval of d.", "%+.2f"),
        "tost_p": number("p (TOST)", "That d lies inside ±0.2: small means equivalent.", "%.2g"),
        "hedges_g": number("Hedges' g", "0 is best. As d, corrected for small samples.", "%+.2f"),
        "wasserstein": number(
            "Wasserstein", "Distance of the distributions in SD of the real cohort; 0 is best.", "%.2f"
        ),
        "wasserstein_floor": number("W floor", "Real against real at the same N.", "%.2f"),
        "relative_difference": number(
            "Less than real", "1 - mean synthetic / mean real, after adjustment. Negative: more than real.", "percent"
        ),
        "noise_floor": number("Engine's noise", NOISE_HELP, "%.2f"),
        "n_real": number("N real", fmt="%d"),
        "n_synthetic": number("N synthetic", fmt="%d"),
    }


def show_effects(
    effects: pd.DataFrame,
    key: str,
    help_texts: Mapping[str, str],
    of: tuple[Any, ...],
    gated: Collection[str] = (),
    **options: Any,
) -> Any:
    """Show effect sizes as a heatmap and as the paper's Table 3; row beside row where both fit.

    Parameters
    ----------
    effects : DataFrame
        In the form of effect_sizes.csv; ``cohort`` holds a short name.
    key : str
        Unique on the page.
    help_texts : mapping
        What each cohort's column holds, by short name.
    of : tuple
        What the effect sizes change with, see `kept`.
    gated : collection of str
        Short names of the cohorts that fail the gate: marked as not relied upon.
    """
    many = effects["cohort"].nunique() > FEW_COHORTS
    left, right = (st.container(), st.container()) if many else st.columns(2)
    with left:
        show_kept(f"{key}_heatmap", of, lambda: _effect_heatmap(effects, gated))
        if gated:
            st.caption(GATED)
    table, config = kept(f"{key}_wide", of, lambda: _effects_side_by_side(effects, help_texts, gated))
    with right:
        height = (len(table) + 4) * FLAT_ROW
        return st.dataframe(
            table, column_config=config, hide_index=True, key=f"{key}_table", height=height, row_height=FLAT_ROW,
            placeholder="–", **options,
        )  # fmt: skip


def _effect_heatmap(effects: pd.DataFrame, gated: Collection[str]) -> Any:
    figure = plots.effect_heatmap(effects, gated)
    names = list(dict.fromkeys(effects["cohort"]))
    many = len(names) > FEW_COHORTS
    ticks = [wrapped(name, 11 if many else 24) for name in names]
    figure.update_xaxes(tickangle=0 if many else -40, tickvals=names, ticktext=ticks)
    return figure.update_yaxes(title=None)


def _effects_side_by_side(
    effects: pd.DataFrame, help_texts: Mapping[str, str], gated: Collection[str]
) -> tuple[pd.DataFrame, dict[int, Any]]:
    """Return d as in the paper's Table 3, a row a region and a column a cohort, and what the columns are."""
    regions, names = (list(dict.fromkeys(effects[name])) for name in ("region", "cohort"))
    values = effects.pivot_table("cohens_d", "region", "cohort", sort=False, dropna=False)
    values = values.reindex(index=regions, columns=names)
    cells: dict[tuple[str, str], Any] = {("", "Region"): regions}
    config = {1: text("Region", width=158)}  # by position, where 0 is the hidden index
    if "noise_floor" in effects and effects["noise_floor"].notna().any():
        cells["", "± noise"] = values.index.map(effects.groupby("region")["noise_floor"].max())
        config[2] = number("± noise", NOISE_HELP, "%.2f", 55)
    for name in names:
        plain, _, kind = name.removesuffix(")").rpartition(" (") if name.endswith(")") else (name, "", "")
        above = ", ".join(filter(None, [kind, "fails the gate" if name in gated else ""]))
        cells[above, plain] = values[name]
        about = f"{help_texts[name]} {GATED if name in gated else ''}".strip()
        config[len(cells)] = number(plain, about, "%+.2f", max(56, 16 + round(6.6 * len(plain))))
    return pd.DataFrame({column: list(found) for column, found in cells.items()}), config


def clock(seconds: float | None) -> str:
    """Return a time of day with its date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def span(seconds: float) -> str:
    """Return a duration in the unit a reader would choose."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
